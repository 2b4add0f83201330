# SPDX-License-Identifier: GPL-3.0-or-later
"""Plays the session around a Protocol: takes its events, answers what is owed, keeps all it saw.

The answers depend only on what is asked, never on when, so two runs of the same octets must be the same however the
octets were cut.
"""

import itertools
import re
from collections import deque
from collections.abc import Iterable

from lmtp_proxy.wire.envelope import Recipient, plain_recipient
from lmtp_proxy.wire.events import (
    ConnectionClosed,
    DataCommand,
    EndOfMessage,
    EnvelopeCommand,
    Event,
    MailCommand,
    MessageOctets,
    RcptCommand,
    RefusedCommand,
    Wait,
)
from lmtp_proxy.wire.protocol import Protocol
from lmtp_proxy.wire.reply import Reply


def new_protocol(
    *,
    max_message_size: int = 0,
    max_recipients: int = 1000,
    smtputf8: bool = False,
    hostname: str = "mx.test",
    trusted: bool = False,
) -> Protocol:
    """A Protocol with the settings that a test does not care about."""
    return Protocol(
        hostname,
        max_message_size=max_message_size,
        max_recipients=max_recipients,
        smtputf8=smtputf8,
        trusted=trusted,
    )


def rcpt_reply(recipient: Recipient) -> Reply:
    """What the backend says to RCPT: names that start with "no" are unknown, with "later" deferred."""
    name = recipient.local_part.encode()
    if name.startswith(b"no"):
        return Reply(550, (b"5.1.1 first line", b"5.1.1 unknown: " + name))
    if name.startswith(b"later"):
        return Reply(450, (b"4.2.1 deferred: " + name,))
    return Reply(250, (b"2.1.5 recipient " + name,))


def final_reply(message: int, position: int) -> Reply:
    """What the backend says after the dot. Every third recipient fails."""
    if position % 3 == 2:
        return Reply(452, (b"4.2.2 message %d position %d over quota" % (message, position),))
    return Reply(250, (b"2.0.0 message %d position %d saved" % (message, position),))


def buffered(protocol: Protocol) -> int:
    """How many octets it keeps that it did not look at yet, as its repr tells an operator."""
    match = re.search(r"buffered=(\d+)", repr(protocol))
    assert match
    return int(match[1])


class Driver:
    """A session that answers from the functions above.

    eager: answer each RCPT as soon as it comes; otherwise only when the protocol says that it waits for replies.
    refused: RefusedCommand events, which are not among the others.
    """

    def __init__(self, protocol: Protocol, *, eager: bool = False) -> None:
        self.protocol = protocol
        self.eager = eager
        self.events: list[Event] = []
        self.refused: list[RefusedCommand] = []
        self.output = b""
        self.messages = 0
        self._pending: deque[Reply] = deque()

    def feed(self, octets: bytes) -> Wait | ConnectionClosed:
        """Octets from the client (b"" is its end of file), and all that follows from them."""
        self.protocol.receive_data(octets)
        return self.pump()

    def run(self, pieces: Iterable[bytes]) -> Wait | ConnectionClosed:
        """Feed the pieces until the protocol says that it is over."""
        waiting = self.pump()
        for piece in pieces:
            if isinstance(waiting, ConnectionClosed):
                break
            waiting = self.feed(piece)
        return waiting

    def pump(self) -> Wait | ConnectionClosed:
        """Take events and answer until octets are needed or all is over."""
        while True:
            event = self.protocol.next_event()
            if event is Wait.BUSY:
                continue
            if event is Wait.PAUSED:
                self._answer()
                continue
            if isinstance(event, Wait | ConnectionClosed):
                self.output += self.protocol.data_to_send()
                if isinstance(event, ConnectionClosed):
                    self.events.append(event)
                return event
            self._take(event)

    def _take(self, event: Event) -> None:
        if isinstance(event, RefusedCommand):
            self.refused.append(event)
            return
        if isinstance(event, EnvelopeCommand):  # the same as these
            self._take(MailCommand(event.envelope))
            for path in event.paths:
                self._take(RcptCommand(plain_recipient(path)))
            if self.eager and self.protocol.take_data():  # the other one leaves DATA to the table of verbs
                self._take(DataCommand())
            return
        if isinstance(event, EndOfMessage) and event.octets:
            self._take(MessageOctets(event.octets))
            event = event._replace(octets=b"")
        if isinstance(event, MessageOctets) and self.events and isinstance(self.events[-1], MessageOctets):
            self.events[-1] = MessageOctets(self.events[-1].octets + event.octets)
            return
        self.events.append(event)
        if isinstance(event, RcptCommand):
            self._pending.append(rcpt_reply(event.recipient))
            if self.eager:
                self._answer()
        elif isinstance(event, DataCommand):
            self.protocol.start_data()
        elif isinstance(event, EndOfMessage):
            self.messages += 1
            owed = self.protocol.owed
            self._pending.extend(event.refusal or final_reply(self.messages, position) for position in range(owed))

    def _answer(self) -> None:
        self.protocol.reply(self._pending.popleft())


def cut(octets: bytes, places: Iterable[int]) -> list[bytes]:
    """`octets` cut at `places` (any order, doubles and places beyond the end are fine); no piece is empty."""
    marks = sorted({0, len(octets), *(place for place in places if 0 < place < len(octets))})
    return [octets[start:end] for start, end in itertools.pairwise(marks)]


def parse_replies(output: bytes) -> list[Reply]:
    """The replies that a client reads (RFC 5321 section 4.2), by a reader of our own; fails on anything odd."""
    replies: list[Reply] = []
    lines: list[bytes] = []
    assert output == b"" or output.endswith(b"\r\n"), output
    for line in output.split(b"\r\n")[:-1]:
        assert line[:3].isdigit() and line[3:4] in (b" ", b"-"), line
        assert b"\r" not in line and b"\n" not in line and b"\0" not in line, line
        lines.append(line)
        if line[3:4] == b" ":
            assert len({each[:3] for each in lines}) == 1, lines
            replies.append(Reply(int(line[:3]), tuple(each[4:] for each in lines)))
            lines = []
    assert not lines, lines
    return replies
