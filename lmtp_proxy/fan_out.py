# SPDX-License-Identifier: GPL-3.0-or-later
"""Several deliveries at once: opened, waited for, and what they gave put into the order of the recipients.

Nothing is known here of what is said to the client or to a backend.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import TypeVar

import gevent

from lmtp_proxy.delivery import Delivery
from lmtp_proxy.destination import Destination
from lmtp_proxy.pool import BackendPool
from lmtp_proxy.stream import wait_for_any

_Each = TypeVar("_Each")
_just_asked, _pool = attrgetter("just_asked"), attrgetter("pool")


def in_order(
    destinations: Sequence[Destination], of_each: Mapping[BackendPool | None, Iterable[_Each]]
) -> list[_Each]:
    """The next value of its pool for each of these, up to the first whose pool has no more."""
    values = {pool: iter(each) for pool, each in of_each.items()}
    # `next` on one that has no more ends the list, as any StopIteration does.
    return list(map(next, map(values.__getitem__, map(_pool, destinations))))


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


def wait_for_all(
    deliveries: list[Delivery], before_wait: Callable[[], None] | None, advanced: Callable[[], None] | None
) -> None:
    """Wait until each has done its step, all under their own deadlines.

    advanced: called each time that some have gone on. An error of ours in one of them is raised when the others are
    done.
    """
    if len(deliveries) == 1:
        _wait_for_one(deliveries[0], before_wait, advanced)
        return
    failed: Exception | None = None
    pending = deliveries
    if pending and all(map(_just_asked, pending)):
        _wait(pending, before_wait)  # no answer can have come yet
    while pending:
        deliveries, pending = pending, []
        for delivery in deliveries:
            try:
                if not delivery.advance():
                    pending.append(delivery)
            except Exception as error:  # noqa: BLE001  (raised again below)
                failed = error
                delivery.abandon("internal error")
        if advanced is not None:
            advanced()
        if pending:
            _wait(pending, before_wait)
    if failed is not None:
        raise failed


def _wait_for_one(
    delivery: Delivery, before_wait: Callable[[], None] | None, advanced: Callable[[], None] | None
) -> None:
    """The same for one, as nearly all messages have."""
    while True:
        try:
            done = not delivery.just_asked and delivery.advance()
        except Exception:
            delivery.abandon("internal error")
            raise
        if advanced is not None and not delivery.just_asked:
            advanced()
        if done:
            return
        if before_wait is not None:
            before_wait()
        delivery.just_asked = False
        session = delivery.session
        if session is not None and session.stream is not None:
            session.stream.wait(delivery.deadline)


def _wait(pending: list[Delivery], before_wait: Callable[[], None] | None) -> None:
    """Until the first of them can go on, or is too late."""
    if before_wait is not None:
        before_wait()
    for delivery in pending:
        delivery.just_asked = False
    if streams := [stream for delivery in pending if (stream := delivery.stream) is not None]:
        wait_for_any(streams, min([delivery.deadline for delivery in pending]))
