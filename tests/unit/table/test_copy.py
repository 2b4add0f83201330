# SPDX-License-Identifier: GPL-3.0-or-later
"""The copy of a table on the disk: what is found again, whatever was cut off, and by whom it was written."""

import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lmtp_proxy.routing.keys import KeyRules
from lmtp_proxy.routing.table import TableUnavailable
from lmtp_proxy.table.base import TableError
from lmtp_proxy.table.copy import TableCopy
from lmtp_proxy.table.history import Position, RouteChange, RouteRow
from lmtp_proxy.table.reading import TableFound, TableInForce, find, meaning_of, served
from lmtp_proxy.table.replica import Replica, TableLook
from lmtp_proxy.table.served import ServedTable
from lmtp_proxy.table.sqlite import SqliteConnection, init
from lmtp_proxy.table.store import TableStore

RULES = KeyRules()
ROWS = [RouteRow("a@x", "old", False), RouteRow("B@x", "old", False), RouteRow("c@x", None, True)]


@pytest.fixture
def copy(tmp_path: Path) -> TableCopy:
    copy = TableCopy(str(tmp_path / "table.db"))
    with copy.locked():
        os.close(copy.write(ROWS, Position(5, 55), RULES, "m")[1])
    return copy


def changed(gen: int, backend: str | None = "new") -> RouteChange:
    return RouteChange(gen, "a@x", backend, False)


def logged(copy: TableCopy, *, whole: bool = True) -> list[tuple[Position, list[RouteChange]]]:
    found = copy.read("m")
    assert found is not None
    os.close(found[1])
    log = copy.logged(found[0])
    assert log.whole is whole
    return log.records


START = Position(5, 55)


def at(gen: int) -> Position:
    return START if gen == 5 else Position(gen, 11 * gen)


def look_at(path: str, served: ServedTable, may_go: Callable[[int], int]) -> TableLook:
    """One look, with a connection of its own."""
    with closing(Replica(path)) as replica:
        return replica.look(served, may_go)


def test_what_was_written_is_read(copy: TableCopy) -> None:
    found = copy.read("m")
    assert found is not None
    snapshot, handle = found
    os.close(handle)
    assert (snapshot.position, snapshot.counts) == (Position(5, 55), {"old": 1})
    assert snapshot.refused == {"B@x": 'must be written "b@x"'}
    assert copy.read("other rules") is None
    assert {path.stat().st_mode & 0o777 for path in Path(copy.path).parent.iterdir()} == {0o600}


def test_each_change_is_once_in_the_log_whoever_writes_it(copy: TableCopy) -> None:
    assert copy.append([changed(6), changed(7)], START, Position(7, 77))
    assert copy.append([changed(6)], START, Position(6, 66))  # a process that is behind
    assert copy.append([changed(6), changed(7), changed(8)], START, Position(8, 88))
    assert copy.append([changed(8)], Position(7, 77), Position(8, 88))
    assert logged(copy) == [
        (Position(7, 77), [changed(6), changed(7)]),
        (Position(8, 88), [changed(8)]),
    ]


def test_many_at_once(copy: TableCopy) -> None:
    def write() -> None:
        for gen in range(6, 60):
            assert copy.append([changed(each) for each in range(6, gen + 1)], START, at(gen))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [change.gen for _, changes in logged(copy) for change in changes] == list(range(6, 60))


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_half_a_line_is_none_and_the_next_one_stands_behind_the_last_whole_one(copy: TableCopy, cut: int) -> None:
    copy.append([changed(6)], START, at(6))
    copy.append([changed(7)], at(6), at(7))
    os.truncate(copy.log, os.path.getsize(copy.log) - cut)
    assert logged(copy) == [(Position(6, 66), [changed(6)])]
    assert copy.append([changed(7)], at(6), at(7))
    assert logged(copy) == [(Position(6, 66), [changed(6)]), (Position(7, 77), [changed(7)])]


def test_a_long_line(copy: TableCopy) -> None:
    many = [changed(gen) for gen in range(6, 2000)]
    copy.append(many, START, at(1999))
    assert copy.append([changed(2000)], at(1999), at(2000))
    assert [len(changes) for _, changes in logged(copy)] == [len(many), 1]


def test_a_log_of_another_snapshot_is_none(copy: TableCopy) -> None:
    copy.append([changed(6)], START, at(6))
    before = Path(copy.log).read_bytes()
    with copy.locked():
        os.close(copy.write(ROWS, Position(9, 99), RULES, "m")[1])
    assert logged(copy) == []
    Path(copy.log).write_bytes(before)  # as if it had crashed before that
    assert logged(copy) == []
    assert not copy.append([changed(10)], Position(9, 99), at(10)), "nobody would ever read it there"


def test_what_a_full_disk_took_half_of_is_not_there(copy: TableCopy, monkeypatch: pytest.MonkeyPatch) -> None:
    """write(2) takes less than it is given, and says so, when the disk fills up in the midst of it."""
    assert copy.append([changed(6)], START, at(6))
    real, left = os.pwrite, [40]

    def full(handle: int, octets: bytes, place: int) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = min(left[0], len(octets))
        left[0] -= taken
        return real(handle, octets[:taken], place)

    monkeypatch.setattr("lmtp_proxy.table.copy.os.pwrite", full)
    with pytest.raises(TableError, match="No space left"):
        copy.append([changed(7)], at(6), at(7))
    monkeypatch.undo()
    assert logged(copy) == [(at(6), [changed(6)])]
    assert copy.append([changed(7)], at(6), at(7))
    assert [position for position, _ in logged(copy)] == [at(6), at(7)]


def test_what_the_disk_did_not_keep_is_not_taken_for_done(copy: TableCopy, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("lmtp_proxy.table.copy.os.fsync", broken)
    with pytest.raises(TableError, match="Input/output error"):
        copy.append([changed(6)], START, at(6))
    monkeypatch.undo()
    assert logged(copy) == []


def test_nothing_stands_behind_a_gap(copy: TableCopy) -> None:
    assert copy.append([changed(6)], START, at(6))
    assert not copy.append([changed(8)], at(7), at(8)), "7 is missing"
    assert not copy.append([changed(7)], Position(6, 1), at(7)), "that is another 6"
    assert not copy.append([changed(6)], START, Position(6, 1))
    assert logged(copy) == [(at(6), [changed(6)])]
    with open(copy.log, "ab") as file:  # as a version without the check would have left it
        file.write(json.dumps([at(7), at(8), [changed(8)]]).encode() + b"\n")
    assert logged(copy, whole=False) == [(at(6), [changed(6)])]


@pytest.mark.parametrize("line", [b"\0" * 20, b"5", b"[1]", b"{}", b"[[1, 2], 3, []]"])
def test_a_line_that_is_no_record(copy: TableCopy, line: bytes) -> None:
    assert copy.append([changed(6)], START, at(6))
    with open(copy.log, "ab") as file:
        file.write(line + b"\n")
    assert not copy.append([changed(7)], at(6), at(7))
    logged(copy, whole=False)


def test_no_log(copy: TableCopy) -> None:
    os.unlink(copy.log)
    assert not copy.append([changed(6)], START, at(6))
    logged(copy, whole=False)


def test_the_lock_of_somebody_else_is_not_given_away(tmp_path: Path, copy: TableCopy) -> None:
    os.unlink(f"{tmp_path}/table.db.copy.lock")
    Path(tmp_path / "precious").touch()
    os.link(tmp_path / "precious", f"{tmp_path}/table.db.copy.lock")
    with pytest.raises(TableError, match="remove it"), copy.locked():
        pass


@pytest.mark.parametrize("damage", [b"", b"x", b"x" * 100])
def test_what_is_no_copy_is_none(copy: TableCopy, damage: bytes) -> None:
    whole = Path(copy.path).read_bytes()
    Path(copy.path).write_bytes(damage or whole[:-1])
    assert copy.read("m") is None


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    copy = TableCopy(str(tmp_path / "none" / "table.db"))
    with pytest.raises(TableError, match="the copy cannot be written: No such file"), copy.locked():
        pass


# --- as a start finds it ---------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> Iterator[TableStore]:
    init(str(tmp_path / "table.db"), [], 1, None)
    with closing(SqliteConnection(str(tmp_path / "table.db"))) as connection:
        store = TableStore(connection)
        store.put(iter([("a@x", "old"), ("b@x", "old"), ("@y", "new")]), "import")
        yield store


def any_number(users: int) -> int:
    return users


AT_START = TableInForce(None, any_number, start=True)


def started(path: str, *, accept: bool = False) -> tuple[ServedTable, TableFound]:
    found = find(path, RULES, AT_START, accept=accept)
    return served(found, path, RULES), found


def test_a_start_takes_the_copy_and_what_came_since(tmp_path: Path, base: TableStore) -> None:
    path = str(tmp_path / "table.db")
    first, found = started(path)
    assert (len(first), found.trouble, first.position) == (3, "", base.head().position)
    base.write(["a@x"], "new", "me")
    base.write(["b@x"], None, "me")
    second, again = started(path)
    assert again.file == found.file, "it was not read anew"
    assert (second.lookup("a@x"), second.counts["new"], len(second), second.changed) == ("new", 2, 2, 2)
    with pytest.raises(TableUnavailable, match="was taken away just now"):
        second.lookup("b@x")  # a restart does not shorten that
    base._base.change("UPDATE changed SET made_at = made_at - 20")
    assert started(path)[0].lookup("b@x") is None, "that was so for long before the start"
    fourth, _ = started(path)
    assert "_data" not in vars(fourth.base), "a mapping has a descriptor of its own, which a daemon would close"
    os.rename(path, path + ".gone")
    third, alone = started(path)
    assert (third.lookup("a@x"), third.position) == ("new", second.position)
    assert "there is no such file" in alone.trouble


def test_another_history_is_taken_only_if_somebody_says_so(tmp_path: Path, base: TableStore) -> None:
    path = str(tmp_path / "table.db")
    started(path)
    base._base.change("UPDATE changed SET tag = tag + 1 WHERE gen = 3")  # as in a backup with other changes
    base.write(["a@x"], "new", "me")
    kept, found = started(path)
    assert kept.lookup("a@x") == "old" and "was it put back from a backup?" in found.trouble
    assert look_at(path, kept, lambda _: 100).trouble == found.trouble
    taken, found = started(path, accept=True)
    assert taken.lookup("a@x") == "new" and found.trouble == ""


def test_a_newer_schema_changes_nothing(tmp_path: Path, base: TableStore) -> None:
    path = str(tmp_path / "table.db")
    started(path)
    base.write(["a@x"], "new", "me")
    base._base.change("UPDATE fleet SET layout = 2")
    kept, found = started(path)
    assert kept.lookup("a@x") == "old" and "newer lmtp-proxy (layout 2" in found.trouble


def test_rows_that_came_past_the_triggers_are_refused_as_a_whole(tmp_path: Path, base: TableStore) -> None:
    base._base.change("UPDATE fleet SET routes = 7")
    found = find(str(tmp_path / "table.db"), RULES, AT_START)
    assert found.snapshot is None and "has 3 rows, and must have 7" in found.trouble


def test_with_neither_database_nor_copy_nobody_has_a_route(tmp_path: Path) -> None:
    table, _ = started(str(tmp_path / "none.db"))
    with pytest.raises(TableUnavailable, match="there is no such file"):
        table.lookup("a@x")


def test_other_rules_read_it_anew(tmp_path: Path, base: TableStore) -> None:
    path = str(tmp_path / "table.db")
    _, found = started(path)
    rules = KeyRules(ignore_domain=True)
    other = find(path, rules, AT_START)
    assert other.file != found.file
    assert set(served(other, path, rules).refused) == {"a@x", "b@x", "@y"}
    assert meaning_of(rules) != meaning_of(RULES)


# --- served ----------------------------------------------------------------------------------------------------------


def test_what_is_served(tmp_path: Path, base: TableStore, monkeypatch: pytest.MonkeyPatch) -> None:
    table, _ = started(str(tmp_path / "table.db"))
    view = table.view({"old", "new"})
    assert view.lookup("a@x") == "old" and view.lookup("nobody@x") is None and view.has_domains
    table.apply([RouteChange(4, "a@x", "elsewhere", False)], RULES)
    with pytest.raises(TableUnavailable, match='a@x is on "elsewhere", and there is no such backend'):
        view.lookup("a@x")
    moves = table.apply([RouteChange(5, "a@x", "new", True), RouteChange(6, "A@x", "old", False)], RULES)
    assert [tuple(each) for each in moves] == [("a@x", "elsewhere", "new")]
    with pytest.raises(TableUnavailable, match="the row of a@x cannot be served"):
        view.lookup("a@x")
    table.apply([RouteChange(7, "A@x", None, False)], RULES)
    assert view.lookup("a@x") == "new"
    table.apply([RouteChange(8, "a@x", None, False)], RULES)
    with pytest.raises(TableUnavailable, match="was taken away just now"):
        view.lookup("a@x")
    monkeypatch.setattr("lmtp_proxy.table.served.time.monotonic", lambda: 10.0**9)
    assert view.lookup("a@x") is None
    assert len(view) == len(table) == 2


# --- brought up to date ----------------------------------------------------------------------------------------------


def test_changes_are_folded_once_they_are_many_and_then_cost_little_again(
    tmp_path: Path, base: TableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("reading", "replica", "node"):
        monkeypatch.setattr(f"lmtp_proxy.table.{module}.MOST", 5)
    path = str(tmp_path / "table.db")
    base._base.change_many("INSERT INTO route (address, backend) VALUES (?, 'old')", [(f"u{n}@x",) for n in range(20)])
    table, _ = started(path)
    loads = 0
    for number in range(20):
        base.write([f"u{number}@x"], "new", "me")
        look = look_at(path, table, any_number)
        if look.behind:
            loads += 1
            table, found = started(path)
            assert found.changes == () and table.changed == 0
            assert os.path.getsize(f"{path}.copy.log") < 200
        else:
            assert not look.trouble
            table.apply(look.changes, RULES)
            assert look.position is not None
            table.position = look.position
        assert table.lookup(f"u{number}@x") == "new"
    assert 2 <= loads <= 4


def test_a_log_that_was_torn_is_made_anew_by_the_next_start(tmp_path: Path, base: TableStore) -> None:
    path = str(tmp_path / "table.db")
    table, _ = started(path)
    base.write(["a@x"], "new", "me")
    base.write(["b@x"], "new", "me")
    assert len(look_at(path, table, any_number).changes) == 2
    lines = Path(f"{path}.copy.log").read_bytes().splitlines(keepends=True)
    record = json.loads(lines[1])
    record[2] = record[2][1:]
    Path(f"{path}.copy.log").write_bytes(lines[0] + json.dumps([[99, 1], *record[1:]]).encode() + b"\n")
    again, found = started(path)
    assert (again.lookup("a@x"), again.lookup("b@x"), found.changes) == ("new", "new", ())


def test_a_table_that_cannot_be_had_is_not_taken_for_no_news(tmp_path: Path, base: TableStore) -> None:
    path = str(tmp_path / "table.db")
    table, _ = started(path)
    base._base.change("UPDATE fleet SET routes = 7")
    with pytest.raises(TableError, match="must have 7"):
        find(path, RULES, TableInForce(table.base, any_number), accept=True)
    with pytest.raises(TableError, match="there is no such file"):
        find(f"{path}.none", RULES, TableInForce(table.base, any_number))


def test_who_goes_at_once_is_counted_and_not_how_many_are_left(tmp_path: Path, base: TableStore) -> None:
    path = str(tmp_path / "table.db")
    table, _ = started(path)
    copy = Path(f"{path}.copy").read_bytes()
    base._base.change("DELETE FROM route")
    base._base.change_many("INSERT INTO route (address, backend) VALUES (?, 'old')", [(f"u{n}@x",) for n in range(3)])
    for former in (TableInForce(table.base, lambda _: 2), TableInForce(None, lambda _: 2)):
        with pytest.raises(TableError, match="has lost 3 of 3 users"):
            find(path, RULES, former)
    assert Path(f"{path}.copy").read_bytes() == copy
    kept, found = find(path, RULES, TableInForce(None, lambda _: 2, start=True)), started(path)[1]
    assert "has lost 3 of 3" in kept.trouble and kept.changes == () and found.changes


def test_those_who_were_deferred_go_on_to_be_so(tmp_path: Path, base: TableStore) -> None:
    path = str(tmp_path / "table.db")
    table, _ = started(path)
    table.apply([RouteChange(4, "a@x", None, False)], RULES)
    base.write(["a@x"], None, "me")
    base.write(["b@x"], None, "me")
    base._base.change("UPDATE changed SET made_at = 0")
    fresh, _ = started(path)
    assert fresh.lookup("a@x") is None
    fresh.takes_the_place_of(table, ["b@x", "nobody@x"])
    for gone in ("a@x", "b@x"):
        with pytest.raises(TableUnavailable, match="just now"):
            fresh.lookup(gone)
    assert fresh.lookup("nobody@x") is None


def test_a_row_that_is_no_utf_8_keeps_nobody_from_being_served(tmp_path: Path, base: TableStore) -> None:
    path = str(tmp_path / "table.db")
    table, _ = started(path)
    base._base.change("INSERT INTO route (address, backend) VALUES (CAST(x'6dfc40782e79' AS TEXT), 'old')")
    base.write(["a@x"], "new", "me")
    look = look_at(path, table, any_number)
    table.apply(look.changes, RULES)
    assert table.lookup("a@x") == "new" and list(table.refused.values()) == ["is no UTF-8"]
    assert started(path)[0].refused == table.refused == started(path, accept=True)[0].refused
    base._base.change("DELETE FROM route WHERE backend = 'old' AND address LIKE 'm%'")
    assert started(path)[0].refused == {}
