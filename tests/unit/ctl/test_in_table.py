# SPDX-License-Identifier: GPL-3.0-or-later
"""Users changed in a database: nobody else's change is lost, and a mover's mark goes when the mover has."""

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from lmtp_proxy.ctl import in_table
from lmtp_proxy.routing.keys import KeyRules
from lmtp_proxy.table.base import TableError
from lmtp_proxy.table.sqlite import SqliteConnection, init
from lmtp_proxy.table.store import TableStore

RULES = KeyRules()


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = str(tmp_path / "table.db")
    init(path, [], 1, None)
    with closing(SqliteConnection(path)) as base:
        TableStore(base).put(iter([("a@x", "old"), ("b@x", "old")]), "import")
    return path


def sql(path: str, statement: str) -> list[tuple[object, ...]]:
    with closing(SqliteConnection(path)) as base:
        return base.rows(statement)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE route SET backend = 'third' WHERE address = 'a@x'",
        "UPDATE route SET moving = 0 WHERE address = 'a@x'",
        "UPDATE route SET moving_by = 'another' WHERE address = 'a@x'",
        "DELETE FROM route WHERE address = 'a@x'",
    ],
)
def test_what_a_script_does_between_mark_and_write_is_not_written_over(path: str, change: str) -> None:
    marked = in_table.mark(path, ["a@x", "b@x"], "new", RULES)
    sql(path, change)
    there = sql(path, "SELECT address, backend, moving, moving_by FROM route")
    with pytest.raises(TableError, match="somebody else has moved a@x meanwhile"):
        marked.write()
    assert sql(path, "SELECT address, backend, moving, moving_by FROM route") == there


def test_undo_is_for_who_holds_the_mark(path: str) -> None:
    written = in_table.mark(path, ["a@x"], "new", RULES).write()
    sql(path, "UPDATE route SET moving_by = 'another' WHERE address = 'a@x'")
    assert not written.undo()
    assert sql(path, "SELECT backend FROM route WHERE address = 'a@x'") == [("new",)]


def test_a_proxy_is_believed_by_its_position(path: str) -> None:
    before = in_table.mark(path, ["a@x"], "new", RULES)
    written = before.write()
    own = written.position
    assert written.why_not_in_force(f"abc@{own.gen}:{own.tag}") is None
    behind = written.why_not_in_force(f"abc@{before.position.gen}:{before.position.tag}")
    assert behind is not None and "it serves by change 3 of the table, and this is change 4" in behind
    for wrong in (f"abc@{own.gen}:{own.tag + 1}", f"abc@{own.gen + 7}:1"):
        assert "another history" in (written.why_not_in_force(wrong) or "")
    for nothing in (None, "abc", "abc@:", "abc@-1"):
        assert "does not say" in (written.why_not_in_force(nothing) or "")
    written.finish()
    [(gen, tag)] = sql(path, "SELECT gen, tag FROM fleet")
    assert written.why_not_in_force(f"abc@{gen}:{tag}") is None
    sql(path, "UPDATE changed SET tag = tag + 1 WHERE gen = 4")  # as after a restore
    assert "another history" in (written.why_not_in_force(f"abc@{gen}:{tag}") or "")


def test_who_is_gone_and_who_cannot_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    own = in_table.own_name()
    assert not in_table.is_gone(own)
    place, pid, began = own.rsplit(" ", 2)
    assert in_table.is_gone(f"{place} {pid} {int(began) + 1}"), "another process has its number now"
    assert not in_table.is_gone(f"other{own}")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert in_table.is_gone(f"{place} {ended.pid} 5")
    monkeypatch.setattr(in_table, "_began", lambda _: None)  # as where /proc is hidden
    assert not in_table.is_gone(own)
    assert in_table.is_gone(f"{place} {ended.pid} 5")

    def not_ours(_pid: int, _signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", not_ours)
    assert not in_table.is_gone(own)


def test_marks_are_cleared_whosever_they_are(path: str) -> None:
    sql(path, "UPDATE route SET moving = 1, moving_by = 'elsewhere 1 2' WHERE address = 'a@x'")
    sql(path, "INSERT INTO route (address, moving) VALUES ('c@x', 1)")
    assert in_table.clear(path, ["A@x", "b@x", "c@x"], RULES) == {"A@x": "elsewhere 1 2", "c@x": None}
    assert sql(path, "SELECT address, moving FROM route ORDER BY address") == [("a@x", 0), ("b@x", 0)]
