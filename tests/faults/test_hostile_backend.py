# SPDX-License-Identifier: GPL-3.0-or-later
"""What backends did to the proxy in an attack on it: each of these once hurt others, the log or a deadline."""

from __future__ import annotations

import base64
import fcntl
import re
import signal
import socket
import sys
import termios
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from tests.faults.conftest import Pair
from tests.support.backend import FakeBackend
from tests.support.patience import SOON
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import Await, BodyTrigger, Hang, Pause, Script, Stall, raw, say


def test_a_reply_line_of_almost_the_limit_and_a_bare_lf_hurts_nobody_else(pair: Pair) -> None:
    for length in (4089, 4090, 4091, 4092):
        pair.a.script = Script(final=raw(b"250 " + b"x" * length + b"\n"))
        with pair.proxy.client() as client:
            outcome = client.deliver("s@x", ["u@a", "v@b"])
            assert outcome.verdict(1).text == "250 2.0.0 stored"
            assert outcome.verdict(0).code in (250, 451)
            client.quit()


def test_replies_cannot_fill_the_memory(pair: Pair) -> None:
    before = pair.proxy.status("VmHWM")
    line = b"x" * 4000
    pair.a.script = Script(rcpt=raw((b"550-" + line + b"\r\n") * 150 + b"550 " + line + b"\r\n"))
    with pair.proxy.client() as client:
        outcome = client.envelope("s@x", [*(f"u{number}@a" for number in range(100)), "v@b"])
        assert [reply.text[:9] for reply in outcome.rcpts[:100]] == ["451 4.3.0"] * 100
        assert outcome.rcpts[100].positive
    assert pair.proxy.status("VmHWM") - before < 4 << 20


def test_no_reply_writes_log_lines_of_its_own(pair: Pair) -> None:
    since = pair.proxy.mark()
    forged = "deadbeef: from=<s@x>, to=<ceo@x>, status=sent (250 2.0.0 forged)"
    pair.a.script = Script(lhlo=say("550-go away", f"550-{forged}", "550 \x1b[2J\x7fend"))
    with pair.proxy.client() as client:
        assert client.envelope("s@x", ["u@a"]).rcpts[0].text.startswith("451 4.3.0")
        client.quit()
    pair.proxy.wait_log("to=<u@a>", since=since)
    for line in pair.proxy.log().splitlines():
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [+-]\d{4} [A-Z]+ ", line), line
        assert line.isprintable()


def test_a_password_that_the_backend_repeats_is_not_logged() -> None:
    secret = "correct horse battery"
    repeated = base64.b64encode(f"\0me\0{secret}".encode()).decode()
    script = Script(offer=("PIPELINING", "AUTH PLAIN"), auth=say(f"501 5.5.4 bad command: AUTH PLAIN {repeated}"))
    with FakeBackend(script) as backend:
        config = config_of({"a": backend})
        config["backends"]["a"] = {**backend.config, "user": "me", "password": secret}
        with ProxyProcess(config) as proxy:
            with proxy.client() as client:
                assert client.envelope("s@x", ["u@a"]).rcpts[0].text.startswith("451 4.7.0")
                client.quit()
            proxy.wait_log("to=<u@a>")
            log = proxy.log()
    assert "501" in log
    assert repeated not in log
    assert secret not in log


def test_a_backend_has_its_own_deadline_for_the_final_reply() -> None:
    with FakeBackend(Script(final=(Hang(),))) as backend:
        config = config_of({"a": backend}, timeouts={"final_reply": 60})
        config["backends"]["a"] = {**backend.config, "timeouts": {"final_reply": 0.5}}
        with ProxyProcess(config) as proxy, proxy.client() as client:
            began = time.monotonic()
            assert client.deliver("s@x", ["u@a"]).verdict(0).text.startswith("451 4.4.2")
            assert time.monotonic() - began < SOON
            client.quit()


def test_the_final_reply_counts_from_the_dot_that_waits_behind_a_stalled_backend() -> None:
    """The client has written all: its patience runs while the backend, and so the proxy, takes in nothing."""
    stalled, limit = 6.0, 8.0
    script = Script(body=BodyTrigger(1000, (Stall(stalled),)), final=(Hang(),))
    with FakeBackend(script) as backend:
        config = config_of({"a": backend}, timeouts={"final_reply": limit, "data_write": 30})
        with ProxyProcess(config) as proxy, proxy.client() as client:
            outcome = client.envelope("s@x", ["u@a"])
            client.send((b"x" * 78 + b"\r\n") * 4000 + b".\r\n")
            began = time.monotonic()
            client.finals(outcome)
            took = time.monotonic() - began
            assert outcome.verdict(0).text.startswith("451 4.4.2")
            late = f"answered {took:.1f} s after the client's dot, {limit:g} were allowed"
            assert took < limit + 0.7 * stalled, late  # counted from the dot that goes out it were the sum
            client.quit()


def test_a_client_that_reads_slowly_gets_its_final_replies_although_the_proxy_stops() -> None:
    go = threading.Event()
    script = Script(final=(Await(go), *say("250 2.0.0 " + "x" * 1000)))
    with FakeBackend(script) as backend, ProxyProcess(config_of({"a": backend})) as proxy, proxy.client() as client:
        outcome = client.envelope("s@x", [f"u{number}@a" for number in range(600)])
        client.send(b"x\r\n.\r\n")
        assert backend.wait_for(lambda: bool(backend.transactions()) and backend.transactions()[0].dotted)
        proxy.signal(signal.SIGTERM)
        time.sleep(0.2)
        go.set()
        time.sleep(2.0)
        client.finals(outcome)
        assert all(outcome.verdict(position).positive for position in range(600))
        assert client.reply().code == 421
        assert proxy.wait() == 0


def test_a_dot_that_found_no_room_is_not_sent_after_the_route_changed(tmp_path: Path) -> None:
    """Some of these messages fill the store's socket buffer to the last octet, so that their dot has to wait."""
    sizes = range(200_000, 296_000, 3000)
    read = threading.Event()
    path = str(tmp_path / "old")
    stores: dict[bytes, socket.socket] = {}
    dots: dict[bytes, bool] = {}

    def serve(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            converse(connection, stream)

    def converse(connection: socket.socket, stream: BinaryIO) -> None:
        connection.sendall(b"220 old\r\n")
        user = b""
        while line := stream.readline():
            if line.upper().startswith(b"LHLO"):
                connection.sendall(b"250-old\r\n250 SIZE\r\n")
                continue
            if line.upper().startswith(b"DATA"):
                connection.sendall(b"354 go\r\n")
                stores[user] = connection
                read.wait(20)
                end = b""
                while not end.endswith(b"\r\n.\r\n") and (piece := connection.recv(65536)):
                    end = (end + piece)[-5:]
                dots[user] = end == b"\r\n.\r\n"
                if dots[user]:
                    connection.sendall(b"250 2.0.0 stored in old\r\n")
                return
            user = line
            connection.sendall(b"250 2.1.0 ok\r\n")

    with socket.socket(socket.AF_UNIX) as listener, FakeBackend() as new:
        listener.bind(path)
        listener.listen(100)

        def accept() -> None:
            while True:
                try:
                    connection = listener.accept()[0]
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        config = config_of({"new": new}, {f"u{size}@x": "old" for size in sizes})
        config["backends"]["old"] = {"socket": path, "max_connections": 100}
        with ProxyProcess(config) as proxy, ExitStack() as clients:
            sent = []
            for size in sizes:
                client = clients.enter_context(proxy.client(timeout=20))
                outcome = client.envelope("s@x", [f"u{size}@x"])
                client.send(b"x" * (size - 2) + b"\r\n.\r\n")
                sent.append((size, client, outcome))
            time.sleep(1.0)
            proxy.config["users"] = {f"u{size}@x": "new" for size in sizes}
            proxy.reload()
            there = {}
            for user, connection in stores.items():
                octets = fcntl.ioctl(connection.fileno(), termios.FIONREAD, bytes(4))
                there[user] = int.from_bytes(octets, sys.byteorder)
            read.set()
            while len(dots) < len(sizes):
                time.sleep(0.01)
            refused = 0
            for size, client, outcome in sent:
                user = f"RCPT TO:<u{size}@x>\r\n".encode()
                client.finals(outcome)
                verdict = outcome.verdict(0)
                refused += verdict.text.startswith("451 4.2.1")
                assert dots[user] == verdict.positive, (size, verdict)
                assert not dots[user] or there[user] == size + 3, f"{size}: the dot went out after the reload"
            assert 0 < refused < len(sizes), "the sizes do not straddle the socket buffer"
        listener.shutdown(socket.SHUT_RDWR)


def test_a_client_that_took_no_replies_gets_no_second_message_delivered() -> None:
    late = (Pause(2.5), *say("250 2.0.0 late"))
    script = Script(final=say("250 2.0.0 " + "x" * 4000), final_by={"u499@a": late})
    with FakeBackend(script) as backend:
        config = config_of({"a": backend}, timeouts={"client_idle": 1})
        with ProxyProcess(config) as proxy, proxy.client() as client:
            client.envelope("first@x", [f"u{number}@a" for number in range(500)])
            client.send(b"x\r\n.\r\nMAIL FROM:<second@x>\r\nRCPT TO:<u@a>\r\nDATA\r\ny\r\n.\r\n")
            proxy.wait_log("from=<first@x>, to=<u499@a>")
            proxy.wait_log("from=<second@x>.*status=aborted")
            assert not any(seen.sender == "second@x" and seen.dotted for seen in backend.transactions())


def test_half_closed_clients_that_wait_do_not_stop_the_others() -> None:
    with FakeBackend(Script(data=(Hang(),))) as backend:
        config = config_of({"a": backend}, timeouts={"shutdown": 0.5})
        config["backends"]["a"] = {**backend.config, "max_connections": 100, "max_per_user": 100}
        with ProxyProcess(config) as proxy, ExitStack() as clients:
            for _ in range(40):
                client = clients.enter_context(proxy.client())
                client.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\n")
                assert client.reply().positive
                assert client.reply().positive
                client.send(b"DATA\r\n" + b"\n.\n." * 30_000 + b"\r\n.\r\n")
                client.half_close()
            time.sleep(2)
            began = time.monotonic()
            with proxy.client() as client:
                assert client.command("NOOP").positive
                client.quit()
            assert time.monotonic() - began < SOON, "the event loop is busy with clients that wait"
