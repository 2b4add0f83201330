# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal: what is entered is there after a crash, one runner at a time, a full disk, and files that are none."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lmtp_proxy.ctl.migrate.journal import Journal, Run, open_journal
from lmtp_proxy.ctl.migrate.journal_file import JournalError


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "migrate.db")


def test_the_way_of_a_user(path: str) -> None:
    with open_journal(path) as journal:
        run = journal.begin_run("/etc/plan.yml", "from: old\n", "old", "new", "reject")
        assert journal.user("alice") is None
        journal.enter(run, "alice", "syncing")
        step = journal.begin_step(run, "alice", "sync", 2)
        journal.end_step(step, "exit 2", "changed while it read")
        journal.enter(run, "alice", "parked", note="once")
        journal.putting_back(run, "alice", "the final sync failed")
        row = journal.user("alice")
        assert row is not None and (row.state, row.error, row.run, row.guard_since) == (
            "parked", "the final sync failed", run, 0.0,
        )  # fmt: skip
        journal.enter(run, "alice", "failed", error="the final sync failed")
        journal.put_receipt("alice", {"uncertain": [], "last_on_old": 1.5})
        journal.end_run(run, "1 failed")
    with open_journal(path, read_only=True) as journal:
        ways = [(entry.before, entry.after, entry.note) for entry in journal.transitions("alice")]
        assert ways == [
            ("on_old", "syncing", None),
            ("syncing", "parked", "once"),
            ("parked", "parked", "putting back: the final sync failed"),
            ("parked", "failed", "the final sync failed"),
        ]
        [seen] = journal.steps("alice")
        assert (seen.step, seen.attempt, seen.outcome, seen.output) == ("sync", 2, "exit 2", "changed while it read")
        assert seen.ended is not None and seen.began <= seen.ended
        assert journal.receipt("alice") == {"uncertain": [], "last_on_old": 1.5} and journal.receipt("bob") is None
        [done] = journal.runs()
        assert type(done) is Run
        assert (done.result, done.pid, done.plan) == ("1 failed", os.getpid(), "from: old\n")
        assert journal.transitions("bob") == [] and len(journal.users()) == 1


def test_what_may_not_follow_is_not_written(path: str) -> None:
    with open_journal(path) as journal:
        for state in ("syncing", "parked", "blocked", "final_sync", "moved"):
            journal.enter(1, "alice", state)
        for state in ("failed", "on_old", "syncing", "final_sync", "done"):
            with pytest.raises(AssertionError, match="may not follow moved"):
                journal.enter(1, "alice", state)
        row = journal.user("alice")
        assert row is not None and row.state == "moved"


def test_who_needs_attention_and_is_reset(path: str) -> None:
    with Journal(path, clock=lambda: 1000.0) as journal:
        journal.enter(1, "alice", "syncing")
        journal.enter(1, "alice", "needs_attention", error="mail is in the new store")
        assert journal.stuck("alice") == "syncing" and journal.stuck("bob") is None
        journal.enter(1, "alice", "needs_attention", error="still")
        assert journal.stuck("alice") == "syncing"
        journal.reset("alice", "by hand")
        row = journal.user("alice")
        assert row is not None and (row.state, row.error, row.guard_since) == ("on_old", None, 1000.0)
        journal.enter(2, "alice", "syncing")
        row = journal.user("alice")
        assert row is not None and row.guard_since == 1000.0, "and that is remembered"


def test_it_is_for_its_owner_alone_and_written_through(path: str) -> None:
    before = os.umask(0)
    try:
        with open_journal(path) as journal:
            journal.enter(1, "alice", "syncing")
            for file in Path(path).parent.iterdir():
                assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
            assert journal._connections[0].execute("PRAGMA synchronous").fetchone() == (2,)
            assert journal._connections[0].execute("PRAGMA journal_mode").fetchone() == ("wal",)
    finally:
        os.umask(before)


def test_a_second_runner_is_refused_and_readers_are_not(path: str) -> None:
    with open_journal(path) as journal:
        with pytest.raises(JournalError, match=rf"another run is at work on it: pid {os.getpid()}, since 20"):
            open_journal(path)
        with open_journal(path, read_only=True) as reader:
            journal.enter(1, "alice", "syncing")
            assert [row.state for row in reader.users()] == ["syncing"]
            with pytest.raises(JournalError):
                reader.enter(1, "alice", "parked")
    open_journal(path).close()


def test_a_dead_runner_leaves_all_that_it_entered(path: str) -> None:
    code = (
        "import os, signal, sys\n"
        "from lmtp_proxy.ctl.migrate.journal import open_journal\n"
        "journal = open_journal(sys.argv[1])\n"
        "journal.enter(1, 'alice', 'syncing')\n"
        "journal.begin_step(1, 'alice', 'sync')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, path], timeout=30, check=False).returncode == -9
    with open_journal(path) as journal:
        row = journal.user("alice")
        assert row is not None and row.state == "syncing"
        assert [step.ended for step in journal.steps()] == [None]


def test_threads_write_side_by_side(path: str) -> None:
    with open_journal(path) as journal:

        def work(user: str) -> None:
            for state in ("syncing", "parked", "blocked", "final_sync", "moved", "redirected", "done"):
                journal.enter(1, user, state)
                journal.end_step(journal.begin_step(1, user, state), "ok", "")

        threads = [threading.Thread(target=work, args=(f"u{number}",)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {row.state for row in journal.users()} == {"done"} and len(journal.steps()) == 56


def test_what_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("this is no database, but long enough to be looked at\n" * 100)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE mine(x)")
    db.close()
    for path, what in ((text, "is no journal"), (tmp_path / "none" / "x.db", "No such file"), (tmp_path, "directory")):
        with pytest.raises(JournalError, match=what):
            open_journal(str(path))
    with pytest.raises(JournalError, match="is no journal of lmtp-proxy"):
        open_journal(str(other), read_only=True)
    with pytest.raises(JournalError, match="is no journal of lmtp-proxy"):
        open_journal(str(other))
    with pytest.raises(JournalError, match="there is no such journal"):
        open_journal(str(tmp_path / "never.db"), read_only=True)
    assert not (tmp_path / "never.db").exists()


def test_a_full_disk_uses_the_room_that_was_kept_and_then_says_so(path: str) -> None:
    """The file may not grow: as on a full disk, SQLITE_FULL. (The room does not help against a limit of pages.)"""
    with open_journal(path) as journal:
        journal.enter(1, "alice", "syncing")
        for connection in journal._connections:
            [pages] = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages}")
        assert os.path.getsize(f"{path}.room") == 2**20

        def fill() -> None:
            for number in range(1000):
                journal.enter(1, f"user{number}" * 50, "syncing")

        with pytest.raises(JournalError, match=r"migrate\.db: cannot be written: .*full: make room there"):
            fill()
        assert journal.tight and not os.path.exists(f"{path}.room")
        assert len(journal.transitions()) == len(journal.users()), "half a transaction is none"


def test_a_clock_that_is_set_back_makes_nothing_take_less_than_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_journal(str(tmp_path / "j.db")) as journal:
        journal.begin_run("/p", "", "old", "new", "reject")
        step = journal.begin_step(1, "alice", "sync")
        back = time.time() - 3600
        monkeypatch.setattr(time, "time", lambda: back)
        journal.end_step(step, "ok", "")
        [found] = journal.steps("alice")
    assert found.ended is not None and 0 <= found.ended - found.began < 60
