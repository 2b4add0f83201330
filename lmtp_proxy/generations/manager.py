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
from typing import Any, Literal

import gevent
import gevent.os
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from lmtp_proxy.config.difference import compare_users, difference, too_many_removed, who_moved, without
from lmtp_proxy.config.loading import LARGE, LONGEST, Loaded, LoadingProcess, is_large
from lmtp_proxy.config.values import Config, ConfigError, how_many
from lmtp_proxy.generations.generation import Generation, first_generation, next_generation, retire
from lmtp_proxy.generations.installed import another_installed
from lmtp_proxy.generations.reloads import Outcome, Reloaded, ReloadRefused, Reloads, moved_from
from lmtp_proxy.generations.share import WHOLE, Share
from lmtp_proxy.loop.late import OneThread, late_import
from lmtp_proxy.routing.static_table import StaticTable
from lmtp_proxy.routing.table import TableUnavailable
from lmtp_proxy.start.late_modules import READS_CONFIG
from lmtp_proxy.text import count, shown, span

_log = logging.getLogger(__name__)

_NEEDS_RESTART = (
    *("socket", "owner", "group", "permissions", "pid", "run_as", "max_clients", "log", "control", "metrics"),
    "workers",
)
_SECTIONS = ("backends", "users")
_MOVES: tuple[Literal["added", "removed", "moved"], ...] = ("added", "removed", "moved")


class ConfigManager(Reloads):
    """Holds the generation in force.

    Args:
        config: what the process started with.
        generation_changed: called after each swap.
        share: see Generation.

    Attributes:
        loaded: when that generation was swapped in, in seconds since the epoch.
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
        nobody = dataclasses.replace(self._generation.config, users=StaticTable(), fallback_backend=None)
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
                loaded = _load_in(self._aside, path, old.users)
                if loaded is None:
                    old = self._generation.config  # a reload meanwhile closed the table of the one before
                    loaded = _load_aside(path, old)
                if isinstance(loaded, ConfigError):
                    return loaded
                try:
                    keys = {loaded.config.key_rules.table_key(user) for user in but}
                    users = without(loaded.users, old.users, loaded.config.users, keys) if keys else loaded.users
                except TableUnavailable:  # the same, just now
                    continue
                return {**difference(old, loaded.config, users), "sha256": loaded.config.digest}

    def reload(self, *, force: bool = False) -> Outcome:
        """Load the file now and swap, or log in full why not. Returns after the swap. force: see Reloads."""
        began = time.monotonic()
        previous = self._generation
        path, users = previous.config.path, previous.config.users
        loaded = _load_in(self._thread, path, users) or _load_aside(path, previous.config)
        if isinstance(loaded, Loaded) and not force and (why := too_many_removed(previous.config, loaded.users)):
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
        config, changes = loaded.config, _described(previous.config, loaded)
        self._generation = next_generation(config, previous)
        retire(previous, self._generation)
        previous.replaced()
        self.loaded = time.time()
        self._generation_changed()
        # The old generation may be held until the collector comes. In a thread: a million users take 6 ms to let go.
        self._thread.apply(users.close)
        seconds = time.monotonic() - began
        _log.info("reload: generation %d active: %s in %s", self._generation.number, changes, span(seconds))
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


def _differs(one: Config, other: Config, key: str) -> bool:
    return bool(getattr(one, key) != getattr(other, key))


def _load_in(thread: OneThread, path: str, old: StaticTable) -> Loaded | ConfigError | None:
    """See `_load`. Nothing is loaded by the program of another version."""
    if why := another_installed():
        return ConfigError((why,))
    try:
        thread.prepare()
    except (ImportError, OSError) as error:
        return ConfigError((f"{shown(path, 4096)}: cannot be loaded: no thread for it: {error}",))
    return thread.apply(_load, (path, old))


def _load(path: str, old: StaticTable) -> Loaded | ConfigError | None:
    """The configuration at `path`, and its users compared with `old`. None if that is not for a thread.

    Runs in a thread: no gevent, no log. Errors are returned, because gevent prints those that leave a thread.
    """
    if is_large(path, old):
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
    return Loaded(config, compare_users(old, config.users))


def _load_aside(path: str, old: Config) -> Loaded | ConfigError:
    """As `_load`, in a process. Whoever ends this greenlet ends the process."""
    try:
        process = LoadingProcess(path, old.users, files=old.files)
    except ConfigError as error:
        return error
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
    except ConfigError as error:
        why = another_installed()  # meanwhile: then the two did not understand each other
        return ConfigError((why,)) if why else error
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
    changes = [f"{len(new.users)} users ({added} added, {removed} removed, {moved} moved)"]
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
