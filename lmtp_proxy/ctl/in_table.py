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
from typing import ClassVar

from lmtp_proxy.config.values import Config, ConfigError
from lmtp_proxy.routing.keys import KeyRules
from lmtp_proxy.routing.static_table import StaticTable
from lmtp_proxy.table.base import TableError
from lmtp_proxy.table.history import Head, RouteRow
from lmtp_proxy.table.sqlite import SqliteConnection
from lmtp_proxy.table.store import RoutesWritten, TableStore


@dataclass(frozen=True, slots=True)
class TableChange:
    """Some users who are about to be, or were, put on another backend. Everything raises TableError.

    Attributes:
        previous: user as given -> where the user was, None if on no row.
        files: the database.
    """

    in_table: ClassVar[bool] = True
    path: str
    previous: dict[str, str | None]
    backend: str
    _keys: Mapping[str, str] = field(repr=False)
    _rows: Mapping[str, str | None] = field(repr=False)

    @property
    def files(self) -> tuple[str, ...]:
        return (self.path,)

    @property
    def changed(self) -> bool:
        """Whether it makes a difference."""
        return any(was != self.backend for was in self.previous.values())

    def write(self) -> None:
        """Do it. It is on the disk then."""
        with closing(SqliteConnection(self.path)) as connection:
            TableStore(connection).write(list(self._rows), self.backend, own_name())

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
    return TableChange(path, previous, backend, keys, written.previous)


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


def own_name() -> str:
    """Names this process for ever."""
    return _name(os.getpid()) or f"{socket.gethostname()} {os.getpid()}"


def is_gone(name: str) -> bool:
    """Whether the process that `own_name` named has ended. Of another host nobody can tell."""
    host, _, rest = name.partition(" ")
    pid = rest.partition(" ")[0]
    return host == socket.gethostname() and pid.isdecimal() and _name(int(pid)) != name


def _name(pid: int) -> str | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            began = int(file.read().rpartition(b")")[2].split()[19])  # proc(5): starttime
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{socket.gethostname()} {pid} {began} {file.read().strip()[:8]}"
    except OSError:
        return None
