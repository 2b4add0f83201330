# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a proxy kept somebody waiting, as far as it was its own doing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.patience import SOON
from tests.support.proxy import ProxyProcess

_CPUCLOCK_SCHED = 2  # linux/posix-timers.h: the CPU clock of process PID is (~PID << 3) | 2


class Delays:
    """Of things that are asked of a proxy one by one.

    clock: seconds that each took. own: seconds of CPU time that the proxy's processes used meanwhile, or those that it
    took if they were less: of a busy loop all of it, and none of what other processes make it wait for a core.
    """

    def __init__(self, proxy: ProxyProcess) -> None:
        self._pids = [proxy.pid, *proxy.worker_pids]
        self.clock: list[float] = []
        self.own: list[float] = []

    @contextmanager
    def one(self) -> Iterator[None]:
        """Around one of them."""
        began, used = time.monotonic(), self._cpu_seconds()
        yield
        took = time.monotonic() - began
        self.clock.append(took)
        self.own.append(min(took, self._cpu_seconds() - used))

    def check(self, longest: float) -> None:
        """That the proxy held nobody up for longer by work of its own, and nobody for ever."""
        assert max(self.own) < longest, f"the proxy was busy for {max(self.own):.2f} s ({max(self.clock):.2f} s in all)"
        assert max(self.clock) < SOON, f"somebody waited for {max(self.clock):.2f} s"

    @property
    def median(self) -> float:
        return statistics.median(self.own)

    def _cpu_seconds(self) -> float:
        return sum(time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED) for pid in self._pids)
