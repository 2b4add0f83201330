# SPDX-License-Identifier: GPL-3.0-or-later
"""No receiver sees another end of data than the one that the proxy appends, however it looks for it.

Each receiver below is a simple reader of a whole stream, written down as where it thinks that data ends. Cyrus 3.6 and
Dovecot 2.3 are among them, and some that are more careless than any we know.
"""

import re

from hypothesis import example, given
from hypothesis import strategies as st

from lmtp_proxy.wire.dot_stuffing import MessageData
from tests.property.driver import cut

# Where a receiver takes a dot for the end; what stands in front of the data is the CRLF of DATA.
RECEIVERS = {
    "CRLF.CRLF": rb"\r\n(\.)(?=\r\n)",
    "LF.LF too": rb"\r\n(\.)(?=\r\n)|(?<!\r)\n(\.)(?=\n)",
    "CRLF.LF too": rb"\r\n(\.)(?=\r?\n)",
    "LF.CRLF too": rb"\n(\.)(?=\r\n)",
    "all four": rb"\n(\.)(?=\r?\n)",
    "stray CRs behind the dot": rb"\n(\.)(?=\r*\n)",
    "stray CRs around the dot": rb"\n\r*(\.)(?=\r*\n)",
    "any CR or LF": rb"[\r\n](\.)(?=[\r\n])",
    "a lone dot at the end of what came": rb"[\r\n](\.)(?=[\r\n]|\Z)",
}
LONE_DOT = re.compile(rb"[\r\n]\.(?=[\r\n]|\Z)")

LONG = 8189
"""Cyrus 3.6 reads so many octets of a line at a time. No dot behind so many may stand at the end of a line."""

STREAMS = st.lists(
    st.one_of(
        st.builds(
            lambda octet, number: octet * number,
            st.sampled_from([b"x", b"x", b".", b"\r"]),
            st.sampled_from([LONG - 2, LONG - 1, LONG, LONG + 1, 2 * LONG - 1]),
        ),
        st.sampled_from([b".", b"\r", b"\n", b"\r\n", b"a"]),
        st.sampled_from([b"..", b"\r\n.", b"\r\n..", b".\r\n", b".\n", b".\r", b"\r\r\n", b"\n\r", b"\0", b"text\r\n"]),
        st.binary(max_size=5),
    ),
    max_size=40,
).map(b"".join)
PLACES = st.lists(st.one_of(st.integers(0, 120), st.integers(LONG - 5, LONG + 50), st.integers(0, 40_000)), max_size=30)


def reference(stream: bytes) -> tuple[bytes | None, bytes, bool]:
    """The message up to its last CRLF (None: no end), what stands behind its final dot, and whether it is ambiguous."""
    text = b"\r\n" + stream
    end = text.find(b"\r\n.\r\n")
    if end < 0:
        return None, b"", False
    message = text[: end + 2]
    lone = re.search(rb"[\r\n]\.[\r\n]", message) is not None
    far = any(b".\r" in part or b".\n" in part for part in far_parts(message[2:]))
    return message[2:], text[end + 5 :], lone or far


def far_parts(message: bytes) -> list[bytes]:
    """What of each line stands behind its first LONG octets, its line end included."""
    return [line[LONG:] for line in re.findall(rb"[^\n]*\n", message)]


def feed(stream: bytes, places: list[int]) -> tuple[MessageData, bytes, bytes]:
    """Feed the pieces; and at each step see that nothing came out too early or was kept too long."""
    data, passed, rest, fed = MessageData(), b"", b"", 0
    for piece in cut(stream, places):
        if data.ended:
            rest += piece
            continue
        out, rest = data.feed(piece)
        fed += len(piece)
        passed += out
        assert stream.startswith(passed)
        lone = LONE_DOT.search(b"\r\n" + stream[:fed])
        assert not lone or lone.end() > len(b"\r\n" + passed), "a dot came out before it was judged"
        if not data.ended:
            assert rest == b""
            # Not judged yet: at most a dot and a CR, and if it is not the only thing kept, the data is ambiguous.
            assert data.ambiguous or 0 <= fed - len(passed) <= 2
    return data, passed, rest


@given(stream=STREAMS, places=PLACES)
@example(stream=b"a\r\n.\r", places=[])
@example(stream=b"\r\n.\r\n.\r\n", places=[4])
def test_against_the_reference(stream: bytes, places: list[int]) -> None:
    message, behind, ambiguous = reference(stream)
    data, passed, rest = feed(stream, places)
    assert data.ended is (message is not None)
    if message is None:
        return
    assert data.ambiguous is ambiguous
    assert rest == behind
    if ambiguous:
        assert message.startswith(passed)
        assert len(passed) < len(message)
    else:
        assert passed == message
        assert data.size == len(re.sub(rb"(?<=\r\n)\.", b"", b"\r\n" + message)) - 2


@given(stream=STREAMS, places=PLACES, tail=STREAMS)
def test_every_receiver_sees_one_end_and_the_same_octets(stream: bytes, places: list[int], tail: bytes) -> None:
    data, passed, _ = feed(stream + b"\r\n.\r\n" + tail, places)
    assert data.ended
    if data.ambiguous:
        return  # it gets no dot: the property of what came out holds at each step, see feed
    sent = passed + b".\r\n"
    for name, pattern in RECEIVERS.items():
        ends = [match.start(match.lastindex or 0) for match in re.finditer(pattern, b"\r\n" + sent)]
        assert ends == [len(b"\r\n" + passed)], name


def cyrus_end(stream: bytes, begin: int) -> int | None:
    """Where Cyrus 3.6 sees the final dot, if its search for the end of the header stopped at `begin`.

    It reads up to a LF or LONG octets, leaves a CR that would end such a piece for the next one, drops all bare CRs,
    and compares what it has with a dot on a line of its own.
    """
    while begin < len(stream):
        line_end = stream.find(b"\n", begin, begin + LONG)
        end = line_end + 1 if line_end >= 0 else min(begin + LONG, len(stream))
        if line_end < 0 and end - begin > 1 and stream[end - 1 : end] == b"\r":
            end -= 1
        if match := re.match(rb"\r*\.\r*\n", stream[begin:end]):
            return begin + match[0].index(b".")
        begin = end
    return None


@given(stream=STREAMS, places=PLACES, begin=st.one_of(st.just(0), st.integers(1, 60)))
@example(stream=b"x" * (LONG - 1) + b"\r" + b"y" * (LONG - 1) + b".", places=[], begin=0)
@example(stream=b"no header" + b"x" * LONG + b".", places=[], begin=10)
def test_cyrus_sees_one_end_wherever_its_header_ends(stream: bytes, places: list[int], begin: int) -> None:
    data, passed, _ = feed(stream + b"\r\n.\r\n", places)
    assert data.ended
    sent = passed + b".\r\n"
    if data.ambiguous or begin > len(passed) or sent[begin : begin + 1] == b".":
        return  # it never stops at a dot: it passes over those
    assert cyrus_end(sent, begin) == len(passed)


@given(stream=STREAMS, places=PLACES)
def test_size_does_not_depend_on_the_cut(stream: bytes, places: list[int]) -> None:
    stream += b"\r\n.\r\n"
    assert feed(stream, places)[0].size == feed(stream, [])[0].size
