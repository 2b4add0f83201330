# SPDX-License-Identifier: GPL-3.0-or-later
"""The LMTP server side (RFC 2033), sans-I/O: octets in, events out; replies in, octets out.

What is malformed or out of order is answered here, and comes out as a RefusedCommand only. So is all that needs no
backend.
Each accepted RCPT is owed exactly one reply after the data, in RCPT order, by position. It knows no sockets, no time,
no log and no routing. Events are taken until NEED_DATA; output is collected until somebody takes it, which is all there
is to PIPELINING (RFC 2920).
"""

import re
import sys
from collections.abc import Callable

from lmtp_proxy.wire import reply as say
from lmtp_proxy.wire.command_lines import TOO_LONG, CommandLines
from lmtp_proxy.wire.dot_stuffing import FINAL_DOT, MessageData, whole_message
from lmtp_proxy.wire.envelope import Envelope, parse_envelope, parse_mail, parse_rcpt
from lmtp_proxy.wire.events import (
    ConnectionClosed,
    DataCommand,
    EndOfMessage,
    EnvelopeCommand,
    Event,
    MailCommand,
    MessageOctets,
    Mistake,
    RcptCommand,
    RefusedCommand,
    StartTlsCommand,
    TransactionReset,
    Wait,
)
from lmtp_proxy.wire.reply import Reply
from lmtp_proxy.wire.reply_queue import ReplyQueue
from lmtp_proxy.wire.xforward import NOBODY, Forwarded, Said

ANSWERS: dict[bytes, Reply] = {
    b"VRFY": say.CANNOT_VRFY,  # RFC 5321 section 4.1.1.6 and 7.3
    b"HELP": say.HELP,  # RFC 5321 section 4.1.1.8
    b"NOOP": say.OK,  # RFC 5321 section 4.1.1.9
}
REFUSALS: dict[bytes, Reply] = {
    b"HELO": say.NOT_LMTP,  # RFC 2033 section 4.1: must not be accepted
    b"EHLO": say.NOT_LMTP,  # RFC 2033 section 4.1: must not be accepted
}


MAX_ERRORS = 20
"""Refused commands in a row after which the session is closed."""
AT_ONCE = 100
"""Commands of one client that are taken before the other clients have their turn."""

_DATA, _RESET, _CLOSED = DataCommand(), TransactionReset(), ConnectionClosed()
_START_TLS = StartTlsCommand()
_NEED_DATA, _PAUSED = Wait.NEED_DATA, Wait.PAUSED
_SENDER_OK, _START_DATA = say.SENDER_OK.wire, say.START_DATA.wire
_tuple = tuple.__new__  # without the detour by a function in Python that a NamedTuple has
_HOST = re.compile(rb"[!-~]+").fullmatch
# What no client of ours says before LHLO: HTTP's first line, a header line, or a PROXY header (version 1) of somebody
# who is not asked for one; one of version 2 has a line QUIT in it. A browser that is made to POST here says the first
# two, and then in the body whatever a page wants it to say.
_FOREIGN = re.compile(
    rb"(?:GET|HEAD|POST|PUT|DELETE|CONNECT|OPTIONS|TRACE|PATCH|PRI|PROXY)(?: |\Z)|[!-9;-~]+:", re.IGNORECASE
).match


class LocalProtocolError(Exception):
    """The session called the protocol out of turn: our bug, never the client's doing."""


class Protocol:
    """One client's session.

    Args:
        hostname: the name we greet with.
        max_message_size: octets, 0 for no limit.
        max_recipients: accepted per message.
        smtputf8: it is offered (RFC 6531).
        trusted: the client may say XFORWARD.

    Attributes:
        output: what may go out now; who sends it clears it.
        in_data: between 354 and the final dot.
    """

    # Of TLS, which most clients have none of: so these are no work for them.
    _tls: bool | None = None  # whether it is spoken; None where it cannot be
    _may_begin = True  # MAIL may come behind LHLO
    _offer: Callable[..., Reply] = staticmethod(say.lhlo)

    def __init__(
        self, hostname: str, *, max_message_size: int, max_recipients: int, smtputf8: bool, trusted: bool = False
    ) -> None:
        self._hostname = hostname
        self._max_message_size, self._largest = max_message_size, max_message_size or sys.maxsize
        self._max_recipients, self._most_at_once = max_recipients, min(max_recipients, AT_ONCE)
        self._smtputf8 = smtputf8
        self._forwarded = Forwarded(True) if trusted else NOBODY
        self._lines = CommandLines()
        self._eof = self._greeted = self.in_data = False
        self._errors = self._accepted = 0
        self._turn = 0  # commands taken in this one
        self._replies = ReplyQueue()
        self.output = self._replies.ready
        self._envelope: Envelope | None = None
        self._data: MessageData | None = None  # unless the message came at once
        # What there is to do whatever has come: start_data, the replies after the final dot, to close.
        self._halted: DataCommand | StartTlsCommand | Wait | ConnectionClosed | None = None

    def __repr__(self) -> str:
        phase = "data" if self.in_data else "envelope" if self._envelope else "idle"
        phase = {_CLOSED: "closed", _PAUSED: "replying"}.get(self._halted, phase)
        return f"<Protocol {phase} accepted={self._accepted} owed={self.owed} buffered={len(self._lines)}>"

    # --- what the session may ask ------------------------------------------------------------------------------------

    @property
    def owed(self) -> int:
        """Replies that `reply` has to bring before the session can go on."""
        return self._replies.owed

    @property
    def in_transaction(self) -> bool:
        """Between MAIL and the last reply of its message."""
        return self._envelope is not None

    @property
    def forwarded(self) -> Said:
        """What the client has said of its own client, for the message in hand; nothing where it is not trusted."""
        return self._forwarded.client

    def completes(self, ahead: bytes) -> bool:
        """Whether the message ends in what was received, if `ahead` came next. Nothing is taken in."""
        octets = self._lines.rest + ahead
        if self.in_data or self._halted is _DATA:
            return (self._data or MessageData()).ends_in(octets)
        return b"\r\n.\r\n" in octets

    @property
    def data_follows(self) -> bool:
        """Whether the next command, which waits for replies that are owed, is DATA."""
        return self._lines.rest[:6].upper() == b"DATA\r\n"

    @property
    def quit_follows(self) -> bool | None:
        """Whether the next command is QUIT; None while that cannot be told."""
        said = self._lines.rest[:6].upper()
        return True if said == b"QUIT\r\n" else None if b"QUIT\r\n".startswith(said) else False

    def quit_is_among(self, octets: bytes) -> bool:
        """Whether QUIT is one of the lines that were not read yet, and these."""
        return b"\r\nQUIT\r\n" in b"\r\n" + (self._lines.rest + octets).upper()

    # --- in ----------------------------------------------------------------------------------------------------------

    def greet(self) -> None:
        """Say the greeting."""
        self._replies.say(say.greeting(self._hostname))

    def expect_tls(self, *, required: bool, implicit: bool) -> None:
        """Offer STARTTLS, or let TLS come before the greeting. To be called first. required: no MAIL without it."""
        self._tls = False
        self._offer = say.lhlo_with_starttls
        self._may_begin = not required
        if implicit:
            self._halted = _START_TLS

    def receive_data(self, octets: bytes) -> None:
        """Octets from the client; b"" is the end of file."""
        if octets:
            self._turn = 0
            lines = self._lines
            lines.octets, lines.position = lines.rest + octets if lines.octets else octets, 0
        else:
            self._eof = True

    def reply(self, *replies: Reply) -> None:
        """The oldest replies that are owed: to RCPTs, or for recipients after the final dot."""
        queue = self._replies
        if len(replies) > queue.owed:
            raise LocalProtocolError(f"{queue.owed} replies are owed, but got {[str(reply) for reply in replies]}")
        positive = queue.settle(replies)
        if self._halted is None:
            self._accepted += positive
        elif not queue.owed:  # all after the final dot
            self._envelope = self._halted = None
            self._forwarded.queue_id = ""
            self._accepted = 0

    def take_data(self) -> bool:
        """Whether the DATA behind an EnvelopeCommand is next, as if it were an event; not if nobody was accepted."""
        lines = self._lines
        if not self._accepted or self._replies.owed or not lines.octets.startswith(b"DATA\r\n", lines.position):
            return False
        lines.octets, lines.position = lines.octets[lines.position + len(b"DATA\r\n") :], 0
        self._halted = _DATA
        return True

    def start_data(self) -> None:
        """Ask for the message (354)."""
        if self._halted is not _DATA:
            raise LocalProtocolError("there was no DATA")
        self._halted = None
        self.in_data = True
        self._replies.ready.append(_START_DATA)

    def start_tls(self, *, more: bool) -> bool:
        """The answer to STARTTLS; False where that is the last one, because there was more behind it.

        Whoever can write between the two may have said it, to be heard as if it came in TLS (CVE-2011-0411).

        Args:
            more: so much has come that was not received.
        """
        if self._halted is not _START_TLS:
            raise LocalProtocolError("there was no STARTTLS")
        if more or len(self._lines):
            self._lines.set(b"")
            self.close(say.BEHIND_STARTTLS)
            return False
        self._replies.say(say.START_TLS)
        return True

    def tls_started(self) -> None:
        """What was said before is forgotten (RFC 3207 section 4.2); what goes out from now on goes in TLS."""
        self._tls = self._may_begin = True
        self._offer = say.lhlo
        self._greeted = False
        self._errors = 0
        self._end_transaction()

    def close(self, reply: Reply) -> None:
        """Say `reply` as the last thing; what is owed is not answered any more."""
        self._replies.forget_owed()
        self._end_transaction()
        self._replies.say(reply)
        self._halted = _CLOSED

    # --- out ---------------------------------------------------------------------------------------------------------

    def data_to_send(self) -> bytes:
        """All of `output`, each octet handed out once."""
        octets = b"".join(self.output)
        self.output.clear()
        return octets

    def next_event(self) -> Event | Wait:
        """The next thing to do, or why there is none."""
        lines = self._lines
        while True:
            if (halted := self._halted) is not None:
                if halted is _DATA:
                    raise LocalProtocolError("DATA was not followed by start_data")
                return halted
            if not lines.octets:
                return _PAUSED if self._replies.owed else _CLOSED if self._eof else _NEED_DATA
            if self.in_data:
                return self._next_in_data(lines.rest if lines.position else lines.octets)
            if self._turn >= AT_ONCE:
                self._turn = 0
                return Wait.BUSY
            if self._envelope is None and self._greeted and (command := self._plain_envelope()):
                return command
            owed = self._replies.owed
            line = lines.next(self._may_run_ahead if owed else None)
            if line is None:
                return _PAUSED if owed else _CLOSED if self._eof else _NEED_DATA
            event = self._command(line)
            if event is not None:
                return event

    def _plain_envelope(self) -> EnvelopeCommand | None:
        """What Postfix sends in one write, taken as a whole. One by one the commands come to the same, but slower."""
        lines = self._lines
        if lines.skipping or not (parsed := parse_envelope(lines.octets, lines.position, self._forwarded.queue_id)):
            return None
        envelope, paths, end = parsed
        number = len(paths)
        if number > self._most_at_once or self._size_refusal(envelope.size):
            return None
        lines.position = end
        self._turn += number + 2
        self._errors = 0
        self._envelope = envelope
        self._replies.ready.append(_SENDER_OK)
        self._replies.owed = number
        return _tuple(EnvelopeCommand, (envelope, paths))

    def _next_in_data(self, octets: bytes) -> Event | Wait:
        lines = self._lines
        lines.position = 0
        refusal: Reply | None = None
        if self._data is None and (whole := whole_message(octets)) is not None:
            size, end = whole
            octets, lines.octets = octets[:end], octets[end + len(FINAL_DOT) :]
        else:
            data = self._data = self._data or MessageData()
            octets, lines.octets = data.feed(octets)
            size = data.size
            refusal = say.AMBIGUOUS_DATA if data.ambiguous else None
            if not data.ended:
                if octets and not refusal and not self._size_refusal(size):
                    return MessageOctets(octets)
                return _CLOSED if self._eof else _NEED_DATA
            self._data = None
        refusal = refusal or self._size_refusal(size)
        self.in_data, self._halted = False, _PAUSED
        self._replies.owed = self._accepted
        return _tuple(EndOfMessage, (size, refusal, b"" if refusal else octets))

    def _size_refusal(self, size: int | None) -> Reply | None:
        return say.SIZE_TOO_BIG if size and size > self._largest else None

    def _may_run_ahead(self, line: bytes) -> bool:
        """Whether a command can be taken before the replies that are owed: RCPT, unless it may be over a limit."""
        return (
            line[:4].upper() == b"RCPT"
            and not self._lines.skipping
            and self._accepted + self._replies.owed < self._max_recipients
            and self._errors < MAX_ERRORS - 1
        )

    def _command(self, line: bytes) -> Event | None:
        self._turn += 1
        if line == TOO_LONG:
            return self._refuse(say.LINE_TOO_LONG, self._envelope, Mistake.TOO_LONG)
        word, _, arguments = line.partition(b" ")
        verb = word.upper()
        errors = self._errors
        if (handler := _VERBS.get(verb)) is not None:
            event = handler(self, arguments and arguments.strip(b" "))
        elif (answer := ANSWERS.get(verb)) is not None:
            event = self._answer(answer)
        elif not self._greeted and _FOREIGN(line):
            self.close(say.NOT_A_CLIENT)
            return RefusedCommand(line, say.NOT_A_CLIENT, None, True, Mistake.FOREIGN)
        else:
            event = self._refuse(REFUSALS.get(verb, say.BAD_COMMAND))
        if self._errors == errors:
            self._errors = 0
        return event._replace(command=line) if isinstance(event, RefusedCommand) else event

    # --- the verbs ---------------------------------------------------------------------------------------------------

    def _lhlo(self, arguments: bytes) -> Event | None:
        if not _HOST(arguments):
            return self._refuse(say.BAD_LHLO)
        self._greeted = self._may_begin
        self._replies.say(self._offer(self._hostname, self._max_message_size, self._smtputf8, self._forwarded.offered))
        return self._reset()

    def _starttls(self, arguments: bytes) -> Event | None:
        if self._tls is None:
            return self._refuse(say.BAD_COMMAND)
        if self._tls:
            return self._refuse(say.TLS_ALREADY)
        if self._envelope is not None:
            return self._refuse(say.LATE_STARTTLS)
        if arguments:
            return self._refuse(say.NO_ARGUMENTS)
        self._halted = _START_TLS
        return _START_TLS

    def _too_early(self) -> Reply:
        return say.LHLO_FIRST if self._may_begin else say.TLS_FIRST

    def _mail(self, arguments: bytes) -> Event | None:
        if not self._greeted:
            return self._refuse(self._too_early())
        if self._envelope is not None:
            return self._refuse(say.NESTED_MAIL)
        parsed = parse_mail(arguments, smtputf8=self._smtputf8)
        if isinstance(parsed, Reply):
            return self._refuse(parsed)
        if refusal := self._size_refusal(parsed.size):
            return self._refuse(refusal, parsed)
        self._envelope = parsed._replace(queue_id=self._forwarded.queue_id)
        self._answer(say.SENDER_OK)
        return MailCommand(self._envelope)

    def _xforward(self, arguments: bytes) -> Event | None:
        early = None if self._greeted else self._too_early()
        reply = self._forwarded.take(arguments, early if self._envelope is None else say.LATE_XFORWARD)
        return self._answer(reply) if reply.positive else self._refuse(reply)

    def _rcpt(self, arguments: bytes) -> Event | None:
        if self._envelope is None:
            return self._refuse(say.MAIL_FIRST, mistake=Mistake.NO_MAIL)
        parsed = parse_rcpt(arguments, smtputf8=self._envelope.smtputf8)
        if isinstance(parsed, Reply):
            return self._refuse(parsed, self._envelope)
        if self._accepted >= self._max_recipients:
            self._answer(say.TOO_MANY_RECIPIENTS)
            return RefusedCommand(b"", say.TOO_MANY_RECIPIENTS, self._envelope)
        self._replies.owe(1)
        return RcptCommand(parsed)

    def _data_verb(self, arguments: bytes) -> Event | None:
        if self._envelope is None:
            return self._refuse(say.MAIL_FIRST, mistake=Mistake.NO_MAIL)
        if arguments:
            return self._refuse(say.NO_ARGUMENTS)
        if not self._accepted:
            return self._refuse(say.NO_RECIPIENTS, mistake=Mistake.NO_RECIPIENTS)
        self._halted = _DATA
        return _DATA

    def _rset(self, arguments: bytes) -> Event | None:
        if arguments:
            return self._refuse(say.NO_ARGUMENTS)
        self._answer(say.OK)
        return self._reset()

    def _quit(self, arguments: bytes) -> Event | None:
        if arguments:
            return self._refuse(say.NO_ARGUMENTS)
        self._replies.say(say.BYE)
        self._halted = _CLOSED
        return None

    # --- shared by the verbs -----------------------------------------------------------------------------------------

    def _answer(self, reply: Reply) -> Event | None:
        """A reply of our own, in its turn behind those that are owed; no event."""
        self._replies.say(reply)
        return None

    def _refuse(
        self, reply: Reply, envelope: Envelope | None = None, mistake: Mistake = Mistake.OTHER
    ) -> RefusedCommand:
        """Answer a mistake. Whoever knows the line puts it into the event."""
        self._errors += 1
        self._answer(reply)
        last = self._errors >= MAX_ERRORS
        if last:
            self.close(say.TOO_MANY_ERRORS)
        return RefusedCommand(b"", reply, envelope, last, mistake)

    def _reset(self) -> Event | None:
        if self._envelope is None:
            self._forwarded.queue_id = ""
            return None
        self._end_transaction()
        return _RESET

    def _end_transaction(self) -> None:
        self._envelope = self._data = self._halted = None
        self._forwarded.queue_id = ""
        self._accepted = 0
        self.in_data = False


_VERBS: dict[bytes, Callable[[Protocol, bytes], Event | None]] = {
    b"LHLO": Protocol._lhlo,  # RFC 2033 section 4.1
    b"STARTTLS": Protocol._starttls,  # RFC 3207
    b"XFORWARD": Protocol._xforward,  # Postfix' XFORWARD_README
    b"MAIL": Protocol._mail,  # RFC 5321 section 4.1.1.2, RFC 1870, 6152, 6531
    b"RCPT": Protocol._rcpt,  # RFC 5321 section 4.1.1.3
    b"DATA": Protocol._data_verb,  # RFC 5321 section 4.1.1.4, RFC 2033 section 4.2
    b"RSET": Protocol._rset,  # RFC 5321 section 4.1.1.5
    b"QUIT": Protocol._quit,  # RFC 5321 section 4.1.1.10
}
