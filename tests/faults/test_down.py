"""When a store is taken for down, for how long it is left alone, and what makes it up again."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.support.backend import FakeBackend
from tests.support.client import Outcome
from tests.support.control import Control, add_control
from tests.support.http import add_metrics, fetch, series, value
from tests.support.patience import SOON
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import HEALTHY, Close, Hang, Script, say

TIMEOUTS = {"connect": 2, "greeting": 1.5, "command": 2, "data_write": 2, "final_reply": 3}


def deliver(proxy: ProxyProcess, *recipients: str) -> Outcome:
    with proxy.client() as client:
        outcome = client.deliver("s@x", list(recipients or ["u@a"]))
        client.quit()
    return outcome


def codes(outcome: Outcome) -> list[int]:
    return [outcome.verdict(position).code for position in range(len(outcome.recipients))]


Refuse = Callable[[ExitStack, str], None]


def absent(_: ExitStack, path: str) -> None:
    """No socket."""


def dead(_: ExitStack, path: str) -> None:
    """A socket that nobody listens on any more."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)


def full(opened: ExitStack, path: str) -> None:
    """A backlog without room: EAGAIN."""
    listener = opened.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(path)
    listener.listen(0)
    opened.enter_context(socket.socket(socket.AF_UNIX)).connect(path)


def a_file(_: ExitStack, path: str) -> None:
    with open(path, "w"):
        pass


def no_directory(_: ExitStack, path: str) -> None:
    os.rename(os.path.dirname(path), os.path.dirname(path) + ".away")


@pytest.mark.parametrize("refuse", [absent, dead, full, a_file, no_directory], ids=lambda each: each.__name__)
@pytest.mark.parametrize("before", [0, 1, 5])
def test_a_store_that_refused_gets_the_next_mail(refuse: Refuse, before: int) -> None:
    """However often it has refused before, at once or later."""
    with ExitStack() as opened:
        backend = opened.enter_context(FakeBackend())
        home = backend.directory
        config = config_of({"a": backend}, timeouts=TIMEOUTS)
        config["backends"]["a"]["restart_grace"] = 0  # type: ignore[index]
        proxy = opened.enter_context(ProxyProcess(config, workers=1))
        os.rename(backend.path, backend.path + ".kept")
        with ExitStack() as refusing:
            refuse(refusing, backend.path)
            for _ in range(before):
                began = time.monotonic()
                assert deliver(proxy).verdict(0).text.startswith("451 4.4.1 ")
                assert time.monotonic() - began < 1.5
        if os.path.exists(home + ".away"):
            os.rename(home + ".away", home)
        os.rename(backend.path + ".kept", backend.path)
        assert codes(deliver(proxy)) == [250]
        assert proxy.log().count(" is down: ") == proxy.log().count(" is up again") == bool(before)


def test_tcp_that_refused_gets_the_next_mail() -> None:
    with FakeBackend(transport="tcp", peer="refused") as backend:
        config = config_of({"a": backend}, timeouts=TIMEOUTS)
        with ProxyProcess(config, workers=1) as proxy:
            assert codes(deliver(proxy)) == [451]
            address = ("127.0.0.1", backend.port)
            backend.stop()
            with FakeBackend(transport="tcp", address=address):
                assert codes(deliver(proxy)) == [250]


@contextmanager
def kept_and_then(script: Script) -> Iterator[tuple[ProxyProcess, FakeBackend, tuple[str, int]]]:
    """A store with one kept connection that serves, and new ones that are served by `script`."""
    with FakeBackend(lambda index: HEALTHY if index == 0 else script) as backend:
        config = config_of({"a": backend}, idle_timeout=60, timeouts=TIMEOUTS)
        proxy = ProxyProcess(config, workers=1)
        add_control(proxy)
        address = add_metrics(proxy)
        with proxy:
            assert codes(deliver(proxy)) == [250]
            yield proxy, backend, address


def up(proxy: ProxyProcess, address: tuple[str, int]) -> tuple[bool, float]:
    """What `status` and the metrics say of the only store."""
    [backend] = Control(proxy).get("/status")["backends"]
    return backend["state"] != "down", value(series(fetch(address, "/metrics").text), "backend_up", backend="a")


@pytest.mark.parametrize("wrong", [(Hang(),), (Close(),), say("450 4.3.2 full"), say("554 5.3.2 no")], ids=str)
def test_a_good_transaction_on_a_kept_connection_makes_it_up(wrong: tuple[object, ...]) -> None:
    """While one client holds the kept connection, another one's attempt fails; then the kept one carries all mail."""
    with kept_and_then(Script(greeting=wrong)) as (proxy, backend, address):  # type: ignore[arg-type]
        since = proxy.mark()
        with proxy.client() as holding, proxy.client() as other:
            outcome = holding.envelope("1@x", ["u@a"])
            time.sleep(1.6)  # what it said before does not count
            assert codes(other.deliver("2@x", ["u@a"])) == [451]
            proxy.wait_log(" is down: ", since=since)
            assert up(proxy, address) == (False, 0)
            assert codes(holding.finals_after(outcome, b"x\r\n.\r\n")) == [250]
            other.quit()
            holding.quit()
        proxy.wait_log(" is up again", since=since)
        assert codes(deliver(proxy)) == [250]
        assert up(proxy, address) == (True, 1)
        assert len(backend.connections) == 2
        assert proxy.log()[since:].count(" is up again") == 1


def test_a_store_that_serves_others_meanwhile_is_not_down() -> None:
    """Full: it greets no more than one at a time. Nobody is told of it message by message."""
    with kept_and_then(Script(greeting=say("421 4.3.2 too many"))) as (proxy, _, _), proxy.client() as holding:
        since = proxy.mark()
        for _ in range(3):
            outcome = holding.envelope("1@x", ["u@a"])
            assert codes(deliver(proxy)) == [451]
            assert codes(holding.finals_after(outcome, b"x\r\n.\r\n")) == [250]
        holding.quit()
        assert " is down: " not in proxy.log()[since:]


def test_a_store_that_is_gone_is_down_at_once() -> None:
    """It served a moment ago: but nothing of that is left."""
    with (
        FakeBackend() as backend,
        ProxyProcess(config_of({"a": backend}, idle_timeout=60, timeouts=TIMEOUTS), workers=1) as proxy,
    ):
        assert codes(deliver(proxy)) == [250]
        backend.stop()
        since = proxy.mark()
        assert codes(deliver(proxy)) == [451]
        proxy.wait_log(" is down: ", since=since, timeout=SOON)
