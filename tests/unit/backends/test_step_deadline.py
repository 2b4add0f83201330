# SPDX-License-Identifier: GPL-3.0-or-later
"""How long each step may take; nothing here waits."""

import math
import time

import pytest

from lmtp_proxy.backends.failure import BackendError, Failure
from lmtp_proxy.backends.step_deadline import StepDeadline
from lmtp_proxy.config.values import Timeouts

TIMES = Timeouts(command=60, data_write=120, final_reply=500)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock: its one value may be changed."""
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    return clock


@pytest.mark.parametrize(("command", "first_look"), [(60, 5), (4, 2), (10, 5)])
def test_the_envelope_is_looked_at_before_its_time(now: list[float], command: int, first_look: int) -> None:
    deadline = StepDeadline(Timeouts(command=command))
    deadline.envelope()
    assert (deadline.due, deadline.asked_at) == (1000 + first_look, 1000)
    now[0] = 1000 + first_look - 0.1
    assert not deadline.is_first_look()
    now[0] = 1000 + first_look
    assert deadline.is_first_look() and deadline.due == 1000 + command
    assert not deadline.is_first_look()
    now[0] = 1000 + command
    assert not deadline.is_first_look()


def test_each_reply_to_the_envelope_has_its_time_and_all_have_theirs(now: list[float]) -> None:
    deadline = StepDeadline(TIMES)
    deadline.envelope()
    for at, due in ((1059, 1119), (1118, 1178), (1177, 1237), (1236, 1240), (1239, 1240)):
        now[0] = at
        deadline.next_reply()
        assert deadline.due == due and not deadline.wait_on("no answer in time")
    now[0] = 1240
    with pytest.raises(BackendError, match="no answer in time") as caught:
        deadline.wait_on("no answer in time")
    assert caught.value.failure is Failure.SILENT


def test_data_by_itself_has_the_time_of_one_reply(now: list[float]) -> None:
    deadline = StepDeadline(TIMES)
    deadline.envelope()
    now[0] = 1230
    deadline.data()
    assert (deadline.due, deadline.asked_at) == (1290, math.inf)
    now[0] = 1289
    assert not deadline.is_first_look()


@pytest.mark.parametrize(("dot", "due"), [(1000, 1120), (700, 1120), (600, 1100)])
def test_room_is_waited_for_no_longer_than_the_final_reply(now: list[float], dot: float, due: float) -> None:
    deadline = StepDeadline(TIMES)
    deadline.write(dot)
    assert deadline.due == due


def test_half_a_reply_has_a_second(now: list[float]) -> None:
    deadline = StepDeadline(TIMES)
    deadline.early_reply()
    assert deadline.due == 1001
