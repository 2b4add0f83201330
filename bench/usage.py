# SPDX-License-Identifier: GPL-3.0-or-later
"""CPU time and memory of processes, by the kernel's own accounts. Says nothing about what they do."""

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

from bench.processes import family, stat_of

_TICK = os.sysconf("SC_CLK_TCK")
_CHILD_TIMES = slice(13, 15)  # cutime, cstime among what follows the name in /proc/PID/stat
_CPUCLOCK_SCHED = 2  # linux/posix-timers.h: the CPU clock of process PID is (~PID << 3) | 2


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of these processes, and of their children that have ended and were waited for.

    utime + stime of /proc/PID/stat come in ticks of 10 ms; the process's CPU clock is the same sum in nanoseconds. Of
    children that have ended there are ticks only.
    """
    total = 0.0
    for pid in pids:
        if (stat := stat_of(pid)) is None:
            continue
        total += sum(map(int, stat[_CHILD_TIMES])) / _TICK
        try:
            total += time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)
        except OSError:  # it has just ended
            continue
    return total


def pss_kib(pids: Iterable[int]) -> int:
    """Proportional set size: a page that n processes share counts 1/n in each."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total


class PssPeak:
    """The highest PSS of a process and all its children while the block runs, looked at every `interval` seconds.

    Looking costs the process a little (its memory map is locked for it), so no stall is measured meanwhile.
    """

    def __init__(self, root: int, interval: float = 0.05, read: Callable[[Iterable[int]], int] = pss_kib) -> None:
        self.kib = 0
        self._root = root
        self._interval = interval
        self._read = read
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "PssPeak":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self.kib = max(self.kib, self._read(family(self._root)))
