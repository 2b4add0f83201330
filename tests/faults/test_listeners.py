"""Several listening sockets: one proxy, one limit of clients, each with its own rules, all gone at the end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.conftest import Move
from tests.faults.test_ctl import run
from tests.support.backend import FakeBackend
from tests.support.client import LmtpClient
from tests.support.ctl import controlled
from tests.support.passed import PassedSocketProxy
from tests.support.patience import SOON
from tests.support.proxy import BOTH_MODES, PROGRAM, ProxyProcess, config_of, free_tcp_address

Place = str | tuple[str, int]


@dataclass
class Places:
    """A proxy with a second unix socket and a TCP socket, beside the one that tests know."""

    proxy: ProxyProcess
    backend: FakeBackend
    unix: str
    tcp: tuple[str, int]

    @property
    def all(self) -> list[Place]:
        return [self.proxy.address, self.unix, self.tcp]


def several(backend: FakeBackend, **settings: object) -> Places:
    proxy = controlled({"a": backend}, None, **settings)
    tcp, unix = free_tcp_address(), f"{proxy.directory}/second"
    proxy.config["config"]["socket"] = [proxy.address, unix, list(tcp)]
    proxy.write_config()
    return Places(proxy, backend, unix, tcp)


@pytest.fixture
def places() -> Iterator[Places]:
    with FakeBackend() as backend:
        found = several(backend, permissions="0622", max_clients=6)
        with found.proxy:
            yield found


def deliver(place: Place) -> None:
    with LmtpClient(place) as client:
        client.greet()
        assert client.deliver("s@x", ["u@a"]).verdict(0).positive
        client.quit()


@BOTH_MODES
def test_mail_comes_in_by_each_and_all_are_named(places: Places) -> None:
    for place in (*places.all, *places.all):
        deliver(place)
    assert len(places.backend.transactions()) == 6
    shown = [str(places.proxy.address), places.unix, f"{places.tcp[0]}:{places.tcp[1]}"]
    assert f" on {' and '.join(shown)}, generation 1 of " in places.proxy.log()
    move = Move(places.backend, places.backend, places.proxy)
    assert run(move, "--json", "status").document["sockets"] == shown
    assert os.stat(places.unix).st_mode & 0o777 == os.stat(shown[0]).st_mode & 0o777 == 0o622
    assert places.proxy.stop() == 0
    assert not os.path.exists(places.unix) and not os.path.exists(shown[0])
    with socket.socket() as client, pytest.raises(ConnectionRefusedError):
        client.connect(places.tcp)


def greeted(client: LmtpClient, seconds: float) -> bool:
    client.sock.settimeout(seconds)
    try:
        return client.sock.recv(1, socket.MSG_PEEK) == b"2"
    except TimeoutError:
        return False


def test_the_limit_of_clients_is_that_of_all_together(places: Places) -> None:
    """Six at once; who leaves on one socket makes room for who waits on another."""
    clients = [LmtpClient(place) for place in places.all * 2]
    assert all(greeted(client, SOON) for client in clients)
    waiting = [LmtpClient(place) for place in places.all]
    assert not any(greeted(client, 0.2) for client in waiting)
    for number in range(3):
        clients[number].close()
        deadline = time.monotonic() + SOON
        while sum(greeted(client, 0.02) for client in waiting) <= number:
            assert time.monotonic() < deadline
    assert sum(greeted(client, 0.1) for client in waiting) == 3
    for client in (*clients, *waiting):
        client.close()
    for place in places.all:
        deliver(place)


def test_who_may_connect_is_a_rule_for_tcp_alone() -> None:
    with FakeBackend() as backend:
        places = several(backend, allow="192.0.2.0/24")
        with places.proxy:
            deliver(places.unix)
            with socket.create_connection(places.tcp) as client:
                assert client.recv(100).startswith(b"421 4.7.1 ")


def test_one_that_cannot_be_bound_leaves_nothing_behind() -> None:
    with FakeBackend() as backend, socket.create_server(("127.0.0.1", 0)) as taken:
        places = several(backend)
        places.proxy.config["config"]["socket"] = [places.unix, list(taken.getsockname())]
        places.proxy.write_config()
        done = subprocess.run(
            [sys.executable, str(PROGRAM), "-c", places.proxy.config_path], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert (
            f"config.socket: cannot listen on 127.0.0.1:{taken.getsockname()[1]}: Address already in use" in done.stderr
        )
        assert not os.path.exists(places.unix)
        places.proxy.close()


def test_check_prints_how_it_was_read(tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    for value, shown in (
        ("[localhost, 2424]", "localhost:2424"),
        ("[/run/a, /run/b]", "/run/a and /run/b"),
        ("[[localhost, 2424], /run/b]", "localhost:2424 and /run/b"),
    ):
        path.write_text(f"config:\n  socket: {value}\n")
        done = subprocess.run(
            [sys.executable, str(PROGRAM), "--check", "-c", str(path)], capture_output=True, text=True, check=False
        )
        assert done.stdout.endswith(f"{path}: OK: 0 users, 0 backends, on {shown}\n"), done


@BOTH_MODES
def test_a_passed_socket_is_named_by_its_own_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, FakeBackend() as backend:
        config = config_of({"a": backend}, socket=["/nowhere/a", "/nowhere/b"])
        with PassedSocketProxy(config, listener) as proxy:
            own = f"127.0.0.1:{listener.getsockname()[1]}"
            log = proxy.wait_log("ready: lmtp-proxy")
            assert f" on {own}, generation 1" in log
            assert f"/nowhere/a and /nowhere/b are not used: the socket that was passed listens on {own}" in proxy.log()
            deliver(listener.getsockname())


def test_a_change_needs_a_restart(places: Places) -> None:
    places.proxy.config["config"]["socket"] = places.unix
    places.proxy.write_config()
    since = places.proxy.mark()
    places.proxy.signal_reload()
    places.proxy.wait_log("a change of config.socket takes effect at the next start only", since=since)
    deliver(places.tcp)
