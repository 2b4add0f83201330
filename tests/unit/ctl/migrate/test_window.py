# SPDX-License-Identifier: GPL-3.0-or-later
"""The hours in which users may be begun, by day, over midnight, and what is no time."""

from __future__ import annotations

import time

import pytest

from lmtp_proxy.ctl.migrate.window import parse_window


def at(text: str) -> float:
    hour, minute = map(int, text.split(":"))
    return time.mktime((2026, 11, 24, hour, minute, 30, 0, 0, -1))


@pytest.mark.parametrize(
    "window, now, expected",
    [
        ("22:00-05:00", "23:00", 0.0),
        ("22:00-05:00", "22:00", 0.0),
        ("22:00-05:00", "04:59", 0.0),
        ("22:00-05:00", "05:00", 3600.0),
        ("22:00-05:00", "21:30", 1770.0),
        ("22:00-05:00", "21:59", 30.0),
        ("01:00-04:30", "02:00", 0.0),
        ("1:00-4:30", "04:30", 3600.0),
        ("20:00-24:00", "23:59", 0.0),
        ("20:00-24:00", "00:00", 3600.0),
    ],
)
def test_how_long_to_wait(window: str, now: str, expected: float) -> None:
    assert parse_window(window).wait(at(now)) == expected


@pytest.mark.parametrize("text", ["", "22-05", "22:00", "24:00-05:00", "22:60-05:00", "20:00-24:01", "2:0-2:0"])
def test_what_is_no_window(text: str) -> None:
    with pytest.raises(ValueError, match=r"all day: leave it out"):
        parse_window("22:00-22:00")
    with pytest.raises(ValueError, match=r"must be hours of the day|is no time at all"):
        parse_window(text)
