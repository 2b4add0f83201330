# SPDX-License-Identifier: GPL-3.0-or-later
"""A message that comes for too long, or drips while others wait for its places: nothing of it is delivered."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.backend import FakeBackend
from tests.support.client import Disconnected, LmtpClient, Outcome
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import BodyTrigger, Pause, Script


@contextmanager
def stand(
    message: float, places: int = 1, **scripts: Script
) -> Iterator[tuple[ProxyProcess, FakeBackend, FakeBackend]]:
    with FakeBackend(scripts.get("a", Script())) as a, FakeBackend(scripts.get("b", Script())) as b:
        config = config_of({"a": a, "b": b}, timeouts={"message": message, "connect": 20})
        config["backends"]["a"] = {**a.config, "max_connections": places}
        with ProxyProcess(config) as proxy:
            yield proxy, a, b


def drip(client: LmtpClient, octets: bytes, every: float, seconds: float) -> bool:
    """Whether the proxy let it come for so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            client.send(octets)
            if not client.silent(every):
                return False
        except (OSError, Disconnected):
            return False
    return True


def check_given_up(proxy: ProxyProcess, client: LmtpClient, outcome: Outcome, why: str) -> None:
    assert client.reply().text.startswith("421 4.4.2")
    assert client.at_end()
    for recipient in outcome.recipients:
        proxy.wait_log(rf"to=<{recipient}>, .*dsn=4\.4\.2, status=aborted \(.*{why}")
    assert proxy.log().count("status=aborted") == len(outcome.recipients)


@pytest.mark.parametrize("octets", [b"x", b"\r\n", b".", b"x" * 20_000 + b"\r\n", b""])
def test_it_ends_after_so_long_at_any_pace(octets: bytes) -> None:
    with stand(1.5) as (proxy, a, b), proxy.client() as client:
        began = time.monotonic()
        outcome = client.envelope("s@x", ["u@a", "v@b", "w@a"])
        assert not drip(client, octets, 0.1, 15)
        assert 1.4 < time.monotonic() - began < 10
        check_given_up(proxy, client, outcome, "timeouts.message")
        for store in (a, b):
            assert store.wait_closed(1)
            assert not any(seen.dotted for seen in store.transactions())


def test_in_lockstep_and_over_the_size_limit_too() -> None:
    with FakeBackend() as a:
        config = config_of({"a": a}, timeouts={"message": 1.5}, max_message_size=1000)
        with ProxyProcess(config) as proxy, proxy.client() as client:
            outcome = client.envelope("s@x", ["u@a"], pipelined=False)
            client.send(b"x" * 2000)
            assert not drip(client, b"x", 0.1, 15)
            check_given_up(proxy, client, outcome, "timeouts.message")


@pytest.mark.parametrize("octets", [b"x", b""])
def test_a_drip_makes_place_for_who_waits(octets: bytes) -> None:
    with stand(12.0) as (proxy, a, b), proxy.client() as slow, proxy.client() as other:
        outcome = slow.envelope("s@x", ["v@b", "u@a"])
        told: list[Outcome] = []
        waiting = threading.Thread(target=lambda: told.append(other.deliver("t@x", ["w@a"])))
        began = time.monotonic()
        gave_up = threading.Thread(target=lambda: drip(slow, octets, 0.1, 11))
        gave_up.start()
        waiting.start()
        waiting.join(20)
        gave_up.join(20)
        assert told and told[0].verdict(0).positive, told
        assert time.monotonic() - began < 11.5
        check_given_up(proxy, slow, outcome, "slowly")
        assert b.wait_closed(1)
        assert [seen.sender for store in (a, b) for seen in store.transactions() if seen.dotted] == ["t@x"]


def test_a_drip_for_which_nobody_waits_goes_on() -> None:
    with stand(8.0, places=2) as (proxy, a, _), proxy.client() as slow, proxy.client() as other:
        outcome = slow.envelope("s@x", ["u@a"])
        assert drip(slow, b"x", 0.2, 6)
        assert other.deliver("t@x", ["w@a"]).verdict(0).positive
        assert slow.finals_after(outcome, b"\r\n.\r\n").verdict(0).positive
        assert {seen.sender for seen in a.transactions() if seen.dotted} == {"t@x", "s@x"}


def test_who_is_fast_enough_is_waited_for() -> None:
    with stand(6.0) as (proxy, *_), proxy.client() as slow, proxy.client() as other:
        outcome = slow.envelope("s@x", ["u@a"])
        told: list[Outcome] = []
        waiting = threading.Thread(target=lambda: told.append(other.deliver("t@x", ["w@a"])))
        waiting.start()
        assert drip(slow, b"x" * 400 + b"\r\n", 0.1, 5.2)
        assert slow.finals_after(outcome, b"\r\n.\r\n").verdict(0).positive
        waiting.join(20)
        assert told and told[0].verdict(0).positive, told


def test_a_store_that_stalls_is_not_the_clients_fault() -> None:
    """Its own deadline is `data_write`; the client's connection is not ended for it (P3)."""
    script = Script(body=BodyTrigger(1000, (Pause(4.5),)))
    with stand(6.0, b=script) as (proxy, *_), proxy.client() as client, proxy.client() as other:
        outcome = client.envelope("s@x", ["u@a", "v@b"])
        told: list[Outcome] = []
        waiting = threading.Thread(target=lambda: told.append(other.deliver("t@x", ["w@a"])))
        waiting.start()
        client.finals_after(outcome, (b"x" * 78 + b"\r\n") * 20_000 + b".\r\n")
        assert [outcome.verdict(position).positive for position in (0, 1)] == [True, True]
        waiting.join(20)
        assert told and told[0].verdict(0).positive, told
