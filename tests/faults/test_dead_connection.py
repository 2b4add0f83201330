"""A kept connection that has died without FIN or RST: a firewall has forgotten it, say, and drops what comes by it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.support.backend import FakeBackend
from tests.support.client import Outcome
from tests.support.control import Control, add_control
from tests.support.patience import SOON
from tests.support.private import Network, needs
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import Pause, Script, say

pytestmark = needs("--net")

COMMAND = 30.0  # half of it is more than the 5 s until the first look


@contextmanager
def kept(
    number: int, script: Script | None = None, **timeouts: float
) -> Iterator[tuple[ProxyProcess, FakeBackend, Network]]:
    """So many kept connections to a store on another host."""
    with ExitStack() as opened:
        network = opened.enter_context(Network())
        with network.there():
            backend = FakeBackend(script or Script(), transport="tcp", address=(network.address, 0))
        opened.enter_context(backend)
        config = config_of({"a": backend}, idle_timeout=300, timeouts={"command": COMMAND, **timeouts})
        proxy = ProxyProcess(config, prefix=network.prefix, workers=1)
        add_control(proxy)
        opened.enter_context(proxy)
        clients = [opened.enter_context(proxy.client()) for _ in range(number)]
        outcomes = [client.envelope("s@x", ["u@a"]) for client in clients]
        for client, outcome in zip(clients, outcomes, strict=True):
            client.finals_after(outcome, b"x\r\n.\r\n")
            client.quit()
        assert len(backend.connections) == number
        yield proxy, backend, network


def deliver(proxy: ProxyProcess) -> tuple[Outcome, float]:
    with proxy.client(timeout=3 * COMMAND) as client:
        begun = time.monotonic()
        outcome = client.deliver("s@x", ["u@a"])
        client.quit()
        return outcome, time.monotonic() - begun


def test_the_mail_goes_over_a_fresh_one_and_those_kept_before_are_given_up() -> None:
    with kept(3) as (proxy, backend, network):
        for port in backend.peers():
            network.forget(port)
        outcome, lasted = deliver(proxy)
        assert outcome.verdict(0).code == 250
        assert lasted < COMMAND / 2
        assert len(backend.connections) == 4
        for _ in range(3):
            outcome, lasted = deliver(proxy)
            assert outcome.verdict(0).code == 250 and lasted < 3
        assert len(backend.connections) == 4
        assert "a kept connection has died without a word; so may 2 others" in proxy.log()


def test_one_whose_store_is_only_slow_is_waited_for() -> None:
    """All that was sent has arrived: the store works on it."""
    slow = Script(mail_again=(Pause(7), *say("250 2.1.0 ok")))
    with kept(1, slow) as (proxy, backend, _):
        outcome, lasted = deliver(proxy)
        assert outcome.verdict(0).code == 250 and lasted > 6.5
        assert len(backend.connections) == 1


def test_tcp_itself_finds_out_while_it_is_kept() -> None:
    with kept(3, data_write=3) as (proxy, backend, network):
        for port in backend.peers():
            network.forget(port)
        deadline = time.monotonic() + SOON
        while Control(proxy).get("/status")["backends"][0]["idle"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        outcome, lasted = deliver(proxy)
        assert outcome.verdict(0).code == 250 and lasted < 3
        assert len(backend.connections) == 4


def test_a_store_that_is_gone_altogether_defers_after_one_look() -> None:
    with kept(2, connect=2) as (proxy, backend, network):
        for port in backend.peers():
            network.forget(port)
        network.part()
        outcome, lasted = deliver(proxy)
        assert outcome.verdict(0).text.startswith("451 4.4.1 ") and lasted < COMMAND / 2
