# SPDX-License-Identifier: GPL-3.0-or-later
"""Log lines in batches: written at most every 50 ms, in order, and never waited for.

What the channel does not take is kept and tried again; of more than is kept, the newest are counted and then reported.
It knows neither sockets nor what the lines say.
"""

import logging
import time
from collections.abc import Callable
from typing import TypeAlias

from lmtp_proxy.log_channel import Channel

Later: TypeAlias = Callable[[float, Callable[[], None]], None]
"""Calls something after so many seconds."""

INTERVAL = 0.05  # seconds
KEPT = 10_000
"""Lines that wait for a channel which takes none: some megabytes."""

_FULL = 64  # lines that are written before the interval is over: 0.2 ms, in which nobody is served
_SOON = 0.002  # seconds: a syslog socket takes 10 datagrams where nobody has raised net.unix.max_dgram_qlen
_DEAD = 1.0  # seconds: twice as long after each attempt that got rid of no line, up to this
_LAST = 1.0  # seconds for what is left when the process ends


class LogBatch:
    """All lines of the process on their way to `channel`. later: None until the loop runs; each line goes at once."""

    def __init__(self, channel: Channel, later: Later | None) -> None:
        self.channel = channel
        self._later = later
        self._lines: list[bytes] = []
        self._asked = False  # for a flush
        self._lost = 0
        self._pause = _SOON

    def __repr__(self) -> str:
        return f"<LogBatch to {self.channel.name}: {len(self._lines)} lines wait, {self._lost} lost>"

    def add(self, level: int, *texts: str) -> None:
        """Lines. level: of the module logging."""
        self.take(self.channel.lines(level, texts))

    def take(self, new: list[bytes]) -> None:
        """Lines as the channel has them."""
        lines = self._lines
        before = len(lines)
        lines += new
        after = len(lines)
        if self._asked and after < _FULL:
            return
        if after > KEPT:
            kept = max(before, KEPT)
            self._lost += after - kept
            del lines[kept:]
            after = kept
        if self._later is None or after // _FULL > before // _FULL:
            self.flush()
        elif not self._asked and lines:
            self._asked = True
            self._later(INTERVAL, self._flush_now)

    def flush(self) -> None:
        """Write what can be written now."""
        sent = self._send()
        if self._lines and self._later is not None and not self._asked:
            self._asked = True
            self._pause = _SOON if sent else min(_DEAD, 2 * self._pause)
            self._later(self._pause, self._flush_now)

    def finish(self) -> None:
        """The process ends: write what is left, within a second."""
        deadline = time.monotonic() + _LAST
        while (self._lines or self._lost) and time.monotonic() < deadline:
            if not self._send():
                time.sleep(_SOON)

    def _flush_now(self) -> None:
        self._asked = False
        self.flush()

    def _send(self) -> int:
        sent = self.channel.send(self._lines) if self._lines else 0
        del self._lines[:sent]
        if self._lost and not self._lines:
            lost, self._lost = self._lost, 0
            text = f"{lost} log lines were lost: {self.channel.name} took none"
            self._lines += self.channel.lines(logging.WARNING, (text,))
            sent += 1
        return sent
