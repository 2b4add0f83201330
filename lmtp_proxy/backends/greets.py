# SPDX-License-Identifier: GPL-3.0-or-later
"""How many connections a store greets at a time, where that was found out to be fewer than its `max_connections`."""

import logging
import math
import time

_log = logging.getLogger(__name__)
# Seconds in which no more connections are opened than a store was found to greet. Long against `greeting`, which it
# costs to find out; short against the life of a store's configuration.
REMEMBERED = 60.0


class Greets:
    """Of one store.

    Attributes:
        most: connections there may be.
    """

    __slots__ = ("_configured", "_ends", "_name", "_told", "most")

    def __init__(self, name: str, configured: int) -> None:
        """name: for the log. configured: its `max_connections`."""
        self.most = self._configured = configured
        self._name = name
        self._ends = math.inf  # time.monotonic
        self._told = 0

    def __str__(self) -> str:
        return "max_connections" if self.most == self._configured else "it greets no more"

    def now(self) -> int:
        """As `most`: what was found out a while ago may have changed."""
        if time.monotonic() >= self._ends:
            self.most, self._ends = self._configured, math.inf
        return self.most

    def learn(self, serving: int) -> None:
        """A store that serves so many connections did not greet one more."""
        self.most = max(1, min(serving, self._configured))
        self._ends = time.monotonic() + REMEMBERED
        if self._told != self.most:
            self._told = self.most
            _log.warning(
                "backend %s greets no more than %d connections at a time, of max_connections=%d: the others wait for "
                "these; give it as many processes, or set max_connections to what it has",
                self._name,
                self.most,
                self._configured,
            )
