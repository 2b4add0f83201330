# SPDX-License-Identifier: GPL-3.0-or-later
"""Who was moved by a look at config.table, and how far deliveries had got by then.

Somebody who drains users while a script moves them to and fro has to wait for deliveries that began amid that. It does
not know where anybody was moved.
"""

from collections.abc import Iterable

_MOST = 20_000  # keys that are told apart


class MovedAt:
    """The number of the last delivery that can have gone by the former route, of each key."""

    def __init__(self) -> None:
        self._at: dict[str, int] = {}
        self._all = self._last = 0

    def __repr__(self) -> str:
        return f"<MovedAt {len(self._at)} keys, {self._last}>"

    def note(self, keys: Iterable[str], flight: int) -> None:
        """These were moved. flight: `InFlight.last` when that was in force."""
        self._last = flight
        for key in keys:
            self._at[key] = flight
        if len(self._at) > _MOST:
            self.note_all(flight)

    def note_all(self, flight: int) -> None:
        """Anybody may have been moved."""
        self._at.clear()
        self._all = self._last = flight

    def of(self, keys: Iterable[str] | None) -> int:
        """The last of these, all that may decide where somebody's mail goes; of anybody for None."""
        if keys is None:
            return self._last
        return max(self._all, 0, *(self._at.get(key, 0) for key in keys))
