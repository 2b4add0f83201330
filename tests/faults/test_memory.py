"""Memory: a large message costs no more than a small one, a stream of rubbish no more than a line."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from lmtp_proxy.start.late_modules import FOR_MAIL, READS_CONFIG, late_modules
from tests.faults.conftest import Pair
from tests.support.backend import FakeBackend
from tests.support.client import Disconnected
from tests.support.control import add_control
from tests.support.http import add_metrics
from tests.support.package import existing
from tests.support.patience import SOON
from tests.support.proxy import ProxyProcess, config_of
from tests.unit.start.test_late_modules import WITH_ALL

MIB = 1024  # in KiB, as /proc counts
CHUNK = (b"Lorem ipsum dolor sit amet, \xff\xfe consectetur adipisici elit, sed eiusmod " + b"\r\n") * 819


@pytest.fixture
def fresh() -> Iterator[Pair]:
    with (
        FakeBackend(keep_body=False) as a,
        FakeBackend(keep_body=False, transport="tcp") as b,
        ProxyProcess(config_of({"a": a, "b": b}, timeouts={"client_idle": 2})) as proxy,
    ):
        with proxy.client() as client:
            for number in range(5):
                assert client.deliver(f"small{number}@x", ["u@a", "v@b"], CHUNK[:2000] + b"\r\n").verdict(0).positive
            client.quit()
        yield Pair(proxy, a, b)


def test_an_idle_process_has_nothing_in_memory_but_what_it_needs() -> None:
    # OpenSSL comes with smtplib and with HTTP, YAML with the first reload.
    costly = {"_yaml", "_ssl", "_hashlib", "_lzma"}

    def loaded() -> set[str]:
        with open(f"/proc/{proxy.pid}/maps") as maps:
            return costly & {line.rpartition("/")[2].partition(".")[0] for line in maps}

    with FakeBackend() as a, ProxyProcess(config_of({"a": a}), workers=1) as proxy:
        assert loaded() == set()
        with proxy.client() as client:
            assert client.deliver("s@x", ["u@a"]).verdict(0).positive
            client.quit()
        assert loaded() == {"_ssl", "_hashlib"}


def imports_until_ready(workers: int) -> set[str]:
    """What it has imported before it serves, beyond what a Python has at its start; that of workers, too."""
    told = {"PYTHONPROFILEIMPORTTIME": "1"}
    with FakeBackend() as a:
        proxy = ProxyProcess(config_of({"a": a}), workers=workers, environment=told)
        add_control(proxy)
        add_metrics(proxy)
        with proxy:
            imported = proxy.log().partition("| site\n")[2]
    return set(re.findall(r"^import time: .*\| *([\w.]+)$", imported, re.MULTILINE))


def test_an_idle_process_has_imported_nothing_that_it_can_do_without() -> None:
    imported = imports_until_ready(1)
    assert {"lmtp_proxy.clients.server", "lmtp_proxy.figures.samples", "gevent.monkey"} <= imported
    # Python itself imports `unicodedata`, by `encodings.idna`, for the first address of TCP: that of `metrics`.
    late = {"http", "email", *late_modules(WITH_ALL), "lmtp_proxy.web.page"} - {"unicodedata"}
    unused = {"ipaddress", "logging.handlers", "concurrent.futures", "smtplib", "ssl", "yaml", "sqlite3"}
    assert existing(*unused, *late) & imported == set()


def test_workers_and_their_supervisor_have_not_much_more() -> None:
    """They speak HTTP from the beginning."""
    imported = imports_until_ready(2)
    assert {"lmtp_proxy.workers.team", "lmtp_proxy.clients.server", "gevent.pywsgi", "gevent.monkey"} <= imported
    unused = existing("logging.handlers", "smtplib", "yaml", "sqlite3", "lmtp_proxy.web.page", *FOR_MAIL, READS_CONFIG)
    assert unused & imported == set()


def test_a_message_of_200_mib(fresh: Pair) -> None:
    before = fresh.proxy.status("VmHWM")
    count = 200 * 1024 * 1024 // len(CHUNK) + 1
    digest = hashlib.sha256()
    with fresh.proxy.client(timeout=60) as client:
        outcome = client.envelope("large@x", ["u@a", "v@b"])
        for _ in range(count):
            client.send(CHUNK)
            digest.update(CHUNK)
        client.finals_after(outcome, b".\r\n")
        assert outcome.verdict(0).positive and outcome.verdict(1).positive
        client.quit()
    for backend in (fresh.a, fresh.b):
        body = backend.transactions("large@x")[0].body
        assert body is not None and body.size == count * len(CHUNK) and body.sha256 == digest.hexdigest()
    raised = fresh.proxy.status("VmHWM") - before
    assert raised < MIB, f"peak memory rose by {raised} KiB"


def test_a_large_message_without_a_line_end(fresh: Pair) -> None:
    before = fresh.proxy.status("VmHWM")
    with fresh.proxy.client(timeout=30) as client:
        outcome = client.envelope("long@x", ["u@a", "v@b"])
        for piece in (b"." * 65536, b"x" * 65536, b"\r" * 65536, b"\0" * 65536):
            for _ in range(160):
                client.send(piece)
        client.finals_after(outcome, b"\r\n.\r\n")
        assert outcome.verdict(0).positive and outcome.verdict(1).positive
        client.quit()
    assert fresh.proxy.status("VmHWM") - before < MIB


def test_a_command_line_of_10_mb(fresh: Pair) -> None:
    before = fresh.proxy.status("VmHWM")
    with fresh.proxy.client() as client:
        for _ in range(160):
            client.send(b"x" * 65536)
        client.send(b"\r\n")
        assert client.reply().text.startswith("500 5.5.2")
        assert client.deliver("s@x", ["u@a"]).verdict(0).positive
        client.quit()
    assert fresh.proxy.status("VmHWM") - before < MIB


@pytest.mark.parametrize("address", ["u@a", "u@nowhere", "", "not a path>"])
def test_a_hundred_thousand_recipients(fresh: Pair, address: str) -> None:
    """Each gets its reply or the connection is closed; what is kept is bounded by max_recipients."""
    count = 100_000
    before = fresh.proxy.status("VmHWM")
    begun = time.monotonic()
    with fresh.proxy.client(timeout=20) as client:
        assert client.command("MAIL FROM:<s@x>").positive

        def flood() -> None:
            try:
                for _ in range(count // 1000):
                    client.send(f"RCPT TO:<{address}>\r\n".encode() * 1000)
                client.send(b"NOOP\r\nQUIT\r\n")
            except OSError:
                pass  # it may close the connection

        writer = threading.Thread(target=flood)
        writer.start()
        codes: dict[int, int] = {}
        try:
            while (reply := client.at_end_or_reply()) is not None:
                codes[reply.code] = codes.get(reply.code, 0) + 1
        finally:
            writer.join(20)
    if address in ("u@a", "u@nowhere"):
        assert sum(codes.values()) == count + 2 or 221 not in codes, codes
    if address == "u@a":
        assert codes[250] <= 1001
    assert time.monotonic() - begun < 2 * SOON
    assert fresh.proxy.status("VmHWM") - before < 4 * MIB


@pytest.mark.parametrize("line", [b"NOOP\r\n", b"HELP\r\n", b"VRFY x\r\n", b"RCPT TO:<x>\r\n", b"LHLO x\r\n"])
def test_a_client_that_reads_no_replies(fresh: Pair, line: bytes) -> None:
    """Replies are not collected without end: reading stops, and in the end the client is let go."""
    before, fds = fresh.proxy.status("VmHWM"), fresh.proxy.descriptors()
    with fresh.proxy.client() as client:
        client.sock.settimeout(0.5)
        written = 0
        try:
            while written < 64 << 20:
                written += client.sock.send(line * 4000)
        except (TimeoutError, ConnectionError):
            pass
        assert written < 64 << 20, "it goes on reading although nobody takes its replies"
        with fresh.proxy.client() as other:
            assert other.deliver("s@x", ["u@a"]).verdict(0).positive
            other.quit()
        assert fresh.proxy.settles(fds), "the client is never let go"
    assert fresh.proxy.status("VmHWM") - before < 4 * MIB


def test_a_thousand_idle_sessions_and_away_again() -> None:
    with FakeBackend() as a, ProxyProcess(config_of({"a": a}, max_clients=600)) as proxy:
        fds = proxy.descriptors()
        clients = [proxy.client(greeted=False) for _ in range(500)]
        try:
            for client in clients:
                client.greet()
            assert proxy.status("VmRSS") < 120 * MIB
        finally:
            for client in clients:
                client.close()
        assert proxy.settles(fds)
        with proxy.client() as client:
            assert client.deliver("s@x", ["u@a"]).verdict(0).positive
            client.quit()


def test_bytes_after_quit_are_ignored(fresh: Pair) -> None:
    with fresh.proxy.client() as client:
        with suppress(ConnectionError):  # it need not read them
            client.send(b"QUIT\r\nMAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\nDATA\r\n" + b"x" * 300_000)
        assert client.reply().code == 221
        with pytest.raises(Disconnected):
            client.reply()
    assert not fresh.a.transactions("s@x")
