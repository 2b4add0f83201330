# SPDX-License-Identifier: GPL-3.0-or-later
"""Places at the mailboxes of a transaction's new recipients, before any backend is asked for them.

Who has to wait holds no place at a backend, and waits at one mailbox after the other in an order that all transactions
share: two that wait for each other would both fail. Who has been given a place that stands behind in it, as a client
that says one command after the other may, waits only while nobody waits for that. Of deliveries only their commit
points are known here.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from lmtp_proxy.backends.failure import Failure
from lmtp_proxy.backends.pool import BackendPool
from lmtp_proxy.delivery.commit import CommitPoint
from lmtp_proxy.delivery.in_flight import InFlight
from lmtp_proxy.generations.destination import Destination
from lmtp_proxy.generations.generation import CurrentGeneration, Generation


def enter_mailboxes(groups: Mapping[BackendPool, Sequence[Destination]]) -> bool:
    """Take a place at the mailbox of each of these, or none at all."""
    for pool, group in groups.items():
        if not pool.mailboxes.enter_all(group):
            for entered, those in groups.items():
                if entered is pool:
                    return False
                entered.mailboxes.leave(those, replied=False)
    return True


def leave_mailboxes(destinations: Iterable[Destination]) -> None:
    """Give the places back, without a reply."""
    for destination in destinations:
        if destination.pool is not None:
            destination.pool.mailboxes.leave((destination,), replied=False)


def place_of(destination: Destination) -> tuple[str, str]:
    """The backend and the mailbox, in the order in which they are waited for."""
    return destination.pool.backend.name if destination.pool else "", destination.mailbox.name


def admit(
    new: Sequence[Destination],
    entered: list[Destination],
    held: Sequence[Destination],
    began: float,
    before_wait: Callable[[], None],
    stays: Callable[[Destination], bool],
    owed: Callable[[Destination, float], bool],
) -> Mapping[int, Failure]:
    """As `enter_mailboxes`, after a wait if need be; by position those of `new` who are turned away, and why.

    Args:
        entered: takes the others as they get their places, those without a backend apart.
        held: those who have their place already, in the same transaction.
        began: when the wait began (time.monotonic).
        before_wait: called before each wait.
        stays: asked whenever routes have changed, whether this one's mail still goes to the same mailbox.
        owed: asked before it is given up, whether the backend owes a reply for this mailbox since a time.
    """
    turned_away: dict[int, Failure] = {}
    positions: dict[tuple[str, str], list[int]] = {}
    for position, destination in enumerate(new):
        if destination.pool is not None:
            positions.setdefault(place_of(destination), []).append(position)
    has = Counter(map(place_of, held))
    last = max(has, default=("", ""))
    for place, wanted in sorted(positions.items()):
        first = new[wanted[0]]
        pool = first.pool
        assert pool is not None
        # Nobody waits for what is given back only when the same transaction has ended.
        room = max(0, int(pool.mailboxes.limit) - has[place])
        turned_away.update(dict.fromkeys(wanted[room:], Failure.TOO_MANY_OF_ONE))
        wanted = wanted[:room]
        if wanted:
            until = began + pool.backend.timeouts.connect
            yields = None if last < place else partial(_is_waited_for, held, place)
            got = _enter(pool, first, len(wanted), until, before_wait, stays, owed, yields)
            entered += [new[position] for position in wanted[:got]]
            turned_away.update(dict.fromkeys(wanted[got:], Failure.MAILBOX_BUSY))
    return turned_away


def _enter(
    pool: BackendPool,
    destination: Destination,
    wanted: int,
    until: float,
    before_wait: Callable[[], None],
    stays: Callable[[Destination], bool],
    owed: Callable[[Destination, float], bool],
    yields: Callable[[], bool] | None,
) -> int:
    def waits() -> None:
        pool.counts.held_back += wanted
        before_wait()

    return pool.mailboxes.wait(
        destination.mailbox, wanted, until, waits, lambda: stays(destination), partial(owed, destination), yields
    )


def _is_waited_for(held: Iterable[Destination], place: tuple[str, str]) -> bool:
    """By others: one of these, from where the transaction itself waits on, in the order."""
    return any(
        each.pool is not None and each.pool.mailboxes.waiting(each.mailbox) > (place_of(each) == place)
        for each in held
        if place_of(each) >= place
    )


def is_same_mailbox(one: Destination, other: Destination) -> bool:
    """Of the same backend, too; or neither has one."""
    return one.mailbox is other.mailbox or (one.pool is None and other.pool is None)


def routed_anew(generation: Generation, destinations: Iterable[Destination]) -> list[Destination]:
    """In this one, but for those without a backend."""
    of = generation.destinations.of
    return [each if each.pool is None else of(each.recipient) for each in destinations]


def is_still_there(current: CurrentGeneration, destination: Destination) -> bool:
    """Its mail goes to the same mailbox now."""
    return is_same_mailbox(destination, current().destinations.of(destination.recipient))


def is_owed(in_flight: InFlight, destination: Destination, since: float) -> bool:
    """Its backend has had the final dot of a message to its mailbox since this time, and has not answered."""
    pool, mailbox = destination.pool, destination.mailbox
    return pool is not None and any(
        isinstance(flight, CommitPoint) and flight.owes(pool, mailbox, since) for flight in in_flight
    )
