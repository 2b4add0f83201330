# SPDX-License-Identifier: GPL-3.0-or-later
"""How many conversations with one backend at once, and whether it can be reached.

`reserve` a place, `open` a session on it, and give it back with `release` (it ended well) or `discard` (any doubt). A
session serves one transaction. It speaks no LMTP, and knows no recipients.
"""

import logging
from collections.abc import Callable

import gevent
from gevent.lock import BoundedSemaphore

from lmtp_proxy import reply as say
from lmtp_proxy.backend import BackendError, BackendSession
from lmtp_proxy.config_values import Backend

_log = logging.getLogger(__name__)


class BackendPool:
    """The conversations with one backend. hostname: what we call ourselves in LHLO."""

    def __init__(self, backend: Backend, hostname: str) -> None:
        self.backend = backend
        self.hostname = hostname
        self._places = BoundedSemaphore(backend.max_connections)
        self._down = False

    def __repr__(self) -> str:
        state = "down" if self._down else "up"
        return f"<BackendPool {self} {state} busy={self.busy}/{self.backend.max_connections}>"

    def __str__(self) -> str:
        return f"{self.backend.name}[{self.backend.address}]"

    @property
    def busy(self) -> int:
        """Places taken now."""
        return self.backend.max_connections - int(self._places.counter)

    def reserve(self, before_wait: Callable[[], None]) -> None:
        """Take a place; if there is none, wait for one, first come first served, as long as a connect may take.

        Raises BackendError.
        """
        if self._places.acquire(blocking=False):
            return
        before_wait()
        if not self._places.acquire(timeout=self.backend.timeouts.connect):
            limit = self.backend.max_connections
            raise BackendError(say.BACKEND_BUSY, f"all {limit} connections (max_connections) are in use")

    def cancel(self) -> None:
        """Give back a place on which no session was opened."""
        self._places.release()

    def open(self) -> BackendSession:
        """A session, ready for MAIL, on a place reserved before. Raises BackendError; the place stays reserved."""
        session = BackendSession(self.backend, self.hostname)
        try:
            session.start()
        except BackendError as error:
            if not self._down:
                self._down = True
                _log.warning("backend %s is down: %s", self, error.reason)
            raise
        if self._down:
            self._down = False
            _log.warning("backend %s is up again", self)
        return session

    def release(self, session: BackendSession) -> None:
        """The transaction ended well; take leave of the backend, without keeping the client waiting for that.

        The place is free once the backend has closed: until then its process counts against the limit it has itself.
        """
        session.before_wait = None
        gevent.spawn(self._take_leave, session)

    def _take_leave(self, session: BackendSession) -> None:
        try:
            session.quit()
        finally:
            self._places.release()

    def discard(self, session: BackendSession) -> None:
        """The conversation failed or must not go on: close at once, amid the message if need be."""
        session.close()
        self._places.release()
