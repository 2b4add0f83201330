# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal of a migration: an SQLite file with where each user is, and how that came about.

A state is on disk when `enter` returns. One runner writes, under a lock on a file of its own; whoever reads may do so
at the same time. It knows the states and which may follow which, and nothing of plans, hooks and the proxy.
"""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lmtp_proxy.ctl.migrate.hooks import Begun
from lmtp_proxy.ctl.migrate.journal_file import NO_ROOM, JournalError, advice, create, keep_room, lock, use_room
from lmtp_proxy.ctl.migrate.left_behind import Unsettled, boot, forget_lock
from lmtp_proxy.ctl.migrate.states import NEEDS_ATTENTION, ON_OLD, next_states

VERSION = 1
_BUSY = 30.0  # seconds: readers of a WAL stop no writer; a backup tool may for a moment

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs(id INTEGER PRIMARY KEY, began REAL, ended REAL, pid INTEGER, plan_path TEXT, plan TEXT,
    old TEXT, new TEXT, park TEXT, result TEXT);
CREATE TABLE IF NOT EXISTS users(user TEXT PRIMARY KEY, state TEXT, since REAL, run INTEGER, error TEXT,
    guard_since REAL);
CREATE TABLE IF NOT EXISTS transitions(id INTEGER PRIMARY KEY, run INTEGER, user TEXT, at REAL, before TEXT, after TEXT,
    note TEXT);
CREATE TABLE IF NOT EXISTS steps(id INTEGER PRIMARY KEY, run INTEGER, user TEXT, step TEXT, attempt INTEGER, began REAL,
    ended REAL, outcome TEXT, output TEXT);
CREATE TABLE IF NOT EXISTS receipts(user TEXT PRIMARY KEY, document TEXT);
CREATE TABLE IF NOT EXISTS unsettled(step INTEGER PRIMARY KEY, boot TEXT, pid INTEGER, start INTEGER, keeper INTEGER,
    keeper_start INTEGER, mirror INTEGER);
CREATE INDEX IF NOT EXISTS transitions_of ON transitions(user);
CREATE INDEX IF NOT EXISTS steps_of ON steps(user);
"""
_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class UserRow:
    """Where one user is. Times are seconds since the epoch.

    Attributes:
        since: when the state was entered.
        run: that entered it.
        error: why it failed, or is being put back, or what a human has to do.
        guard_since: deliveries to the new store before that are known.
    """

    user: str
    state: str
    since: float
    run: int | None
    error: str | None
    guard_since: float


@dataclass(frozen=True, slots=True)
class Transition:
    id: int
    run: int | None
    user: str
    at: float
    before: str
    after: str
    note: str | None


@dataclass(frozen=True, slots=True)
class Step:
    """ended, outcome: None while it is under way, and for ever if the run died then."""

    id: int
    run: int
    user: str
    step: str
    attempt: int
    began: float
    ended: float | None
    outcome: str | None
    output: str | None


@dataclass(frozen=True, slots=True)
class Run:
    """One run, as the journal has it.

    Attributes:
        plan: the text of its plan.
        old, new, park: names of the proxy.
        result: None while it is under way, or died.
    """

    id: int
    began: float
    ended: float | None
    pid: int
    plan_path: str
    plan: str
    old: str
    new: str
    park: str
    result: str | None


def open_journal(path: str, *, read_only: bool = False) -> "Journal":
    """Opens the journal, and makes it unless read_only. Raises JournalError: another run is at work on it, say."""
    return Journal(path, read_only=read_only)


def steady() -> Callable[[], float]:
    """Seconds since the epoch as they are now, and from here on by the monotonic clock.

    All that a run writes is as far apart as it was, also when somebody sets the clock meanwhile.
    """
    since = time.time() - time.monotonic()
    return lambda: since + time.monotonic()


class Journal:
    """To be closed. Its methods may be called from any thread, and raise JournalError.

    tight: the disk was full; the room that was kept is in use, so bring to an end what is in hand and nothing more.
    """

    def __init__(self, path: str, *, read_only: bool = False, clock: Callable[[], float] | None = None) -> None:
        self.path = os.path.realpath(path)  # its lock is beside it, by whatever name the plan has it
        self.tight = False
        self._clock = clock or steady()
        self._mutex = threading.Lock()
        self._lock = -1
        self._connections: list[sqlite3.Connection] = []
        try:
            with self._told():
                if read_only:
                    self._open_to_read()
                else:
                    self._open_to_write()
        except BaseException:
            self.close()
            raise

    @property
    def clock(self) -> Callable[[], float]:
        """By which its times are."""
        return self._clock

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Whoever waits for the lock may have it."""
        with self._mutex:
            for connection in self._connections:
                connection.close()
            self._connections = []
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    def _open_to_read(self) -> None:
        if not os.path.exists(self.path):
            raise JournalError(f"{self.path}: there is no such journal: nothing was migrated with it yet")
        uri = f"{Path(os.path.abspath(self.path)).as_uri()}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, timeout=_BUSY, isolation_level=None, check_same_thread=False)
        self._connections = [connection]
        self._check_version(connection)

    def _open_to_write(self) -> None:
        self._lock = lock(self.path)
        create(self.path)
        for synchronous in ("FULL", "NORMAL"):
            connection = sqlite3.connect(self.path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
            self._connections.append(connection)
            new = not connection.execute("PRAGMA schema_version").fetchone()[0]
            if not new:
                self._check_version(connection)  # before anything is changed in a file of somebody else's
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
        keep_room(self.path)

    def _check_version(self, connection: sqlite3.Connection) -> None:
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found != VERSION:
            what = "is no journal of lmtp-proxy" if not found else f"has version {found}, and this is for {VERSION}"
            raise JournalError(f"{self.path}: {what}; name another file as `journal` in the plan")

    # --- what is in it ---

    def users(self) -> list[UserRow]:
        return [_user(row) for row in self._rows("SELECT * FROM users ORDER BY user")]

    def user(self, user: str) -> UserRow | None:
        """None if the journal has never heard of the user."""
        rows = self._rows("SELECT * FROM users WHERE user = ?", user)
        return _user(rows[0]) if rows else None

    def transitions(self, user: str | None = None) -> list[Transition]:
        """All, or those of one user; the oldest first."""
        return [Transition(*row) for row in self._of("transitions", user)]

    def steps(self, user: str | None = None) -> list[Step]:
        return [Step(*row) for row in self._of("steps", user)]

    def receipt(self, user: str) -> dict[str, Any] | None:
        rows = self._rows("SELECT document FROM receipts WHERE user = ?", user)
        return dict(json.loads(rows[0][0])) if rows else None

    def runs(self) -> list[Run]:
        return [Run(*row) for row in self._rows("SELECT * FROM runs ORDER BY id")]

    def stuck(self, user: str) -> str | None:
        """The state that a user who needs attention was in before."""
        query = "SELECT before FROM transitions WHERE user = ? AND after = ? AND before != ? ORDER BY id DESC LIMIT 1"
        rows = self._rows(query, user, NEEDS_ATTENTION, NEEDS_ATTENTION)
        return str(rows[0][0]) if rows else None

    # --- what is written ---

    def begin_run(self, plan_path: str, plan: str, old: str, new: str, park: str) -> int:
        """Returns its number."""
        values = (self._clock(), os.getpid(), plan_path, plan, old, new, park)
        query = "INSERT INTO runs(began, pid, plan_path, plan, old, new, park) VALUES(?, ?, ?, ?, ?, ?, ?)"
        return self._write(lambda db: db.execute(query, values).lastrowid or 0)

    def end_run(self, run: int, result: str) -> None:
        values = (self._clock(), result, run)
        self._write(lambda db: db.execute("UPDATE runs SET ended = ?, result = ? WHERE id = ?", values))

    def enter(
        self, run: int | None, user: str, state: str, *, note: str | None = None, error: str | None = None
    ) -> None:
        """The user is in `state`; on disk when this returns. The error of before is forgotten."""
        self._write(lambda db: self._enter(db, run, user, state, note, error))

    def _enter(
        self, db: sqlite3.Connection, run: int | None, user: str, state: str, note: str | None, error: str | None
    ) -> None:
        row = db.execute("SELECT state FROM users WHERE user = ?", (user,)).fetchone()
        before = row[0] if row else ON_OLD
        if state not in next_states(before):
            raise AssertionError(f"{user}: {state} may not follow {before}")
        now = self._clock()
        db.execute(
            "INSERT INTO users(user, state, since, run, error, guard_since) VALUES(?, ?, ?, ?, ?, 0) "
            "ON CONFLICT(user) DO UPDATE SET state = excluded.state, since = excluded.since, run = excluded.run, "
            "error = excluded.error",
            (user, state, now, run, error),
        )
        _transition(db, run, user, now, before, state, note or error)

    def putting_back(self, run: int | None, user: str, why: str) -> None:
        """From now on the user is being put back, in the same state; on disk when this returns."""

        def write(db: sqlite3.Connection) -> None:
            state = db.execute("SELECT state FROM users WHERE user = ?", (user,)).fetchone()[0]
            db.execute("UPDATE users SET error = ?, run = ? WHERE user = ?", (why, run, user))
            _transition(db, run, user, self._clock(), state, state, f"putting back: {why}")

        self._write(write)

    def reset(self, user: str, note: str) -> None:
        """The user begins anew. What was delivered to the new store before now is known, and dealt with."""

        def write(db: sqlite3.Connection) -> None:
            self._enter(db, None, user, ON_OLD, note, None)
            db.execute("UPDATE users SET guard_since = ? WHERE user = ?", (self._clock(), user))

        self._write(write)

    def begin_step(self, run: int, user: str, step: str, attempt: int = 1) -> int:
        """Returns its number. Not on disk before the next state is: it says only what was tried."""
        values = (run, user, step, attempt, self._clock())
        query = "INSERT INTO steps(run, user, step, attempt, began) VALUES(?, ?, ?, ?, ?)"
        return self._write(lambda db: db.execute(query, values).lastrowid or 0, durable=False)

    def end_step(self, step: int, outcome: str, output: str, *, settled: bool = True) -> None:
        """settled: nothing of it can still run, or may."""
        values = (self._clock(), outcome, output, step)

        def write(db: sqlite3.Connection) -> None:
            db.execute("UPDATE steps SET ended = ?, outcome = ?, output = ? WHERE id = ?", values)
            if settled:
                db.execute("DELETE FROM unsettled WHERE step = ?", (step,))

        self._write(write, durable=False)
        if settled:
            forget_lock(self.path, step)

    def begin_process(self, step: int, begun: Begun, *, mirror: bool) -> None:
        """Before the command of the step begins: who it is."""
        values = (step, boot(), begun.pid, begun.start, begun.keeper, begun.keeper_start, mirror)
        self._write(lambda db: db.execute("INSERT INTO unsettled VALUES(?, ?, ?, ?, ?, ?, ?)", values), durable=False)

    def unsettled(self, user: str | None = None) -> list[Unsettled]:
        """Commands of which nobody knows that all has ended, of one user or of all; if no run is under way."""
        query = (
            "SELECT unsettled.step, steps.user, steps.step, boot, pid, start, keeper, keeper_start, mirror "
            "FROM unsettled JOIN steps ON steps.id = unsettled.step WHERE ? IS NULL OR steps.user = ? ORDER BY steps.id"
        )
        return [
            Unsettled(step, user, name, booted, Begun(*process), bool(mirror))
            for step, user, name, booted, *process, mirror in self._rows(query, user, user)
        ]

    def settled(self, step: int) -> None:
        """Nothing of it runs any more."""
        self._write(lambda db: db.execute("DELETE FROM unsettled WHERE step = ?", (step,)), durable=False)
        forget_lock(self.path, step)

    def put_receipt(self, user: str, document: Mapping[str, object]) -> None:
        values = (user, json.dumps(document))
        query = "INSERT INTO receipts VALUES(?, ?) ON CONFLICT(user) DO UPDATE SET document = excluded.document"
        self._write(lambda db: db.execute(query, values), durable=False)

    def _of(self, table: str, user: str | None) -> list[tuple[Any, ...]]:
        if user is None:
            return self._rows(f"SELECT * FROM {table} ORDER BY id")  # noqa: S608  (a name of ours)
        return self._rows(f"SELECT * FROM {table} WHERE user = ? ORDER BY id", user)  # noqa: S608

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._mutex, self._told():
            return self._connections[0].execute(query, values).fetchall()

    def _write(self, change: Callable[[sqlite3.Connection], _Row], *, durable: bool = True) -> _Row:
        """`change` as one transaction, twice if the disk is full and there is room left that was kept for that."""
        with self._mutex, self._told():
            db = self._connections[0 if durable else 1]
            try:
                return _transaction(db, change)
            except sqlite3.Error as error:
                if getattr(error, "sqlite_errorcode", 0) not in NO_ROOM or not use_room(self.path):
                    raise
                self.tight = True
                return _transaction(db, change)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise JournalError(f"{self.path}: {advice(error)}") from error
        except OSError as error:
            raise JournalError(f"{self.path}: {error.strerror}; see `journal` in the plan") from error
        except IndexError:
            raise JournalError(f"{self.path}: is closed") from None


def _user(row: tuple[Any, ...]) -> UserRow:
    user, state, since, run, error, guard_since = row
    return UserRow(user, state, since, run, error, guard_since or 0.0)


def _transition(
    db: sqlite3.Connection, run: int | None, user: str, at: float, before: str, after: str, note: str | None
) -> None:
    query = "INSERT INTO transitions(run, user, at, before, after, note) VALUES(?, ?, ?, ?, ?, ?)"
    db.execute(query, (run, user, at, before, after, note))


def _transaction(db: sqlite3.Connection, change: Callable[[sqlite3.Connection], _Row]) -> _Row:
    db.execute("BEGIN IMMEDIATE")
    try:
        result = change(db)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
        raise
    return result
