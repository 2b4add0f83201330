# SPDX-License-Identifier: GPL-3.0-or-later
"""The greenlet that reloads the configuration: load, validate, build the next generation, swap once.

A signal only asks for a reload. Any number of them become at least one load that began after the last one. The file is
read and compared in a thread, a large one in a process, never in the hub, so deliveries go on. A file with errors
changes nothing.
"""

import dataclasses
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

import gevent
import gevent.os
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from lmtp_proxy.config.difference import UserChanges, compare_users, difference, too_many_removed, who_moved, without
from lmtp_proxy.config.loading import LARGE, LONGEST, Loaded, LoadingProcess, TableReplaced, are_large, is_large
from lmtp_proxy.config.values import Config, ConfigError, how_many
from lmtp_proxy.generations.generation import Generation, first_generation, next_generation, retire
from lmtp_proxy.generations.installed import another_installed
from lmtp_proxy.generations.moved import MovedAt
from lmtp_proxy.generations.reloads import Outcome, Reloaded, ReloadRefused, Reloads, moved_from
from lmtp_proxy.generations.share import WHOLE, Share
from lmtp_proxy.loop.late import OneThread, late_import
from lmtp_proxy.routing.static_table import StaticTable
from lmtp_proxy.routing.table import TableUnavailable
from lmtp_proxy.start.late_modules import READS_CONFIG
from lmtp_proxy.text import count, shown, span

if TYPE_CHECKING:
    from lmtp_proxy.table.replica import Replica
    from lmtp_proxy.table.served import UserMove

_log = logging.getLogger(__name__)

_NEEDS_RESTART = (
    *("socket", "owner", "group", "permissions", "pid", "run_as", "max_clients", "log", "control", "metrics"),
    "workers",
)
_SECTIONS = ("backends", "users")
_SHOWN = 20
_PIECE = 500  # changes: 2 ms
_ATTEMPTS = 5
_REST = 0.001  # seconds
_NOBODY_ELSEWHERE = compare_users(StaticTable(), StaticTable())
_MOVES: tuple[Literal["added", "removed", "moved"], ...] = ("added", "removed", "moved")


class ConfigManager(Reloads):
    """Holds the generation in force.

    Args:
        config: what the process started with.
        generation_changed: called after each swap.
        share: see Generation.

    Attributes:
        loaded: when that generation was swapped in, in seconds since the epoch.
        last_flight: the number of the delivery that entered last, see InFlight.
        moved_at: whom a look at config.table has moved.
    """

    def __init__(
        self,
        config: Config,
        generation_changed: Callable[[], None],
        share: Share = WHOLE,
    ) -> None:
        super().__init__()
        self._started_with = config
        self._generation = first_generation(config, share)
        self._generation_changed = generation_changed
        self.loaded = time.time()
        # Of its own: the hub's threads are also those of DNS, which may keep them all for long.
        self._thread = OneThread()
        self._aside = OneThread()
        self._replica: Replica | None = None
        self._table_ahead = False  # of the generation in force
        self.last_flight: Callable[[], int] = lambda: 0
        self.moved_at = MovedAt()
        self._comparing = BoundedSemaphore()  # one at a time, for the sake of memory

    def __repr__(self) -> str:
        return f"<ConfigManager generation {self._generation.number} of {self._generation.config.path}>"

    def current(self) -> Generation:
        """The generation in force now."""
        return self._generation

    def withdraw(self) -> None:
        """From now on nobody has a route: no delivery passes its commit point any more, and no new one begins.

        For a process whose configuration nobody can change any more. `run` must have ended.
        """
        nobody = dataclasses.replace(self._generation.config, users=StaticTable(), served=None, fallback_backend=None)
        previous = self._generation
        self._generation = next_generation(nobody, previous)
        previous.replaced()
        self._generation_changed()

    def compare(self, path: str, but: Sequence[str] = ()) -> dict[str, Any] | ConfigError:
        """What the file at `path` would change, see config/difference, and its digest, `sha256`.

        No reload waits for it. but: users who do not matter.
        """
        with self._comparing:
            while True:
                old = self._generation.config
                loaded = _load_in(self._aside, path, old)
                if loaded is None:
                    old = self._generation.config  # a reload meanwhile closed the table of the one before
                    loaded = _load_aside(path, old, table=old.served is None)
                    if isinstance(loaded, Loaded) and old.served is not None:  # how its rows are is no matter of a file
                        loaded = Loaded(loaded.config, _NOBODY_ELSEWHERE)
                if isinstance(loaded, ConfigError):
                    return loaded
                try:
                    keys = {loaded.config.key_rules.table_key(user) for user in but}
                    users = without(loaded.users, old.users, loaded.config.users, keys) if keys else loaded.users
                except TableUnavailable:  # the same, just now
                    continue
                return {**difference(old, loaded.config, users), "sha256": loaded.config.digest}

    def reload(self, *, force: bool = False, table_alone: bool = False) -> Outcome:
        """Load the file now and swap, or log in full why not. Returns after the swap. See Reloads."""
        began = time.monotonic()
        if table_alone:
            return self._follow(began)
        previous = self._generation
        path, served = previous.config.path, previous.config.served
        loaded: Loaded | ConfigError | None = None
        if not (force and served is not None):  # then it is read as a whole, and taken as it is
            loaded = _load_in(self._thread, path, previous.config)
        loaded = loaded or _load_aside(path, previous.config, accept=force)
        if isinstance(loaded, Loaded) and (why := _not_wanted(previous.config, loaded, force=force)):
            loaded.config.users.close()
            loaded = ConfigError((why,))
        if isinstance(loaded, ConfigError):
            for line in loaded.errors:
                _log.error("reload: %s", line)
            errors = count(how_many(loaded.errors), "error")
            _log.error(
                "reload refused: %s in %s; generation %d stays active", errors, previous.config.path, previous.number
            )
            return ReloadRefused(loaded.errors, time.time())
        return self._swap(loaded, "reload", began)

    def _swap(self, loaded: Loaded, what: str, began: float) -> Reloaded:
        previous = self._generation
        users, served = previous.config.users, previous.config.served
        config, changes = loaded.config, _described(previous.config, loaded)
        if served is not None and config.served is not None and config.served is not served:
            # In a thread, as these may be many. Nobody changes either meanwhile: reloads are one at a time.
            self._thread.apply(config.served.takes_the_place_of, (served, loaded.gone))
        self._generation = next_generation(config, previous)
        self._table_ahead = False
        if served is not None:
            self.moved_at.note_all(self.last_flight())
        retire(previous, self._generation)
        previous.replaced()
        self.loaded = time.time()
        self._generation_changed()
        # The old generation may be held until the collector comes. In a thread: a million users take 6 ms to let go.
        if users is not config.users:
            self._thread.apply(users.close)
        seconds = time.monotonic() - began
        _log.info("%s: generation %d active: %s in %s", what, self._generation.number, changes, span(seconds))
        named = tuple(who_moved(loaded.users))
        for line in named:
            _log.info("users: %s", line)
        for note in config.notes:
            _log.info("reload: note: %s", note)
        restart = tuple(f"config.{key}" for key in _NEEDS_RESTART if _differs(self._started_with, config, key))
        if restart:
            _log.warning("reload: a change of %s takes effect at the next start only", ", ".join(restart))
        moved = moved_from([group for kind in _MOVES for group in loaded.users[kind]])
        return Reloaded(self._generation.number, changes, seconds, restart, self.loaded, moved, named)

    def _follow(self, began: float) -> Outcome:
        """Put in force what has changed in the table, or say why that cannot be."""
        previous = self._generation
        config = previous.config
        if config.served is None:
            return ReloadRefused((f"{shown(config.path, 4096)}: there is no config.table",), time.time())
        troubled = config.served.trouble
        moved = self._changes_of(config)
        if moved is None:
            loaded = another_installed() or _load_aside(config.path, config, alone=True)
            if isinstance(loaded, Loaded):
                if troubled:
                    _log.info("table: %s can be used again", config.served.where)
                return self._swap(loaded, "table", began)
            moved = ConfigError((loaded,)) if isinstance(loaded, str) else loaded
            config.served.trouble = str(moved)
        if isinstance(moved, ConfigError):
            if str(moved) != troubled:
                _log.error("table: %s; mail goes on by what is in force", moved)
            return ReloadRefused(moved.errors, time.time())
        seconds = time.monotonic() - began
        if self._table_ahead:
            self._generation = next_generation(config, previous)
            self._table_ahead = False
            self.moved_at.note((each.user for each in moved), self.last_flight())
            previous.replaced()
        if troubled:
            _log.info("table: %s can be used again", config.served.where)
        if self._generation is previous:  # marks, or nothing at all
            return Reloaded(previous.number, "nothing new", seconds, (), self.loaded, nothing=True)
        self.loaded = time.time()
        self._generation_changed()
        named = tuple(_named(moved))
        what = f"{len(config.served):,} users ({count(len(moved), 'user')} elsewhere)"
        _log.info("table: generation %d active: %s in %s", self._generation.number, what, span(seconds))
        for line in named:
            _log.info("users: %s", line)
        return Reloaded(self._generation.number, what, seconds, (), self.loaded, moved_from(_grouped(moved)), named)

    def _changes_of(self, config: Config) -> "Sequence[UserMove] | ConfigError | None":
        """Bring what `config` serves up to date; a new generation must follow. Who is elsewhere since.

        None if all of the table has to be read. Between the pieces of many changes mail goes on, some by the new routes
        and some by the old, as it may until somebody is told that it does not: not before the new generation.
        """
        from lmtp_proxy.table.replica import Replica

        served = config.served
        assert served is not None
        assert config.table is not None
        if self._replica is None or self._replica.path != config.table.sqlite:
            if self._replica is not None:
                self._thread.apply(self._replica.close)
            self._replica = Replica(config.table.sqlite)
        look = self._thread.apply(self._replica.look, (served, config.max_removed.of))
        if look.behind:
            return None
        served.trouble = look.trouble
        if look.position is None:
            return ConfigError((look.trouble,))
        moved: list[UserMove] = []
        refusals, ahead = served.refusals, self._table_ahead
        for start in range(0, len(look.changes), _PIECE):
            if start:
                gevent.sleep(_REST)
            self._table_ahead = True  # whatever ends this before the next generation
            moved += served.apply(look.changes[start : start + _PIECE], config.key_rules)
        served.position = look.position
        self._table_ahead = ahead or bool(moved) or served.refusals != refusals
        return moved


def _grouped(moved: "Sequence[UserMove]") -> list[dict[str, Any]]:
    groups: dict[tuple[str | None, str | None], list[str]] = {}
    for user, before, after in moved:
        groups.setdefault((before, after), []).append(user)
    return [
        {"from": before, "to": after, "count": len(users), "users": users} for (before, after), users in groups.items()
    ]


def _named(moved: "Sequence[UserMove]") -> list[str]:
    lines = [
        f"{shown(user)}: {shown(before or 'nowhere')} -> {shown(after or 'nowhere')}" for user, before, after in moved
    ]
    return lines if len(lines) <= _SHOWN else [*lines[:_SHOWN], f"and {len(lines) - _SHOWN:,} more"]


def _differs(one: Config, other: Config, key: str) -> bool:
    return bool(getattr(one, key) != getattr(other, key))


def _load_in(thread: OneThread, path: str, old: Config) -> Loaded | ConfigError | None:
    """See `_load`. Nothing is loaded by the program of another version."""
    if why := another_installed():
        return ConfigError((why,))
    try:
        thread.prepare()
    except (ImportError, OSError) as error:
        return ConfigError((f"{shown(path, 4096)}: cannot be loaded: no thread for it: {error}",))
    return thread.apply(_load, (path, old))


def _load(path: str, old: Config) -> Loaded | ConfigError | None:
    """The configuration at `path`, and its users compared with those of `old`. None if that is not for a thread.

    A table in a database is the one of `old`, if it is the same one and read by the same rules.
    Runs in a thread: no gevent, no log. Errors are returned, because gevent prints those that leave a thread.
    """
    if are_large([path]) if old.served is not None else is_large(path, old.users):
        return None
    # Here, because a process that was never told to reload does without YAML, which takes 3 MB.
    try:
        with nullcontext() if READS_CONFIG in sys.modules else late_import():
            from lmtp_proxy.config.read import LargeConfig, load_config
    except Exception as error:  # noqa: BLE001  (what half an import finds missing may be anything)
        return ConfigError((f"{shown(path, 4096)}: cannot be loaded: what reads it cannot be: {error}",))
    try:
        config = load_config(path, at_most=LARGE)
    except LargeConfig:
        return None
    except ConfigError as error:
        return error
    if config.table != old.table:
        return ConfigError((_another_table(path),))
    if config.table is not None:
        if config.key_rules != old.key_rules:
            return None
        users: UserChanges = {**_NOBODY_ELSEWHERE, "users": old.how_many}
        return Loaded(dataclasses.replace(config, users=old.users, served=old.served), users)
    return Loaded(config, compare_users(old.users, config.users))


def _not_wanted(old: Config, loaded: Loaded, *, force: bool) -> str | None:
    """Why what was loaded is not to be in force; None if it may be."""
    new = loaded.config
    if new.table != old.table:
        return _another_table(new.path)
    if force or old.served is not None:  # the loader has looked at that, before it made a copy of it
        return None
    return too_many_removed(old, loaded.users)


def _another_table(path: str) -> str:
    what = "where the users are changes at a restart only, which loses no mail"
    return f"{shown(path, 4096)}: config.table: {what}; nothing was changed"


def _load_aside(
    path: str, old: Config, *, accept: bool = False, table: bool = True, alone: bool = False
) -> Loaded | ConfigError:
    """As `_load`, in a process. Whoever ends this greenlet ends the process. accept, table, alone: see LoadingProcess.

    A table that another process has copied anew meanwhile, as another worker may, is loaded once more.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return _load_once(path, old, accept=accept and not attempt, table=table, alone=alone)
        except TableReplaced as error:
            replaced = error
        except ConfigError as error:
            return error
    return replaced


def _load_once(path: str, old: Config, *, accept: bool, table: bool, alone: bool) -> Loaded:
    """Raises ConfigError."""
    in_force = None if old.served is None else old
    process = LoadingProcess(
        path, old.users, files=old.files, accept=accept, table=table, in_force=in_force, alone=alone
    )
    # Nobody else may wait for it: libev takes the status of every child.
    watcher = gevent.get_hub().loop.child(process.pid)
    ended = Event()
    watcher.start(ended.set)

    def wait(seconds: float) -> int | None:
        return watcher.rstatus if ended.wait(seconds) else None

    octets = []
    try:
        gevent.os.make_nonblocking(process.pipe)
        with gevent.Timeout(LONGEST, process.too_long()):
            while piece := gevent.os.nb_read(process.pipe, 2**16):
                octets.append(piece)
        return process.result(b"".join(octets), wait)
    except ConfigError:
        if why := another_installed():  # meanwhile: then the two did not understand each other
            raise ConfigError((why,)) from None
        raise
    finally:
        process.close(wait)
        watcher.stop()
        watcher.close()


def _described(old: Config, loaded: Loaded) -> str:
    """What changed, as text."""
    new, users = loaded.config, loaded.users
    added, removed, moved = (
        sum(group["count"] for group in groups) for groups in (users["added"], users["removed"], users["moved"])
    )
    changes = [f"{new.how_many} users ({added} added, {removed} removed, {moved} moved)"]
    changes.append(f"{len(new.backends)} backends")
    changed = [name for name in new.backends if old.backends.get(name) != new.backends[name]]
    changed += [f"{name} (removed)" for name in old.backends if name not in new.backends]
    if changed:
        changes.append(f"changed: {', '.join(f'backends.{name}' for name in changed)}")
    keys = [
        field.name for field in dataclasses.fields(Config) if field.compare and field.name not in (*_SECTIONS, "path")
    ]
    if keys := [f"config.{key}" for key in keys if _differs(old, new, key)]:
        changes.append(f"changed: {', '.join(keys)}")
    return ", ".join(changes)
