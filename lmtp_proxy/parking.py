# SPDX-License-Identifier: GPL-3.0-or-later
"""Where recipients on `hold` wait for their route to change.

It counts the sessions that wait and wakes them when a new generation is in force. What their route is then, they look
up themselves.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from gevent.event import Event


class Parking:
    """All parked sessions of the process."""

    def __init__(self) -> None:
        self._parked = 0
        self._changed = Event()

    def __repr__(self) -> str:
        return f"<Parking {self._parked} sessions>"

    def __len__(self) -> int:
        return self._parked

    @contextmanager
    def place(self, limit: int) -> Iterator[bool]:
        """A place for one session while the block runs; False if `limit` sessions are parked already.

        Few may park: Postfix gives a destination 20 connections, and each parked one is missing for everybody's mail.
        """
        if self._parked >= limit:
            yield False
            return
        self._parked += 1
        try:
            yield True
        finally:
            self._parked -= 1

    def wait_for_change(self, deadline: float) -> bool:
        """Wait for the next generation, until `deadline` (time.monotonic); False if there was none."""
        return bool(self._changed.wait(max(0.0, deadline - time.monotonic())))

    def generation_changed(self) -> None:
        """Wake all who wait."""
        woken, self._changed = self._changed, Event()
        woken.set()
