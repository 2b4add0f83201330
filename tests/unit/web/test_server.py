# SPDX-License-Identifier: GPL-3.0-or-later
"""Many who ask at once cost hardly more than one, and nobody is told what was before they asked."""

import time

import gevent
import pytest

from lmtp_proxy.web import server
from lmtp_proxy.web.server import SharedAnswer


class Counted:
    """What it was asked for, and how often."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.begun = 0
        self.shared = SharedAnswer(self._make)

    def _make(self) -> int:
        self.begun += 1
        mine = self.begun
        gevent.sleep(self.seconds)
        return mine


def test_those_who_ask_at_once_get_the_same() -> None:
    counted = Counted()
    jobs = [gevent.spawn(counted.shared.get) for _ in range(100)]
    assert [job.get() for job in jobs] == [1] * 100
    assert counted.begun == 1


def test_nobody_gets_an_answer_that_was_begun_before_he_asked() -> None:
    counted = Counted(0.02)
    first = gevent.spawn(counted.shared.get)
    gevent.sleep(0.01)
    assert counted.begun == 1
    later = [gevent.spawn(counted.shared.get) for _ in range(50)]
    assert first.get() == 1
    assert [job.get() for job in later] == [2] * 50


def test_a_quarter_of_all_time_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_REST_LEAST", 0.0)
    counted = Counted(0.02)
    began = time.monotonic()
    assert [counted.shared.get() for _ in range(4)] == [1, 2, 3, 4]
    assert time.monotonic() - began > 4 * 0.02 + 3 * 3 * 0.02


def test_an_error_is_for_all_who_asked_and_not_for_the_next() -> None:
    errors: list[Exception] = [ValueError("x")]

    def make() -> int:
        if errors:
            raise errors.pop()
        return 7

    shared = SharedAnswer(make)

    def asked() -> object:
        try:
            return shared.get()
        except ValueError as error:
            return str(error)

    assert [job.get() for job in [gevent.spawn(asked) for _ in range(3)]] == ["x"] * 3
    assert shared.get() == 7
    assert repr(shared) == "<SharedAnswer at rest>"
