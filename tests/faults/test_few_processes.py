"""A store that serves fewer connections at a time than the proxy has places: mail waits for those that work."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.faults.test_pool import codes, deliver, verbs
from tests.support.backend import FakeBackend
from tests.support.client import LmtpClient
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import HEALTHY, Await, Close, Pause, Script, say

GREETING = 8.0  # seconds: who had to wait for a greeting that does not come has waited that long


@contextmanager
def few(processes: int, script: Script = HEALTHY, **keys: object) -> Iterator[tuple[ProxyProcess, FakeBackend]]:
    """A proxy with one backend of so many processes."""
    with FakeBackend(script, processes=processes) as backend:
        config = config_of({"a": backend}, idle_timeout=30)
        config["backends"]["a"] = {
            **config["backends"]["a"],  # type: ignore[dict-item]
            "timeouts": {"greeting": GREETING, "connect": 4},
            **keys,
        }
        with ProxyProcess(config) as proxy:
            yield proxy, backend


def begin(client: LmtpClient, sender: str) -> None:
    client.send(f"MAIL FROM:<{sender}>\r\nRCPT TO:<u@a>\r\nDATA\r\n".encode())


def end(client: LmtpClient) -> int:
    client.send(b"x\r\n.\r\n")
    code = client.reply().code
    client.quit()
    return code


def begun(client: LmtpClient) -> list[int]:
    return [client.reply().code for _ in range(3)]


def test_who_waits_for_a_greeting_gets_what_is_released_meanwhile() -> None:
    with few(2) as (proxy, backend):
        clients = [proxy.client() for _ in range(3)]
        for number, client in enumerate(clients):
            begin(client, f"{number}@x")
            if number < 2:
                assert begun(client) == [250, 250, 354]
        assert backend.wait_for(lambda: len(backend.connections) == 3)
        began = time.monotonic()
        assert end(clients[0]) == 250
        assert begun(clients[2]) == [250, 250, 354]
        assert time.monotonic() - began < GREETING - 2
        assert [end(client) for client in clients[1:]] == [250, 250]
        assert [len(connection.transactions) for connection in backend.connections] == [2, 1, 0]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_nobody_is_deferred_however_many_come_at_once(processes: int) -> None:
    with few(processes, max_connections=10) as (proxy, _):
        codes_of: list[int] = []

        def several() -> None:
            for _ in range(5):
                codes_of.extend(codes(deliver(proxy)))

        threads = [threading.Thread(target=several) for _ in range(8)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert codes_of == [250] * 40
        assert time.monotonic() - began < GREETING - 2


def test_it_learns_how_many_are_greeted_and_says_so_once() -> None:
    with few(1, timeouts={"greeting": 1, "connect": 10}, max_connections=4) as (proxy, backend):
        since = proxy.mark()
        stop = threading.Event()
        ended: list[int] = []

        def steadily() -> None:
            while not stop.is_set():
                ended.extend(codes(deliver(proxy)))

        threads = [threading.Thread(target=steadily) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            proxy.wait_log("greets no more than 1 connections at a time, of max_connections=4", since=since)
            opened = len(backend.connections)
            time.sleep(2.5)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert set(ended) == {250}
        assert len(backend.connections) <= max(opened, 4), "no more attempts"
        log = proxy.log()[since:]
        assert log.count("greets no more than") == 1
        assert " is down: " not in log


def test_who_is_sent_away_with_421_waits_for_those_that_are_served() -> None:
    with (
        FakeBackend(lambda index: HEALTHY if index < 2 else FULL) as backend,
        ProxyProcess(config_of({"a": backend}, idle_timeout=30)) as proxy,
    ):
        clients = [proxy.client() for _ in range(2)]
        for client in clients:
            begin(client, "1@x")
            assert begun(client) == [250, 250, 354]
        ended: list[int] = []

        def several() -> None:
            for _ in range(8):
                ended.extend(codes(deliver(proxy)))

        threads = [threading.Thread(target=several) for _ in range(5)]
        for thread in threads:
            thread.start()
        assert backend.wait_for(lambda: len(backend.connections) > 2), "nobody was sent away"
        assert [end(client) for client in clients] == [250, 250]
        for thread in threads:
            thread.join()
        assert ended == [250] * 40
        proxy.wait_log("greets no more than 2 connections at a time")
        assert proxy.log().count("greets no more than 2 connections at a time") == 1


FULL = Script(greeting=(*say("421 4.3.2 too many connections"), Close()))


@contextmanager
def two_of_two(second: Script = HEALTHY, **keys: object) -> Iterator[tuple[ProxyProcess, list[LmtpClient]]]:
    """Two clients with the only two connections that a store serves; it sends further ones away. And a third client."""
    scripts = (HEALTHY, second, FULL)
    with FakeBackend(lambda index: scripts[min(index, 2)]) as backend:
        config = config_of({"a": backend}, idle_timeout=30, timeouts={"command": 20, **keys})
        with ProxyProcess(config, workers=1) as proxy, ExitStack() as stack:
            clients = [stack.enter_context(proxy.client()) for _ in range(3)]
            for client in clients[:2]:
                begin(client, "1@x")
                assert client.reply().code == 250
            assert [clients[0].reply().code for _ in range(2)] == [250, 354]
            yield proxy, clients


def test_a_421_means_no_room_however_long_ago_the_store_was_heard_of() -> None:
    with two_of_two() as (proxy, clients):
        time.sleep(1.5)
        begin(clients[2], "3@x")
        time.sleep(0.5)
        assert end(clients[0]) == 250
        assert begun(clients[2]) == [250, 250, 354]
        assert end(clients[2]) == 250
        assert proxy.log().count("greets no more than 2 connections at a time") == 1
        assert " is down: " not in proxy.log()


def test_a_421_of_a_store_whose_other_connections_end_means_that_it_is_down() -> None:
    """It was stopped: nobody waits longer than until the last of them has gone."""
    closing = Script(rcpt=(Pause(2), Close()))
    with two_of_two(closing, connect=20) as (proxy, clients):
        clients[0].reset()
        proxy.wait_log("status=aborted")
        began = time.monotonic()
        begin(clients[2], "3@x")
        assert [clients[2].reply().code for _ in range(2)] == [250, 451]
        assert time.monotonic() - began < 10
        proxy.wait_log(" is down: ")
        assert "greets no more" not in proxy.log()


def test_where_clients_keep_all_that_a_store_serves_it_is_not_down() -> None:
    with two_of_two(connect=2) as (proxy, clients):
        begin(clients[2], "3@x")
        assert [clients[2].reply().code for _ in range(2)] == [250, 451]
        assert "greets no more than 2 connections at a time" in proxy.log()
        assert " is down: " not in proxy.log()


def test_what_was_being_opened_is_kept_when_it_is_greeted_after_all() -> None:
    go = threading.Event()
    slow = Script(greeting=(Await(go), *say("220 at last")))
    with FakeBackend(lambda index: HEALTHY if index == 0 else slow) as backend:
        config = config_of({"a": backend}, idle_timeout=30)
        with ProxyProcess(config) as proxy:
            first, second = proxy.client(), proxy.client()
            begin(first, "1@x")
            assert begun(first) == [250, 250, 354]
            begin(second, "2@x")
            assert backend.wait_for(lambda: len(backend.connections) == 2)
            assert end(first) == 250
            assert begun(second) == [250, 250, 354]
            go.set()
            assert backend.wait_for(lambda: verbs(backend.connections[1]) == ["LHLO"])
            time.sleep(0.5)  # nobody tells that the reply has come
            third = proxy.client()
            begin(third, "3@x")
            assert begun(third) == [250, 250, 354]
            assert [end(second), end(third)] == [250, 250]
            assert [len(connection.transactions) for connection in backend.connections] == [2, 1]


def test_a_place_that_is_never_greeted_is_free_again() -> None:
    """Its opener fails when nobody waits for it any more: two places are enough for two clients from then on."""
    with few(1, max_connections=2, max_per_user=2, timeouts={"greeting": 1, "connect": 4}) as (proxy, backend):
        for _ in range(3):
            first, second = proxy.client(), proxy.client()
            begin(first, "1@x")
            assert begun(first) == [250, 250, 354]
            begin(second, "2@x")
            time.sleep(0.2)
            assert end(first) == 250
            assert begun(second) == [250, 250, 354]
            time.sleep(1.3)
            assert end(second) == 250
        assert len(backend.connections) == 2


def test_a_fresh_connection_is_given_the_room_of_an_idle_one() -> None:
    """One of two kept ones had died, a third client's was greeted in its place: the other idle one has to go."""
    scripts = [Script(mail_again=(Close(),)), HEALTHY]
    with FakeBackend(lambda index: scripts[min(index, 1)], processes=2) as backend:
        config = config_of({"a": backend}, idle_timeout=30)
        with ProxyProcess(config) as proxy:
            clients = [proxy.client() for _ in range(2)]
            for number, client in enumerate(clients):
                begin(client, f"{number}@x")
                assert begun(client) == [250, 250, 354]
            third = proxy.client()
            begin(third, "3@x")
            assert backend.wait_for(lambda: len(backend.connections) == 3)
            clients[1].send(b"x\r\n.\r\n")  # the healthy one goes to the third
            assert clients[1].reply().code == 250
            assert begun(third) == [250, 250, 354]
            clients[0].send(b"x\r\n.\r\n")
            assert clients[0].reply().code == 250  # kept, and will die when it is asked
            began = time.monotonic()
            begin(clients[0], "4@x")
            # Its place at the store went to the connection that nobody waited for, which is kept, idle.
            assert begun(clients[0]) == [250, 250, 354]
            assert time.monotonic() - began < GREETING
            assert [end(clients[0]), end(third)] == [250, 250]
            clients[1].quit()
