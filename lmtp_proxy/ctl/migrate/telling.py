# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that tells the proxy how far it is, for the status page: numbers, and no user's name.

A thread of its own does it, at most once a second; whatever the proxy says to that stops nobody. One that does not know
what that is, is left alone.
"""

import threading
import time
from collections.abc import Callable

from lmtp_proxy.ctl.client import ControlClient, ControlError, Refusal
from lmtp_proxy.ctl.migrate.events import Summary, Watcher
from lmtp_proxy.ctl.migrate.states import COPIED, DONE, FAILED, NEEDS_ATTENTION

_EVERY = 10.0  # seconds, also where nothing has changed: it is alive
_LEAST = 1.0
_ANSWER = 5.0
_FAREWELL = 2.0


class TellingWatcher:
    """Passes all on to `watcher`. old, new: the backends of the plan."""

    def __init__(
        self,
        watcher: Watcher,
        client: ControlClient,
        old: str,
        new: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watcher = watcher
        self._client = client
        self._route = {"from": old, "to": new}
        self._clock = clock
        self._lock = threading.Lock()
        self._total = self._before = 0
        self._began = clock()
        self._ended = {DONE: 0, FAILED: 0, NEEDS_ATTENTION: 0}
        self._copied: set[str] = set()
        self._over = threading.Event()
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="telling", daemon=True)

    def began(self, total: int, already_done: int) -> None:
        with self._lock:
            self._total, self._before, self._began = total, already_done, self._clock()
        self._thread.start()
        self._watcher.began(total, already_done)

    def user_step(self, user: str, state: str, step: str) -> None:
        self._watcher.user_step(user, state, step)

    def user_ended(self, user: str, state: str, seconds_offline: float | None, error: str | None) -> None:
        with self._lock:
            if state == COPIED:
                self._copied.add(user)
            else:
                self._copied.discard(user)
                self._ended[state] = self._ended.get(state, 0) + 1
        self._news.set()
        self._watcher.user_ended(user, state, seconds_offline, error)

    def note(self, text: str) -> None:
        self._watcher.note(text)

    def ended(self, summary: Summary) -> None:
        self._over.set()
        self._news.set()
        if self._thread.is_alive():
            self._thread.join(_FAREWELL)
        self._watcher.ended(summary)

    def _tell(self) -> None:
        while True:
            with self._lock:
                running = not self._over.is_set()
                body: dict[str, object] = {
                    **self._route,
                    "running": running,
                    "seconds": self._clock() - self._began,
                    "total": self._total,
                    "before": self._before,
                    "done": self._ended[DONE],
                    "copied": len(self._copied),
                    "failed": self._ended[FAILED],
                    "attention": self._ended[NEEDS_ATTENTION],
                }
            try:
                self._client.post("/migration", body, timeout=_ANSWER)
            except Refusal:
                return
            except ControlError:  # it may be restarted
                pass
            if not running:
                return
            if self._news.wait(_EVERY):
                self._over.wait(_LEAST)
            self._news.clear()
