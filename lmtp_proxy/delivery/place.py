# SPDX-License-Identifier: GPL-3.0-or-later
"""One transaction's place in a pool, and the session on it: taken, opened, replaced once if it was dead, given back.

It does not know what is said on the session.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lmtp_proxy.backends.failure import BackendError, Retry
from lmtp_proxy.backends.pool import BackendPool
from lmtp_proxy.loop.stream import Stream

if TYPE_CHECKING:
    from lmtp_proxy.backends.session import BackendSession


class Place:
    """session: None before the place is open, and after it was given back. reserved: the place is taken, and `open`
    has to be called. unheard: the session was used before, and has not said anything in this transaction yet.
    """

    pool: BackendPool
    session: BackendSession | None = None
    reserved = False
    unheard = False

    @property
    def stream(self) -> Stream | None:
        """What to wait for until something can go on."""
        session = self.session
        return None if session is None else session.stream

    def reserve_place(self, before_wait: Callable[[], None]) -> None:
        """Take a place, unless that was done. Raises BackendError.

        before_wait: called before a wait for the place.
        """
        if not self.reserved:
            self.session = self.pool.reserve(before_wait)
            self.reserved = self.session is None
            self.unheard = not self.reserved

    def open_session(self) -> None:
        """Open a session. Raises BackendError; the place stays reserved."""
        self.session = self.pool.open()
        self.reserved = False

    def replaced_session(self, error: BackendError) -> BackendSession | None:
        """A new session, if `error` came of one that had died before it was used again.

        Raises BackendError if there cannot be one.
        """
        session = self.session
        if session is None or not self.unheard:
            return None
        self.unheard = False  # once
        if error.failure.value.retry is not Retry.IF_UNHEARD:
            return None
        return self.replace_session(session)

    def replace_session(self, session: BackendSession) -> BackendSession:
        """A new one, for one that was used before and is not fit for use again. Raises BackendError."""
        self.unheard = False
        self.session = self.pool.reopen(session)
        return self.session

    def give_back(self, how: Callable[[BackendSession], None]) -> None:
        """how: of the pool's ways to take a session back."""
        session, self.session = self.session, None
        if self.reserved:
            self.reserved = False
            self.pool.cancel()
        if session is not None:
            how(session)
