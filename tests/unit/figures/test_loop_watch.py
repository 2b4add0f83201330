# SPDX-License-Identifier: GPL-3.0-or-later
"""How often the event loop is looked at, and what a stall of it is seen as."""

import time
from collections.abc import Iterator

import gevent
import pytest

from lmtp_proxy.counts import Tallies
from lmtp_proxy.delivery.in_flight import InFlight
from lmtp_proxy.figures.loop_watch import LoopWatch
from tests.support.flight import SomeFlight


class Site:
    """looks: what has happened up to now."""

    def __init__(self) -> None:
        self.tallies = Tallies()
        self.in_flight = InFlight()
        self.watch = LoopWatch(self.tallies, self.in_flight)

    @property
    def looks(self) -> int:
        return sum(self.tallies.lateness.counts)

    def pauses(self, count: int) -> list[str]:
        """How it looks after each of so many looks, without waiting for them."""
        shown = []
        for _ in range(count):
            self.watch._look()
            shown.append(repr(self.watch))
        return shown


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.tallies.ended = made.tallies.accepted
    if made.watch._timer is not None:
        made.watch._look()


def every(*seconds: str) -> list[str]:
    return [f"<LoopWatch every {each} s>" for each in seconds]


def test_without_clients_it_sleeps(site: Site) -> None:
    assert repr(site.watch) == "<LoopWatch asleep>"
    site.tallies.accepted = 1
    site.watch.wake()
    site.tallies.ended = 1
    gevent.sleep(0.25)
    assert repr(site.watch) == "<LoopWatch asleep>" and site.looks == 1
    gevent.sleep(0.15)
    assert site.looks == 1


def test_clients_without_mail_are_looked_after_less_and_less(site: Site) -> None:
    site.tallies.accepted = 1
    site.watch.wake()
    assert site.pauses(8) == every("0.2", "0.4", "0.8", "1.6", "3.2", "5", "5", "5")
    site.watch.wake()
    assert repr(site.watch) in every("5"), "one more client changes nothing"


def test_mail_brings_it_back(site: Site) -> None:
    site.tallies.accepted = 1
    site.watch.wake()
    site.pauses(6)
    flight = SomeFlight()
    site.in_flight.begin(flight)
    assert site.pauses(3) == every("0.1", "0.1", "0.1")
    site.in_flight.leave(flight)
    assert site.pauses(2) == every("0.2", "0.4")
    site.in_flight.last += 1  # one has come and gone between two looks
    assert site.pauses(2) == every("0.1", "0.2")


def test_a_stall_is_seen(site: Site) -> None:
    site.tallies.accepted = 1
    site.watch.wake()
    time.sleep(0.5)  # the loop does nothing meanwhile
    gevent.sleep(0.01)
    assert 0.35 < site.tallies.longest < 10
    assert sum(site.tallies.lateness.counts[:8]) == 0 and site.looks == 1
