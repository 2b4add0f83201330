# SPDX-License-Identifier: GPL-3.0-or-later
"""One transaction's place in a pool, and the session on it: taken, opened, replaced once if it was dead, given back.

It does not know what is said on the session.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lmtp_proxy import reply as say
from lmtp_proxy.backend_error import BackendError
from lmtp_proxy.pool import BackendPool

if TYPE_CHECKING:
    from lmtp_proxy.backend import BackendSession


class Place:
    """before_wait: called before a wait.

    session: None before the place is open, and after it was given back. reserved: the place is taken, and `open` has to
    be called. unheard: the session was used before, and has not said anything in this transaction yet.
    """

    __slots__ = ("_before_wait", "_pool", "reserved", "session", "unheard")

    def __init__(self, pool: BackendPool, before_wait: Callable[[], None]) -> None:
        self._pool = pool
        self._before_wait = before_wait
        self.session: BackendSession | None = None
        self.reserved = False
        self.unheard = False

    def reserve(self) -> None:
        """Take a place, unless that was done. Raises BackendError."""
        if self.session is None and not self.reserved:
            self.session = self._pool.reserve(self._before_wait)
            if self.session is None:
                self.reserved = True
            else:
                self.unheard = True
                self.session.before_wait = self._before_wait

    def open(self) -> None:
        """Open a session. Raises BackendError; the place stays reserved."""
        self.session = self._pool.open()
        self.session.before_wait = self._before_wait
        self.reserved = False

    def quiet(self) -> BackendSession:
        """The session, once it is certain that nothing has come that would answer what is asked now.

        One that was used before is replaced if something has: the loop may not have looked at it yet. Raises
        BackendError.
        """
        session = self.session
        if session is None:
            raise BackendError(say.INTERNAL_ERROR, "no session to ask")
        if self.unheard:
            if session.stream is not None and not session.stream.look():
                return session
            session = self._replaced(session)
        session.check_quiet()
        return session

    def replaces(self, error: BackendError) -> bool:
        """Whether `error` came of a session that had died before it was used again; there is a new one then.

        Raises BackendError if there cannot be.
        """
        session = self.session
        if session is None or not self.unheard:
            return False
        ended = session.stream is None or session.stream.ended
        if not (ended or error.reply is say.BACKEND_CLOSING or isinstance(error.__cause__, OSError)):
            self.unheard = False
            return False
        self._replaced(session)
        return True

    def _replaced(self, session: BackendSession) -> BackendSession:
        self.unheard = False  # once
        self.session = self._pool.reopen(session)
        self.session.before_wait = self._before_wait
        return self.session

    def give_back(self, how: Callable[[BackendSession], None]) -> None:
        """how: of the pool's ways to take a session back."""
        session, self.session = self.session, None
        if self.reserved:
            self.reserved = False
            self._pool.cancel()
        if session is not None:
            how(session)
