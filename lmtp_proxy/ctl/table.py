# SPDX-License-Identifier: GPL-3.0-or-later
"""The verb `table`: makes the database of config.table, brings users into it and out of it, and says what is wrong.

It asks no proxy: whoever may write the database may do all of this, whether one runs or not.
"""

import json
import os
import pwd
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from lmtp_proxy.ctl.drain import REFUSED, Failed, Outcome
from lmtp_proxy.ctl.in_table import clear, is_gone, with_users
from lmtp_proxy.ctl.output import first, wrapped
from lmtp_proxy.routing.keys import FoldingError
from lmtp_proxy.table import sqlite
from lmtp_proxy.table.base import TableError
from lmtp_proxy.table.history import Head, RouteRow
from lmtp_proxy.table.schema import LAYOUT
from lmtp_proxy.table.served import why_refused
from lmtp_proxy.table.sqlite import SqliteConnection
from lmtp_proxy.table.store import TableStore
from lmtp_proxy.text import count, safe, shown

if TYPE_CHECKING:
    from lmtp_proxy.config.values import Config

_CONFIGURATION = re.compile(rb"^(?:config|backends):", re.MULTILINE)
_LEFT_ALONE = "nothing was changed"


def make(path: str, *, only_print: bool) -> Outcome:
    """`table init`. path: of the configuration. Raises Failed."""
    config, database = _configured(path)
    if only_print:
        lines = [f"{statement};" for statement in sqlite.statements([], 0)]
        return Outcome({"path": database, "statements": lines}, lines)
    owner = None
    if os.geteuid() == 0:
        owner = _owner_of(os.path.dirname(database)) if config.run_as is None else _ids(config.run_as)
    try:
        sqlite.init(database, [], secrets.randbits(62), owner)
    except TableError as error:
        raise Failed(REFUSED, str(error)) from error
    text = f"{safe(database)}: made; `lmtp-proxyctl table import FILE` brings users into it"
    return Outcome({"path": database}, wrapped(text))


def _owner_of(directory: str) -> tuple[int, int] | None:
    """As a service that has no run_as owns the directory in which it keeps its state."""
    try:
        status = os.stat(directory)
    except OSError:
        return None
    return status.st_uid, status.st_gid


def _ids(name: str) -> tuple[int, int]:
    """User and group of `run_as`, a name or a number."""
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        user = pwd.getpwuid(int(name))  # the configuration was checked: it is one of the two
    return user.pw_uid, user.pw_gid


def bring(path: str, source: str) -> Outcome:
    """`table import`. source: a configuration with users, or a file of users alone. Raises Failed."""
    from lmtp_proxy.config.values import RESERVED, ConfigError

    config, database = _configured(path)
    rules, names = config.key_rules, config.backends.keys() | RESERVED
    try:
        users = _users_in(source, config)
    except ConfigError as error:
        raise Failed(REFUSED, _LEFT_ALONE, error.errors) from error
    found = ((key, why_refused(key, name, rules)) for key, name in users.items())
    wrong = [f"{safe(key)}: {why}" for key, why in found if why is not None]
    wrong += [f'{safe(key)}: there is no backend "{safe(name)}"' for key, name in users.items() if name not in names]
    if wrong:
        raise Failed(
            REFUSED, f"{safe(source)}: {count(len(wrong), 'user')} cannot be served; {_LEFT_ALONE}", first(wrong)
        )
    try:
        with closing(SqliteConnection(database)) as connection:
            TableStore(connection).put(iter(users.items()), "import")
    except TableError as error:
        raise Failed(REFUSED, f"{error}; {_LEFT_ALONE}") from error
    text = f"{safe(database)}: {count(len(users), 'user')} from {safe(source)}"
    return Outcome({"path": database, "users": len(users)}, wrapped(text))


def _users_in(source: str, config: "Config") -> dict[str, str]:
    """Raises ConfigError."""
    from lmtp_proxy.config.read import load_config, load_users

    try:
        with open(source, "rb") as file:
            whole = _CONFIGURATION.search(file.read()) is not None
    except (OSError, ValueError) as error:
        raise Failed(REFUSED, f"{safe(source)}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if whole:
        return dict(load_config(source, without_table=True).users)
    return dict(load_users(source, config))


def bring_out(path: str) -> Outcome:
    """`table export`: the section `users:` of a configuration. Raises Failed."""
    from lmtp_proxy.config.values import ConfigError, TableSetting

    config, database = _configured(path)
    try:
        users = dict(with_users(replace(config, table=TableSetting(database))).users)
    except ConfigError as error:
        raise Failed(REFUSED, "nothing was written out", error.errors) from error
    lines = [f"  {_quoted(address)}: {_quoted(name)}" for address, name in users.items()]
    return Outcome({"path": database, "users": users}, ["users:", *lines])


def _quoted(text: str) -> str:
    """As YAML reads it again, whatever it looks like: JSON is YAML."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def clear_marks(path: str, users: Sequence[str]) -> Outcome:
    """`move --clear`: nobody is moving these any more, whoever said so. Raises Failed."""
    config, database = _configured(path)
    try:
        marked = clear(database, users, config.key_rules)
    except (TableError, FoldingError) as error:
        raise Failed(REFUSED, f"{error}; {_LEFT_ALONE}") from error
    lines = [
        f"{safe(user)}: was marked by {safe(marked[user] or 'somebody')}"
        if user in marked
        else f"{safe(user)}: no mark"
        for user in users
    ]
    return Outcome({"path": database, "marked": marked}, [piece for line in lines for piece in wrapped(line)])


def examine(path: str) -> Outcome:
    """`table check`. Raises Failed if something is wrong."""
    from lmtp_proxy.config.values import RESERVED

    config, database = _configured(path)
    names = config.backends.keys() | RESERVED
    wrong: list[str] = []
    notes: list[str] = []
    rows_there = 0

    def take(_: Head, rows: Iterator[RouteRow]) -> None:
        nonlocal rows_there
        for address, backend, _moving in rows:
            rows_there += 1
            if backend is None:
                continue
            if (why := why_refused(address, backend, config.key_rules)) is not None:
                wrong.append(f"{safe(address)}: {why}: until then it is answered 451")
            elif backend not in names:
                wrong.append(f'{safe(address)}: there is no backend "{shown(backend)}": until then it is answered 451')

    try:
        with closing(SqliteConnection(database)) as connection:
            store = TableStore(connection)
            if damage := connection.damage():
                raise Failed(REFUSED, f"{safe(database)}: is damaged: put a backup in its place", damage)
            head = store.head()
            if head.layout > LAYOUT:
                wrong.append(f"its schema is of a newer lmtp-proxy (layout {head.layout}): update this one")
            store.whole(take)
            if rows_there != head.routes:
                what = f"route has {rows_there} rows, and by its triggers {head.routes}: were they away?"
                wrong.append(f"{what} Export, init and import make it right")
            wrong += [f"there is no trigger {name}: export, init and import" for name in connection.triggers_missing()]
            if (mode := connection.journal_mode()) != "wal":
                notes.append(f"its journal_mode is {mode}: readers and writers wait for each other; wal is better")
            for address, by, _ in store.marks():
                gone = by is None or is_gone(by)
                end = "who is gone: its next move ends that" if gone else "which only that, or move --clear, ends"
                notes.append(f"{safe(address)} is marked as moving by {safe(by or 'somebody')}, {end}")
    except TableError as error:
        raise Failed(REFUSED, str(error)) from error
    document = {"path": database, "gen": head.gen, "users": rows_there, "notes": notes}
    if wrong:
        raise Failed(REFUSED, f"{safe(database)}: {count(len(wrong), 'thing')} to mend", first(wrong), document)
    lines = [f"{safe(database)}: OK, {count(rows_there, 'user')}, change {head.gen}", *first(notes)]
    return Outcome(document, [piece for line in lines for piece in wrapped(line)])


def _configured(path: str) -> "tuple[Config, str]":
    """The configuration, which needs not be the one that runs, and the database that it names. Raises Failed."""
    from lmtp_proxy.config.read import load_config
    from lmtp_proxy.config.values import ConfigError

    try:
        config = load_config(path)
    except ConfigError as error:
        try:  # it is about to be brought over
            config = load_config(path, without_table=True)
        except ConfigError:
            raise Failed(REFUSED, _LEFT_ALONE, error.errors) from error
        from lmtp_proxy.ctl.files import setting

        if (database := setting(path, "config", "table", "sqlite")) is None or not os.path.isabs(database):
            raise Failed(REFUSED, _LEFT_ALONE, error.errors) from error
        return config, database
    if config.table is None:
        what = "config.table: is not set: name the database, as in table: {sqlite: /var/lib/lmtp-proxy/table.db}"
        raise Failed(REFUSED, f"{safe(path)}: {what}")
    return config, config.table.sqlite
