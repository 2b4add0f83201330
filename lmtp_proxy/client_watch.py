# SPDX-License-Identifier: GPL-3.0-or-later
"""Notices a client that goes away while the session waits for a backend.

A session that waits does not read, so nobody would see the end of file, and the backends would stay occupied for as
long as the slowest of them takes. While a `watching` block waits, the client's socket is looked at more than twice a
second, and ClientGone is raised in the block. It knows nothing of LMTP; whether the client has said all is asked of
others.
"""

import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import gevent
from greenlet import getcurrent, greenlet

INTERVAL = 0.4
"""Seconds between two looks: a vanished client is to release its backends within one."""

Poll: TypeAlias = Callable[[], "select.poll"]
"""select.poll as it was before monkey patching: gevent's own knows no POLLRDHUP, and would wait."""

_PEEK = 1 << 20
_CLOSED = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL


class ClientGone(BaseException):
    """The client closed its connection or its sending half. No Exception: only the session may catch it."""


class ClientWatch:
    """The watch over one client's socket.

    completes: told the octets that were not read yet, says whether the client has sent its whole message; then the end
    of file behind it is no reason to stop.
    """

    def __init__(self, sock: socket.socket, poll: Poll, completes: Callable[[bytes], bool]) -> None:
        self._sock = sock
        self._completes = completes
        self._has_said_all = False
        self._poll = poll()
        self._poll.register(sock.fileno(), select.POLLIN | select.POLLRDHUP)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Raise ClientGone in this greenlet if the client goes away while the block waits."""
        timer = gevent.get_hub().loop.timer(INTERVAL, INTERVAL)
        timer.start(self._look, getcurrent(), timer)
        try:
            yield
        finally:
            timer.stop()
            timer.close()

    def _look(self, waiting: greenlet, timer: Any) -> None:
        # Runs in the hub: nothing here may wait.
        if self._gone():
            timer.stop()
            waiting.throw(ClientGone)

    def _gone(self) -> bool:
        events = dict(self._poll.poll(0)).get(self._sock.fileno(), 0)
        if self._has_said_all or not events & _CLOSED:
            return False
        ahead = b""
        if events & select.POLLIN:
            try:
                ahead = self._sock.recv(_PEEK, socket.MSG_PEEK)
            except OSError:  # a reset: what was not read is lost
                return True
        # Nothing comes behind an end of file, so this is looked at once: it may take a while, and it runs in the hub.
        self._has_said_all = len(ahead) == _PEEK or self._completes(ahead)
        return not self._has_said_all
