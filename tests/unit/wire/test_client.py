# SPDX-License-Identifier: GPL-3.0-or-later
"""The client side, octet by octet: what goes out, what comes in, and all that a confused or hostile backend can say.

What comes is read whole, octet by octet, cut at random and with more behind it, as new and as known octets: it must
come to the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest

from lmtp_proxy.wire import client
from lmtp_proxy.wire.client import (
    BATCH_COMMANDS,
    BATCH_OCTETS,
    KNOWN,
    MAX_REPLY,
    ClientProtocol,
    ClientState,
    Command,
    Fault,
    KnownReplies,
    RemoteProtocolError,
)
from lmtp_proxy.wire.envelope import Envelope
from lmtp_proxy.wire.protocol import LocalProtocolError
from lmtp_proxy.wire.reply import MAX_LINE, Reply

MAIL, RCPT, DATA, DOT = Command.MAIL, Command.RCPT, Command.DATA, Command.FINAL_DOT
SENDER = Envelope(b"<s@x>", 1000, b"8BITMIME")
OK, YES, NO, GO = b"250 2.1.0 ok\r\n", b"250 2.1.5 yes\r\n", b"550 5.1.1 no\r\n", b"354 go ahead\r\n"
STORED = b"250 2.0.0 stored\r\n"


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    before = dict(KNOWN), set(client._once)
    for kept in (KNOWN, client._once):
        kept.clear()
    yield
    for kept in (KNOWN, client._once):
        kept.clear()
    KNOWN.update(before[0])
    client._once.update(before[1])


def opened(*offers: str) -> ClientProtocol:
    """A connection on which the greeting and LHLO are done."""
    protocol = ClientProtocol()
    assert protocol.receive_verbatim(b"220 ready\r\n") == Reply(220, (b"ready",))
    assert protocol.command(Command.OTHER, b"LHLO x") == b"LHLO x\r\n"
    assert protocol.receive_verbatim(b"250-store\r\n250 PIPELINING\r\n") == Reply(250, (b"store", b"PIPELINING"))
    protocol.offers(offers)
    return protocol


def rcpts(number: int) -> list[bytes]:
    return [b"RCPT TO:<u%d@x>\r\n" % each for each in range(number)]


def asked(number: int = 1, data: bool = True, *offers: str) -> ClientProtocol:
    """One that was asked for recipients."""
    protocol = opened(*(offers or ("pipelining",)))
    protocol.envelope(SENDER, rcpts(number), data)
    return protocol


def in_data(recipients: int = 1) -> ClientProtocol:
    protocol = asked(recipients)
    protocol.receive(OK + YES * recipients + GO)
    assert protocol.state is ClientState.DATA
    return protocol


def dotted(recipients: int = 1) -> ClientProtocol:
    protocol = in_data(recipients)
    protocol.dot_begun(recipients)
    return protocol


# --- out -------------------------------------------------------------------------------------------------------------


def test_mail_recipients_and_data_go_in_one_write() -> None:
    protocol = opened("PIPELINING", "SIZE", "8BITMIME")
    assert protocol.offered == {"pipelining", "size", "8bitmime"} and protocol.pipelining
    octets = protocol.envelope(SENDER, rcpts(2), True)
    mail = b"MAIL FROM:<s@x> SIZE=1000 BODY=8BITMIME\r\n"
    assert octets == mail + b"RCPT TO:<u0@x>\r\nRCPT TO:<u1@x>\r\nDATA\r\n"
    assert protocol.expected == (MAIL, RCPT, RCPT, DATA) and not protocol.unsent
    assert (protocol.state, protocol.transactions) == (ClientState.ENVELOPE, 1)


def test_without_data_behind_them_it_is_sent_when_it_comes() -> None:
    protocol = opened("pipelining")
    assert protocol.envelope(SENDER, rcpts(1), False) == b"MAIL FROM:<s@x>\r\nRCPT TO:<u0@x>\r\n"
    protocol.receive(OK + YES)
    assert protocol.data() == b"DATA\r\n" and protocol.expected == (DATA,)
    protocol.receive(GO)
    assert protocol.state is ClientState.DATA


def test_later_recipients_go_without_mail() -> None:
    protocol = opened("pipelining")
    protocol.envelope(SENDER, rcpts(1), False)
    protocol.receive(OK + YES)
    assert protocol.envelope(SENDER, rcpts(2), True) == b"".join(rcpts(2)) + b"DATA\r\n"
    assert protocol.expected == (RCPT, RCPT, DATA) and protocol.transactions == 1


def test_nothing_goes_out_for_nobody() -> None:
    protocol = opened("pipelining")
    assert protocol.envelope(SENDER, [], True) == b""
    assert (protocol.expected, protocol.state, protocol.transactions) == ((), ClientState.READY, 0)


def test_without_pipelining_each_command_waits_for_the_reply_to_the_last() -> None:
    protocol = opened("size")
    sent = [protocol.envelope(SENDER, rcpts(2), True)]
    while protocol.unsent:
        with pytest.raises(LocalProtocolError):
            protocol.more()
        assert protocol.receive(OK) and not protocol.expected
        sent.append(protocol.more())
    assert sent == [b"MAIL FROM:<s@x> SIZE=1000\r\n", *rcpts(2)]  # DATA waits for all of them
    protocol.receive(YES)
    assert protocol.data() == b"DATA\r\n"


@pytest.mark.parametrize("recipients", [97, 98, 99, 100, 101, 250])
def test_no_more_than_so_many_commands_in_one_write(recipients: int) -> None:
    """Neither side may fill the other's socket buffers while it reads nothing (RFC 2920 section 3.1)."""
    writes = all_writes(rcpts(recipients))
    assert max(octets.count(b"\r\n") for octets in writes) <= BATCH_COMMANDS
    assert len(writes) == -(-(recipients + 2) // BATCH_COMMANDS)


@pytest.mark.parametrize("length", [200, 1000, 2000, BATCH_OCTETS - 100, BATCH_OCTETS + 100])
def test_no_more_than_so_many_octets_in_one_write_unless_one_line_is_longer(length: int) -> None:
    lines = [b"RCPT TO:<%b>\r\n" % (b"u" * length)] * 90
    writes = all_writes(lines)
    assert all(len(octets) <= BATCH_OCTETS or octets.count(b"\r\n") == 1 for octets in writes)


def all_writes(lines: list[bytes]) -> list[bytes]:
    protocol = opened("pipelining")
    writes = [protocol.envelope(SENDER, lines, True)]
    while protocol.unsent:
        number = len(protocol.expected)
        for _ in range(number):
            assert len(protocol.receive(YES)) == 1
        writes.append(protocol.more())
    assert b"".join(writes) == b"MAIL FROM:<s@x>\r\n" + b"".join(lines) + b"DATA\r\n"
    assert protocol.expected[-1] is DATA
    return writes


@pytest.mark.parametrize("offers", [("pipelining",), ("size",)])
def test_whether_a_reply_to_data_is_to_come(offers: tuple[str, ...]) -> None:
    protocol = asked(1, True, *offers)
    assert protocol.asks_for_data is ("pipelining" in offers)
    assert not asked(1, False, *offers).asks_for_data
    many = asked(BATCH_COMMANDS, True, "pipelining")
    assert many.unsent and many.asks_for_data  # it waits with the last ones


def test_a_command_of_its_own() -> None:
    protocol = opened()
    assert protocol.command(Command.MAIL, b"MAIL FROM:<>") == b"MAIL FROM:<>\r\n"
    assert protocol.state is ClientState.ENVELOPE
    protocol.receive_verbatim(OK)
    assert protocol.command(RCPT, b"RCPT TO:<a>", b"RCPT TO:<b>") == b"RCPT TO:<a>\r\nRCPT TO:<b>\r\n"
    assert protocol.expected == (RCPT, RCPT)
    assert protocol.receive_verbatim(YES + NO) == Reply(250, (b"2.1.5 yes",))
    assert protocol.receive_verbatim(b"") == Reply(550, (b"5.1.1 no",)) and not protocol.partial


@pytest.mark.parametrize(("answer", "state"), [(OK, ClientState.READY), (NO, ClientState.ENVELOPE)])
def test_after_a_reset_the_next_transaction_may_begin(answer: bytes, state: ClientState) -> None:
    protocol = asked(1, False)
    protocol.receive(OK + NO)
    assert protocol.command(Command.RSET, b"RSET") == b"RSET\r\n"
    protocol.receive_verbatim(answer)
    assert protocol.state is state
    assert protocol.command(Command.OTHER, b"NOOP") == b"NOOP\r\n"
    protocol.receive_verbatim(b"250 2.0.0 ok\r\n")
    assert protocol.state is state


def test_what_was_asked_can_be_taken_back() -> None:
    """RSET goes behind what has no reply yet, and in place of what has not gone out."""
    protocol = asked(client.BATCH_COMMANDS)
    protocol.receive(NO)
    assert protocol.unsent and protocol.take_back() == b"RSET\r\nDATA\r\n"
    assert not protocol.unsent and protocol.expected[-3:] == (Command.RCPT, Command.RSET, Command.DATA)
    while protocol.expected:
        protocol.receive(NO)
    assert (protocol.state, protocol.answered) == (ClientState.ENVELOPE, (Command.DATA,))
    protocol.taken_back()
    assert protocol.state is ClientState.READY


@pytest.mark.parametrize(
    "call",
    [
        lambda protocol: protocol.data(),
        lambda protocol: protocol.more(),
        lambda protocol: protocol.dot_begun(1),
        lambda protocol: protocol.receive(OK),
        lambda protocol: protocol.receive_verbatim(OK),
    ],
)
def test_out_of_turn_is_a_bug_of_ours(call: Callable[[ClientProtocol], object]) -> None:
    with pytest.raises(LocalProtocolError):
        call(opened("pipelining"))


@pytest.mark.parametrize("made", [in_data, dotted])
def test_no_command_amid_a_message(made: Callable[[], ClientProtocol]) -> None:
    with pytest.raises(LocalProtocolError):
        made().envelope(SENDER, rcpts(1), True)


# --- a message -------------------------------------------------------------------------------------------------------


def test_one_message_after_the_other() -> None:
    protocol = opened("pipelining")
    for number in range(1, 4):
        assert protocol.stale is (number > 1)
        protocol.envelope(SENDER, rcpts(2), True)
        assert protocol.stale is (number > 1)
        assert len(protocol.receive(OK + YES * 2 + GO)) == 4
        assert protocol.answered == (MAIL, RCPT, RCPT, DATA) and not protocol.stale
        protocol.dot_begun(2)
        assert (protocol.state, protocol.expected) == (ClientState.DOT, (DOT, DOT))
        states = []
        for _ in range(2):
            assert len(protocol.receive(STORED)) == 1
            states.append(protocol.state)
        assert states == [ClientState.DOT, ClientState.READY] and protocol.transactions == number


def test_a_refused_data_leaves_the_envelope_as_it_is() -> None:
    protocol = asked()
    protocol.receive(OK + NO + b"503 5.5.1 nobody\r\n")
    states = [protocol.state]
    protocol.envelope(SENDER, rcpts(1), True)
    protocol.receive(YES + GO)
    states.append(protocol.state)
    assert states == [ClientState.ENVELOPE, ClientState.DATA]


def test_a_354_elsewhere_begins_no_message() -> None:
    protocol = asked(1, False)
    protocol.receive(OK + GO)
    assert protocol.state is ClientState.ENVELOPE


def test_repr_is_for_people() -> None:
    protocol = asked(2)
    protocol.receive(OK + b"250")
    assert repr(protocol) == "<ClientProtocol envelope expected=3 unsent=0 unread=3>"


# --- in --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What comes after one MAIL, two RCPT and DATA: the replies that are given out, and how it ends."""

    name: str
    octets: bytes
    replies: Sequence[Reply]
    fault: Fault | None = None


def reply(code: int, *lines: bytes) -> Reply:
    return Reply(code, lines)


LONG = b"x" * (MAX_LINE - 12)
CASES = [
    Case("plain", OK + YES + NO + GO, [reply(250, b"2.1.0 ok"), reply(250, b"2.1.5 yes"), reply(550, b"5.1.1 no"),
                                       reply(354, b"go ahead")]),
    Case("without enhanced codes", b"250 ok\r\n250 yes\r\n450 later\r\n354 \r\n",
         [reply(250, b"2.0.0 ok"), reply(250, b"2.0.0 yes"), reply(450, b"4.0.0 later"), reply(354, b"")]),
    Case("without text", b"250\r\n250 \r\n550\r\n354\r\n",
         [reply(250, b"2.0.0 "), reply(250, b"2.0.0 "), reply(550, b"5.0.0 "), reply(354, b"")]),
    Case("of several lines", b"250-2.1.0 a\r\n250-2.1.0 b\r\n250 2.1.0 c\r\n250-a\r\n250 b\r\n550-\r\n550-5.1.1 no\r\n"
         b"550\r\n354-go\r\n354 on\r\n",
         [reply(250, b"2.1.0 a", b"2.1.0 b", b"2.1.0 c"), reply(250, b"2.0.0 a", b"2.0.0 b"),
          reply(550, b"", b"5.1.1 no", b""), reply(354, b"go", b"on")]),
    Case("ended by a bare LF", b"250 2.1.0 ok\n250-2.1.5 a\n250 2.1.5 b\r\n550 5.1.1 no\n354 go\n",
         [reply(250, b"2.1.0 ok"), reply(250, b"2.1.5 a", b"2.1.5 b"), reply(550, b"5.1.1 no"), reply(354, b"go")]),
    Case("8-bit and controls", "250 2.1.0 grüß\t\x07\r\n".encode() + b"250 2.1.5 \xff\xfe\r\n" + NO + GO,
         [reply(250, "2.1.0 grüß\t\x07".encode()), reply(250, b"2.1.5 \xff\xfe"), reply(550, b"5.1.1 no"),
          reply(354, b"go ahead")]),
    Case("the longest line", OK + b"250 2.1.5 " + LONG + b"\r\n" + NO + GO,
         [reply(250, b"2.1.0 ok"), reply(250, b"2.1.5 " + LONG), reply(550, b"5.1.1 no"), reply(354, b"go ahead")]),
    Case("a line one octet longer", OK + b"250 2.1.5 x" + LONG + b"\r\n", [reply(250, b"2.1.0 ok")], Fault.TOO_LONG),
    Case("a line without an end", OK + b"2" * MAX_LINE, [reply(250, b"2.1.0 ok")], Fault.TOO_LONG),
    Case("a long line of garbage", b"x" * 5000 + b"\r\n", [], Fault.TOO_LONG),
    Case("lines without an end", b"250-2.0.0 and so on\r\n" * (MAX_REPLY // 15 + 1), [], Fault.TOO_LONG),
    Case("421 at once", b"421 4.3.2 bye\r\n", [], Fault.CLOSING),
    Case("421 amid the replies", OK + YES + b"421 bye\r\n" + GO, [reply(250, b"2.1.0 ok"), reply(250, b"2.1.5 yes")],
         Fault.CLOSING),
    Case("421 in two lines", OK + b"421-4.3.2 a\r\n421 4.3.2 b\r\n", [reply(250, b"2.1.0 ok")], Fault.CLOSING),
    Case("codes that differ", OK + b"250-2.1.5 a\r\n550 5.1.1 b\r\n", [reply(250, b"2.1.0 ok")], Fault.NO_REPLY),
    *[
        Case(f"no reply: {octets!r}", OK + octets + b"\r\n" + YES, [reply(250, b"2.1.0 ok")], Fault.NO_REPLY)
        for octets in (
            b"", b"25", b"2500 ok", b"250_ok", b" 250 ok", b"199 ok", b"650 ok", b"abc", b"\xff", b"250 a\0b",
            b"250 a\rb", b"250-a\rb", "٢٥٠ ok".encode(),
        )
    ],
]  # fmt: skip


def cuts(octets: bytes, seed: int) -> Iterator[Sequence[bytes]]:
    yield [octets]
    begin = max(0, len(octets) - 1000)
    yield [octets[:begin], *[octets[at : at + 1] for at in range(begin, len(octets))]]
    chance = random.Random(seed)
    for _ in range(5):
        places = sorted(chance.sample(range(len(octets) + 1), min(len(octets), 5)))
        yield [octets[a:b] for a, b in zip([0, *places], [*places, len(octets)], strict=True)]


def hear(protocol: ClientProtocol, pieces: Sequence[bytes]) -> tuple[list[tuple[Command, Reply]], Fault | None]:
    """All that is given out, and how it ended."""
    found: list[tuple[Command, Reply]] = []
    try:
        for piece in pieces:
            octets = piece
            while protocol.expected:
                replies = protocol.receive(octets)
                octets = b""
                if not replies:
                    break
                found += zip(protocol.answered, replies, strict=True)
            else:
                protocol.receive_unasked(octets)
    except RemoteProtocolError as error:
        return found, error.fault
    return found, None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_comes_is_the_same_at_any_cut(case: Case) -> None:
    answered = (MAIL, RCPT, RCPT, DATA)[: len(case.replies)]
    expected = [*zip(answered, case.replies, strict=True)], case.fault
    for _ in range(3):  # as new, as come once, as known
        for pieces in cuts(case.octets, 1):
            protocol = asked(2)
            assert hear(protocol, pieces) == expected
            if case.fault is None:
                assert not protocol.partial and protocol.state is ClientState.DATA


@pytest.mark.parametrize("octets", [case.octets for case in CASES if case.fault is not None])
def test_whoever_asks_again_is_told_the_same(octets: bytes) -> None:
    protocol = asked(2)
    hear(protocol, [octets])
    assert protocol.state is ClientState.BROKEN and protocol.partial
    errors = []
    for again in (protocol.receive, protocol.receive_verbatim, protocol.receive_unasked):
        with pytest.raises(RemoteProtocolError) as raised:
            again(YES)
        errors.append(raised.value)
    assert errors == [errors[0]] * 3


TAILS = {
    YES: Fault.EARLY, NO: Fault.EARLY, b"250-2.0.0 a\r\n250 2.0.0 b\r\n": Fault.EARLY, b"4": None,
    b"garbage\r\n": Fault.NO_REPLY, b"421 4.3.2 bye\r\n": Fault.CLOSING,
}  # fmt: skip


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("case", [case for case in CASES if case.fault is None], ids=lambda case: case.name)
def test_what_comes_behind_them_is_no_answer(case: Case, tail: bytes) -> None:
    """Amid the message it is the verdict on it, at best; nobody takes it for the next reply."""
    for _ in range(3):
        for pieces in cuts(case.octets + tail, 2):
            protocol = asked(2)
            found, ended = hear(protocol, [*pieces, b""])
            assert [reply for _, reply in found] == case.replies
            assert ended is TAILS[tail] and protocol.partial


def test_empty_lines_without_an_end() -> None:
    assert hear(asked(2), [b"250-\r\n" * (MAX_REPLY + 1)]) == ([], Fault.TOO_LONG)


def test_a_reply_that_is_read_verbatim_comes_in_pieces() -> None:
    protocol = ClientProtocol()
    *first, last = [protocol.receive_verbatim(piece) for piece in (b"220-a\r\n22", b"0 ", b"b\r\n")]
    assert (first, last) == ([None, None], reply(220, b"a", b"b"))
    assert protocol.answered == (Command.GREETING,) and not protocol.expected


@pytest.mark.parametrize("octets", [b"", b"2", b"250", b"250 2.1.5 ye", b"250 2.1.5 yes\r", b"250-2.1.5 yes\r\n"])
def test_the_end_of_the_stream_where_a_reply_was_due(octets: bytes) -> None:
    for pieces in cuts(octets, 3):
        protocol = asked(2)
        assert hear(protocol, [OK, *pieces]) == ([(MAIL, reply(250, b"2.1.0 ok"))], None)
        protocol.receive_end("it hung up")
        with pytest.raises(RemoteProtocolError, match="it hung up") as raised:
            protocol.receive(b"")
        assert raised.value.fault is Fault.ENDED and raised.value.reply is None


def test_what_came_before_the_end_still_counts() -> None:
    for _ in range(3):
        protocol = dotted(2)
        protocol.receive_end("it hung up")
        assert [each.code for each in protocol.receive(STORED * 2)] == [250, 250]
        with pytest.raises(RemoteProtocolError):
            protocol.receive_unasked(b"")


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        (lambda: opened("pipelining"), Fault.UNASKED),
        (in_data, Fault.EARLY),
    ],
)
def test_a_reply_that_nobody_asked_for(made: Callable[[], ClientProtocol], fault: Fault) -> None:
    for octets, said in (
        (b"552 quota\r\n", reply(552, b"5.0.0 quota")),
        (b"250-2.0.0 a\r\n250 2.0.0 b\r\n", reply(250, b"2.0.0 a", b"2.0.0 b")),
    ):
        for pieces in cuts(octets, 4):
            protocol = made()
            assert not protocol.receive_unasked(b"")
            *first, last = [piece for piece in pieces if piece]
            assert all(protocol.receive_unasked(piece) for piece in first)
            with pytest.raises(RemoteProtocolError, match="out of turn") as raised:
                protocol.receive_unasked(last)
            assert (raised.value.fault, raised.value.reply) == (fault, said)


def test_half_a_reply_out_of_turn_may_become_one() -> None:
    protocol = in_data()
    assert protocol.receive_unasked(b"552-5.2.2 a\r\n") and protocol.partial
    assert protocol.receive_unasked(b"")
    with pytest.raises(RemoteProtocolError) as raised:
        protocol.receive_unasked(b"552 5.2.2 b\r\n")
    assert raised.value.reply == reply(552, b"5.2.2 a", b"5.2.2 b")


def test_no_surplus_reply_answers_the_next_message() -> None:
    """It is found before the next command goes out, or the connection is not used."""
    for _ in range(3):
        protocol = dotted(1)
        assert len(protocol.receive(STORED + STORED)) == 1
        assert protocol.state is ClientState.READY and protocol.partial
        with pytest.raises(RemoteProtocolError) as raised:
            protocol.receive_unasked(b"")
        assert raised.value.fault is Fault.UNASKED


def test_a_connection_whose_backend_may_have_left() -> None:
    protocol = dotted()
    seen = [protocol.stale]
    protocol.receive(STORED)
    seen.append(protocol.stale)
    protocol.envelope(SENDER, rcpts(1), True)
    seen.append(protocol.stale)
    assert seen == [False, True, True]
    with pytest.raises(RemoteProtocolError):
        protocol.receive(b"421 4.4.2 idle for too long\r\n")
    assert protocol.stale, "that it left is known, and nothing was said before"


@pytest.mark.parametrize("fault", [b"421 4.3.2 bye\r\n", b"what\r\n"])
def test_one_that_has_said_something_has_not_left_before(fault: bytes) -> None:
    protocol = dotted()
    protocol.receive(STORED)
    protocol.envelope(SENDER, rcpts(1), True)
    protocol.receive(OK)
    with pytest.raises(RemoteProtocolError):
        protocol.receive(fault)
    assert not protocol.stale


# --- known octets ----------------------------------------------------------------------------------------------------


def replies_to(octets: bytes, recipients: int = 1) -> Sequence[Reply]:
    return asked(recipients).receive(octets)


def test_octets_that_come_again_are_known() -> None:
    octets = OK + YES + GO
    first, second, third = replies_to(octets), replies_to(octets), replies_to(octets)
    assert first == second == list(third)
    assert octets in KNOWN and isinstance(third, KnownReplies)
    assert third.accepted == (reply(250, b"2.1.5 yes"),) and not third.positive


@pytest.mark.parametrize(
    ("octets", "positive", "accepted"),
    [
        (STORED, True, 0),
        (STORED * 3, True, 0),
        (NO, False, 0),
        (STORED + NO, False, 0),
        (NO + STORED, False, 0),
        (GO, False, 0),
        (OK + GO, False, 0),
        (OK + YES + GO, False, 1),
        (OK + YES * 4 + GO, False, 4),
        (OK + NO + GO, False, 0),
        (NO + YES + GO, False, 0),
        (OK + YES + b"250 2.0.0 what\r\n", True, 0),
    ],
)
def test_what_is_known_of_them(octets: bytes, positive: bool, accepted: int) -> None:
    for _ in range(2):
        replies_to(octets, 10)
    known = KNOWN[octets]
    assert (known.positive, len(known.accepted)) == (positive, accepted)


def test_known_octets_that_are_more_than_was_asked_for_are_read_one_by_one() -> None:
    for _ in range(2):
        replies_to(STORED * 3, 10)
    protocol = dotted(2)
    assert len(protocol.receive(STORED * 3)) == 2 and protocol.partial


def test_known_octets_behind_half_a_reply_are_no_replies_of_their_own() -> None:
    for _ in range(2):
        replies_to(OK, 10)
    protocol = asked(2)
    assert protocol.receive(b"250-") == ()
    assert protocol.receive(OK) == ()  # the rest of that line
    assert protocol.receive(OK) == (reply(250, b"250 2.1.0 ok", b"2.1.0 ok"),)


@pytest.mark.parametrize(
    "octets",
    [
        OK + b"250 no code\r\n",
        b"421 4.3.2 bye\r\n",
        b"250-2.1.0 a\r\n250 2.1.0 b\r\n",
        b"250 2.1.0 " + b"x" * 600 + b"\r\n",
    ],
)
def test_what_is_not_plain_or_not_short_is_not_remembered(octets: bytes) -> None:
    for _ in range(3):
        hear(asked(5), [octets])
    assert octets not in KNOWN


def test_what_is_remembered_has_a_limit() -> None:
    for number in range(3 * client._MOST_KNOWN):
        for _ in range(2):
            assert replies_to(b"250 2.0.0 id=%d\r\n" % number)[0].code == 250
        replies_to(b"250 2.0.0 once=%d\r\n" % number)
    assert 0 < len(KNOWN) <= client._MOST_KNOWN and 0 < len(client._once) <= client._MOST_KNOWN
