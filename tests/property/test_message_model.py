"""The same as in test_cutover_model, for whole messages: several recipients, some of whom are on hold at first.

Here the real Transaction, Parking, Destinations and StaticTable run as well, with all that waits replaced by a pause:
for the end of a hold, for a backend's replies, for the client's next words. What is remembered of a route from one step
to the next is at stake, not the commit point itself. Mutants stay here, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtp_proxy.backends.introductions import Who
from lmtp_proxy.backends.pool import BackendPool
from lmtp_proxy.backends.session import BackendSession
from lmtp_proxy.config.values import Backend, Config, UnixAddress
from lmtp_proxy.delivery.client import Client
from lmtp_proxy.delivery.commit import ProcessParts
from lmtp_proxy.delivery.in_flight import InFlight
from lmtp_proxy.delivery.parking import Parking
from lmtp_proxy.delivery.transaction import Transaction
from lmtp_proxy.delivery.uncertain_log import UncertainLog
from lmtp_proxy.generations.destination import Destination
from lmtp_proxy.generations.generation import Generation
from lmtp_proxy.routing.keys import KeyRules
from lmtp_proxy.routing.routing import Routing
from lmtp_proxy.routing.static_table import StaticTable
from lmtp_proxy.wire.envelope import Envelope, plain_recipient
from lmtp_proxy.wire.reply import Reply
from tests.property.test_cutover_model import BACKENDS, FOREVER, all_orders, check, pause, run

OK, GO_ON = b"250 2.0.0 ok\r\n", b"354 go on\r\n"
USERS = {"alice@x": "old", "bob@x": "old", "held@x": "hold", "kept@x": "hold"}
Said = list[tuple[str, int]]


class World:
    """One run: what is in force, what happened; as in the other model. finals: who was answered what at the end."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, str]] = []
        self.finals: list[tuple[str, int]] = []
        self.in_flight = InFlight()
        self.parking = PausingParking()
        self.users = dict(USERS)
        self.pools = {name: ModelPool(self, backend) for name, backend in BACKENDS.items()}
        self.generation = self._generation(1)
        uncertain = UncertainLog(lambda: self.generation, self.in_flight)
        self.parts = ProcessParts(lambda: self.generation, self.in_flight, uncertain)

    def _generation(self, number: int) -> Generation:
        routing = Routing(StaticTable(dict(sorted(self.users.items()))), KeyRules(), None)
        return Generation(number, Config("/c", (UnixAddress("/s"),), "proxy"), routing, self.pools)

    def swap(self, routes: Mapping[str, str]) -> None:
        """The end of a reload: one reference changes, and those who are parked are woken."""
        self.users.update(routes)
        self.generation = self._generation(self.generation.number + 1)
        self.parking.generation_changed()


class PausingParking(Parking):
    """The end of a hold comes at any time, with or without a reload before."""

    changes = 0

    def wait_for_change(self, deadline: float) -> bool:
        before = self.changes
        pause()
        return self.changes > before

    def generation_changed(self) -> None:
        self.changes += 1


class Talk:
    """As much of a Stream as a backend's is used for here: something may have come whenever it is waited for."""

    received = b"?"
    ended = full = paused = _roomy = False

    def look(self) -> bool:
        return False

    def wait(self, deadline: float) -> bool:
        return True


class ModelSession(BackendSession):
    """A backend that says yes to all. Its replies, and what comes out of turn, are waited for."""

    def __init__(self, world: World, backend: Backend) -> None:
        super().__init__(backend, "proxy")
        self.stream = Talk()  # type: ignore[assignment]
        self.protocol.receive_verbatim(b"220 ready\r\n")
        self.protocol.offers({"pipelining"})
        self._world = world
        self._users: list[str] = []
        self._says = b""

    def put(self, octets: bytes) -> None:
        for line in octets.split(b"\r\n")[:-1]:
            if line.startswith(b"RCPT"):
                self._users.append(line[9:-1].decode())
            self._says += GO_ON if line == b"DATA" else OK

    def send_now(self, octets: bytes) -> int:
        assert octets == b"last\r\n.\r\n" and not self._says
        self._world.events += [("dot", user, self.backend.name) for user in self._users]
        self._says = OK * len(self._users)
        self._users = []
        return len(octets)

    def unread(self) -> bool:
        return False

    def stirred(self) -> bool:
        pause()
        return False

    def replies(self) -> Sequence[Reply]:
        pause()
        says, self._says = self._says, b""
        return self.protocol.receive(says)

    def close(self) -> None:
        self.stream = None


class ModelPool(BackendPool):
    def __init__(self, world: World, backend: Backend) -> None:
        super().__init__(backend, "proxy")
        self._world = world

    def reserve(
        self,
        before_wait: Callable[[], None] | None,
        seconds: float | None = None,
        *,
        again: bool = False,
        who: Who | None = None,
    ) -> BackendSession | None:
        return ModelSession(self._world, self.backend)

    def release(self, session: BackendSession) -> None:
        pass

    discard = reset = release


# --- the actors -------------------------------------------------------------------------------------------------------

Groups = Sequence[Sequence[str]]


def send(world: World, groups: Groups, kind: type[Transaction]) -> None:
    """One message. groups: its recipients, as many at a time as the client says in one go; DATA with the last ones."""
    said: list[int] = []

    def answer(*replies: Reply) -> None:
        said.extend(reply.code for reply in replies)

    transaction = kind(Client("s", answer, lambda: None), Envelope(b"<>"), world.parts, world.parking)
    for group in groups:
        if group is not groups[0]:
            pause()
        paths = [f"<{user}>".encode() for user in group]
        if len(groups) == 1:  # as a session does with an envelope that came in one piece
            transaction.add((), paths)
        else:
            transaction.add(map(plain_recipient, paths))
        transaction.answer_recipients(data_follows=group is groups[-1])
    users = [user for group in groups for user in group]
    accepted = [user for user, code in zip(users, said, strict=True) if code == 250]
    said.clear()
    if not accepted:
        transaction.abort("nobody takes it")
        return
    if asked := transaction.start_data():
        transaction.await_data(asked)
    pause()
    transaction.finish(b"last\r\n", 6, None, FOREVER)
    world.finals += zip(accepted, said, strict=True)


def moves(world: World, steps: Sequence[Mapping[str, str]]) -> None:
    """Reloads one after the other, and after each a drain of those whose routes it has changed."""
    rules = KeyRules()
    for routes in steps:
        if routes is not steps[0]:
            pause()
        world.swap(routes)
        world.events += [("swapped", user, backend) for user, backend in routes.items()]
        pause()
        until = world.in_flight.last
        pause(lambda users=set(routes), until=until: not world.in_flight.drain(users, rules, until))  # type: ignore[misc]
        world.events += [("moved", user, backend) for user, backend in routes.items()]


def check_all(world: World) -> None:
    check(world.events)
    assert len(world.in_flight) == len(world.parking) == 0
    dots = [user for what, user, _ in world.events if what == "dot"]
    delivered = [user for user, code in world.finals if code == 250]
    assert sorted(dots) == sorted(delivered), "2xx for whom the dot went out, and for nobody else"
    assert all(code in (250, 451) for _, code in world.finals)


# --- every order ------------------------------------------------------------------------------------------------------

MESSAGES: dict[str, Groups] = {
    "held first": [["held@x", "alice@x"]],
    "held last": [["alice@x", "held@x"]],
    "two held": [["held@x", "alice@x", "kept@x"]],
    "held, then not": [["held@x"], ["alice@x"]],
    "not, then held": [["alice@x"], ["held@x"]],
    "nobody held": [["alice@x", "bob@x"]],
}
MOVES: dict[str, Sequence[Mapping[str, str]]] = {
    "at once": [{"held@x": "new", "alice@x": "new"}],
    "the hold first": [{"held@x": "old"}, {"alice@x": "new"}],
    "the hold last": [{"alice@x": "new"}, {"held@x": "new"}],
}


def every_order(groups: Groups, steps: Sequence[Mapping[str, str]], kind: type[Transaction]) -> set[tuple[str, ...]]:
    """What became of alice's mail in all orders there are: where it went, or the code of her final reply."""
    ends: set[tuple[str, ...]] = set()

    def one_run(choose: Callable[[int], int]) -> None:
        world = World()
        run([partial(send, world, groups, kind), partial(moves, world, steps)], choose)
        check_all(world)
        dots = [backend for what, user, backend in world.events if what == "dot" and user == "alice@x"]
        ends.add((*dots, *[str(code) for user, code in world.finals if user == "alice@x"]))

    assert all_orders(one_run) > 20
    return ends


@pytest.mark.parametrize("steps", MOVES)
@pytest.mark.parametrize("groups", MESSAGES)
def test_no_dot_after_a_move_of_one_of_several(groups: str, steps: str) -> None:
    assert every_order(MESSAGES[groups], MOVES[steps], Transaction) == {("old", "250"), ("new", "250"), ("451",)}


# --- random orders of more --------------------------------------------------------------------------------------------

user = st.sampled_from(sorted(USERS))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(st.lists(user, min_size=1, max_size=3), min_size=1, max_size=2), min_size=1, max_size=3),
    st.lists(st.dictionaries(user, st.sampled_from(["new", "old", "reject", "hold"]), min_size=1), max_size=4),
    st.randoms(use_true_random=False),
)
def test_no_dot_after_a_move_among_many_messages(
    messages: list[list[list[str]]], steps: list[dict[str, str]], random: Random
) -> None:
    world = World()
    run([*(partial(send, world, groups, Transaction) for groups in messages), partial(moves, world, steps)],
        random.randrange)  # fmt: skip
    check_all(world)


# --- what the model must be able to see -------------------------------------------------------------------------------


class TrustsWhoWasNotHeld(Transaction):
    """After a hold, takes the reload that ended it for the one in which all were routed."""

    def _park(self, before: frozenset[Destination]) -> None:
        super()._park(before)
        self._message.generation = self._parts.current().number


class TrustsTheLast(Transaction):
    """Takes the generation of the last recipient for that of all."""

    def add(self, recipients: object, plain: Sequence[bytes] = ()) -> Generation:
        generation = super().add(recipients, plain)  # type: ignore[arg-type]
        self._message.generation = self.new[-1].generation
        return generation


class TrustsTheFirst(Transaction):
    """Never looks again, although a reload came since."""

    def finish(self, last: bytes, size: int, refusal: Reply | None, dot: float) -> None:
        self._message.generation = self._parts.current().number
        super().finish(last, size, refusal, dot)


@pytest.mark.parametrize(
    ("mutant", "groups", "steps"),
    [
        (TrustsWhoWasNotHeld, "held first", "at once"),
        (TrustsWhoWasNotHeld, "held last", "at once"),
        (TrustsTheLast, "not, then held", "the hold last"),
        (TrustsTheFirst, "nobody held", "at once"),
    ],
)
def test_the_model_sees_who_trusts_a_route_of_before(mutant: type[Transaction], groups: str, steps: str) -> None:
    with pytest.raises(AssertionError, match="who was moved"):
        every_order(MESSAGES[groups], MOVES[steps], mutant)
