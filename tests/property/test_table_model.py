# SPDX-License-Identifier: GPL-3.0-or-later
"""When a mover answers 0, nothing reaches the former store afterwards: one node, over random orders of what happens.

The real statements and triggers run in SQLite, the real Node decides what is said, the real judge what it means. What
is modelled is what lies between them: a process that may be killed between any two steps, a disk that loses what was
not synced, deliveries, a database that is away, restored from a backup, or pruned. The same with one step wrong must
be caught: the mutants stay here, to show that the model can see what it is for.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmtp_proxy.routing.keys import KeyRules
from lmtp_proxy.table.barrier import Goal, Users, judge
from lmtp_proxy.table.history import Head, News, NodeRow, Position, RouteRow
from lmtp_proxy.table.node import NewsStep, Node
from lmtp_proxy.table.sqlite import statements
from lmtp_proxy.table.store import TableStore

USERS = ("a@x", "b@x")
BACKENDS = ("old", "new")
NAME = "mx1"


class BrokenPromiseError(Exception):
    """A store has got a mail after it was said that none can reach it."""


class MemoryConnection:
    """A Connection to a database that is in memory, and may be put back as it was."""

    where = "memory"

    def __init__(self) -> None:
        self._base = sqlite3.connect(":memory:", isolation_level=None)

    @contextmanager
    def reading(self) -> Iterator[None]:
        self._base.execute("BEGIN")
        try:
            yield
        finally:
            self._base.execute("COMMIT")

    writing = reading

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._base.execute(statement, values).fetchall()

    def each(self, statement: str, values: Sequence[Any] = ()) -> Iterator[Any]:
        yield from self._base.execute(statement, values)

    def change(self, statement: str, values: Sequence[Any] = ()) -> int:
        return self._base.execute(statement, values).rowcount

    def change_many(self, statement: str, values: Sequence[Sequence[Any]]) -> None:
        self._base.executemany(statement, values)

    def close(self) -> None:
        self._base.close()

    def saved(self) -> bytes:
        return self._base.serialize()

    def restore(self, octets: bytes) -> None:
        self._base.deserialize(octets)


def _begun() -> bytes:
    base = MemoryConnection()
    for statement in statements([], 1):
        base.change(statement)
    TableStore(base).put(iter([(user, "old") for user in USERS]), "import")
    octets = base.saved()
    base.close()
    return octets


BEGUN = _begun()


@dataclass(eq=False)
class Mail:
    """A delivery. phase: routed, entered, dot, over."""

    user: str
    backend: str
    phase: str = "routed"
    stored: bool = False


@dataclass
class Disk:
    """What is there after a crash: a table with its position, and the epochs of this host."""

    position: Position | None = None
    users: dict[str, str] = field(default_factory=dict)
    epochs: list[int] = field(default_factory=list)


@dataclass
class Run:
    """One process: what it serves by, and how far it is with some news."""

    node: Node
    users: dict[str, str]
    joined: bool = False
    stage: str = "idle"
    news: News | None = None
    goal: Position | None = None
    found: dict[str, str] = field(default_factory=dict)
    first: int = 0
    gone: dict[tuple[int, int], set[tuple[str, str]]] = field(default_factory=dict)  # gens -> users and what they had
    early: dict[tuple[int, int], set[Mail]] = field(default_factory=dict)
    floor: int = 0  # of a mutant
    lost: frozenset[str] = frozenset()  # answered with 451, as the table has another history


@dataclass
class Move:
    """A mover. stage: marked, written."""

    user: str
    backend: str
    goal: Goal
    listed: dict[str, int]
    stage: str = "marked"


class World:
    """Everything. Each method of the table below does one step, or nothing where it cannot be."""

    def __init__(self, mutant: str = "") -> None:
        self.mutant = mutant
        self.base = MemoryConnection()
        self.base.restore(BEGUN)
        self.store = TableStore(self.base)
        self.disk = Disk()
        self.run: Run | None = None
        self.mails: list[Mail] = []
        self.orphans: list[Mail] = []  # of processes that are dead: their store may take them yet
        self.move: Move | None = None
        self.promised: dict[str, str] = {}
        self.backup: bytes | None = None
        self.random = 100
        self.clock = 0
        self.answers: list[int] = []

    def close(self) -> None:
        self.base.close()

    # --- mail --------------------------------------------------------------------------------------------------------

    def delivered(self, mail: Mail) -> None:
        assert not mail.stored
        mail.stored = True
        if mail.user in self.promised and mail.backend != self.promised[mail.user]:
            raise BrokenPromiseError(mail)

    def mail(self, number: int) -> None:
        run = self.run
        user = USERS[number % len(USERS)]
        if run is not None and len(self.mails) < 3 and user in run.users and user not in run.lost:
            self.mails.append(Mail(user, run.users[user]))

    def _one(self, number: int, *phases: str) -> Mail | None:
        these = [mail for mail in self.mails if mail.phase in phases]
        return these[number % len(these)] if these else None

    def enter(self, number: int) -> None:
        if mail := self._one(number, "routed"):
            mail.phase = "entered"

    def look(self, number: int) -> None:
        assert self.run is not None or not self.mails
        if mail := self._one(number, "entered"):
            assert self.run is not None
            if self.run.users.get(mail.user) == mail.backend and mail.user not in self.run.lost:
                mail.phase = "dot"
            else:
                self._over(mail)

    def stored(self, number: int) -> None:
        mail = self._one(number, "dot")
        if mail is not None and not mail.stored:
            self.delivered(mail)

    def reply(self, number: int) -> None:
        if mail := self._one(number, "dot"):
            if not mail.stored:
                self.delivered(mail)
            self._over(mail)

    def no_reply(self, number: int) -> None:
        """The connection breaks after the dot; the store may take the mail yet."""
        if mail := self._one(number, "dot"):
            self._over(mail, doubt=True)
            if not mail.stored:
                self.orphans.append(mail)

    def _over(self, mail: Mail, *, doubt: bool = False) -> None:
        mail.phase = "over"
        self.mails.remove(mail)
        assert self.run is not None
        self.run.node.ended(mail, [(mail.user, self.clock, "{}")] if doubt else [])

    def orphan(self, number: int) -> None:
        if self.orphans:
            self.delivered(self.orphans.pop(number % len(self.orphans)))

    # --- the node ----------------------------------------------------------------------------------------------------

    def crash(self, _: int) -> None:
        self.orphans += [mail for mail in self.mails if mail.phase == "dot" and not mail.stored]
        self.mails.clear()
        self.run = None

    def stop(self, _: int) -> None:
        """A good end: after the last delivery."""
        if self.run is not None and not self.mails and self.run.stage == "idle" and self.run.joined:
            report = self.run.node.report()
            if report is None or not report.doubts:
                self.store.stop(NAME, self.run.node.epoch)
                self.run = None

    def start(self, number: int) -> None:
        """With the database, or without one by what is on the disk."""
        if self.run is not None:
            return
        self.random += 1
        node = Node(NAME, self.random, self.disk.position)
        self.disk.epochs.append(self.random)
        if number % 3 == 0 and self.disk.position is not None:
            self.run = Run(node, dict(self.disk.users))
            return
        self.run = Run(node, dict(self.disk.users))
        if self.mutant == "snapshot before join":
            self.read(0)
        else:
            self.join(0)

    def join(self, _: int) -> None:
        run = self.run
        if run is None or run.joined:
            return
        self.store.join(NAME, self.disk.epochs, run.node.epoch, "1", "")
        if self.mutant == "unclean is forgotten":
            self.base.change("UPDATE node SET unclean = 0")
        run.joined = True

    def read(self, _: int) -> None:
        """Look at the database; a mutant reads the floor in another snapshot than the changes."""
        run = self.run
        early = self.mutant == "snapshot before join" and run is not None and run.node.position is None
        if run is None or run.stage not in ("idle", "floor") or not (run.joined or early):
            return
        if self.mutant == "floor before changes" and run.stage == "idle":
            run.floor, run.stage = self.store.head().floor, "floor"
            return
        here = run.node.position
        news = self.store.news(here.gen if here else 0, 5)
        if run.stage == "floor":
            own = news.own_tag if news.own_tag is not None or here is None else here.tag
            news = news._replace(head=news.head._replace(floor=run.floor), own_tag=own)
            run.stage = "idle"
        if self.mutant == "gen without tag" and here is not None:
            news = news._replace(own_tag=here.tag)
        step = run.node.step(news)
        if step is NewsStep.NOTHING:
            return
        run.news, run.found, run.gone, run.early = news, dict(run.users), {}, {}
        if step is NewsStep.APPLY:
            for change in news.changes:
                self._take(run, change.address, change.backend, (change.gen, change.gen))
        else:
            self._take_whole(run, step)
        if run.goal is None or step is NewsStep.APPLY:
            run.goal = news.head.position
        run.stage = "read"

    def _take_whole(self, run: Run, step: NewsStep) -> None:
        def take(head: Head, rows: Iterator[RouteRow]) -> None:
            run.goal = head.position
            wanted = {row.address: row.backend for row in rows}
            here = run.node.position
            span = ((here.gen if here and step is NewsStep.BEHIND else 0) + 1, head.gen)
            lost = set()
            for user in USERS:
                if run.users.get(user) != wanted.get(user):
                    self._take(run, user, wanted.get(user), span)
                    if step is NewsStep.OTHER_HISTORY:
                        lost.add(user)
            run.lost = run.lost | lost if step is NewsStep.OTHER_HISTORY else run.lost

        self.store.whole(take)

    def _take(self, run: Run, user: str, backend: str | None, span: tuple[int, int]) -> None:
        before = run.found.get(user)
        if before is not None and before != backend:
            run.gone.setdefault(span, set()).add((user, before))
        if backend is None:
            run.found.pop(user, None)
        else:
            run.found[user] = backend
        run.lost -= {user}

    def go_on(self, number: int) -> None:
        """The next stage of what was read: log, sync, apply, look what is in flight, say so."""
        run = self.run
        if run is None or run.goal is None:
            return
        if run.stage == "read":
            if self.mutant == "drain before apply":
                run.early = self._in_flight(run)
            if self.mutant == "said before the sync":
                run.node.logged(run.goal)
                run.stage = "synced"
            else:
                self.disk.position, self.disk.users = run.goal, dict(run.found)
                run.node.logged(run.goal)
                run.stage = "synced"
        elif run.stage == "synced":
            run.users = dict(run.found)
            run.node.applied(run.goal)
            run.stage = "applied"
        elif run.stage == "applied":
            found = run.early if self.mutant == "drain before apply" else self._in_flight(run)
            for (first, last), mails in found.items():
                run.node.waits(first, last, [mail for mail in mails if mail.phase != "over"])
            run.stage = "looked"
        elif run.stage == "looked":
            if not run.joined:  # of the mutant that reads first
                self.join(0)
                return
            self.say(0)
            run.stage = "late sync" if self.mutant == "said before the sync" else "idle"
        elif run.stage == "late sync" and number == 0:
            self.disk.position, self.disk.users = run.goal, dict(run.found)
            run.stage = "idle"

    def _in_flight(self, run: Run) -> dict[tuple[int, int], set[Mail]]:
        """Per gen the deliveries to what it took away which are past the check, or may be at any moment."""
        return {
            span: {
                mail for mail in self.mails if mail.phase in ("entered", "dot") and (mail.user, mail.backend) in gone
            }
            for span, gone in run.gone.items()
        }

    def say(self, _: int) -> None:
        run = self.run
        if run is None or not run.joined or run.stage not in ("idle", "looked"):
            return
        report = run.node.report()
        if report is None:
            return
        waiting, doubts = report.waiting, report.doubts
        if self.mutant == "seen before waiting" and run.stage == "looked":
            waiting = ""
            run.node.said(report._replace(waiting="", doubts=report.doubts))
        else:
            run.node.said(report)
        if self.mutant == "doubts are not written":
            doubts = ()
        if not self.store.acknowledge(NAME, run.node.epoch, report.seen, waiting, {}, doubts):
            self.crash(0)  # fenced, which nobody does here: or another one has our row

    def longest(self, _: int) -> None:
        """So much time has passed that no store has anything of a dead process, or of a broken connection, to take."""
        if self.run is not None and self.run.joined and not self.orphans:
            self.store.clean(NAME, self.run.node.epoch)

    # --- who moves ---------------------------------------------------------------------------------------------------

    def begin(self, number: int) -> None:
        if self.move is not None:
            return
        self.clock += 1
        user = USERS[number % len(USERS)]
        backend = BACKENDS[number // len(USERS) % 2]
        written = self.store.mark([user], "me", self.clock)
        goal = Goal(written.position, Users([user], KeyRules()))
        self.move = Move(user, backend, goal, self._listed())

    def _listed(self) -> dict[str, int]:
        return {row.name: row.epoch for row in self.store.nodes()}

    def judge(self, _: int) -> None:
        move = self.move
        if move is None:
            return
        rows: Sequence[NodeRow] = self.store.nodes()
        is_known: Callable[[Position], bool] = self.store.is_known
        if self.mutant == "gen without tag":
            is_known = lambda _: True  # noqa: E731
        mutant, own = self.mutant == "its own gens alone", move.goal.position.gen

        def is_about(span: tuple[int, int]) -> bool:
            if mutant and span != (own, own):
                return False
            addresses = self.store.addresses_of(*span, 1000)
            return addresses is None or any(map(move.goal.users.may_be, addresses))

        doubts = self.store.doubts([move.user], self.clock - 1)
        verdict = judge(move.goal, move.listed, rows, is_known, is_about, doubts)
        if move.stage == "marked":
            if verdict.acknowledged:
                written = self.store.write([move.user], move.backend, "me")
                self.promised.pop(move.user, None)
                move.goal = Goal(written.position, move.goal.users)
                move.listed, move.stage = self._listed(), "written"
        elif verdict.done:
            self.store.unmark([move.user], "me")
            self.answers.append(0 if verdict.quiet else 2)
            if verdict.quiet:
                self.promised[move.user] = move.backend
            self.move = None

    def give_up(self, _: int) -> None:
        if self.move is not None:
            self.store.unmark([self.move.user], "me")
            self.move = None

    def script(self, number: int) -> None:
        user, backend = USERS[number % 2], BACKENDS[number // 2 % 2]
        if self.move is None or self.move.user != user:
            self.base.change("UPDATE route SET backend = ? WHERE address = ?", (backend, user))
            if self.promised.get(user) != backend:
                self.promised.pop(user, None)

    # --- the database ------------------------------------------------------------------------------------------------

    def save(self, _: int) -> None:
        self.backup = self.base.saved()

    def restore(self, _: int) -> None:
        """A promise holds as long as the commit survives."""
        if self.backup is not None:
            self.base.restore(self.backup)
            self.promised.clear()
            self.move = None

    def prune(self, _: int) -> None:
        self.store.prune(self.store.head().gen)


OFTEN = ("mail", "enter", "look", "reply", "read", "go_on", "go_on", "go_on", "say", "begin", "judge", "judge")
SELDOM = ("stored", "no_reply", "orphan", "crash", "start", "start", "stop", "join", "longest", "give_up", "script")
RARE = ("save", "restore", "prune")
ACTIONS = (*OFTEN * 2, *SELDOM, *RARE)

MUTANTS = {
    "said before the sync": ("crash",),
    "gen without tag": ("save", "restore"),
    "drain before apply": (),
    "seen before waiting": (),
    "floor before changes": ("prune", "script"),
    "unclean is forgotten": ("crash", "orphan"),
    "snapshot before join": (),
    "doubts are not written": ("no_reply", "orphan"),
    "its own gens alone": ("give_up", "script"),
}
"""Each with the seldom steps that it takes to see it."""


def play(world: World, steps: Sequence[tuple[str, int]]) -> World:
    try:
        for name, number in steps:
            getattr(world, name)(number)
    finally:
        world.close()
    return world


def walk(seed: int, some: Sequence[str] = ()) -> list[tuple[str, int]]:
    """Random steps. Each walk has only some of the seldom ones: with all of them no move gets far."""
    random = Random(seed)
    some = [*some, *(name for name in (*SELDOM, *RARE) if random.random() < 0.2)]
    actions = [*(*OFTEN, "start", "join") * random.choice((2, 6, 20)), "longest", *some * 2]
    return [("start", 1), *((random.choice(actions), random.randrange(12)) for _ in range(200))]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 11)), max_size=120))
def test_after_an_answer_of_0_nothing_reaches_the_former_store(steps: list[tuple[str, int]]) -> None:
    play(World(), [("start", 1), *steps])


def test_it_holds_in_long_random_runs_and_movers_do_get_answers() -> None:
    answers: list[int] = []
    for seed in range(400):
        answers += play(World(), walk(seed)).answers
    assert answers.count(0) > 250
    assert answers.count(2) > 20


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_model_sees_each_step_that_is_wrong(mutant: str) -> None:
    assert any(is_broken(mutant, walk(seed, MUTANTS[mutant])) for seed in range(5000))


def is_broken(mutant: str, steps: Sequence[tuple[str, int]]) -> bool:
    try:
        play(World(mutant), steps)
    except BrokenPromiseError:
        return True
    return False
