# SPDX-License-Identifier: GPL-3.0-or-later
"""Where recipients on `hold` wait for their route to change.

It counts the sessions that wait and wakes them when a new generation is in force. What their route is then, they look
up themselves.
"""

import errno
import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager

from gevent.event import Event


class SharedPlaces:
    """Places that several processes share: locks on octets of one file, which the kernel gives back when one dies.

    Args:
        handle: of that file. The process must hold no other one on it: to close that would give back all places.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._taken: set[int] = set()

    def __repr__(self) -> str:
        return f"<SharedPlaces {sorted(self._taken)}>"

    def take(self, limit: int) -> int | None:
        """One of the first `limit` places, None if none is free."""
        for place in range(limit):
            if place not in self._taken:  # the kernel would let a process have what it has already
                try:
                    fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
                except OSError as error:
                    if error.errno not in (errno.EACCES, errno.EAGAIN):
                        raise
                else:
                    self._taken.add(place)
                    return place
        return None

    def give_back(self, place: int) -> None:
        """It is free again."""
        self._taken.discard(place)
        fcntl.lockf(self._handle, fcntl.LOCK_UN, 1, place)


class Parking:
    """All parked sessions of the process. places: where other processes count as well."""

    def __init__(self, places: SharedPlaces | None = None) -> None:
        self._places = places
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
        place = self._parked if self._places is None else self._places.take(limit)
        if self._parked >= limit or place is None:
            yield False
            return
        self._parked += 1
        try:
            yield True
        finally:
            self._parked -= 1
            if self._places is not None:
                self._places.give_back(place)

    def wait_for_change(self, deadline: float) -> bool:
        """Wait for the next generation, until `deadline` (time.monotonic); False if there was none."""
        return bool(self._changed.wait(max(0.0, deadline - time.monotonic())))

    def generation_changed(self) -> None:
        """Wake all who wait."""
        woken, self._changed = self._changed, Event()
        woken.set()
