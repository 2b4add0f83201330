# SPDX-License-Identifier: GPL-3.0-or-later
"""Notices a client that goes away while the session waits for a backend, so that the backends are free at once.

The stream tells of its end, but not while it is paused: then the client has sent more than is taken in while nobody
reads, and its end of file stands behind that. A paused client's socket is looked at more than twice a second. It knows
nothing of LMTP; whether the client has said all is asked of others.
"""

import select
from collections.abc import Callable
from typing import Any

from gevent import get_hub
from greenlet import getcurrent, greenlet

from lmtp_proxy.loop.stream import Stream

INTERVAL = 0.4
"""Seconds between two looks: a vanished client is to release its backends within one."""

_PEEK = 1 << 20
_CLOSED = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL


class ClientGone(BaseException):
    """The client closed its connection or its sending half. No Exception: only the session may catch it."""


class ClientWatch:
    """The watch over one client's stream, from `begin` until somebody puts `waiting` away.

    completes: told the octets that were not read yet, says whether the client has sent its whole message; then the end
    of file behind it is no reason to stop. waiting: who is told, None where it is of no interest.
    """

    __slots__ = ("_completes", "_stream", "_timer", "waiting")

    def __init__(self, stream: Stream, completes: Callable[[bytes], bool]) -> None:
        self._stream = stream
        self._completes = completes
        self.waiting: greenlet | None = None
        self._timer: Any = None
        stream.on_event = self._stirred

    def begin(self) -> None:
        """From here on ClientGone is raised in this greenlet, while it waits, if the client goes away.

        Raises it at once if the client has gone.
        """
        stream = self._stream
        if stream.ended or stream.paused:
            if self._gone():
                raise ClientGone
            if stream.paused:
                self._look_again()
        self.waiting = getcurrent()

    def _stirred(self) -> None:
        # Runs in the hub, as _look does: nothing here may wait.
        if self.waiting is None:
            return
        if self._stream.ended:
            self._throw_if_gone()
        elif self._stream.paused:
            self._look_again()

    def _look_again(self) -> None:
        if self._timer is None:
            self._timer = get_hub().loop.timer(INTERVAL, INTERVAL)
            self._timer.start(self._look)

    def _look(self) -> None:
        if self.waiting is None:
            self._end()
        else:
            self._throw_if_gone()

    def _end(self) -> None:
        self.waiting = None
        if self._timer is not None:
            self._timer.close()  # which stops it
            self._timer = None

    def _throw_if_gone(self) -> None:
        waiting = self.waiting
        if waiting is not None and self._gone():
            self._end()
            waiting.throw(ClientGone)

    def _gone(self) -> bool:
        stream = self._stream
        if stream.ended:
            return stream.error is not None or not self._completes(stream.received)
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLIN | select.POLLRDHUP)
        events = dict(poll.poll(0)).get(stream.fileno(), 0)
        if not events & _CLOSED:
            return False
        try:
            ahead = stream.peek(_PEEK)
        except OSError:  # a reset: what was not read is lost
            return True
        # Nothing comes behind an end of file, so the answer stays. It may take a while, and runs in the hub: once.
        if len(ahead) == _PEEK or self._completes(stream.received + ahead):
            self._end()
            return False
        return True
