# SPDX-License-Identifier: GPL-3.0-or-later
"""One at a time, and those in a hurry first: who is offline does not wait for those who are about to be parked.

It does not know what is done in a turn.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Nobody waits behind somebody who came later and is in no greater hurry."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._taken = False
        self._waiting: list[tuple[bool, int]] = []  # not urgent, when it came
        self._count = 0

    @contextmanager
    def turn(self, *, urgent: bool) -> Iterator[None]:
        with self._change:
            self._count += 1
            me = (not urgent, self._count)
            self._waiting.append(me)
            try:
                while self._taken or min(self._waiting) != me:
                    self._change.wait()
                self._taken = True
            finally:
                self._waiting.remove(me)
        try:
            yield
        finally:
            with self._change:
                self._taken = False
                self._change.notify_all()
