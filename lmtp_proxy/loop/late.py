# SPDX-License-Identifier: GPL-3.0-or-later
"""What is loaded or made only when there is work for it: an import, a thread, a server.

An idle process pays for none of it: a thread pool of gevent's is half a megabyte, HTTP and all that answers 1 to 9. An
import amid the work waits until some files can be opened: one that fails half-way for want of them may go unnoticed,
and what it brings stays without a part for ever (smtplib without ssl, say).
"""

import gc
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import gevent
import gevent.socket

if TYPE_CHECKING:
    from gevent.threadpool import ThreadPool

_SPARE = 4  # one for a module, the rest in case a thread opens some at the same time


@contextmanager
def late_import() -> Iterator[None]:
    """Around an import. Raises OSError, before it, unless some files can be opened."""
    with ExitStack() as opened:
        for _ in range(_SPARE):
            opened.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    yield
    gc.freeze()  # what is imported stays: as after a start, no need to walk it again and again


A = TypeVar("A")
T = TypeVar("T")


class Unavailable(Exception):
    """It cannot be done now, though nothing is wrong with what was asked: no file is left, or a package is missing."""


class OneThread:
    """A thread that does one thing after the other, while the rest of the process goes on."""

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
        """What `work` returns. Raises as `prepare` does.

        Args:
            work: uses no gevent, and raises nothing, as gevent would print it.
        """
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
    """An exception is returned, as gevent prints those that leave a thread."""
    try:
        return work(argument)
    except Exception as error:  # noqa: BLE001  (it goes on where the thread is waited for)
        return _Raised(error)


_log = logging.getLogger(__name__)
_PAUSE = 1.0  # seconds
_REST = 0.001  # seconds


class LateServer(Protocol):
    """What accepts clients."""

    def start(self) -> None: ...
    def stop(self) -> None: ...


class OnDemand:
    """Accepts clients on `listener`, a gevent socket, bound and listening, by the server that `make` makes of it.

    Args:
        name: for the log.
        modules: imported when the first client is there; mail goes on between them.
        make: called then; it may import, too.
    """

    def __init__(
        self, name: str, listener: socket.socket, modules: Sequence[str], make: Callable[[socket.socket], LateServer]
    ) -> None:
        self._name = name
        self._listener = listener
        self._modules = [*modules]
        self._make = make
        self._server: LateServer | None = None
        self._waiting: Any = None

    def __repr__(self) -> str:
        return f"<OnDemand {self._name}: {self._server or 'not asked yet'}>"

    def start(self) -> None:
        """Begin to accept."""
        self._waiting = gevent.spawn(self._begin)

    def _begin(self) -> None:
        gevent.socket.wait_read(self._listener.fileno())
        while self._server is None:
            try:
                while self._modules:
                    with late_import():
                        import_module(self._modules[0])
                    del self._modules[0]
                    gevent.sleep(_REST)
                with late_import():
                    self._server = self._make(self._listener)
            except (ImportError, OSError) as error:  # the former while the program is replaced on the disk
                _log.warning(
                    "%s: cannot accept a client: %s; clients wait, next try in %g s", self._name, error, _PAUSE
                )
                gevent.sleep(_PAUSE)
        self._server.start()

    def stop(self) -> None:
        """Accept nobody any more, give requests under way a second to end, and close the rest without an answer."""
        if self._waiting is not None:
            self._waiting.kill()
        if self._server is None:
            self._listener.close()
        else:
            self._server.stop()
