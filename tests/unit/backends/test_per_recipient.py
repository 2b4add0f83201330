# SPDX-License-Identifier: GPL-3.0-or-later
"""What is made of the number of final replies that a backend gives."""

import logging
import math
import time

import pytest

from lmtp_proxy.backends.per_recipient import PerRecipient
from lmtp_proxy.backends.pool import BackendPool
from lmtp_proxy.config.values import Backend, UnixAddress

HOUR = 3600


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock: its one value may be changed."""
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    return clock


@pytest.fixture
def limited(now: list[float]) -> PerRecipient:
    found = PerRecipient("a")
    for _ in range(3):
        found.gave(1, 3)
    assert found.limit == 1
    return found


def test_three_in_a_row_are_a_limit_and_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    found = PerRecipient("a[/a]")
    limits = []
    with caplog.at_level(logging.WARNING):
        for replies, of in ((1, 3), (1, 2), (2, 3), (1, 3)):
            found.gave(replies, of)
            limits.append(found.limit)
    assert limits == [math.inf, math.inf, 1, 1]
    assert [record.getMessage() for record in caplog.records] == [
        "backend a[/a]: gave 1 of 3 final replies: does it answer per recipient (RFC 2033)? "
        "recipients_per_transaction: 1 is the cure",
        "backend a[/a]: gave too few final replies 3 times in a row: it gets one recipient in a transaction",
    ]


@pytest.mark.parametrize(
    ("between", "limit"), [((2, 2), math.inf), ((1, 1), 1), ((0, 2), 1), ((0, 1), 1)], ids=["all", "one", "0/2", "0/1"]
)
def test_only_all_of_several_end_a_row(between: tuple[int, int], limit: float) -> None:
    """A single one has nothing to say about it, nor has a store that gives no reply at all."""
    found = PerRecipient("a")
    for replies, of in ((1, 3), (1, 3), between, (1, 3)):
        found.gave(replies, of)
    assert found.limit == limit


def test_two_are_tried_once_in_a_while(limited: PerRecipient, now: list[float]) -> None:
    """One transaction at a time: that it has begun ends the try for all others."""
    for pause in (1, 2, 4, 8, 16, 24, 24):
        now[0] += pause * HOUR - 1
        limited.gave(1, 1)
        assert limited.limit == 1
        now[0] += 1
        limited.gave(1, 1)
        assert limited.limit == 2
        limited.sends(1)
        assert limited.limit == 2
        limited.sends(2)
        assert limited.limit == 1
        limited.gave(1, 2)
        assert limited.limit == 1


@pytest.mark.parametrize("tried", [True, False])
def test_all_replies_to_several_end_it(
    tried: bool, limited: PerRecipient, now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """Tried again, or under way since before."""
    if tried:
        now[0] += HOUR
        limited.gave(1, 1)
        limited.sends(2)
    with caplog.at_level(logging.WARNING):
        limited.gave(2, 2)
    assert limited.limit == math.inf
    assert [record.getMessage() for record in caplog.records] == [
        "backend a: gave 2 of 2 final replies: it gets as many recipients in a transaction as before"
    ]
    for _ in range(3):
        assert limited.limit == math.inf
        limited.gave(1, 2)
    now[0] += HOUR
    limited.gave(1, 1)
    assert limited.limit == 2


@pytest.mark.parametrize(("configured", "before"), [(0, math.inf), (5, 5), (1, 1)])
def test_the_pool_obeys_the_least(configured: int, before: float) -> None:
    pool = BackendPool(Backend("a", UnixAddress("/a"), recipients_per_transaction=configured), "proxy")
    pool.sends(3)
    assert (pool.most_recipients, pool.splits) == (before, before < math.inf)
    for _ in range(3):
        assert pool.most_recipients == before
        pool.gave(1, 3)
    assert (pool.most_recipients, pool.splits) == (1, True)
    pool.gave(2, 2)
    assert (pool.most_recipients, pool.splits) == (before, before < math.inf)


def test_an_operator_can_read_it(limited: PerRecipient) -> None:
    assert repr(limited) == "<PerRecipient a short=3 limit=1>"
