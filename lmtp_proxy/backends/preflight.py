# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks a backend whether it would take mail for some recipients: everything but DATA, on a connection of its own.

Or hands it one mail, for whom it takes mail for, to see where it puts that. The answers are the backend's, unjudged:
what they mean for a move is decided by whoever asked. A backend that fails is a result, too, so nothing is raised. It
knows no users, routes or tables.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmtp_proxy.backends.failure import BackendError, Failure
from lmtp_proxy.backends.pool import BackendPool
from lmtp_proxy.wire import reply as say
from lmtp_proxy.wire.client import Command
from lmtp_proxy.wire.envelope import Envelope, Recipient
from lmtp_proxy.wire.reply import Reply

if TYPE_CHECKING:
    from lmtp_proxy.backends.session import BackendSession

# Recipients of one transaction (RFC 5321 section 4.5.3.1.8 asks a server to take as many), and octets of one write, so
# that neither side can fill the other's socket buffer (RFC 2920 section 3.1).
_TRANSACTION = 100
_OCTETS = 16384


@dataclass(slots=True)
class Preflight:
    """What the backend said.

    Attributes:
        refused: why it did not answer for all recipients, None if it did; one line, escaped.
        replies: those it gave.
        offers: of its LHLO, each with its parameters; as sent but for the case of the keyword, not escaped.
        tls: what is spoken, also with one that is refused; None without TLS.
        ready: seconds until MAIL could be said; None if it never could.
        final: the reply to the message, None if none was sent or no reply came.
        seconds: of all, but for QUIT.
    """

    refused: str | None = None
    replies: list[tuple[Recipient, Reply]] = field(default_factory=list)
    offers: list[str] = field(default_factory=list)
    tls: dict[str, object] | None = None
    ready: float | None = None
    final: Reply | None = None
    seconds: float = 0.0


def preflight(
    pool: BackendPool,
    recipients: Sequence[Recipient],
    wanted: Callable[[], bool],
    *,
    mail: bool = True,
    message: bytes | None = None,
) -> Preflight:
    """LHLO (and AUTH), MAIL FROM:<>, RCPT for each recipient, RSET, QUIT; without recipients no RCPT.

    Each step has the backend's own deadline. Takes a place of the pool.

    Args:
        wanted: asked before each wait; False ends it.
        mail: also without recipients MAIL is said.
        message: sent, once, if there is one recipient and the backend takes mail for them; with CRLF, and without a
            dot at the start of a line.
    """
    began = time.monotonic()
    result = Preflight()
    try:
        _preflight(pool, recipients, wanted, result, mail=mail or bool(recipients), message=message)
    finally:
        result.seconds = time.monotonic() - began
    return result


def _preflight(
    pool: BackendPool,
    recipients: Sequence[Recipient],
    wanted: Callable[[], bool],
    result: Preflight,
    *,
    mail: bool,
    message: bytes | None,
) -> None:
    began = time.monotonic()
    session: BackendSession | None = None
    asked = ended_well = False
    try:
        kept = pool.reserve(lambda: None)
    except BackendError as error:
        result.refused = error.reason
        return
    try:
        if kept is not None:
            kept.close()
        session = pool.open(fresh=True, whatever=True)
        result.ready = time.monotonic() - began
        result.tls = None if pool.tls is None else pool.tls.to_json()
        result.offers = [f"{name.upper()} {more}".rstrip() for name, more in session.esmtp_features.items()]
        if not mail:
            ended_well = True
            return
        for number, group in enumerate(_groups(recipients, min(_TRANSACTION, pool.most_recipients))):
            if number:
                _positive(Command.RSET, _converse(session, Command.RSET, [b"RSET"], wanted))
            _ask(session, group, wanted, result)
        if message is not None and [reply.positive for _, reply in result.replies] == [True] and wanted():
            result.final = _deliver(session, message)
        asked = True
        _positive(Command.RSET, _converse(session, Command.RSET, [b"RSET"], wanted))
        ended_well = True
    except BackendError as error:
        if not asked:
            result.refused = error.reason
        if error.failure is Failure.TLS and pool.tls is not None:
            result.tls = pool.tls.to_json()
    finally:
        if session is None:
            pool.cancel()
        elif ended_well:
            pool.leave(session)
        else:
            pool.discard(session)


def _groups(recipients: Sequence[Recipient], most: float) -> Iterator[list[Recipient]]:
    """The recipients of each transaction, at most so many; one transaction with none where there are none."""
    group: list[Recipient] = []
    octets = 0
    for recipient in recipients:
        length = len(recipient.rcpt_command()) + len(b"\r\n")
        if group and (len(group) >= most or octets + length > _OCTETS):
            yield group
            group, octets = [], 0
        group.append(recipient)
        octets += length
    yield group


def _ask(session: BackendSession, recipients: list[Recipient], wanted: Callable[[], bool], result: Preflight) -> None:
    """One transaction, up to its last RCPT. Each reply goes to `result` as it comes. Raises BackendError."""
    protocol = session.protocol
    utf8 = "smtputf8" in protocol.offered
    able = [recipient for recipient in recipients if utf8 or recipient.path.isascii()]
    result.replies += [(recipient, say.NO_SMTPUTF8) for recipient in recipients if recipient not in able]
    envelope = Envelope(b"<>", smtputf8=any(not recipient.path.isascii() for recipient in able))
    _positive(Command.MAIL, _converse(session, Command.MAIL, [envelope.mail_command(protocol.offered)], wanted))
    groups = [able] if protocol.pipelining else [[recipient] for recipient in able]
    for group in groups:
        replies = _converse(session, Command.RCPT, [recipient.rcpt_command() for recipient in group], wanted)
        for recipient, reply in zip(group, replies, strict=True):
            if not (reply.positive or reply.negative):
                raise _unusable(Command.RCPT, reply)
            result.replies.append((recipient, reply))


def _converse(
    session: BackendSession, command: Command, lines: list[bytes], wanted: Callable[[], bool]
) -> Iterator[Reply]:
    """The replies to commands that go out in one write. Raises BackendError."""
    if not lines:
        return
    if not session.check_quiet():
        raise BackendError(Failure.ODD, "it said something out of turn")
    seconds = session.backend.timeouts.command
    session.write(session.protocol.command(command, *lines), time.monotonic() + seconds)
    for _ in lines:
        if not wanted():
            raise BackendError(Failure.INTERNAL, "nobody waits for the answer any more")
        yield session.read_reply(time.monotonic() + seconds).with_enhanced()


def _deliver(session: BackendSession, message: bytes) -> Reply:
    """The reply to the message. Raises BackendError."""
    timeouts = session.backend.timeouts
    session.write(session.protocol.data(), time.monotonic() + timeouts.command)
    [reply] = session.awaited(time.monotonic() + timeouts.command)
    if reply.code != 354:
        raise _unusable(Command.DATA, reply)
    session.protocol.dot_begun(1)
    try:
        session.write(message + b".\r\n", time.monotonic() + timeouts.data_write)
        [reply] = session.awaited(time.monotonic() + timeouts.final_reply)
    except BackendError as error:
        raise BackendError(error.failure, f"{error.reason}; the message may be delivered") from error
    if not (reply.positive or reply.negative):
        raise _unusable(Command.FINAL_DOT, reply)
    return reply


def _positive(command: Command, replies: Iterator[Reply]) -> None:
    for reply in replies:
        if not reply.positive:
            raise _unusable(command, reply)


def _unusable(command: Command, reply: Reply) -> BackendError:
    return BackendError(Failure.REFUSED, f"in reply to {command.value}: {reply}", reply)
