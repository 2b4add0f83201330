# SPDX-License-Identifier: GPL-3.0-or-later
"""One user's migration dies at every point between two actions, and is taken up again: nothing is lost, ever.

The real UserRun with a real journal runs in a model of the world: a proxy with its file, two stores, IMAP that may be
blocked, mail that comes at every moment. Whatever happens takes a moment, and at each of them the runner may be
killed, a command may fail, somebody else may move the user, the disk may be full. The model itself notices a mirror
sync after mail may have reached the new store, and an action whose state is not on disk. The same code with one step
wrong must be caught: these mutants stay here, to show that the model can see what it is for.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtp_proxy.ctl.migrate import states, user_run
from lmtp_proxy.ctl.migrate.events import Silent
from lmtp_proxy.ctl.migrate.hooks import KILLED, OK, Ran
from lmtp_proxy.ctl.migrate.journal import Journal
from lmtp_proxy.ctl.migrate.journal_file import JournalError
from lmtp_proxy.ctl.migrate.plan import Hook, Plan
from lmtp_proxy.ctl.migrate.proxy import BackendReceipt, Interrupted, Moved, ProxyError, Requeued, UserReceipts
from lmtp_proxy.ctl.migrate.steps import Ended, Parts, Steps
from lmtp_proxy.ctl.migrate.user_run import JournalFailed, UserRun
from lmtp_proxy.ctl.mta import Mta

USER = "alice"
HOOKS = ("sync", "final_sync", "block", "redirect", "unblock", "verify")
NEEDED = {
    "sync": {states.SYNCING},
    "final_sync": {states.FINAL_SYNC},
    "block": {states.BLOCKED, states.FINAL_SYNC},
    "verify": {states.FINAL_SYNC},
    "redirect": {states.REDIRECTED},
    "unblock": {states.BLOCKED, states.FINAL_SYNC, states.REDIRECTED, states.NEEDS_ATTENTION},
    "reject": {states.PARKED, states.BLOCKED, states.FINAL_SYNC},
    "new": {states.MOVED, states.REDIRECTED},
    "old": {states.PARKED, states.BLOCKED, states.FINAL_SYNC, states.NEEDS_ATTENTION},
}
"""Action -> the states of which one must be on disk when it begins."""


class Crash(BaseException):
    """The runner is dead."""


class Wrong(BaseException):
    """What must never happen; UserRun cannot take it for a mistake of its own, and go on."""


@dataclass
class World:
    """crash_at: the moments at which the runner dies. at: moment -> what somebody else does then."""

    path: str
    crash_at: frozenset[int] = frozenset()
    at: dict[int, Callable[[World], None]] = field(default_factory=dict)
    failing: dict[str, int] = field(default_factory=dict)  # action -> how often it fails
    unsure: dict[str, str] = field(default_factory=dict)  # action -> before | after: an error, although done or not
    not_quiet: bool = False
    uncertain: tuple[str, ...] = ()
    journal_full_at: frozenset[int] = frozenset()

    now: int = 0
    route: str = "old"
    file: str = "old"
    blocked: bool = False
    imap: str = "old"
    old: list[int] = field(default_factory=list)
    new: list[int] = field(default_factory=list)
    queue: list[int] = field(default_factory=list)
    sent: int = 0
    old_last: int | None = None
    new_last: int | None = None
    known: float = 0.0  # what was delivered to the new store before that, a human has dealt with
    foreign: bool = False
    cancelled: bool = False
    events: list[str] = field(default_factory=list)

    def moment(self, what: str) -> None:
        """Mail comes, and then anything else may."""
        self.now += 1
        self.sent += 1
        self.deliver(self.sent)
        self.events.append(what)
        if action := self.at.get(self.now):
            action(self)
        if self.now in self.crash_at:
            raise Crash(what)

    def deliver(self, mail: int) -> None:
        if self.route == "old":
            self.old.append(mail)
            self.old_last = self.now
        elif self.route == "new":
            self.new.append(mail)
            self.new_last = self.now
        else:
            self.queue.append(mail)

    def swap(self, backend: str) -> None:
        self.route = backend
        if backend != "reject":
            waiting, self.queue = self.queue, []
            for mail in waiting:  # Postfix tries again
                self.deliver(mail)

    def on_disk(self) -> str:
        with closing(sqlite3.connect(self.path)) as db:
            row = db.execute("SELECT state FROM users WHERE user = ?", (USER,)).fetchone()
            return str(row[0]) if row else states.ON_OLD

    def must_be_on_disk(self, action: str) -> None:
        if (state := self.on_disk()) not in NEEDED[action] and "journal full" not in self.events:
            raise Wrong(f"{action}, and the journal says {state}")

    # --- hooks ---

    def execute(self, hook: Hook, values: dict[str, str], cancellable: bool, _step: int) -> Ran:
        assert hook.filled(values)[1:] == (USER,)
        [name, *_] = hook.arguments
        self.moment(f"before {name}")
        self.must_be_on_disk(name)
        if self.failing.get(name, 0) > 0:
            self.failing[name] -= 1
            return Ran("exit 1", "it failed", 1.0, 1)
        if name in ("sync", "final_sync"):
            self.mirror(name)
        elif name == "block":
            self.blocked = True
        elif name == "unblock":
            self.blocked = False
        elif name == "redirect":
            self.imap = "new"
        self.moment(f"after {name}")
        if cancellable and self.cancelled:
            return Ran(KILLED, "", 1.0)
        return Ran(OK, "", 1.0, 0)

    def mirror(self, name: str) -> None:
        if not self.foreign and self.new_last is not None and self.new_last > self.known:
            raise Wrong(f"{name} after mail reached the new store")
        copy = list(self.old)
        self.moment(f"amid {name}")
        self.new = copy  # all else there is gone

    # --- the proxy ---

    def route_of(self, user: str) -> str:
        assert user == USER
        return self.route

    def preflight(self, backend: str, address: str) -> str:
        assert (backend, address) == ("new", "alice@example.org")
        self.moment("preflight")
        self.fail("preflight")
        return "ok"

    def move(self, user: str, backend: str, timeout: float, *, interruptible: bool) -> Moved:
        self.moment(f"before the move to {backend}")
        self.must_be_on_disk(backend)
        if interruptible and self.cancelled:
            raise Interrupted
        self.fail(backend)
        if self.unsure.pop(backend, None) == "before":
            raise ProxyError("nobody listens there")
        previous, self.file = self.file, backend
        self.moment(f"amid the move to {backend}")
        self.swap(backend)
        self.moment(f"after the move to {backend}")
        if self.unsure.pop(f"{backend} done", None) is not None:
            raise ProxyError("the connection broke")
        if backend == "reject":
            return Moved(not self.not_quiet, self.uncertain, "", previous)
        return Moved(True, (), "", previous)

    def fail(self, name: str) -> None:
        if self.failing.get(name, 0) > 0:
            self.failing[name] -= 1
            raise ProxyError(f"{name} failed")

    def receipts(self, user: str) -> UserReceipts:
        seen = [("old", self.old_last), ("new", self.new_last)]
        return UserReceipts(tuple(BackendReceipt(name, at, at, 1, 0) for name, at in seen if at is not None))

    def requeue(self, user: str, mta: Mta) -> Requeued:
        self.moment("requeue")
        return Requeued(("4BCDEF",), "4BCDEF: arrived")


@dataclass
class Asked:
    """The proxy's part of a world, by the names that UserRun uses."""

    world: World

    def route(self, user: str) -> str | None:
        self.world.moment("route")
        return self.world.route_of(user)

    def route_in_file(self, user: str) -> str | None:
        return self.world.file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world, name)


class DyingJournal(Journal):
    """Each state is two moments: before it is on disk, and after."""

    world: World

    def enter(self, *arguments: Any, **values: Any) -> None:
        self._full()
        self.world.moment(f"before entering {arguments[2]}")
        super().enter(*arguments, **values)
        self.world.moment(f"after entering {arguments[2]}")

    def putting_back(self, *arguments: Any) -> None:
        self._full()
        self.world.moment("before putting back")
        super().putting_back(*arguments)
        self.world.moment("after putting back")

    def _full(self) -> None:
        if self.world.now in self.world.journal_full_at:
            self.world.events.append("journal full")
            raise JournalError("the disk is full")


def plan_of(**values: Any) -> Plan:
    hooks = {name: Hook((name, "{user}"), 60.0) for name in HOOKS}
    return Plan("/plan", "", "old", "new", "reject", hooks, domain="example.org", max_syncs=2, **values)


def once(world: World, kind: type[UserRun] = UserRun, **values: Any) -> Ended | None:
    """One run of the command. None if it died."""
    journal = DyingJournal(world.path, clock=lambda: float(world.now))
    journal.world = world

    def inline(action: Callable[[], Requeued]) -> Callable[[], Requeued]:
        result = action()
        return lambda: result

    with journal:
        parts = Parts(
            plan_of(**values), 1, journal, Asked(world), Silent(), world.execute, lambda: world.cancelled, inline,
            clock=lambda: float(world.now), sleep=lambda seconds: tick(world, seconds),
        )  # fmt: skip
        try:
            return kind(USER, parts).run()
        except Crash:
            return None
        except JournalFailed:
            return None


def tick(world: World, seconds: float) -> None:
    world.now += int(seconds) + 1


def to_the_end(world: World, kind: type[UserRun] = UserRun, **values: Any) -> str:
    """The command is given again until it says how it ended. Returns the last state."""
    for _ in range(12):
        ended = once(world, kind, **values)
        world.cancelled = False
        if ended is not None:
            check(world, ended)
            return ended.state
    raise Wrong("it never ends")


def check(world: World, ended: Ended) -> None:
    """What must be so at the end."""
    assert world.on_disk() == ended.state
    everything = sorted([*world.old, *world.new, *world.queue])
    assert set(everything) >= set(range(1, world.sent + 1)) or world.foreign, "mail is lost"
    if ended.state == states.DONE:
        assert (world.route, world.file, world.imap, world.blocked) == ("new", "new", "new", False)
        assert sorted(world.new) == list(range(1, world.sent + 1)), "all of it is in the new store, and once"
        assert world.queue == []
    elif ended.state in (states.FAILED, states.ON_OLD):
        assert (world.route, world.file, world.imap, world.blocked) == ("old", "old", "old", False)
        assert sorted(world.old) == list(range(1, world.sent + 1)), "all of it is in the old store"
    else:
        assert ended.state == states.NEEDS_ATTENTION
        assert ended.error is not None and "`lmtp-proxyctl " in ended.error, ended
        if not world.foreign and world.on_disk() == states.NEEDS_ATTENTION:
            stuck = stuck_of(world)
            if stuck not in states.ONLY_ON and "still blocked" not in ended.error and "put back" not in ended.error:
                assert (world.route, world.blocked) == ("old", False), ended


def stuck_of(world: World) -> str | None:
    with Journal(world.path, read_only=True) as journal:
        return journal.stuck(USER)


@pytest.fixture
def place() -> Iterator[Callable[..., World]]:
    directories: list[str] = []

    def make(**values: Any) -> World:
        directories.append(tempfile.mkdtemp(prefix="lpm", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        return World(f"{directories[-1]}/j.db", **values)

    yield make
    for directory in directories:
        shutil.rmtree(directory)


def moments(place: Callable[..., World], scenario: dict[str, Any], **values: Any) -> int:
    """How many there are if nobody dies."""
    world = place(**copied(scenario))
    to_the_end(world, **values)
    return world.now


def copied(scenario: dict[str, Any]) -> dict[str, Any]:
    return {key: dict(value) if isinstance(value, dict) else value for key, value in scenario.items()}


SCENARIOS: dict[str, tuple[dict[str, Any], str]] = {
    "all goes well": ({}, states.DONE),
    "the sync fails": ({"failing": {"sync": 1}}, states.FAILED),
    "the preflight fails": ({"failing": {"preflight": 1}}, states.FAILED),
    "parking is refused": ({"failing": {"reject": 1}}, states.FAILED),
    "parking breaks off before": ({"unsure": {"reject": "before"}}, states.FAILED),
    "parking breaks off behind": ({"unsure": {"reject done": "after"}}, states.FAILED),
    "not quiet": ({"not_quiet": True}, states.FAILED),
    "uncertain": ({"uncertain": ("12:00: <1@x>",)}, states.FAILED),
    "block fails": ({"failing": {"block": 1}}, states.FAILED),
    "the final sync fails": ({"failing": {"final_sync": 1}}, states.FAILED),
    "verify fails": ({"failing": {"verify": 1}}, states.FAILED),
    "putting back is refused": ({"failing": {"final_sync": 1, "old": 1}}, states.NEEDS_ATTENTION),
    "unblocking fails on the way back": ({"failing": {"verify": 1, "unblock": 1}}, states.NEEDS_ATTENTION),
    "the move is refused twice": ({"failing": {"new": 2}}, states.DONE),
    "the move breaks off before": ({"unsure": {"new": "before"}}, states.DONE),
    "the move breaks off behind": ({"unsure": {"new done": "after"}}, states.DONE),
    "the move is refused for ever": ({"failing": {"new": 999}}, states.NEEDS_ATTENTION),
    "redirect fails": ({"failing": {"redirect": 1}}, states.NEEDS_ATTENTION),
    "unblock fails at the end": ({"failing": {"unblock": 1}}, states.NEEDS_ATTENTION),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_every_moment(place: Callable[..., World], name: str) -> None:
    """Once; and the next run comes to an end that is right, whatever fails in it."""
    scenario, expected = SCENARIOS[name]
    world = place(**copied(scenario))
    assert to_the_end(world) == expected, world.events
    ends = set()
    for moment in range(1, world.now + 1):
        again = place(**copied(scenario), crash_at=frozenset({moment}))
        try:
            ends.add(to_the_end(again))
        except (AssertionError, Wrong) as error:
            raise AssertionError(f"killed at moment {moment}: {again.events}: {error}") from error
    assert ends <= {expected, states.DONE, states.FAILED, states.NEEDS_ATTENTION}
    if not scenario:
        assert ends == {states.DONE}, "a crash alone asks nobody for anything"


def test_killed_again_and_again(place: Callable[..., World]) -> None:
    """Two deaths at any two moments, exhaustively."""
    total = moments(place, {})
    for first in range(1, total + 1):
        for second in range(first + 1, first + total + 1, 3):
            world = place(crash_at=frozenset({first, second}))
            assert to_the_end(world) == states.DONE, (first, second, world.events)


@settings(max_examples=300)
@given(data=st.data())
def test_anything_at_any_time(data: st.DataObject) -> None:
    """Deaths, failures, a full disk and a Ctrl-C in any order."""
    names = sorted(set(HOOKS) | {"preflight", "reject", "new", "old"})
    with tempfile.TemporaryDirectory(prefix="lpm", dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as directory:
        moment = st.integers(1, 80)
        world = World(
            f"{directory}/j.db",
            crash_at=data.draw(st.frozensets(moment, max_size=5)),
            failing=data.draw(st.dictionaries(st.sampled_from(names), st.integers(1, 2), max_size=3)),
            journal_full_at=data.draw(st.frozensets(moment, max_size=3)),
            not_quiet=data.draw(st.booleans()) and data.draw(st.booleans()),
        )
        if (cancel := data.draw(st.none() | moment)) is not None:
            world.at[cancel] = cancel_all
        to_the_end(world)


def cancel_all(world: World) -> None:
    world.cancelled = True


def test_interrupted_at_every_moment(place: Callable[..., World]) -> None:
    """Rolled back before `moved`, forward from there on; and the same with a death amid the way back."""
    total = moments(place, {})
    ends = []
    for moment in range(1, total + 1):
        world = place(at={moment: cancel_all})
        ends.append(to_the_end(world))
        for death in range(moment + 1, moment + 8):
            again = place(at={moment: cancel_all}, crash_at=frozenset({death}))
            to_the_end(again)
    assert set(ends) == {states.ON_OLD, states.DONE}
    assert ends == sorted(ends, key=lambda end: end == states.DONE), "there is one point of no return"


def test_the_disk_is_full_at_every_moment(place: Callable[..., World]) -> None:
    """The state is not entered, nothing goes on; and when there is room again the user gets there."""
    total = moments(place, {})
    for moment in range(total + 1):
        world = place(journal_full_at=frozenset({moment}))
        ended = once(world)
        if ended is None and world.on_disk() not in states.ONLY_ON:
            assert (world.route, world.blocked) == ("old", False), (moment, world.events)
        assert to_the_end(world) == states.DONE


@pytest.mark.parametrize("backend", ["old", "new", "third"])
def test_somebody_else_moves_the_user_at_every_moment(place: Callable[..., World], backend: str) -> None:
    """Nothing is taken for granted: it ends well, or a human is asked; and no mirror sync where mail may have come."""

    def elsewhere(world: World) -> None:
        world.foreign = backend == "third"
        world.file = backend
        world.swap(backend)

    total = moments(place, {})
    ends = set()
    for moment in range(1, total + 1):
        world = place(at={moment: elsewhere})
        try:
            ended = once(world)
        except Wrong:
            # Between the guard and the sync is a moment that nobody can close: it is the only one.
            if backend == "new" and world.events[-1] in ("before sync", "before final_sync"):
                continue
            raise
        assert ended is not None
        ends.add(ended.state)
        if ended.state == states.DONE and "amid the move to new" not in world.events[:moment]:
            assert world.route == "new" and set(world.new) >= set(range(1, world.sent + 1)), (moment, world.events)
    assert states.NEEDS_ATTENTION in ends or backend == "old"


def test_early_mail_is_not_synced_over(place: Callable[..., World]) -> None:
    world = place(new_last=0, new=[0])
    world.new_last = 1
    world.now = 5
    ended = once(world)
    assert ended is not None and ended.state == states.NEEDS_ATTENTION
    assert ended.error is not None and "`lmtp-proxyctl migrate reset alice`" in ended.error
    assert world.new == [0] and not any("sync" in event for event in world.events), "nothing was touched"
    ended = once(world)
    assert ended is not None and ended.skipped, "and it stays so"
    with Journal(world.path, clock=lambda: float(world.now)) as journal:
        journal.reset(USER, "merged by hand")
        world.known = float(world.now)
    world.new = []
    assert to_the_end(world) == states.DONE


def test_uncertain_deliveries_may_be_accepted(place: Callable[..., World]) -> None:
    assert to_the_end(place(uncertain=("12:00: <1@x>",)), go_on_if_uncertain=True) == states.DONE


def test_who_needs_attention_goes_on_once_it_is_mended(place: Callable[..., World]) -> None:
    world = place(failing={"redirect": 1})
    assert to_the_end(world) == states.NEEDS_ATTENTION
    assert to_the_end(world) == states.DONE
    ended = once(world)
    assert ended is not None and ended.skipped and ended.error == "is done"


# --- mutants ---------------------------------------------------------------------------------------------------------


class Guardless(UserRun):
    def _guard(self) -> None:
        pass


class MovesFirst(UserRun):
    """`moved` is entered after the action."""

    def _forward(self) -> None:
        if states.is_before(self._steps.state, states.MOVED):
            self.parts.proxy.move(self.user, "new", 1.0, interruptible=False)
        super()._forward()


class Forgetful(UserRun):
    """Takes everybody up as if for the first time."""

    def _follow(self, taken: states.Way, undoing: str | None, route: str | None) -> None:
        self._steps.state = states.SYNCING if taken is states.Way.GO_ON else self._steps.state
        super()._follow(states.Way.BEGIN, undoing, route)


def test_the_model_sees_a_sync_without_a_guard(place: Callable[..., World]) -> None:
    with pytest.raises(Wrong, match="after mail reached the new store"):
        once(place(new_last=1), Guardless)


@pytest.mark.parametrize("mutant", [MovesFirst, Forgetful])
def test_the_model_sees_a_wrong_order(place: Callable[..., World], mutant: type[UserRun]) -> None:
    total = moments(place, {})

    def killed_everywhere() -> None:
        for moment in range(1, total + 1):
            to_the_end(place(crash_at=frozenset({moment})), mutant)

    with pytest.raises((AssertionError, Wrong)):
        killed_everywhere()


def test_the_model_sees_a_user_who_stays_blocked(place: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    def undo(steps: Steps, why: str, end: str) -> Ended:
        steps.enter(end, error=why)
        return steps.ended(why)

    monkeypatch.setattr(user_run, "undo", undo)
    with pytest.raises(AssertionError):
        to_the_end(place(failing={"verify": 1}))
