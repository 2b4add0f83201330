# SPDX-License-Identifier: GPL-3.0-or-later
"""The table in a real SQLite file: what its triggers note, what it refuses, and how it fails."""

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lmtp_proxy.table.base import TableBusy, TableError, TableLost
from lmtp_proxy.table.history import Head, RouteChange
from lmtp_proxy.table.sqlite import SqliteConnection, init
from lmtp_proxy.table.store import Marked, TableStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "table.db"
    init(str(path), ["mx1"], 42, None)
    return path


@pytest.fixture
def store(path: Path) -> Iterator[TableStore]:
    with closing(SqliteConnection(str(path), busy=0.1)) as connection:
        yield TableStore(connection)


@pytest.fixture
def script(path: Path) -> Iterator[sqlite3.Connection]:
    """Somebody else's connection, which commits each statement."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0.1)) as connection:
        yield connection


def changes(store: TableStore, gen: int = 0) -> list[RouteChange]:
    return list(store.news(gen, 100).changes)


def test_a_new_table_is_empty_private_and_knows_its_nodes(path: Path, store: TableStore) -> None:
    assert store.head() == Head(0, 42, 0, 0, 1)
    assert [(row.name, row.epoch, row.state, row.seen) for row in store.nodes()] == [("mx1", 0, "absent", None)]
    assert {stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()} == {0o600}
    assert store.news(0, 1).own_tag == 42


def test_a_script_moves_by_a_plain_update(store: TableStore, script: sqlite3.Connection) -> None:
    script.execute("INSERT INTO route (address, backend) VALUES ('a@x', 'old'), ('b@x', 'old')")
    script.execute("UPDATE route SET backend = 'new' WHERE address = 'a@x'")
    script.execute("UPDATE route SET backend = 'new' WHERE address = 'a@x'")  # which changes nothing
    script.execute("DELETE FROM route WHERE address = 'b@x'")
    assert changes(store) == [
        RouteChange(1, "a@x", "old", False),
        RouteChange(2, "b@x", "old", False),
        RouteChange(3, "a@x", "new", False),
        RouteChange(4, "b@x", None, False),
    ]
    assert store.head().routes == 1


def test_insert_or_update_is_told_from_replace(store: TableStore, script: sqlite3.Connection) -> None:
    upsert = "INSERT INTO route (address, backend) VALUES ('a@x', ?) ON CONFLICT(address) DO UPDATE SET backend = ?"
    script.execute(upsert, ("old", "old"))
    script.execute(upsert, ("new", "new"))
    for statement in (
        "REPLACE INTO route (address, backend) VALUES ('a@x', 'old')",
        "INSERT OR REPLACE INTO route (address, backend) VALUES ('a@x', 'old')",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="REPLACE hides"):
            script.execute(statement)
    script.execute("INSERT OR IGNORE INTO route (address, backend) VALUES ('a@x', 'old')")
    script.execute("DELETE FROM route WHERE address = 'a@x'")
    script.execute("INSERT INTO route (address, backend) VALUES ('a@x', 'old')")  # the note of before is gone
    assert [change.backend for change in changes(store)] == ["old", "new", None, "old"]
    assert store.head().routes == 1


def test_another_address_is_a_removal_and_a_new_one(store: TableStore, script: sqlite3.Connection) -> None:
    script.execute("INSERT INTO route (address, backend) VALUES ('a@x', 'old'), ('b@x', 'new')")
    script.execute("UPDATE route SET address = 'c@x' WHERE address = 'a@x'")
    assert [tuple(change)[1:3] for change in changes(store, 2)] == [("a@x", None), ("c@x", "old")]
    with pytest.raises(sqlite3.IntegrityError):
        script.execute("UPDATE OR REPLACE route SET address = 'b@x' WHERE address = 'c@x'")


@pytest.mark.parametrize(
    "address, backend",
    [
        *(("", "old"), ("a\tb", "old"), ("a\nb", "old"), (b"a", "old"), ("a" * 513, "old"), (None, "old")),
        *(("a", ""), ("a", b"old"), ("a", "o" * 256)),
    ],
)
def test_what_can_be_no_key_and_no_backend_is_refused(
    script: sqlite3.Connection, address: object, backend: object
) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        script.execute("INSERT INTO route (address, backend) VALUES (?, ?)", (address, backend))


@pytest.mark.parametrize("damage", ["DELETE FROM fleet", "DROP TABLE changed"])
def test_nothing_is_changed_without_a_gen(script: sqlite3.Connection, damage: str) -> None:
    script.execute(damage)
    with pytest.raises(sqlite3.Error):
        script.execute("INSERT INTO route (address, backend) VALUES ('a@x', 'old')")
    assert script.execute("SELECT count(*) FROM route").fetchone() == (0,)


def test_a_move_in_its_steps(store: TableStore) -> None:
    store.put(iter([("a@x", "old"), ("b@x", "old")]), "import")
    marked = store.mark(["a@x", "c@x"], "mx1:1", 7)
    assert marked.previous == {"a@x": "old", "c@x": None}
    assert store.marks() == [("a@x", "mx1:1", 7), ("c@x", "mx1:1", 7)]
    with pytest.raises(Marked, match="a@x is being moved by mx1:1 since 7"):
        store.mark(["a@x"], "mx2:9", 8)
    assert store.mark(["a@x"], "mx1:1", 9).made == 0
    written = store.write(["a@x", "c@x"], "new", "mx1:1")
    assert (written.made, written.previous) == (2, {"a@x": "old", "c@x": None})
    assert store.is_known(written.position) and not store.is_known(written.position._replace(tag=1))
    store.unmark(["a@x"], "mx2:9")
    assert len(store.marks()) == 2
    store.unmark(["a@x", "c@x"], "mx1:1")
    assert store.marks() == []
    assert {name: row.backend for name, row in store.find(["a@x", "b@x", "c@x", "d@x"]).items()} == {
        "a@x": "new",
        "b@x": "old",
        "c@x": "new",
    }


def test_a_row_for_a_mark_alone_goes_with_the_mark(store: TableStore) -> None:
    store.mark(["c@x"], "me", 1)
    assert store.head().routes == 1
    store.unmark(["c@x"], None)
    assert store.head().routes == 0


def test_pruned(store: TableStore) -> None:
    store.put(iter((f"u{number}", "old") for number in range(10)), "import")
    assert store.prune(4) == 4
    assert store.head().floor == 4
    assert store.news(4, 100).own_tag is not None
    assert store.addresses_of(4, 6, 10) is None
    assert store.addresses_of(5, 6, 10) == ["u4", "u5"]
    assert store.addresses_of(5, 6, 1) is None
    assert store.prune(2) == 0
    assert store.head().floor == 4
    store.prune(10**9)
    assert store.head().floor == 10


def test_an_import_is_for_an_empty_table(store: TableStore) -> None:
    store.put(iter([("a", "old")]), "import")
    with pytest.raises(TableError, match="has users already"):
        store.put(iter([("b", "old")]), "import")
    assert store.head().routes == 1


def test_an_import_that_fails_leaves_nothing(store: TableStore) -> None:
    with pytest.raises(TableError):
        store.put(iter([("a", "old"), ("a", "old")]), "import")
    assert store.head().position == (0, 42)


# --- how it fails ----------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(TableLost, match="there is no such file"):
        SqliteConnection(str(tmp_path / "none.db"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_replaced_takes_nothing(path: Path, store: TableStore) -> None:
    os.rename(path, path.with_name("old.db"))
    with pytest.raises(TableLost, match="there is no such file"):
        store.write(["a@x"], "new", "me")
    path.touch()
    for ask in (store.nodes, lambda: store.write(["a@x"], "new", "me")):
        with pytest.raises(TableLost, match="another file has taken its place"):
            ask()


def test_a_lock_is_waited_for_and_then_named(store: TableStore, script: sqlite3.Connection) -> None:
    script.execute("BEGIN IMMEDIATE")
    with pytest.raises(TableBusy, match="is locked by another process"):
        store.write(["a@x"], "new", "me")
    assert store.news(0, 10).changes == []  # who reads does not wait for it
    script.execute("ROLLBACK")
    assert store.write(["a@x"], "new", "me").made == 1


@pytest.mark.parametrize(
    "octets, words",
    [(b"x" * 5000, "is no SQLite database"), (b"", "no such table: fleet: is it a table of lmtp-proxy?")],
)
def test_another_file(tmp_path: Path, octets: bytes, words: str) -> None:
    other = tmp_path / "other.db"
    other.write_bytes(octets)
    with pytest.raises(TableError, match=words.replace("?", r"\?")), closing(SqliteConnection(str(other))) as base:
        TableStore(base).head()


def test_a_damaged_file(path: Path, store: TableStore, script: sqlite3.Connection) -> None:
    store.put(iter((f"u{number}", "old") for number in range(1000)), "import")
    script.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    with pytest.raises(TableError, match="is damaged"), closing(SqliteConnection(str(path))) as base:
        TableStore(base).whole(lambda _, rows: [*rows].clear())


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="is no regular file"):
        SqliteConnection(str(tmp_path))


def test_init_leaves_alone_what_is_there(path: Path, tmp_path: Path) -> None:
    with pytest.raises(TableError, match="is a table of lmtp-proxy already"):
        init(str(path), [], 1, None)
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as base:
        base.execute("CREATE TABLE x (y)")
    with pytest.raises(TableError, match="is a database of something else"):
        init(str(other), [], 1, None)
    with pytest.raises(TableError, match="cannot be made: No such file"):
        init(str(tmp_path / "none" / "table.db"), [], 1, None)


def test_init_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TableError):
        init(str(tmp_path / "table.db"), ["mx1", "mx1"], 1, None)
    assert list(tmp_path.iterdir()) == []
    init(str(tmp_path / "table.db"), ["mx'1"], 1, None)


# --- nodes -----------------------------------------------------------------------------------------------------------


def test_a_node_joins_says_and_stops(store: TableStore) -> None:
    head = store.head()
    before = store.join("mx1", [], 5, "1.0", "abc")
    assert before is not None and before.state == "absent"
    assert store.acknowledge("mx1", 5, head.position, "7-9", {"A@x": "why"}, [])
    [row] = store.nodes()
    assert (row.seen, row.refused, row.unclean, row.state) == (head.position, {"A@x": "why"}, False, "serving")
    assert row.waiting.concerns(8, 8)
    assert not store.acknowledge("mx1", 4, head.position, "", {}, [])
    assert store.stop("mx1", 5)
    assert store.nodes()[0].state == "stopped"
    assert not store.acknowledge("mx1", 5, head.position, "", {}, [])  # not before it has joined again
    store.join("mx1", [5], 6, "1.0", "abc")
    store.join("mx1", [5, 6], 7, "1.0", "abc")  # after a crash
    assert store.nodes()[0].unclean
    assert store.clean("mx1", 7)
    assert not store.nodes()[0].unclean


def test_another_host_of_the_same_name_does_not_join(store: TableStore) -> None:
    store.join("mx1", [], 5, "1.0", "abc")
    with pytest.raises(TableError, match=r'node "mx1" is another one \(epoch 5'):
        store.join("mx1", [3], 6, "1.0", "abc")
    assert store.forget("mx1")
    assert store.join("mx1", [3], 6, "1.0", "abc") is None


def test_a_node_that_is_fenced_joins_anew(store: TableStore) -> None:
    store.join("mx1", [], 5, "1.0", "abc")
    assert not store.fence("mx1", 5, 99, 8)
    assert store.fence("mx1", 5, store.nodes()[0].renewed, 8)
    assert not store.acknowledge("mx1", 5, store.head().position, "", {}, [])
    assert store.nodes()[0].state == "fenced"


@pytest.mark.parametrize("column, value", [("waiting", "x"), ("refused", "[]"), ("refused", "{")])
def test_a_row_that_somebody_else_wrote(store: TableStore, script: sqlite3.Connection, column: str, value: str) -> None:
    script.execute(f"UPDATE node SET {column} = ?", (value,))
    with pytest.raises(TableError, match="was not written by lmtp-proxy"):
        store.nodes()
