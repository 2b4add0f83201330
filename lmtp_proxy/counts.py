# SPDX-License-Identifier: GPL-3.0-or-later
"""What one process counts: plain integers, and histograms that are lists of integers.

Counting must cost a delivery nothing that can be measured, so nothing is known here of Prometheus, names and labels:
`exposition` makes those when somebody asks. Nothing that a client sends becomes a key, so nothing here can grow.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

CONNECT_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0)
"""Seconds; `timeouts.connect` and `greeting` are 10 and 20 by default."""
REPLY_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds; a store that indexes or filters may need minutes, and `timeouts.final_reply` is 500 by default."""
LATENESS_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Histogram:
    """How many observations fell below each bound. counts: one for each of `bounds`, and one for what is above."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def __repr__(self) -> str:
        return f"<Histogram {sum(self.counts)} observations, {self.total:g} s>"

    def observe(self, seconds: float) -> None:
        """One more; a bound counts what is equal to it, as Prometheus has it."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


@dataclass(slots=True)
class Tallies:
    """Of one process, since its start, beside what each pool counts for its backend.

    accepted, ended: sessions. answered, refused, aborted: transactions whose final dot came and whose message could be
    delivered; whose message the proxy refused as a whole; that ended without a final dot. octets: of messages to their
    final dot. parked, unknown, lookup: recipients that no backend was asked for: on `reject` or `hold`, not in the
    table, no answer from the table. lateness: of the event loop; longest: the worst, in seconds.
    """

    accepted: int = 0
    ended: int = 0
    answered: int = 0
    refused: int = 0
    aborted: int = 0
    octets: int = 0
    parked: int = 0
    unknown: int = 0
    lookup: int = 0
    lateness: Histogram = field(default_factory=lambda: Histogram(LATENESS_BOUNDS))
    longest: float = 0.0

    def late(self, seconds: float) -> None:
        """The event loop did something so much later than it should have."""
        self.lateness.observe(seconds)
        if seconds > self.longest:
            self.longest = seconds


def quantile(bounds: Sequence[float], counts: Sequence[int], part: float) -> float | None:
    """The bound below which that part of the observations lies, evenly spread within each step; None if there are none.

    What lies above all bounds counts as the last of them.
    """
    wanted = part * sum(counts)
    if not wanted:
        return None
    below = 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count >= wanted:
            return below + (bound - below) * wanted / count
        wanted -= count
        below = bound
    return bounds[-1]
