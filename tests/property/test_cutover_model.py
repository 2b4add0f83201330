"""After a move or a drain has returned, no final dot goes to the old backend: over every interleaving.

The real Delivery, its commit point, InFlight and Routing run in greenlets that stop wherever they might wait: around
each look-up in a table, at the backend's socket, while they drain. A scheduler goes through all orders of these steps,
or through random ones where there are too many. The same code with one step wrong must be caught: these mutants stay
here, to show that the model can see what it is for.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random

import pytest
from greenlet import getcurrent, greenlet
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtp_proxy.backends.failure import BackendError, Failure
from lmtp_proxy.backends.introductions import Who
from lmtp_proxy.backends.pool import BackendPool
from lmtp_proxy.backends.session import BackendSession
from lmtp_proxy.config.values import Backend, Config, UnixAddress
from lmtp_proxy.delivery.commit import Message, ProcessParts
from lmtp_proxy.delivery.delivery import Delivery
from lmtp_proxy.delivery.in_flight import InFlight
from lmtp_proxy.delivery.state import DeliveryState
from lmtp_proxy.delivery.uncertain_log import UncertainLog
from lmtp_proxy.generations.destination import Destination
from lmtp_proxy.generations.generation import Generation
from lmtp_proxy.routing.keys import KeyRules
from lmtp_proxy.routing.routing import Routing
from lmtp_proxy.wire.client import ClientState
from lmtp_proxy.wire.envelope import Envelope, plain_recipient
from lmtp_proxy.wire.reply import Reply

BACKENDS = {name: Backend(name, UnixAddress(f"/{name}")) for name in ("old", "new")}
FOREVER = time.monotonic() + 10**6


def pause(ready: Callable[[], bool] = lambda: True) -> None:
    """Let any other actor go on; come back at some time after `ready` holds."""
    here = getcurrent()
    assert here.parent is not None
    here.parent.switch(ready)


class PausingTable:
    """A table that answers over a network would wait before and after the answer is decided."""

    has_domains = True
    constant = False

    def __init__(self, users: dict[str, str]) -> None:
        self._users = users

    def __len__(self) -> int:
        return len(self._users)

    def lookup(self, key: str) -> str | None:
        pause()
        found = self._users.get(key)
        pause()
        return found


@dataclass
class World:
    """One run: what is in force, what happened. full: how often the backend has no room for the dot at first."""

    full: int = 0
    uncertain_reply: bool = False
    events: list[tuple[str, str, str]] = field(default_factory=list)  # what, user, backend

    def __post_init__(self) -> None:
        self.in_flight = InFlight()
        self.users = {"alice@x": "old", "bob@x": "old"}
        # Not the generation that recipients were routed in, so that the commit point asks the table.
        self.generation = self._generation(2)
        self.parts = ProcessParts(
            lambda: self.generation, self.in_flight, UncertainLog(lambda: self.generation, self.in_flight)
        )

    def _generation(self, number: int) -> Generation:
        routing = Routing(PausingTable(dict(self.users)), KeyRules(), None)
        pools = {name: ModelPool(self, backend) for name, backend in BACKENDS.items()}
        return Generation(number, Config("/c", (UnixAddress("/s"),), "proxy"), routing, pools)

    def swap(self, user: str, backend: str) -> None:
        """The end of a reload: one reference changes."""
        self.users[user] = backend
        self.generation = self._generation(self.generation.number + 1)


class ModelSession(BackendSession):
    """A conversation whose octets are events; all that may wait is a pause."""

    def __init__(self, world: World, backend: Backend) -> None:
        super().__init__(backend, "proxy")
        self.world = world
        self.full = world.full
        self.user = ""
        self.protocol.state = ClientState.DATA
        self.protocol.expected = ()

    def send_now(self, octets: bytes) -> int:
        assert octets == b"last\r\n.\r\n" or octets == b".\r\n"
        if self.full:
            self.full -= 1
            return len(octets) - 3
        self.world.events.append(("dot", self.user, self.backend.name))
        return len(octets)

    def keep(self, octets: bytes | memoryview) -> None:
        assert octets == b""

    def stirred(self) -> bool:
        pause()
        return False

    def replies(self) -> Sequence[Reply]:
        pause()
        if self.world.uncertain_reply and self.world.events and self.world.events[-1][0] == "dot":
            raise BackendError(Failure.GONE, "gone")
        return self.protocol.receive(b"250 2.0.0 ok\r\n" * len(self.protocol.expected))


class ModelPool(BackendPool):
    def __init__(self, world: World, backend: Backend) -> None:
        super().__init__(backend, "proxy")
        self.world = world

    def open(self, *, fresh: bool = False, whatever: bool = False, who: Who | None = None) -> BackendSession:
        return ModelSession(self.world, self.backend)

    def release(self, session: BackendSession) -> None:
        pass

    discard = reset = release


# --- the actors -------------------------------------------------------------------------------------------------------


def deliver(world: World, user: str, kind: type[Delivery]) -> None:
    """One message for `user`, whose RCPT went to `old` in generation 1, from its body to its final reply."""
    recipient = plain_recipient(f"<{user}>".encode())
    pool = world.generation.pools["old"]
    destination = Destination(recipient, FIRST.route(recipient), 1, pool)
    delivery = kind(pool, Message("s", Envelope(b"<>")), world.parts)
    session = ModelSession(world, pool.backend)
    session.user = user
    delivery.session = session
    delivery.state = DeliveryState.DATA
    delivery.accounts.accepted = [destination]
    pause()
    delivery.finish(b"last\r\n", FOREVER)
    pause()
    while not delivery.advance():
        pause()
    [reply] = delivery.accounts.final
    world.events.append(("answered", user, reply.text[:5].decode()))


class _Plain:
    """What `route` gives in generation 1, without pauses."""

    has_domains = True
    constant = False

    def lookup(self, key: str) -> str | None:
        return "old" if key in ("alice@x", "bob@x") else None

    def __len__(self) -> int:
        return 2


FIRST = Routing(_Plain(), KeyRules(), None)


def drain(world: World, user: str) -> None:
    until = world.in_flight.last
    rules = KeyRules()
    pause(lambda: not world.in_flight.drain({user}, rules, until))


def move(world: World, user: str, backend: str, draining: Callable[[World, str], None] = drain) -> None:
    pause()
    world.swap(user, backend)
    world.events.append(("swapped", user, backend))
    pause()
    draining(world, user)
    world.events.append(("moved", user, backend))


def moves(world: World, user: str, backends: Sequence[str]) -> None:
    """One after the other, as one operator does it."""
    for backend in backends:
        move(world, user, backend)


def reload_of_others(world: World) -> None:
    pause()
    world.swap("carol@x", "new")


# --- the scheduler ----------------------------------------------------------------------------------------------------


def _ready_at_once() -> bool:
    return True


def run(actors: list[Callable[[], None]], choose: Callable[[int], int]) -> None:
    """Run all actors to their end. choose(n): which of n that can go on goes on."""
    scheduler = getcurrent()
    alive = [(greenlet(actor, scheduler), _ready_at_once) for actor in actors]
    while alive:
        enabled = [index for index, (_, ready) in enumerate(alive) if ready()]
        assert enabled, "nobody can go on: a drain waits for something that never comes"
        index = enabled[choose(len(enabled)) if len(enabled) > 1 else 0]
        actor, _ = alive[index]
        ready = actor.switch()
        if actor.dead:
            del alive[index]
        else:
            alive[index] = (actor, ready)


def all_orders(one_run: Callable[[Callable[[int], int]], None]) -> int:
    """Call `one_run` once for each order of steps there is; returns how many."""
    path: list[tuple[int, int]] = []  # choice, of how many
    runs = 0
    while True:
        steps: Iterator[tuple[int, int]] = iter(path)
        taken: list[tuple[int, int]] = []

        def choose(count: int, steps: Iterator[tuple[int, int]] = steps, taken: list[tuple[int, int]] = taken) -> int:
            choice, expected = next(steps, (0, count))
            assert expected == count, "a run is not repeatable"
            taken.append((choice, count))
            return choice

        one_run(choose)
        runs += 1
        while taken and taken[-1][0] + 1 == taken[-1][1]:
            taken.pop()
        if not taken:
            return runs
        choice, count = taken.pop()
        path = [*taken, (choice + 1, count)]


def check(events: list[tuple[str, str, str]]) -> None:
    """No final dot for a user goes to a backend after a move away from it has returned."""
    left: defaultdict[str, set[str]] = defaultdict(set)
    for what, user, backend in events:
        if what == "swapped":
            left[user].discard(backend)  # it may be taken up again before the move says so
        elif what == "moved":
            left[user] = set(BACKENDS) - {backend}
        elif what == "dot":
            assert backend not in left[user], f"a dot to {backend} for {user}, who was moved: {events}"


# --- every order ------------------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[World, type[Delivery]], list[Callable[[], None]]]] = {
    "a move": lambda world, kind: [
        lambda: deliver(world, "alice@x", kind),
        lambda: move(world, "alice@x", "new"),
    ],
    "away and back": lambda world, kind: [
        lambda: deliver(world, "alice@x", kind),
        lambda: moves(world, "alice@x", ["reject", "new"]),
    ],
    "an edit, a reload of somebody else's, a drain": lambda world, kind: [
        lambda: deliver(world, "alice@x", kind),
        lambda: reload_of_others(world),
        lambda: move(world, "alice@x", "new"),
    ],
}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("actors", KINDS)
@pytest.mark.parametrize("world", [World(), World(full=1), World(uncertain_reply=True)], ids=["", "full", "uncertain"])
def test_no_dot_after_a_move_in_any_order(actors: str, world: World) -> None:
    outcomes: set[tuple[str, ...]] = set()

    def one_run(choose: Callable[[int], int]) -> None:
        this = World(world.full, world.uncertain_reply)
        run(KINDS[actors](this, Delivery), choose)
        check(this.events)
        assert len(this.in_flight) == 0
        outcomes.add(tuple(what for what, _, _ in this.events))

    runs = all_orders(one_run)
    assert runs > 90
    # Both ends are met: delivered before the move, refused after it.
    assert any("dot" in outcome for outcome in outcomes) and any("dot" not in outcome for outcome in outcomes)


# --- random orders of more --------------------------------------------------------------------------------------------


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.sampled_from(["alice@x", "bob@x"]), min_size=1, max_size=4),
    st.lists(
        st.tuples(st.sampled_from(["alice@x", "bob@x"]), st.sampled_from(["new", "reject", "hold", "old"])),
        max_size=4,
    ),
    st.integers(0, 2),
    st.randoms(use_true_random=False),
)
def test_no_dot_after_a_move_among_many(
    deliveries: list[str], asked: list[tuple[str, str]], full: int, random: Random
) -> None:
    world = World(full)
    actors: list[Callable[[], None]] = [partial(deliver, world, user, Delivery) for user in deliveries]
    # One operator a user: two who move the same one to different backends get what they deserve.
    for user in ("alice@x", "bob@x"):
        mine = [backend for whom, backend in asked if whom == user]
        actors += [partial(moves, world, user, mine)]
    run(actors, random.randrange)
    check(world.events)
    assert len(world.in_flight) == 0
    answered = [event for event in world.events if event[0] == "answered"]
    assert len(answered) == len(deliveries)


# --- what the model must be able to see -------------------------------------------------------------------------------


class LooksFirst(Delivery):
    """Looks the routes up, and enters then: the gap is between the two."""

    def _pass_commit_point(self, session: BackendSession) -> None:
        session.stirred()
        self.commit.look()
        self.commit.enter()


class DoesNotLook(Delivery):
    def _pass_commit_point(self, session: BackendSession) -> None:
        self.commit.enter()


class DoesNotEnter(Delivery):
    def _pass_commit_point(self, session: BackendSession) -> None:
        session.stirred()
        self.commit.look()


class LooksOnce(Delivery):
    """Trusts its first look after it has waited for room."""

    looked = False

    def _pass_commit_point(self, session: BackendSession) -> None:
        if not self.looked:
            super()._pass_commit_point(session)
        self.looked = True


@pytest.mark.parametrize(("mutant", "full"), [(LooksFirst, 0), (DoesNotLook, 0), (DoesNotEnter, 0), (LooksOnce, 1)])
def test_the_model_sees_a_wrong_commit_point(mutant: type[Delivery], full: int) -> None:
    def one_run(choose: Callable[[int], int]) -> None:
        world = World(full)
        run(KINDS["a move"](world, mutant), choose)
        check(world.events)

    with pytest.raises(AssertionError, match="who was moved"):
        all_orders(one_run)


def test_the_model_sees_a_missing_drain() -> None:
    def one_run(choose: Callable[[int], int]) -> None:
        world = World()
        actors: list[Callable[[], None]] = [
            lambda: deliver(world, "alice@x", Delivery),
            lambda: move(world, "alice@x", "new", draining=lambda world, user: None),
        ]
        run(actors, choose)
        check(world.events)

    with pytest.raises(AssertionError, match="who was moved"):
        all_orders(one_run)
