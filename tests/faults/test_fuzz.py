"""Anything at all from a client: a proper reply or a closed connection, bounded memory, and nobody else notices."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.support.backend import FakeBackend
from tests.support.client import LmtpClient
from tests.support.delays import Delays
from tests.support.proxy import ProxyProcess, config_of

REPLIES = re.compile(rb"(?:[2-5][0-9][0-9][ -][\t\x20-\x7e\x80-\xff]{0,4090}\r\n)*")
SLOWEST = 2.0  # seconds for a delivery of the well-behaved client meanwhile
MOST = 8 * 1024  # KiB by which the memory may grow over a whole run

fuzz = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
)

VERBS = st.sampled_from(
    [b"LHLO", b"MAIL FROM:", b"RCPT TO:", b"DATA", b"RSET", b"NOOP", b"VRFY", b"HELP", b"QUIT", b"HELO", b"STARTTLS"]
)
PATHS = st.sampled_from(
    [
        b"<u@a>", b"<s@x>", b"<>", b"<v@b>", b"<u@nowhere>", b'<"a b"@a>', b"<@r:u@a>", b"<u@[1.2.3.4]>", b"u@a",
        b"<u@a", b"<" + b"x" * 300 + b"@a>", b"<\xc3\xbc@a>", b"<u@a>>", b"<u@a> <v@a>", b"<u@a\0>", b"<u@a\r>",
    ]
)  # fmt: skip
PARAMETERS = st.sampled_from(
    [b"", b" SIZE=100", b" SIZE=-1", b" SIZE=" + b"9" * 30, b" BODY=8BITMIME", b" BODY=", b" =", b" X", b" \xff=\0"]
)
ENDS = st.sampled_from([b"\r\n"] * 6 + [b"\n", b"\r", b"\r\r\n", b" \r\n", b""])
COMMANDS = st.builds(lambda *parts: b"".join(parts), VERBS, PATHS, PARAMETERS, ENDS)
BARE = st.builds(lambda verb, end: verb + end, VERBS, ENDS)
BODIES = st.sampled_from(
    [b"text\r\n.\r\n", b".\r\n", b"a\n.\nb\r\n.\r\n", b"no end", b"\r\n.\r", b"..\r\n.\r\n", b"x" * 3000 + b"\r\n.\r\n"]
)
GOOD = st.sampled_from(
    [
        b"MAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\nDATA\r\n",
        b"MAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\nRCPT TO:<v@b>\r\nRCPT TO:<w@nowhere>\r\nDATA\r\nhello\r\n.\r\n",
        b"LHLO x\r\n",
    ]
)
NOISE = st.binary(max_size=200)
SOUPS = st.lists(st.one_of(COMMANDS, BARE, BODIES, GOOD, NOISE), max_size=12)


class Neighbour(threading.Thread):
    """A well-behaved client that delivers all the time, each time on a new or the same connection."""

    def __init__(self, proxy: ProxyProcess) -> None:
        super().__init__()
        self.delays = Delays(proxy)
        self.count = 0
        self.trouble: BaseException | None = None
        self._proxy = proxy
        self._enough = threading.Event()

    def run(self) -> None:
        try:
            client = self._proxy.client()
            while not self._enough.is_set() or self.count < 5:
                with self.delays.one():
                    outcome = client.deliver(f"good{self.count}@x", ["good@a", "good@b"])
                    assert outcome.verdict(0).positive and outcome.verdict(1).positive
                    if self.count % 10 == 9:
                        client.quit()
                        client = self._proxy.client()
                self.count += 1
                time.sleep(0.01)
            client.quit()
        except BaseException as error:
            self.trouble = error

    def stop(self) -> None:
        self._enough.set()
        self.join()
        if self.trouble is not None:
            raise self.trouble


@pytest.fixture(scope="module")
def process() -> Iterator[ProxyProcess]:
    with (
        FakeBackend(keep_body=False) as a,
        FakeBackend(keep_body=False, transport="tcp") as b,
        ProxyProcess(config_of({"a": a, "b": b}, max_message_size=2500)) as proxy,
    ):
        yield proxy


@contextmanager
def undisturbed(proxy: ProxyProcess) -> Iterator[None]:
    """A neighbour delivers meanwhile; memory, descriptors and the process are as they were afterwards."""
    with proxy.client() as client:
        for number in range(20):
            client.deliver(f"warm{number}@x", ["u@a", "v@b"])
        client.quit()
    fds, rss = proxy.descriptors(), proxy.status("VmRSS")
    neighbour = Neighbour(proxy)
    neighbour.start()
    try:
        yield
    finally:
        neighbour.stop()
    neighbour.delays.check(SLOWEST)
    assert proxy.settles(fds), f"{proxy.descriptors()} descriptors, {fds} before: {proxy.open_files()}"
    assert proxy.status("VmRSS") - rss < MOST
    assert proxy.process is not None and proxy.process.poll() is None
    assert "Traceback" not in proxy.log(), proxy.log()


def converse(proxy: ProxyProcess, data: bytes, *, greeted: bool) -> bytes:
    """Sends `data`, ends our direction, reads to the end; returns all that came. It must come in time."""
    with LmtpClient(proxy.address) as client:
        if greeted:
            client.greet()
        try:
            client.send(data)
            client.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it may have closed already
        answer = b""
        while True:
            try:
                chunk = client.sock.recv(65536)
            except ConnectionError:
                break
            if not chunk:
                break
            answer += chunk
    assert REPLIES.fullmatch(answer), f"{data!r} was answered by {answer!r}"
    return answer


def test_noise(process: ProxyProcess) -> None:
    @fuzz
    @given(data=st.binary(max_size=3000))
    def run(data: bytes) -> None:
        answer = converse(process, data, greeted=False)
        assert answer.startswith(b"220 ")

    with undisturbed(process):
        run()


def test_lines_of_noise(process: ProxyProcess) -> None:
    @fuzz
    @given(lines=st.lists(NOISE, max_size=30), end=st.sampled_from([b"\r\n", b"\n", b"\r"]))
    def run(lines: list[bytes], end: bytes) -> None:
        converse(process, end.join(lines) + end, greeted=True)

    with undisturbed(process):
        run()


def test_command_soup(process: ProxyProcess) -> None:
    @settings(fuzz, max_examples=400)
    @given(soup=SOUPS)
    def run(soup: list[bytes]) -> None:
        converse(process, b"".join(soup), greeted=True)

    with undisturbed(process):
        run()


def test_command_soup_piece_by_piece_and_away(process: ProxyProcess) -> None:
    @settings(fuzz, max_examples=120)
    @given(soup=SOUPS, cut=st.integers(1, 60), reset=st.booleans())
    def run(soup: list[bytes], cut: int, reset: bool) -> None:
        data = b"".join(soup)
        with process.client() as client:
            try:
                for start in range(0, min(len(data), 40 * cut), cut):
                    client.send(data[start : start + cut])
            except OSError:
                return
            if reset:
                client.reset()

    with undisturbed(process):
        run()


def test_every_valid_session_still_counts_its_replies(process: ProxyProcess) -> None:
    """Behind any soup of complete lines that is no message data, a session is in step or closed."""

    @fuzz
    @given(soup=st.lists(st.one_of(COMMANDS, BARE), max_size=10))
    def run(soup: list[bytes]) -> None:
        lines = [line.rstrip(b"\r\n").replace(b"\r", b"").replace(b"\n", b"") for line in soup]
        lines = [line for line in lines if not line.upper().startswith((b"DATA", b"QUIT"))]
        with process.client() as client:
            client.send(b"".join(line + b"\r\n" for line in lines) + b"NOOP in-step\r\n")
            replies = [client.reply() for _ in range(len(lines) + 1)]
            assert replies[-1].code == 250 and client.silent(0.001)

    with undisturbed(process):
        run()


def test_floods(process: ProxyProcess) -> None:
    """Large and ugly, all at once."""
    floods = [
        b"\r\n" * 200_000,
        b"\n" * 200_000,
        b"\0" * 1_000_000,
        b"MAIL FROM:<" + b"x" * 1_000_000 + b">\r\n",
        b"MAIL FROM:<s@x>" + b" SIZE=1" * 200_000 + b"\r\n",
        b"MAIL FROM:<s@x>\r\n" + b"RCPT TO:<u@a>\r\nRSET\r\nMAIL FROM:<s@x>\r\n" * 300,
        b"LHLO x\r\n" * 2000,
        b"MAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\nDATA\r\n" + b".\n" * 500_000,
        (b"MAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\nDATA\r\n" + b".\r\n") * 200,
        b"QUIT\r\n" * 100_000,
    ]

    def flood(data: bytes) -> None:
        with LmtpClient(process.address, timeout=20) as client:
            reader = threading.Thread(target=drain, args=(client.sock,))
            reader.start()
            try:
                client.send(data)
                client.half_close()
            except OSError:
                pass
            reader.join()

    def drain(sock: socket.socket) -> None:
        try:
            while sock.recv(65536):
                pass
        except OSError:
            pass

    with undisturbed(process):
        threads = [threading.Thread(target=flood, args=(data,)) for data in floods]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def test_log_lines_are_escaped(process: ProxyProcess) -> None:
    since = process.mark()
    with process.client() as client:
        for sender, recipient in (
            (b'"a\\\tb\x7f"@x', b'"u>, status=sent \x1b[31m"@a'),
            ("sü@x".encode(), b"u@a"),
        ):
            client.send(b"MAIL FROM:<" + sender + b">\r\nRCPT TO:<" + recipient + b">\r\n")
            client.reply()
            client.reply()
            assert client.command("RSET").positive
        client.quit()
    text = process.log()[since:]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text), repr(text)
