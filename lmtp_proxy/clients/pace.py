# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast a message comes, as far as its client is to blame: only while the client is waited for does time go by.

A message holds a place at each of its stores, so one that drips is in the way of others. It knows no client, no clock
and no store.
"""

from collections import deque

RATE = 1024  # octets a second
OVER = 60.0
"""Seconds over which it counts; at most a quarter of `timeouts.message`."""

_MARKS = 12


class Pace:
    """Of one message that has taken long already. over: seconds.

    Attributes:
        since: when this was begun (time.monotonic).
        slow: it came at less than RATE, over the last so many seconds at least.
    """

    __slots__ = ("_marks", "_octets", "_over", "_waited", "since", "slow")

    def __init__(self, over: float, since: float = 0.0) -> None:
        self.since = since
        self.slow = False
        self._over = over
        self._waited = 0.0
        self._octets = 0
        self._marks: deque[tuple[float, int]] = deque([(0.0, 0)])  # how much had come after so many seconds

    def __repr__(self) -> str:
        return f"<Pace {self._octets} octets in {self._waited:.1f} s{' slow' if self.slow else ''}>"

    def came(self, octets: int, waited: float) -> None:
        """So many, 0 if none, which were waited for so many seconds."""
        marks, over = self._marks, self._over
        now = self._waited = self._waited + waited
        self._octets += octets
        if now - marks[-1][0] >= over / _MARKS:
            marks.append((now, self._octets))
        while len(marks) > 1 and now - marks[1][0] >= over:
            marks.popleft()
        then, before = marks[0]
        self.slow = now - then >= over and self._octets - before < RATE * (now - then)
