# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the client's octets are cut, and how late the session answers, makes no difference to what either sees.

And whatever a client sends: nothing raises, each reply is whole, and nothing is kept beyond a command line.
"""

from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from lmtp_proxy.wire.command_lines import MAX_COMMAND
from lmtp_proxy.wire.events import ConnectionClosed, EndOfMessage, Event, MessageOctets, Wait
from lmtp_proxy.wire.reply import Reply
from tests.property.driver import Driver, buffered, cut, new_protocol, parse_replies

GOOD = [
    b"LHLO client.test\r\n",
    b"MAIL FROM:<s@x>\r\n",
    b"MAIL FROM:<> SIZE=10 BODY=8BITMIME\r\n",
    "MAIL FROM:<é@x> SMTPUTF8\r\n".encode(),
    b"RCPT TO:<alice@x>\r\n",
    b"rcpt to:<nobody@x>\r\n",
    b"RCPT TO:<later@x>\r\n",
    b'RCPT TO:<"quoted user"@x>\r\n',
    b"DATA\r\n",
    b"RSET\r\n",
    b"NOOP\r\n",
    b"VRFY alice\r\n",
    b"HELP\r\n",
]
BAD = [
    b"QUIT\r\n",
    b"QUIT now\r\n",
    b"HELO x\r\n",
    b"RCPT TO:alice@x\r\n",
    b"RCPT TO:<alice@x> NOTIFY=NEVER\r\n",
    b"MAIL FROM:<s@x> SIZE=99999\r\n",
    b"\r\n",
    b".\r\n",
    b"\n.\n",
    b"BAD\r\n",
    b"\0\r\xff\n",
    b"N" * (MAX_COMMAND - 2) + b"\r\n",
    b"N" * (MAX_COMMAND - 1) + b"\r\n",
    b"RCPT TO:<" + b"a" * 5000 + b"@x>\r\n",
]
ENVELOPE = b"LHLO client.test\r\nMAIL FROM:<s@x>\r\n"
BODIES = st.lists(st.sampled_from([b".", b"\r\n", b"\r", b"\n", b"..", b"text", b"\0\xff", b"x" * 300])).map(b"".join)
MESSAGES = st.builds(
    lambda rcpts, body: b"MAIL FROM:<s@x>\r\n" + b"".join(rcpts) + b"DATA\r\n" + body + b"\r\n.\r\n",
    st.lists(st.sampled_from(GOOD[4:8]), min_size=1, max_size=6),
    BODIES,
)
SCRIPTS = st.lists(
    st.one_of(st.sampled_from(GOOD), st.sampled_from(GOOD), st.sampled_from(BAD), MESSAGES), max_size=25
).map(b"".join)
LIMITS = st.fixed_dictionaries(
    {"max_message_size": st.sampled_from([0, 20, 1000]), "smtputf8": st.booleans(), "max_recipients": st.integers(1, 5)}
)


def seen(events: list[Event]) -> list[object]:
    """The events, without the body of a message that was refused or not ended: how far that got depends on the cut."""
    result: list[object] = []
    for index, each in enumerate(events):
        if isinstance(each, MessageOctets):
            following = events[index + 1] if index + 1 < len(events) else None
            if not isinstance(following, EndOfMessage) or following.refusal:
                continue
        result.append(each)
    return result


def bodies(events: list[Event]) -> bytes:
    return b"".join(each.octets for each in events if isinstance(each, MessageOctets))


@settings(max_examples=200)
@given(data=st.data(), script=SCRIPTS, limits=LIMITS, tail=st.sampled_from([b"", b"RCP", b"NOOP\r\nNOO"]))
def test_the_cut_makes_no_difference(data: st.DataObject, script: bytes, limits: dict[str, int], tail: bytes) -> None:
    script = b"LHLO client.test\r\n" + script + tail
    places = data.draw(st.lists(st.integers(0, len(script)), max_size=40), label="cut at")
    whole = Driver(new_protocol(**limits), eager=True)  # type: ignore[arg-type]
    end = whole.run([script])
    event(f"messages: {whole.messages}")
    parse_replies(whole.output)
    for eager in (True, False):
        for pieces in ([script], cut(script, places)):
            driver = Driver(new_protocol(**limits), eager=eager)  # type: ignore[arg-type]
            assert driver.run(pieces) == end
            assert seen(driver.events) == seen(whole.events)
            assert driver.output == whole.output
            assert buffered(driver.protocol) == buffered(whole.protocol) or isinstance(end, ConnectionClosed)


@given(script=SCRIPTS, limits=LIMITS)
def test_octet_by_octet_makes_no_difference(script: bytes, limits: dict[str, int]) -> None:
    script = ENVELOPE + script
    whole, single = (Driver(new_protocol(**limits), eager=True) for _ in range(2))  # type: ignore[arg-type]
    whole.run([script])
    single.run(cut(script, range(len(script))))
    assert seen(single.events) == seen(whole.events)
    assert single.output == whole.output


@given(data=st.data(), body=BODIES)
def test_a_refused_body_is_a_prefix_however_it_is_cut(data: st.DataObject, body: bytes) -> None:
    script = ENVELOPE + b"RCPT TO:<alice@x>\r\nDATA\r\n" + body
    places = data.draw(st.lists(st.integers(0, len(script)), max_size=40), label="cut at")
    driver = Driver(new_protocol(max_message_size=500))
    driver.run(cut(script, places))
    assert body.startswith(bodies(driver.events))


NOISE = st.lists(
    st.one_of(
        st.binary(max_size=50),
        st.sampled_from([*GOOD, *BAD, b"\r\n.\r\n", b"\n.\n", b"RCPT TO:<", b"MAIL FROM:", b" ", b'"', b">", b"\r"]),
        st.builds(lambda octet, number: bytes([octet]) * number, st.integers(0, 255), st.integers(1, 10_000)),
    ),
    max_size=30,
)


STARTED = [b"", ENVELOPE, ENVELOPE + GOOD[4], ENVELOPE + GOOD[4] + b"DATA\r\n"]


@given(pieces=NOISE, limits=LIMITS, started=st.sampled_from(STARTED))
@example(pieces=[b"x" * 2048], limits={"max_message_size": 0, "smtputf8": False, "max_recipients": 1}, started=b"")
def test_noise_never_raises_and_nothing_piles_up(pieces: list[bytes], limits: dict[str, int], started: bytes) -> None:
    driver = Driver(new_protocol(**limits))  # type: ignore[arg-type]
    before = 0
    for piece in filter(None, [started, *pieces]):
        driver.protocol.receive_data(piece)
        assert buffered(driver.protocol) <= before + len(piece)
        waiting = driver.pump()
        if isinstance(waiting, ConnectionClosed):
            break
        assert waiting is Wait.NEED_DATA
        before = buffered(driver.protocol)
        assert before < MAX_COMMAND
    if not isinstance(driver.pump(), ConnectionClosed):
        driver.feed(b"")
    assert isinstance(driver.protocol.next_event(), ConnectionClosed)
    replies = parse_replies(driver.output)
    assert all(isinstance(reply, Reply) for reply in replies)
    # Each piece was answered before the next: as many replies as commands, so never more than lines.
    assert len(replies) <= b"".join([started, *pieces]).count(b"\n") + driver.messages * 5 + 1


@given(pieces=NOISE, ahead=st.one_of(st.binary(max_size=20), BODIES))
def test_looking_ahead_takes_nothing_in(pieces: list[bytes], ahead: bytes) -> None:
    driver, other = Driver(new_protocol()), Driver(new_protocol())
    script = ENVELOPE + b"RCPT TO:<alice@x>\r\nDATA\r\n"
    for piece in filter(None, [script, *pieces]):
        driver.protocol.completes(ahead)
        if isinstance(driver.feed(piece), ConnectionClosed):
            break
    other.run(filter(None, [script, *pieces]))
    assert (driver.events, driver.output) == (other.events, other.output)
