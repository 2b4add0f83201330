# SPDX-License-Identifier: GPL-3.0-or-later
"""The deliveries under way, and which of them can still reach a backend that was taken from a user.

Whoever enters here first and looks the route up afterwards cannot be missed by somebody who changes the route first and
looks in here afterwards; the other order leaves a gap. It knows neither tables nor connections, and waits for nothing.
"""

import enum
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain
from typing import Final, Protocol, TypeAlias

from lmtp_proxy.routing.keys import KeyRules
from lmtp_proxy.wire.envelope import Recipient


class Phase(enum.Enum):
    """How far the message of a delivery is. In the last two a drain waits for it."""

    ENVELOPE = "envelope"
    DATA = "data"
    COMMIT = "commit"
    FINAL_DOT = "final dot"

    @property
    def committed(self) -> bool:
        """The delivery may send its final dot without another look, or has sent it."""
        return self is Phase.COMMIT or self is Phase.FINAL_DOT


class Flight(Protocol):
    """One delivery, from its first recipient to its last reply. What it is of, it says when it is asked.

    Attributes:
        phase: how far it is.
        number: rises with each entering of any flight, 0 before the first.
        octets: of the message, sent so far.
        began: time.monotonic.
    """

    phase: Phase
    number: int
    octets: int
    began: float

    @property
    def session(self) -> str:
        """The name of the client's session."""

    @property
    def backend(self) -> str:
        """Its name."""

    @property
    def address(self) -> str:
        """Of the backend."""

    @property
    def sender(self) -> bytes:
        """With angle brackets."""

    @property
    def recipients(self) -> Sequence[Recipient]:
        """Those that the backend has not refused. The same from the moment on that the flight has entered."""


_Forms: TypeAlias = tuple[KeyRules, frozenset[str]]
_ABSENT: Final = (KeyRules(), frozenset[str]())


class InFlight:
    """All flights of the process.

    Attributes:
        last: the number of the one that entered last.
        on_leave: called each time one has left or stepped back; must not wait.
    """

    def __init__(self) -> None:
        self.last = 0
        self.on_leave: list[Callable[[], None]] = []
        # In the order of their beginnings; the keys of each, made by these rules, once somebody has asked.
        self._flights: dict[Flight, _Forms | None] = {}

    def __repr__(self) -> str:
        return f"<InFlight {len(self)}>"

    def __len__(self) -> int:
        return len(self._flights)

    def __iter__(self) -> Iterator[Flight]:
        return iter(tuple(self._flights))

    def begin(self, flight: Flight) -> None:
        """A delivery begins. `leave` it whatever becomes of it."""
        self._flights[flight] = None

    def enter(self, flight: Flight) -> None:
        """The delivery is about to look its routes up for the last time, and then to send its final dot.

        Its recipients do not change any more.
        """
        flight.number = self.last = self.last + 1
        flight.phase = Phase.COMMIT

    def step_back(self, flight: Flight) -> None:
        """No octet of the dot went out, and none will before the delivery enters again."""
        flight.phase = Phase.DATA
        self._left()

    def leave(self, flight: Flight) -> None:
        """The delivery has its final replies, or never sent its dot."""
        if self._flights.pop(flight, _ABSENT) is not _ABSENT and self.on_leave:
            self._left()

    def drain(self, keys: Collection[str] | None, rules: KeyRules, until: int) -> tuple[Flight, ...]:
        """The flights that must leave before nothing can come of them any more: the caller waits, and asks again.

        keys: of the users whose route was changed, made by `rules`; None for all. until: `last` at the time of the
        first question, so that flights which entered later, under the new route, are not waited for.
        """
        asked = None if keys is None else frozenset(keys)
        return tuple(
            flight
            for flight in self._flights
            if flight.phase.committed
            and flight.number <= until
            and (asked is None or self.concerns(flight, asked, rules))
        )

    def concerns(self, flight: Flight, keys: frozenset[str], rules: KeyRules) -> bool:
        """Whether one of its recipients has one of `keys`, which `rules` made."""
        forms = self._flights.get(flight)
        if forms is None or forms[0] != rules:
            found = (rules.forms(recipient.local_part, recipient.domain) for recipient in flight.recipients)
            forms = rules, frozenset(chain.from_iterable(found))
            if flight.phase.committed and flight in self._flights:  # a drain asks again each time that one has left
                self._flights[flight] = forms
        return not keys.isdisjoint(forms[1])

    def _left(self) -> None:
        for call in tuple(self.on_leave):
            call()
