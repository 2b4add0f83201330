# SPDX-License-Identifier: GPL-3.0-or-later
"""A client that is waited for: when it can have sent its final dot, and whether it is still there.

A client waits for its replies from the moment it wrote the dot. While a backend stalls, that dot may lie in the
kernel's buffers unread for long, so the time at which we read it is too late to count from. And a client that goes away
while the session waits for a backend is to be noticed at once: the stream tells of its end, but not while it is paused,
when the client has sent more than is taken in while nobody reads, and its end of file stands behind that. A paused
client's socket is looked at more than twice a second. Nothing here knows LMTP; whether the client has said all is asked
of others.
"""

import select
from collections import deque
from collections.abc import Callable
from typing import Any

from gevent import get_hub
from greenlet import getcurrent, greenlet

from lmtp_proxy.loop.stream import Stream

_STEP = 65536
_AHEAD = 8 << 20
"""Octets that a client can be ahead of us: its send buffer and our receive buffer (Linux: TCP up to 4 and 6 MiB)."""


class DotClock:
    """Fed with each receipt of one message's data. Times are time.monotonic.

    Where the client was waited for, what it is ahead of us it has sent since: so the message might as well begin then,
    with a new clock.

    Attributes:
        earliest: the dot was not sent before; at first when the message begins.
    """

    __slots__ = ("_marks", "_octets", "earliest")

    def __init__(self, now: float) -> None:
        self._marks: deque[float] | None = None  # when each next _STEP had come
        self.earliest = now
        self._octets = 0

    def received(self, octets: int, now: float) -> None:
        """More of the message, which lay there already, was taken in."""
        before = self._octets
        self._octets = after = before + octets
        if after >= _STEP:
            marks = self._marks = self._marks or deque(maxlen=_AHEAD // _STEP + 1)
            marks.extend([now] * (after // _STEP - before // _STEP))
            if len(marks) == marks.maxlen:
                self.earliest = max(self.earliest, marks[0])


INTERVAL = 0.4
"""Seconds between two looks: a vanished client is to release its backends within one."""

_PEEK = 1 << 20
_CLOSED = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL


class ClientGone(BaseException):
    """The client closed its connection or its sending half. No Exception: only the session may catch it."""


class ClientWatch:
    """The watch over one client's stream, from `begin` until somebody puts `waiting` away.

    Attributes:
        waiting: who is told, None where it is of no interest.
    """

    __slots__ = ("_completes", "_stream", "_timer", "waiting")

    def __init__(self, stream: Stream, completes: Callable[[bytes], bool]) -> None:
        """completes: told the octets that were not read yet, says whether the client has sent its whole message; then
        the end of file behind it is no reason to stop."""
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
            ahead = stream.ahead(_PEEK)
        except OSError:  # a reset: what was not read is lost
            return True
        # Nothing comes behind an end of file, so the answer stays. It may take a while, and runs in the hub: once.
        if ahead is None or self._completes(ahead):
            self._end()
            return False
        return True
