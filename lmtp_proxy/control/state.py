# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of a process that can be asked about, from its start on; what answers is loaded when somebody asks."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from lmtp_proxy.counts import Tallies
from lmtp_proxy.delivery.in_flight import InFlight
from lmtp_proxy.delivery.parking import Parking
from lmtp_proxy.delivery.uncertain_log import UncertainLog
from lmtp_proxy.figures.figures import Figures, figures_of, with_reloads
from lmtp_proxy.generations.manager import ConfigManager
from lmtp_proxy.receipts.receipts import Receipts

if TYPE_CHECKING:  # a supervisor serves no clients, and does without 0.8 MB
    from lmtp_proxy.clients.session import SessionState

MAX_CONNECTIONS = 64
"""Clients of the control socket at once; the next ones wait in the kernel's backlog."""


class Since(NamedTuple):
    """Since when it is this process that answers.

    Attributes:
        after_crash: the process before this one did not end well.
        instance: names this process, so that who asks twice can tell that it was another one in between.
        started: seconds since the epoch.
        began: the same by time.monotonic.
    """

    after_crash: bool
    instance: str
    started: float
    began: float

    @classmethod
    def now(cls, *, after_crash: bool = False) -> "Since":
        """Since this moment."""
        return cls(after_crash, os.urandom(8).hex(), time.time(), time.monotonic())

    @property
    def uptime(self) -> float:
        """Seconds."""
        return time.monotonic() - self.began


@dataclass(frozen=True, slots=True)
class ControlState:
    """The parts of the process that can be asked about.

    Attributes:
        manager: has the generation in force.
        in_flight: deliveries that are under way.
        parking: sessions that wait for a route.
        uncertain: deliveries whose outcome is unknown.
        sessions: gives those of the server.
        stopping: whether it accepts no more.
        addresses: where clients connect, as text.
        since: since when it is this process.
        receipts: what each mailbox got.
        tallies: what is counted.
    """

    manager: ConfigManager
    in_flight: InFlight
    parking: Parking
    uncertain: UncertainLog
    sessions: "Callable[[], Sequence[SessionState]]"
    stopping: Callable[[], bool]
    addresses: tuple[str, ...]
    since: Since = field(default_factory=Since.now)
    receipts: Receipts = field(default_factory=Receipts)
    tallies: Tallies = field(default_factory=Tallies)

    def figures(self) -> Figures:
        """All that is counted."""
        generation = self.manager.current()
        own = figures_of(generation, self.in_flight, self.parking, self.uncertain, self.tallies)
        return with_reloads(own, self.manager, generation.number, self.since.started)
