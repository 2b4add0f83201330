# SPDX-License-Identifier: GPL-3.0-or-later
"""How long an event loop was away, from what the prober saw.

The round trip of a NOOP has three parts: what the loop was doing when it came, how long its thread or the prober was
ready to run and had to wait for a core (the kernel counts that), and the few microseconds of the NOOP itself. On two
cores with a load generator, backends and a process that parses, the second part is often the largest, and it is none of
the loop's doing, so it is taken off. What a hypervisor takes is not counted by anybody: the same round trip to an idle
sink at the same time, which nobody stalls, shows how large it can be.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from bench.tools import Sample

PROXY, REFERENCE = 0, 1


@dataclass(frozen=True, slots=True)
class Stall:
    """Milliseconds. longest: round trip without the waits for a core. raw: the longest as it was. reference: the
    longest to the idle sink, without the prober's waits. p99: of the round trips to the proxy, without the waits."""

    longest: float
    raw: float
    reference: float
    p99: float
    samples: int


def stall(samples: Iterable[Sample], begin: float, end: float) -> Stall:
    """What was seen of the time from `begin` to `end` (seconds of time.monotonic())."""
    seen = [sample for sample in samples if sample.sent <= end and sample.sent + sample.took_ms / 1e3 >= begin]
    proxy = sorted(_away(sample) for sample in seen if sample.which == PROXY)
    return Stall(
        longest=proxy[-1] if proxy else 0.0,
        raw=max((sample.took_ms for sample in seen if sample.which == PROXY), default=0.0),
        reference=max((_away(sample) for sample in seen if sample.which == REFERENCE), default=0.0),
        p99=proxy[int(0.99 * (len(proxy) - 1))] if proxy else 0.0,
        samples=len(proxy),
    )


def _away(sample: Sample) -> float:
    return max(0.0, sample.took_ms - sample.waited_ms)
