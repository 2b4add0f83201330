# SPDX-License-Identifier: GPL-3.0-or-later
"""What is remembered of drains. The rest is tests of faults, and in test_manager."""

import time

import pytest

from lmtp_proxy.generations.reloads import NotedDrain, history_json


def test_a_clock_that_is_set_back_makes_no_wait_less_than_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    drained = NotedDrain(time.time(), 1, ("alice",))
    back = time.time() - 3600
    monkeypatch.setattr(time, "time", lambda: back)
    drained.ended(True, 0)
    [event] = history_json([drained])
    assert 0 <= drained.waited < 60 and event["waited"] == drained.waited
    assert set(event) == {"kind", "time", "count", "users", "done", "waited", "uncertain"}
