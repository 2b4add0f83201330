# SPDX-License-Identifier: GPL-3.0-or-later
"""N users at once, those in the hands of a dead run first; and when no more are begun, for now or for good.

A thread takes one user after the other. It does not know what is done for a user, only how that ended. Signals set
flags here and nothing else; the main thread waits where they can be handled.
"""

import json
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from types import FrameType

from lmtp_proxy.ctl.migrate import way_back
from lmtp_proxy.ctl.migrate.events import Silent, Summary, Watcher, summary_text
from lmtp_proxy.ctl.migrate.hooks import MARK, STEP, Cancel, Ran, run
from lmtp_proxy.ctl.migrate.journal import Journal
from lmtp_proxy.ctl.migrate.journal_file import JournalError
from lmtp_proxy.ctl.migrate.left_behind import settle, take_lock
from lmtp_proxy.ctl.migrate.orders import RunOrders
from lmtp_proxy.ctl.migrate.plan import Hook, Plan, environment, parse_plan
from lmtp_proxy.ctl.migrate.proxy import Interrupted, Requeued
from lmtp_proxy.ctl.migrate.states import (
    COPIED,
    DONE,
    FAILED,
    IN_HAND,
    MAY_BE_BLOCKED,
    NEEDS_ATTENTION,
    ON_OLD,
    ONLY_ON,
)
from lmtp_proxy.ctl.migrate.steps import Ask, AskedProxy, Ended, Parts, Steps, Stop, of_another_plan
from lmtp_proxy.ctl.migrate.user_run import JournalFailed, UserRun
from lmtp_proxy.ctl.migrate.window import Window
from lmtp_proxy.text import count, span

_log = logging.getLogger(__name__)  # for mistakes of ours alone; without a handler that is the standard error

ALL_DONE, REFUSED, SOME_FAILED, STOPPED = 0, 1, 2, 3
"""Exit statuses."""
_TURN = 1.0  # seconds between two looks at what is asked for from outside
_LOOK = 5.0  # seconds between two looks at the clock while a window is waited for


class RunRefused(Exception):
    """Nothing was begun; one line says why."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for on the command line.

    Attributes:
        jobs: users at once.
        stop_after: after so many failures no more users are begun; None for however many.
        window: when users may be begun.
        cutover_window: when they may be parked and moved, copied at any time.
        sync_only: mailboxes are copied, and no more.
    """

    jobs: int = 4
    stop_after: int | None = None
    window: Window | None = None
    cutover_window: Window | None = None
    sync_only: bool = False
    clock: Callable[[], float] = time.time


class Watching:
    """A watcher, called by one thread at a time; one that fails is not called again."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher: Watcher | None = watcher
        self._mutex = threading.RLock()

    def _tell(self, call: Callable[[Watcher], None]) -> None:
        with self._mutex:
            if self._watcher is None:
                return
            try:
                call(self._watcher)
            except Exception:  # noqa: BLE001  (who looks on stops nobody)
                self._watcher = None
                _log.exception(
                    "internal error: nothing more of this run is shown here; it goes on, see `migrate status`"
                )

    def began(self, total: int, already_done: int) -> None:
        self._tell(lambda watcher: watcher.began(total, already_done))

    def user_step(self, user: str, state: str, step: str) -> None:
        self._tell(lambda watcher: watcher.user_step(user, state, step))

    def user_ended(self, user: str, state: str, seconds_offline: float | None, error: str | None) -> None:
        self._tell(lambda watcher: watcher.user_ended(user, state, seconds_offline, error))

    def note(self, text: str) -> None:
        self._tell(lambda watcher: watcher.note(text))

    def ended(self, summary: Summary) -> None:
        self._tell(lambda watcher: watcher.ended(summary))


class Runner:
    """cancel: set when all is to be rolled back. To be run once, in the main thread."""

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        proxy: AskedProxy,
        watcher: Watcher,
        settings: Settings,
        cancel: Cancel,
    ) -> None:
        self._plan = plan
        self._journal = journal
        self._proxy = proxy
        self._watcher = Watching(watcher)
        self._settings = settings
        self._cancel = cancel
        self._change = threading.Condition()
        self._waiting: deque[str] = deque()  # in hand first
        self._copied: dict[str, float] = {}  # seconds of the last sync of those who wait for the cutover
        self._first = 0  # how many of them are in the hands of a dead run
        self._unproven = False  # nobody else is begun before `prove` has ended well
        self._refused = False  # it has not, and so nothing was begun
        self._stopped: str | None = None
        self._ended: dict[str, Ended] = {}
        self._running = 0
        self._orders = RunOrders(journal.path)
        self._jobs = settings.jobs
        self._threads: list[threading.Thread] = []
        self._alive = 0  # threads that take users
        self._paused = False  # as it was told last
        self._signals = 0
        self._journal_failed = False

    def run(self, users: Sequence[str]) -> Summary:
        """Migrates them. Raises RunRefused and JournalError before anything is begun."""
        began = time.monotonic()
        rows = {row.user: row for row in self._journal.users()}
        in_hand = [row.user for row in rows.values() if row.state in IN_HAND]
        self._refuse_other_plans(in_hand)
        refused = self._end_left_over()
        done = [user for user in users if user in rows and rows[user].state == DONE]
        plan = self._plan
        number = self._journal.begin_run(os.path.abspath(plan.path), plan.text, plan.old, plan.new, plan.park)
        everybody = list(dict.fromkeys([*in_hand, *users]))
        total = len(everybody)
        self._watcher.began(total, len(done))
        for user in everybody:
            if (why := refused.get(user)) is not None:
                self._refuse(number, user, why)
        in_hand = [user for user in in_hand if user not in refused]
        self._waiting = deque(user for user in everybody if user not in refused)
        self._first = len(in_hand)
        to_begin = set(self._waiting).difference(in_hand, done)
        if in_hand:
            are = "is" if len(in_hand) == 1 else "are"
            self._watcher.note(f"{count(len(in_hand), 'user')} in the hands of a run that died {are} taken up first")
        parts = parts_of(plan, number, self._journal, self._proxy, self._watcher, self._cancel)
        parts = replace(parts, cuts_over=self._cuts_over)
        self._orders.forget_jobs()  # it was for the run of before; who paused that meant the users
        with self._handlers():
            if "prove" in plan.hooks and to_begin:
                self._unproven = True
                self._threads.append(threading.Thread(target=self._prove, args=(parts, not in_hand), name="prove"))
                self._threads[-1].start()
            with self._change:
                while self._running or self._unproven or (self._waiting and self._stopped is None):
                    self._look_at_orders()
                    self._begin_threads(parts)
                    self._change.wait(_TURN)  # signals are handled in between
            for thread in self._threads:
                thread.join()
        return self._summary(number, total, time.monotonic() - began)

    def _look_at_orders(self) -> None:
        """Tell what was asked for meanwhile, and obey."""
        paused, jobs = self._orders.paused(), self._orders.jobs()
        if paused is not None and not self._paused:
            what = "no user is begun until `lmtp-proxyctl migrate resume`; those in hand are finished"
            self._watcher.note(f"paused {paused.text}: {what}")
        elif paused is None and self._paused:
            self._watcher.note("resumed")
            self._change.notify_all()
        self._paused = paused is not None
        if jobs is not None and jobs.jobs != self._jobs:
            self._jobs = jobs.jobs
            self._watcher.note(f"{count(jobs.jobs, 'user')} at once {jobs.text}")
            self._change.notify_all()

    def _begin_threads(self, parts: Parts) -> None:
        """As many as can have something to do."""
        while self._stopped is None and self._alive < min(self._jobs, self._running + len(self._waiting)):
            self._alive += 1
            name = f"user {len(self._threads)}"
            self._threads.append(threading.Thread(target=self._work, args=(parts,), name=name))
            self._threads[-1].start()

    def _refuse_other_plans(self, in_hand: Sequence[str]) -> None:
        """Users in the hands of a run with other backends cannot be taken up by this plan."""
        runs = {run.id: run for run in self._journal.runs()}
        for user in in_hand:
            row = self._journal.user(user)
            theirs = runs.get(row.run) if row is not None and row.run is not None else None
            if row is None or theirs is None:
                continue
            why = of_another_plan(theirs, self._plan, blocked=row.state in MAY_BE_BLOCKED | ONLY_ON)
            if why is not None:
                raise RunRefused(
                    f"{user} is in the hands of run {theirs.id}, which died, {why}: "
                    "run that again first, or `lmtp-proxyctl migrate release` the user"
                )

    def _end_left_over(self) -> dict[str, str]:
        """A sync that a dead run has left behind would go on after the user has moved. Why nobody goes on with whom."""
        return end_left_over(
            self._journal,
            told=lambda pid: self._watcher.note(f"process {pid} of a run that died is still there: ending it"),
        )

    def _refuse(self, number: int, user: str, why: str) -> None:
        row = self._journal.user(user)
        if row is not None and row.state in IN_HAND:
            how = (
                "run the plan again" if row.state in ONLY_ON else "`lmtp-proxyctl migrate release` or `reset` the user"
            )
            why = f"{why}; then {how}"
            self._journal.enter(number, user, NEEDS_ATTENTION, error=why)
        self._ended[user] = Ended(NEEDS_ATTENTION, None, why)
        self._watcher.user_ended(user, NEEDS_ATTENTION, None, why)

    # --- threads -----------------------------------------------------------------------------------------------------

    def _work(self, parts: Parts) -> None:
        while (user := self._next()) is not None:
            try:
                ended = UserRun(user, parts).run()
                self._tell_site(user, ended, parts)
            except JournalFailed as failed:
                ended = Ended("in hand", None, str(failed))
                self._journal_failed = True
                self._stop(str(failed))
            except Exception as error:  # noqa: BLE001  (the other users go on)
                _log.exception("%s: internal error", user)
                ended = Ended("in hand", None, f"internal error: {type(error).__name__}: {error}")
                self._stop(f"internal error at {user}")
            if ended.copied is not None:
                self._watcher.user_ended(user, COPIED, None, None)
            elif not ended.skipped:
                self._watcher.user_ended(user, ended.state, ended.seconds_offline, ended.error)
            elif not ended.was_done:
                self._watcher.note(f"{user}: skipped: {ended.error}")
            self._note_end(user, ended)

    def _tell_site(self, user: str, ended: Ended, parts: Parts) -> None:
        """The plan's command for how it ended with the user; whether that works changes nothing."""
        name = {DONE: "on_done", FAILED: "on_failed", NEEDS_ATTENTION: "on_attention"}.get(ended.state, "")
        hook, row = self._plan.hooks.get(name), self._journal.user(user)
        if hook is None or row is None or ended.skipped:
            return
        seconds = ended.seconds_offline
        told = {**asdict(row), "offline": seconds, "address": self._plan.address(user)}
        parts = replace(parts, execute=executor(self._journal, None, json.dumps(told).encode("ascii") + b"\n"))
        try:
            Steps(user, parts, state=ended.state).hook(
                name, self._plan.new if name == "on_done" else self._plan.old, cancellable=False
            )
        except (Stop, Ask, JournalError) as error:
            self._watcher.note(f"{user}: {error}")

    def _prove(self, parts: Parts, alone: bool) -> None:
        """The plan's command before anybody is begun: it ends well, or nobody is.

        Users in the hands of a dead run do not wait for it: they were begun after a proof, and may be offline.
        alone: there are none.
        """
        self._watcher.note(f"prove: {self._plan.new}")
        why: str | None = "prove: internal error"
        try:
            seconds = Steps("", replace(parts, watcher=Silent()), muted=True).hook("prove", "")
            self._watcher.note(f"prove: {self._plan.new}: ok ({span(seconds)})")
            why = None
        except (Stop, Ask) as error:
            why = str(error)
        except Interrupted:
            why = "prove: interrupted"
        finally:
            with self._change:
                self._unproven = False
                if why is not None:
                    self._refused, self._stopped = alone, why
                self._change.notify_all()

    def _next(self) -> str | None:
        """The next user to take; waits for proof, window and while paused. None: no more for this thread."""
        with self._change:
            told = False
            while self._waiting and self._stopped is None and self._alive <= self._jobs:
                if not self._first and (self._unproven or self._orders.paused() is not None):
                    self._change.wait(_TURN)
                    continue
                if not self._first and (wait := self._closed_for()):
                    if not told:
                        assert self._settings.window is not None
                        self._watcher.note(f"outside the window {self._settings.window.text}: waiting for it")
                        told = True
                    self._change.wait(min(wait, _LOOK))
                    continue
                if (user := self._take()) is None:
                    if not told:
                        text = self._settings.cutover_window.text if self._settings.cutover_window else ""
                        self._watcher.note(f"all are copied; waiting for the window {text}")
                        told = True
                    self._change.wait(_LOOK)
                    continue
                self._running += 1
                return user
            self._alive -= 1
            return None

    def _take(self) -> str | None:
        """The first who may be taken: in hand, or not copied yet, or with time enough for the cutover."""
        if self._first:
            self._first -= 1
            return self._waiting.popleft()
        window = self._settings.cutover_window
        left = window.left(self._settings.clock()) if window is not None else 0.0
        for user in self._waiting:
            if window is None or user not in self._copied or self._copied[user] < left:
                self._waiting.remove(user)
                return user
        return None

    def _cuts_over(self, seconds: float) -> bool:
        """See Parts."""
        window = self._settings.cutover_window
        if self._settings.sync_only or window is None:
            return not self._settings.sync_only
        if seconds >= window.length:
            raise Stop(f"its last sync took {seconds:.0f} s, longer than the window {window.text}")
        return seconds < window.left(self._settings.clock())

    def _closed_for(self) -> float:
        window = self._settings.window
        return window.wait(self._settings.clock()) if window is not None else 0.0

    def _note_end(self, user: str, end: Ended) -> None:
        with self._change:
            self._running -= 1
            if end.copied is not None and not self._settings.sync_only:
                self._copied[user] = end.copied
                self._waiting.append(user)
                self._change.notify_all()
                return
            self._ended[user] = end
            # Who is on the old backend again was interrupted.
            ended = [each for each in self._ended.values() if not each.skipped and each.state != ON_OLD]
            failures = sum(each.error is not None for each in ended)
            most = self._settings.stop_after
            if most is not None and failures >= most:
                self._stop(f"{failures} failed")
            if self._journal.tight:
                self._stop(f"{self._journal.path}: the disk is full: make room there")
            self._change.notify_all()

    def _stop(self, why: str) -> None:
        """No user is begun any more."""
        with self._change:
            if self._stopped is None:
                self._stopped = why
                if self._waiting:
                    self._watcher.note(f"no more users are begun: {why}")
            self._change.notify_all()

    # --- signals -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _handlers(self) -> Iterator[None]:
        """A handler of ours is not inherited by commands, as an ignored signal would be."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            signal.signal(signal.SIGINT, self._interrupted)
            signal.signal(signal.SIGTERM, self._interrupted)
            if before[signal.SIGHUP] is not signal.SIG_IGN:  # nohup
                signal.signal(signal.SIGHUP, lambda _number, _frame: None)  # the terminal is gone: go on without
            yield
        finally:
            for number, handler in before.items():
                with suppress(TypeError):  # of a handler that is not Python's
                    signal.signal(number, handler)

    def _interrupted(self, _number: int, _frame: FrameType | None) -> None:
        """Only records: what it says is said by a thread that holds nothing."""
        self._signals += 1
        if self._signals > 1:
            self._cancel.set()
        threading.Thread(target=self._told, args=(self._signals,), daemon=True).start()

    def _told(self, signals: int) -> None:
        if signals == 1:
            self._stop("interrupted")
            self._watcher.note("interrupted: the users in hand are finished; once more to roll them back")
        elif signals == 2:
            self._watcher.note("interrupted again: users in hand are put back, or moved on where that is too late")

    def _summary(self, number: int, total: int, seconds: float) -> Summary:
        ended = [each for each in self._ended.values() if not each.skipped]
        skipped = {user: each.error or "" for user, each in self._ended.items() if each.skipped and not each.was_done}
        attention = sum(each.state == NEEDS_ATTENTION for each in ended)
        copied = sum(each.copied is not None for each in ended)
        rolled_back = sum(each.state == ON_OLD for each in ended) - copied
        failed = sum(each.error is not None for each in ended) - attention - rolled_back
        unstarted = total - len(self._ended) + rolled_back
        if unstarted or self._journal_failed:
            status = REFUSED if self._refused else STOPPED
        else:
            status = SOME_FAILED if failed or attention or skipped else ALL_DONE
        summary = Summary(
            run=number,
            total=total,
            done=sum(each.error is None for each in ended) - copied,
            already_done=sum(each.was_done for each in self._ended.values()),
            failed=failed,
            attention=attention,
            unstarted=unstarted,
            skipped=skipped,
            seconds=seconds,
            stopped=self._stopped if status in (REFUSED, STOPPED) else None,
            status=status,
            copied=copied,
        )
        if not unstarted:  # nobody is left whom a pause could be about
            with suppress(JournalError):
                self._orders.resume()
        with suppress(JournalError):  # the users are where they are
            self._journal.end_run(number, summary_text(summary))
        self._watcher.ended(summary)
        return summary


def parts_of(
    plan: Plan, number: int, journal: Journal, proxy: AskedProxy, watcher: Watcher, cancel: Cancel | None
) -> Parts:
    """What a user's run is done with. number: of the run."""
    return Parts(
        plan=plan,
        run=number,
        journal=journal,
        proxy=proxy,
        watcher=watcher,
        execute=executor(journal, cancel),
        cancelled=cancel.is_set if cancel is not None else lambda: False,
        beside=beside,
        clock=journal.clock,
        wall=time.time,
    )


def executor(
    journal: Journal, cancel: Cancel | None, told: bytes = b""
) -> Callable[[Hook, dict[str, str], bool, int], Ran]:
    """What runs a command of a plan, as Parts has it. told: the standard input of each."""

    def execute(hook: Hook, values: dict[str, str], cancellable: bool, step: int) -> Ran:
        ending = cancel if cancellable else None
        marks = {MARK: journal.path, STEP: str(step)}
        arguments, variables = hook.filled(values), {**environment(values), **marks}
        if not step:  # nothing can be written any more, and it is no sync
            return run(arguments, variables, hook.timeout, ending, whole=hook.mirror)
        try:
            lock = take_lock(journal.path, step)
        except OSError as error:
            raise JournalError(f"{journal.path}: its lock of a step: {error.strerror}") from error
        try:
            ran = run(
                arguments,
                variables,
                hook.timeout,
                ending,
                whole=hook.mirror,
                lock=lock,
                told=told,
                begun=lambda begun: journal.begin_process(step, begun, mirror=hook.mirror),
            )
        finally:
            os.close(lock)
        if ran.left is None or not (left := [each for each in journal.unsettled() if each.step == step]):
            return ran
        return replace(ran, left=settle(left[0], journal.path))

    return execute


def end_left_over(
    journal: Journal,
    user: str | None = None,
    told: Callable[[int], None] = lambda pid: None,
    *,
    looked: bool = False,
) -> dict[str, str]:
    """Ends what dead runs have left running, of one user or of all. Returns of whom something may go on, and why.

    To be called when no run is at work. told, looked: see `settle`. Raises JournalError.
    """
    refused: dict[str, str] = {}
    for left in journal.unsettled(user):
        why = settle(left, journal.path, told, looked=looked)
        if why is None:
            journal.settled(left.step)
        else:
            refused[left.user] = why
    return refused


def release(journal: Journal, proxy: AskedProxy, user: str) -> Ended:
    """Undoes what a dead run has left of a user, by the plan of that run. Raises RunRefused and JournalError."""
    row = journal.user(user)
    theirs = next((run for run in journal.runs() if row is not None and run.id == row.run), None)
    if row is None or theirs is None:
        raise RunRefused(f"{user}: the journal does not have the run that parked this user")
    if why := end_left_over(journal, user, looked=True).get(user):
        raise RunRefused(f"{user}: {why}; then release the user again")
    plan = parse_plan(theirs.plan, theirs.plan_path)
    steps = Steps(user, parts_of(plan, theirs.id, journal, proxy, Silent(), None))
    steps.state = (journal.stuck(user) or row.state) if row.state == NEEDS_ATTENTION else row.state
    return way_back.release(steps, row.state)


def beside(action: Callable[[], Requeued]) -> Callable[[], Requeued]:
    """Runs `action` in a thread of its own; what is returned waits for its result."""
    results: list[Requeued] = []

    def work() -> None:
        try:
            results.append(action())
        except Exception as error:  # noqa: BLE001  (it is told where the result is waited for; the users go on)
            _log.exception("internal error")
            results.append(Requeued((), f"internal error: {type(error).__name__}: {error}", False))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def wait() -> Requeued:
        thread.join()
        return results[0]

    return wait
