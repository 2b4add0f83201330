# SPDX-License-Identifier: GPL-3.0-or-later
"""The answers of several workers as one: what is counted is added up, what is listed stands side by side.

Values in, values out: it asks nobody and knows no processes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmtp_proxy.control.application import Json

_SUMS = ("sessions", "held", "uncertain")
_OF_BACKENDS = (
    *("busy", "idle", "max_connections", "connections", "failures"),
    *("sent", "deferred", "bounced", "aborted", "uncertain", "octets"),
)
_NUMBERS = 2**31  # flights of one worker; a pid is less than 2**22, and JSON's numbers are exact up to 2**53


def merged_status(answers: Sequence[Json]) -> Json:
    """The first one, with the sums of all."""
    first = answers[0]
    phases = {phase: sum(answer["in_flight"].get(phase, 0) for answer in answers) for phase in first["in_flight"]}
    return {
        **first,
        **{name: sum(answer[name] for answer in answers) for name in _SUMS},
        "in_flight": phases,
        "backends": merged_backends([answer["backends"] for answer in answers]),
    }


def merged_backends(lists: Sequence[Sequence[Json]]) -> list[Json]:
    """Each backend once. It is down where one worker's last attempt failed; each notices by its own mail."""
    found: dict[str, list[Json]] = {}
    for backends in lists:
        for backend in backends:
            found.setdefault(backend["name"], []).append(backend)
    return [_merged_backend(each) for each in found.values()]


def _merged_backend(backends: Sequence[Json]) -> Json:
    states = [backend["state"] for backend in backends]
    down = [backend for backend in backends if backend["state"] == "down"]
    trouble = down[0]["trouble"] if down else None
    if down and len(down) < len(backends):
        trouble = f"{trouble} (seen by {len(down)} of {len(backends)} workers)"
    return {
        **backends[0],
        "state": next((state for state in ("down", "up") if state in states), "unused"),
        "trouble": trouble,
        **{name: sum(backend[name] for backend in backends) for name in _OF_BACKENDS},
    }


def of_worker(pid: int, items: Iterable[Mapping[str, Any]]) -> list[Json]:
    """Flights or sessions of one worker, which they name. The numbers of flights differ from those of other workers."""
    named = [{**item, "worker": pid} for item in items]
    return [{**item, "number": pid * _NUMBERS + item["number"]} if "number" in item else item for item in named]
