"""A listening socket that is passed to the process (LISTEN_FDS), and the word that it is ready (NOTIFY_SOCKET)."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.backend import FakeBackend
from tests.support.client import LmtpClient
from tests.support.passed import PassedSocketProxy, listening_unix
from tests.support.patience import SOON
from tests.support.proxy import ProxyProcess, config_of


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with listening_unix(str(tmp_path / "s")) as listener:
        yield listener


def deliver(client: LmtpClient) -> None:
    assert client.deliver("s@x", ["u@a"]).verdict(0).positive


def test_it_is_used_in_place_of_the_configured_one_and_stays(listener: socket.socket) -> None:
    path = listener.getsockname()
    with FakeBackend() as backend, PassedSocketProxy(config_of({"a": backend}), listener) as proxy:
        assert re.search(rf"config\.socket: {proxy.address} is not used: .* listens on {path}", proxy.log())
        assert not os.path.exists(str(proxy.address))
        with LmtpClient(path) as client:
            client.greet()
            deliver(client)
        assert proxy.stop() == 0
        assert os.path.exists(path), "it is not ours to take away"

        waiting = LmtpClient(path)  # nobody runs now
        proxy.start()
        waiting.greet()
        deliver(waiting)
        waiting.close()


def test_nothing_is_said_when_it_is_the_configured_one(listener: socket.socket) -> None:
    config = config_of({"a": FakeBackend()}, socket=listener.getsockname())
    with PassedSocketProxy(config, listener) as proxy:
        assert "not used" not in proxy.log()


def test_tcp() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        FakeBackend() as backend,
        PassedSocketProxy(config_of({"a": backend}), listener) as proxy,
        LmtpClient(listener.getsockname()) as client,
    ):
        assert f"listens on 127.0.0.1:{listener.getsockname()[1]}" in proxy.log()
        client.greet()
        deliver(client)


def test_a_daemon_takes_it_too(listener: socket.socket) -> None:
    with FakeBackend() as backend:
        proxy = PassedSocketProxy(config_of({"a": backend}, log={"syslog": "/nonexistent"}), listener)
        try:
            assert proxy.spawn(["-D", "-c", proxy.config_path]).wait(SOON) == 0, proxy.log()
            with LmtpClient(listener.getsockname()) as client:
                client.greet()
                deliver(client)
        finally:
            pid = int(Path(proxy.pid_path).read_text())
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + SOON
            while os.path.exists(proxy.pid_path) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not os.path.exists(proxy.pid_path)
            proxy.close()


def refusal(proxy: PassedSocketProxy) -> str:
    """What it says when it is started, which must be one line and status 1."""
    try:
        assert proxy.spawn().wait(SOON) == 1, proxy.log()
        [line] = proxy.log().splitlines()
        return line
    finally:
        proxy.close()


@pytest.mark.parametrize("count", ["2", "many", "-1"])
def test_more_than_one_is_refused(count: str, listener: socket.socket) -> None:
    line = refusal(PassedSocketProxy(config_of({"a": FakeBackend()}), listener, count=count))
    assert f"config.socket: LISTEN_FDS={count}: one socket can be passed" in line


def test_a_socket_that_does_not_listen_is_refused() -> None:
    one, other = socket.socketpair()
    with one, other:
        line = refusal(PassedSocketProxy(config_of({"a": FakeBackend()}), one))
    assert "does not listen" in line and "Accept=no" in line


def test_what_is_no_socket_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        line = refusal(PassedSocketProxy(config_of({"a": FakeBackend()}), file))  # type: ignore[arg-type]
    assert "descriptor 3 is no socket" in line


def test_a_backend_on_it_is_a_loop(listener: socket.socket) -> None:
    config = config_of({"a": FakeBackend()})
    config["backends"]["a"] = {"socket": listener.getsockname()}
    assert "mail would go in circles" in refusal(PassedSocketProxy(config, listener))


def test_what_means_another_process_is_left_alone() -> None:
    with FakeBackend() as backend:
        environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
        with ProxyProcess(config_of({"a": backend}), environment=environment) as proxy, proxy.client() as client:
            deliver(client)


@pytest.mark.parametrize("abstract", [False, True])
def test_ready_is_said_when_clients_are_served(abstract: bool, tmp_path: Path) -> None:
    name = f"@lmtp-proxy-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, FakeBackend() as backend:
        notify.bind("\0" + name[1:] if abstract else name)
        notify.settimeout(10)
        with ProxyProcess(config_of({"a": backend}), environment={"NOTIFY_SOCKET": name}) as proxy:
            assert notify.recv(200) == b"READY=1\nSTATUS=generation 1: 1 users, 1 backends"
            with proxy.client() as client:
                deliver(client)
            proxy.stop()
            assert notify.recv(200) == b"STOPPING=1\nSTATUS=stopping: no new clients are accepted"
            notify.settimeout(0.1)
            with pytest.raises(TimeoutError):
                notify.recv(200)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_outcome_of_a_reload_is_said_and_that_it_is_alive(workers: int, tmp_path: Path) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, FakeBackend() as backend:
        notify.bind(name)
        notify.settimeout(10)
        environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "400000"}
        with ProxyProcess(config_of({"a": backend}), environment=environment, workers=workers) as proxy:
            while b"READY=1" not in notify.recv(500):  # which may come after the first client was let in
                pass
            notify.setblocking(False)
            with suppress(BlockingIOError):
                while True:  # of the time in which it came to serve
                    notify.recv(500)
            notify.settimeout(10)
            began = time.monotonic()
            assert [notify.recv(500).decode() for _ in range(6)] == ["WATCHDOG=1"] * 6
            assert time.monotonic() - began > 0.9, "each 0.2 s"
            proxy.config["users"]["@b"] = "a"
            proxy.reload()
            while (said := notify.recv(500).decode()) == "WATCHDOG=1":
                pass
            assert said == "STATUS=generation 2: 2 users (1 added, 0 removed, 0 moved), 1 backends"
            proxy.write_config("nonsense")
            proxy.signal_reload()
            while (said := notify.recv(500).decode()) == "WATCHDOG=1":
                pass
            assert said.startswith(f"STATUS=the last reload was refused: {proxy.config_path}:1: ")


@pytest.mark.parametrize("variables", [{}, {"WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "x"}])
def test_a_watchdog_of_somebody_else_hears_nothing(variables: dict[str, str], tmp_path: Path) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, FakeBackend() as backend:
        notify.bind(name)
        notify.settimeout(10)
        with ProxyProcess(config_of({"a": backend}), environment={"NOTIFY_SOCKET": name, **variables}):
            assert notify.recv(500).startswith(b"READY=1")
            notify.settimeout(0.3)
            with pytest.raises(TimeoutError):
                notify.recv(500)


def test_nobody_hears_that_it_is_ready(tmp_path: Path) -> None:
    with FakeBackend() as backend:
        environment = {"NOTIFY_SOCKET": str(tmp_path / "nobody")}
        with ProxyProcess(config_of({"a": backend}), environment=environment) as proxy, proxy.client() as client:
            proxy.wait_log("NOTIFY_SOCKET=.*/nobody: cannot say that lmtp-proxy is ready: No such file")
            deliver(client)


def test_who_has_just_connected_delivers_while_it_stops() -> None:
    """Postfix takes a 421 before MAIL for a reason to defer, and connected because it has mail."""
    with FakeBackend() as backend, ProxyProcess(config_of({"a": backend})) as proxy:
        with proxy.client() as idle, proxy.client(greeted=False) as client:
            assert idle.deliver("s@x", ["u@a"]).verdict(0).positive
            client.reply()
            proxy.signal(signal.SIGTERM)
            client.command("LHLO client")
            deliver(client)
            for each in (idle, client):  # who may still say QUIT, for a moment
                assert each.reply().code == 421, "one transaction, as everybody has"
        assert proxy.wait() == 0


def test_who_has_just_connected_and_says_nothing_is_told_soon() -> None:
    with FakeBackend() as backend, ProxyProcess(config_of({"a": backend})) as proxy, proxy.client() as client:
        begun = time.monotonic()
        proxy.signal(signal.SIGTERM)
        assert client.reply().code == 421
        assert time.monotonic() - begun < SOON
        assert proxy.wait() == 0
