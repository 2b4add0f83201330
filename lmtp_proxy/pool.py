# SPDX-License-Identifier: GPL-3.0-or-later
"""How many conversations with one backend at once, and whether it can be reached.

`reserve` a place, `open` a session on it, and give it back with `release` (it ended well) or `discard` (any doubt). A
session serves one transaction. It speaks no LMTP, and knows no recipients.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import gevent
from gevent.lock import BoundedSemaphore

from lmtp_proxy import reply as say
from lmtp_proxy.backend import BackendError, BackendSession
from lmtp_proxy.config_values import Backend
from lmtp_proxy.reply import Reply

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counts:
    """What became of the recipients of one backend since the start of the process, by their last replies.

    connections, failures: sessions that were opened, and that could not be. uncertain: recipients that are among the
    deferred, whose mail may be stored nevertheless. octets: of messages, sent to the backend.
    """

    connections: int = 0
    failures: int = 0
    sent: int = 0
    deferred: int = 0
    bounced: int = 0
    uncertain: int = 0
    octets: int = 0

    def reply(self, reply: Reply) -> None:
        """A recipient has got its last reply."""
        if reply.positive:
            self.sent += 1
        elif reply.code < 500:
            self.deferred += 1
        else:
            self.bounced += 1


class BackendPool:
    """The conversations with one backend. hostname: what we call ourselves in LHLO. counts: of an earlier pool.

    down: the last attempt to open a session failed. trouble: why, escaped.
    """

    def __init__(self, backend: Backend, hostname: str, counts: Counts | None = None) -> None:
        self.backend = backend
        self.hostname = hostname
        self.counts = counts or Counts()
        self.down = False
        self.trouble = ""
        self._places = BoundedSemaphore(backend.max_connections)

    def __repr__(self) -> str:
        state = "down" if self.down else "up"
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
            self.counts.failures += 1
            self.trouble = error.reason
            if not self.down:
                self.down = True
                _log.warning("backend %s is down: %s", self, error.reason)
            raise
        self.counts.connections += 1
        if self.down:
            self.down = False
            self.trouble = ""
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
