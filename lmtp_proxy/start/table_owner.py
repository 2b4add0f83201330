# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock on a table in a file that keeps a second proxy from serving by it.

A move is done when the proxy that was asked serves by it, with all its workers. A second one would not be asked, and
would go on to deliver to the former store.
"""

import errno
import fcntl
import os
import stat

from lmtp_proxy.config.values import Config, ConfigError

_PLAIN = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class TableOwner:
    """Held for the life of the process that has the control socket."""

    def __init__(self, config: Config) -> None:
        self._source = config.path
        self._database = config.table.sqlite if config.table is not None else ""
        self._handle = -1

    def fileno(self) -> int:
        """The descriptor that holds the lock; it must survive becoming a daemon."""
        return self._handle

    def acquire(self) -> None:
        """Lock it. Raises ConfigError: another proxy has, or it cannot be known."""
        path = f"{os.path.realpath(self._database)}.copy.owner"  # whatever name this proxy has for it
        try:
            try:
                handle = os.open(path, os.O_RDWR | os.O_CREAT | _PLAIN, 0o600)
            except OSError as error:
                if error.errno != errno.EROFS:
                    raise
                handle = os.open(path, os.O_RDONLY | _PLAIN)  # of an earlier start
        except OSError as error:
            raise self._refusal(f"cannot open {path}: {error.strerror}") from error
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                raise self._refusal(f"{path} is no regular file of its own: remove it")
            self._give_away(handle, status)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            what = "another lmtp-proxy serves by this table: each proxy needs one of its own"
            raise self._refusal(f"{what} ({path} is locked)") from error
        except (ConfigError, OSError):
            os.close(handle)
            raise
        self._handle = handle

    def _give_away(self, handle: int, status: os.stat_result) -> None:
        """To whom the database belongs, so that the next start can be theirs."""
        if os.geteuid() != 0:
            return
        try:
            theirs = os.stat(self._database)
        except OSError:
            return
        if (theirs.st_uid, theirs.st_gid) != (status.st_uid, status.st_gid):
            os.fchown(handle, theirs.st_uid, theirs.st_gid)

    def _refusal(self, what: str) -> ConfigError:
        return ConfigError((f"{self._source}: config.table.sqlite: {what}",))
