# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done for one user, written down: states in the journal, commands and the proxy's answers as steps.

It knows its parts by what they promise (`Parts`), so the same code runs against a model of the world in which anything
may die anywhere. It does not know which step follows which.
"""

import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from lmtp_proxy.ctl.migrate.events import Watcher
from lmtp_proxy.ctl.migrate.hooks import KILLED, OK, Ran
from lmtp_proxy.ctl.migrate.journal import Journal, Run, Step, UserRow
from lmtp_proxy.ctl.migrate.journal_file import JournalError
from lmtp_proxy.ctl.migrate.plan import Hook, Plan, PlanError, parse_plan
from lmtp_proxy.ctl.migrate.proxy import Interrupted, Moved, ProxyError, Requeued, UserReceipts
from lmtp_proxy.ctl.migrate.states import NEEDS_ATTENTION, ON_OLD, ONLY_ON, Place, is_before
from lmtp_proxy.ctl.mta import Mta

_Value = TypeVar("_Value")
IS_DONE = "is done"
_BEFORE_RETRY = 1.0  # seconds
_SAID = 300  # characters of a command's output that are part of a reason; the journal has it all


class AskedProxy(Protocol):
    """What of `proxy.Proxy` is used."""

    def route(self, user: str) -> str | None: ...
    def route_in_file(self, user: str) -> str | None: ...
    def preflight(self, backend: str, address: str) -> str: ...
    def move(self, user: str, backend: str, timeout: float, *, interruptible: bool) -> Moved: ...
    def receipts(self, user: str) -> UserReceipts: ...
    def requeue(self, user: str, mta: Mta) -> Requeued: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What a user's migration is done with.

    Attributes:
        execute: runs a hook with these values, whether it may be killed, and the number of its step.
        cancelled: whether all is to be rolled back.
        beside: runs a function while others go on, and returns what waits for its result.
        clock: for durations.
        wall: the clock that the proxy's receipts go by; None: that is the same.
    """

    plan: Plan
    run: int
    journal: Journal
    proxy: AskedProxy
    watcher: Watcher
    execute: Callable[[Hook, dict[str, str], bool, int], Ran]
    cancelled: Callable[[], bool]
    beside: Callable[[Callable[[], Requeued]], Callable[[], Requeued]]
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    wall: Callable[[], float] | None = None
    cuts_over: Callable[[float], bool] = lambda seconds: True
    """Whether a user whose last sync took so long may be parked now. Raises Stop if there will be no time for that."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How the work for one user ended.

    Attributes:
        state: as in the journal.
        skipped: nothing was done, and error says why.
        copied: the mailbox was copied, and no more.
        seconds: that the last sync took.
    """

    state: str
    seconds_offline: float | None = None
    error: str | None = None
    skipped: bool = False
    copied: float | None = None

    @property
    def was_done(self) -> bool:
        """Nothing was done, and nothing is to be done."""
        return self.skipped and self.error == IS_DONE


class Stop(Exception):
    """It cannot go on, and nothing is wrong with that: back, and FAILED."""


class Ask(Exception):
    """Only a human knows what is right."""


@dataclass(slots=True)
class Steps:
    """One user's steps, and where they have led.

    Attributes:
        muted: nothing can be written any more, and what is done now cannot wait.
        going_back: it must be done anyway.
    """

    user: str
    parts: Parts
    state: str = ON_OLD
    offline_from: float | None = None
    offline_until: float | None = None
    muted: bool = False
    going_back: bool = False
    receipt: dict[str, object] = field(default_factory=dict)

    def hook(
        self,
        name: str,
        now: str,
        *,
        first: int = 1,
        cancellable: bool = True,
        before: Callable[[], None] = lambda: None,
    ) -> float:
        """A command of the plan, if it has one. before: is called before each run. Seconds of the last run.

        Raises Stop if it failed, Ask if something of it may still run, and Interrupted.
        """
        hook = self.parts.plan.hooks.get(name)
        if hook is None:
            return 0.0
        cancellable = cancellable and self.state not in ONLY_ON
        values = self.parts.plan.values(self.user, now)
        number, again, retries = first, hook.attempts - 1, hook.retries
        while True:
            if cancellable:
                self.check()
            before()
            step = self._begin_step(name, number)
            ran = self.parts.execute(hook, values, cancellable, step)
            done = ran.status in hook.ok
            outcome = OK if done else "exit 0" if ran.ok else ran.outcome
            self._end_step(step, outcome, ran.output, settled=ran.left is None)
            if ran.left is not None:
                raise Ask(f"{name}: {outcome}: {ran.left}")
            if done:
                return ran.seconds
            number += 1
            if ran.status in hook.again and again:
                again -= 1
            elif ran.status not in hook.again and ran.outcome != KILLED and retries:
                retries -= 1
                self.parts.sleep(_BEFORE_RETRY)
            else:
                break
        if cancellable:
            self.check()
        said = " ".join(ran.output.split())[-_SAID:]
        raise Stop(f"{name}: {outcome}{f': {said}' if said else ''}")

    def step(
        self, name: str, action: Callable[[], _Value], shown: Callable[[_Value], str] = lambda value: str(value)
    ) -> _Value:
        """Something that the proxy does. Raises what `action` does."""
        step = self._begin_step(name, 1)
        try:
            value = action()
        except ProxyError as error:
            self._end_step(step, "failed", str(error))
            raise ProxyError(f"{name}: {error}") from error
        except Interrupted:
            self._end_step(step, KILLED, "")
            raise
        self._end_step(step, OK, shown(value))
        return value

    def check(self) -> None:
        """Raises Interrupted if all is to be rolled back."""
        if self.parts.cancelled():
            raise Interrupted

    def enter(self, state: str, *, error: str | None = None, note: str | None = None) -> None:
        """The user is in `state`, and the journal has it. Raises JournalError."""
        self.parts.journal.enter(self.parts.run, self.user, state, error=error, note=note)
        self.state = state

    def advance(self, state: str) -> None:
        """Enter `state`, unless the user was that far already when this run took them up."""
        if is_before(self.state, state):
            self.enter(state)

    def remember(self, **values: object) -> None:
        """For the receipt."""
        self.receipt.update(values)
        if not self.muted:
            try:
                self.parts.journal.put_receipt(self.user, {**_NO_RECEIPT, **self.receipt})
            except JournalError as error:
                self._forgive(error)

    def place(self, route: str | None) -> Place:
        plan = self.parts.plan
        return {plan.old: Place.OLD, plan.park: Place.PARK, plan.new: Place.NEW}.get(route or "", Place.ELSEWHERE)

    def command(self, verb: str, more: str = "") -> str:
        """A command line about the user, for a human."""
        return " ".join(filter(None, ["lmtp-proxyctl", verb, more, argument(self.user)]))

    def ended(self, error: str | None) -> Ended:
        began, until = self.offline_from, self.offline_until
        return Ended(self.state, until - began if began is not None and until is not None else None, error)

    def _begin_step(self, name: str, attempt: int) -> int:
        self.parts.watcher.user_step(self.user, self.state, name)
        if self.muted:
            return 0
        try:
            return self.parts.journal.begin_step(self.parts.run, self.user, name, attempt)
        except JournalError as error:
            self._forgive(error)
            return 0

    def _end_step(self, step: int, outcome: str, output: str, *, settled: bool = True) -> None:
        if step and not self.muted:
            try:
                self.parts.journal.end_step(step, outcome, output, settled=settled)
            except JournalError as error:
                self._forgive(error)

    def _forgive(self, error: JournalError) -> None:
        """A step that cannot be written down stops nobody who must go on, or back. A state always does."""
        if self.state not in ONLY_ON and not self.going_back:
            raise error
        self.muted = True


def of_another_plan(theirs: Run, plan: Plan, *, blocked: bool) -> str | None:
    """Why a user whom the run `theirs` has left half-way cannot be taken up by `plan`. blocked: whether they may be."""
    if (theirs.old, theirs.new, theirs.park) != (plan.old, plan.new, plan.park):
        return f"of the plan {theirs.plan_path} ({theirs.old} -> {theirs.park} -> {theirs.new})"
    if not blocked or "unblock" in plan.hooks:
        return None
    with suppress(PlanError):
        if "block" in parse_plan(theirs.plan, theirs.plan_path).hooks:
            return f"whose plan {theirs.plan_path} had a `block`, and this one has no `unblock`"
    return None


def half_way_by_another(journal: Journal, plan: Plan, row: UserRow, stuck: str | None) -> str | None:
    """Why a user who needs attention cannot go on by `plan`: their final sync was to where another one says.

    stuck: in which state they were before.
    """
    if row.state != NEEDS_ATTENTION or stuck not in ONLY_ON:
        return None
    theirs = next((run for run in journal.runs() if run.id == row.run), None)
    if theirs is None or (why := of_another_plan(theirs, plan, blocked=True)) is None:
        return None
    return f"needs attention since run {theirs.id}, {why}: {row.error}"


def was(route: str | None) -> str:
    return f"is on {route}" if route else "is on no backend"


def argument(user: str) -> str:
    """For a shell."""
    return f"{'-- ' if user.startswith('-') else ''}{shlex.quote(user)}"


def offline_since(steps: Sequence[Step]) -> float | None:
    """When the user was blocked who has not been unblocked since."""
    since = None
    for step in steps:
        if step.step == "block" and since is None:
            since = step.began
        elif step.step == "unblock" and step.outcome == OK:
            since = None
    return since


_NO_RECEIPT: dict[str, object] = {
    "last_on_old": None,
    "parked_from": None,
    "parked_until": None,
    "deferred": [],
    "unnamed": 0,
    "requeued": [],
    "uncertain": [],
    "first_on_new": None,
    "offline": None,
}
