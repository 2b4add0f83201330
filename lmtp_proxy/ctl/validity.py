# SPDX-License-Identifier: GPL-3.0-or-later
"""When an order may be carried out, by the clock of the machine that does it.

An order for another host may come late: the network kept it, or whoever gave it has died. So it says until when it is
good, by that host's own clock, which its giver was told before; and what takes it back says from when on, so that it
comes after the other whatever happens on the way. No two clocks are compared.
"""

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Moment:
    """Of one machine, since it was started.

    Attributes:
        boot: the kernel's own name of that start.
        seconds: CLOCK_BOOTTIME, which goes on while the machine sleeps.
    """

    boot: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.boot}/{self.seconds:.3f}"

    @property
    def ahead(self) -> float | None:
        """Seconds until it comes here, negative if it is over; None if this machine was started anew since."""
        return self.seconds - _clock() if self.boot == _boot() else None

    def later(self, seconds: float) -> "Moment":
        return Moment(self.boot, self.seconds + seconds)


@dataclass(frozen=True, slots=True)
class Validity:
    """When an order is good."""

    not_before: Moment | None = None
    not_after: Moment | None = None

    @property
    def early(self) -> float:
        """Seconds to wait before it may be carried out."""
        return max(0.0, (self.not_before.ahead if self.not_before else None) or 0.0)

    @property
    def over(self) -> bool:
        if self.not_after is None:
            return False
        ahead = self.not_after.ahead
        return ahead is None or ahead < 0


ALWAYS = Validity()


def now() -> Moment:
    return Moment(_boot(), _clock())


def moment(text: str) -> Moment:
    """As `str` writes it. Raises ValueError."""
    boot, _, seconds = text.partition("/")
    if not boot or not boot.isprintable() or not seconds.replace(".", "", 1).isdigit():
        raise ValueError("must be BOOT/SECONDS, as --dry-run says them")
    return Moment(boot, float(seconds))


def _clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@cache
def _boot() -> str:
    try:
        return _BOOT.read_text("ascii").strip()
    except (OSError, ValueError):  # no /proc
        return "unknown"
