# SPDX-License-Identifier: GPL-3.0-or-later
"""Replies in the order of their commands, some of which are still owed (RFC 2920 section 3.2).

It knows order and nothing else: neither what a reply says nor what it answers.
"""

from collections import deque
from collections.abc import Sequence

from lmtp_proxy.wire.reply import Reply


class ReplyQueue:
    """What goes out to one client.

    Attributes:
        ready: what may go out now; who sends it clears it.
        owed: replies that are not known yet; only while there are none may others add to `ready`.
    """

    __slots__ = ("_waiting", "owed", "ready")

    def __init__(self) -> None:
        self.owed = 0
        self.ready: list[bytes] = []
        # From the oldest that is owed (None) on, but only where one that is known stands behind: nearly never.
        self._waiting: deque[Reply | None] | None = None

    def say(self, reply: Reply) -> None:
        """The next reply, known already; it goes out behind those that are owed."""
        if not self.owed:
            self.ready.append(reply.wire)
            return
        if not self._waiting:
            self._waiting = deque([None] * self.owed)
        self._waiting.append(reply)

    def owe(self, replies: int) -> None:
        """The next replies are not known yet."""
        self.owed += replies
        if self._waiting:
            self._waiting.extend([None] * replies)

    def settle(self, replies: Sequence[Reply]) -> int:
        """The oldest replies that are owed, not more than are; how many of them are positive."""
        self.owed -= len(replies)
        if self._waiting:
            self._settle_in_turn(self._waiting, replies)
            return sum([reply.code < 300 for reply in replies])
        ready, positive = self.ready, 0
        for reply in replies:
            ready.append(reply.wire)
            if reply.code < 300:
                positive += 1
        return positive

    def _settle_in_turn(self, waiting: "deque[Reply | None]", replies: Sequence[Reply]) -> None:
        for reply in replies:
            waiting[0] = reply
            while waiting and (known := waiting[0]) is not None:
                self.ready.append(known.wire)
                waiting.popleft()

    def forget_owed(self) -> None:
        """What is owed is never said, nor what stands behind it."""
        self.owed = 0
        self._waiting = None
