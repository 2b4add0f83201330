# SPDX-License-Identifier: GPL-3.0-or-later
"""One at a time, those in a hurry first, and the others in the order in which they came."""

from __future__ import annotations

import threading
import time

from lmtp_proxy.ctl.migrate.turns import Turns


def test_who_comes_when() -> None:
    turns = Turns()
    order: list[str] = []
    inside = 0

    def work(name: str, urgent: bool) -> None:
        nonlocal inside
        with turns.turn(urgent=urgent):
            inside += 1
            assert inside == 1
            order.append(name)
            time.sleep(0.01)
            inside -= 1

    threads = [
        threading.Thread(target=work, args=(name, name.startswith("urgent")))
        for name in ("first", "second", "urgent 1", "third", "urgent 2")
    ]
    with turns.turn(urgent=False):
        for thread in threads:
            thread.start()
            time.sleep(0.02)
    for thread in threads:
        thread.join(5)
    assert order == ["urgent 1", "urgent 2", "first", "second", "third"]


def test_a_failure_ends_a_turn() -> None:
    turns = Turns()
    for _ in range(2):
        try:
            with turns.turn(urgent=True):
                raise ValueError
        except ValueError:
            pass
