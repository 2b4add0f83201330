# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast a message comes, while its client is waited for."""

import pytest

from lmtp_proxy.clients.pace import RATE, Pace


def pace(octets: int, every: float, seconds: float) -> Pace:
    made = Pace(60.0)
    for _ in range(int(seconds / every)):
        made.came(octets, every)
    return made


@pytest.mark.parametrize("every", [0.1, 1.0, 30.0, 61.0])
def test_a_drip_is_slow_after_the_time(every: float) -> None:
    assert not pace(1, every, 59.0).slow
    assert pace(1, every, 122.0).slow


@pytest.mark.parametrize("every", [0.1, 1.0, 30.0, 61.0])
def test_what_is_as_fast_as_it_should_be_is_never_slow(every: float) -> None:
    assert not pace(round(RATE * every) + 1, every, 600.0).slow


def test_silence_is_slow() -> None:
    assert pace(0, 1.0, 61.0).slow


def test_what_came_fast_before_does_not_count_for_ever() -> None:
    made = pace(10_000_000, 1.0, 10.0)
    for _ in range(59):
        made.came(1, 1.0)
        assert not made.slow
    for _ in range(10):
        made.came(1, 1.0)
    assert "slow" in repr(made)
    made.came(100_000, 1.0)
    assert "slow" not in repr(made)


def test_where_nobody_is_waited_for_no_time_goes_by() -> None:
    """A store stalls, and the client has long sent what is taken in then."""
    made = Pace(60.0)
    for _ in range(1000):
        made.came(1, 0.0)
    assert not made.slow
