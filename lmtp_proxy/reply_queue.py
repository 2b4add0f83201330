# SPDX-License-Identifier: GPL-3.0-or-later
"""Replies in the order of their commands, some of which are still owed (RFC 2920 section 3.2).

It knows order and nothing else: neither what a reply says nor what it answers.
"""

from collections import deque

from lmtp_proxy.reply import Reply


class ReplyQueue:
    """What goes out to one client."""

    def __init__(self) -> None:
        self._ready: list[bytes] = []
        self._waiting: deque[Reply | None] = deque()  # empty, or from the oldest that is owed (None) on

    def say(self, reply: Reply) -> None:
        """The next reply, known already; it goes out behind those that are owed."""
        if self._waiting:
            self._waiting.append(reply)
        else:
            self._ready.append(reply.to_bytes())

    def owe(self) -> None:
        """The next reply is not known yet."""
        self._waiting.append(None)

    def settle(self, reply: Reply) -> None:
        """The oldest reply that is owed."""
        self._waiting[0] = reply
        while self._waiting and (known := self._waiting[0]) is not None:
            self._ready.append(known.to_bytes())
            self._waiting.popleft()

    def forget_owed(self) -> None:
        """What is owed is never said, nor what stands behind it."""
        self._waiting.clear()

    def take(self) -> bytes:
        """All that may go out now; each octet is handed out once."""
        octets = b"".join(self._ready)
        self._ready.clear()
        return octets
