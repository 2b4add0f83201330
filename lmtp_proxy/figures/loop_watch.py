# SPDX-License-Identifier: GPL-3.0-or-later
"""Notices when the event loop is kept from its work: a timer says how late it is.

Ten times a second while deliveries begin or are under way, less and less often, down to once in five seconds, while
clients are only connected, and not at all when there is none. So a stall is seen to be up to a tenth of a second
shorter than it was.
"""

import time
from typing import Any

import gevent

from lmtp_proxy.counts import Tallies
from lmtp_proxy.delivery.in_flight import InFlight

_OFTEN, _SELDOM = 0.1, 5.0  # seconds


class LoopWatch:
    """Runs in the hub. `wake` it when there is a client; it falls asleep by itself."""

    def __init__(self, tallies: Tallies, in_flight: InFlight) -> None:
        self._tallies = tallies
        self._in_flight = in_flight
        self._timer: Any = None
        self._pause = _OFTEN
        self._due = 0.0
        self._seen = 0

    def __repr__(self) -> str:
        return f"<LoopWatch {'asleep' if self._timer is None else f'every {self._pause:g} s'}>"

    def wake(self) -> None:
        """There is a client, or there was: must not wait."""
        if self._timer is None:
            self._pause = _OFTEN
            self._start()

    def _start(self) -> None:
        self._due = time.monotonic() + self._pause
        self._timer = gevent.get_hub().loop.timer(self._pause)
        self._timer.start(self._look)

    def _look(self) -> None:
        self._tallies.late(max(0.0, time.monotonic() - self._due))
        self._timer.close()
        self._timer = None
        if self._tallies.accepted == self._tallies.ended:
            return
        seen = self._in_flight.last
        if seen != self._seen or len(self._in_flight):
            self._pause = _OFTEN
        else:
            self._pause = min(2 * self._pause, _SELDOM)
        self._seen = seen
        self._start()
