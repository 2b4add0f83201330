# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a message ends, whether that is beyond doubt, and that its octets come out as they came in."""

import itertools
import re
from collections.abc import Iterable

import pytest

from lmtp_proxy.wire.dot_stuffing import MessageData, whole_message

END = b"\r\n.\r\n"
# Bodies that are beyond doubt, each up to and including the CRLF in front of the final dot.
BODIES: dict[str, bytes] = {
    "no line": b"",
    "an empty line": b"\r\n",
    "one line": b"Subject: x\r\n",
    "lines": b"Subject: x\r\n\r\nHello,\r\nworld\r\n",
    "stuffed dot": b"..\r\n",
    "stuffed dots": b"a\r\n..\r\n..b\r\n...\r\n",
    "unstuffed dot": b".a\r\nb\r\n.c.\r\n",  # what a receiver makes of it is the receiver's business
    "dots within lines": b"a.b\r\nc.\r\n. \r\n",
    "base64": b"QUJD" * 19 + b"\r\n",
    "bare LF": b"a\nb\n\nc\r\n",
    "bare CR": b"a\rb\r\rc\r\r\n",
    "LF CR": b"a\n\rb\r\n",
    "dot at a bare line end": b"a.\nb.\rc\n.d\r.e\n\n..\n\r..\r\n",
    "stuffed dot on a bare line": b"a\n..\nb\r..\r\n",
    "NUL": b"\0a\0.\0\r\n.\0\r\n\0\r\n",
    "every octet": bytes(range(256)) + b"\r\n",
    "a long line": b"x" * 5000 + b"." + b"y" * 5000 + b"\r\n",
    "CR before CRLF": b"a\r\r\n",
    "so many dots that the search changes": b"a." * 20 + b"\r\n..b\n..c\r..d\n\r..\r\n..e\r\n",
    "just so many that it would": b"a." * 16 + b"b\r\n",
}

# A lone dot after the first and before the second of these is beyond doubt only in one case.
LINE_ENDS = (b"\r\n", b"\n", b"\r")
AMBIGUOUS_PAIRS = [pair for pair in itertools.product(LINE_ENDS, LINE_ENDS) if pair != (b"\r\n", b"\r\n")]
STRAY_CR = [(b"\r\n", b"\r\r\n"), (b"\r\n\r", b"\r\n"), (b"\n\r", b"\r\n"), (b"\r\n\r", b"\n"), (b"\r\n", b"\r\r")]


def feed(pieces: Iterable[bytes]) -> tuple[MessageData, bytes, bytes]:
    """Feed up to the end: the data, all that came out, and all that stood behind the final dot."""
    data, passed, rest = MessageData(), b"", b""
    for piece in pieces:
        if data.ended:
            rest += piece
            continue
        out, rest = data.feed(piece)
        passed += out
    return data, passed, rest


def cuts(octets: bytes) -> list[list[bytes]]:
    """Whole, octet by octet, and each cut into two."""
    by_octet = [octets[i : i + 1] for i in range(len(octets))]
    step = max(1, len(octets) // 300)  # each place of a short body, some of a long one
    return [[octets], by_octet, *([octets[:i], octets[i:]] for i in range(1, len(octets), step))]


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("tail", [b"", b"QUIT\r\n", b".\r\n", b"\r\n.\r\n", b".", b"\n.\n"])
def test_a_body_comes_out_as_it_came_in(name: str, tail: bytes) -> None:
    body = BODIES[name]
    for pieces in cuts(body + b".\r\n" + tail):
        data, passed, rest = feed(pieces)
        assert (passed, rest) == (body, tail)
        assert data.ended
        assert not data.ambiguous


@pytest.mark.parametrize("name", BODIES)
def test_size_counts_neither_stuffing_nor_the_final_dot(name: str) -> None:
    """RFC 1870 section 3: the size is that of the message, as octets with CRLF, before stuffing."""
    body = BODIES[name]
    unstuffed = re.sub(rb"(\A|(?<=\r\n))\.", b"", body)
    for pieces in cuts(body + b".\r\n" + b"\r\n.x"):
        assert feed(pieces)[0].size == len(unstuffed)


@pytest.mark.parametrize("before, after", AMBIGUOUS_PAIRS + STRAY_CR)
@pytest.mark.parametrize("start", [b"", b"Subject: x\r\n\r\nfirst", b"..x"])
@pytest.mark.parametrize("smuggled", [b"", b"MAIL FROM:<evil@x>", b"..", b"\r\n", b"x\n.\n"])
def test_a_lone_dot_between_other_line_ends_is_ambiguous(
    before: bytes, after: bytes, start: bytes, smuggled: bytes
) -> None:
    body = start + before + b"." + after + smuggled + b"\r\n"
    for pieces in cuts(body + b".\r\n" + b"QUIT\r\n"):
        data, passed, rest = feed(pieces)
        assert data.ambiguous
        assert data.ended  # it is read to its real end all the same
        assert rest == b"QUIT\r\n"
        assert passed == start + before


@pytest.mark.parametrize("start", [b".\n", b".\r", b".\rx", b".\r\r\n", b".\r."])
def test_the_start_counts_as_after_crlf(start: bytes) -> None:
    for pieces in cuts(start + b"rest\r\n.\r\ntail"):
        data, passed, rest = feed(pieces)
        assert (data.ambiguous, data.ended, passed, rest) == (True, True, b"", b"tail")


def test_a_dot_at_once_is_an_empty_message() -> None:
    for pieces in cuts(b".\r\nQUIT\r\n"):
        data, passed, rest = feed(pieces)
        assert (data.ambiguous, data.ended, data.size, passed, rest) == (False, True, 0, b"", b"QUIT\r\n")


def test_nothing_comes_out_after_the_first_ambiguous_dot() -> None:
    data = MessageData()
    assert data.feed(b"good\n.") == (b"good\n", b"")
    assert data.feed(b"\nMAIL") == (b"", b"")
    assert data.ambiguous
    assert data.feed(b"a chunk without one\r\n") == (b"", b"")
    assert data.feed(b"..a chunk with one\r\n") == (b"", b"")
    assert data.feed(b"\r\n.") == (b"", b"")
    assert not data.ended
    assert data.feed(b"\r\nrest") == (b"", b"rest")
    assert data.ended


@pytest.mark.parametrize("body", [b"x\r\n.", b"x\r\n.\r", b"x\n.", b"x\r.", b"x\n.\r", b".", b".\r", b"\r\n.\r"])
def test_a_dot_that_may_be_the_end_does_not_come_out(body: bytes) -> None:
    for pieces in cuts(body):
        data, passed, rest = feed(pieces)
        assert (passed, rest, data.ended) == (body[: body.rindex(b".")], b"", False)


@pytest.mark.parametrize("body", [b"x", b"x.", b"x\r\n", b"x\r", b"x\n", b"\r\n..", b"\r\n.x", b"\r\n.\0", b"x.\r"])
def test_all_else_comes_out_at_once(body: bytes) -> None:
    for pieces in cuts(body):
        data, passed, rest = feed(pieces)
        assert (passed, rest, data.ended, data.ambiguous) == (body, b"", False, False)


def test_size_grows_with_each_piece() -> None:
    """The session refuses a message as soon as it is too large, so the size has to be right amid the data."""
    data, sizes = MessageData(), []
    for piece in (b"12345", b"", b"\r\n", b"..", b"\r\n", b".", b"\r", b"\n"):
        data.feed(piece)
        sizes.append(data.size)
    assert sizes == [5, 5, 7, 8, 10, 10, 10, 10]
    assert data.ended


def test_every_short_stream_against_the_rule() -> None:
    """All 4-letter streams up to seven octets, whole and by octet, against the rule written down as one expression."""
    for length in range(1, 8):
        for letters in itertools.product(b"a.\r\n", repeat=length):
            stream = bytes(letters)
            text = b"\r\n" + stream
            end = text.find(END)
            ended = end >= 0
            decided = text[: end + 2] if ended else re.sub(rb"(?<=[\r\n])\.\r?\Z", b"", text)
            lone = re.search(rb"(?<=[\r\n])\.(?=[\r\n])", text[: end + 2] if ended else text)
            if not ended and lone and text[lone.start() - 2 :] == b"\r\n.\r":
                lone = None  # not decided yet
            for pieces in ([stream], [stream[i : i + 1] for i in range(length)]):
                data, passed, rest = feed(pieces)
                assert data.ended is ended, stream
                assert rest == (text[end + 5 :] if ended else b""), stream
                if not lone:
                    assert not data.ambiguous, stream
                elif lone.end() + 1 < len(text):  # the judgement may wait for one octet more
                    assert data.ambiguous, stream
                assert passed == (text[2 : lone.start()] if lone else decided[2:]), stream


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("tail", [b"", b"QUIT\r\n", b"RSET\r\n", b"MAIL FROM:<s@x>\r\n", b"x\r\n.\r\n", b"."])
def test_a_message_that_came_at_once_is_what_it_is_in_pieces(name: str, tail: bytes) -> None:
    octets = BODIES[name] + b".\r\n" + tail
    if (whole := whole_message(octets)) is not None:
        data, passed, rest = feed([octets])
        assert (data.ended, data.ambiguous) == (True, False)
        assert whole == (data.size, len(passed))
        assert rest == octets[len(passed) + 3 :]


@pytest.mark.parametrize("dots", [0, 1, 14, 15, 16, 17, 200])
@pytest.mark.parametrize(
    "more", [b"", b".", b"\r\n.", b"\r\n..", b"\n.x", b"\r.x", b"\n.\n", b"\r.\r", b"\r\n.\n", b"x.\r"]
)
def test_many_dots_before_and_behind_anything(dots: int, more: bytes) -> None:
    for body in (b"a." * dots + more + b"a.\r\n", b"a" + b"\r\n.." * dots + more + b"b" * 70 + b"\r\n"):
        octets = body + b".\r\nQUIT\r\n"
        data, passed, _ = feed([octets])
        whole = whole_message(octets)
        assert whole is None or (not data.ambiguous and whole == (data.size, len(passed)))


def test_what_is_usual_is_taken_at_once() -> None:
    head = b"Received: from mail-1.example.org (192.0.2.10)\r\n" * 20
    for body in (b"", b"Subject: x\r\n\r\ntext\r\n", b"Subject: x\r\n\r\n..\r\n.. x\r\n", head + b"\r\ntext\r\n"):
        for behind in (b"", b"QUIT\r\n"):
            octets = b"To: u@x\r\n" + body + b".\r\n" + behind
            assert whole_message(octets) == (feed([octets])[0].size, 9 + len(body))
    assert whole_message(b"x" * (LONG - 2) + b"\r\n.\r\n") == (LONG, LONG)
    assert whole_message(b"x" * (LONG - 1) + b"\r\n.\r\n") is None


def test_every_short_message_at_once_or_in_pieces() -> None:
    taken = 0
    for length in range(8):
        for letters in itertools.product(b"a.\r\n", repeat=length):
            octets = bytes(letters) + b"\r\n.\r\n"
            data, passed, rest = feed([octets])
            if (whole := whole_message(octets)) is not None:
                taken += 1
                assert (data.ended, data.ambiguous, rest) == (True, False, b""), octets
                assert whole == (data.size, len(passed)), octets
            else:
                assert b"." in octets[:2] or re.search(rb"[\r\n]\.[\r\n]", octets[:-3]), octets
    assert taken > 5000


# Cyrus 3.6 reads at most 8189 octets of a line at a time and looks for the final dot at the start of each piece. Where
# a piece starts cannot be told from outside: a CR that would end one is left for the next, and the first starts where
# the header stops to be one, which may be amid a line. So no dot behind that many octets may stand at a line's end.
LONG = 8189
SMUGGLED = b"MAIL FROM:<evil@x>\r\nRCPT TO:<u@x>\r\nDATA\r\nSubject: smuggled\r\n\r\nText.\r\n..\r\n"


def some_cuts(octets: bytes, around: int) -> list[list[bytes]]:
    """Whole, and cut near one place in one and in two."""
    places = range(max(1, around - 3), min(len(octets), around + 5))
    two = [[octets[:i], octets[i:]] for i in places]
    three = [[octets[:i], octets[i:j], octets[j:]] for i, j in itertools.combinations(places, 2)]
    return [[octets], [octets[:1000], octets[1000:]], *two, *three]


@pytest.mark.parametrize(
    "column", [LONG, LONG + 1, LONG + 2, 2 * LONG - 2, 2 * LONG - 1, 2 * LONG, 2 * LONG + 1, 30_000]
)
@pytest.mark.parametrize("end", [b".\r\n", b".\n", b".\r\r\n", b".\rx"])
@pytest.mark.parametrize("before", [b"", b"Subject: x\r\n\r\n", b"a.b\n.c\n"])
def test_a_dot_at_the_end_of_a_long_line_is_ambiguous(before: bytes, end: bytes, column: int) -> None:
    start = before + b"x" * column
    for pieces in some_cuts(start + end + SMUGGLED + b".\r\nREST", len(start)):
        data, passed, rest = feed(pieces)
        assert data.ended
        assert data.ambiguous
        assert (passed, rest) == (start, b"REST")


@pytest.mark.parametrize(
    "line",
    [
        b"x" * LONG + b".",
        b"x" * (LONG - 1) + b"\r" + b"y" * (LONG - 1) + b".",  # a CR where a piece would end
        b"x" * (LONG - 1) + b"\r" + b"y" * (LONG - 2) + b"\r" + b"z" * (LONG - 1) + b".",
        b"no header" + b"x" * (LONG - 6) + b".",  # the first piece starts behind "no "
        b"name\x01" + b"x" * (LONG - 1) + b".",
        b"name\0" + b"x" * (LONG - 1) + b".",
        b"Subject: value\0" + b"x" * (LONG - 1) + b".",
        b"." * (LONG + 1),
    ],
)
def test_what_ended_a_message_in_a_real_cyrus(line: bytes) -> None:
    for pieces in some_cuts(b"From: a@b\r\n" + line + b"\r\n" + SMUGGLED + b".\r\nREST", len(line)):
        data, passed, rest = feed(pieces)
        assert data.ended
        assert data.ambiguous
        assert line[:-1].startswith(passed.removeprefix(b"From: a@b\r\n"))
        assert rest == b"REST"


@pytest.mark.parametrize("column", [1, 998, LONG - 2, LONG - 1])
@pytest.mark.parametrize("end", [b".\r\n", b".\n", b".\r\r\n", b".\rx"])
@pytest.mark.parametrize("before", [b"", b"a\r\n", b"x" * 20_000 + b"\n"])
def test_a_dot_at_the_end_of_a_shorter_line_is_not(before: bytes, end: bytes, column: int) -> None:
    body = before + b"x" * column + end + b"\r\n"
    for pieces in some_cuts(body + b".\r\n", len(before) + column):
        data, passed, _ = feed(pieces)
        assert data.ended
        assert not data.ambiguous
        assert passed == body


@pytest.mark.parametrize("following", [b"y", b"..y", b".\0", b". ", b".y\r\n.."])
@pytest.mark.parametrize("column", [LONG - 1, LONG, LONG + 1, 2 * LONG])
def test_a_dot_amid_a_long_line_is_not(column: int, following: bytes) -> None:
    body = b"x" * column + b"." + following + b"x\r\n"
    for pieces in some_cuts(body + b".\r\n", column):
        data, passed, _ = feed(pieces)
        assert data.ended
        assert not data.ambiguous
        assert passed == body


def test_a_dot_far_in_a_line_waits_for_what_follows() -> None:
    data = MessageData()
    assert data.feed(b"x" * LONG + b".") == (b"x" * LONG, b"")
    assert data.feed(b"y") == (b".y", b"")
    assert data.feed(b".") == (b"", b"")
    assert data.feed(b".") == (b".", b"")
    assert data.size == LONG + 3
    assert data.feed(b"\n") == (b"", b"")
    assert data.ambiguous
    assert data.feed(b"\r\n.\r\n") == (b"", b"")
    assert data.ended


def test_a_line_far_longer_than_any_counter() -> None:
    data = MessageData()
    for _ in range(50):
        assert data.feed(b"x" * 3000 + b".x") == (b"x" * 3000 + b".x", b"")
    assert data.feed(b".\r\n") == (b"", b"")
    assert data.ambiguous


@pytest.mark.parametrize("name", BODIES)
def test_a_look_ahead_sees_the_end_and_takes_nothing_in(name: str) -> None:
    stream = BODIES[name] + b".\r\n"
    for cut in range(0, len(stream), max(1, len(stream) // 50)):
        data = MessageData()
        data.feed(stream[:cut])
        assert data.ends_in(stream[cut:] + b"NOOP\r\n")
        assert not data.ends_in(stream[cut:-1])
        assert not data.ended
