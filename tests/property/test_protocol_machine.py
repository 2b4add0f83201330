# SPDX-License-Identifier: GPL-3.0-or-later
"""The protocol against a plain model of RFC 2033: any commands, any replies, in any order and cut anywhere.

The model reads the client's octets as one string and never looks ahead. It says which events are due, and it keeps one
slot per command in which its one reply has to stand: what is out must be the slots up to the first that is empty.
"""

import re
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lmtp_proxy.wire.command_lines import MAX_COMMAND
from lmtp_proxy.wire.events import (
    ConnectionClosed,
    DataCommand,
    EndOfMessage,
    EnvelopeCommand,
    MailCommand,
    MessageOctets,
    RcptCommand,
    TransactionReset,
    Wait,
)
from lmtp_proxy.wire.protocol import MAX_ERRORS
from lmtp_proxy.wire.reply import Reply
from tests.property.driver import buffered, cut, new_protocol, parse_replies

LIMIT = 100  # octets of a message

# Each command line and what the model makes of it.
LINES: dict[bytes, str] = {
    b"LHLO client.test\r\n": "lhlo",
    b"LHLO\r\n": "bad lhlo",
    b"MAIL FROM:<s@x>\r\n": "mail",
    b"MAIL FROM:<s@x\r\n": "bad mail",
    b"RCPT TO:<a@x>\r\n": "rcpt",
    b"RCPT TO:<b@x>\r\n": "rcpt",
    b'rcpt to:<"a b"@x>\r\n': "rcpt",
    b"RCPT TO:<a@x\r\n": "bad rcpt",
    b"RCPT\r\n": "bad rcpt",
    b"DATA\r\n": "data",
    b"RSET\r\n": "rset",
    b"NOOP\r\n": "noop",
    b"VRFY a\r\n": "vrfy",
    b"HELP\r\n": "help",
    b"QUIT\r\n": "quit",
    b"EHLO x\r\n": "unknown",
    b"RCPTS\r\n": "unknown",
    b"\xff\r\n": "unknown",
    b"N" * 2 * MAX_COMMAND + b"\r\n": "unknown",
}
# Some are drawn more often than others, or a message would hardly ever come about.
USUAL = [b"LHLO client.test\r\n", b"MAIL FROM:<s@x>\r\n", b"RCPT TO:<a@x>\r\n", b"RCPT TO:<b@x>\r\n", b"DATA\r\n"]
LAST = b"QUIT\r\n"
COMMANDS = st.lists(
    st.one_of(st.sampled_from(USUAL), st.sampled_from([line for line in LINES if line != LAST])), min_size=1, max_size=6
).map(b"".join)
ENDS = [
    b"\r\n.\r\n",
    b"\r\n.\r\n",
    b"\r\n.\r\nRSET\r\nNO",
    b"\r\n.\r\nMAIL FROM:<s@x>\r\nRCPT TO:<a@x>\r\nDATA\r\n",
    b"",
]
BODIES = st.lists(
    st.sampled_from([b".", b"\r\n", b"\n", b"\r", b"..", b"text", b"\0\xff", b"x" * 60]), max_size=10
).map(b"".join)
PLACES = st.lists(st.integers(0, 200), max_size=6)
REPLIES = st.sampled_from([250, 250, 250, 250, 250, 251, 354, 450, 550])


@dataclass
class Model:
    max_recipients: int
    raw: bytes = b""
    body: bytes = b""
    mode: str = "command"  # or data, or final
    greeted: bool = False
    transaction: bool = False
    closed: bool = False
    accepted: int = 0
    errors: int = 0
    slots: list[str | bytes | None] = field(default_factory=list)
    """All replies that were ever due: a pattern for one of ours, the octets of one that was given, None while owed."""
    events: list[object] = field(default_factory=list)

    @property
    def owed(self) -> int:
        return self.slots.count(None)

    def run(self) -> None:
        while not self.closed:
            if self.mode == "data":
                self.body, self.raw = self.body + self.raw, b""
                if not self.end_of_data():
                    return
            elif self.mode == "final":
                if self.owed:
                    return
                self.end_transaction()
            else:
                line, newline, rest = self.raw.partition(b"\n")
                if not newline or (self.owed and not self.runs_ahead(line)):
                    return
                self.raw = rest
                self.command(LINES.get(line + newline, "unknown"))

    def runs_ahead(self, line: bytes) -> bool:
        """Only a RCPT does, and not if it depends on a reply that is owed what it will be told."""
        if line[:4].upper() != b"RCPT":
            return False
        return self.accepted + self.owed < self.max_recipients and self.errors + 1 < MAX_ERRORS

    def end_of_data(self) -> bool:
        text = b"\r\n" + self.body
        end = text.find(b"\r\n.\r\n")
        if end < 0:
            return False
        message, self.raw, self.body = text[2 : end + 2], text[end + 5 :], b""
        size = len(re.sub(rb"(?<=\r\n)\.", b"", b"\r\n" + message)) - 2
        if re.search(rb"[\r\n]\.[\r\n]", b"\r\n" + message):
            self.events.append(("end", None, size, 550))
        elif size > LIMIT:
            self.events.append(("end", None, size, 552))
        else:
            self.events.append(("end", message, size, None))
        self.slots += [None] * self.accepted
        self.mode = "final"
        return True

    def end_transaction(self) -> None:
        self.transaction, self.accepted, self.mode = False, 0, "command"

    def error(self, pattern: str) -> None:
        self.slots.append(pattern)
        self.errors += 1
        if self.errors == MAX_ERRORS:
            self.slots.append("421 4")
            self.closed = True

    def command(self, kind: str) -> None:
        errors = self.errors
        if kind == "lhlo":
            self.slots.append("250 mx.test")
            self.greeted = True
            self.reset()
        elif kind == "mail" and self.greeted and not self.transaction:
            self.slots.append("250 2.1.0")
            self.events.append(("mail", b"<s@x>"))
            self.transaction = True
        elif kind == "rcpt" and self.transaction:
            if self.accepted + self.owed >= self.max_recipients:
                self.slots.append("452 4.5.3")
            else:
                self.slots.append(None)
                self.events.append("rcpt")
        elif kind == "data" and self.transaction and self.accepted:
            self.slots.append("354 ")
            self.events.append("data")
            self.mode = "data"
        elif kind == "rset":
            self.slots.append("250 2.0.0")
            self.reset()
        elif kind == "quit":
            self.slots.append("221 2.0.0")
            self.closed = True
        elif kind in ("noop", "vrfy", "help"):
            self.slots.append({"noop": "250 2", "vrfy": "252 2", "help": "214 2"}[kind])
        else:
            self.error({"unknown": "500 5.5."}.get(kind, "50[13] 5.5." if kind.startswith("bad") else "503 5.5.1"))
        if self.errors == errors:
            self.errors = 0

    def reset(self) -> None:
        if self.transaction:
            self.events.append("reset")
        self.end_transaction()

    def reply(self, reply: Reply) -> None:
        self.slots[self.slots.index(None)] = reply.to_bytes()
        if self.mode == "command" and reply.positive:
            self.accepted += 1


class ProtocolMachine(RuleBasedStateMachine):
    """The client's and the session's moves."""

    @initialize(max_recipients=st.integers(1, 4))
    def start(self, max_recipients: int) -> None:
        self.protocol = new_protocol(max_recipients=max_recipients, max_message_size=LIMIT)
        self.model = Model(max_recipients)
        self.events: list[object] = []
        self.body = b""
        self.output = b""
        self.given = 0
        self.wait: Wait | ConnectionClosed = Wait.NEED_DATA

    def send(self, octets: bytes, places: list[int]) -> None:
        for piece in cut(octets, places):
            self.protocol.receive_data(piece)
            self.pump()
            self.model.raw += piece
        self.model.run()

    def pump(self) -> None:
        while (event := self.protocol.next_event()) is Wait.BUSY or not isinstance(event, Wait | ConnectionClosed):
            match event:
                case MailCommand(envelope):
                    self.events.append(("mail", envelope.path))
                case RcptCommand():
                    self.events.append("rcpt")
                case EnvelopeCommand(envelope, paths):
                    self.events += [("mail", envelope.path), *["rcpt"] * len(paths)]
                case DataCommand():
                    self.events.append("data")
                    self.protocol.start_data()
                case MessageOctets(octets):
                    assert octets
                    assert self.protocol.in_data
                    self.body += octets
                case EndOfMessage(size, refusal, octets):
                    self.body += octets
                    code = refusal.code if refusal else None
                    self.events.append(("end", None if refusal else self.body, size, code))
                    self.body = b""
                case TransactionReset():
                    self.events.append("reset")
        self.wait = event
        self.output += self.protocol.data_to_send()

    @rule(commands=COMMANDS, places=PLACES)
    def commands(self, commands: bytes, places: list[int]) -> None:
        self.send(commands, places)

    @rule(
        rcpts=st.lists(st.sampled_from(USUAL[2:4]), min_size=1, max_size=5).map(b"".join),
        data=st.sampled_from(
            [
                b"DATA\r\n",
                b"DATA\r\n",
                b"DATA\r\ntext\r\n.\r\nRSET\r\n",
                b"DATA\r\na\n.\nb\r\n.\r\nNOOP\r\n",
                b"RCPT\r\n" * (MAX_ERRORS + 1),
            ]
        ),
        places=PLACES,
    )
    def pipelined_group(self, rcpts: bytes, data: bytes, places: list[int]) -> None:
        self.send(USUAL[0] + USUAL[1] + rcpts + data, places)

    @precondition(lambda self: len(self.events) > 4)  # or hardly any run would come as far as a message
    @rule(
        line=st.sampled_from([b"RCPT\r\n", b"RCPT TO:<a@x\r\n", b"BAD\r\n"]), number=st.integers(18, 21), places=PLACES
    )
    def bad_commands(self, line: bytes, number: int, places: list[int]) -> None:
        self.send(line * number, places)

    @precondition(lambda self: self.model.mode == "data")
    @rule(body=BODIES, end=st.sampled_from(ENDS), places=PLACES)
    def body_octets(self, body: bytes, end: bytes, places: list[int]) -> None:
        self.send(body + end, places)

    @precondition(lambda self: len(self.events) > 4)
    @rule(behind=COMMANDS, places=PLACES)
    def quit(self, behind: bytes, places: list[int]) -> None:
        self.send(LAST + behind, places)

    def answer(self, code: int, *, multiline: bool = False) -> None:
        self.given += 1
        text = b"number %d" % self.given
        reply = Reply(code, (b"first", text) if multiline else (text,))
        self.protocol.reply(reply)
        self.pump()
        self.model.reply(reply)
        self.model.run()

    @precondition(lambda self: self.model.owed)
    @rule(code=REPLIES, multiline=st.booleans())
    def reply(self, code: int, multiline: bool) -> None:
        self.answer(code, multiline=multiline)

    @precondition(lambda self: self.model.owed)
    @rule(code=REPLIES)
    def reply_to_all(self, code: int) -> None:
        for _ in range(self.model.owed):
            self.answer(code)

    @rule(ahead=st.one_of(BODIES, COMMANDS))
    def look_ahead(self, ahead: bytes) -> None:
        self.protocol.completes(ahead)

    @invariant()
    def one_reply_per_command_in_order(self) -> None:
        replies = parse_replies(self.output)
        due = self.model.slots[: self.model.slots.index(None)] if self.model.owed else self.model.slots
        assert len(replies) == len(due), (replies, due)
        for reply, slot in zip(replies, due, strict=True):
            if isinstance(slot, bytes):
                assert reply.to_bytes() == slot
            else:
                assert slot is not None
                assert re.match(slot, str(reply)), (reply, slot)

    @invariant()
    def events_in_order(self) -> None:
        assert self.events == self.model.events
        assert self.model.body.startswith(self.body)
        if not self.model.closed:
            assert isinstance(self.wait, ConnectionClosed) is False
            assert (self.wait is Wait.PAUSED) is (self.model.owed > 0)
            assert self.protocol.owed == self.model.owed
            assert self.protocol.in_data is (self.model.mode == "data")
            assert self.protocol.in_transaction is self.model.transaction
        else:
            assert isinstance(self.wait, ConnectionClosed)

    @invariant()
    def nothing_piles_up(self) -> None:
        kept = buffered(self.protocol)
        if self.wait is Wait.NEED_DATA:
            assert kept < MAX_COMMAND
        assert kept <= len(self.model.raw) or self.model.closed

    def teardown(self) -> None:
        """Whatever happened, the session comes to its end: all is answered, then the client's end of file closes it."""
        if not hasattr(self, "protocol"):
            return
        while self.model.owed:
            self.answer(250)
        self.one_reply_per_command_in_order()
        self.protocol.receive_data(b"")
        self.pump()
        assert isinstance(self.wait, ConnectionClosed)
        assert self.events == self.model.events


ProtocolMachine.TestCase.settings = settings(stateful_step_count=40)
test_protocol_machine = ProtocolMachine.TestCase
