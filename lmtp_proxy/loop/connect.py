# SPDX-License-Identifier: GPL-3.0-or-later
"""A TCP connection to the first of several addresses that takes one, in the manner of RFC 8305, under one deadline.

An address that says nothing has a short start, then the next one is tried beside it; one that refuses makes room for
the next at once. Those that are tried stay so until one has succeeded or the time is up.
"""

import errno
import os
import time
from _socket import SO_ERROR, SOCK_STREAM, SOL_SOCKET
from _socket import socket as Socket
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain, zip_longest
from typing import Any

from gevent import get_hub
from gevent.event import Event

from lmtp_proxy.loop.resolve import SocketAddress

HEAD_START = 0.25
"""Seconds before the next address is tried, too (RFC 8305 section 5), or fewer so that each has its share."""
_WRITE = 2  # libev's event


def in_turn(
    addresses: Iterable[SocketAddress], first: SocketAddress | None = None, last: SocketAddress | None = None
) -> list[SocketAddress]:
    """The order in which to try them: the families take turns (RFC 8305 section 4).

    Args:
        first: the one that worked before, if it is still among them.
        last: the one that took a connection and did not work; after all others.
    """
    families: dict[int, list[SocketAddress]] = {}
    for address in addresses:
        families.setdefault(address.family, []).append(address)
    ordered = [address for address in chain(*zip_longest(*families.values())) if address is not None]
    return sorted(ordered, key=lambda address: (address == last, address != first))


def connect(addresses: Sequence[SocketAddress], deadline: float) -> tuple[Socket, SocketAddress]:
    """A connection that does not block, and to which of them it is. addresses: at least one, in the order to be tried.

    Raises OSError: that of the address, where there is only one; a TimeoutError where one has not answered until
    `deadline` (time.monotonic).
    """
    race = _Race(addresses, deadline)
    try:
        return race.run()
    finally:
        race.close()


class _Race:
    """Attempts to connect that are under way at the same time."""

    def __init__(self, addresses: Sequence[SocketAddress], deadline: float) -> None:
        self._began = time.monotonic()
        self._deadline = deadline
        self._waiting = deque(addresses)
        self._running: dict[SocketAddress, tuple[Socket, Any]] = {}  # with the watcher of each
        self._ended: list[SocketAddress] = []  # the kernel knows how
        self._stirred = Event()
        self._errors: dict[SocketAddress, OSError] = {}

    def run(self) -> tuple[Socket, SocketAddress]:
        start_at = self._began
        while self._waiting or self._running:
            now = time.monotonic()
            if now >= self._deadline:
                break
            if self._waiting and (now >= start_at or not self._running):
                start_at = now + min(HEAD_START, (self._deadline - now) / len(self._waiting))
                self._start(self._waiting.popleft())
            if self._running and not self._ended:
                self._stirred.wait((min(start_at, self._deadline) if self._waiting else self._deadline) - now)
            self._stirred.clear()
            ended, self._ended = self._ended, []
            for address in ended:
                sock, watcher = self._running.pop(address)
                watcher.close()
                if not (number := sock.getsockopt(SOL_SOCKET, SO_ERROR)):
                    return sock, address
                sock.close()
                self._failed(address, number)
                start_at = now
        raise self._failure()

    def _start(self, address: SocketAddress) -> None:
        try:
            sock = Socket(address.family, SOCK_STREAM)
        except OSError as error:
            self._errors[address] = error
            return
        sock.setblocking(False)
        number = sock.connect_ex(address.address)
        if number not in (0, errno.EINPROGRESS):
            sock.close()
            self._failed(address, number)
            return
        watcher = get_hub().loop.io(sock.fileno(), _WRITE)
        self._running[address] = sock, watcher
        watcher.start(partial(self._end, address, watcher))

    def _end(self, address: SocketAddress, watcher: Any) -> None:
        """Runs in the hub."""
        watcher.stop()
        self._ended.append(address)
        self._stirred.set()

    def _failed(self, address: SocketAddress, number: int) -> None:
        self._errors[address] = OSError(number, os.strerror(number))

    def _failure(self) -> OSError:
        silent = [*self._running, *self._waiting]
        seconds = f"{round(self._deadline - self._began, 1):g} s"
        if not self._errors:
            return TimeoutError(f"no connection in {seconds}")
        if len(self._errors) == 1 and not silent:
            return next(iter(self._errors.values()))
        what = "; ".join(
            [f"{address}: {error.strerror or error}" for address, error in self._errors.items()]
            + [f"{address}: no connection in {seconds}" for address in silent]
        )
        return TimeoutError(what) if silent else OSError(what)

    def close(self) -> None:
        """Give up all that are under way."""
        for sock, watcher in self._running.values():
            watcher.close()
            sock.close()
        self._running.clear()
