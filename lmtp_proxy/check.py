# SPDX-License-Identifier: GPL-3.0-or-later
"""What a start would trip over, or mail after it, beyond what the configuration file says: places, rights, modules.

`--check` looks at all of it, and a start at what its process will need. A message names the user who lacks a right.
What one store has wrong at this moment is no reason to keep back what concerns others: `--check=start`, before an
upgrade restarts the proxy, only notes it, and `--check=file`, before a reload, looks at neither places nor rights.
Nothing is bound, connected to or changed.
"""

import os
import pwd
import re
import stat
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import TypeVar

import lmtp_proxy
from lmtp_proxy.config.loading import are_large
from lmtp_proxy.config.values import Config, ConfigError, UnixAddress
from lmtp_proxy.start.sockets import own_name
from lmtp_proxy.text import shown

_Value = TypeVar("_Value")
_PLAIN = re.compile(r"[a-z0-9_.+\-]*(?:@[a-z0-9.\-]+)?")  # what nearly all keys look like
_SHOWN = 20  # of a long list


def check(config: Config, *, stores: bool = True) -> tuple[str, ...]:
    """All that can be told before a start. Returns notes, one line each; raises ConfigError.

    Args:
        stores: a store that the user who serves may not use is an error; else a note, as a start does without it.
    """
    if os.geteuid() == 0:  # who else checks need not be who starts
        check_run_as(config)
    if config.run_as is not None and os.geteuid() not in (0, account(config.run_as).pw_uid):
        return notes_on(config)  # of the rest nobody can tell
    errors, notes = _stores(config)
    if (trouble := _table_trouble(config)) is not None:
        errors.append(trouble)
    if not stores:
        errors, notes = [], errors + notes
    _refuse(config, [*_places(config), *_files(config), *errors])
    if stores:
        check_table(config)
    return *notes_on(config), *(f"{config.path}: {note}" for note in notes)


def notes_on(config: Config) -> tuple[str, ...]:
    """What is right in the files and may not be what was meant, one line each."""
    if config.table is not None:  # which of its rows cannot be served `lmtp-proxyctl table check` says
        return config.notes
    if not len(config.users) and config.fallback_backend is None:
        what = "there are no users and there is no fallback_backend: all mail would be deferred (450 4.1.1)"
        return *config.notes, f"{config.path}: {what}"
    odd = [key for key in config.users if not _PLAIN.fullmatch(key) and not _is_address(key)]
    odd.sort(key=config.users.line)
    what = "is no address that RCPT would take as it stands: is it meant for any mail?"
    notes = [
        f'{path}:{line}: users: "{shown(key)}" {what}' for key in odd[:_SHOWN] for path, line in [config.place(key)]
    ]
    more = [f"{config.path}: and {len(odd) - _SHOWN} more notes"] if len(odd) > _SHOWN else []
    return *config.notes, *notes, *more


def check_run_as(config: Config) -> None:
    """That `run_as` can be, and can reload. Raises ConfigError."""
    if config.run_as is None or os.geteuid() == account(config.run_as).pw_uid:
        return
    if os.geteuid() != 0:
        what = f"only root can become {config.run_as}; start as root or as that user"
        raise ConfigError((f"{config.path}: config.run_as: {what}",))
    backends = config.backends.values()
    of_tls = [file.path for each in backends for file in (each.tls_ca, each.tls_cert, each.tls_key) if file is not None]
    files = [file.path for file in config.files] + of_tls
    directories = [path for path in config.users_file or () if os.path.isdir(path)]
    for path, mode in [*((path, os.R_OK | os.X_OK) for path in directories), *((path, os.R_OK) for path in files)]:
        if not _may(config, path, mode):
            what = f"{config.run_as} may not read {path}, so no reload would work; see chgrp and chmod"
            raise ConfigError((f"{config.path}: config.run_as: {what}",))
    if config.workers > 1:
        reason = "no worker would start; see chmod, or workers: 1"
    elif are_large(files):  # a process of its own loads it
        reason = "no reload of so large a file would work; see chmod"
    else:
        return
    for path in (lmtp_proxy.__file__, sys.executable):
        if not _may(config, path, os.R_OK):
            what = f"{config.run_as} may not read {path}, so {reason}"
            raise ConfigError((f"{config.path}: config.run_as: {what}",))


def check_files(config: Config) -> None:
    """That the process which serves can write its files, and has what it needs for them. Raises ConfigError."""
    _refuse(config, list(_files(config)))


def account(name: str) -> pwd.struct_passwd:
    """Of `run_as`: a name or a number."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return pwd.getpwuid(int(name))  # the configuration was checked: it is one of the two


def _refuse(config: Config, errors: list[str]) -> None:
    if errors:
        raise ConfigError(tuple(f"{config.path}: {error}" for error in errors))


def _is_address(key: str) -> bool:
    """As `move` and `drain` judge it: none that only quotes would make one."""
    from lmtp_proxy.ctl.names import key_of

    try:
        key_of(key)
    except ValueError:
        return False
    return True


# --- places ----------------------------------------------------------------------------------------------------------


def _places(config: Config) -> Iterator[str]:
    """Why whoever starts, which is us or root, could not make a socket."""
    sockets = [("config.socket", address) for address in config.socket]
    if config.control is not None:
        sockets.append(("config.control.socket", config.control.socket))
    for key, address in sockets:
        if not isinstance(address, UnixAddress):
            continue
        directory = os.path.dirname(address.path)
        if not os.path.isdir(directory):
            yield f"{key}: there is no directory {directory}: make it"
        elif not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
            yield f"{key}: {own_name()} cannot write in {directory}, so there would be no socket; see chown and chmod"
        elif os.path.lexists(address.path) and not stat.S_ISSOCK(os.lstat(address.path).st_mode):
            yield f"{key}: {address.path} exists and is no socket: move it away, or name another path"


def _stores(config: Config) -> tuple[list[str], list[str]]:
    """Which sockets of stores the user who serves could not connect to: errors, and notes of those not there now."""
    errors, notes = [], []
    for name, backend in config.backends.items():
        if not isinstance(backend.address, UnixAddress):
            continue
        path, place = backend.address.path, f"backends.{name}.socket"
        found = _as_server(config, lambda path=path: _look(path))  # type: ignore[misc]
        if found is PermissionError:
            what = f"{_server(config)} may not connect to {path}, so all mail for {name} would be deferred"
            errors.append(f"{place}: {what}; see chmod and adduser, for it and for its directories")
        elif found is FileNotFoundError:
            notes.append(f"{place}: there is no {path} now: is that store running?")
        elif found is not None:
            notes.append(f"{place}: {path} is no socket")
    return errors, notes


def _look(path: str) -> type[OSError] | None:
    """What would be in the way of a connection."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return OSError
    except PermissionError:
        return PermissionError
    except OSError:
        return FileNotFoundError
    return None if os.access(path, os.W_OK, effective_ids=True) else PermissionError


# --- files -----------------------------------------------------------------------------------------------------------


def _files(config: Config) -> Iterator[str]:
    found = (_table_error(config), _uncertain_log_error(config), _receipts_error(config), _metrics_error(config))
    return filter(None, found)


def _uncertain_log_error(config: Config) -> str | None:
    path = config.uncertain_log
    if path is None:
        return None
    # What is not there yet is made in its directory.
    target, mode = (path, os.W_OK) if os.path.lexists(path) else (os.path.dirname(path), os.W_OK | os.X_OK)
    if _may(config, target, mode) and not os.path.isdir(path):
        return None
    return f"config.uncertain_log: {_server(config)} cannot write {path}; see chown and chmod"


def _receipts_error(config: Config) -> str | None:
    path = config.receipts
    if path is None:
        return None
    try:
        import lmtp_proxy.receipts.file  # noqa: F401  (and now, because `run_as` may not be able to read it)
    except ImportError as error:
        return f"config.receipts: this Python cannot use SQLite: {error}"
    directory = os.path.dirname(path)
    if not _may(config, directory, os.W_OK | os.X_OK):  # SQLite makes files beside the one
        return f"config.receipts: {_server(config)} cannot write in {directory}; see mkdir, chown and chmod"
    if os.path.lexists(path) and (not _may(config, path, os.R_OK | os.W_OK) or os.path.isdir(path)):
        return f"config.receipts: {_server(config)} cannot write {path}; see chown and chmod"
    return None


def _table_error(config: Config) -> str | None:
    if config.table is None:
        return None
    try:
        import lmtp_proxy.table.replica  # noqa: F401  (as for receipts)
    except ImportError as error:
        return f"config.table: this Python cannot use SQLite: {error}"
    return None


def _table_trouble(config: Config) -> str | None:
    """Rights. A start goes on without, by the copy of the table."""
    if config.table is None:
        return None
    path = config.table.sqlite
    directory = os.path.dirname(path)
    if os.path.isdir(directory) and not _may(config, directory, os.W_OK | os.X_OK):
        return f"config.table.sqlite: {_server(config)} cannot write in {directory}; see chown and chmod"
    if os.path.lexists(path) and (not _may(config, path, os.R_OK | os.W_OK) or os.path.isdir(path)):
        return f"config.table.sqlite: {_server(config)} cannot write {path}; see chown and chmod"
    return None


def check_table(config: Config) -> None:
    """That the database of config.table can be used now. Raises ConfigError."""
    if config.table is None:
        return
    from contextlib import closing

    from lmtp_proxy.table.base import TableError
    from lmtp_proxy.table.schema import LAYOUT
    from lmtp_proxy.table.sqlite import SqliteConnection
    from lmtp_proxy.table.store import TableStore

    try:
        with closing(SqliteConnection(config.table.sqlite)) as connection:
            layout = TableStore(connection).head().layout
    except TableError as error:
        _refuse(config, [f"config.table: {error}"])
        return
    if layout > LAYOUT:
        _refuse(config, [f"config.table: its schema is of a newer lmtp-proxy (layout {layout}): update this one"])


def _metrics_error(config: Config) -> str | None:
    """It is imported by the first scrape."""
    if config.metrics is None or find_spec("prometheus_client") is not None:
        return None
    return "config.metrics: this Python has no prometheus_client: install it (Debian: python3-prometheus-client)"


# --- rights ----------------------------------------------------------------------------------------------------------


def _server(config: Config) -> str:
    """Who is to serve."""
    return config.run_as if config.run_as is not None and os.geteuid() == 0 else own_name()


def _may(config: Config, path: str, mode: int) -> bool:
    """Whether the user who is to serve may."""
    return _as_server(config, lambda: os.access(path, mode, effective_ids=True))


def _as_server(config: Config, ask: Callable[[], _Value]) -> _Value:
    """What is so for the user who is to serve, tried as that user if we are root."""
    if config.run_as is None or os.geteuid() != 0:
        return ask()
    user = account(config.run_as)
    groups, group = os.getgroups(), os.getegid()
    try:
        os.setgroups(os.getgrouplist(user.pw_name, user.pw_gid))
        os.setegid(user.pw_gid)
        os.seteuid(user.pw_uid)
        return ask()
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)
