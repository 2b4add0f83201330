# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of one delivery, in one write or in lockstep, each with the reply that it waits for.

It knows the order of commands and replies, and when the next reply is due. What a reply means is decided elsewhere.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Container, Iterable
from typing import TYPE_CHECKING, NamedTuple

from lmtp_proxy import reply as say
from lmtp_proxy.commit import Position
from lmtp_proxy.envelope import Envelope
from lmtp_proxy.failure import Phase
from lmtp_proxy.reply import Reply

if TYPE_CHECKING:
    from lmtp_proxy.backend import BackendSession

# Times `command` for all replies to MAIL and one group of RCPT: with 60 s this ends before Postfix's 300 s.
_ENVELOPE = 4
# Commands in one write. Neither side may fill the other's socket buffers while it reads nothing (RFC 2920 section 3.1);
# 16 KiB of commands and 100 replies stay below the smallest of them.
_BATCH_OCTETS = 16384
_BATCH_COMMANDS = 100
_MAIL, _RCPT, _DATA = Phase.MAIL, Phase.RCPT, Phase.DATA


class Answer(NamedTuple):
    """A reply, and what it answers. position: of a RCPT."""

    phase: Phase
    position: Position | None
    reply: Reply


class Commands:
    """seconds: for the reply to one command. deadline: for the next reply (time.monotonic).

    mail_sent, data_sent: the backend was told, or will be.
    """

    def __init__(self, seconds: float) -> None:
        self.deadline = 0.0
        self.mail_sent = self.data_sent = False
        self._seconds = seconds
        self._latest = 0.0  # for all replies to what was asked
        self._unsent: list[tuple[bytes, Phase, Position | None]] = []
        self._expected: deque[tuple[Phase, Position | None]] = deque()

    def __repr__(self) -> str:
        return f"<Commands unsent={len(self._unsent)} expected={len(self._expected)}>"

    @property
    def outstanding(self) -> bool:
        """Some reply is to come."""
        return bool(self._expected or self._unsent)

    def clear(self) -> None:
        """Nothing is to come; as new."""
        self._unsent = []
        self._expected.clear()
        self.mail_sent = self.data_sent = False

    def ask(
        self, session: BackendSession, envelope: Envelope, positions: Iterable[Position], *, data_follows: bool
    ) -> None:
        """Send MAIL (once), RCPT of each, and DATA where that may go in the same write. Raises BackendError.

        A recipient whom the backend cannot take has its rcpt_reply at once.
        """
        unsent = self._unsent
        offered = session.offered
        for position in positions:
            if envelope.smtputf8 and not _can_take(offered, envelope, position):
                position.rcpt_reply = say.NO_SMTPUTF8
                continue
            if not self.mail_sent:
                self.mail_sent = True
                unsent.append((envelope.mail_command(offered), _MAIL, None))
            unsent.append((position.recipient.rcpt_command(), _RCPT, position))
        if data_follows and self.mail_sent and "pipelining" in offered:
            self.data_sent = True
            unsent.append((b"DATA", _DATA, None))
        self._latest = time.monotonic() + _ENVELOPE * self._seconds
        self._send(session)

    def data(self, session: BackendSession) -> None:
        """Send DATA. Raises BackendError."""
        self.data_sent = True
        self._latest = 0.0
        self._unsent.append((b"DATA", _DATA, None))
        self._send(session)

    def answers(self, session: BackendSession) -> list[Answer]:
        """The next replies that have come; before that, the commands go out that waited for all before them.

        Raises BackendError.
        """
        expected = self._expected
        if not expected:
            session.check_quiet()  # what came before these would answer them
            self._send(session)
        answers = [Answer(*expected.popleft(), reply) for reply in session.next_replies(len(expected))]
        if answers and expected:
            self._set_deadline()
        return answers

    def _send(self, session: BackendSession) -> None:
        """As many as may go out in one write; one without PIPELINING."""
        most = _BATCH_COMMANDS if "pipelining" in session.offered else 1
        octets = 0
        batch: list[bytes] = []
        for command, phase, position in self._unsent[:most]:
            octets += len(command) + 2
            if batch and octets > _BATCH_OCTETS:
                break
            batch.append(command)
            self._expected.append((phase, position))
        if batch:
            del self._unsent[: len(batch)]
            batch.append(b"")
            session.put(b"\r\n".join(batch))
            self._set_deadline()

    def _set_deadline(self) -> None:
        self.deadline = time.monotonic() + self._seconds
        if self._latest and self._latest < self.deadline:
            self.deadline = self._latest


def _can_take(offered: Container[str], envelope: Envelope, position: Position) -> bool:
    """Unless the recipient needs SMTPUTF8 on a backend that does not offer it (RFC 6531 section 3.5)."""
    return "smtputf8" in offered or (envelope.path.isascii() and position.recipient.path.isascii())
