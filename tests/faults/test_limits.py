"""Limits: connections to a backend, clients, who may connect, recipients, errors in a row, the length of a command."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest

from tests.faults.conftest import Pair
from tests.support.backend import FakeBackend
from tests.support.client import Disconnected, LmtpClient
from tests.support.patience import SOON
from tests.support.proxy import ProxyProcess, config_of


def limited(backend: FakeBackend, connections: int, connect: float) -> dict[str, dict[str, object]]:
    config = config_of({"a": backend}, timeouts={"connect": connect})
    config["backends"]["a"] = {**backend.config, "max_connections": connections, "max_per_user": 100}
    return config


def begin(client: LmtpClient, sender: str) -> None:
    client.send(f"MAIL FROM:<{sender}>\r\nRCPT TO:<u@a>\r\n".encode())
    assert client.reply().code == 250


def test_a_full_pool_defers_after_the_connect_time() -> None:
    with FakeBackend() as backend, ProxyProcess(limited(backend, 2, 0.6), workers=1) as proxy:
        with proxy.client() as one, proxy.client() as two, proxy.client() as three:
            for client, sender in ((one, "1@x"), (two, "2@x")):
                begin(client, sender)
                assert client.reply().positive
            begun = time.monotonic()
            begin(three, "3@x")
            assert three.reply().text.startswith("451 4.3.2")
            assert 0.4 < time.monotonic() - begun < SOON
            assert len(backend.connections) == 2
            three.quit()
            one.quit()
            two.quit()
        with proxy.client() as client:
            assert client.deliver("4@x", ["u@a"]).verdict(0).positive
            client.quit()


def test_a_place_in_the_pool_that_comes_free_is_taken() -> None:
    with FakeBackend() as backend, ProxyProcess(limited(backend, 1, 3 * SOON)) as proxy:
        with proxy.client() as one, proxy.client() as two:
            begin(one, "1@x")
            assert one.reply().positive
            two.send(b"MAIL FROM:<2@x>\r\nRCPT TO:<u@a>\r\n")
            time.sleep(0.3)
            assert len(backend.connections) == 1
            one.quit()
            assert two.reply().positive
            assert two.reply().positive
            two.quit()
        assert backend.wait_closed(2)


def test_what_is_known_is_said_before_a_wait_for_the_pool() -> None:
    with (
        FakeBackend() as backend,
        ProxyProcess(limited(backend, 1, 3 * SOON)) as proxy,
        proxy.client() as one,
        proxy.client() as two,
    ):
        begin(one, "1@x")
        assert one.reply().positive
        begin(two, "2@x")  # the reply to MAIL does not wait for a place in the pool


def test_a_client_that_leaves_the_queue_of_a_pool_takes_no_place() -> None:
    with FakeBackend() as backend, ProxyProcess(limited(backend, 1, 3 * SOON)) as proxy:
        with proxy.client() as one:
            begin(one, "1@x")
            assert one.reply().positive
            for _ in range(3):
                with proxy.client() as waiting:
                    waiting.send(b"MAIL FROM:<w@x>\r\nRCPT TO:<u@a>\r\n")
                    time.sleep(0.1)
            time.sleep(3.0)  # a client that vanished is noticed within a second
            one.quit()
        with proxy.client() as client:
            assert client.deliver("2@x", ["u@a"]).verdict(0).positive
            client.quit()
        assert len(backend.connections) == 2


def test_many_clients_through_a_small_pool() -> None:
    with FakeBackend() as backend, ProxyProcess(limited(backend, 3, 3 * SOON)) as proxy:
        clients = [proxy.client() for _ in range(12)]
        try:
            for number, client in enumerate(clients):
                client.send(f"MAIL FROM:<{number}@x>\r\nRCPT TO:<u@a>\r\nDATA\r\n".encode())
                assert client.reply().code == 250  # MAIL does not wait for a place
            waiting = set(clients)
            while waiting:
                for client in list(waiting):
                    if client.silent(0.01):
                        continue
                    assert [client.reply().code for _ in range(2)] == [250, 354]
                    client.send(b"x\r\n.\r\n")
                    assert client.reply().positive
                    client.quit()
                    waiting.remove(client)
        finally:
            for client in clients:
                client.close()
        assert len(backend.transactions()) == 12


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_clients_above_the_limit_wait_in_the_backlog(tcp: bool) -> None:
    with (
        FakeBackend() as backend,
        ProxyProcess(config_of({"a": backend}, max_clients=2), tcp=tcp) as proxy,
        proxy.client() as one,
        proxy.client() as two,
        proxy.client(greeted=False) as three,
    ):
        assert three.silent(0.4), "no greeting and no 421 above the limit"
        one.quit()
        three.greet()
        with proxy.client(greeted=False) as four:
            assert four.silent(0.2)
            two.reset()
            four.greet()
            assert four.deliver("4@x", ["u@a"]).verdict(0).positive
            four.quit()
        assert three.deliver("3@x", ["u@a"]).verdict(0).positive
        three.quit()


def test_only_permitted_networks_may_connect() -> None:
    with FakeBackend() as backend:
        config = config_of({"a": backend}, allow=["127.0.0.0/30", "::1"])
        with ProxyProcess(config, tcp=True) as proxy:
            for source, first in (
                ("127.0.0.9", b""),
                ("127.9.9.9", b"LHLO x\r\nMAIL FROM:<s@x>\r\n"),
                ("127.9.9.9", b"x" * 99999),
            ):
                with proxy.client(greeted=False, source=source) as stranger:
                    stranger.send(first)
                    # Exim, Sendmail and Haraka bounce all mail at once on a 5xx here.
                    assert stranger.reply().text.startswith("421 4.7.1")
                    assert stranger.at_end()
            with proxy.client(source="127.0.0.2") as friend:
                assert friend.deliver("s@x", ["u@a"]).verdict(0).positive
                friend.quit()


def test_recipients_above_the_limit() -> None:
    with (
        FakeBackend() as backend,
        ProxyProcess(config_of({"a": backend}, max_recipients=3)) as proxy,
        proxy.client() as client,
    ):
        outcome = client.deliver("s@x", [f"u{number}@a" for number in range(30)])
        assert [reply.text[:9] for reply in outcome.rcpts] == ["250 2.1.5"] * 3 + ["452 4.5.3"] * 27
        assert [outcome.verdict(position).positive for position in range(3)] == [True] * 3
        assert client.deliver("t@x", ["u@a"]).verdict(0).positive
        client.quit()


def test_twenty_errors_in_a_row_end_the_session(pair: Pair) -> None:
    with pair.proxy.client() as client:
        replies = 0
        for _ in range(25):
            try:
                client.send(b"BOGUS\r\n")
            except OSError:
                break
            if client.at_end_or_reply() is None:
                break
            replies += 1
        assert 19 <= replies <= 21, replies


def test_errors_that_are_not_in_a_row_do_not(pair: Pair) -> None:
    with pair.proxy.client() as client:
        for _ in range(4):
            for _ in range(15):
                assert client.command("BOGUS").code == 500
            assert client.command("NOOP").code == 250
        client.quit()


def test_pipelined_errors_end_the_session_cleanly(pair: Pair) -> None:
    with pair.proxy.client() as client:
        client.send(b"BOGUS\r\n" * 2000)
        count = 0
        while client.at_end_or_reply() is not None:
            count += 1
        assert 19 <= count <= 22, count


@pytest.mark.parametrize("length", [2047, 2048, 2049, 2050, 4096, 70_000, 300_000])
def test_the_length_of_a_command(pair: Pair, length: int) -> None:
    with pair.proxy.client() as client:
        line = b"NOOP " + b"x" * (length - 7) + b"\r\n"
        assert len(line) == length
        client.send(line)
        reply = client.reply()
        if length <= 2048:
            assert reply.code == 250
        elif length > 2050:  # whether the line end counts is not settled
            assert reply.text.startswith("500 5.5.2")
        assert client.command("NOOP").code == 250, "out of step"
        assert client.deliver("s@x", ["u@a"]).verdict(0).positive
        client.quit()


def test_sequence_and_syntax(pair: Pair) -> None:
    with LmtpClient(pair.proxy.address) as client:
        assert client.reply().code == 220
        for line, expected in (
            ("HELO x", "500 5"),
            ("EHLO x", "500 5"),
            ("RCPT TO:<u@a>", "503 5.5.1"),
            ("DATA", "503 5.5.1"),
            ("lhlo x", "250"),
            ("MAIL", "501 5.5.4"),
            ("MAIL FROM:s@x", "501 5.5.4"),
            ("MAIL FROM:<s@x> FOO=1", "555 5.5.4"),
            ("MAIL FROM:<s@x> RET=HDRS", "555 5.5.4"),
            ("MAIL FROM:<s@x> BODY=BINARYMIME", "5"),
            ("mail from:<s@x> body=7bit", "250 2"),
            ("MAIL FROM:<t@x>", "503 5.5.1"),
            ("RCPT TO:<u@a> NOTIFY=NEVER", "555 5.5.4"),
            ("DATA", "503 5.5.1"),
            ("VRFY u", "252 2"),
            ("HELP", "214"),
            ("STARTTLS", "5"),
            ("AUTH PLAIN AAAA", "5"),
            ("BDAT 10 LAST", "5"),
            ("rcpt to:<u@a>", "250 2.1.5"),
            ("NOOP whatever", "250 2"),
            ("RSET", "250 2"),
            ("DATA", "503 5.5.1"),
            ("QUIT", "221 2"),
        ):
            client.send(line.encode() + b"\r\n")
            reply = client.reply()
            whole = f"{reply.code} {reply.lines[-1].decode()}"
            assert whole.startswith(expected), (line, reply)
        assert client.at_end()


def test_lhlo_begins_anew(pair: Pair) -> None:
    with pair.proxy.client() as client:
        client.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\n")
        assert client.reply().positive and client.reply().positive
        assert client.command("LHLO again").code == 250
        assert pair.a.wait_closed(1)
        assert client.command("RCPT TO:<u@a>").text.startswith("503 5.5.1")
        assert client.deliver("t@x", ["u@a"]).verdict(0).positive
        client.quit()


def test_without_free_descriptors_it_goes_on_as_soon_as_there_are_some() -> None:
    with FakeBackend() as backend, ProxyProcess(config_of({"a": backend}, max_clients=1000)) as proxy:
        used = proxy.descriptors()
        resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (used + 12, used + 12))
        clients: list[LmtpClient] = []
        try:
            clients += [proxy.client(greeted=False) for _ in range(30)]
            time.sleep(0.3)
            before = cpu_ticks(proxy.pid)
            time.sleep(1)
            assert cpu_ticks(proxy.pid) - before < 50, "it spins"
            assert proxy.process is not None and proxy.process.poll() is None
        finally:
            for client in clients:
                client.close()
        deadline = time.monotonic() + SOON
        while True:
            try:
                with proxy.client(timeout=2) as client:
                    assert client.deliver("s@x", ["u@a"]).verdict(0).positive
                    client.quit()
                break
            except (AssertionError, OSError, Disconnected):
                assert time.monotonic() < deadline, proxy.log()[-3000:]


def test_a_backend_that_no_descriptor_is_left_for_is_deferred() -> None:
    with (
        FakeBackend() as backend,
        ProxyProcess(config_of({"a": backend}), workers=1) as proxy,  # the limit is that of one process
        proxy.client() as client,
    ):
        used = proxy.descriptors()
        _, hard = resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (used, hard))
        assert client.deliver("s@x", ["u@a", "v@a"]).verdict(0).code == 451
        resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (used + 50, hard))
        time.sleep(1.1)  # after a failed connect nobody tries for a second
        assert client.deliver("t@x", ["u@a"]).verdict(0).positive
        client.quit()


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
