# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run tells the proxy, and that nobody waits for it."""

import time

from lmtp_proxy.ctl.client import ControlClient
from lmtp_proxy.ctl.migrate.events import Silent, Summary
from lmtp_proxy.ctl.migrate.telling import TellingWatcher
from tests.support.ctl import FakeControl, http
from tests.support.patience import SOON

SUMMARY = Summary(1, 3, 2, 0, 1, 0, 0, {}, 12.0, None, 2)


def test_the_last_word_has_the_end_and_no_names() -> None:
    with FakeControl({"POST /migration": [http(200, {})]}) as control:
        watcher = TellingWatcher(Silent(), ControlClient(control.path), "old", "new")
        watcher.began(3, 1)
        watcher.user_ended("alice", "copied", None, None)
        watcher.user_ended("alice", "done", 1.0, None)
        watcher.user_ended("bob", "failed", None, "sync: exit 1")
        watcher.user_ended("carol", "copied", None, None)
        began = time.monotonic()
        watcher.ended(SUMMARY)
        assert time.monotonic() - began < SOON
        said = control.bodies("POST /migration")
    assert said[0]["running"] is True and said[-1].pop("seconds") >= 0
    assert said[-1] == {"from": "old", "to": "new", "running": False, "total": 3, "before": 1, "done": 1, "copied": 1,
                        "failed": 1, "attention": 0}  # fmt: skip
    assert "alice" not in str(said) and "bob" not in str(said)


def test_a_proxy_that_does_not_know_it_is_left_alone() -> None:
    """It is one of before; a run goes on as it always did."""
    with FakeControl({"POST /migration": [http(404, {"error": "there is no /migration"})]}) as control:
        watcher = TellingWatcher(Silent(), ControlClient(control.path), "old", "new")
        watcher.began(1, 0)
        watcher._thread.join(SOON)
        assert not watcher._thread.is_alive()
        watcher.user_ended("alice", "done", 1.0, None)
        watcher.ended(SUMMARY)
        assert len(control.bodies("POST /migration")) == 1


def test_a_proxy_that_is_away_holds_up_nobody() -> None:
    watcher = TellingWatcher(Silent(), ControlClient("/none/control"), "old", "new")
    watcher.began(1, 0)
    watcher.user_ended("alice", "done", 1.0, None)
    began = time.monotonic()
    watcher.ended(SUMMARY)
    assert time.monotonic() - began < SOON and not watcher._thread.is_alive()
