# SPDX-License-Identifier: GPL-3.0-or-later
"""Remembers the deliveries whose outcome is unknown, and appends each to `uncertain_log` with fsync.

The file is written in a thread, so a slow disk delays neither mail nor the hub. A delivery stays in flight until its
records are on the disk: whoever drains finds them there. What cannot be written is in the log at least.
"""

import fcntl
import logging
import os
from collections import deque
from collections.abc import Collection, Sequence

import gevent

from lmtp_proxy.delivery.in_flight import Flight, InFlight
from lmtp_proxy.delivery.uncertain import Uncertain
from lmtp_proxy.generations.generation import CurrentGeneration
from lmtp_proxy.loop.late import OneThread

_log = logging.getLogger(__name__)
_REMEMBERED = 1000
_LAST_WORDS = 10.0  # seconds that a stop waits for the disk


class UncertainLog:
    """All uncertain deliveries of the process, the last 1000 of them in memory.

    Attributes:
        count: how many there were.
    """

    def __init__(self, current: CurrentGeneration, in_flight: InFlight) -> None:
        self.count = 0
        self._current = current
        self._in_flight = in_flight
        self._recent: deque[Uncertain] = deque(maxlen=_REMEMBERED)
        self._thread = OneThread()
        self._writing: set[gevent.Greenlet[..., None]] = set()

    def __repr__(self) -> str:
        return f"<UncertainLog {self.count}, being written: {len(self._writing)}>"

    def recent(self) -> list[Uncertain]:
        """Those in memory, the oldest first."""
        return list(self._recent)

    def concerning(self, keys: Collection[str] | None, since: float) -> list[Uncertain]:
        """Those in memory with one of `keys` (None: all), from `since` (seconds since the epoch) on."""
        return [
            record
            for record in self._recent
            if record.time >= since and (keys is None or any(key in keys for key in record.keys))
        ]

    def record(self, flight: Flight, records: Sequence[Uncertain]) -> None:
        """Takes the records of `flight`, which leaves once they are written. Returns at once."""
        self.count += len(records)
        self._recent.extend(records)
        path = self._current().config.uncertain_log
        if path is None:
            self._in_flight.leave(flight)
            return
        writer = gevent.spawn(self._write, path, records, flight)
        self._writing.add(writer)
        writer.rawlink(self._writing.discard)

    def stop(self) -> None:
        """Waits until all records are written, for some seconds at most."""
        gevent.joinall(list(self._writing), timeout=_LAST_WORDS)

    def _write(self, path: str, records: Sequence[Uncertain], flight: Flight) -> None:
        try:
            error = self._thread.apply(_append, (path, b"".join(record.to_line() for record in records)))
        except (ImportError, OSError) as failed:  # there can be no thread
            error = str(failed)
        finally:
            self._in_flight.leave(flight)
        if error is not None:
            for record in records:
                _log.error("uncertain_log: %s cannot be written (%s); the record: %s", path, error, record.to_json())


def _append(path: str, octets: bytes) -> str | None:
    """Runs in a thread: no gevent, no log. Returns what went wrong, because gevent prints what leaves a thread."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # other workers append to it, too
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                octets = b"\n" + octets  # a part of a line that a full disk or a crash left behind
            while octets:
                octets = octets[os.write(handle, octets) :]
            fcntl.flock(handle, fcntl.LOCK_UN)
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        return error.strerror or str(error)
    return None
