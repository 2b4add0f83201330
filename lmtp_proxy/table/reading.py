# SPDX-License-Identifier: GPL-3.0-or-later
"""The table as a process finds it when it starts, or when it is too far behind: the copy on the disk where that will
do, else the whole database, which becomes the copy.

Runs in a process of its own, as to read a million rows takes a second and some memory.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple

from lmtp_proxy.routing.keys import KeyRules
from lmtp_proxy.routing.static_table import StaticTable
from lmtp_proxy.table.base import TableError
from lmtp_proxy.table.copy import Snapshot, TableCopy
from lmtp_proxy.table.history import Head, Position, RouteChange, RouteRow
from lmtp_proxy.table.node import MOST, NewsStep, step_of
from lmtp_proxy.table.schema import LAYOUT
from lmtp_proxy.table.served import ServedTable
from lmtp_proxy.table.sqlite import SqliteConnection
from lmtp_proxy.table.store import TableStore
from lmtp_proxy.text import shown


class TableFound(NamedTuple):
    """What `find` found, to be handed to another process.

    Attributes:
        snapshot: None if there is neither a database nor a copy.
        file: device and inode of the copy.
        changes: since the snapshot.
        position: with them.
        trouble: why the database could not be used; "" if it could.
    """

    snapshot: Snapshot | None
    file: tuple[int, int]
    changes: tuple[RouteChange, ...]
    position: Position | None
    trouble: str


def meaning_of(rules: KeyRules) -> str:
    """Names the rules by which rows are read."""
    return hashlib.sha256(repr(rules).encode()).hexdigest()


def copy_of(path: str) -> TableCopy:
    """The copy of the database at `path`; its files belong to whom that does."""
    try:
        status = os.stat(path)
    except OSError:
        return TableCopy(path)
    return TableCopy(path, (status.st_uid, status.st_gid))


def find(path: str, rules: KeyRules, *, accept: bool = False) -> TableFound:
    """The table at `path`. Raises TableError if there is no copy, and it cannot be written.

    accept: another history than that of the copy is taken, too; else the copy stays in force.
    """
    copy, meaning = copy_of(path), meaning_of(rules)
    try:
        # Not before the database is there: then its directory is, and we may write there.
        with closing(SqliteConnection(path)) as connection, copy.locked():
            return _up_to_date(TableStore(connection), copy, rules, meaning, accept=accept)
    except TableError as error:
        trouble = str(error)
    if (there := copy.read(meaning)) is None:
        return TableFound(None, (0, 0), (), None, trouble)
    snapshot, handle = there
    with _closing(handle):
        return _found(snapshot, handle, *_logged(copy, snapshot), trouble)


def _up_to_date(store: TableStore, copy: TableCopy, rules: KeyRules, meaning: str, *, accept: bool) -> TableFound:
    there = copy.read(meaning)
    if there is not None:
        snapshot, handle = there
        with _closing(handle):
            changes, position = _logged(copy, snapshot)
            news = store.news(position.gen, MOST - len(changes) if len(changes) < MOST else 0)
            step = step_of(news, position)
            if step is NewsStep.NEWER:
                return _found(snapshot, handle, changes, position, newer(store, news.head))
            if step is NewsStep.OTHER_HISTORY and not accept:
                return _found(snapshot, handle, changes, position, another(store, position))
            if step in (NewsStep.NOTHING, NewsStep.APPLY):
                copy.renew_log(snapshot)
                if news.changes:
                    copy.append_locked(news.changes, news.head.position)
                return _found(snapshot, handle, [*changes, *news.changes], news.head.position, "")
    made: list[tuple[Snapshot, int]] = []

    def take(head: Head, rows: Iterator[RouteRow]) -> None:
        counted = 0

        def each() -> Iterator[RouteRow]:
            nonlocal counted
            for row in rows:
                counted += 1
                yield row
            if counted != head.routes:
                what = f"has {counted} rows, and must have {head.routes}: triggers were away, or it is damaged"
                raise TableError(f"{store.where}: the table route {what}: see lmtp-proxyctl table check")

        made.append(copy.write(each(), head.position, rules, meaning))

    if (head := store.head()).layout > LAYOUT:
        raise TableError(newer(store, head))
    store.whole(take)
    [(snapshot, handle)] = made
    with _closing(handle):
        return _found(snapshot, handle, [], snapshot.position, "")


def served(found: TableFound, path: str, rules: KeyRules) -> ServedTable:
    """What was found, as it is served by this process. Raises TableError if the copy is another one by now."""
    where = shown(path, 4096)
    snapshot = found.snapshot
    if snapshot is None or found.position is None:
        table = ServedTable(StaticTable(), None, {}, {}, where)
        table.trouble = found.trouble
        return table
    try:
        handle = os.open(copy_of(path).path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise TableError(f"{where}: its copy cannot be read: {error.strerror}") from error
    status = os.fstat(handle)
    if (status.st_dev, status.st_ino) != found.file:
        os.close(handle)
        raise TableError(f"{where}: its copy was replaced meanwhile: try again")
    base = StaticTable.of_file(handle, snapshot.shape)
    table = ServedTable(base, snapshot.position, snapshot.counts, snapshot.refused, where)
    table.block(rules)
    table.apply(found.changes, rules)
    table.position = found.position
    table.settle()
    base.unmap()  # a daemon comes to be before it serves
    table.trouble = found.trouble
    return table


def newer(store: TableStore, head: Head) -> str:
    """The sentence about a schema that this version does not know."""
    what = f"its schema is one of a newer lmtp-proxy (layout {head.layout}, this one knows {LAYOUT})"
    return f"{store.where}: {what}: update this one"


def another(store: TableStore, position: Position) -> str:
    """The sentence about another history."""
    what = f"does not hold change {position.gen}, which is in force here: was it put back from a backup?"
    return f"{store.where}: {what} What is in force stays; `lmtp-proxyctl reload --force` takes what the table says now"


def _logged(copy: TableCopy, snapshot: Snapshot) -> tuple[list[RouteChange], Position]:
    logged = copy.logged(snapshot)
    position = logged[-1][0] if logged else snapshot.position
    return [change for _, changes in logged for change in changes], position


def _found(snapshot: Snapshot, handle: int, changes: list[RouteChange], position: Position, trouble: str) -> TableFound:
    status = os.fstat(handle)
    return TableFound(snapshot, (status.st_dev, status.st_ino), tuple(changes), position, trouble)


@contextmanager
def _closing(handle: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(handle)
