# SPDX-License-Identifier: GPL-3.0-or-later
"""The places at the mailboxes of a backend: never above the limit, none lost, first come first served."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from random import Random

import gevent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtp_proxy.backends import mailboxes as module
from lmtp_proxy.backends.mailbox import Mailbox
from lmtp_proxy.backends.mailboxes import Mailboxes


@dataclass(frozen=True)
class Recipient:
    mailbox: Mailbox


FOREVER = 60.0


def of(limit: int) -> Mailboxes:
    made = Mailboxes("store")
    made.configure(limit)
    return made


# Whoever has a place has its mailbox: here of one test.
_routed: list[Mailbox] = []


@pytest.fixture(autouse=True)
def _nobody() -> None:
    _routed.clear()


def at(places: Mailboxes, name: str = "a") -> Mailbox:
    _routed.append(places.at(name))
    return _routed[-1]


def enter(places: Mailboxes, name: str = "a") -> bool:
    return places.enter(at(places, name))


def leave(places: Mailboxes, number: int = 1, name: str = "a", *, replied: bool) -> None:
    places.leave([Recipient(at(places, name))] * number, replied=replied)


def wait(places: Mailboxes, wanted: int = 1, seconds: float = FOREVER, stays: Callable[[], bool] = lambda: True) -> int:
    return places.wait(at(places), wanted, time.monotonic() + seconds, lambda: None, stays, owed)


def owed(_since: float) -> bool:
    """The mailbox is what stands still."""
    return True


def waiting(places: Mailboxes, wanted: int = 1, seconds: float = FOREVER) -> "gevent.Greenlet[..., int]":
    """In the queue when this returns."""
    greenlet = gevent.spawn(wait, places, wanted, seconds)
    gevent.sleep(0)
    return greenlet


def fill(places: Mailboxes, number: int) -> None:
    assert all(enter(places) for _ in range(number))


# --- the limit --------------------------------------------------------------------------------------------------------


def test_each_mailbox_has_so_many() -> None:
    places = of(2)
    assert [enter(places) for _ in range(3)] == [True, True, False]
    assert enter(places, "b")
    assert repr(places) == "<Mailboxes of store taken=3 limit=2 waiting=0>"
    leave(places, replied=True)
    assert [enter(places), enter(places)] == [True, False]


def test_what_is_given_back_goes_to_whoever_came_first() -> None:
    places = of(2)
    fill(places, 2)
    first, second = waiting(places), waiting(places)
    assert not enter(places)
    for greenlet in (first, second):
        assert not greenlet.ready()
        leave(places, replied=True)
        assert not enter(places), "in front of whoever waits"
        assert greenlet.get(timeout=1) == 1
    assert "taken=2 limit=2 waiting=0" in repr(places)


def test_no_more_wait_than_may_be_delivered() -> None:
    places = of(2)
    fill(places, 2)
    greenlets = [waiting(places), waiting(places)]
    assert wait(places) == 0
    leave(places, 2, replied=True)
    assert gevent.joinall(greenlets, timeout=1) and [each.value for each in greenlets] == [1, 1]


def test_in_one_of_several_processes_as_many_wait_as_if_it_were_alone() -> None:
    places = of(2)
    places.configure(1, 2)
    fill(places, 1)
    queue = [waiting(places) for _ in range(3)]
    assert wait(places) == 0
    for _ in range(3):
        leave(places, replied=True)
    assert [each.get(timeout=FOREVER) for each in queue] == [1, 1, 1]


def test_where_no_reply_is_owed_it_does_not_stand_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOVES", 0.05)
    places = of(1)
    fill(places, 1)
    began = time.monotonic()
    answers = iter([False, False, False, True])
    asked: list[float] = []

    def owes(since: float) -> bool:
        asked.append(since)
        return next(answers)

    assert places.wait(at(places), 1, began + FOREVER, lambda: None, lambda: True, owes) == 0
    assert len(asked) == 4 and 4 * 0.05 <= time.monotonic() - began < FOREVER
    assert all(since <= time.monotonic() - 0.05 for since in asked)
    assert places.wait(at(places), 1, time.monotonic() + 0.2, lambda: None, lambda: True, lambda since: False) == 0


def test_several_are_gathered_for_one_and_those_behind_wait() -> None:
    places = of(3)
    fill(places, 3)
    many, one = waiting(places, 2), waiting(places)
    leave(places, replied=True)
    gevent.sleep(0)
    assert not many.ready() and not one.ready()
    leave(places, 2, replied=True)
    assert (many.get(timeout=1), one.get(timeout=1)) == (2, 1)


def test_who_is_out_of_time_takes_what_there_was() -> None:
    places = of(3)
    fill(places, 2)
    assert wait(places, 3, 0.05) == 1
    assert wait(places, 1, -1) == 0
    assert "taken=3" in repr(places)


# --- progress ---------------------------------------------------------------------------------------------------------


def test_it_is_waited_for_while_there_are_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOVES", 0.2)
    places = of(2)
    fill(places, 2)
    began = time.monotonic()
    assert wait(places) == 0
    assert 0.15 < time.monotonic() - began < 2
    began = time.monotonic()
    assert wait(places) == 0, "nothing has come since"
    assert time.monotonic() - began < 0.15
    leave(places, replied=True)
    fill(places, 1)
    greenlet = waiting(places)
    gevent.sleep(0.1)
    leave(places, replied=True)
    assert greenlet.get(timeout=1) == 1


def test_what_ends_without_a_reply_is_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOVES", 0.1)
    places = of(2)
    fill(places, 2)
    gevent.sleep(0.15)
    leave(places, replied=False)
    fill(places, 1)
    assert wait(places) == 0
    leave(places, 2, replied=False)
    fill(places, 2)  # nobody knows of what was before
    began = time.monotonic()
    assert wait(places) == 0
    assert time.monotonic() - began > 0.05


# --- whoever does not wait any more -----------------------------------------------------------------------------------


def test_who_is_killed_gives_back_what_they_had() -> None:
    places = of(3)
    fill(places, 3)
    many, behind = waiting(places, 2), waiting(places)
    leave(places, replied=True)
    many.kill()
    assert behind.get(timeout=1) == 1
    assert "taken=3 limit=3 waiting=0" in repr(places)


def test_what_fails_before_the_wait_leaves_no_turn() -> None:
    places = of(1)
    fill(places, 1)

    def fails() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        places.wait(at(places), 1, time.monotonic() + 9, fails, lambda: True, owed)
    assert "waiting=0" in repr(places)
    leave(places, replied=True)
    assert enter(places)


def test_a_change_of_routes_wakes_whoever_is_elsewhere_now() -> None:
    places = of(1)
    fill(places, 1)
    moved = gevent.spawn(wait, places, 1, FOREVER, lambda: False)
    stays = waiting(of(1))  # of another backend
    places.routes_changed()
    assert moved.get(timeout=1) == 0
    stays.get(timeout=1)
    greenlet = waiting(places)
    places.routes_changed()
    gevent.sleep(0.05)
    assert not greenlet.ready()
    leave(places, replied=True)
    assert greenlet.get(timeout=1) == 1


# --- limits that change -----------------------------------------------------------------------------------------------


def test_a_higher_limit_lets_them_in_and_a_lower_one_waits() -> None:
    places = of(2)
    fill(places, 2)
    greenlet = waiting(places)
    places.configure(3)
    assert greenlet.get(timeout=1) == 1
    places.configure(1)
    greenlet = waiting(places)
    leave(places, 2, replied=True)
    gevent.sleep(0.02)
    assert not greenlet.ready()
    leave(places, replied=True)
    assert greenlet.get(timeout=1) == 1


def test_a_store_teaches_a_lower_one_and_it_is_forgotten(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_REMEMBERED_LESSON", 0.1)
    places = of(10)
    fill(places, 7)
    asked_at = time.monotonic()
    for limit in (6, 5):
        places.learn(at(places), asked_at)
        leave(places, replied=True)
        assert places.limit == limit
    assert [record.getMessage() for record in caplog.records] == [
        "backend store takes fewer recipients of one user at a time than max_per_user=10: for 0.1 s it is given fewer; "
        "set max_per_user to its limit (of Dovecot 2.4: lmtp_user_concurrency_limit)"
    ]
    assert not enter(places)
    gevent.sleep(0.15)
    assert enter(places) and places.limit == 10


def test_one_lesson_does_not_say_all() -> None:
    """The store has others from elsewhere: with one of ours it is not down to nothing."""
    places = of(8)
    for limit in (4, 2, 1, 1):
        fill(places, 1)
        places.learn(at(places), time.monotonic())
        leave(places, replied=True)
        assert places.limit == limit
    places.configure(1)
    assert places.limit == 1


@pytest.mark.parametrize("asked", [12, 10, 6, 5])
def test_refusals_that_are_read_when_the_accepted_ones_are_over_teach_no_less_than_it_takes(asked: int) -> None:
    """It takes 4, and its answers to those that it refused come last. All are one lesson, or a few."""
    places = of(20)
    taken = []
    for _ in range(5):
        number = min(asked, int(places.limit))
        fill(places, number)
        asked_at = time.monotonic()
        leave(places, 4, replied=True)
        for _ in range(number - 4):
            places.learn(at(places), asked_at)
            leave(places, replied=True)
        taken.append(places.limit)
    assert taken[-1] == 4 and min(taken) == 4
    assert taken[0] >= 10, "at once no less than half"


def test_refusals_for_several_mailboxes_are_one_lesson() -> None:
    places = of(20)
    asked_at = time.monotonic()
    for mailbox in "aabb":
        assert enter(places, mailbox)
    for mailbox in "abab":
        places.learn(at(places, mailbox), asked_at)
        leave(places, 1, mailbox, replied=True)
    assert places.limit == 10


def test_fewer_connections_are_fewer_places_for_a_while() -> None:
    """No mailbox takes the last of those that there are; that somebody wants it to have more than all is heeded."""
    places = of(10)
    places.narrow(4, of=20, seconds=0.1)
    assert places.limit == 2
    fill(places, 2)
    assert not enter(places)
    gevent.sleep(0.15)
    assert enter(places) and places.limit == 10
    for connections, limit in ((1, 1), (2, 1), (19, 9), (20, 10)):
        places.narrow(connections, of=20, seconds=FOREVER)
        assert places.limit == limit
    places.narrow(1, of=20, seconds=FOREVER)
    places.configure(100)
    assert places.limit == 100
    places.narrow(1, of=20, seconds=FOREVER)
    assert places.limit == 5


def test_who_was_refused_waits_for_the_end_of_another_whatever_the_limit() -> None:
    places = of(20)
    fill(places, 6)
    waits = []
    for under_way in (5, 4):
        places.learn(at(places), time.monotonic())
        places.leave_crowded(at(places))
        assert f"taken={under_way} " in repr(places) and places.limit >= 5
        waits.append(waiting(places))
    gevent.sleep(0)
    assert not any(greenlet.ready() for greenlet in waits)
    for greenlet in waits:
        leave(places, replied=True)
        assert greenlet.get(timeout=1) == 1
        assert "taken=4 " in repr(places)
    leave(places, 4, replied=True)
    enter(places)
    places.learn(at(places), time.monotonic())
    places.leave_crowded(at(places))
    assert wait(places) == 1, "there is no other of ours"
    assert not places._under_way


# --- out of order -----------------------------------------------------------------------------------------------------


def test_who_has_what_others_wait_for_does_not_wait() -> None:
    places = of(1)
    fill(places, 1)
    began = time.monotonic()
    greenlet = gevent.spawn(
        places.wait,
        at(places),
        1,
        began + FOREVER,
        lambda: None,
        lambda: True,
        owed,
        lambda: bool(places.waiting(at(places, "b"))),
    )
    gevent.sleep(0.3)
    assert not greenlet.ready()
    assert enter(places, "b")
    other = gevent.spawn(places.wait, at(places, "b"), 1, began + FOREVER, lambda: None, lambda: True, owed)
    assert greenlet.get(timeout=1) == 0
    leave(places, 1, "b", replied=True)
    assert other.get(timeout=1) == 1
    other = gevent.spawn(places.wait, at(places, "b"), 1, began + FOREVER, lambda: None, lambda: True, owed)
    gevent.sleep(0)
    told: list[bool] = []
    got = places.wait(
        at(places),
        1,
        began + FOREVER,
        lambda: told.append(True),
        lambda: True,
        owed,
        lambda: bool(places.waiting(at(places, "b"))),
    )
    assert (got, told) == (0, [])
    other.kill()


def test_a_mailbox_is_one_as_long_as_anybody_has_it_and_then_forgotten() -> None:
    places = of(2)
    mine = places.at("a")
    assert places.enter(mine) and places.at("a") is mine and places.at("b") is not mine
    for number in range(1000):
        mailbox = places.at(str(number))
        assert places.enter(mailbox)
        places.leave([Recipient(mailbox)], replied=True)
    assert len(places._mailboxes) == 2 and repr(places.at("a")) == "<Mailbox a taken=1>"
    del mine
    assert "taken=0" in repr(places)


class GaveUp(Exception):
    """As a client that has gone."""


# --- all at once ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), limit=st.integers(1, 4), people=st.integers(2, 20))
def test_never_above_the_limit_none_lost_first_come_first_served(seed: int, limit: int, people: int) -> None:
    random = Random(seed)
    places = of(limit)
    has = {"a": 0, "b": 0}
    came: dict[str, list[object]] = {"a": [], "b": []}

    def asked(mailbox: str, wanted: int) -> int:
        """As `wait`; whoever came before has places by then, or has given up."""
        mine: list[object] = []

        def before_wait() -> None:
            mine.append(places._queues[at(places, mailbox)][-1])
            came[mailbox] += mine

        until = time.monotonic() + random.choice([-1, 0.002, 9, 9])
        got = places.wait(at(places, mailbox), wanted, until, before_wait, lambda: random.random() < 0.7, owed)
        if mine and got == wanted:
            before = came[mailbox][: came[mailbox].index(mine[0])]
            assert not any(turn in before for turn in places._queues.get(at(places, mailbox), ()))
        has[mailbox] += got
        assert has[mailbox] <= limit
        return got

    def one() -> None:
        for _ in range(random.randrange(1, 4)):
            gevent.sleep(random.random() * 0.002)
            mailbox, got = random.choice("ab"), 0
            with gevent.Timeout(random.choice([0.001, 9, 9]), GaveUp()), suppress(GaveUp):
                got = asked(mailbox, random.randrange(1, limit + 1))
            gevent.sleep(random.random() * 0.002)
            has[mailbox] -= got
            leave(places, got, mailbox, replied=random.random() < 0.8)

    greenlets = [gevent.spawn(one) for _ in range(people)]
    while not all(greenlet.ready() for greenlet in greenlets):
        gevent.sleep(0.001)
        if random.random() < 0.1:
            places.routes_changed()
    for greenlet in greenlets:
        greenlet.get()
    assert has == {"a": 0, "b": 0}
    assert "taken=0" in repr(places) and "waiting=0" in repr(places)
    assert not places._queues and not places._heard and not places._under_way
