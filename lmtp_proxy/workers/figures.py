# SPDX-License-Identifier: GPL-3.0-or-later
"""The figures of all workers as those of one process, whose counters never go back.

What a worker had counted when it was last asked stays in the sums when it has ended; what it counted after that nobody
knows. One that does not answer counts with what it said last.
"""

from typing import Any

import gevent
from gevent.lock import BoundedSemaphore

from lmtp_proxy.figures.figures import Figures, merged_figures, with_reloads
from lmtp_proxy.workers.process import NoAnswer, State, WorkerEnded, WorkerProcess
from lmtp_proxy.workers.team import Team

_PROMPT = 1.5  # seconds; less than a scraper waits, and than `ask` does before it looks whether the worker is alive


class TeamFigures:
    """Collects the figures of all workers, and keeps those of workers that have ended.

    Args:
        started: when the proxy was, in seconds since the epoch.
    """

    def __init__(self, team: Team, started: float) -> None:
        self._team = team
        self._started = started
        self._last: dict[WorkerProcess, Figures] = {}
        self._ended: Figures | None = None
        self._collecting = BoundedSemaphore(1)  # else a worker that dies between two of them would be counted twice

    def __repr__(self) -> str:
        return f"<TeamFigures of {len(self._last)} workers>"

    def collect(self) -> Figures | None:
        """What they say now; None as long as none ever said anything."""
        with self._collecting:
            return self._collected()

    def _collected(self) -> Figures | None:
        serving = self._team.serving()
        for worker, job in [(worker, gevent.spawn(_ask, worker)) for worker in serving]:
            if (figures := job.get()) is not None:
                self._last[worker] = figures
        for worker in [worker for worker in self._last if worker.status is not None]:
            gone = self._last.pop(worker)
            self._ended = merged_figures([gone], self._ended)
        alive: list[Figures] = list(self._last.values())
        if not alive:
            if self._ended is None:
                return None
            alive = [_nobody(self._ended)]
            ended = None
        else:
            ended = self._ended = _with_backends_of(alive, self._ended)
        team = self._team
        states = [worker.state for worker, _ in team.workers if worker is not None]
        return {
            **with_reloads(merged_figures(alive, ended), team, team.generation, self._started),
            "workers": {"serving": states.count(State.SERVING), "wanted": len(team.workers)},
            "restarts": sum(restarts for _, restarts in team.workers),
        }


def _ask(worker: WorkerProcess) -> Figures | None:
    try:
        answer = worker.ask("GET", "/figures", timeout=_PROMPT)
    except (WorkerEnded, NoAnswer):
        return None
    return answer.document if answer.ok else None


def _with_backends_of(alive: list[Figures], ended: Figures | None) -> Figures | None:
    """A backend that nobody has any more begins anew when it comes back, as it does in one process."""
    if ended is None:
        return None
    known = {name for figures in alive for name in figures["gauges"]["backends"]}
    backends = {name: each for name, each in ended["counters"]["backends"].items() if name in known}
    return {**ended, "counters": {**ended["counters"], "backends": backends}}


def _nobody(ended: Figures) -> Figures:
    """All have ended: nothing is under way, and what was counted stands."""
    return {**ended, "gauges": _zero(ended["gauges"]), "down": [], "certificates": {}}


def _zero(tree: Any) -> Any:
    return {key: _zero(value) for key, value in tree.items()} if isinstance(tree, dict) else 0
