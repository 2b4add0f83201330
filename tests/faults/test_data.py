"""Message data: only CRLF.CRLF ends it, a lone dot between other line ends is refused, everything else passes."""

from __future__ import annotations

import itertools
import random
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.faults.conftest import Pair
from tests.support.backend import FakeBackend
from tests.support.client import LmtpClient
from tests.support.patience import SOON
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import HEALTHY, Await, BodyTrigger, Hang, Send

# What some store takes for the end of the data: a lone dot between any two line ends, the start of the data included.
LOOSE_END = re.compile(rb"(?:\A|[\r\n])\.(?=[\r\n])")

ENDS = (b"\r\n", b"\n", b"\r")
SMUGGLING = [
    *(b"text" + before + b"." + after + b"MAIL" for before, after in itertools.product(ENDS, ENDS)
      if (before, after) != (b"\r\n", b"\r\n")),
    b".\nMAIL",
    b".\rMAIL",
    b"text\r\r\n.\r\r\nMAIL",
    b"text\n\r.\n\rMAIL",
    b"text\r\n.\r\r\nMAIL",
    b"text\n.\r\nMAIL FROM:<evil@x>\r\nRCPT TO:<victim@a>\r\nDATA\r\nevil\r\n",
    b"text\r\n.\nMAIL FROM:<evil@x>\nRCPT TO:<victim@a>\nDATA\nevil\n.\n",
]  # fmt: skip

HARMLESS = [
    b"",
    b"..\r\n",
    b"text\r\n..\r\nmore",
    b"text\n..\nmore",
    b"text\r..\rmore",
    b"a.\r\nb .\r\n. c\r\n.d\r\n",
    b"text\n.x\ntext\r.y\r",
    b"one\ntwo\rthree\r\n\r\r\n\n\r\n",
    b"nul \0 and \xff\xfe\x80 \xe2\x82\xac",
    b"x" * 5000 + b"\r\n" + b"\xff" * 70_000,
    b"." * 3000,
    b"\r\n\r\n\r\n",
    b"\r",
    b"\n",
]


def begin(client: LmtpClient, sender: str, recipients: list[str]) -> None:
    outcome = client.envelope(sender, recipients)
    assert outcome.data is not None and outcome.data.code == 354


def check_refused(pair: Pair, client: LmtpClient, count: int) -> None:
    for _ in range(count):
        assert client.reply().text.startswith("550 5.6.0")
    assert client.command("NOOP").code == 250, "out of step"
    assert pair.a.wait_closed() and pair.b.wait_closed()
    for backend in (pair.a, pair.b):
        for seen in backend.transactions():
            assert not seen.dotted
            assert seen.body is not None
            assert not LOOSE_END.search(seen.body.bytes), seen.body.bytes


def cuts(whole: bytes) -> list[list[bytes]]:
    """In one piece, in two at every place around the dots, by single bytes."""
    places = sorted({near for dot in re.finditer(rb"\.", whole) for near in range(dot.start() - 2, dot.end() + 4)})
    pairs = [[whole[:place], whole[place:]] for place in places if 0 < place < len(whole)]
    return [[whole], *pairs, [whole[place : place + 1] for place in range(len(whole))]]


@pytest.mark.parametrize("number", range(len(SMUGGLING)))
def test_an_ambiguous_dot_is_refused_at_any_cut(pair: Pair, number: int) -> None:
    whole = SMUGGLING[number] + b"\r\n.\r\n"
    with pair.proxy.client() as client:
        for pieces in cuts(whole):
            begin(client, "s@x", ["u@a", "v@b", "w@a"])
            client.pieces(pieces, 0.0015)
            check_refused(pair, client, 3)
            pair.a.forget()
            pair.b.forget()
        client.quit()


@pytest.mark.parametrize("end", [b"\r\n", b"\n", b"\r"], ids=["crlf", "lf", "cr"])
@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_a_dot_where_cyrus_cuts_a_long_line_is_refused(pair: Pair, pieces: int, end: bytes) -> None:
    """Cyrus 3.6 looks for the end of the data after each 8189 octets of a line, too."""
    whole = b"x" * (8189 * pieces) + b"." + end + b"MAIL FROM:<evil@x>\r\n\r\n.\r\n"
    with pair.proxy.client() as client:
        for cut in (len(whole), 8189 * pieces, 8189 * pieces + 1, 8189 * pieces + 2):
            begin(client, "s@x", ["u@a", "v@b"])
            client.pieces([whole[:cut], whole[cut:]], 0.01)
            check_refused(pair, client, 2)
            pair.a.forget()
            pair.b.forget()
        client.quit()


def test_an_ambiguous_dot_far_into_a_message(pair: Pair) -> None:
    since = pair.proxy.mark()
    filler = (b"y" * 70 + b"\r\n") * 3000
    with pair.proxy.client() as client:
        begin(client, "far@x", ["u@a", "v@b"])
        client.send(filler + b"text\n.\r\n" + filler + b"\r\n.\r\n")
        check_refused(pair, client, 2)
        client.quit()
    line = pair.proxy.wait_log("from=<far@x>, to=<u@a>", since=since)
    assert "dsn=5.6.0" in line and "status=bounced" in line


@pytest.mark.parametrize("number", range(len(HARMLESS)))
def test_everything_else_passes_unchanged_at_any_cut(pair: Pair, number: int) -> None:
    body = HARMLESS[number] + (b"\r\n" if HARMLESS[number] else b"")
    whole = body + b".\r\n"
    ways = cuts(whole) if len(whole) < 200 else [[whole], [whole[:4999], whole[4999:]], [whole[:-3], whole[-3:]]]
    with pair.proxy.client() as client:
        for pieces in ways:
            pair.a.forget()
            pair.b.forget()
            begin(client, "s@x", ["u@a", "v@b"])
            client.pieces(pieces, 0.0015)
            assert client.reply().positive and client.reply().positive
            for backend in (pair.a, pair.b):
                (seen,) = backend.transactions()
                assert seen.dotted and seen.body is not None and seen.body.bytes == body
        client.quit()


def test_random_bodies_pass_unchanged_or_not_at_all(pair: Pair) -> None:
    generator = random.Random(20)
    with pair.proxy.client() as client:
        for number in range(150):
            length = generator.choice((3, 10, 40, 400))
            body = bytes(generator.choice(b"\r\n\r\n\r\n..a\0\xff") for _ in range(length)) + b"\r\n"
            body = re.sub(rb"(\A|\r\n)\.(?=\r\n)", rb"\1..", body)  # as a client must
            whole = body + b".\r\n"
            cut = sorted(generator.sample(range(1, len(whole)), k=min(3, len(whole) - 1)))
            pieces = [whole[start:end] for start, end in zip([0, *cut], [*cut, len(whole)], strict=True)]
            begin(client, f"{number}@x", ["u@a", "v@b"])
            client.pieces(pieces, 0.001)
            told = [client.reply().text[:9], client.reply().text[:9]]
            ambiguous = bool(LOOSE_END.search(body))
            assert told == (["550 5.6.0"] * 2 if ambiguous else ["250 2.0.0"] * 2), (body, told)
            for backend in (pair.a, pair.b):
                (seen,) = backend.transactions(f"{number}@x")
                assert seen.dotted != ambiguous
                assert seen.body is not None
                assert ambiguous or seen.body.bytes == body
                assert not LOOSE_END.search(seen.body.bytes)
        client.quit()


def test_commands_behind_the_end_are_the_next_transaction(pair: Pair) -> None:
    with pair.proxy.client() as client:
        begin(client, "1@x", ["u@a"])
        client.send(b"one\r\n.\r\nRSET\r\nMAIL FROM:<2@x>\r\nRCPT TO:<v@b>\r\nDATA\r\n")
        assert [client.reply().code for _ in range(5)] == [250, 250, 250, 250, 354]
        client.send(b".\r\nQUIT\r\n")
        assert [client.reply().code for _ in range(2)] == [250, 221]
    assert pair.b.transactions("2@x")[0].dotted


@pytest.fixture(scope="module")
def sized() -> Iterator[Pair]:
    with (
        FakeBackend() as a,
        FakeBackend() as b,
        ProxyProcess(config_of({"a": a, "b": b}, max_message_size=1000)) as proxy,
    ):
        yield Pair(proxy, a, b)


def test_the_size_limit(sized: Pair) -> None:
    with sized.proxy.client(greeted=False) as client:
        assert client.reply().code == 220
        assert b"SIZE 1000" in client.command("LHLO x").lines
        for size, told in ((998, "250 2.0.0"), (1000, "250 2.0.0"), (1001, "552 5.3.4"), (200_000, "552 5.3.4")):
            begin(client, f"{size}@x", ["u@a", "v@b", "w@a"])
            client.send(b"x" * (size - 2) + b"\r\n.\r\n")
            assert [client.reply().text[:9] for _ in range(3)] == [told] * 3, size
            assert client.command("NOOP").code == 250
            for backend in (sized.a, sized.b):
                assert backend.transactions(f"{size}@x")[0].dotted == (size <= 1000)
        client.quit()
    assert sized.a.wait_closed() and sized.b.wait_closed()


def test_stuffing_is_not_counted(sized: Pair) -> None:
    with sized.proxy.client() as client:
        begin(client, "stuffed@x", ["u@a"])
        client.send(b"..\r\n" * 333 + b".\r\n")  # 999 octets, 1332 on the wire
        assert client.reply().positive
        client.quit()


def test_too_large_by_its_own_declaration(sized: Pair) -> None:
    with sized.proxy.client() as client:
        reply = client.command("MAIL FROM:<s@x> SIZE=1001")
        assert reply.positive or reply.text.startswith("552 5.3.4")
        assert client.command("RSET").positive
        assert client.command("MAIL FROM:<s@x> SIZE=1000").positive
        assert client.command("RSET").positive
        assert client.command("MAIL FROM:<s@x> SIZE=99999999999999999999999").code in (501, 552)
        client.quit()


def test_the_limit_is_told_after_the_whole_message(sized: Pair) -> None:
    with sized.proxy.client() as client:
        begin(client, "early@x", ["u@a"])
        client.send(b"x" * 5000 + b"\r\n")
        assert client.silent(0.2)
        client.send(b".\r\n")
        assert client.reply().text.startswith("552 5.3.4")
        client.quit()


def test_data_is_handed_on_as_it_comes(pair: Pair) -> None:
    with pair.proxy.client() as client:
        begin(client, "s@x", ["u@a"])
        client.send(b"x" * 100_000)
        deadline = time.monotonic() + SOON
        while True:
            (seen,) = pair.a.transactions()
            if seen.body is not None and seen.body.size > 90_000:
                break
            assert time.monotonic() < deadline, "the body is kept back"
            time.sleep(0.01)
        client.send(b"\r\n.\r\n")
        assert client.reply().positive
        client.quit()


@pytest.mark.parametrize("rest", [b"", b" 4.2.2 full\r\n"], ids=["never whole", "whole later"])
def test_half_a_reply_amid_the_data_keeps_no_other_backend_waiting(pair: Pair, rest: bytes) -> None:
    """The backend that began to speak gets nothing more; the rest of what it says is its recipient's reply."""
    go = threading.Event()
    halves = (Send(b"452"), Await(go), Send(rest)) if rest else (Send(b"452"), Hang())
    pair.a.script = replace(HEALTHY, body=BodyTrigger(1000, halves))
    with pair.proxy.client() as client:
        begin(client, "half@x", ["u@a", "u@b"])
        client.send(b"x" * 2000)
        time.sleep(0.2)  # half of the reply has come
        for _ in range(3):
            client.send(b"x" * 30_000)
            time.sleep(0.02)
        (seen,) = pair.b.transactions("half@x")
        # The proxy would wait 5 s for the rest of a reply.
        assert pair.b.wait_for(lambda: seen.body is not None and seen.body.size > 80_000, 4), "it was kept waiting"
        go.set()
        client.send(b"\r\n.\r\n")
        assert client.reply().text.startswith("452 4.2.2 full" if rest else "451 4.4.2")
        assert client.reply().code == 250
        client.quit()
    (seen_by_a,) = pair.a.transactions("half@x")
    assert seen_by_a.dot_at is None
