# SPDX-License-Identifier: GPL-3.0-or-later
"""Until when a backend has time for what is asked of it, in a transaction. Made once for each session."""

import math
import time

from lmtp_proxy.backends.failure import BackendError, Failure
from lmtp_proxy.config.values import Timeouts

# Times `command` for all replies to MAIL and one group of RCPT: with 60 s this ends before Postfix's 300 s.
_ENVELOPE = 4
# Seconds after which a session without an answer is looked at: whether what was sent has arrived at all. By then TCP
# has sent it four times.
_FIRST_LOOK = 5.0
_EARLY_REPLY = 1.0  # seconds for the rest of a reply that has begun to arrive before its time


class StepDeadline:
    """Of one session. All times are of time.monotonic.

    Attributes:
        due: when to go on, whatever has come.
        asked_at: when the envelope was sent; math.inf while its time is not to be counted.
    """

    __slots__ = ("_command", "_first_look", "_times", "asked_at", "due")

    def __init__(self, times: Timeouts) -> None:
        self.due = 0.0
        self.asked_at = math.inf
        self._times = times
        self._command: float = times.command
        self._first_look = min(_FIRST_LOOK, times.command / 2)

    def envelope(self) -> None:
        """MAIL and RCPT go out. At first there is time for a first look only."""
        now = self.asked_at = time.monotonic()
        self.due = now + self._first_look

    def data(self) -> None:
        """DATA goes out by itself."""
        self.asked_at = math.inf
        self.next_reply()

    def next_reply(self) -> None:
        """One has come, and there is time for the next one; for all to the envelope, only so much."""
        self.due = min(time.monotonic() + self._command, self.asked_at + _ENVELOPE * self._command)

    def early_reply(self) -> None:
        """Half a reply has come out of turn: time for the rest of it."""
        self.due = time.monotonic() + _EARLY_REPLY

    def write(self, dot: float) -> None:
        """Octets of the message wait for room. dot: when the client can have sent its final dot at the earliest."""
        self.due = min(time.monotonic() + self._times.data_write, dot + self._times.final_reply)

    def is_first_look(self) -> bool:
        """The time for it has come; from then on that for a reply counts."""
        reply = self.asked_at + self._command
        if self.due < reply < math.inf and time.monotonic() >= self.due:
            self.due = reply
            return True
        return False

    def wait_on(self, what: str) -> bool:
        """False: wait on. Raises BackendError, with what is waited for in vain, when it is time to go on."""
        if time.monotonic() >= self.due:
            raise BackendError(Failure.SILENT, what)
        return False
