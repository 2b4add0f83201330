# SPDX-License-Identifier: GPL-3.0-or-later
"""Values of several backends in the order of the recipients."""

from itertools import chain, repeat

from lmtp_proxy.config_values import Backend, UnixAddress
from lmtp_proxy.destination import Destination
from lmtp_proxy.envelope import Recipient
from lmtp_proxy.fan_out import in_order
from lmtp_proxy.pool import BackendPool
from lmtp_proxy.routing import Route

A, B = (BackendPool(Backend(name, UnixAddress(f"/{name}")), "proxy") for name in "ab")
RECIPIENT = Recipient(b"<u@x>", "u", "x")
TO_A, TO_B, NOWHERE = (Destination(RECIPIENT, Route(("u@x",)), 1, pool) for pool in (A, B, None))


def test_each_gets_the_next_of_its_own() -> None:
    values = {A: iter([1, 2, 3]), B: iter([10, 20]), None: iter([0])}
    assert in_order([TO_A, TO_B, TO_B, NOWHERE, TO_A, TO_A], values) == [1, 10, 20, 0, 2, 3]


def test_the_first_that_has_none_is_the_end() -> None:
    assert in_order([TO_A, TO_B, TO_A], {A: iter([1, 2]), B: iter([])}) == [1]
    assert in_order([TO_B, TO_A], {A: iter([1, 2]), B: iter([])}) == []
    assert in_order([], {}) == []


def test_values_that_never_end_are_taken_as_needed() -> None:
    assert in_order([TO_A, TO_B, TO_A], {A: chain([""], repeat("why")), B: repeat("")}) == ["", "", "why"]
