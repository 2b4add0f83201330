# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads a configuration in a process of its own, so that the one that serves neither stalls nor grows by it.

Nothing is done here that takes longer with more users. It knows nothing of gevent: whoever uses a LoadingProcess reads
the pipe and waits in their own way.
"""

import fcntl
import json
import os
import pickle
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import astuple, dataclass, replace
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from lmtp_proxy import ROOT
from lmtp_proxy.config.difference import UserChanges
from lmtp_proxy.config.values import Config, ConfigError, UsersFile
from lmtp_proxy.routing.static_table import Shape, StaticTable
from lmtp_proxy.text import shown

if TYPE_CHECKING:
    from lmtp_proxy.table.reading import TableFound

LONGEST = 240.0  # seconds; lmtp-proxyctl move waits 300
_NICE = 10  # for a file that is larger than
LARGE = 2**20  # octets: some 33,000 users, 35 ms; the new process takes 100 ms to begin with
_SAID = 4096  # octets of what a process said last that are looked at
_PATIENCE = 2.0  # seconds from the end of its output to its own end
_LOOK_AGAIN = 0.2  # seconds: a Ctrl-C that comes at the worst moment is noticed then
_KILLED = 10.0  # seconds that the kernel may need for a kill: more if a file system hangs

HEADER = Struct(">8sQ")  # MAGIC and the octets of the LoadAnswer that follows, pickled
MAGIC = b"lmtp-ldr"


Wait: TypeAlias = Callable[[float], int | None]
"""Waits so many seconds for the end of the process; its status as os.waitpid has it, None if it is still there."""


class LoadOrder(NamedTuple):
    """What a loading process is to do.

    Attributes:
        path: of the configuration.
        store: descriptor of an empty file for the table.
        old: descriptor and shape of the table to compare with, None if there is nothing to compare.
        nice: how much lower its priority is to be.
        accept: a table in a database is taken whatever its history is, and however many users it has lost.
        table: it is wanted.
        overlay: descriptor of a file with what differs in force from `old`, as JSON; None for nothing.
        alone: the table, and no configuration: path of the database, fields of KeyRules, of MaxRemoved.
    """

    path: str
    store: int
    old: tuple[int, Shape] | None
    nice: int
    accept: bool = False
    table: bool = True
    overlay: int | None = None
    alone: tuple[str, Sequence[Any], Sequence[Any]] | None = None

    def written(self) -> str:
        """As ASCII, whatever the path is."""
        return json.dumps(self)

    @classmethod
    def read(cls, text: str) -> "LoadOrder":
        path, store, old, *rest = json.loads(text)
        return cls(path, store, old and (old[0], Shape(*old[1])), *rest)


class LoadAnswer(NamedTuple):
    """What a loading process found: errors, or a Config, the shape of its table, and what differs from the old one.

    Where the users are in a database, what was found of that; of a table alone there is no Config.
    """

    errors: tuple[str, ...]
    config: Config | None = None
    shape: Shape | None = None
    users: UserChanges | None = None
    table: "TableFound | None" = None
    gone: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration, and what its users differ in from those in force.

    Attributes:
        gone: of a table in a database, who is not there any more, all of them.
    """

    config: Config
    users: UserChanges
    gone: tuple[str, ...] = ()


class TableReplaced(ConfigError):
    """Another process has made a new copy of the table since: to be loaded again."""


def is_large(path: str, old: StaticTable) -> bool:
    """Whether a process of its own is to load the file at `path`, which is to take the place of `old`.

    Whether the files of users that it names are large is known when it is read, see load_config.
    """
    return bool(old.handles) or are_large([path])


def are_large(paths: Iterable[str]) -> bool:
    """Whether the files are, together. One that is not there is not."""
    octets = 0
    for path in paths:
        with suppress(OSError, ValueError):
            octets += os.stat(path).st_size
    return octets > LARGE


def load(path: str, *, table: bool = True) -> Config:
    """As config.load_config, for a process that is about to serve, and is to be as small as can be.

    table: without it a database is not looked at.

    KeyboardInterrupt ends both: it is held back until it is known that there is a process to be ended.
    """
    process: LoadingProcess | None = None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        try:
            process = LoadingProcess(path, None, 0, table=table)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return process.result(_to_its_end(process.pipe), partial(_wait, process.pid)).config
    finally:
        if process is not None:
            process.close(partial(_wait, process.pid))


class LoadingProcess:
    """A process that loads the file at `path`, to take the place of `old`. Raises ConfigError if there can be none.

    Args:
        old: None if nothing is in force yet, and there is nothing to compare with.
        nice: as its files deserve, if None.
        files: those that are known already.
        accept, table: see LoadOrder.
        in_force: the configuration with config.table in which `old` is the snapshot. Without it, `old` is all there is.
        alone: the table is loaded, and the file is not looked at.

    Attributes:
        pid: of the process.
        pipe: to be read to its end.

    To be closed in any case, which ends the process, wherever it is.
    """

    def __init__(
        self,
        path: str,
        old: StaticTable | None,
        nice: int | None = None,
        files: Sequence[UsersFile] = (),
        *,
        accept: bool = False,
        table: bool = True,
        in_force: Config | None = None,
        alone: bool = False,
    ) -> None:
        self._path = path
        self._accept, self._table = accept, table
        self._in_force, self._alone = in_force, alone
        self._status: int | None = None
        self._files = ExitStack()
        try:
            self._start(old, _nice({path, *(file.path for file in files)}) if nice is None else nice)
        except OSError as error:
            self._files.close()
            raise ConfigError((self._failed(f"cannot be started: {error.strerror}"),)) from error

    def __repr__(self) -> str:
        return f"<LoadingProcess {self.pid} for {self._path}>"

    def _start(self, old: StaticTable | None, nice: int) -> None:
        with ExitStack() as meanwhile:
            self.pipe, writer = os.pipe()
            self._files.callback(os.close, self.pipe)
            meanwhile.callback(os.close, writer)
            null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            meanwhile.callback(os.close, null)
            self._said = os.memfd_create("lmtp-proxy messages")
            self._files.callback(os.close, self._said)
            self._store = _high(os.memfd_create("lmtp-proxy users"))
            self._files.callback(os.close, self._store)
            places = [(null, 0), (writer, 1), (self._said, 2), (self._store, self._store)]
            previous = None
            if old is not None:
                previous = (_in_a_file(old, meanwhile), old.shape)
                places.append((previous[0], previous[0]))
            overlay = alone = None
            if self._in_force is not None and self._in_force.served is not None:
                overlay = _in_a_file_of(json.dumps(self._in_force.served.overlay()).encode("ascii"), meanwhile)
                places.append((overlay, overlay))
            if self._alone and self._in_force is not None and self._in_force.table is not None:
                config = self._in_force
                alone = self._in_force.table.sqlite, astuple(config.key_rules), astuple(config.max_removed)
            order = LoadOrder(self._path, self._store, previous, nice, self._accept, self._table, overlay, alone)
            paths = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
            self.pid = os.posix_spawn(
                sys.executable,
                # -P: what happens to lie in the working directory is not this program.
                [sys.executable, "-P", "-m", "lmtp_proxy.config.loader", order.written()],
                {**os.environ, "PYTHONPATH": paths},
                file_actions=[(os.POSIX_SPAWN_DUP2, *place) for place in places],
                setpgroup=0,  # what is typed at a terminal is for the process that serves
                setsigmask=[],
            )

    def result(self, octets: bytes, wait: Wait) -> Loaded:
        """octets: all that came through the pipe. Raises ConfigError."""
        answer: LoadAnswer | None = None
        if len(octets) >= HEADER.size and HEADER.unpack_from(octets) == (MAGIC, len(octets) - HEADER.size):
            answer = pickle.loads(octets[HEADER.size :])  # noqa: S301  (of our own program)
        if answer is None:
            end = self._end(wait, _PATIENCE)
            said = os.pread(self._said, _SAID, max(0, os.fstat(self._said).st_size - _SAID)).decode("utf-8", "replace")
            last = f": {shown(said.strip().splitlines()[-1], 300)}" if said.strip() else ""
            raise ConfigError((self._failed(f"{end}{last}"),))
        if answer.table is not None and answer.users is not None:
            config = answer.config or self._in_force
            assert config is not None
            return Loaded(_with_table(config, answer.table), answer.users, answer.gone)
        if answer.config is None or answer.shape is None or answer.users is None:
            raise ConfigError(answer.errors)
        if os.fstat(self._store).st_size <= LARGE:  # a descriptor less
            users = StaticTable.of_octets(os.pread(self._store, LARGE, 0), answer.shape)
        else:
            users = StaticTable.of_file(_high(os.dup(self._store)), answer.shape)
        return Loaded(replace(answer.config, users=users), answer.users)

    def too_long(self) -> ConfigError:
        """To be raised after LONGEST."""
        return ConfigError((self._failed(f"did not end in {LONGEST:g} s"),))

    def _failed(self, what: str) -> str:
        return f"{shown(self._path, 4096)}: cannot be loaded: the process that is to do it {what}"

    def close(self, wait: Wait) -> None:
        """End the process, if it has not ended, and leave nothing of it behind."""
        self._end(wait, 0.0)
        self._files.close()

    def _end(self, wait: Wait, patience: float) -> str:
        """How it ended, as a verb. Killed if it is still there after `patience` seconds."""
        if self._status is None:
            self._status = wait(patience)
        if self._status is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._status = wait(_KILLED)
        if self._status is None:
            return "cannot be killed"
        code = os.waitstatus_to_exitcode(self._status)
        return f"ended with status {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"


def _with_table(config: Config, found: "TableFound") -> Config:
    """Raises ConfigError, TableReplaced."""
    from lmtp_proxy.table.base import TableError
    from lmtp_proxy.table.reading import CopyReplaced, served

    assert config.table is not None
    try:
        table = served(found, config.table.sqlite, config.key_rules)
    except TableError as error:
        kind = TableReplaced if isinstance(error, CopyReplaced) else ConfigError
        raise kind((f"{shown(config.path, 4096)}: config.table: {error}",)) from error
    return replace(config, users=table.base, served=table)


def _to_its_end(pipe: int) -> bytes:
    """All that comes through the pipe.

    It is not just read: of a signal that comes after Python's last look for one, and before read(2) sleeps, Python
    hears only when that returns. So it looks again now and then.
    """
    readable = select.poll()
    readable.register(pipe, select.POLLIN)
    found: list[bytes] = []
    while True:
        if readable.poll(_LOOK_AGAIN * 1000):
            octets = os.read(pipe, 2**16)
            if not octets:
                return b"".join(found)
            found.append(octets)


def _wait(pid: int, seconds: float) -> int | None:
    """A Wait for a process without gevent."""
    until = time.monotonic() + seconds
    while (found := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() >= until:
            return None
        time.sleep(0.01)
    return found[1]


def _nice(paths: Iterable[str]) -> int:
    """Large files can wait for those who are served; what is soon loaded need not."""
    return _NICE if are_large(paths) else 0


def _in_a_file(table: StaticTable, meanwhile: ExitStack) -> int:
    """The descriptor of the file in which the table is, made for it if there is none."""
    return table.handles[0] if table.handles else _in_a_file_of(table.octets(), meanwhile)


def _in_a_file_of(octets: bytes, meanwhile: ExitStack) -> int:
    handle = _high(os.memfd_create("lmtp-proxy users"))
    meanwhile.callback(os.close, handle)
    with open(handle, "wb", closefd=False) as file:
        file.write(octets)
    return handle


def _high(handle: int) -> int:
    """The descriptor, but none of those at which a process finds its standard files."""
    if handle > 2:
        return handle
    high = fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(handle)
    return high
