"""A store by name: one deadline over its look-up and all its addresses, of which the first that works is taken."""

from __future__ import annotations

import os
import random
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.support.backend import FakeBackend
from tests.support.client import Outcome
from tests.support.patience import SOON
from tests.support.private import names, needs
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import Close, Script

pytestmark = needs("--mount")

CONNECT = 2.0
TIMEOUTS = {"connect": CONNECT, "greeting": 5, "command": 5}


def near() -> str:
    """An address of our own that a resolver sorts before `far()` (RFC 6724, rule 9)."""
    return f"127.0.{random.randint(1, 250)}.{os.getpid() % 250 + 1}"


def far() -> str:
    return f"127.{random.randint(128, 250)}.{random.randint(1, 250)}.{os.getpid() % 250 + 1}"


@contextmanager
def silent(host: str, port: int) -> Iterator[None]:
    """Nobody answers a SYN there, as behind a firewall: its backlog is full."""
    with ExitStack() as opened:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = opened.enter_context(socket.socket(family))
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(64):
            filler = opened.enter_context(socket.socket(family))
            filler.setblocking(False)
            try:
                filler.connect((host, port))
            except BlockingIOError:
                if not select.select([], [filler], [], 0.2)[1]:
                    break
        else:
            raise AssertionError("the backlog does not fill up")
        yield


def deliver(proxy: ProxyProcess, *recipients: str) -> tuple[Outcome, float]:
    """One message, and how many seconds until its recipients were answered."""
    with proxy.client() as client:
        begun = time.monotonic()
        outcome = client.envelope("s@x", list(recipients))
        lasted = time.monotonic() - begun
        if any(reply.code == 250 for reply in outcome.rcpts):
            client.finals_after(outcome, b"x\r\n.\r\n")
        client.quit()
    return outcome, lasted


def codes(outcome: Outcome) -> list[int]:
    return [outcome.verdict(position).code for position in range(len(outcome.recipients))]


def test_several_addresses_that_say_nothing_share_the_deadline() -> None:
    one, other = near(), far()
    with (
        FakeBackend() as healthy,
        FakeBackend(transport="tcp", peer="refused", address=(far(), 0)) as named,
        silent(one, named.port),
        silent(other, named.port),
        names([(one, "store.test"), (other, "store.test")]) as prefix,
    ):
        config = config_of({"a": healthy, "b": named}, timeouts=TIMEOUTS)
        config["backends"]["b"] = {"host": "store.test", "port": named.port}
        with ProxyProcess(config, prefix=prefix) as proxy:
            outcome, lasted = deliver(proxy, "u@a", "u@b")
            assert codes(outcome) == [250, 451]
            assert CONNECT - 0.1 < lasted < CONNECT + 1.5
            assert f"no connection in {CONNECT:g} s" in proxy.log()


@pytest.mark.parametrize("how", ["silent", "refused", "no greeting"])
def test_the_address_that_works_is_found_and_tried_first_from_then_on(how: str) -> None:
    bad, good = near(), far()
    with ExitStack() as opened:
        backend = opened.enter_context(FakeBackend(transport="tcp", address=(good, 0)))
        at_first = opened.enter_context(ExitStack())
        if how == "silent":
            at_first.enter_context(silent(bad, backend.port))
        elif how == "no greeting":
            closes = Script(greeting=(Close(),))
            at_first.enter_context(FakeBackend(closes, transport="tcp", address=(bad, backend.port)))
        prefix = opened.enter_context(names([(bad, "store.test"), (good, "store.test")]))
        config = config_of({"a": backend}, timeouts=TIMEOUTS)
        config["backends"]["a"]["host"] = "store.test"  # type: ignore[index]
        proxy = opened.enter_context(ProxyProcess(config, prefix=prefix))
        outcome, lasted = deliver(proxy, "u@a")
        if how == "no greeting":  # it is known from then on
            assert codes(outcome) == [451]
            outcome, lasted = deliver(proxy, "u@a")
        assert codes(outcome) == [250]
        assert lasted < CONNECT
        at_first.close()
        other = opened.enter_context(FakeBackend(transport="tcp", address=(bad, backend.port)))
        assert codes(deliver(proxy, "u@a")[0]) == [250]
        assert (len(backend.connections), len(other.connections)) == (2, 0)


@pytest.mark.parametrize("works", ["::1", "127.0.0.1"])
@pytest.mark.parametrize("how", ["silent", "refused", "absent"])
def test_ipv4_and_ipv6_stand_in_for_each_other(works: str, how: str) -> None:
    other = "127.0.0.1" if works == "::1" else "::1"
    with ExitStack() as opened:
        backend = opened.enter_context(FakeBackend(transport="tcp", address=(works, 0)))
        if how == "silent":
            opened.enter_context(silent(other, backend.port))
        both = [(works, "store.test"), (other, "store.test")][: 1 if how == "absent" else 2]
        config = config_of({"a": backend}, timeouts=TIMEOUTS)
        config["backends"]["a"]["host"] = "store.test"  # type: ignore[index]
        prefix = opened.enter_context(names(both))
        proxy = opened.enter_context(ProxyProcess(config, prefix=prefix))
        for _ in range(2):
            outcome, lasted = deliver(proxy, "u@a")
            assert codes(outcome) == [250] and lasted < CONNECT


def test_a_refusal_of_all_is_told_of_each_at_once() -> None:
    one, other = near(), far()
    with (
        FakeBackend(transport="tcp", peer="refused", address=(far(), 0)) as backend,
        names([(one, "store.test"), (other, "store.test")]) as prefix,
    ):
        config = config_of({"a": backend}, timeouts={"connect": 60})
        config["backends"]["a"]["host"] = "store.test"  # type: ignore[index]
        with ProxyProcess(config, prefix=prefix) as proxy:
            outcome, lasted = deliver(proxy, "u@a")
            assert codes(outcome) == [451] and lasted < SOON
            assert f"{one}: Connection refused; {other}: Connection refused" in proxy.log()


def test_a_look_up_that_hangs_ends_in_time_and_holds_up_no_other_name() -> None:
    """More names than gevent has threads for its look-ups, at a DNS server that never answers."""
    nameserver, number = near(), 12
    with ExitStack() as opened:
        dead = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        dead.bind((nameserver, 53))
        backend = opened.enter_context(FakeBackend(transport="tcp"))
        prefix = opened.enter_context(names([("127.0.0.1", "store.test")], nameserver))
        config = config_of({"good": backend}, timeouts=TIMEOUTS)
        config["backends"]["good"]["host"] = "store.test"  # type: ignore[index]
        for index in range(number):
            config["backends"][f"b{index}"] = {"host": f"store{index}.test", "port": 24}
            config["users"][f"@b{index}"] = f"b{index}"
        proxy = opened.enter_context(ProxyProcess(config, prefix=prefix, workers=1))
        outcome, lasted = deliver(proxy, *(f"u@b{index}" for index in range(number)))
        assert codes(outcome) == [451] * number
        assert CONNECT - 0.1 < lasted < CONNECT + 1.5
        assert "no answer about its name" in proxy.log()
        outcome, lasted = deliver(proxy, "u@good")
        assert codes(outcome) == [250] and lasted < CONNECT
        threads = proxy.status("Threads")
        time.sleep(1.1)  # until the stores are asked again
        outcome, lasted = deliver(proxy, *(f"u@b{index}" for index in range(number)))
        assert codes(outcome) == [451] * number and lasted < CONNECT + 1.5
        assert proxy.status("Threads") == threads, "a look-up that hangs is begun anew for each message"


def test_an_address_asks_no_resolver() -> None:
    nameserver = near()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.bind((nameserver, 53))
        asked.setblocking(False)
        for host in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
            bound = "127.0.0.1" if "." in host else "::1"
            with FakeBackend(transport="tcp", address=(bound, 0)) as backend, names([], nameserver) as prefix:
                config = config_of({"a": backend}, timeouts=TIMEOUTS)
                config["backends"]["a"]["host"] = host  # type: ignore[index]
                with ProxyProcess(config, prefix=prefix) as proxy:
                    assert codes(deliver(proxy, "u@a")[0]) == [250]
        with pytest.raises(BlockingIOError):
            asked.recv(512)


def test_a_name_that_does_not_exist_is_refused_as_fast_as_that_is_known() -> None:
    nameserver = near()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((nameserver, 53))
        with FakeBackend(transport="tcp") as backend, names([], nameserver) as prefix:
            config = config_of({"a": backend}, timeouts={"connect": 60})
            config["backends"]["a"]["host"] = "gone.test"  # type: ignore[index]
            with ProxyProcess(config, prefix=prefix) as proxy, proxy.client() as client:
                client.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\n")
                for _ in range(2):  # A and AAAA: NXDOMAIN
                    query, asker = server.recvfrom(512)
                    server.sendto(query[:2] + b"\x81\x83" + query[4:], asker)
                assert [client.reply().code for _ in range(2)] == [250, 451]
                client.quit()
                assert "Name or service not known" in proxy.log()
