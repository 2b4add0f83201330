# SPDX-License-Identifier: GPL-3.0-or-later
"""Who a message comes from, as a store is told it by XCLIENT (Postfix' XCLIENT_README; Dovecot's LMTP takes it).

A store that was told once takes all that follows for that client's, so a session is only for the one it was told of.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from lmtp_proxy.wire.xforward import Said

if TYPE_CHECKING:
    from lmtp_proxy.backends.session import BackendSession

_log = logging.getLogger(__name__)

Who: TypeAlias = Callable[[], Said]
"""Asked where it is of interest: the attributes of the client, none where nothing is known."""


class Introductions:
    """Of one backend. name: its, for people."""

    __slots__ = ("_name", "_offered")

    def __init__(self, name: str) -> None:
        self._name = name
        self._offered = True

    def __repr__(self) -> str:
        return f"<Introductions to {self._name}{'' if self._offered else ', not offered'}>"

    def introduce(self, session: BackendSession, said: Said) -> None:
        """Tell the store of a new session. Raises BackendError; then the session is closed."""
        offered = "xclient" in session.protocol.offered
        try:
            session.introduce(said)
        except BaseException:
            session.close()
            raise
        if said and offered is not self._offered:
            self._offered = offered
            if not offered:
                what = "Dovecot does where login_trusted_networks names this host, over TCP"
                _log.warning("backend %s does not offer XCLIENT, so it takes us for the client: %s", self._name, what)


def introduced(kept: Sequence[BackendSession], said: Said) -> BackendSession | None:
    """The last of them that was told the same."""
    return next((session for session in reversed(kept) if session.introduced == said), None)
