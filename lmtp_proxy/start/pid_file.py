# SPDX-License-Identifier: GPL-3.0-or-later
"""The pid file of a daemon, and the lock on it that keeps a second daemon from starting.

The lock, not the content, says whether the daemon runs, so a file that a crash left behind is no obstacle, and a pid
that was given to another process since does no harm.
"""

import fcntl
import os
import stat
from contextlib import suppress

from lmtp_proxy.config.values import ConfigError

_STALE = 64  # octets: whatever a crash left behind is overwritten, but not a file that somebody named by mistake


class PidFile:
    """The file at `path`, locked.

    Args:
        path: of the file.
        source: the configuration file, for messages.
    """

    def __init__(self, path: str, source: str) -> None:
        self.path = path
        self._source = source
        self._handle = -1

    def fileno(self) -> int:
        """The descriptor that holds the lock; it must survive becoming a daemon."""
        return self._handle

    def acquire(self) -> None:
        """Create the file where there is none, and lock it. Raises ConfigError: it is locked, or cannot be made."""
        while not self._try_to_acquire():
            pass  # a daemon that was ending took the file away between our opening and locking it

    def _try_to_acquire(self) -> bool:
        try:
            # Not through a link, and nothing is lost of a file that turns out to be something else.
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise self._refusal(f"cannot open {self.path}: {error.strerror}") from error
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise self._refusal(f"{self.path} is no regular file")
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_size > _STALE:
                raise self._refusal(f"{self.path} is too large for a pid file; it was left alone")
        except BlockingIOError as error:
            content = os.pread(handle, 64, 0).strip()
            os.close(handle)
            pid = f" (pid {content.decode()})" if content.isdigit() else ""
            raise self._refusal(f"lmtp-proxy is running already{pid}: {self.path} is locked") from error
        except (ConfigError, OSError):
            os.close(handle)
            raise
        try:
            if not os.path.samestat(os.fstat(handle), os.lstat(self.path)):
                raise FileNotFoundError
        except FileNotFoundError:
            os.close(handle)
            return False
        self._handle = handle
        return True

    def write(self) -> None:
        """Put the pid of this process into it."""
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, b"%d\n" % os.getpid(), 0)

    def remove(self) -> None:
        """Take the file away; where that is not allowed (`run_as`), leave it empty."""
        with suppress(OSError):
            os.ftruncate(self._handle, 0)
            os.unlink(self.path)

    def _refusal(self, what: str) -> ConfigError:
        return ConfigError((f"{self._source}: config.pid: {what}",))
