# SPDX-License-Identifier: GPL-3.0-or-later
"""Reloads, one at a time: who asks for one gets a load that begins after the asking, however many ask at once.

What is loaded, and by whom, is a matter of the subclass.
"""

import logging
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass

from gevent.event import AsyncResult, Event

from lmtp_proxy.uncertain import iso_time

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reloaded:
    """A reload that changed the generation in force.

    generation: its number. changes: as text. seconds: how long it took. restart: keys whose change waits for a
    restart. when: seconds since the epoch.
    """

    generation: int
    changes: str
    seconds: float
    restart: tuple[str, ...]
    when: float


@dataclass(frozen=True, slots=True)
class Refused:
    """A reload that changed nothing. errors: one line each, as ConfigError has them. when: seconds since the epoch.

    torn: where some processes have changed something nevertheless, which; one line.
    """

    errors: tuple[str, ...]
    when: float
    torn: str = ""


Outcome = Reloaded | Refused


def reload_json(last: Outcome | None) -> dict[str, object] | None:
    """How the last reload ended; None before the first."""
    if last is None:
        return None
    if isinstance(last, Refused):
        return {"time": iso_time(last.when), "ok": False, "errors": list(last.errors)}
    return {"time": iso_time(last.when), "ok": True, "generation": last.generation, "changes": last.changes}


class Reloads(ABC):
    """Serves requests for reloads.

    last_reload: the last one's outcome, None before the first. loading_since: when the reload under way began
    (time.monotonic), None if there is none.
    """

    def __init__(self) -> None:
        self._wanted = Event()
        self._begun = self._done = 0
        self._settled = Event()
        self._waiting: list[AsyncResult[Outcome]] = []
        self.last_reload: Outcome | None = None
        self.loading_since: float | None = None

    @abstractmethod
    def reload(self) -> Outcome:
        """Load now, and return when what was loaded is in force, or why it is not."""

    def request_reload(self) -> None:
        """Ask for a reload, and return at once."""
        self._wanted.set()

    def reload_now(self) -> Outcome:
        """Wait for a load that begins after this call, and for its swap."""
        result: AsyncResult[Outcome] = AsyncResult()
        self._waiting.append(result)
        self._wanted.set()
        outcome = result.get()
        assert outcome is not None
        return outcome

    def settle(self) -> None:
        """Wait until every reload is done that was asked for before this call; not for later ones."""
        last = self._begun + self._wanted.is_set()
        while self._done < last:
            self._settled.clear()
            self._settled.wait()

    def run(self) -> None:
        """Serve requests for ever."""
        while True:
            self._wanted.wait()
            self._wanted.clear()
            waiting, self._waiting = self._waiting, []
            self._begun += 1
            self.loading_since = time.monotonic()
            try:
                outcome = self.reload()
            except Exception as error:  # noqa: BLE001  (a bug met in one reload must not be the end of all reloads)
                _log.exception("reload failed by an internal error; what was active stays active: %r", self)
                outcome = Refused((f"internal error: {error!r}; the log has more",), time.time())
            self.loading_since = None
            self.last_reload = outcome
            self._done += 1
            for result in waiting:
                result.set(outcome)
            self._settled.set()
