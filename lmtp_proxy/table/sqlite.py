# SPDX-License-Identifier: GPL-3.0-or-later
"""The dialect of SQLite: a file, one host, nothing to install.

A database that is not there is never made by opening it: an empty one in its place would send everybody's mail to the
fallback. SQLite goes on to write into a file whose name has gone or is another file's now, without a word, so that is
looked at before and after each transaction.
"""

# ruff: noqa: S608  (statements are made of our own words)
import os
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote

from lmtp_proxy.table.base import TableBusy, TableError, TableLost, Values
from lmtp_proxy.table.schema import LAYOUT, MAX_ADDRESS, MAX_BACKEND, TABLES, Types, tables
from lmtp_proxy.text import shown

BUSY = 5.0
"""Seconds that somebody else may hold the lock."""


def _good(column: str, longest: int) -> str:
    """A BLOB compares with no text, a control character is in no RCPT and would end a line of the copy, and length()
    ends at a NUL."""
    return (
        f"typeof({column}) = 'text' AND length({column}) BETWEEN 1 AND {longest}"
        f" AND length(CAST({column} AS BLOB)) <= {4 * longest} AND instr(CAST({column} AS BLOB), x'00') = 0"
        f" AND {column} NOT GLOB '*[' || char(1) || '-' || char(31) || char(127) || ']*'"
    )


_TYPES = Types(
    address="TEXT",
    name="TEXT",
    text="TEXT",
    integer="INTEGER",
    flag="INTEGER",
    of_route=f"""CHECK ({_good("address", MAX_ADDRESS)}),
    CHECK (backend IS NULL OR ({_good("backend", MAX_BACKEND)}))""",
    extra=",\n    replaced TEXT",
    of_rows=" WITHOUT ROWID",  # REPLACE could take the row of another address away by its number
)
_ONE_ROW = (
    "SELECT RAISE(ABORT, 'the table fleet has not exactly one row: see lmtp-proxyctl table check')"
    " WHERE (SELECT count(*) FROM fleet) <> 1;"
)
_REPLACE = (
    "SELECT RAISE(ABORT, 'REPLACE hides from others what it replaces: write INSERT ... ON CONFLICT(address) DO UPDATE')"
    " WHERE EXISTS (SELECT 1 FROM fleet WHERE replaced = NEW.address);"
)


def _next_gen(routes: int, address: str, old: str, new: str, moving: str, by: str) -> str:
    """The statements of a trigger that make a gen. routes: what is added to their number."""
    return f"""{_ONE_ROW}
    UPDATE fleet SET gen = gen + 1, tag = random(), routes = routes + ({routes}), replaced = NULL;
    INSERT INTO changed (gen, address, old_backend, new_backend, moving, tag, made_at, made_by)
        SELECT gen, {address}, {old}, {new}, {moving}, tag, CAST(strftime('%s', 'now') AS INTEGER), {by} FROM fleet;"""


_INSERTED = _next_gen(1, "NEW.address", "NULL", "NEW.backend", "NEW.moving", "NEW.moving_by")
_DELETED = _next_gen(-1, "OLD.address", "OLD.backend", "NULL", "0", "OLD.moving_by")
_UPDATED = _next_gen(
    0, "NEW.address", "OLD.backend", "NEW.backend", "NEW.moving", "coalesce(NEW.moving_by, OLD.moving_by)"
)
# REPLACE fires no trigger for the row that it takes away, unless a connection asks for that. Before an INSERT it can be
# seen that the address is there; behind it only if it was replaced, as ON CONFLICT makes an UPDATE of it.
_TRIGGERS = (
    f"""CREATE TRIGGER route_inserting BEFORE INSERT ON route
    WHEN EXISTS (SELECT 1 FROM route WHERE address = NEW.address) BEGIN
    {_ONE_ROW}
    UPDATE fleet SET replaced = NEW.address;
END""",
    f"""CREATE TRIGGER route_inserted AFTER INSERT ON route BEGIN
    {_REPLACE}
    {_INSERTED}
END""",
    f"""CREATE TRIGGER route_deleted AFTER DELETE ON route BEGIN
    {_DELETED}
END""",
    f"""CREATE TRIGGER route_updated AFTER UPDATE ON route
    WHEN NEW.address = OLD.address AND (NEW.backend IS NOT OLD.backend OR NEW.moving IS NOT OLD.moving) BEGIN
    {_UPDATED}
END""",
    # The first one below takes the old address away, the second one brings the new one.
    f"""CREATE TRIGGER route_renamed AFTER UPDATE OF address ON route WHEN NEW.address <> OLD.address BEGIN
    {_DELETED}
    {_INSERTED}
END""",
    # OR REPLACE again: of an UPDATE whose new address another row has.
    """CREATE TRIGGER route_renaming BEFORE UPDATE OF address ON route
    WHEN NEW.address <> OLD.address AND EXISTS (SELECT 1 FROM route WHERE address = NEW.address) BEGIN
    SELECT RAISE(ABORT, 'another row has this address: UNIQUE constraint');
END""",
)


def statements(nodes: Sequence[str], tag: int) -> tuple[str, ...]:
    """All that `init` runs, in its order. nodes: names of those that will be. tag: of the empty table, random."""
    names = [name.replace("'", "''") for name in nodes]
    return (
        *tables(_TYPES),
        f"INSERT INTO fleet (one, gen, tag, floor, routes, layout) VALUES (1, 0, {tag}, 0, 0, {LAYOUT})",
        # What a node that has the empty table asks for is the tag of its own gen, as ever.
        f"INSERT INTO changed (gen, address, moving, tag, made_at) VALUES (0, '', 0, {tag}, 0)",
        *(
            "INSERT INTO node (name, epoch, state, version, meaning, waiting, refused, renewed, unclean)"
            f" VALUES ('{name}', 0, 'absent', '', '', '', '{{}}', 0, 0)"
            for name in names
        ),
        *_TRIGGERS,
    )


class SqliteConnection:
    """A Connection to the file at `path`, which must be there. Raises TableError.

    Args:
        busy: seconds to wait for a lock.
    """

    def __init__(self, path: str, busy: float = BUSY) -> None:
        self.path = path
        self.where = shown(path, 4096)
        self._file = self._look()
        try:
            # Autocommit: transactions are begun and ended here. The thread that closes it may be another one.
            self._base = sqlite3.connect(
                f"file:{quote(path)}?mode=rw", uri=True, timeout=busy, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise self._failed(error) from error
        try:
            # What somebody wrote as Latin-1 is a row that cannot be served, and no reason to serve no other.
            self._base.text_factory = _text
            with self._told():
                self._base.execute("PRAGMA synchronous = FULL")
                self._base.execute("SELECT count(*) FROM sqlite_master")  # read at all, so that we know the rights
            self._must_be_there()
        except BaseException:
            self._base.close()
            raise

    def __repr__(self) -> str:
        return f"<SqliteConnection {self.path}>"

    @contextmanager
    def reading(self) -> Iterator[None]:
        """See Connection."""
        self._must_be_there()
        with self._told(), self._transaction("BEGIN"):
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """See Connection."""
        self._must_be_there()
        with self._told(), self._transaction("BEGIN IMMEDIATE"):
            yield
            self._must_be_there()
        self._must_be_there()

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        base = self._base
        base.execute(begin)
        try:
            yield
            base.execute("COMMIT")
        except BaseException:
            if base.in_transaction:
                with suppress(sqlite3.Error):
                    base.execute("ROLLBACK")
            raise

    def rows(self, statement: str, values: Values = ()) -> list[Any]:
        """See Connection."""
        with self._told():
            return self._base.execute(statement, values).fetchall()

    def each(self, statement: str, values: Values = ()) -> Iterator[Any]:
        """See Connection."""
        with self._told():
            yield from self._base.execute(statement, values)

    def change(self, statement: str, values: Values = ()) -> int:
        """See Connection."""
        with self._told():
            return self._base.execute(statement, values).rowcount

    def change_many(self, statement: str, values: Sequence[Values]) -> None:
        """See Connection."""
        with self._told():
            self._base.executemany(statement, values)

    def interrupt(self) -> None:
        """End the statement that another thread runs."""
        self._base.interrupt()

    def data_version(self) -> int:
        """Another number after each commit of somebody else. It costs next to nothing, and takes no lock for long."""
        self._must_be_there()
        return int(self.rows("PRAGMA data_version")[0][0])

    def journal_mode(self) -> str:
        """`wal`, as `init` sets it, or another one."""
        return str(self.rows("PRAGMA journal_mode")[0][0])

    def damage(self) -> list[str]:
        """What SQLite finds wrong in the file; nothing if it is whole."""
        return [text for (text,) in self.rows("PRAGMA integrity_check(10)") if text != "ok"]

    def triggers_missing(self) -> list[str]:
        """Those that `init` makes, and that are not there, or not as it makes them."""
        there = {text for (text,) in self.rows("SELECT sql FROM sqlite_master WHERE type = 'trigger'")}
        return [statement.split()[2] for statement in _TRIGGERS if statement not in there]

    def close(self) -> None:
        """See Connection."""
        self._base.close()

    def _look(self) -> tuple[int, int]:
        """Device and inode of the file at the path."""
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            raise TableLost(f"{self.where}: there is no such file: `lmtp-proxyctl table init` makes one") from None
        except (OSError, ValueError) as error:
            raise TableError(f"{self.where}: {getattr(error, 'strerror', None) or error}") from error
        if not stat.S_ISREG(status.st_mode):
            raise TableError(f"{self.where}: is no regular file")
        return status.st_dev, status.st_ino

    def _must_be_there(self) -> None:
        if self._look() != self._file:
            raise TableLost(f"{self.where}: another file has taken its place since it was opened")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _failed(self, error: sqlite3.Error) -> TableError:
        name = getattr(error, "sqlite_errorname", "")
        text = str(error)
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return TableBusy(f"{self.where}: is locked by another process: try again when that has committed")
        if name.startswith("SQLITE_NOTADB"):
            return TableError(f"{self.where}: is no SQLite database")
        if name.startswith("SQLITE_CORRUPT"):
            return TableError(f"{self.where}: is damaged ({text}): put a backup in its place, see table export")
        if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            what = "the file and its directory must be writable, as SQLite keeps others beside it"
            return TableError(f"{self.where}: {text}: {what}")
        if name.startswith("SQLITE_CONSTRAINT_CHECK"):
            longest = f"an address has 1 to {MAX_ADDRESS} characters, a backend 1 to {MAX_BACKEND}, and no controls"
            return TableError(f"{self.where}: refuses this: {longest}")
        if text.startswith("no such table"):
            return TableError(
                f"{self.where}: {text}: is it a table of lmtp-proxy? `lmtp-proxyctl table init` makes one"
            )
        return TableError(f"{self.where}: {text}")


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")


def init(path: str, nodes: Sequence[str], tag: int, owner: tuple[int, int] | None) -> None:
    """Make the table at `path`; the file is made if it is not there. Raises TableError, and then nothing is left.

    Args:
        nodes: names of those that will be.
        tag: random.
        owner: user and group id of the file, None for one's own.
    """
    where = shown(path, 4096)
    made = False
    try:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            made = True
        except FileExistsError:  # an empty one may be made before, with the rights that it is to have
            pass
        else:
            try:
                # Before SQLite makes others beside it, which get the owner of this one. Not by its name, which whoever
                # owns the directory could give to another file meanwhile.
                if owner is not None:
                    os.fchown(handle, *owner)
            finally:
                os.close(handle)
        connection = SqliteConnection(path)
        try:
            if there := {name for (name,) in connection.rows("SELECT name FROM sqlite_master WHERE type = 'table'")}:
                what = "is a table of lmtp-proxy already" if there >= {*TABLES} else "is a database of something else"
                raise TableError(f"{where}: {what}: nothing was changed")
            # Readers and a writer do not keep each other waiting then. It stays so for whoever opens the file.
            connection.rows("PRAGMA journal_mode = WAL")
            with connection.writing():
                for statement in statements(nodes, tag):
                    connection.change(statement)
        finally:
            connection.close()
    except BaseException as error:
        if made:
            for name in (path, f"{path}-wal", f"{path}-shm"):
                with suppress(OSError):
                    os.unlink(name)
        if isinstance(error, OSError | ValueError):
            raise TableError(f"{where}: cannot be made: {getattr(error, 'strerror', None) or error}") from error
        raise
    parent = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # not every file system can
            os.fsync(parent)
    finally:
        os.close(parent)
