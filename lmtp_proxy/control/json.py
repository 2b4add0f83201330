# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of the process as JSON values for an operator: escaped, and never more than can be made at one go.

It shows what it is given, and does not ask for more.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any, TypeAlias

from lmtp_proxy.backends.pool import BackendPool
from lmtp_proxy.clients.session_state import SessionState
from lmtp_proxy.delivery.in_flight import Flight
from lmtp_proxy.generations.generation import Generation
from lmtp_proxy.routing.table import TableUnavailable
from lmtp_proxy.text import printable

Json: TypeAlias = dict[str, Any]

MAX_SHOWN = 1000
"""Of flights, sessions or users in one answer: more would take the hub too long, and nobody reads them."""
_COUNTS = ("connections", "failures", "sent", "deferred", "bounced", "aborted", "uncertain", "octets")
_SHOWN_RECIPIENTS = 20  # of one flight


def sessions_json(sessions: Sequence[SessionState]) -> list[Json]:
    """The first of them."""
    shown = [asdict(session) for session in sessions[:MAX_SHOWN]]
    return [{"session": session.pop("name"), **session} for session in shown]


def entry_of(generation: Generation, user: str) -> str | None:
    """What `users:` or the fallback says of `user`, who is written as there."""
    rules = generation.config.key_rules
    local_part, at, domain = user.rpartition("@")
    keys = (rules.table_key(user),) if at and not local_part else rules.forms(local_part or user, domain if at else "")
    try:
        return generation.routing.find(keys)[1]
    except TableUnavailable:
        return None


def flights_json(flights: Iterable[Flight]) -> list[Json]:
    """The first of them, each with its first recipients; `count` is how many it has."""
    now = time.monotonic()

    def flight_json(flight: Flight) -> Json:
        recipients = flight.recipients
        return {
            "number": flight.number,
            "session": flight.session,
            "backend": flight.backend,
            "address": flight.address,
            "recipients": [printable(recipient.path[1:-1]) for recipient in recipients[:_SHOWN_RECIPIENTS]],
            "count": len(recipients),
            "sender": printable(flight.sender[1:-1]),
            "phase": flight.phase.value,
            "seconds": now - flight.began,
            "octets": flight.octets,
        }

    return [flight_json(flight) for flight in islice(flights, MAX_SHOWN)]


def backend_json(pool: BackendPool, users: int) -> Json:
    """A backend with its counts. users: keys of the table that name it."""
    counts = pool.counts
    used = counts.connections or counts.failures
    return {
        "name": pool.backend.name,
        "address": str(pool.backend.address),
        "state": "down" if pool.down else "up" if used else "unused",
        "trouble": pool.trouble or None,
        "busy": pool.busy,
        "idle": pool.idle,
        "max_connections": pool.backend.max_connections,
        "users": users,
        **{name: getattr(counts, name) for name in _COUNTS},
    }
