# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells the operator which client sends recipients without a domain: once a minute, however many there are."""

import logging
import time

from lmtp_proxy.text import printable

_log = logging.getLogger(__name__)
_PAUSE = 60.0  # seconds


class BareNames:
    """What was said of them in this process."""

    __slots__ = ("_next", "_unsaid")

    def __init__(self) -> None:
        self._next = 0.0
        self._unsaid = 0

    def __repr__(self) -> str:
        return f"<BareNames {self._unsaid} unsaid>"

    def warn(self, session: str, peer: str, path: str) -> None:
        """A recipient, `path`, was refused for having no domain. path: escaped."""
        now = time.monotonic()
        if now < self._next:
            self._unsaid += 1
            return
        more = f"; {self._unsaid} more since the last such line" if self._unsaid else ""
        self._next, self._unsaid = now + _PAUSE, 0
        _log.warning(
            "%s: the client %s sends recipients without a domain, such as %s, which are deferred%s: set "
            "config.default_domain to the domain that they are of, or give each such name a line in users",
            session,
            printable(peer.encode()),
            path,
            more,
        )
