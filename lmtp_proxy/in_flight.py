# SPDX-License-Identifier: GPL-3.0-or-later
"""The deliveries that are past their commit check and have no final reply yet.

Whoever enters here first and looks the route up afterwards cannot be missed by somebody who changes the route first and
looks in here afterwards; the other order leaves a gap. It knows neither routes nor connections.
"""

from collections.abc import Iterable, Iterator


class Flight:
    """One delivery past its commit check. keys: every key of its recipients, as Route.keys has them."""

    __slots__ = ("backend", "keys")

    def __init__(self, backend: str, keys: frozenset[str]) -> None:
        self.backend = backend
        self.keys = keys

    def __repr__(self) -> str:
        return f"<Flight to {self.backend} for {', '.join(sorted(self.keys))}>"


class InFlight:
    """All flights of the process."""

    def __init__(self) -> None:
        self._flights: set[Flight] = set()

    def __repr__(self) -> str:
        return f"<InFlight {len(self)}>"

    def __len__(self) -> int:
        return len(self._flights)

    def __iter__(self) -> Iterator[Flight]:
        return iter(tuple(self._flights))

    def enter(self, backend: str, keys: Iterable[str]) -> Flight:
        """A delivery is about to be committed. `leave` it when its last reply is known, whatever that is."""
        flight = Flight(backend, frozenset(keys))
        self._flights.add(flight)
        return flight

    def leave(self, flight: Flight) -> None:
        """The delivery has its final replies, or never sent its dot."""
        self._flights.discard(flight)
