# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a connection that is there when nobody waits for it any more."""

import gevent
import pytest
from gevent.event import Event

from lmtp_proxy.backends.pool import BackendPool
from lmtp_proxy.backends.session import BackendSession
from lmtp_proxy.config.values import Backend, UnixAddress


class Gone(BaseException):
    """As a client that has gone."""


class Session(BackendSession):
    closed = False

    def close(self) -> None:
        self.closed = True


class Pool(BackendPool):
    """A connection is there when `greeted` is set."""

    def __init__(self) -> None:
        super().__init__(Backend("a", UnixAddress("/a")), "proxy")
        self.greeted = Event()
        self.opened: list[Session] = []

    def _opened(self) -> BackendSession:
        self.greeted.wait()
        session = Session(self.backend, "proxy")
        self.opened.append(session)
        return session


def leaves(pool: Pool) -> None:
    assert pool.reserve(None) is None
    with pytest.raises(Gone):
        pool.open()
    pool.cancel()


@pytest.mark.parametrize("order", ["comes, goes", "goes, comes", "goes"])
def test_a_connection_that_comes_when_its_client_goes_is_closed(order: str) -> None:
    """In the same round of the loop, in either order."""
    pool = Pool()
    client = gevent.spawn(leaves, pool)
    gevent.sleep(0.01)
    for what in order.split(", "):
        if what == "comes":
            pool.greeted.set()
        else:
            client.kill(Gone(), block=False)
    client.get()
    gevent.sleep(0.01)
    assert [session.closed for session in pool.opened] == [True] * ("comes" in order)
    assert (pool.busy, pool.idle) == (0, 0)
