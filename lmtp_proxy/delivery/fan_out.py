# SPDX-License-Identifier: GPL-3.0-or-later
"""Several deliveries at once: for whom each is, opened, waited for, and what they gave in the order of the recipients.

Nothing is known here of what is said to the client or to a backend.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias, TypeVar

import gevent

from lmtp_proxy.backends.failure import Failure
from lmtp_proxy.backends.pool import BackendPool
from lmtp_proxy.delivery.delivery import Delivery
from lmtp_proxy.delivery.state import AWAITS_SESSION, DeliveryState
from lmtp_proxy.generations.destination import Destination
from lmtp_proxy.loop.stream import Stream, wait_for_any

# Seconds for the first of several, before whoever can go on does. Short against all that people notice, and so long
# that the timer, which looks at all connections there are, takes no time that can be measured.
_A_LITTLE = 0.02
# Seconds for all to have a session, before those that have one give it back for the time being. Far more than a
# connection on a network takes, or a place of a store that is busy and well; short against what people notice.
_BEFORE_GIVING_BACK = 0.2
_AWAITS_REPLY = (DeliveryState.ASKED, DeliveryState.DOT)
_ANEW = DeliveryState.ANEW
_Each = TypeVar("_Each")

Share: TypeAlias = BackendPool | Delivery | Failure | None
"""What a recipient of a transaction belongs to: the delivery to a backend, a further one where that takes only so many
recipients in a transaction, what turned them away before the backend was asked, or None without a backend."""


def by_pool(
    destinations: Sequence[Destination],
) -> tuple[Mapping[BackendPool, Sequence[Destination]], Sequence[Destination]]:
    """Those of each backend, and those without one."""
    if len(destinations) == 1 and (pool := destinations[0].pool) is not None:
        return {pool: destinations}, ()
    groups: dict[BackendPool, list[Destination]] = defaultdict(list)
    nowhere: list[Destination] = []
    for destination in destinations:
        pool = destination.pool
        (nowhere if pool is None else groups[pool]).append(destination)
    return groups, nowhere


def is_too_much(delivery: Delivery, groups: Mapping[BackendPool, Sequence[Destination]]) -> bool:
    """Its backend does not take so many recipients in one transaction."""
    pool = delivery.pool
    return len(groups.get(pool, ())) + len(delivery.accounts.told_yes) > pool.most_recipients


def in_order(shares: Iterable[Share], of_each: Mapping[Share, Iterator[_Each]]) -> list[_Each]:
    """The next value of each of these, up to the first that has no more."""
    found: list[_Each] = []
    for share in shares:
        value = next(of_each[share], None)
        if value is None:
            break
        found.append(value)
    return found


def open_all(deliveries: Sequence[Delivery]) -> None:
    """New connections, in a greenlet each if there are several."""
    if len(deliveries) == 1:
        deliveries[0].open()
        return
    greenlets = [gevent.spawn(delivery.open) for delivery in deliveries]
    try:
        gevent.joinall(greenlets)
    except BaseException:
        gevent.killall(greenlets)
        raise
    for greenlet in greenlets:
        greenlet.get()


def gather(deliveries: Sequence[Delivery], before_wait: Callable[[], None], meanwhile: Callable[[], None]) -> None:
    """All that somebody is asked for have a session at the same time, or have failed.

    While one is waited for longer than a little, the others give theirs back: whoever keeps one and waits for another
    keeps others waiting, who may do the same. A little becomes longer each time, so that there is an end where all are
    slow. Each waits for its own place as long as a connect may take.

    deliveries: in an order that all transactions share. Of two that have given back what the other one wants, that one
    is the first to do it again which keeps what stands behind what it wants.

    Args:
        before_wait: called before each wait.
        meanwhile: called before they give it back, for what may be asked and said without the one that is waited for.
            Whose session turns out then to be dead gets another one.
    """
    a_little = patience = _BEFORE_GIVING_BACK
    waited: dict[Delivery, float] = defaultdict(float)
    again = False
    while missing := [delivery for delivery in deliveries if delivery.lacks_session]:
        before_wait()
        getting = {delivery: gevent.spawn(_get_session, delivery, waited, again=again) for delivery in missing}
        try:
            while not _are_ready(getting, patience):
                meanwhile()
                unfinished = [each for each, greenlet in getting.items() if not greenlet.ready()]
                if anew := [each for each in deliveries if each.state is _ANEW and each not in unfinished]:
                    getting.update((each, gevent.spawn(_get_session, each, waited, again=again)) for each in anew)
                elif unfinished:
                    for delivery in deliveries:
                        if delivery not in unfinished:
                            delivery.give_back()
                    before_wait()
                    gevent.joinall([getting[delivery] for delivery in unfinished], count=1)
        except BaseException:
            gevent.killall([*getting.values()])
            raise
        for greenlet in getting.values():
            greenlet.get()
        again = True
        a_little *= 2
        patience = a_little if deliveries[-1].lacks_session else a_little / 4


def _are_ready(getting: "Mapping[Delivery, gevent.Greenlet[..., None]]", patience: float) -> bool:
    """Maybe after a little: where one comes, others may be about to."""
    gevent.joinall([*getting.values()], timeout=patience)
    return all(greenlet.ready() for greenlet in getting.values())


def _get_session(delivery: Delivery, waited: dict[Delivery, float], *, again: bool) -> None:
    """waited: seconds for a place, before and after. again: it has given one back."""
    if delivery.state is DeliveryState.NEW:
        began = time.monotonic()
        seconds = max(0.0, delivery.pool.backend.timeouts.connect - waited[delivery])
        delivery.take_place(_flushed, seconds, again=again)
        waited[delivery] += time.monotonic() - began
    if delivery.state in AWAITS_SESSION:
        delivery.open()


def _flushed() -> None:
    """Before the wait for all of them."""


def wait_for_all(
    deliveries: list[Delivery], before_wait: Callable[[], None] | None, advanced: Callable[[], None] | None
) -> None:
    """Wait until each has done its step, all under their own deadlines.

    advanced: called each time that some have gone on, before the next wait. An error of ours in one of them is raised
    when the others are done.
    """
    failed: Exception | None = None
    pending: list[Delivery] = []
    for delivery in deliveries:
        if delivery.state not in _AWAITS_REPLY:
            break
    else:  # no answer can have come yet
        if deliveries:
            deliveries, pending = _wait_for_first(deliveries, before_wait)
    while deliveries or pending:
        for delivery in deliveries:
            try:
                if not delivery.advance():
                    pending.append(delivery)
            except Exception as error:  # noqa: BLE001  (raised again below)
                failed = error
                delivery.abandon("internal error")
        if pending:
            if advanced is not None:
                advanced()
            _wait(pending, before_wait)
        deliveries, pending = pending, []
    if failed is not None:
        raise failed


def wait_for_one(
    delivery: Delivery, before_wait: Callable[[], None] | None, advanced: Callable[[], None] | None
) -> None:
    """The same for a single one, as nearly all messages have it."""
    waits = delivery.state in _AWAITS_REPLY  # no answer can have come yet
    while True:
        if waits:
            if before_wait is not None:
                before_wait()
            session = delivery.session
            if session is not None and session.stream is not None:
                session.stream.wait(session.deadline.due)
        try:
            if delivery.advance():
                return
        except Exception:
            delivery.abandon("internal error")
            raise
        if advanced is not None:
            advanced()
        waits = True


def _wait_for_first(
    asked: list[Delivery], before_wait: Callable[[], None] | None
) -> tuple[list[Delivery], list[Delivery]]:
    """Wait a little for the first of those that were just asked; which of them have said something, and which have not.

    Mostly it has the message's first recipient, before whom nobody can be answered. So no time is lost, and by then
    the others have mostly spoken, too, although the loop may not have seen it: that saves a wait, and a write to the
    client.
    """
    if before_wait is not None:
        before_wait()
    until = time.monotonic() + _A_LITTLE
    heard: list[Delivery] = []
    silent: list[Delivery] = []
    for delivery in asked:
        session = delivery.session
        if session is None or (stream := session.stream) is None:
            heard.append(delivery)
            continue
        if until:
            stream.wait(min(until, session.deadline.due))
            until = 0.0
        (heard if stream.look() else silent).append(delivery)
    return heard, silent


def _wait(pending: list[Delivery], before_wait: Callable[[], None] | None) -> None:
    """Until the first of them can go on, or is too late."""
    if before_wait is not None:
        before_wait()
    if len(pending) == 1:
        [delivery] = pending
        session = delivery.session
        if session is not None and session.stream is not None:
            session.stream.wait(session.deadline.due)
        return
    streams: list[Stream] = []
    deadline = math.inf
    for delivery in pending:
        session = delivery.session
        if session is not None and session.stream is not None:
            streams.append(session.stream)
            deadline = min(deadline, session.deadline.due)
    if streams:
        wait_for_any(streams, deadline)
