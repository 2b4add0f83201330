# SPDX-License-Identifier: GPL-3.0-or-later
"""The LMTP client side (RFC 2033), sans-I/O: commands in, octets out; octets in, replies out, each with its command.

The other half of `protocol`, for one connection to a backend and as long as it is. Backends are trusted with mail, and
with nothing else: what is no reply, is too long, answers nothing or says 421 ends the conversation. What that means for
anybody's mail is decided elsewhere, and so is when a reply is due. Nothing here is made anew for each message.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Iterable, Sequence

from lmtp_proxy.wire.envelope import Envelope
from lmtp_proxy.wire.protocol import LocalProtocolError
from lmtp_proxy.wire.reply import MAX_LINE, Reply, reply_from_wire

MAX_REPLY = 32768
"""Octets of all lines of a reply; that to each recipient of a message may be as long."""

# Commands in one write. Neither side may fill the other's socket buffers while it reads nothing (RFC 2920 section 3.1);
# 16 KiB of commands and 100 replies stay below the smallest of them.
BATCH_OCTETS = 16384
BATCH_COMMANDS = 100

_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])([^\r\n\0]*))?\r?\n")
# What nearly all replies look like: one line, with an enhanced code unless it is a 354, and no 421. Everything else
# goes the long way round; where both can read a reply, they agree.
_PLAIN_REPLY = re.compile(
    rb"(?!421)([2-5][0-9][0-9]) ((?:(?<=354 )|[245]\.[0-9]{1,3}\.[0-9]{1,3}(?=[ \r]))[^\r\n\0]{0,2000})\r\n"
)
# RFC 9422 section 4: "LIMITS MAILMAX=10 RCPTMAX=100".
_LIMIT = re.compile(r"(?:^|\s)(MAILMAX|RCPTMAX)=([1-9][0-9]{0,5})(?!\S)", re.IGNORECASE)
_MOST_KNOWN = 256
_LONGEST_KNOWN = 512  # octets


class Command(enum.Enum):
    """What a reply answers."""

    GREETING = "the connection"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    FINAL_DOT = "the final dot"
    RSET = "RSET"
    OTHER = "a command of its own"


class ClientState(enum.Enum):
    """How far the conversation is."""

    READY = "no transaction is open"
    ENVELOPE = "MAIL was sent"
    DATA = "the backend takes the message"
    DOT = "the final dot, or some of it, went out"
    BROKEN = "nothing that comes can be understood any more"


class Fault(enum.Enum):
    """How a backend can end the conversation."""

    NO_REPLY = "what it sent is no reply"
    TOO_LONG = "a line or reply is longer than any that is passed on"
    CLOSING = "421"
    UNASKED = "a reply that nobody asked for"
    EARLY = "a reply amid the message"
    ENDED = "the end of the stream where a reply was due"


class RemoteProtocolError(Exception):
    """The conversation cannot go on; the backend's doing, never ours.

    Attributes:
        fault: in which way.
        reply: the one that did it, where it is a whole one; with an enhanced code.
    """

    def __init__(self, fault: Fault, reason: str, reply: Reply | None = None) -> None:
        super().__init__(reason)
        self.fault = fault
        self.reply = reply


class KnownReplies(tuple[Reply, ...]):
    """Replies in a row, whose meaning is known, too.

    Attributes:
        positive: all are 2xx.
        accepted: where the last is a 354 and all others are 2xx, these without the first; else none. So they are those
            to the recipients, where the first answers MAIL and the last DATA.
    """

    positive = False
    accepted: tuple[Reply, ...] = ()


KNOWN: dict[bytes, KnownReplies] = {}
"""Octets that were nothing but whole plain replies, and these: backends say the same again and again, and a reply is a
value. So most replies are not even looked at: as few as 2.5 us for all that answers an envelope become 0.1. About
200 KB when it is full. What comes once is not among them: the final replies of real stores have an id each."""
_once: set[bytes] = set()  # those that have come once

_READY, _ENVELOPE, _IN_DATA, _DOT = ClientState.READY, ClientState.ENVELOPE, ClientState.DATA, ClientState.DOT
_DATA = Command.DATA
_TO_MAIL, _TO_RCPT, _TO_DATA = (Command.MAIL,), (Command.RCPT,), (_DATA,)
_TO_DOT, _TO_RSET = (Command.FINAL_DOT,), (Command.RSET,)
_DATA_LINE = b"DATA\r\n"


class ClientProtocol:
    """One connection to a backend.

    Attributes:
        state: how far the conversation is.
        transactions: begun on this connection.
        offered: the extensions of the last LHLO reply, in lower case.
        pipelining: it is among them.
        mail_max: how many transactions it takes on this connection (RFC 9422); math.inf where it does not say.
        rcpt_max: how many recipients in each of them.
        expected: what the next replies answer, in order.
        answered: what those answer that were given out last.
        unsent: what has to wait until those are there; see `more`.
        partial: something has come that was not given out as a reply.
    """

    __slots__ = (
        *("_at", "_code", "_end", "_error", "_lines", "_octets", "_received", "_unsent_lines"),
        *("answered", "expected", "mail_max", "offered", "partial", "pipelining", "rcpt_max", "state"),
        *("transactions", "unsent"),
    )

    def __init__(self) -> None:
        self.state = _READY
        self.transactions = 0
        self.offered: frozenset[str] = frozenset()
        self.pipelining = False
        self.mail_max = self.rcpt_max = math.inf
        self.expected: Sequence[Command] = (Command.GREETING,)
        self.answered: Sequence[Command] = ()
        self.unsent: Sequence[Command] = ()
        self._unsent_lines: Sequence[bytes] = ()  # of each of these, with CRLF
        self.partial = False
        self._received = b""
        self._at = 0  # in `_received`: what stands before it was read
        self._lines: list[bytes] = []  # of a reply that has not come to its end
        self._code = b""  # of these
        self._octets = 0  # of these
        self._end: str | None = None  # of the stream: how it came
        self._error: RemoteProtocolError | None = None

    def __repr__(self) -> str:
        unread = len(self._received) - self._at
        expected, unsent = len(self.expected), len(self.unsent)
        return f"<ClientProtocol {self.state.name.lower()} expected={expected} unsent={unsent} unread={unread}>"

    # --- what may be asked -------------------------------------------------------------------------------------------

    @property
    def asks_for_data(self) -> bool:
        """A reply to DATA is to come."""
        return self.expected[-1:] == _TO_DATA or self.unsent[-1:] == _TO_DATA

    @property
    def stale(self) -> bool:
        """There was a transaction before, and no answer in this one: the backend may have left in between."""
        if self.state is _READY:
            return self.transactions > 0
        return self.transactions > 1 and self.expected[:1] == _TO_MAIL

    # --- out ---------------------------------------------------------------------------------------------------------

    def offers(self, extensions: Iterable[str], limits: str = "") -> None:
        """What the reply to LHLO offered: names in any case, without their parameters. limits: those of LIMITS."""
        found = {name.upper(): int(number) for name, number in _LIMIT.findall(limits)}
        self.mail_max, self.rcpt_max = found.get("MAILMAX", math.inf), found.get("RCPTMAX", math.inf)
        self.offered = frozenset(name.lower() for name in extensions)
        self.pipelining = "pipelining" in self.offered

    def command(self, command: Command, *lines: bytes) -> bytes:
        """These lines (without CRLF) in one write; each of them has a reply to come."""
        if command is Command.MAIL:
            self.state = _ENVELOPE
            self.transactions += 1
        self.expected = (*self.expected, *[command] * len(lines))
        return b"".join([line + b"\r\n" for line in lines])

    def envelope(self, envelope: Envelope, recipients: Sequence[bytes], data_follows: bool) -> bytes:
        """MAIL, unless it was sent, RCPT of each, and DATA where that may go along: as much as may go out in one write.

        recipients: the lines, with CRLF. Nothing goes out where there are none. See `more` for the rest.
        """
        commands: tuple[Command, ...] = _TO_RCPT * len(recipients)
        if not commands:
            return b""
        if self.state is _READY:
            self.state = _ENVELOPE
            self.transactions += 1
            commands = _TO_MAIL + commands
            lines = [envelope.mail_command(self.offered) + b"\r\n", *recipients]
        else:
            lines = [*recipients]
        if data_follows and self.pipelining:
            commands += _TO_DATA
            lines.append(_DATA_LINE)
        return self._write(commands, lines)

    def data(self) -> bytes:
        """DATA by itself, where it did not go with the recipients."""
        return self._write(_TO_DATA, (_DATA_LINE,))

    def more(self) -> bytes:
        """As many of `unsent` as may go in one write; one without PIPELINING."""
        return self._write(self.unsent, self._unsent_lines)

    def take_back(self) -> bytes:
        """RSET, in place of all that has not gone out: the envelope is not wanted any more.

        And DATA, which is refused then, so that the replies to the two are not alike. See `taken_back`.
        """
        self.unsent = self._unsent_lines = ()
        return self.command(Command.RSET, b"RSET") + self.command(Command.DATA, b"DATA")

    def taken_back(self) -> None:
        """RSET was accepted, and DATA was not."""
        self.state = _READY

    def _write(self, commands: Sequence[Command], lines: Sequence[bytes]) -> bytes:
        """Raises LocalProtocolError where a reply is to come to what went out before, or there is no transaction."""
        if self.expected or self.state is not _ENVELOPE:
            raise LocalProtocolError(f"no command may be sent now: {self!r}")
        most = BATCH_COMMANDS if self.pipelining else 1
        if len(lines) <= most and len(octets := b"".join(lines)) <= BATCH_OCTETS:
            self.expected, self.unsent, self._unsent_lines = commands, (), ()
            return octets
        number = _fitting(lines, most)
        self.expected, self.unsent, self._unsent_lines = commands[:number], commands[number:], lines[number:]
        return b"".join(lines[:number])

    def dot_begun(self, recipients: int) -> None:
        """The final dot, or some of it, has gone out: each of so many recipients has a reply to come."""
        if self.state is not _IN_DATA:
            raise LocalProtocolError(f"no final dot may be sent now: {self!r}")
        self.state = _DOT
        self.expected = _TO_DOT * recipients

    # --- in ----------------------------------------------------------------------------------------------------------

    def receive(self, octets: bytes) -> Sequence[Reply]:
        """What has come, b"" if nothing has; and the next replies of those that are expected, with enhanced codes.

        `answered` says what they answer. More of them may be there: the next call gives them. Raises
        RemoteProtocolError for what is wrong, in its turn; LocalProtocolError if nothing is expected.
        """
        expected = self.expected
        most = len(expected)
        replies: Sequence[Reply] | None = None if self.partial else KNOWN.get(octets)
        if replies is None or len(replies) > most:
            replies = self._parsed(octets, most)
        if len(replies) < most:
            self.answered, self.expected = expected[: len(replies)], expected[len(replies) :]
            return replies
        self.answered, self.expected = expected, ()
        if self.state is _DOT:
            self.state = _READY
        elif expected[-1] is _DATA and replies[-1].code == 354:
            self.state = _IN_DATA
        return replies

    def receive_verbatim(self, octets: bytes) -> Reply | None:
        """The same for one reply, as it came, outside of a transaction: the greeting, and to a `command`."""
        self._take_in(octets)
        reply = self._next()
        if reply is not None:
            self.answered, self.expected = self.expected[:1], self.expected[1:]
            if self.answered == _TO_RSET and reply.positive:
                self.state = _READY
        return reply

    def receive_unasked(self, octets: bytes) -> bool:
        """What has come while no reply is due; whether it may yet become one, because some of it has come.

        Raises RemoteProtocolError for a whole one, and all that is wrong.
        """
        self._add(octets)
        reply = self._next()
        if reply is None:
            return self.partial
        fault = Fault.EARLY if self.state is _IN_DATA else Fault.UNASKED
        raise self._broken(fault, f"it said out of turn: {reply}", reply.with_enhanced())

    def receive_end(self, why: str) -> None:
        """The stream has ended; why: for the log. What came before is still given out."""
        self._end = why

    def _parsed(self, octets: bytes, most: int) -> Sequence[Reply]:
        """The next replies, with enhanced codes: plain ones as many as stand in a row, others one by one."""
        self._take_in(octets)
        if not self._lines:
            replies, end = _plain_replies(self._received, self._at, most)
            if replies:
                self._use_up(end)
                return replies
        reply = self._next()
        return () if reply is None else (reply.with_enhanced(),)

    def _take_in(self, octets: bytes) -> None:
        if self._error is not None:
            raise self._error
        if not self.expected:
            raise LocalProtocolError(f"no reply is expected: {self!r}")
        self._add(octets)

    def _add(self, octets: bytes) -> None:
        if octets:
            self._received = self._received[self._at :] + octets
            self._at = 0
            self.partial = True

    def _use_up(self, end: int) -> None:
        self._at = end
        if end == len(self._received):
            self._received, self._at = b"", 0
            self.partial = bool(self._lines)

    def _next(self) -> Reply | None:
        """The next reply of any form, as it came; None if it may still come."""
        if self._error is not None:
            raise self._error
        while match := _REPLY_LINE.match(self._received, self._at):
            code, mark, text = match.groups(b"")
            if match.end() - self._at > MAX_LINE:
                raise self._broken(Fault.TOO_LONG, f"a reply line of more than {MAX_LINE} octets")
            lines: tuple[bytes, ...] = (text,)
            if self._lines or mark == b"-":
                self._gather(code, text)
                if mark == b"-":
                    self._use_up(match.end())
                    continue
                lines, self._lines, self._octets = tuple(self._lines), [], 0
            self._use_up(match.end())
            reply = reply_from_wire(int(code), lines)
            if reply.code == 421:
                raise self._broken(Fault.CLOSING, f"it said {reply}", reply.with_enhanced())
            return reply
        self._check_rest()
        return None

    def _gather(self, code: bytes, text: bytes) -> None:
        """A line of a reply of several lines."""
        if self._lines and code != self._code:
            raise self._broken(Fault.NO_REPLY, "what it sent is no reply")
        self._code = code
        self._lines.append(text)
        self._octets += len(text) or 1
        if self._octets > MAX_REPLY:
            raise self._broken(Fault.TOO_LONG, f"a reply of more than {MAX_REPLY} octets")

    def _check_rest(self) -> None:
        """What was received and is no whole line of a reply: raises RemoteProtocolError unless it may become one."""
        unread = len(self._received) - self._at
        line_end = self._received.find(b"\n", self._at) if unread else -1
        if (unread if line_end < 0 else line_end - self._at) >= MAX_LINE:
            raise self._broken(Fault.TOO_LONG, f"a reply line of more than {MAX_LINE} octets")
        if line_end >= 0:
            raise self._broken(Fault.NO_REPLY, "what it sent is no reply")
        if self._end is not None:
            raise self._broken(Fault.ENDED, self._end)

    def _broken(self, fault: Fault, reason: str, reply: Reply | None = None) -> RemoteProtocolError:
        """Whoever asks again is told the same."""
        self.state = ClientState.BROKEN
        self.partial = True
        self._error = RemoteProtocolError(fault, reason, reply)
        return self._error


def _plain_replies(octets: bytes, start: int, most: int) -> tuple[list[Reply], int]:
    """The plain replies that begin at `start`, at most so many, and where they end."""
    at = start
    replies: list[Reply] = []
    while len(replies) < most and (match := _PLAIN_REPLY.match(octets, at)):
        wire, code, text = match.group(0, 1, 2)
        at = match.end()
        replies.append(reply_from_wire(int(code), (text,), wire))
    if replies and start == 0 and at == len(octets) <= _LONGEST_KNOWN:
        _remember(octets, replies)
    return replies, at


def _remember(octets: bytes, replies: Sequence[Reply]) -> None:
    if octets not in _once:
        if len(_once) >= _MOST_KNOWN:
            _once.clear()
        _once.add(octets)
        return
    if len(KNOWN) >= _MOST_KNOWN:
        KNOWN.clear()
    known = KNOWN[octets] = KnownReplies(replies)
    *others, last = replies
    if all(reply.positive for reply in others):
        known.positive = last.positive
        if last.code == 354:
            known.accepted = known[1:-1]


def _fitting(lines: Sequence[bytes], most: int) -> int:
    """How many may go out in one write; the first may always."""
    octets = 0
    for number, line in enumerate(lines[:most]):
        octets += len(line)
        if number and octets > BATCH_OCTETS:
            return number
    return min(most, len(lines))
