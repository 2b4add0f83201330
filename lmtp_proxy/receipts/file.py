# SPDX-License-Identifier: GPL-3.0-or-later
"""The file of receipts, an SQLite database that several processes write: what each mailbox got, and what waits for it.

It also knows when something may be missing in it: a process that was killed has taken its last second with it, and
that is noticed by the next one. Runs in a thread: no gevent, no log. All that can go wrong is a ReceiptsError.
"""

import json
import os
import sqlite3
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from lmtp_proxy.receipts.batch import SILENT, UNNAMED, Batch, Json, ReceiptsError

FORMAT = 1
"""PRAGMA user_version of what is written here."""
PER_MAILBOX = 200
MAX_DEFERRED = 50_000
MAX_DELIVERED = 1_000_000  # rows: about 100 MB
KEPT = 5 * 86400.0  # seconds: how long Postfix keeps what it cannot deliver (maximal_queue_lifetime)
_MAX_GAPS = 100
_BUSY = 5.0  # seconds that another process may hold the lock
_TIDY = 600.0  # seconds between two looks at what is old

_SCHEMA = """
CREATE TABLE delivered(mailbox TEXT NOT NULL, backend TEXT NOT NULL, first REAL NOT NULL, last REAL NOT NULL,
    count INTEGER NOT NULL, uncertain INTEGER NOT NULL, PRIMARY KEY(mailbox, backend)) WITHOUT ROWID;
CREATE TABLE deferred(mailbox TEXT NOT NULL, queue_id TEXT NOT NULL, first REAL NOT NULL, last REAL NOT NULL,
    count INTEGER NOT NULL, why TEXT NOT NULL, PRIMARY KEY(mailbox, queue_id)) WITHOUT ROWID;
CREATE INDEX deferred_by_time ON deferred(last);
CREATE TABLE gaps(id INTEGER PRIMARY KEY, began REAL, ended REAL, why TEXT NOT NULL);
CREATE TABLE writers(id INTEGER PRIMARY KEY, process TEXT NOT NULL, written REAL NOT NULL);
"""

# Many rows in one statement, which runs without the interpreter's lock: row by row a busy event loop hands that over
# after 5 ms each time. SQLite takes 999 values in a statement, newer ones more.
_AT_ONCE = 100
_DELIVER = (
    "INSERT INTO delivered VALUES {} ON CONFLICT(mailbox, backend) DO UPDATE SET"
    " first = min(first, excluded.first), last = max(last, excluded.last),"
    " count = count + excluded.count, uncertain = uncertain + excluded.uncertain"
)
_DEFER = (
    "INSERT INTO deferred VALUES {} ON CONFLICT(mailbox, queue_id) DO UPDATE SET"
    " first = min(first, excluded.first), last = max(last, excluded.last),"
    " count = count + excluded.count, why = excluded.why"
)
_SETTLE = "DELETE FROM deferred WHERE (mailbox, queue_id) IN (VALUES {})"
_BOUND_EACH = """
DELETE FROM deferred WHERE (mailbox, queue_id) IN (SELECT mailbox, queue_id FROM
    (SELECT mailbox, queue_id, row_number() OVER (PARTITION BY mailbox ORDER BY last DESC) AS place
        FROM deferred WHERE mailbox IN (SELECT value FROM json_each(?)))
    WHERE place > ?)
"""
_BOUND_ALL = """
DELETE FROM deferred WHERE (mailbox, queue_id) IN
    (SELECT mailbox, queue_id FROM deferred ORDER BY last DESC LIMIT -1 OFFSET ?)
"""


class ReceiptsFile:
    """The file at `path`, which is made if it is not there. Raises ReceiptsError."""

    def __init__(self, path: str, now: float) -> None:
        self.path = path
        self._tidied = 0.0
        with _told(path):
            # To close it takes away the locks that this process has on it, so it stays open as long as the database.
            self._handle = _opened(path)
            try:
                # Autocommit: transactions are begun and ended here.
                self._base = sqlite3.connect(path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
                try:
                    self._begin(now)
                except BaseException:
                    self._base.close()
                    raise
            except BaseException:
                os.close(self._handle)
                raise

    def _begin(self, now: float) -> None:
        base = self._base
        with _transaction(base):
            [(version,)] = base.execute("PRAGMA user_version")
            if version > FORMAT:
                what = f"is of a newer lmtp-proxy (format {version}, this one knows {FORMAT})"
                raise ReceiptsError(f"{self.path}: {what}: name another file, or update")
            if version < FORMAT:
                if base.execute("SELECT 1 FROM sqlite_master").fetchone():
                    raise ReceiptsError(f"{self.path}: is a database of something else: name another file")
                for statement in _SCHEMA.split(";\n"):
                    base.execute(statement)
                base.execute(f"PRAGMA user_version = {FORMAT}")
                base.execute("INSERT INTO gaps(began, ended, why) VALUES (NULL, ?, 'the file was made then')", (now,))
        # A process that is killed loses nothing that it has written; only a crash of the machine may, and then the
        # row in `writers` is as old as the rest.
        self._use_wal()
        base.execute("PRAGMA synchronous = NORMAL")
        with _transaction(base):
            self._note_deaths(now)
            base.execute("UPDATE gaps SET ended = ? WHERE ended IS NULL", (now,))
            base.execute("DELETE FROM gaps WHERE id <= (SELECT max(id) FROM gaps) - ?", (_MAX_GAPS,))
            done = base.execute("INSERT INTO writers(process, written) VALUES (?, ?)", (_process(os.getpid()), now))
            self._writer = done.lastrowid

    def _use_wal(self) -> None:
        """For this SQLite waits for no other process, as it does for a transaction."""
        base = self._base
        latest = time.monotonic() + _BUSY
        while True:
            try:
                base.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() > latest:
                    raise
            with _transaction(base):
                pass

    @property
    def replaced(self) -> bool:
        """Somebody has taken the file away, or put another one in its place."""
        try:
            return not os.path.samestat(os.fstat(self._handle), os.stat(self.path))
        except OSError:
            return True

    def write(self, batch: Batch, until: float) -> None:
        """Write all that happened in this process until then: as a whole, or not at all (ReceiptsError)."""
        base = self._base
        with _told(self.path), _transaction(base):
            if batch.lost is not None:
                why = "the file could not be written, and too much came meanwhile"
                base.execute("INSERT INTO gaps(began, ended, why) VALUES (?, ?, ?)", (batch.lost, until, why))
            delivered = batch.delivered.items()
            self._rows(_DELIVER, [(*name, row.first, row.last, row.count, row.uncertain) for name, row in delivered])
            if batch.deferred:
                self._write_deferred(batch)
            if not 0 <= until - self._tidied < _TIDY:
                self._tidied = until
                self._tidy(until)
            base.execute("UPDATE writers SET written = ? WHERE id = ?", (until, self._writer))

    def _write_deferred(self, batch: Batch) -> None:
        base = self._base
        if base.execute("SELECT 1 FROM deferred LIMIT 1").fetchone():  # nearly always nothing waits
            self._rows(_SETTLE, [name for name, row in batch.deferred.items() if row is None])
        waiting = [(*name, row.first, row.last, row.count, row.why) for name, row in batch.deferred.items() if row]
        if waiting:
            self._rows(_DEFER, waiting)
            base.execute(_BOUND_EACH, (json.dumps([row[0] for row in waiting]), PER_MAILBOX))
            base.execute(_BOUND_ALL, (MAX_DEFERRED,))

    def _rows(self, statement: str, rows: Sequence[Sequence[object]]) -> None:
        """Run a statement for many rows.

        Args:
            statement: with {} where the rows are to stand.
        """
        for start in range(0, len(rows), _AT_ONCE):
            piece = rows[start : start + _AT_ONCE]
            marks = f"({', '.join('?' * len(piece[0]))})"
            values = [value for row in piece for value in row]
            self._base.execute(statement.format(", ".join([marks] * len(piece))), values)

    def _tidy(self, now: float) -> None:
        base = self._base
        base.execute("DELETE FROM deferred WHERE last < ?", (now - KEPT,))
        [(rows,)] = base.execute("SELECT count(*) FROM delivered")
        if rows > MAX_DELIVERED:  # made-up names that a backend takes; those of real users get mail again
            base.execute(
                "DELETE FROM delivered WHERE (mailbox, backend) IN"
                " (SELECT mailbox, backend FROM delivered ORDER BY last LIMIT ?)",
                (rows - MAX_DELIVERED + MAX_DELIVERED // 20,),
            )

    def read(self, mailboxes: Mapping[str, str], now: float) -> Json:
        """What is known of some mailboxes.

        Args:
            mailboxes: by the names that the answer has for them.

        Returns `users`, with `delivered`, `deferred` and `unnamed` for each name, and `gaps`, in which something may be
        missing, the newest last. `unnamed` is what was deferred without a queue id: whether the client said XFORWARD
        (`forwarded`), and how often that was; all of it may have come since.
        """
        base = self._base
        with _told(self.path), _transaction(base):
            self._note_deaths(now)
            users = {name: self._of_mailbox(mailbox) for name, mailbox in mailboxes.items()}
            gaps = base.execute("SELECT began, ended, why FROM gaps ORDER BY id").fetchall()
        return {
            "users": users,
            "gaps": [{"from": began, "until": ended, "why": why} for began, ended, why in gaps],
        }

    def _of_mailbox(self, mailbox: str) -> Json:
        base = self._base
        delivered = base.execute(
            "SELECT backend, first, last, count, uncertain FROM delivered WHERE mailbox = ? ORDER BY first", (mailbox,)
        )
        deferred = _objects(
            base.execute(
                "SELECT queue_id, first, last, count, why FROM deferred WHERE mailbox = ? ORDER BY first", (mailbox,)
            )
        )
        return {
            "delivered": _objects(delivered),
            "deferred": [row for row in deferred if row["queue_id"] not in (SILENT, UNNAMED)],
            "unnamed": [
                {"forwarded": row.pop("queue_id") == UNNAMED, **row}
                for row in deferred
                if row["queue_id"] in (SILENT, UNNAMED)
            ],
        }

    def _note_deaths(self, now: float) -> None:
        """What the dead have not written is a gap."""
        base = self._base
        for number, process, written in base.execute("SELECT id, process, written FROM writers").fetchall():
            pid = process.partition(" ")[0]
            if process != _process(int(pid)):
                why = f"lmtp-proxy process {pid} did not end well, and took what it had not written with it"
                base.execute("INSERT INTO gaps(began, ended, why) VALUES (?, ?, ?)", (written, now, why))
                base.execute("DELETE FROM writers WHERE id = ?", (number,))

    def close(self, now: float, *, mail_goes_on: bool) -> None:
        """Close it after all is written.

        Args:
            mail_goes_on: what comes next is written elsewhere, so that there is a gap here.
        """
        try:
            with _told(self.path), _transaction(self._base):
                if mail_goes_on:
                    why = "receipts were not kept here then"
                    self._base.execute("INSERT INTO gaps(began, ended, why) VALUES (?, NULL, ?)", (now, why))
                self._base.execute("DELETE FROM writers WHERE id = ?", (self._writer,))
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close it as it is."""
        try:
            self._base.close()
        finally:
            os.close(self._handle)


def _objects(cursor: sqlite3.Cursor) -> list[Json]:
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def _opened(path: str) -> int:
    """An empty file is a new database for SQLite, which gives its mode to those that it makes beside."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    raise ReceiptsError(f"{path}: is not a regular file")


def _process(pid: int) -> str:
    """Names a process for ever: its pid, when it began, in which run of the machine. Only its pid if gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            began = int(file.read().rpartition(b")")[2].split()[19])  # proc(5): starttime
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return f"{pid} {began} {file.read().strip().decode()}"
    except OSError:
        return str(pid)


@contextmanager
def _transaction(base: sqlite3.Connection) -> Iterator[None]:
    base.execute("BEGIN IMMEDIATE")
    try:
        yield
        base.execute("COMMIT")
    except BaseException:
        if base.in_transaction:
            base.execute("ROLLBACK")
        raise


@contextmanager
def _told(path: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise ReceiptsError(f"{path}: {error}") from error
    except OSError as error:
        raise ReceiptsError(f"{path}: {error.strerror or error}") from error
