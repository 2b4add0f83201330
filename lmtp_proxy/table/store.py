# SPDX-License-Identifier: GPL-3.0-or-later
"""Every statement that the proxy says to the database, in the words that all dialects have in common.

What is read together is read in one snapshot; what is written together is on the disk when the method returns. Each
raises TableError. Nothing here waits for a node.
"""

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lmtp_proxy.table.base import Connection, TableError
from lmtp_proxy.table.history import (
    ABSENT,
    FENCED,
    SERVING,
    STOPPED,
    DoubtRow,
    Head,
    News,
    NodeRow,
    Position,
    RouteChange,
    RouteRow,
)
from lmtp_proxy.table.waiting import read as read_waiting
from lmtp_proxy.text import shown

_NODE = "name, epoch, state, version, meaning, seen_gen, seen_tag, waiting, refused, renewed, unclean"


class RoutesWritten(NamedTuple):
    """What a transaction on `route` has become.

    Attributes:
        made: how many gens; 0 if it changed nothing.
        position: after it.
        previous: address -> backend before; None where there was none.
    """

    made: int
    position: Position
    previous: Mapping[str, str | None]


class Marked(TableError):
    """Somebody else is moving one of these. The message names who, and since when."""


class MovedAway(TableError):
    """One of these is not where it was when it was marked, or its mark is another's. Nothing was changed."""


class TableStore:
    """The table behind `connection`."""

    def __init__(self, connection: Connection) -> None:
        self._base = connection
        self.where = connection.where

    def __repr__(self) -> str:
        return f"<TableStore {self.where}>"

    # --- what a node reads -------------------------------------------------------------------------------------------

    def head(self) -> Head:
        """Where the table is now."""
        rows = self._base.rows("SELECT gen, tag, floor, routes, layout FROM fleet")
        if len(rows) != 1:
            what = f"the table fleet has {len(rows)} rows, and must have one"
            raise TableError(f"{self.where}: {what}: put a backup in its place, or export, init and import")
        return Head(*rows[0])

    def news(self, gen: int, most: int) -> News:
        """What came after `gen`, at most so many changes."""
        with self._base.reading():
            head = self.head()
            tags = self._base.rows("SELECT tag FROM changed WHERE gen = ? LIMIT 1", (gen,))
            found = self._base.rows(
                "SELECT gen, address, new_backend, moving FROM changed WHERE gen > ? ORDER BY gen, address LIMIT ?",
                (gen, most + 1),
            )
        changes = [RouteChange(at, address, backend, bool(moving)) for at, address, backend, moving in found]
        return News(head, tags[0][0] if tags else None, changes[:most], len(found) > most)

    def whole(self, take: Callable[[Head, Iterator[RouteRow]], None]) -> None:
        """Have `take` read every row, all of one snapshot."""
        with self._base.reading():
            head = self.head()
            rows = self._base.each("SELECT address, backend, moving FROM route ORDER BY address")
            take(head, (RouteRow(address, backend, bool(moving)) for address, backend, moving in rows))

    def find(self, addresses: Collection[str]) -> dict[str, RouteRow]:
        """The rows of these."""
        with self._base.reading():
            return self._rows_of(addresses)

    def _rows_of(self, addresses: Collection[str]) -> dict[str, RouteRow]:
        found = {}
        for address in addresses:
            statement = "SELECT address, backend, moving FROM route WHERE address = ?"
            for name, backend, moving in self._base.rows(statement, (address,)):
                found[name] = RouteRow(name, backend, bool(moving))
        return found

    # --- what a node writes ------------------------------------------------------------------------------------------

    def join(self, name: str, known: Collection[int], epoch: int, version: str, meaning: str) -> NodeRow | None:
        """Take the row of `name` for a new run; returns the row as it was, None if there was none.

        A row of an epoch that is not `known`, those that this host has had, is another host's: TableError.
        """
        with self._base.writing():
            there = [row for row in self._nodes() if row.name == name]
            before = there[0] if there else None
            if before is not None and before.epoch not in known and before.state != ABSENT:
                what = f'node "{name}" is another one (epoch {before.epoch})'
                ways = "give one of the two another name, config.table.node, or `lmtp-proxyctl node forget` it"
                raise TableError(f"{self.where}: {what}: was this host made as a copy of it? {ways}")
            unclean = before is not None and (before.unclean or before.state not in (ABSENT, STOPPED))
            if before is None:
                self._base.change(
                    "INSERT INTO node (name, epoch, state, version, meaning, waiting, refused, renewed, unclean)"
                    " VALUES (?, ?, ?, ?, ?, '', '{}', 1, 0)",
                    (name, epoch, SERVING, version, meaning),
                )
            else:
                self._base.change(
                    "UPDATE node SET epoch = ?, state = ?, version = ?, meaning = ?, seen_gen = NULL, seen_tag = NULL,"
                    " waiting = '', refused = '{}', renewed = renewed + 1, unclean = ? WHERE name = ?",
                    (epoch, SERVING, version, meaning, int(unclean), name),
                )
        return before

    def acknowledge(
        self,
        name: str,
        epoch: int,
        seen: Position,
        waiting: str,
        refused: Mapping[str, str],
        doubts: Sequence[DoubtRow],
    ) -> bool:
        """Say what the node has applied, what it still waits for and what is doubtful, all at once.

        False if the row is not of this epoch any more: the node has to join again.
        """
        with self._base.writing():
            found = self._base.change(
                "UPDATE node SET seen_gen = ?, seen_tag = ?, waiting = ?, refused = ?, renewed = renewed + 1"
                " WHERE name = ? AND epoch = ? AND state = ?",
                (*seen, waiting, json.dumps(refused), name, epoch, SERVING),
            )
            if not found:
                return False
            self._base.change_many(
                "INSERT INTO uncertain (node, epoch, gen, address, noted_at, detail) VALUES (?, ?, ?, ?, ?, ?)", doubts
            )
        return True

    def clean(self, name: str, epoch: int) -> bool:
        """The longest that a delivery of the run before may take is over."""
        with self._base.writing():
            return bool(self._base.change("UPDATE node SET unclean = 0 WHERE name = ? AND epoch = ?", (name, epoch)))

    def stop(self, name: str, epoch: int) -> bool:
        """The node has ended well: nothing of it is under way. Its row stays."""
        with self._base.writing():
            return bool(
                self._base.change(
                    "UPDATE node SET state = ?, waiting = '', renewed = renewed + 1 WHERE name = ? AND epoch = ?",
                    (STOPPED, name, epoch),
                )
            )

    # --- what a mover does -------------------------------------------------------------------------------------------

    def nodes(self) -> list[NodeRow]:
        """All of them, in the order of their names."""
        with self._base.reading():
            return self._nodes()

    def _nodes(self) -> list[NodeRow]:
        found = self._base.rows(f"SELECT {_NODE} FROM node ORDER BY name")  # noqa: S608  (of our own words)
        return [self._node(*row) for row in found]

    def _node(self, *row: Any) -> NodeRow:
        name, epoch, state, version, meaning, gen, tag, waiting, refused, renewed, unclean = row
        seen = None if gen is None or tag is None else Position(gen, tag)
        try:
            wrong = json.loads(refused)
            if not isinstance(wrong, dict):
                raise ValueError(refused)
            return NodeRow(
                name, epoch, state, version, meaning, seen, read_waiting(waiting), wrong, renewed, bool(unclean)
            )
        except (ValueError, TypeError):
            raise TableError(f"{self.where}: the row of node {name} was not written by lmtp-proxy") from None

    def mark(
        self, addresses: Sequence[str], by: str, now: int, is_gone: Callable[[str], bool] = lambda _: False
    ) -> RoutesWritten:
        """These are about to be moved by `by`. Who has no row gets one without a backend. Raises Marked.

        is_gone: whether a mover, by their name, will do nothing any more, so that their marks are taken over, as are
            those of nobody.
        """
        with self._base.writing():
            before = self._locked()
            previous = self._rows_of(addresses)
            for address in addresses:
                statement = "SELECT moving_by, moving_at FROM route WHERE address = ? AND moving = 1"
                for other, since in self._base.rows(statement, (address,)):
                    if other != by and other is not None and not is_gone(other):
                        what = f"{shown(address)} is being moved by {shown(other)} since {since}"
                        raise Marked(f"{self.where}: {what}: wait, or `lmtp-proxyctl move --clear` it if that is over")
            self._base.change_many(
                "INSERT INTO route (address, backend, moving, moving_by, moving_at) VALUES (?, NULL, 1, ?, ?)",
                [(address, by, now) for address in addresses if address not in previous],
            )
            self._base.change_many(
                "UPDATE route SET moving = 1, moving_by = ?, moving_at = ? WHERE address = ?",
                [(by, now, address) for address in addresses if address in previous],
            )
            return self._written(before, {name: row.backend for name, row in previous.items()}, addresses)

    def write(
        self, addresses: Sequence[str], backend: str | None, by: str, expected: Mapping[str, str | None] | None = None
    ) -> RoutesWritten:
        """Put these on `backend`; None takes it away from them. The marks stay.

        expected: where they must be still, marked by `by`; else MovedAway is raised. A mark keeps no UPDATE away.
        """
        with self._base.writing():
            before = self._locked()
            if expected is not None:
                self._must_be(expected, by)
            previous = self._rows_of(addresses)
            self._base.change_many(
                "INSERT INTO route (address, backend, moving_by) VALUES (?, ?, ?)",
                [(address, backend, by) for address in addresses if address not in previous and backend is not None],
            )
            self._base.change_many(
                "UPDATE route SET backend = ?, moving_by = ? WHERE address = ?",
                [(backend, by, address) for address in addresses if address in previous],
            )
            return self._written(before, {name: row.backend for name, row in previous.items()}, addresses)

    def _must_be(self, expected: Mapping[str, str | None], by: str) -> None:
        """Raises MovedAway unless all of them are there, with the mark of `by`."""
        for address, backend in expected.items():
            statement = "SELECT backend, moving, moving_by FROM route WHERE address = ?"
            if self._base.rows(statement, (address,)) != [(backend, 1, by)]:
                raise MovedAway(f"{self.where}: somebody else has moved {shown(address)} meanwhile")

    def put_back(self, previous: Mapping[str, str | None], backend: str, by: str) -> bool:
        """Undo a `write` of `backend`, and the marks. False, and nothing done, if one of them is elsewhere since, or
        has no mark of `by` any more."""
        with self._base.writing():
            self._locked()
            try:
                self._must_be(dict.fromkeys(previous, backend), by)
            except MovedAway:
                return False
            self._base.change_many(
                "UPDATE route SET backend = ?, moving_by = ? WHERE address = ?",
                [(was, by, address) for address, was in previous.items()],
            )
            self._unmark(list(previous), by)
        return True

    def unmark(self, addresses: Sequence[str], by: str | None) -> RoutesWritten:
        """Take back the marks of `by`, of anybody for None; rows that were made for a mark alone go with it."""
        with self._base.writing():
            before = self._locked()
            self._unmark(addresses, by)
            return self._written(before, {}, addresses)

    def _unmark(self, addresses: Sequence[str], by: str | None) -> None:
        whose = "" if by is None else " AND moving_by = ?"
        values = [(address,) if by is None else (address, by) for address in addresses]
        self._base.change_many(
            f"DELETE FROM route WHERE address = ? AND moving = 1 AND backend IS NULL{whose}",  # noqa: S608
            values,
        )
        self._base.change_many(
            f"UPDATE route SET moving = 0 WHERE address = ? AND moving = 1{whose}",  # noqa: S608
            values,
        )

    def marks(self) -> list[tuple[str, str | None, int | None]]:
        """Address, mover and time of each mark."""
        statement = "SELECT address, moving_by, moving_at FROM route WHERE moving = 1 ORDER BY address"
        return [(address, by, at) for address, by, at in self._base.rows(statement)]

    def taken_away(self, seconds: int, most: int) -> list[str]:
        """Whose row, of the last `most` gens, was taken away in the last seconds, by the clock of who did so."""
        since = int(time.time()) - seconds
        statement = (
            "SELECT address FROM changed WHERE gen > (SELECT gen FROM fleet) - ? AND made_at >= ?"
            " AND new_backend IS NULL AND old_backend IS NOT NULL"
        )
        return [address for (address,) in self._base.rows(statement, (most, since))]

    def is_known(self, position: Position) -> bool:
        """Whether it is one of this history. One below the floor is not, as nobody can tell."""
        return bool(self._base.rows("SELECT 1 FROM changed WHERE gen = ? AND tag = ? LIMIT 1", position))

    def addresses_of(self, first: int, last: int, most: int) -> list[str] | None:
        """Whom the gens from first to last were about; None where that is not known, or they are more than `most`."""
        with self._base.reading():
            if first <= self.head().floor:
                return None
            found = self._base.rows(
                "SELECT address FROM changed WHERE gen >= ? AND gen <= ? LIMIT ?", (first, last, most + 1)
            )
        return None if len(found) > most else [address for (address,) in found]

    def doubts(self, addresses: Collection[str], since: int) -> list[DoubtRow]:
        """What is uncertain about these, and was noted since then."""
        found: list[DoubtRow] = []
        with self._base.reading():
            for address in addresses:
                rows = self._base.rows(
                    "SELECT node, epoch, gen, address, noted_at, detail FROM uncertain"
                    " WHERE address = ? AND noted_at >= ? ORDER BY noted_at",
                    (address, since),
                )
                found += [DoubtRow(*row) for row in rows]
        return found

    def _locked(self) -> Head:
        """The head, which nobody else changes before our commit."""
        self._base.change("UPDATE fleet SET gen = gen")
        return self.head()

    def _written(self, before: Head, previous: Mapping[str, str | None], addresses: Sequence[str]) -> RoutesWritten:
        after = self.head()
        was = {address: previous.get(address) for address in addresses}
        return RoutesWritten(after.gen - before.gen, after.position, was)

    # --- what an administrator does ----------------------------------------------------------------------------------

    def put(self, rows: Iterator[tuple[str, str]], by: str) -> None:
        """Rows for a table that has none. Raises TableError if it has."""
        with self._base.writing():
            if self._locked().routes:
                raise TableError(f"{self.where}: has users already: an import is for an empty table")
            piece: list[tuple[str, str, str]] = []
            for address, backend in rows:
                piece.append((address, backend, by))
                if len(piece) >= 10_000:
                    self._put(piece)
                    piece = []
            self._put(piece)

    def _put(self, rows: Sequence[tuple[str, str, str]]) -> None:
        self._base.change_many("INSERT INTO route (address, backend, moving_by) VALUES (?, ?, ?)", rows)

    def prune(self, gen: int) -> int:
        """Forget the changes below `gen`; returns how many rows went. That gen itself stays, for its tag."""
        with self._base.writing():
            head = self._locked()
            floor = max(head.floor, min(gen, head.gen))
            # Gens need not be dense in each database: the row that stays is one that there is.
            rows = self._base.rows("SELECT max(gen) FROM changed WHERE gen <= ?", (floor,))
            floor = rows[0][0] if rows and rows[0][0] is not None else head.floor
            self._base.change("UPDATE fleet SET floor = ?", (floor,))
            return self._base.change("DELETE FROM changed WHERE gen < ?", (floor,))

    def forget(self, name: str) -> bool:
        """The operator's word that this node is stopped, and will not serve by what it has on its disk."""
        with self._base.writing():
            return bool(self._base.change("DELETE FROM node WHERE name = ?", (name,)))

    def fence(self, name: str, epoch: int, renewed: int, new_epoch: int) -> bool:
        """Turn out a node that has not written since `renewed`. False if it has. Its row stays, and acknowledges
        nothing."""
        with self._base.writing():
            return bool(
                self._base.change(
                    "UPDATE node SET state = ?, fenced_epoch = epoch, epoch = ?, seen_gen = NULL, seen_tag = NULL"
                    " WHERE name = ? AND epoch = ? AND renewed = ?",
                    (FENCED, new_epoch, name, epoch, renewed),
                )
            )
