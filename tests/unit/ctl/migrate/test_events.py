# SPDX-License-Identifier: GPL-3.0-or-later
"""One line for each event, whatever the users are called, and nothing held up when nobody reads."""

from __future__ import annotations

import io
import os
import re
from contextlib import suppress

from lmtp_proxy.ctl.migrate.events import LogWatcher, Summary, Watcher, summary_text


def summary(**values: object) -> Summary:
    given = {
        "run": 1, "total": 12, "done": 9, "already_done": 1, "failed": 1, "attention": 1, "unstarted": 0,
        "skipped": {}, "seconds": 240.0, "stopped": None, "status": 1, **values,
    }  # fmt: skip
    return Summary(**given)  # type: ignore[arg-type]


def test_one_line_for_each_event() -> None:
    stream = io.StringIO()
    watcher: Watcher = LogWatcher(stream, lambda: 0.0)
    watcher.began(12, 1)
    watcher.user_step("a\x1b[2J\nb", "syncing", "sync")
    watcher.user_ended("alice", "done", 0.251, None)
    watcher.user_ended("bob", "failed", None, "sync: exit 1")
    watcher.ended(summary())
    assert all(
        re.match(r"(19|20)\d\d-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4} ", line) for line in stream.getvalue().splitlines()
    )
    lines = [line.split(" ", 3)[3] for line in stream.getvalue().splitlines()]
    assert lines == [
        "12 users, 1 of them done already",
        "a\\x1b[2J\\nb: syncing: sync",
        "alice: done, offline for 251 ms",
        "bob: failed: sync: exit 1",
        "9 done, 1 done before, 1 failed, 1 needs attention of 12 users in 4 min",
    ]


def test_one_needs_and_two_need() -> None:
    assert ", 2 need attention of" in summary_text(summary(attention=2))


def test_why_it_stopped() -> None:
    text = summary_text(summary(unstarted=3, stopped="2 failures", skipped={"x": "is on new"}, seconds=2.0))
    assert text.endswith("1 skipped, 1 failed, 1 needs attention, 3 not begun of 12 users in 2.0 s (2 failures)")


def test_a_terminal_that_is_gone_stops_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = open(writing, "w")  # noqa: SIM115  (its end fails, too)
    watcher = LogWatcher(stream)
    watcher.note("nobody reads this")
    watcher.note("nor this")
    with suppress(BrokenPipeError):
        stream.close()
    LogWatcher(stream).note("closed")
