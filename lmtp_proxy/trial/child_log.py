# SPDX-License-Identifier: GPL-3.0-or-later
"""What the proxy that is tried out says on its standard error."""

import sys
import threading
from typing import IO

from lmtp_proxy.streams import say
from lmtp_proxy.text import safe


class ChildLog:
    """What the child says: kept until all else has been said, then passed on as it comes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._shown = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, name="log", daemon=True)
        self._thread.start()

    def show(self) -> None:
        """From now on, with what was said before."""
        with self._lock:
            self._shown = True
            say(sys.stderr, self._lines)

    def last_line(self) -> str:
        """Of a child that has ended."""
        self.end()
        return self._lines[-1] if self._lines else ""

    def end(self) -> None:
        """After the child's end: all of it is read, and passed on."""
        self._thread.join()
        self._stream.close()

    def _read(self) -> None:
        for octets in self._stream:
            line = safe(octets.decode("utf-8", "replace").rstrip("\n"))
            with self._lock:
                if self._shown:
                    say(sys.stderr, [line])
                else:
                    self._lines.append(line)
