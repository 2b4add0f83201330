# SPDX-License-Identifier: GPL-3.0-or-later
"""The addresses of a host, looked up in a thread of its own: a name whose look-up hangs is in no other one's way.

gevent's resolver has ten threads for all names, and a DNS server that does not answer takes them all. Here each name
has at most one look-up at a time, which all who ask for it share, and each of them waits no longer than it wants to.
The thread goes with the look-up, and a process that ends does not wait for it.
"""

import _socket
import _thread
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from gevent import get_hub
from gevent.event import Event

# As _socket.getaddrinfo returns them.
_Found: TypeAlias = Sequence[tuple[int, int, int, str, tuple[Any, ...]]]


class SocketAddress(NamedTuple):
    """Where to connect to.

    Attributes:
        family: AF_INET or AF_INET6.
        address: as `connect` takes it; the first part is the IP address as text, the second the port.
    """

    family: int
    address: tuple[Any, ...]

    def __str__(self) -> str:
        return str(self.address[0])


def resolve(host: str, port: int, deadline: float) -> list[SocketAddress]:
    """The addresses of `host` in the order of the resolver (RFC 6724), one for an IP address; until `deadline`.

    Raises OSError, a TimeoutError at the deadline (time.monotonic); UnicodeError where no host has such a name.
    """
    try:
        found = _getaddrinfo(host, _socket.AI_NUMERICHOST)  # which asks nobody
    except OSError:
        found = _looked_up(host, deadline)
    addresses = dict.fromkeys(SocketAddress(each[0], (each[4][0], port, *each[4][2:])) for each in found)
    return [*addresses]


def _looked_up(host: str, deadline: float) -> _Found:
    look_up = _under_way.get(host) or _LookUp(host)
    if not look_up.done.wait(max(0.0, deadline - time.monotonic())):
        raise TimeoutError("no answer about its name")
    if look_up.error is not None:
        raise look_up.error
    return look_up.found


def _getaddrinfo(host: str, flags: int = 0) -> _Found:
    return _socket.getaddrinfo(host.encode("idna"), None, 0, _socket.SOCK_STREAM, 0, flags)


class _LookUp:
    """Of one name. Raises OSError where there can be no thread, UnicodeError where no host has such a name."""

    def __init__(self, host: str) -> None:
        host.encode("idna")  # loads what that takes, which is nothing for a thread
        self.done = Event()
        self.found: _Found = ()
        self.error: Exception | None = None
        self._host = host
        self._told = get_hub().loop.async_(ref=False)
        self._told.start(self._end)
        try:
            _thread.start_new_thread(self._run, ())
        except RuntimeError as error:
            self._told.close()
            raise OSError(f"no thread to look its name up: {error}") from error
        _under_way[host] = self

    def _run(self) -> None:
        # In the thread: nothing of gevent but `send`.
        try:
            self.found = _getaddrinfo(self._host)
        except Exception as error:  # noqa: BLE001  (raised where it is waited for)
            self.error = error
        self._told.send()

    def _end(self) -> None:
        """Runs in the hub."""
        self._told.close()
        del _under_way[self._host]
        self.done.set()


_under_way: dict[str, _LookUp] = {}
