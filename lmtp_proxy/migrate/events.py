# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run tells whoever watches it, and the watcher that writes one line for each.

A watcher is called from several threads, one call at a time. It may not hold anybody up, decides nothing, and what it
cannot write is lost without harm: the journal has it all.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TextIO

from lmtp_proxy.ctl_output import count, safe, span
from lmtp_proxy.migrate.states import DONE, FAILED, NEEDS_ATTENTION


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended. The numbers are of this run's users; skipped: name -> why nothing was done.

    unstarted: users that were not begun, because of `stopped` (why no more were, None if all were). status: for the
    shell.
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


class Watcher(Protocol):
    def began(self, total: int, already_done: int) -> None:
        """total: users that this run is for, those included that are done."""

    def user_step(self, user: str, state: str, step: str) -> None:
        """The user is in `state` now, and `step` begins."""

    def user_ended(self, user: str, state: str, seconds_offline: float | None, error: str | None) -> None:
        """state: done, failed or needs_attention. seconds_offline: from the beginning of block to the end of unblock,
        None if the user was not blocked. error: one line, what and what to do."""

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
    """One line for each event, with the time of day in front. If nobody reads it any more, it says nothing more."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.time) -> None:
        self._stream: TextIO | None = stream
        self._clock = clock

    def began(self, total: int, already_done: int) -> None:
        self.note(f"{count(total, 'user')}, {already_done:,} of them done already")

    def user_step(self, user: str, state: str, step: str) -> None:
        self.note(f"{safe(user)}: {state}: {step}")

    def user_ended(self, user: str, state: str, seconds_offline: float | None, error: str | None) -> None:
        offline = "" if seconds_offline is None else f", offline for {span(seconds_offline)}"
        self.note(f"{safe(user)}: {state}{offline}{f': {error}' if error else ''}")

    def note(self, text: str) -> None:
        if self._stream is None:
            return
        now = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self._clock()))
        try:
            print(now, safe(text), file=self._stream, flush=True)
        except (OSError, ValueError):  # nobody reads it, or it is closed; what is under way goes on
            self._stream = None

    def ended(self, summary: Summary) -> None:
        self.note(summary_text(summary))


def summary_text(summary: Summary) -> str:
    """`12 done, 1 failed in 4 min`"""
    parts = [f"{summary.done:,} {DONE}"]
    for number, what in (
        (summary.already_done, "done before"),
        (len(summary.skipped), "skipped"),
        (summary.failed, FAILED),
        (summary.attention, NEEDS_ATTENTION.replace("_", " ")),
        (summary.unstarted, "not begun"),
    ):
        if number:
            parts.append(f"{number:,} {what}")
    why = f" ({summary.stopped})" if summary.stopped else ""
    return f"{', '.join(parts)} of {count(summary.total, 'user')} in {span(summary.seconds)}{why}"
