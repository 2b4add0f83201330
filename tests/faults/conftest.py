"""A proxy in front of two scripted backends, shared by the tests of a module; each test finds it as new."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.backend import FakeBackend
from tests.support.proxy import WORKERS, ProxyProcess, config_of
from tests.support.script import HEALTHY


@dataclass
class Pair:
    """Recipients at @a belong to backend `a`, those at @b to `b`. Deadlines are the default ones."""

    proxy: ProxyProcess
    a: FakeBackend
    b: FakeBackend


@dataclass
class Move:
    """Two stores and a proxy; users are named without a domain."""

    old: FakeBackend
    new: FakeBackend
    proxy: ProxyProcess

    def delivered(self, user: str) -> str:
        """The store that a mail for `user` reaches now."""
        before = [len(store.transactions()) for store in (self.old, self.new)]
        with self.proxy.client() as client:
            assert client.deliver("after@x", [user]).verdict(0).positive
            client.quit()
        after = [len(store.transactions()) for store in (self.old, self.new)]
        return {(1, 0): "old", (0, 1): "new"}[after[0] - before[0], after[1] - before[1]]


@pytest.fixture(scope="module", autouse=True)
def processes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where a test is parametrised by BOTH_MODES: proxies have so many workers."""
    before = os.environ.get(WORKERS)
    if (workers := getattr(request, "param", None)) is not None:
        os.environ[WORKERS] = str(workers)
    yield
    if before is None:
        os.environ.pop(WORKERS, None)
    else:
        os.environ[WORKERS] = before


@pytest.fixture(scope="module")
def shared_pair(processes: None) -> Iterator[Pair]:
    with (
        FakeBackend() as a,
        FakeBackend(transport="tcp") as b,
        ProxyProcess(config_of({"a": a, "b": b}, max_recipients=1000)) as proxy,
    ):
        yield Pair(proxy, a, b)


@pytest.fixture
def pair(shared_pair: Pair) -> Iterator[Pair]:
    for backend in (shared_pair.a, shared_pair.b):
        backend.script = HEALTHY
        backend.forget()
    yield shared_pair
    for backend in (shared_pair.a, shared_pair.b):
        assert backend.wait_closed(), "a connection to a backend stays open although no client is there"
