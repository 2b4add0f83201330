# SPDX-License-Identifier: GPL-3.0-or-later
"""When the client can have sent its final dot at the earliest.

A client waits for its replies from the moment it wrote the dot. While a backend stalls, that dot may lie in the
kernel's buffers unread for long, so the time at which we read it is too late to count from. It reads no clock and no
socket.
"""

from collections import deque

_STEP = 65536
_AHEAD = 8 << 20
"""Octets that a client can be ahead of us: its send buffer and our receive buffer (Linux: TCP up to 4 and 6 MiB)."""


class DotClock:
    """Fed with each receipt of one message's data. Times are time.monotonic. earliest: the dot was not sent before.

    now: the message begins. Where the client was waited for, what it is ahead of us it has sent since: so the message
    might as well begin then, with a new clock.
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
