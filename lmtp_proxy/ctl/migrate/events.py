# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run tells whoever watches it, and the watcher that writes one line for each.

A watcher is called from several threads, one call at a time. It may not hold anybody up, decides nothing, and what it
cannot write is lost without harm: the journal has it all.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TextIO

from lmtp_proxy.ctl.migrate.states import DONE, FAILED
from lmtp_proxy.text import count, safe, span, zoned_time

_MOST_LINES = 10_000  # that wait to be written; the journal has them all
_WAIT = 1.0  # seconds for a line to be written


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended. The numbers are of this run's users.

    Attributes:
        unstarted: users that were not begun, because of `stopped` (why no more were, None if all were).
        skipped: name -> why nothing was done.
        status: for the shell.
    """

    run: int
    total: int
    done: int
    already_done: int
    failed: int
    attention: int
    unstarted: int
    skipped: dict[str, str]
    seconds: float
    stopped: str | None
    status: int
    copied: int = 0
    """Users whose mailbox was copied, and no more was to be done."""


class Watcher(Protocol):
    def began(self, total: int, already_done: int) -> None:
        """total: users that this run is for, those included that are done."""

    def user_step(self, user: str, state: str, step: str) -> None:
        """The user is in `state` now, and `step` begins."""

    def user_ended(self, user: str, state: str, seconds_offline: float | None, error: str | None) -> None:
        """state: done, failed, needs_attention; or copied, who may come again. error: one line, what and what to do.

        seconds_offline: from the beginning of block to the end of unblock, None if the user was not blocked.
        """

    def note(self, text: str) -> None:
        """Something about the run as a whole."""

    def ended(self, summary: Summary) -> None: ...


class Silent:
    """Watches nothing."""

    def began(self, total: int, already_done: int) -> None: ...
    def user_step(self, user: str, state: str, step: str) -> None: ...
    def user_ended(self, user: str, state: str, seconds_offline: float | None, error: str | None) -> None: ...
    def note(self, text: str) -> None: ...
    def ended(self, summary: Summary) -> None: ...


class LogWatcher:
    """One line for each event, with the time of day in front. If nobody reads it any more, it says nothing more.

    A thread of its own writes: a pager that takes nothing, say, is waited for a moment, and then no more.
    """

    def __init__(self, stream: TextIO | None, clock: Callable[[], float] = time.time) -> None:
        self._stream = stream
        self._clock = clock
        self._change = threading.Condition()
        self._lines: deque[str] = deque(maxlen=_MOST_LINES)
        self._late = False  # the last line had to be left to the thread
        self._thread: threading.Thread | None = None

    def began(self, total: int, already_done: int) -> None:
        self.note(f"{count(total, 'user')}, {already_done:,} of them done already")

    def user_step(self, user: str, state: str, step: str) -> None:
        self.note(f"{safe(user)}: {state}: {step}")

    def user_ended(self, user: str, state: str, seconds_offline: float | None, error: str | None) -> None:
        offline = "" if seconds_offline is None else f", offline for {span(seconds_offline)}"
        self.note(f"{safe(user)}: {state}{offline}{f': {error}' if error else ''}")

    def note(self, text: str) -> None:
        now = zoned_time(self._clock())
        with self._change:
            if self._stream is None:
                return
            self._lines.append(f"{now} {safe(text)}\n")
            if self._thread is None:
                self._thread = threading.Thread(target=self._write, daemon=True)
                self._thread.start()
            self._change.notify_all()
            if not self._late:
                self._wait()

    def _wait(self) -> None:
        self._late = not self._change.wait_for(lambda: not self._lines, _WAIT)

    def _write(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: bool(self._lines))
                line, stream = self._lines[0], self._stream
            try:
                assert stream is not None
                _put(stream, line)
            except (OSError, ValueError):  # nobody reads it, or it is closed; what is under way goes on
                with self._change:
                    self._stream, self._late = None, False
                    self._lines.clear()
                    self._change.notify_all()
                return
            with self._change:
                if self._lines and self._lines[0] is line:  # else there were too many
                    self._lines.popleft()
                if not self._lines:
                    self._late = False
                    self._change.notify_all()

    def ended(self, summary: Summary) -> None:
        self.note(summary_text(summary))
        with self._change:
            self._wait()


def _put(stream: TextIO, line: str) -> None:
    """Past the buffer of a real file: whoever holds that up must not hold up the end of the program."""
    try:
        handle = stream.fileno()
    except (OSError, AttributeError):
        stream.write(line)
        stream.flush()
        return
    data = memoryview(line.encode(stream.encoding or "utf-8", "backslashreplace"))
    while data:
        data = data[os.write(handle, data) :]


def summary_text(summary: Summary) -> str:
    """`12 done, 1 failed in 4 min`"""
    parts = [f"{summary.done:,} {DONE}"]
    for number, what in (
        (summary.copied, "copied"),
        (summary.already_done, "done before"),
        (len(summary.skipped), "skipped"),
        (summary.failed, FAILED),
        (summary.attention, "needs attention" if summary.attention == 1 else "need attention"),
        (summary.unstarted, "not begun"),
    ):
        if number:
            parts.append(f"{number:,} {what}")
    why = f" ({summary.stopped})" if summary.stopped else ""
    return f"{', '.join(parts)} of {count(summary.total, 'user')} in {span(summary.seconds)}{why}"
