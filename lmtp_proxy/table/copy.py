# SPDX-License-Identifier: GPL-3.0-or-later
"""The copy of the table on this host's disk: a snapshot, and a log of the changes since. By it the next start serves
where the database cannot be read.

The snapshot is the octets of a StaticTable, which every process maps, and behind them what else is to be known of it.
It is replaced whole, by a rename. A change is in the log, with fsync, before anybody may say that it is in force.
Several processes write the same changes into one log, under a lock: the first one does, the others find it done. Each
record says which position it follows, so a log with a gap is none: what cannot follow is never written.
"""

import fcntl
import json
import os
import secrets
import stat
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from lmtp_proxy.routing.keys import KeyRules
from lmtp_proxy.routing.static_table import Shape, StaticTable, write_table
from lmtp_proxy.table.base import TableBusy, TableError
from lmtp_proxy.table.history import Position, RouteChange, RouteRow
from lmtp_proxy.table.served import why_refused
from lmtp_proxy.text import shown

_MAGIC = b"lmtp-tb2"
_TAIL = 32  # octets at the end of a snapshot: the length of what stands before them, its name, _MAGIC
_MAX_META = 64 * 2**20
_PATIENCE = 20.0  # seconds; to write ten million users takes less
_LOOK_AGAIN = 0.002
_PLAIN = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # the last for a FIFO: to open it would wait for ever


class Snapshot(NamedTuple):
    """What stands behind the table in its file.

    Attributes:
        name: random; the log that belongs to it has the same.
        position: of the table.
        meaning: of the rules by which its rows were read.
        shape: see StaticTable.
        counts: how many of its keys are on each name.
        refused: address -> why.
    """

    name: str
    position: Position
    meaning: str
    shape: Shape
    counts: Mapping[str, int]
    refused: Mapping[str, str]


class TableLog(NamedTuple):
    """What was read of a log.

    Attributes:
        records: the position after each, and what it was, as they were appended.
        whole: all that was ever said to be on the disk is among them.
    """

    records: list[tuple[Position, list[RouteChange]]]
    whole: bool


class TableCopy:
    """The copy beside the database at `path`. Whatever cannot be read is no copy; what cannot be written is TableError.

    Args:
        owner: user and group id of its files, None for one's own.
    """

    def __init__(self, path: str, owner: tuple[int, int] | None = None) -> None:
        self.path = f"{path}.copy"
        self.log = f"{path}.copy.log"
        self._lock = f"{path}.copy.lock"
        self._owner = owner

    def __repr__(self) -> str:
        return f"<TableCopy {self.path}>"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else writes meanwhile."""
        with self._told():
            handle = os.open(self._lock, os.O_RDWR | os.O_CREAT | _PLAIN, 0o600)
            try:
                _must_be_plain(handle, self._lock)
                self._own(handle)
                self._wait_for(handle)
                yield
            finally:
                os.close(handle)

    def _wait_for(self, handle: int) -> None:
        latest = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > latest:
                    what = "is locked by another process of lmtp-proxy for too long: is one of them stopped?"
                    raise TableBusy(f"{shown(self._lock, 4096)}: {what}") from None
            time.sleep(_LOOK_AGAIN)

    def read(self, meaning: str) -> tuple[Snapshot, int] | None:
        """The snapshot, and the descriptor of its open file; None if there is none for these rules."""
        try:
            handle = os.open(self.path, os.O_RDONLY | _PLAIN)
        except OSError:
            return None
        try:
            snapshot = self._meta(handle)
        except (OSError, ValueError, TypeError, KeyError):
            snapshot = None
        if snapshot is None or snapshot.meaning != meaning:
            os.close(handle)
            return None
        return snapshot, handle

    def _meta(self, handle: int) -> Snapshot:
        end = os.fstat(handle).st_size
        length, _ = _tail_of(handle)
        if length > _MAX_META:
            raise ValueError(length)
        meta = json.loads(os.pread(handle, length, end - _TAIL - length))
        shape = Shape(*meta["shape"])
        return Snapshot(
            meta["name"], Position(*meta["position"]), meta["meaning"], shape, meta["counts"], meta["refused"]
        )

    def logged(self, snapshot: Snapshot) -> TableLog:
        """What is in the log of `snapshot`. One of another snapshot was left by a crash before anything was added."""
        found: list[tuple[Position, list[RouteChange]]] = []
        try:
            with open(os.open(self.log, os.O_RDONLY | _PLAIN), "rb") as file:
                lines = file.read().split(b"\n")
        except OSError:
            return TableLog(found, False)
        end = snapshot.position
        try:
            if json.loads(lines[0])["name"] != snapshot.name:
                return TableLog(found, True)
            for line in lines[1:-1]:  # what stands behind the last line feed was not written to its end
                follows, position, changes = json.loads(line)
                if Position(*follows) != end:
                    return TableLog(found, False)
                end = Position(*position)
                found.append((end, [RouteChange(*change) for change in changes]))
        except (ValueError, TypeError, KeyError):
            return TableLog(found, False)
        return TableLog(found, True)

    def logged_octets(self) -> int:
        """How long the log is."""
        try:
            return os.stat(self.log).st_size
        except OSError:
            return 0

    def append(self, changes: Sequence[RouteChange], here: Position, position: Position) -> bool:
        """Write these, which lead from `here` to `position`, into the log, whatever of them is not there yet.

        They are on the disk when this returns True. False if they cannot follow what is there, or nobody can tell: then
        there has to be a new copy.
        """
        with self.locked():
            return self.append_locked(changes, here, position)

    def append_locked(self, changes: Sequence[RouteChange], here: Position, position: Position) -> bool:
        """As `append`, under the lock already."""
        with self._told():
            try:
                handle = os.open(self.log, os.O_RDWR | _PLAIN)
            except FileNotFoundError:
                return False
            try:
                found = self._end(handle)
                if found is None:
                    return False
                end, size = found
                if end.gen >= position.gen:  # another process has written them
                    os.fsync(handle)
                    return end.gen > position.gen or end == position
                if end.gen < here.gen or (end.gen == here.gen and end != here):
                    return False
                new = [change for change in changes if change.gen > end.gen]
                try:
                    _write_all(handle, json.dumps([end, position, new]).encode("ascii") + b"\n", size)
                    os.fsync(handle)
                except BaseException:
                    # It was never said to be there. What stays would be taken for done by the next one.
                    try:
                        os.ftruncate(handle, size)
                    except OSError:
                        os.unlink(self.log)
                    raise
                return True
            finally:
                os.close(handle)

    def _end(self, handle: int) -> tuple[Position, int] | None:
        """The position at the end of the log, and how many octets lead there; None if it is not the log of the copy, or
        cannot be understood. What was not written to its end is cut off."""
        size = os.fstat(handle).st_size
        piece = 4096
        while True:
            start = max(0, size - piece)
            octets = os.pread(handle, size - start, start)
            whole = octets.rfind(b"\n") + 1
            before = octets.rfind(b"\n", 0, max(0, whole - 1)) + 1
            if start == 0 or (whole and before):
                break
            piece *= 4
        try:
            first = os.pread(handle, 4096, 0)
            if json.loads(first[: first.index(b"\n")])["name"] != self._name():
                return None
            value: Any = json.loads(octets[before:whole])
            gen, tag = value["position"] if isinstance(value, dict) else value[1]
            position = Position(int(gen), int(tag))
        except (OSError, ValueError, TypeError, KeyError, IndexError):
            return None
        if start + whole < size:
            os.ftruncate(handle, start + whole)
        return position, start + whole

    def _name(self) -> str:
        """Of the snapshot that is there. Raises OSError and ValueError."""
        handle = os.open(self.path, os.O_RDONLY | _PLAIN)
        try:
            return _tail_of(handle)[1]
        finally:
            os.close(handle)

    def write(
        self,
        rows: Iterable[RouteRow],
        position: Position,
        rules: KeyRules,
        meaning: str,
        look: Callable[[StaticTable], None] = lambda _: None,
    ) -> tuple[Snapshot, int]:
        """Replace it by these rows, with an empty log; under the lock. Returns as `read` does.

        look: is shown what is to be the copy; if it raises, the former one stays.
        """
        records: list[bytes] = []
        counts: Counter[str] = Counter()
        refused: dict[str, str] = {}
        for address, backend, _ in rows:
            if backend is None:
                continue
            if (why := why_refused(address, backend, rules)) is not None:
                refused[address] = why
                continue
            records.append(f"{address}\t{backend}".encode())
            counts[backend] += 1
        name = secrets.token_hex(8)
        with self._told():
            temporary = f"{self.path}.new"
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | _PLAIN, 0o600)
            try:
                self._own(handle)
                with open(handle, "wb", closefd=False) as file:
                    shape = write_table(records, array("I", bytes(4 * len(records))), counts, file.write)
                    snapshot = Snapshot(name, position, meaning, shape, counts, refused)
                    meta = json.dumps({**snapshot._asdict(), "shape": list(shape)}).encode("ascii")
                    file.write(meta + len(meta).to_bytes(8, "big") + name.encode("ascii") + _MAGIC)
                look(StaticTable.of_file(os.dup(handle), shape))
                os.fsync(handle)
                # A log that is not of the snapshot is none: so a crash between the two loses nothing that was said.
                os.rename(temporary, self.path)
                self._sync_directory()
                self._new_log(snapshot)
            except BaseException:
                os.close(handle)
                with suppress(OSError):
                    os.unlink(temporary)
                raise
        return snapshot, handle

    def renew_log(self, snapshot: Snapshot) -> None:
        """Make one if there is none that belongs to the snapshot; under the lock."""
        with self._told():
            try:
                with open(self.log, "rb") as file:
                    if json.loads(file.readline())["name"] == snapshot.name:
                        return
            except (OSError, ValueError, TypeError, KeyError):
                pass
            self._new_log(snapshot)

    def _new_log(self, snapshot: Snapshot) -> None:
        temporary = f"{self.log}.new"
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _PLAIN, 0o600)
        try:
            self._own(handle)
            _write_all(handle, json.dumps({"name": snapshot.name, "position": snapshot.position}).encode() + b"\n", 0)
            os.fsync(handle)
        finally:
            os.close(handle)
        os.rename(temporary, self.log)
        self._sync_directory()

    def _sync_directory(self) -> None:
        parent = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            with suppress(OSError):
                os.fsync(parent)
        finally:
            os.close(parent)

    def _own(self, handle: int) -> None:
        status = os.fstat(handle)
        if self._owner is not None and os.geteuid() == 0 and (status.st_uid, status.st_gid) != self._owner:
            os.fchown(handle, *self._owner)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise TableError(f"{shown(self.path, 4096)}: the copy cannot be written: {why}") from error


def _tail_of(handle: int) -> tuple[int, str]:
    """Of a snapshot: the length of what is to be known of it, and its name. Raises OSError and ValueError."""
    tail = os.pread(handle, _TAIL, max(0, os.fstat(handle).st_size - _TAIL))
    if len(tail) != _TAIL or tail[24:] != _MAGIC:
        raise ValueError(tail)
    return int.from_bytes(tail[:8], "big"), tail[8:24].decode("ascii")


def _write_all(handle: int, octets: bytes, place: int) -> None:
    """A disk that fills up takes less than it is given, which is no error to the kernel."""
    while octets:
        written = os.pwrite(handle, octets, place)
        octets, place = octets[written:], place + written


def _must_be_plain(handle: int, path: str) -> None:
    """A file of somebody else, under a second name in a directory that others may write, is not to be given away."""
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise TableError(f"{shown(path, 4096)}: is no regular file of its own: remove it")
