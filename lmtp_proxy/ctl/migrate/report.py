# SPDX-License-Identifier: GPL-3.0-or-later
"""What became of each user of a migration, and for how long they were offline: the journal as values.

A journal in, a `Report` out. It asks no proxy and decides nothing; how a report looks is for report_text and
report_html.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmtp_proxy.ctl.migrate.journal import Journal, Run, Step, UserRow
from lmtp_proxy.ctl.migrate.states import DONE, FAILED, NEEDS_ATTENTION, ON_OLD
from lmtp_proxy.text import natural

FINAL_SYNC = "final_sync"
HOOKS = ("block", "verify", "redirect", "unblock")
"""The site's own commands while a user is offline, but for the final sync."""
OK, KILLED = "ok", "killed"


@dataclass(frozen=True, slots=True)
class Offline:
    """From when to when a user had no IMAP, and who took that time. `until` is None as long as they have none."""

    began: float
    until: float | None
    final_sync: float = 0.0
    hooks: float = 0.0
    alone: float = 0.0
    """While no run was at work: one had died, and the next had not been begun."""

    @property
    def seconds(self) -> float | None:
        return None if self.until is None else max(0.0, self.until - self.began)

    @property
    def ours(self) -> float | None:
        """What nothing else took: the proxy's moves, the journal, the runner."""
        return None if self.seconds is None else max(0.0, self.seconds - self.final_sync - self.hooks - self.alone)


@dataclass(frozen=True, slots=True)
class UserReport:
    """One user: their receipt, and everything that was done for them."""

    user: str
    state: str
    since: float | None
    error: str | None
    steps: Sequence[Step]
    outages: Sequence[Offline]
    """Each time they were offline, the last one at the end: an attempt that was rolled back is one, too."""
    parked_from: float | None = None
    parked_until: float | None = None
    last_on_old: float | None = None
    first_on_new: float | None = None
    deferred: Sequence[str] = ()
    """Postfix' queue ids of the mail that had to wait."""
    unnamed: int = 0
    """Deferrals of mail whose queue id is not known, while they were parked."""
    requeued: Sequence[str] = ()
    uncertain: Sequence[str] = ()

    @property
    def offline(self) -> Offline | None:
        """The last time they were offline: for a user who is done, the price of the move."""
        return self.outages[-1] if self.outages else None

    @property
    def downtime(self) -> float | None:
        return None if self.offline is None else self.offline.seconds

    @property
    def is_offline(self) -> bool:
        """True as long as nothing has given them their IMAP back."""
        return self.offline is not None and self.offline.until is None

    @property
    def failures(self) -> list[Step]:
        """The steps that ended badly, in their order; not those that were tried again at once, nor what was killed."""
        again = {(step.run, step.step, step.attempt - 1) for step in self.steps}
        return [
            step
            for step in self.steps
            if step.outcome not in (OK, KILLED, None) and (step.run, step.step, step.attempt) not in again
        ]


@dataclass(frozen=True, slots=True)
class Distribution:
    """Seconds of many users. All figures are of users, none is interpolated."""

    count: int
    median: float
    p90: float
    p99: float
    most: float
    total: float
    bins: Sequence[tuple[float, float, int]]
    """From, below, users: ten bins to each power of ten, without gaps."""


@dataclass(frozen=True, slots=True)
class Report:
    runs: Sequence[Run]
    users: Sequence[UserReport]
    downtime: Distribution | None
    """Of the users who are done; None when there are none with a known downtime."""
    final_sync: float = 0.0
    hooks: float = 0.0
    ours: float = 0.0
    alone: float = 0.0
    """Seconds of those users' downtimes, all together, by who took them."""
    ours_median: float | None = None
    running: bool = False
    """Whether a run is at work."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Users by state, the states in the order in which they come up first."""

    def in_state(self, *states: str) -> list[UserReport]:
        return [user for user in self.users if user.state in states]

    @property
    def under_way(self) -> list[UserReport]:
        """Whom nothing has brought to an end: a run works on them, or one died."""
        return [user for user in self.users if user.state not in (DONE, FAILED, NEEDS_ATTENTION, ON_OLD)]

    @property
    def slowest(self) -> list[UserReport]:
        """Those who are done, the longest downtime first."""
        timed = [user for user in self.in_state(DONE) if user.downtime is not None]
        return sorted(timed, key=lambda user: -(user.downtime or 0.0))  # those who are equal stay in their order

    @property
    def began(self) -> float | None:
        return min((run.began for run in self.runs), default=None)

    @property
    def ended(self) -> float | None:
        """When the last run ended; None while it has not, or nobody knows."""
        return self.runs[-1].ended if self.runs else None


def read_report(journal: Journal, running: bool = False) -> Report:
    """Everything that the journal knows. running: whether a run is at work on it. Raises JournalError."""
    steps: dict[str, list[Step]] = {}
    for step in journal.steps():
        steps.setdefault(step.user, []).append(step)
    users = [_user(row, steps.get(row.user, []), journal.receipt(row.user) or {}) for row in journal.users()]
    return report_of(journal.runs(), users, running)


def report_of(runs: Sequence[Run], users: Sequence[UserReport], running: bool = False) -> Report:
    users = sorted(users, key=lambda user: natural(user.user))
    counts: dict[str, int] = {}
    for user in users:
        counts[user.state] = counts.get(user.state, 0) + 1
    moved = [user.offline for user in users if user.state == DONE and user.downtime is not None and user.offline]
    ours = sorted(offline.ours or 0.0 for offline in moved)
    return Report(
        runs,
        users,
        distribution([offline.seconds or 0.0 for offline in moved]),
        sum(offline.final_sync for offline in moved),
        sum(offline.hooks for offline in moved),
        sum(ours),
        sum(offline.alone for offline in moved),
        _rank(ours, 0.5) if ours else None,
        running,
        counts,
    )


def distribution(values: Iterable[float]) -> Distribution | None:
    """None for no values."""
    ordered = sorted(values)
    if not ordered:
        return None
    return Distribution(
        len(ordered),
        _rank(ordered, 0.5),
        _rank(ordered, 0.9),
        _rank(ordered, 0.99),
        ordered[-1],
        sum(ordered),
        _bins(ordered),
    )


def _rank(ordered: Sequence[float], share: float) -> float:
    """The least value that `share` of all do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


_STEPS = (1.0, 1.25, 1.6, 2.0, 2.5, 3.15, 4.0, 5.0, 6.3, 8.0)  # preferred numbers, Renard's R10
_LEAST = -20  # a hundredth of a second: all that is shorter is as good


def _edge(number: int) -> float:
    power, step = divmod(number, len(_STEPS))
    return float(f"{_STEPS[step]}e{power}")


def _bins(ordered: Sequence[float]) -> list[tuple[float, float, int]]:
    numbers: dict[int, int] = {}
    for value in ordered:
        number = max(_LEAST, math.floor(math.log10(max(value, 1e-9)) * len(_STEPS)))
        while value >= _edge(number + 1):
            number += 1
        while number > _LEAST and value < _edge(number):
            number -= 1
        numbers[number] = numbers.get(number, 0) + 1
    return [(_edge(n), _edge(n + 1), numbers.get(n, 0)) for n in range(min(numbers), max(numbers) + 1)]


# --- one user --------------------------------------------------------------------------------------------------------


def _user(row: UserRow, steps: Sequence[Step], receipt: Mapping[str, Any]) -> UserReport:
    return UserReport(
        row.user,
        row.state,
        row.since,
        row.error,
        steps,
        outages(steps) or _as_written(receipt),
        _time(receipt.get("parked_from")),
        _time(receipt.get("parked_until")),
        _time(receipt.get("last_on_old")),
        _time(receipt.get("first_on_new")),
        _texts(receipt.get("deferred")),
        int(_time(receipt.get("unnamed")) or 0),
        _texts(receipt.get("requeued")),
        _texts(receipt.get("uncertain")),
    )


def outages(steps: Sequence[Step]) -> list[Offline]:
    """From the begin of the first `block` to the end of the `unblock` that succeeded, as often as that happened.

    A run that was killed while a user was offline does not end an outage: only an `unblock` does, whichever run did it.
    """
    found: list[Offline] = []
    began: float | None = None
    inside: list[Step] = []
    for step in steps:
        if began is None:
            if step.step != "block":
                continue
            began, inside = step.began, []
        inside.append(step)
        if step.step == "unblock" and step.outcome == OK and step.ended is not None:
            found.append(_outage(began, step.ended, inside))
            began = None
    if began is not None:
        found.append(_outage(began, None, inside))
    return found


def _outage(began: float, until: float | None, steps: Sequence[Step]) -> Offline:
    alone = sum(
        max(0.0, step.began - (before.began if before.ended is None else before.ended))
        for before, step in itertools.pairwise(steps)
        if before.run != step.run
    )
    return Offline(began, until, _seconds(steps, (FINAL_SYNC,)), _seconds(steps, HOOKS), alone)


def _seconds(steps: Sequence[Step], names: Sequence[str]) -> float:
    return sum(max(0.0, s.ended - s.began) for s in steps if s.step in names and s.ended is not None)


def _as_written(receipt: Mapping[str, Any]) -> list[Offline]:
    """Of a plan without `block`: what the runner took for it."""
    offline = receipt.get("offline") or {}
    began = _time(offline.get("from"))
    return [] if began is None else [Offline(began, _time(offline.get("until")))]


def _time(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _texts(value: object) -> tuple[str, ...]:
    """Queue ids, or whatever else a receipt lists, as text."""
    if not isinstance(value, list | tuple):
        return ()
    return tuple(item if isinstance(item, str) else _text_of(item) for item in value)


def _text_of(item: object) -> str:
    if isinstance(item, dict):
        return ", ".join(f"{key} {value}" for key, value in item.items())
    return str(item)
