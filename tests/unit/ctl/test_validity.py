# SPDX-License-Identifier: GPL-3.0-or-later
"""An order is good from a moment on, and up to one, of the clock that it names."""

import pytest

from lmtp_proxy.ctl import validity
from lmtp_proxy.ctl.validity import ALWAYS, Moment, Validity, moment, now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    at = [1000.0]
    monkeypatch.setattr(validity, "_clock", lambda: at[0])
    return at


def test_it_is_over_when_its_time_is_up(clock: list[float]) -> None:
    order = Validity(not_after=now().later(5))
    assert not order.over
    clock[0] += 4.9
    assert not order.over
    clock[0] += 0.2
    assert order.over


def test_it_is_early_until_its_time_comes(clock: list[float]) -> None:
    order = Validity(not_before=now().later(5))
    assert order.early == 5
    clock[0] += 7
    assert order.early == 0


def test_after_a_restart_of_the_machine_nothing_of_before_is_good_or_to_be_waited_for() -> None:
    before = Moment("another-boot", now().seconds + 1000)
    assert Validity(not_after=before).over
    assert Validity(not_before=before).early == 0


def test_without_limits_it_is_good_always() -> None:
    assert not ALWAYS.over and ALWAYS.early == 0


def test_it_goes_there_and_back_as_text() -> None:
    here = now()
    there = moment(str(here))
    assert there.boot == here.boot and abs(there.seconds - here.seconds) < 0.001
    assert 0.0005 >= (there.ahead or 0.0) > -5  # as text it is rounded to a millisecond


@pytest.mark.parametrize("text", ["", "/", "a/", "/5", "5", "a/b", "a/-5", "a/1e9", "a\n/5", "a/nan"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match="BOOT/SECONDS"):
        moment(text)
