# SPDX-License-Identifier: GPL-3.0-or-later
"""What a database must offer for a table of users, and how it fails: one line for the operator.

Each dialect is one module. Values are marked with `?` in a statement, whatever the driver wants.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias

Values: TypeAlias = Sequence[Any]


class TableError(Exception):
    """The database cannot be used, or refuses. The message says which, why, and what to do."""


class TableBusy(TableError):
    """Somebody else holds a lock for too long. Nothing was changed."""


class TableLost(TableError):
    """The database that was open is not the one at its place any more: what was written to it may count for nothing."""


class Connection(Protocol):
    """One connection, for one thread at a time. Everything raises TableError.

    Attributes:
        where: names the database, without any secret.
    """

    where: str

    def reading(self) -> AbstractContextManager[None]:
        """All statements within see one state of the database."""

    def writing(self) -> AbstractContextManager[None]:
        """A transaction: as a whole and on the disk when it is left, or not at all. It locks out other writers."""

    def rows(self, statement: str, values: Values = ()) -> list[Any]:
        """All rows that a statement gives."""

    def each(self, statement: str, values: Values = ()) -> Iterator[Any]:
        """The same one after the other, for very many; within `reading` only."""

    def change(self, statement: str, values: Values = ()) -> int:
        """How many rows a statement found and changed."""

    def change_many(self, statement: str, values: Sequence[Values]) -> None:
        """The same statement for each of these."""

    def close(self) -> None:
        """It cannot be used any more."""
