# SPDX-License-Identifier: GPL-3.0-or-later
"""Several backends at once: values in the order of the recipients, and who goes on when."""

import time
from collections.abc import Iterator
from itertools import chain, repeat

import gevent
import pytest

from lmtp_proxy.backends.pool import BackendPool
from lmtp_proxy.config.values import Backend, UnixAddress
from lmtp_proxy.delivery.fan_out import Share, by_pool, in_order, wait_for_all
from lmtp_proxy.delivery.state import DeliveryState
from lmtp_proxy.generations.destination import Destination
from lmtp_proxy.routing.routing import Route
from lmtp_proxy.wire.envelope import Recipient
from tests.unit.delivery.test_delivery_envelope import ALICE, BOB, DATA, YES, Site

A, B = (BackendPool(Backend(name, UnixAddress(f"/{name}")), "proxy") for name in "ab")
RECIPIENT = Recipient(b"<u@x>", "u", "x")
TO_A, TO_B, NOWHERE = (Destination(RECIPIENT, Route(("u@x",)), 1, pool) for pool in (A, B, None))


def in_data(site: Site) -> bool:
    return site.delivery.state is DeliveryState.DATA


def test_recipients_of_each_backend_in_their_order() -> None:
    assert by_pool([TO_A]) == ({A: [TO_A]}, ())
    assert by_pool([NOWHERE]) == ({}, [NOWHERE])
    groups, nowhere = by_pool([TO_B, NOWHERE, TO_A, TO_B, TO_A, TO_A])
    assert (list(groups.items()), nowhere) == ([(B, [TO_B] * 2), (A, [TO_A] * 3)], [NOWHERE])
    assert by_pool([]) == ({}, [])


def test_each_gets_the_next_of_its_own() -> None:
    values: dict[Share, Iterator[int]] = {A: iter([1, 2, 3]), B: iter([10, 20]), None: iter([0])}
    assert in_order([A, B, B, None, A, A], values) == [1, 10, 20, 0, 2, 3]


def test_the_first_that_has_none_is_the_end() -> None:
    assert in_order([A, B, A], {A: iter([1, 2]), B: iter([])}) == [1]
    assert in_order([B, A], {A: iter([1, 2]), B: iter([])}) == []
    assert in_order([], {}) == []


def test_values_that_never_end_are_taken_as_needed() -> None:
    assert in_order([A, B, A], {A: chain([""], repeat("why")), B: repeat("")}) == ["", "", "why"]


def test_the_first_is_waited_for_only_a_little_before_another_goes_on() -> None:
    first, second = Site(ALICE), Site(BOB)
    seen: list[tuple[bool, bool, bool]] = []
    began = time.monotonic()

    def advanced() -> None:
        seen.append((in_data(first), in_data(second), time.monotonic() - began < 10))
        gevent.spawn(first.theirs.send, YES + YES + DATA)

    second.theirs.send(YES + YES + DATA)
    wait_for_all([first.delivery, second.delivery], None, advanced)
    assert seen == [(False, True, True)] and in_data(first)
    first.close()
    second.close()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_who_has_spoken_when_the_first_does_goes_on_with_it(order: tuple[int, int]) -> None:
    sites = Site(ALICE), Site(BOB)
    waits: list[None] = []
    advances: list[None] = []
    for number in order:
        sites[number].theirs.send(YES + YES + DATA)
    wait_for_all([site.delivery for site in sites], lambda: waits.append(None), lambda: advances.append(None))
    assert all(map(in_data, sites)) and (len(waits), len(advances)) == (1, 0)
    for site in sites:
        site.close()


def test_one_that_closes_is_no_reason_to_forget_the_other() -> None:
    first, second = Site(ALICE), Site(BOB)
    for site in (first, second):
        assert site.delivery.session is not None
        site.delivery.session.protocol.transactions = 1  # nothing is to be asked again
    second.theirs.close()
    gevent.spawn_later(0.2, first.theirs.send, YES + YES + DATA)
    wait_for_all([first.delivery, second.delivery], None, None)
    assert in_data(first) and second.delivery.trouble
    first.close()
    second.close()
