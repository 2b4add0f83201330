# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of a run from outside while it is under way: begin nobody for now, go on, another number of jobs.

Files beside the journal, so whoever may write in its directory may ask, whoever runs it: `JOURNAL.paused`, whose owner
and time say who and since when, and `JOURNAL.jobs`. They outlive a run that is killed. A run looks at them before it
begins a user; what is under way is not touched.
"""

import os
import stat
from contextlib import suppress
from dataclasses import dataclass

from lmtp_proxy.ctl.migrate.journal_file import JournalError
from lmtp_proxy.text import zoned_time

MOST_JOBS = 64
_MODE = 0o644  # the run may be another user's


@dataclass(frozen=True, slots=True)
class RunOrder:
    """One thing that was asked for.

    Attributes:
        since: seconds since the epoch.
        uid: who asked for it.
        jobs: how many users at once; 0 where it is about something else.
    """

    since: float
    uid: int
    jobs: int = 0

    @property
    def text(self) -> str:
        """`since 2026-11-24 09:41:08 +0000 by uid 0`"""
        return f"since {zoned_time(self.since)} by uid {self.uid}"


class RunOrders:
    """Those for runs on the journal at `path`. Methods that change something raise JournalError."""

    def __init__(self, path: str) -> None:
        self.path = os.path.realpath(path)
        self._paused = f"{self.path}.paused"
        self._jobs = f"{self.path}.jobs"

    def paused(self) -> RunOrder | None:
        """None if users may be begun."""
        try:
            found = os.lstat(self._paused)
        except OSError:
            return None
        return RunOrder(found.st_mtime, found.st_uid)

    def jobs(self) -> RunOrder | None:
        """None if nobody has asked for another number, or for none that can be."""
        try:
            handle = os.open(self._jobs, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            found = os.fstat(handle)
            text = os.read(handle, 20).decode("ascii", "replace").strip() if stat.S_ISREG(found.st_mode) else ""
        except OSError:
            return None
        finally:
            os.close(handle)
        number = int(text) if text.isdecimal() and text.isascii() else 0
        return RunOrder(found.st_mtime, found.st_uid, number) if 1 <= number <= MOST_JOBS else None

    def pause(self) -> RunOrder:
        """No user is begun once this has returned. Who asked first stays the one who did."""
        try:
            os.close(os.open(self._paused, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE))
        except FileExistsError:
            pass
        except OSError as error:
            raise self._refusal(error) from error
        order = self.paused()
        if order is None:
            raise JournalError(f"{self.path}: somebody resumed the run at the same time")
        return order

    def resume(self) -> RunOrder | None:
        """Users are begun again. Returns what ends by that, None if nothing does."""
        order = self.paused()
        try:
            os.unlink(self._paused)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._refusal(error) from error
        return order

    def set_jobs(self, number: int) -> None:
        """So many users at once from now on."""
        unfinished = f"{self._jobs}.{os.getpid()}"
        try:
            handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
            try:
                os.fchmod(handle, _MODE)  # whatever the umask
                os.write(handle, f"{number}\n".encode("ascii"))
            finally:
                os.close(handle)
            os.rename(unfinished, self._jobs)
        except OSError as error:
            with suppress(OSError):
                os.unlink(unfinished)
            raise self._refusal(error) from error

    def forget_jobs(self) -> None:
        """The number was for a run of before."""
        with suppress(OSError):
            os.unlink(self._jobs)

    def _refusal(self, error: OSError) -> JournalError:
        directory = os.path.dirname(self.path)
        return JournalError(f"{self.path}: who asks a run for something must be able to write in {directory}: "
                            f"{error.strerror}")  # fmt: skip
