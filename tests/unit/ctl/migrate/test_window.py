# SPDX-License-Identifier: GPL-3.0-or-later
"""The hours in which users may be begun, by day, over midnight, and what is no time."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmtp_proxy.ctl.migrate.events import Silent
from lmtp_proxy.ctl.migrate.journal import Journal
from lmtp_proxy.ctl.migrate.runner import Runner, Settings
from lmtp_proxy.ctl.migrate.steps import Stop
from lmtp_proxy.ctl.migrate.window import parse_window


def at(text: str) -> float:
    """HH:MM, and the half of a minute, or HH:MM:SS."""
    hour, minute, second = map(int, [*text.split(":"), "30"][:3])
    return time.mktime((2026, 11, 24, hour, minute, second, 0, 0, -1))


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


@pytest.mark.parametrize(
    "window, now, left, length",
    [
        ("22:00-05:00", "22:00:00", 7 * 3600.0, 7 * 3600.0),
        ("22:00-05:00", "04:59:30", 30.0, 7 * 3600.0),
        ("22:00-05:00", "05:00:00", 0.0, 7 * 3600.0),
        ("22:00-24:00", "23:00:01", 3599.0, 7200.0),
        ("09:00-17:30", "17:29:59", 1.0, 8.5 * 3600),
        ("09:00-17:30", "08:59:59", 0.0, 8.5 * 3600),
    ],
)
def test_how_long_it_is_open(window: str, now: str, left: float, length: float) -> None:
    found = parse_window(window)
    assert (found.left(at(now)), found.length) == (left, length)


@pytest.mark.parametrize(
    "now, seconds, expected",
    [
        ("22:00:00", 3600.0, True),
        ("04:30:00", 1799.0, True),
        ("04:30:00", 1800.0, False),
        ("12:00:00", 0.1, False),
    ],
)
def test_nobody_is_parked_for_whom_there_is_no_time_left(
    tmp_path: Path, now: str, seconds: float, expected: bool
) -> None:
    settings = Settings(cutover_window=parse_window("22:00-05:00"), clock=lambda: at(now))
    nothing: Any = None
    with Journal(str(tmp_path / "journal")) as journal:
        runner = Runner(nothing, journal, nothing, Silent(), settings, nothing)
        assert runner._cuts_over(seconds) is expected
        with pytest.raises(Stop, match="longer than the window 22:00-05:00"):
            runner._cuts_over(7 * 3600.0)
        only = Runner(nothing, journal, nothing, Silent(), replace(settings, sync_only=True), nothing)
        assert only._cuts_over(seconds) is False
