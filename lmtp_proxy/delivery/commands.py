# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of one delivery, in one write or in lockstep, each with the reply that it waits for.

It knows the order of commands and replies, and when the next reply is due. What a reply means is decided elsewhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, TypeAlias

from lmtp_proxy.backends.failure import BackendError, Failure, Phase
from lmtp_proxy.delivery.place import Place
from lmtp_proxy.generations.destination import Destination
from lmtp_proxy.wire.envelope import Envelope
from lmtp_proxy.wire.reply import Reply

if TYPE_CHECKING:
    from lmtp_proxy.backends.session import BackendSession

# Times `command` for all replies to MAIL and one group of RCPT: with 60 s this ends before Postfix's 300 s.
_ENVELOPE = 4
# Commands in one write. Neither side may fill the other's socket buffers while it reads nothing (RFC 2920 section 3.1);
# 16 KiB of commands and 100 replies stay below the smallest of them.
_BATCH_OCTETS = 16384
_BATCH_COMMANDS = 100
_EARLY_REPLY = 1.0  # seconds for the rest of a reply that has begun to arrive before its time
_MAIL, _DATA = Phase.MAIL, Phase.DATA
_DATA_LINE = b"DATA\r\n"
_command = attrgetter("command")

Command: TypeAlias = Destination | Phase
"""What a reply answers: RCPT of a destination, MAIL or DATA."""


class Commands(Place):
    """deadline: for the next reply (time.monotonic).

    mail_sent, data_sent: the backend was told, or will be. expected: what the next replies answer, in order.
    just_asked: something went out that is answered, and nobody has waited since; the caller unsets it. hears_until:
    half a reply has come out of turn, and has until then to become whole; else 0.
    """

    deadline = 0.0
    mail_sent = data_sent = just_asked = False
    hears_until = 0.0
    expected: Sequence[Command] = ()
    _latest = math.inf  # for all replies to what was asked
    _unsent: Sequence[Command] = ()
    _unsent_lines: Sequence[bytes] = ()  # of each of these, with CRLF

    @property
    def outstanding(self) -> bool:
        """Some reply is to come."""
        return bool(self.expected or self._unsent)

    def clear(self) -> None:
        """Nothing is to come; as new."""
        self.expected = self._unsent = self._unsent_lines = ()
        self.mail_sent = self.data_sent = False

    def send_envelope(
        self, session: BackendSession, envelope: Envelope, destinations: Sequence[Destination], data_follows: bool
    ) -> None:
        """Send MAIL (once), RCPT of each, and DATA where that may go in the same write. Raises BackendError.

        Those who get mail with SMTPUTF8 that the backend cannot take are left out; see `may_take`.
        """
        offered = session.offered
        if envelope.smtputf8 and "smtputf8" not in offered:
            destinations = [destination for destination in destinations if may_take(session, envelope, destination)]
        pipelining = "pipelining" in offered
        now = time.monotonic()
        patience = self.pool.backend.timeouts.command
        self._latest = now + _ENVELOPE * patience
        if data_follows and pipelining and not self.mail_sent and 0 < len(destinations) <= _BATCH_COMMANDS - 2:
            octets = b"%b\r\n%bDATA\r\n" % (envelope.mail_command(offered), b"".join(map(_command, destinations)))
            if len(octets) <= _BATCH_OCTETS:  # as nearly always: what the long way would send
                self.mail_sent = self.data_sent = self.just_asked = True
                self.expected = [_MAIL, *destinations, _DATA]
                session.put(octets)
                self.deadline = now + patience
                return
        commands: list[Command] = []
        lines: list[bytes] = []
        if destinations and not self.mail_sent:
            self.mail_sent = True
            commands.append(_MAIL)
            lines.append(envelope.mail_command(offered) + b"\r\n")
        commands += destinations
        lines += map(_command, destinations)
        if data_follows and pipelining and self.mail_sent:
            self.data_sent = True
            commands.append(_DATA)
            lines.append(_DATA_LINE)
        self._unsent, self._unsent_lines = commands, lines
        self.send_more(session)

    def send_data(self, session: BackendSession) -> None:
        """Send DATA. Raises BackendError."""
        self.data_sent = True
        self._latest = math.inf
        self._unsent, self._unsent_lines = [_DATA], [_DATA_LINE]
        self.send_more(session)

    def send_more(self, session: BackendSession) -> None:
        """As many commands as may go out in one write; one without PIPELINING. Raises BackendError.

        No reply may be outstanding to what went out before.
        """
        lines = self._unsent_lines
        if not lines:
            return
        most = _BATCH_COMMANDS if "pipelining" in session.offered else 1
        if len(lines) <= most and len(octets := b"".join(lines)) <= _BATCH_OCTETS:
            self.expected = self._unsent
            self._unsent = self._unsent_lines = ()
        else:
            number = _fitting(lines, most)
            octets = b"".join(lines[:number])
            self.expected, self._unsent = self._unsent[:number], self._unsent[number:]
            self._unsent_lines = lines[number:]
        session.put(octets)
        self.just_asked = True
        self.set_deadline()

    def answered(self, replies: Sequence[Reply]) -> Sequence[Command]:
        """What these, the next ones that have come, are replies to."""
        answered, self.expected = self.expected[: len(replies)], self.expected[len(replies) :]
        if self.expected:
            self.set_deadline()
        return answered

    def quiet(self, session: BackendSession, in_data: bool = False) -> bool:
        """Whether nothing has come out of turn, up to now; else nothing more may be said on this session.

        Raises BackendError if something has. Where that is no whole reply yet, the answer is False, and this has to be
        asked again until `hears_until`.
        """
        if not session.check_quiet(in_data):
            return True
        now = time.monotonic()
        if not self.hears_until:
            self.hears_until = self.deadline = now + _EARLY_REPLY
        elif now >= self.hears_until:
            raise BackendError(Failure.SILENT, "no answer in time")
        return False

    def in_time(self, what: str) -> bool:
        """False: wait on. Raises BackendError when the deadline has passed."""
        if time.monotonic() >= self.deadline:
            raise BackendError(Failure.SILENT, what)
        return False

    def set_deadline(self) -> None:
        """The next reply is waited for from now on."""
        deadline = time.monotonic() + self.pool.backend.timeouts.command
        self.deadline = deadline if deadline < self._latest else self._latest


def may_take(session: BackendSession | None, envelope: Envelope, destination: Destination) -> bool:
    """A backend without SMTPUTF8 takes nothing that needs it (RFC 6531 section 3.5)."""
    if not envelope.smtputf8 or session is None or "smtputf8" in session.offered:
        return True
    return envelope.path.isascii() and destination.recipient.path.isascii()


def _fitting(lines: Sequence[bytes], most: int) -> int:
    """How many may go out in one write; the first may always."""
    octets = 0
    for number, line in enumerate(lines[:most]):
        octets += len(line)
        if number and octets > _BATCH_OCTETS:
            return number
    return min(most, len(lines))
