# SPDX-License-Identifier: GPL-3.0-or-later
"""Replies in the order of their commands, some of which are still owed (RFC 2920 section 3.2).

It knows order and nothing else: neither what a reply says nor what it answers.
"""

from collections import deque
from collections.abc import Sequence

from lmtp_proxy.reply import Reply


class ReplyQueue:
    """What goes out to one client."""

    def __init__(self) -> None:
        self._ready: list[bytes] = []
        self._waiting: deque[Reply | None] = deque()  # empty, or from the oldest that is owed (None) on

    def say(self, *replies: Reply) -> None:
        """The next replies, known already; they go out behind those that are owed."""
        if self._waiting:
            self._waiting.extend(replies)
        else:
            self._ready += [reply.wire for reply in replies]

    def owe(self, replies: int = 1) -> None:
        """The next replies are not known yet."""
        self._waiting.extend([None] * replies)

    def settle(self, replies: Sequence[Reply]) -> None:
        """The oldest replies that are owed; not more than are."""
        waiting = self._waiting
        if len(replies) == len(waiting):  # all that wait, so nothing else stands among them
            waiting.clear()
            self._ready += [reply.wire for reply in replies]
            return
        for reply in replies:
            waiting[0] = reply
            while waiting and (known := waiting[0]) is not None:
                self._ready.append(known.wire)
                waiting.popleft()

    def forget_owed(self) -> None:
        """What is owed is never said, nor what stands behind it."""
        self._waiting.clear()

    def take(self) -> bytes:
        """All that may go out now; each octet is handed out once."""
        ready = self._ready
        if not ready:
            return b""
        octets = b"".join(ready)
        ready.clear()
        return octets
