# SPDX-License-Identifier: GPL-3.0-or-later
"""The table as a process finds it when it starts, or when it is too far behind: the copy on the disk where that will
do, else the whole database, which becomes the copy.

Runs in a process of its own, as to read a million rows takes a second and some memory.
"""

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from typing import NamedTuple

from lmtp_proxy.routing.keys import KeyRules
from lmtp_proxy.routing.static_table import StaticTable
from lmtp_proxy.routing.static_table import changes as differences
from lmtp_proxy.table.base import TableError
from lmtp_proxy.table.copy import Snapshot, TableCopy
from lmtp_proxy.table.history import Head, Position, RouteChange, RouteRow
from lmtp_proxy.table.node import MOST, NewsStep, step_of
from lmtp_proxy.table.schema import LAYOUT
from lmtp_proxy.table.served import GRACE, ServedTable, why_refused
from lmtp_proxy.table.sqlite import SqliteConnection
from lmtp_proxy.table.store import TableStore
from lmtp_proxy.text import count, shown

LONG_LOG = 16 * 2**20
"""Octets: some 200,000 changes, which a start would read in a second."""
_RECENT = 100_000  # gens that are looked at for who was taken away
_NAMED = 3


class TableFound(NamedTuple):
    """What `find` found, to be handed to another process.

    Attributes:
        snapshot: None if there is neither a database nor a copy.
        file: device and inode of the copy.
        changes: since the snapshot.
        position: with them.
        trouble: why the database could not be used, at a start; "" if it could.
        gone: whose row was taken away of late, or is not there any more.
    """

    snapshot: Snapshot | None
    file: tuple[int, int]
    changes: tuple[RouteChange, ...]
    position: Position | None
    trouble: str
    gone: tuple[str, ...] = ()


class CopyReplaced(TableError):
    """Another process has made a new copy since."""


class TableInForce(NamedTuple):
    """What is to be replaced.

    Attributes:
        users: as they are served; None if nothing is in force yet: then what the copy says.
        may_go: of so many of them, how many may be taken away at once.
        start: with nothing in force, the copy serves where the database cannot be used.
    """

    users: StaticTable | None
    may_go: Callable[[int], int]
    start: bool = False


def meaning_of(rules: KeyRules) -> str:
    """Names the rules by which rows are read, and what decides what they make of it."""
    what = (rules, unicodedata.unidata_version, find_spec("idna") is not None)
    return hashlib.sha256(repr(what).encode()).hexdigest()


def copy_of(path: str) -> TableCopy:
    """The copy of the database at `path`; its files belong to whom that does."""
    try:
        status = os.stat(path)
    except OSError:
        return TableCopy(path)
    return TableCopy(path, (status.st_uid, status.st_gid))


def find(path: str, rules: KeyRules, former: TableInForce, *, accept: bool = False) -> TableFound:
    """The table at `path`. Raises TableError if it is not to be had, but for a start only if not even a copy can be.

    accept: it is read as a whole, and taken whatever its history is, and however many users it has lost.
    """
    copy, meaning = copy_of(path), meaning_of(rules)
    try:
        # Not before the database is there: then its directory is, and we may write there.
        with closing(SqliteConnection(path)) as connection, copy.locked():
            return _up_to_date(TableStore(connection), copy, rules, meaning, former, accept=accept)
    except TableError as error:
        if not former.start:
            raise
        trouble = str(error)
    if (there := copy.read(meaning)) is None:
        return TableFound(None, (0, 0), (), None, trouble)
    snapshot, handle = there
    with _closing(handle):
        changes, position, whole = _logged(copy, snapshot)
        if not whole:  # what was acknowledged may be missing: better nobody has a route than a former one
            return TableFound(None, (0, 0), (), None, f"{trouble}; the log of its copy is damaged")
        return _found(snapshot, handle, changes, position, trouble)


def _up_to_date(
    store: TableStore, copy: TableCopy, rules: KeyRules, meaning: str, former: TableInForce, *, accept: bool
) -> TableFound:
    head = store.head()
    if head.layout > LAYOUT:
        raise TableError(newer(store, head))
    recent = tuple(store.taken_away(int(GRACE), _RECENT))
    before = former.users
    if (there := copy.read(meaning)) is not None:
        snapshot, handle = there
        with _closing(handle):
            changes, position, whole = _logged(copy, snapshot)
            news = store.news(position.gen, MOST)
            step = step_of(news, position)
            if step is NewsStep.OTHER_HISTORY and not accept:
                raise TableError(another(store, position))
            base = StaticTable.of_file(os.dup(handle), snapshot.shape)
            fits = len(changes) + len(news.changes) <= MOST and copy.logged_octets() <= LONG_LOG
            if step in (NewsStep.NOTHING, NewsStep.APPLY) and whole and fits and not accept:
                _check_taken_away(store, base, changes, news.changes, rules, former.may_go)
                copy.renew_log(snapshot)
                if not news.changes or copy.append_locked(news.changes, position, news.head.position):
                    together = [*changes, *news.changes]
                    return _found(snapshot, handle, together, news.head.position, "", recent)
            if before is None and not accept:
                before = merged(base, changes, rules)
    made: list[tuple[Snapshot, int]] = []

    def look(users: StaticTable) -> None:
        if before is not None and not accept:
            _check_lost(store, before, users, former.may_go)

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

        made.append(copy.write(each(), head.position, rules, meaning, look))

    store.whole(take)
    [(snapshot, handle)] = made
    with _closing(handle):
        return _found(snapshot, handle, [], snapshot.position, "", recent)


def merged(base: StaticTable, changes: Iterable[RouteChange], rules: KeyRules) -> StaticTable:
    """The users of a snapshot with what has changed since."""
    return base.overlaid(_last_of(changes, rules))


def _last_of(changes: Iterable[RouteChange], rules: KeyRules) -> dict[str, str | None]:
    """Where each is after the changes, but for those that cannot be served."""
    return {
        each.address: each.backend
        for each in changes
        if each.backend is None or why_refused(each.address, each.backend, rules) is None
    }


def _check_lost(store: TableStore, old: StaticTable, new: StaticTable, may_go: Callable[[int], int]) -> None:
    """Raises TableError if too many are not there any more."""
    gone = [each.key for each in differences(old, new) if each.after is None]
    if len(gone) > (allowed := may_go(len(old))):
        raise TableError(lost(store.where, gone, len(old), allowed))


def _check_taken_away(
    store: TableStore,
    base: StaticTable,
    logged: Iterable[RouteChange],
    news: Sequence[RouteChange],
    rules: KeyRules,
    may_go: Callable[[int], int],
) -> None:
    """As `_check_lost`, at the cost of the changes alone."""
    before = _last_of(logged, rules)
    gone = [
        key
        for key, backend in _last_of(news, rules).items()
        if backend is None and (before[key] if key in before else base.lookup(key)) is not None
    ]
    if gone:
        users = len(base) + sum((now is not None) - (base.lookup(key) is not None) for key, now in before.items())
        if len(gone) > (allowed := may_go(users)):
            raise TableError(lost(store.where, gone, users, allowed))


def lost(where: str, gone: Sequence[str], users: int, allowed: int) -> str:
    """The sentence about too many who are not there any more."""
    names = ", ".join(map(shown, sorted(gone)[:_NAMED]))
    return (
        f"{where}: the table has lost {len(gone)} of {count(users, 'user')} ({names}, ...), more than "
        f"config.max_removed allows, which is {allowed}: what is in force stays; `lmtp-proxyctl reload --force` takes "
        "what the table says now"
    )


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
        raise CopyReplaced(f"{where}: its copy was replaced meanwhile: try again")
    base = StaticTable.of_file(handle, snapshot.shape)
    table = ServedTable(base, snapshot.position, snapshot.counts, snapshot.refused, where)
    table.block(rules)
    table.apply(found.changes, rules)
    table.position = found.position
    table.settle()
    for key in found.gone:
        if table.find(key) is None:
            table.defer(key)
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


def _logged(copy: TableCopy, snapshot: Snapshot) -> tuple[list[RouteChange], Position, bool]:
    records, whole = copy.logged(snapshot)
    position = records[-1][0] if records else snapshot.position
    return [change for _, changes in records for change in changes], position, whole


def _found(
    snapshot: Snapshot,
    handle: int,
    changes: list[RouteChange],
    position: Position,
    trouble: str,
    gone: tuple[str, ...] = (),
) -> TableFound:
    status = os.fstat(handle)
    return TableFound(snapshot, (status.st_dev, status.st_ino), tuple(changes), position, trouble, gone)


@contextmanager
def _closing(handle: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(handle)
