# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes users in the database of config.table: as a whole, or not at all.

First they are marked, which shows that the proxy reads the table, before anything is changed; the marks go when all is
quiet. A mark whose mover is no more is taken over. It asks no proxy.
"""

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from lmtp_proxy.config.values import Config, ConfigError
from lmtp_proxy.routing.keys import KeyRules
from lmtp_proxy.routing.static_table import StaticTable
from lmtp_proxy.table.base import TableError
from lmtp_proxy.table.history import Head, Position, RouteRow
from lmtp_proxy.table.sqlite import SqliteConnection
from lmtp_proxy.table.store import RoutesWritten, TableStore

_NOWHERE = Position(0, 0)


@dataclass(frozen=True, slots=True)
class TableChange:
    """Some users who are about to be, or were, put on another backend. Everything raises TableError.

    Attributes:
        previous: user as given -> where the user was, None if on no row.
        files: the database.
        position: of the table after what was done last.
    """

    in_table: ClassVar[Literal[True]] = True
    path: str
    previous: dict[str, str | None]
    backend: str
    _keys: Mapping[str, str] = field(repr=False)
    _rows: Mapping[str, str | None] = field(repr=False)
    position: Position = _NOWHERE

    @property
    def files(self) -> tuple[str, ...]:
        return (self.path,)

    @property
    def changed(self) -> bool:
        """Whether it makes a difference."""
        return any(was != self.backend for was in self.previous.values())

    def write(self) -> "TableChange":
        """Do it, and return as what is so then. It is on the disk; nothing is, if one of them is elsewhere by now."""
        with closing(SqliteConnection(self.path)) as connection:
            written = TableStore(connection).write(list(self._rows), self.backend, own_name(), self._rows)
        return replace(self, position=written.position)

    def why_not_in_force(self, in_force: str | None) -> str | None:
        """Why a proxy that says so does not serve by this change, or cannot be known to; None if it does.

        in_force: see Config.in_force; None if its workers do not agree.
        """
        gen, _, tag = (in_force or "").rpartition("@")[2].partition(":")
        try:
            there = Position(int(gen), int(tag))
        except ValueError:
            return "it does not say by which change of the table it serves"
        if there.gen < self.position.gen:
            return f"it serves by change {there.gen:,} of the table, and this is change {self.position.gen:,}"
        with closing(SqliteConnection(self.path)) as connection:
            store = TableStore(connection)
            # One history, and there is no other way from the one to the other in it.
            if not (store.is_known(self.position) and store.is_known(there)):
                return "the table has another history by now: was it put back from a backup?"
        return None

    def undo(self) -> bool:
        """Put them back where they were. False, and nothing done, if somebody has moved one of them since.

        Raises ConfigError, as the change of a file does.
        """
        try:
            with closing(SqliteConnection(self.path)) as connection:
                return TableStore(connection).put_back(self._rows, self.backend, own_name())
        except TableError as error:
            raise ConfigError((str(error),)) from error

    def finish(self) -> None:
        """Take the marks away."""
        with closing(SqliteConnection(self.path)) as connection:
            TableStore(connection).unmark(list(self._rows), own_name())


def mark(path: str, users: Sequence[str], backend: str, rules: KeyRules) -> TableChange:
    """Mark these. Raises TableError, and Marked if somebody else, who is there still, is moving one of them."""
    keys = {user: rules.table_key(user) for user in users}
    with closing(SqliteConnection(path)) as connection:
        store = TableStore(connection)
        written: RoutesWritten = store.mark(list(dict.fromkeys(keys.values())), own_name(), int(time.time()), is_gone)
    previous = {user: written.previous[key] for user, key in keys.items()}
    return TableChange(path, previous, backend, keys, written.previous, written.position)


def rows_of(path: str, keys: Sequence[str]) -> dict[str, str]:
    """Where these keys are, of those that are anywhere. Raises TableError."""
    with closing(SqliteConnection(path)) as connection:
        found = TableStore(connection).find(dict.fromkeys(keys))
    return {key: row.backend for key, row in found.items() if row.backend is not None}


def with_users(config: Config) -> Config:
    """`config` with all users of its config.table, if it has one, as they are now. Raises ConfigError."""
    if config.table is None:
        return config
    users: dict[str, str] = {}

    def take(_: Head, rows: Iterator[RouteRow]) -> None:
        users.update((row.address, row.backend) for row in rows if row.backend is not None)

    try:
        with closing(SqliteConnection(config.table.sqlite)) as connection:
            TableStore(connection).whole(take)
    except TableError as error:
        raise ConfigError((f"{config.path}: config.table: {error}",)) from error
    return replace(config, users=StaticTable(users))


def clear(path: str, users: Sequence[str], rules: KeyRules) -> dict[str, str | None]:
    """Take the marks from these, whosever they are. Returns user -> whose mark it was, of those that had one.

    Raises TableError.
    """
    keys = {rules.table_key(user): user for user in users}
    with closing(SqliteConnection(path)) as connection:
        store = TableStore(connection)
        marked = {keys[address]: by for address, by, _ in store.marks() if address in keys}
        store.unmark(list(keys), None)
    return marked


def own_name() -> str:
    """Names this process for ever."""
    return f"{_place()} {os.getpid()} {_began(os.getpid()) or 0}"


def is_gone(name: str) -> bool:
    """Whether the process that `own_name` named has ended. Of another host or container nobody can tell."""
    place, _, rest = name.rpartition(" ")
    place, _, pid = place.rpartition(" ")
    if place != _place() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # it is there, and another user's
        pass
    began = _began(int(pid))
    return began is not None and str(began) != rest  # another process has its number now


def _place() -> str:
    """This host since its start, and the container, as far as numbers of processes are its own."""
    found = [socket.gethostname()]
    for read in (_boot, lambda: os.readlink("/proc/self/ns/pid").strip("pid:[]")):
        try:
            found.append(read())
        except OSError:
            found.append("?")
    return " ".join(found)


def _boot() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()[:8]


def _began(pid: int) -> int | None:
    """When, in ticks since the start of the host; None if it cannot be seen, as where /proc is hidden."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])  # proc(5): starttime
    except OSError:
        return None
