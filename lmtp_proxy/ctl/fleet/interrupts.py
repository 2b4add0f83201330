# SPDX-License-Identifier: GPL-3.0-or-later
"""SIGINT, SIGTERM and SIGHUP are counted, and wake whoever waits: what was begun on other hosts is ended first."""

import os
import signal
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

INTERRUPTED = 130  # as shells have it
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """While it is entered. A signal that was ignored stays so.

    Attributes:
        count: how many came.
    """

    def __init__(self) -> None:
        self.count = 0
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before: dict[signal.Signals, Any] = {}

    def fileno(self) -> int:
        """Readable once one has come that `seen` was not told of."""
        return self._reading

    def seen(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._reading, 512):
                pass

    def __enter__(self) -> "Interrupts":
        for number in _SIGNALS:
            if (before := signal.getsignal(number)) is not signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._came)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        os.close(self._reading)
        os.close(self._writing)

    def _came(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        with suppress(OSError):
            os.write(self._writing, b"x")
