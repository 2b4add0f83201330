# SPDX-License-Identifier: GPL-3.0-or-later
"""The file of a journal: its lock, who may read it, room that is kept for a full disk, and what its errors mean.

It knows nothing of what is in it.
"""

import fcntl
import os
import sqlite3
import time

from lmtp_proxy.text import zoned_time

_ROOM = 2**20  # octets that are kept for bringing to an end what is in hand when the disk is full
_MODE = 0o600  # users' names, and the output of hooks


class JournalError(Exception):
    """One line for the operator: the journal, what is wrong with it, what to do."""


NO_ROOM = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE})


def advice(error: BaseException) -> str:
    code = getattr(error, "sqlite_errorcode", 0)
    if code in NO_ROOM:
        return f"cannot be written: {error}: make room there, then give the same command again"
    if code == sqlite3.SQLITE_NOTADB:
        return "is no journal of lmtp-proxy; name another file as `journal` in the plan"
    return f"{error}; see `journal` in the plan"


def create(path: str) -> None:
    """The file itself, if it is not there: so that there is no moment in which others may read it.

    SQLite gives its other files the same mode. Raises OSError.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE))


def keep_room(path: str) -> None:
    """Octets on disk that can be had back. Raises OSError if there is not even so much."""
    handle = os.open(f"{path}.room", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
    try:
        if os.fstat(handle).st_size < _ROOM:
            os.posix_fallocate(handle, 0, _ROOM)
    finally:
        os.close(handle)


def use_room(path: str) -> bool:
    """Whether there was any."""
    try:
        os.unlink(f"{path}.room")
    except OSError:
        return False
    return True


def lock(path: str) -> int:
    """The lock of the journal at `path`. Raises JournalError that says who has it, and OSError."""
    name = f"{path}.lock"
    handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.pread(handle, 200, 0).decode("ascii", "replace").strip() or "another process"
            raise JournalError(f"{path}: another run is at work on it: {who}; `migrate status` shows it") from None
        os.truncate(handle, 0)
        began = zoned_time(time.time())
        os.pwrite(handle, f"pid {os.getpid()}, since {began}\n".encode("ascii"), 0)
    except BaseException:
        os.close(handle)
        raise
    return handle
