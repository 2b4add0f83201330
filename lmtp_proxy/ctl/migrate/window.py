# SPDX-License-Identifier: GPL-3.0-or-later
"""The hours of the day in which users may be begun, as 22:00-05:00, by the clock on the wall. Text in, seconds out."""

import re
import time
from dataclasses import dataclass

_FORM = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])-([01]?[0-9]|2[0-3]|24):([0-5][0-9])")
_DAY = 1440


@dataclass(frozen=True, slots=True)
class Window:
    """begin, end: minutes of the day; over midnight if the end is not later."""

    begin: int
    end: int
    text: str

    @property
    def length(self) -> float:
        """Seconds from its beginning to its end."""
        return ((self.end - self.begin) % _DAY or _DAY) * 60.0

    def left(self, now: float) -> float:
        """Seconds from `now` until it ends, 0.0 outside; an hour more or less in the night when clocks are changed."""
        if self.wait(now):
            return 0.0
        local = time.localtime(now)
        minute = local.tm_hour * 60 + local.tm_min
        return ((self.end - minute) % _DAY or _DAY) * 60.0 - local.tm_sec

    def wait(self, now: float) -> float:
        """Seconds from `now` (since the epoch) until users may be begun; 0.0 if they may.

        Looked at again after at most an hour, since clocks are changed at night.
        """
        local = time.localtime(now)
        minute = local.tm_hour * 60 + local.tm_min
        inside = self.begin <= minute < self.end if self.begin < self.end else not self.end <= minute < self.begin
        if inside:
            return 0.0
        return min(((self.begin - minute) % _DAY) * 60.0 - local.tm_sec, 3600.0)


def parse_window(text: str) -> Window:
    """Raises ValueError with what to write instead."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"must be hours of the day such as 22:00-05:00, not {text!r}")
    first, second, third, fourth = map(int, match.groups())
    begin, end = first * 60 + second, third * 60 + fourth
    if end > _DAY:
        raise ValueError(f"must be hours of the day such as 22:00-05:00, not {text!r}")
    if begin == end % _DAY:
        raise ValueError(f"{text} is no time at all, or all day: leave it out for all day")
    return Window(begin, end % _DAY, text)
