# SPDX-License-Identifier: GPL-3.0-or-later
"""Which states of the configuration on the disk are known to be what lmtp-proxyctl made of the one in force.

A move puts in force whatever the files say, edits by hand, too; several moves edit before the first of them is loaded.
So each says under its lock which state it found and which it makes. It knows no files: a state is its digest.
"""

import time
from collections import deque

_MOST = 1000
_LONGEST = 600.0  # seconds from an edit to the end of its reload; of one that was undone nobody says so


class Edits:
    """Edits whose reload has not ended yet, the oldest first."""

    def __init__(self) -> None:
        self._made: deque[tuple[float, str]] = deque(maxlen=_MOST)

    def follows(self, before: str, after: str, in_force: str | None, *, accept: bool = False) -> bool:
        """Whether `before` is the state in force, or what edits made of it that were announced; then `after` is, too.

        Args:
            in_force: None if nobody can tell.
            accept: whoever asks knows what `before` is.
        """
        self._forget(in_force)
        if not (accept or before == in_force or any(made == before for _, made in self._made)):
            return False
        if after != in_force:
            self._made.append((time.monotonic(), after))
        return True

    def _forget(self, in_force: str | None) -> None:
        """What is in force, what came before that, and what is too old."""
        states = [made for _, made in self._made]
        if in_force in states:
            for _ in range(len(states) - states[::-1].index(in_force)):
                self._made.popleft()
        while self._made and self._made[0][0] < time.monotonic() - _LONGEST:
            self._made.popleft()
