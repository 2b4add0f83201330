# SPDX-License-Identifier: GPL-3.0-or-later
"""Several deliveries at once: opened, waited for, and what they gave put into the order of the recipients.

Nothing is known here of what is said to the client or to a backend.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import TypeVar

import gevent

from lmtp_proxy.delivery import Delivery
from lmtp_proxy.destination import Destination
from lmtp_proxy.pool import BackendPool
from lmtp_proxy.stream import Stream, wait_for_any

_Each = TypeVar("_Each")
_just_asked, _pool = attrgetter("just_asked"), attrgetter("pool")


def in_order(
    destinations: Sequence[Destination], of_each: Mapping[BackendPool | None, Iterator[_Each]]
) -> list[_Each]:
    """The next value of its pool for each of these, up to the first whose pool has no more."""
    # `next` on one that has no more ends the list, as any StopIteration does.
    return list(map(next, map(of_each.__getitem__, map(_pool, destinations))))


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

    advanced: called each time that some have gone on, before the next wait. An error of ours in one of them is raised
    when the others are done.
    """
    failed: Exception | None = None
    pending = deliveries
    if pending and all(map(_just_asked, pending)):
        _wait(pending, before_wait)  # no answer can have come yet
    while pending:
        deliveries, pending = pending, []
        for delivery in deliveries:
            delivery.just_asked = False  # it may have its answer already, where another one took its time
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
    if failed is not None:
        raise failed


def wait_for_one(
    delivery: Delivery, before_wait: Callable[[], None] | None, advanced: Callable[[], None] | None
) -> None:
    """The same for a single one, as nearly all messages have."""
    while True:
        if delivery.just_asked:
            delivery.just_asked = False  # no answer can have come yet
        else:
            try:
                if delivery.advance():
                    return
            except Exception:
                delivery.abandon("internal error")
                raise
            if advanced is not None:
                advanced()
        if before_wait is not None:
            before_wait()
        session = delivery.session
        if session is not None and session.stream is not None:
            session.stream.wait(delivery.deadline)


def _wait(pending: list[Delivery], before_wait: Callable[[], None] | None) -> None:
    """Until the first of them can go on, or is too late."""
    if before_wait is not None:
        before_wait()
    streams: list[Stream] = []
    deadline = math.inf
    for delivery in pending:
        delivery.just_asked = False
        session = delivery.session
        if session is not None and session.stream is not None:
            streams.append(session.stream)
        if delivery.deadline < deadline:
            deadline = delivery.deadline
    if streams:
        wait_for_any(streams, deadline)
