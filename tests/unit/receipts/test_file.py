# SPDX-License-Identifier: GPL-3.0-or-later
"""The file of receipts: what is written is added up, bounded, private, and knows when something may be missing."""

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmtp_proxy.receipts import batch as receipts_batch
from lmtp_proxy.receipts import file as receipts_file
from lmtp_proxy.receipts.batch import Batch, ReceiptsError
from lmtp_proxy.receipts.file import KEPT, ReceiptsFile

T = 1_800_000_000.0


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "receipts.db")


@pytest.fixture
def file(path: str) -> Iterator[ReceiptsFile]:
    opened = ReceiptsFile(path, T)
    yield opened
    opened.abandon()


def delivered(file: ReceiptsFile, user: str) -> list[tuple[str, float, float, int, int]]:
    rows = file.read({user: user}, T)["users"][user]["delivered"]
    return [(row["backend"], row["first"], row["last"], row["count"], row["uncertain"]) for row in rows]


def deferred(file: ReceiptsFile, user: str) -> list[tuple[str, float, float, int, str]]:
    rows = file.read({user: user}, T)["users"][user]["deferred"]
    return [(row["queue_id"], row["first"], row["last"], row["count"], row["why"]) for row in rows]


def test_deliveries_are_added_up(file: ReceiptsFile) -> None:
    batch = Batch()
    batch.deliver(("a+x", "a"), "old", T + 2, "")
    batch.deliver(("a",), "old", T + 1, "", uncertain=True)
    batch.deliver(("a",), "new", T + 3, "")
    file.write(batch, T + 4)
    assert delivered(file, "a") == [("old", T + 2, T + 2, 1, 1), ("new", T + 3, T + 3, 1, 0)]
    assert delivered(file, "a+x") == [("old", T + 2, T + 2, 1, 0)]
    again = Batch()
    again.deliver(("a",), "old", T + 9, "")
    file.write(again, T + 9)
    assert delivered(file, "a")[0] == ("old", T + 2, T + 9, 2, 1)
    assert delivered(file, "b") == []


def test_what_waits_goes_when_it_is_delivered(file: ReceiptsFile) -> None:
    batch = Batch()
    batch.defer(("a",), "1", T, "450 first")
    batch.defer(("a",), "1", T + 1, "450 then")
    batch.defer(("a", "b"), "2", T, "450")
    file.write(batch, T + 1)
    assert deferred(file, "a") == [("1", T, T + 1, 2, "450 then"), ("2", T, T, 1, "450")]
    later = Batch()
    later.defer(("a",), "1", T + 5, "451 again")
    later.deliver(("a",), "new", T + 6, "2")
    file.write(later, T + 6)
    assert deferred(file, "a") == [("1", T, T + 5, 3, "451 again")]
    assert deferred(file, "b") == [("2", T, T, 1, "450")]


def test_of_what_happened_in_one_second_the_last_counts(file: ReceiptsFile) -> None:
    batch = Batch()
    batch.defer(("a",), "1", T, "450")
    batch.deliver(("a",), "new", T, "1")
    batch.deliver(("a",), "new", T, "2")
    batch.defer(("a",), "2", T, "450")
    batch.defer(("a",), "3", T, "450")
    batch.settle(("a",), "3")
    batch.deliver(("a",), "new", T, "4", uncertain=True)
    batch.defer(("a",), "4", T, "451 may be delivered")
    file.write(batch, T)
    assert [row[0] for row in deferred(file, "a")] == ["2", "4"]


def test_names_are_data(file: ReceiptsFile) -> None:
    names = ["a'; DROP TABLE delivered; --", 'q"uote', "grüße@x", "\u2028", "%s", "null"]
    batch = Batch()
    for name in names:
        batch.deliver((name,), name, T, "")
        batch.defer((name,), "1", T, name)
    file.write(batch, T)
    for name in names:
        assert delivered(file, name) == [(name, T, T, 1, 0)]
        assert deferred(file, name) == [("1", T, T, 1, name)]


def test_only_the_newest_of_a_mailbox_are_kept(file: ReceiptsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts_file, "PER_MAILBOX", 3)
    for start in (0, 4):
        batch = Batch()
        for number in range(start, start + 4):
            batch.defer(("a",), str(number), T + number, "450")
        batch.defer(("b",), "x", T, "450")
        file.write(batch, T)
    assert [row[0] for row in deferred(file, "a")] == ["5", "6", "7"]
    assert [row[0] for row in deferred(file, "b")] == ["x"]


def test_only_the_newest_of_all_are_kept(file: ReceiptsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts_file, "MAX_DEFERRED", 5)
    batch = Batch()
    for number in range(8):
        batch.defer((f"u{number}",), "1", T + number, "450")
    file.write(batch, T)
    assert [number for number in range(8) if deferred(file, f"u{number}")] == [3, 4, 5, 6, 7]


def test_what_is_old_goes(file: ReceiptsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts_file, "MAX_DELIVERED", 10)
    batch = Batch()
    batch.defer(("a",), "old", T, "450")
    for number in range(12):
        batch.deliver((f"u{number}",), "new", T + number, "")
    file.write(batch, T + 12)
    assert [number for number in range(12) if not delivered(file, f"u{number}")] == [0, 1]
    later = Batch()
    later.defer(("a",), "young", T + KEPT, "450")
    file.write(later, T + KEPT + 1)
    assert [row[0] for row in deferred(file, "a")] == ["young"]


def test_too_much_is_dropped_and_told(file: ReceiptsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts_batch, "MAX_ROWS", 3)
    batch = Batch()
    for number in range(4):
        batch.limit(T + number)
        assert batch.lost is None
        batch.deliver((f"u{number}",), "new", T + number, "")
    batch.limit(T + 5)
    assert batch.lost == T and not batch.delivered
    batch.deliver(("b",), "new", T + 6, "")
    batch.drop(T + 6)
    assert batch.lost == T and bool(batch)
    file.write(batch, T + 7)
    assert file.read({}, T)["gaps"][1:] == [
        {"from": T, "until": T + 7, "why": "the file could not be written, and too much came meanwhile"}
    ]
    assert not Batch()


# --- the file itself -------------------------------------------------------------------------------------------------


def test_it_is_private_from_its_first_octet_on(path: str) -> None:
    mask = os.umask(0)
    try:
        file = ReceiptsFile(path, T)
    finally:
        os.umask(mask)
    made = list(Path(path).parent.iterdir())
    assert sorted(each.name for each in made) == ["receipts.db", "receipts.db-shm", "receipts.db-wal"]
    assert {stat.S_IMODE(each.stat().st_mode) for each in made} == {0o600}
    file.close(T, mail_goes_on=False)
    assert os.listdir(Path(path).parent) == ["receipts.db"]


def open_and_die(path: str, when: float) -> None:
    """In another process."""
    code = f"F({path!r}, {when}); os.kill(os.getpid(), 9)"
    code = f"import os; from lmtp_proxy.receipts.file import ReceiptsFile as F; {code}"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9


def test_gaps_of_a_life(path: str) -> None:
    file = ReceiptsFile(path, T)
    file.close(T + 1, mail_goes_on=True)
    file = ReceiptsFile(path, T + 5)
    file.write(Batch(), T + 6)
    file.close(T + 7, mail_goes_on=False)
    open_and_die(path, T + 10)
    file = ReceiptsFile(path, T + 20)
    other = ReceiptsFile(path, T + 21)
    gaps = other.read({}, T + 22)["gaps"]
    assert [(gap["from"], gap["until"]) for gap in gaps] == [(None, T), (T + 1, T + 5), (T + 10, T + 20)]
    assert "did not end well" in gaps[2]["why"]
    for each in (file, other):
        each.close(T + 23, mail_goes_on=False)


def test_a_process_that_dies_is_noticed_by_those_that_live(file: ReceiptsFile, path: str) -> None:
    open_and_die(path, T + 1)
    for _ in range(2):
        assert [(gap["from"], gap["until"]) for gap in file.read({}, T + 2)["gaps"][1:]] == [(T + 1, T + 2)]


def test_a_number_that_another_process_has_now_is_no_sign_of_life(file: ReceiptsFile, path: str) -> None:
    with sqlite3.connect(path) as base:
        base.execute("INSERT INTO writers(process, written) VALUES (?, ?)", (f"{os.getpid()} 12345 boot", T - 9))
    base.close()
    [gap] = file.read({}, T + 1)["gaps"][1:]
    assert gap["from"] == T - 9


def test_gaps_are_bounded(path: str) -> None:
    for number in range(0, 2 * receipts_file._MAX_GAPS, 2):
        ReceiptsFile(path, T + number).close(T + number + 1, mail_goes_on=True)
    file = ReceiptsFile(path, T + 1e6)
    gaps = file.read({}, T)["gaps"]
    assert len(gaps) == receipts_file._MAX_GAPS and gaps[-1]["until"] == T + 1e6
    file.close(T, mail_goes_on=False)


def test_many_open_a_new_one_at_once(path: str) -> None:
    code = (
        f"import sys; from lmtp_proxy.receipts.file import ReceiptsFile as F; f = F({path!r}, {T});"
        "sys.stdin.read(); f.close(0, mail_goes_on=False)"
    )
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(8)]
    ended = [process.communicate(timeout=30)[1] for process in processes]
    assert ended == [b""] * 8
    file = ReceiptsFile(path, T)
    assert len(file.read({}, T)["gaps"]) == 1
    file.close(T, mail_goes_on=False)


def test_a_file_in_place_of_another_is_seen(file: ReceiptsFile, path: str) -> None:
    seen = [file.replaced]
    os.rename(path, path + ".old")
    seen.append(file.replaced)
    Path(path).touch()
    assert [*seen, file.replaced] == [False, True, True]


def test_errors_are_one_line(tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    with sqlite3.connect(newer) as base:
        base.execute(f"PRAGMA user_version = {receipts_file.FORMAT + 1}")
    base.close()
    other = tmp_path / "other"
    with sqlite3.connect(other) as base:
        base.execute("CREATE TABLE things(x)")
    base.close()
    (tmp_path / "text").write_text("no database, and too long for the beginning of one" * 20)
    (tmp_path / "directory").mkdir()
    for name, what in (
        ("newer", "is of a newer lmtp-proxy (format 2, this one knows 1): name another file, or update"),
        ("other", "is a database of something else: name another file"),
        ("text", "file is not a database"),
        ("directory", "Is a directory"),
        ("missing/file", "No such file or directory"),
    ):
        before = os.listdir(tmp_path)
        with pytest.raises(ReceiptsError) as error:
            ReceiptsFile(str(tmp_path / name), T)
        assert str(error.value) == f"{tmp_path / name}: {what}"
        assert os.listdir(tmp_path) == before
