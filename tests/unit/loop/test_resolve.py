# SPDX-License-Identifier: GPL-3.0-or-later
"""Look-ups with a scripted resolver: shared, each in a thread of its own, waited for no longer than wanted."""

import _thread
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from lmtp_proxy.loop import resolve as module
from lmtp_proxy.loop.resolve import SocketAddress, resolve
from tests.support.patience import SOON

A, B = "192.0.2.1", "2001:db8::1"
_NUMERIC = module._getaddrinfo


class Resolver:
    """Knows `found` of each name; those in `hanging` take until they are let go."""

    def __init__(self) -> None:
        self.found: dict[str, list[str] | Exception] = {}
        self.hanging: dict[str, threading.Event] = {}
        self.asked: list[str] = []

    def __call__(self, host: str, flags: int = 0) -> Any:
        if flags:
            return _NUMERIC(host, flags)
        self.asked.append(host)
        if host in self.hanging:
            self.hanging[host].wait(SOON)
        found = self.found.get(host, socket.gaierror(-2, "Name or service not known"))
        if isinstance(found, Exception):
            raise found
        return [_NUMERIC(address, socket.AI_NUMERICHOST)[0] for address in found]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    scripted = Resolver()
    monkeypatch.setattr(module, "_getaddrinfo", scripted)
    yield scripted
    for event in scripted.hanging.values():
        event.set()
    with gevent.Timeout(SOON):
        while module._under_way:
            gevent.sleep(0.01)


def soon() -> float:
    return time.monotonic() + SOON


def test_all_addresses_of_a_name_come_once_in_its_order_with_the_port(resolver: Resolver) -> None:
    resolver.found["store"] = [B, A, B]
    v6, v4 = resolve("store", 24, soon())
    assert v6 == SocketAddress(socket.AF_INET6, (B, 24, 0, 0)) and v4 == SocketAddress(socket.AF_INET, (A, 24))
    assert (str(v6), str(v4)) == (B, A)


@pytest.mark.parametrize("address", [A, B, "::ffff:192.0.2.1"])
def test_an_ip_address_is_not_looked_up(resolver: Resolver, address: str) -> None:
    [found] = resolve(address, 24, 0.0)
    assert found.address[:2] == (address, 24) and resolver.asked == []


@pytest.mark.parametrize(
    "error", [socket.gaierror(-2, "Name or service not known"), OSError(24, "Too many open files")]
)
def test_what_is_wrong_with_the_look_up_is_raised(resolver: Resolver, error: OSError) -> None:
    resolver.found["store"] = error
    with pytest.raises(type(error), match=str(error.strerror)):
        resolve("store", 24, soon())


def test_no_host_has_a_name_with_an_empty_label() -> None:
    with pytest.raises(UnicodeError):
        resolve("a..b", 24, soon())


def test_a_look_up_that_hangs_is_left_to_itself_and_asked_once(resolver: Resolver) -> None:
    resolver.hanging["dead"] = threading.Event()
    resolver.found["dead"], resolver.found["alive"] = [A], [B]
    for _ in range(20):
        with pytest.raises(TimeoutError, match="no answer about its name"):
            resolve("dead", 24, time.monotonic() + 0.01)
    assert resolver.asked == ["dead"]
    assert resolve("alive", 24, soon())
    # Who asks for another port of the same host waits for the same answer.
    waiting = [gevent.spawn(resolve, "dead", port, soon()) for port in (24, 25)]
    gevent.sleep(0)
    resolver.hanging.pop("dead").set()
    assert [each.get()[0].address for each in waiting] == [(A, 24), (A, 25)]
    assert resolver.asked == ["dead", "alive"]
    assert resolve("dead", 24, soon()) and resolver.asked[-1] == "dead"  # the next one is looked up anew


def test_without_a_thread_it_is_an_error_of_this_one(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", none_left)
    with pytest.raises(OSError, match="no thread"):
        resolve("store", 24, soon())
    assert not module._under_way
