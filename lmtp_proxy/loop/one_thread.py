# SPDX-License-Identifier: GPL-3.0-or-later
"""A thread for work that waits for a disk, or takes longer than mail should wait. It is made when there is work.

So is gevent's part in it loaded then, half a megabyte, which an idle process has no use for. What the work is it does
not know.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from lmtp_proxy.loop.late_import import late_import

if TYPE_CHECKING:
    from gevent.threadpool import ThreadPool

A = TypeVar("A")
T = TypeVar("T")


class Unavailable(Exception):
    """It cannot be done now, though nothing is wrong with what was asked: no file is left, or a package missing."""


class OneThread:
    """Does one thing after the other, and the rest of the process goes on."""

    def __init__(self) -> None:
        self._pool: ThreadPool | None = None

    def __repr__(self) -> str:
        return f"<OneThread{' never used' * (self._pool is None)}>"

    @property
    def used(self) -> bool:
        """Whether there has been work."""
        return self._pool is not None

    def prepare(self) -> None:
        """Make the thread, if there is none. Raises OSError or ImportError while that cannot be."""
        if self._pool is None:
            with late_import():
                from gevent.threadpool import ThreadPool
            self._pool = ThreadPool(1)

    def apply(self, work: Callable[..., T], arguments: tuple[object, ...] = ()) -> T:
        """What `work` returns; it may not know gevent, and should raise nothing, which gevent prints. See prepare."""
        self.prepare()
        assert self._pool is not None
        return self._pool.apply(work, arguments)

    def outcome(self, work: Callable[[A], T], argument: A) -> T:
        """What `work` returns or raises. Raises Unavailable if there can be no thread for it."""
        try:
            self.prepare()
        except (ImportError, OSError) as error:
            raise Unavailable(f"there can be no thread for it: {error}") from error
        outcome = self.apply(_caught, (work, argument))
        if isinstance(outcome, _Raised):
            raise outcome.error
        return outcome  # type: ignore[no-any-return]  # what a thread returns is anything


class _Raised:
    def __init__(self, error: Exception) -> None:
        self.error = error


def _caught(work: Callable[[A], T], argument: A) -> "T | _Raised":
    """gevent prints what leaves a thread."""
    try:
        return work(argument)
    except Exception as error:  # noqa: BLE001  (it goes on where the thread is waited for)
        return _Raised(error)
