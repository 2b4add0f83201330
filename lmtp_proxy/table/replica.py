# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings what a process serves up to date: looks at the database, writes the changes into the log on the disk, and says
what is to be served from now on.

Everything that waits runs in a native thread; what changes the table in memory is for the thread that serves.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from lmtp_proxy.table.base import TableError, TableLost
from lmtp_proxy.table.history import Position, RouteChange
from lmtp_proxy.table.node import MOST, NewsStep, step_of
from lmtp_proxy.table.reading import LONG_LOG, another, copy_of, lost, newer
from lmtp_proxy.table.served import ServedTable
from lmtp_proxy.table.sqlite import SqliteConnection
from lmtp_proxy.table.store import TableStore

POLL = 1.0
"""Seconds between two looks whether somebody else has changed the database."""


class TableLook(NamedTuple):
    """What a look at the database found.

    Attributes:
        changes: since the position that was asked about; they are in the log on the disk.
        position: after them.
        trouble: why what is served stays as it is.
        behind: the whole table has to be read, or the log has grown so much that there should be a new copy.
    """

    changes: tuple[RouteChange, ...] = ()
    position: Position | None = None
    trouble: str = ""
    behind: bool = False


class Replica:
    """Looks at the database at `path`, in one thread at a time."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._connection: SqliteConnection | None = None

    def __repr__(self) -> str:
        return f"<Replica of {self.path}>"

    def look(self, served: ServedTable, may_go: Callable[[int], int]) -> TableLook:
        """What came after what is served, which nobody changes meanwhile. Raises nothing. What was found is in the log.

        may_go: of so many users, how many may be taken away at once.
        """
        try:
            return self._look(served, may_go)
        except TableLost:
            self.close()
        except TableError as error:
            self.close()
            return TableLook(trouble=str(error))
        try:
            return self._look(served, may_go)
        except TableError as error:
            self.close()
            return TableLook(trouble=str(error))

    def _look(self, served: ServedTable, may_go: Callable[[int], int]) -> TableLook:
        here = served.position
        if self._connection is None:
            self._connection = SqliteConnection(self.path)
        store = TableStore(self._connection)
        news = store.news(here.gen if here else 0, MOST)
        step = step_of(news, here)
        if step is NewsStep.NEWER:
            return TableLook(trouble=newer(store, news.head))
        if step is NewsStep.OTHER_HISTORY:
            assert here is not None
            return TableLook(trouble=another(store, here))
        if step is NewsStep.BEHIND:
            return TableLook(behind=True)
        if step is NewsStep.APPLY:
            if gone := _too_many(news.changes, served, may_go):
                return TableLook(trouble=gone)
            assert here is not None
            copy = copy_of(self.path)
            if not copy.append(news.changes, here, news.head.position):
                return TableLook(behind=True)
            if served.changed > MOST or copy.logged_octets() > LONG_LOG:
                return TableLook(behind=True)
        return TableLook(tuple(news.changes), news.head.position)

    def close(self) -> None:
        """TableLook at the file anew the next time."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _too_many(changes: Sequence[RouteChange], served: ServedTable, may_go: Callable[[int], int]) -> str:
    """Why these are not to be in force unless somebody insists; "" if they may be."""
    last = {change.address: change.backend for change in changes}
    gone = [address for address, backend in last.items() if backend is None and served.find(address) is not None]
    users = len(served)
    if len(gone) <= (allowed := may_go(users)):
        return ""
    return lost(served.where, gone, users, allowed)


class Watch:
    """A thread that calls `changed` when somebody else has changed the database at `path`, or it is another one, or it
    cannot be read any more."""

    def __init__(self, path: str, changed: Callable[[], None]) -> None:
        self._path = path
        self._changed = changed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lmtp-proxy table", daemon=True)

    def __repr__(self) -> str:
        return f"<Watch of {self._path}>"

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; it does not wait for that."""
        self._stop.set()

    def _run(self) -> None:
        connection: SqliteConnection | None = None
        last: object = None
        while not self._stop.wait(POLL):
            try:
                if connection is None:
                    connection = SqliteConnection(self._path)
                # The number is the connection's own: of a new one it says nothing about the one before.
                now: object = (id(connection), connection.data_version())
            except TableError as error:
                now = str(error)
                if connection is not None:
                    with suppress(TableError):
                        connection.close()
                    connection = None
            if now != last:
                last = now
                self._changed()
        if connection is not None:
            connection.close()
