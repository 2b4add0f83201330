# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a mistake of ours may not end what else is under way, its traceback is to be had all the same."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from lmtp_proxy.ctl.migrate.events import Silent, Summary
from lmtp_proxy.ctl.migrate.hooks import Ran
from lmtp_proxy.ctl.migrate.journal import open_journal
from lmtp_proxy.ctl.migrate.plan import Plan
from lmtp_proxy.ctl.migrate.proxy import Moved, Requeued, UserReceipts
from lmtp_proxy.ctl.migrate.runner import Watching, beside
from lmtp_proxy.ctl.migrate.steps import Parts
from lmtp_proxy.ctl.migrate.user_run import UserRun
from lmtp_proxy.ctl.mta import Mta


def traceback_of(log: pytest.LogCaptureFixture) -> str:
    """Of the one thing that was logged."""
    [record] = log.records
    assert record.levelno == logging.ERROR and record.exc_info is not None
    return log.text


class Broken(Silent):
    """A watcher with a mistake in it."""

    def __init__(self) -> None:
        self.called = 0

    def note(self, text: str) -> None:
        self.called += 1
        raise RuntimeError(f"cannot show {text}")

    def ended(self, summary: Summary) -> None:
        raise AssertionError("it is not called again")


def test_a_watcher_that_fails_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    watcher = Broken()
    watching = Watching(watcher)
    watching.note("a")
    watching.note("b")
    assert watcher.called == 1
    assert "RuntimeError: cannot show a" in traceback_of(caplog) and "in note" in caplog.text


def test_what_runs_beside(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> Requeued:
        raise RuntimeError("a bug")

    requeued = beside(fail)()
    assert not requeued.ok and requeued.text == "internal error: RuntimeError: a bug"
    assert "in fail" in traceback_of(caplog)


class BrokenProxy:
    """It has a mistake in its preflight."""

    def route(self, user: str) -> str | None:
        return "old"

    def route_in_file(self, user: str) -> str | None:
        return "old"

    def receipts(self, user: str) -> UserReceipts:
        return UserReceipts()

    def preflight(self, backend: str, address: str) -> str:
        raise RuntimeError("a bug")

    def move(self, user: str, backend: str, timeout: float, *, interruptible: bool) -> Moved:
        raise AssertionError("nobody is moved")

    def requeue(self, user: str, mta: Mta) -> Requeued:
        raise AssertionError("nothing was parked")


def test_a_user_whose_run_has_a_bug_is_put_back_and_it_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = Plan("/plan", "", "old", "new", "reject", {}, domain="example.org")
    with open_journal(str(tmp_path / "journal")) as journal:
        run = journal.begin_run("/plan", "", "old", "new", "reject")
        parts = Parts(plan, run, journal, BrokenProxy(), Silent(), _no_hook, lambda: False, beside)
        ended = UserRun("alice", parts).run()
    assert (ended.state, ended.error) == ("failed", "internal error: RuntimeError: a bug")
    assert "in preflight" in traceback_of(caplog) and "alice: internal error" in caplog.text


def _no_hook(*_arguments: object) -> Ran:
    raise AssertionError("the plan has none")
