# SPDX-License-Identifier: GPL-3.0-or-later
"""The last minutes, for the curves of the status page: what the counters were every five seconds.

Only where somebody may look at them: a process without `metrics` has no samples, and none makes more than one small
tuple of integers for each backend at a time.
"""

import time
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import gevent

from lmtp_proxy.figures.figures import Figures

SECONDS = 5.0
KEPT = 121  # so ten minutes of rates


class OfBackend(NamedTuple):
    """What a backend's counters were."""

    sent: int
    failed: int
    octets: int


class Sample(NamedTuple):
    """What the counters were at a moment.

    Attributes:
        when: time.monotonic.
        sessions: that were accepted.
        transactions: that were answered.
        octets: that were received.
        backends: by their names.
    """

    when: float
    sessions: int
    transactions: int
    octets: int
    backends: dict[str, OfBackend]


class Samples:
    """The last of them.

    Args:
        collect: gives the figures of the moment, None if there are none; may wait.
    """

    def __init__(self, collect: Callable[[], Figures | None]) -> None:
        self._collect = collect
        self._samples: deque[Sample] = deque(maxlen=KEPT)
        self._sampling: gevent.Greenlet[..., None] | None = None

    def __repr__(self) -> str:
        return f"<Samples {len(self._samples)}>"

    def start(self) -> None:
        """Begin to take one now and then."""
        self._sampling = gevent.spawn(self._run)

    def stop(self) -> None:
        """Take no more."""
        if self._sampling is not None:
            self._sampling.kill()

    def _run(self) -> None:
        while True:
            figures = self._collect()
            if figures is not None:
                self.take(figures, time.monotonic())
            gevent.sleep(SECONDS)

    def take(self, figures: Figures, when: float) -> None:
        """One sample, of `figures` at `when` (time.monotonic)."""
        counters = figures["counters"]
        self._samples.append(
            Sample(
                when,
                counters["sessions"],
                counters["transactions"]["answered"],
                counters["octets"],
                {
                    name: OfBackend(each["sent"], each["deferred"] + each["bounced"], each["octets"])
                    for name, each in counters["backends"].items()
                },
            )
        )

    def rates(self, number: Callable[[Sample], int | None]) -> list[float]:
        """How fast it grew, per second, between each two samples, the oldest first. None: it was not there."""
        rates = []
        samples = list(self._samples)
        for before, after in pairwise(samples):
            one, other = number(before), number(after)
            # A backend that was taken out and came back counts from 0 again.
            grown = 0 if one is None or other is None else max(0, other - one)
            rates.append(grown / max(after.when - before.when, 1e-3))
        return rates
