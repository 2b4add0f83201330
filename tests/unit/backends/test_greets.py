"""How many connections a store greets at a time."""

import logging
import time

import pytest

from lmtp_proxy.backends.greets import Greets


def test_what_was_found_out_holds_for_a_while_and_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    caplog.set_level(logging.WARNING)
    greets = Greets("old[/s]", 20)
    assert (greets.most, greets.now(), str(greets)) == (20, 20, "max_connections")
    for _ in range(2):
        greets.learn(3)
        assert (greets.most, greets.now(), str(greets)) == (3, 3, "it greets no more")
    now += 59.9
    assert greets.now() == 3
    now += 0.2
    assert (greets.most, greets.now(), greets.most, str(greets)) == (3, 20, 20, "max_connections")
    greets.learn(3)
    assert caplog.text.count("old[/s] greets no more than 3 connections at a time, of max_connections=20") == 1
    greets.learn(2)
    assert caplog.text.count("greets no more than 2") == 1


def test_it_is_one_at_least_and_no_more_than_may_be() -> None:
    greets = Greets("old[/s]", 5)
    greets.learn(0)
    assert greets.most == 1
    greets.learn(9)
    assert greets.most == 5
