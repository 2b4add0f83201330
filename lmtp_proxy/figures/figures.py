# SPDX-License-Identifier: GPL-3.0-or-later
"""What the processes have counted, as one document of plain values: of one process, or of several added up.

Values in, values out. What is counted, and how it adds over processes, the counters say of themselves. What Prometheus
calls it is a matter of `prometheus`, how it looks one of the status page.
"""

import time
from collections.abc import Iterable
from math import inf
from typing import Any, TypeAlias

from lmtp_proxy.backends.pool import BackendPool
from lmtp_proxy.counts import Tallies, counters_of, tree_of
from lmtp_proxy.delivery.in_flight import InFlight, Phase
from lmtp_proxy.delivery.parking import Parking
from lmtp_proxy.delivery.uncertain_log import UncertainLog
from lmtp_proxy.generations.generation import Generation
from lmtp_proxy.generations.reloads import ReloadRefused, Reloads

Figures: TypeAlias = dict[str, Any]
"""A dictionary with:

    counters  they only grow; a tree of numbers that may be added up
    gauges    what is now; another one
    longest   seconds; counters of which the greatest counts stand beside the trees
    down      names of backends
    certificates  when that of a backend ends, in seconds since the epoch; of several processes the first one counts

The rest is of the configuration, which is the same in all processes."""


def figures_of(
    generation: Generation, in_flight: InFlight, parking: Parking, uncertain: UncertainLog, tallies: Tallies
) -> Figures:
    """Of this process. It takes some 10 us for each backend."""
    phases = {phase.value: 0 for phase in Phase}
    for flight in in_flight:
        phases[flight.phase.value] += 1
    config, pools = generation.config, generation.pools
    return {
        "counters": {
            **tree_of(tallies),
            "uncertain": uncertain.count,
            "backends": {name: tree_of(pool.counts) for name, pool in pools.items()},
        },
        "gauges": {
            "sessions": tallies.accepted - tallies.ended,
            "held": len(parking),
            "in_flight": phases,
            "backends": {name: _gauges(pool) for name, pool in pools.items()},
        },
        **tree_of(tallies, greatest=True),
        "down": [name for name, pool in pools.items() if pool.down],
        "certificates": {name: ends for name, pool in pools.items() if (ends := _certificate_ends(pool)) is not None},
        "hold_limit": config.hold_limit,
        "users": {**dict.fromkeys(pools, 0), **config.users_on},
    }


def with_reloads(figures: Figures, reloads: Reloads, generation: int, started: float) -> Figures:
    """And what is known of the configuration as a whole.

    Args:
        generation: the number of the one in force.
        started: when the proxy was, in seconds since the epoch.
    """
    refused = isinstance(reloads.last_outcome, ReloadRefused)
    return {
        **figures,
        "time": time.time(),
        "started": started,
        "generation": generation,
        "reloads": {"done": reloads.done, "refused": reloads.refused},
        "last_reload_refused": refused,
    }


def added(one: Any, other: Any) -> Any:
    """The sum of two trees of numbers; what only one of them has stands as it is."""
    if isinstance(one, dict):
        return {
            key: one.get(key, other.get(key)) if (key in one) != (key in other) else added(one[key], other[key])
            for key in {**one, **other}
        }
    if isinstance(one, list):
        return [left + right for left, right in zip(one, other, strict=True)]
    return one + other


def merged_figures(alive: Iterable[Figures], ended: Figures | None) -> Figures:
    """Of several processes, at least one.

    Of a backend that one of them does not have, as in the midst of a reload, there are no figures: a part of its sum
    would look as if it had gone back.

    Args:
        ended: the counters of those that are no more.
    """
    first, *others = processes = [*alive]
    merged = dict(first)
    for other in others:
        for tree in ("counters", "gauges"):
            merged[tree] = added(merged[tree], other[tree])
        _keep_greatest(merged, other)
        merged["down"] = [*merged["down"], *(name for name in other["down"] if name not in merged["down"])]
        merged["certificates"] = _soonest(merged["certificates"], other["certificates"])
    if ended is not None:
        merged["counters"] = added(merged["counters"], ended["counters"])
        _keep_greatest(merged, ended)
    everywhere = set.intersection(*(set(process["gauges"]["backends"]) for process in processes))
    for tree in ("counters", "gauges"):
        backends = merged[tree]["backends"]
        merged[tree] = {**merged[tree], "backends": {name: backends[name] for name in backends if name in everywhere}}
    return merged


def _keep_greatest(merged: Figures, other: Figures) -> None:
    for counter in counters_of(Tallies):
        if counter.family.greatest:
            counter.put_into(merged, max(counter.value_in(merged), counter.value_in(other)))


def _certificate_ends(pool: BackendPool) -> float | None:
    spoken = None if pool.tls is None else pool.tls.spoken
    return None if spoken is None or spoken.certificate is None else spoken.certificate.ends


def _soonest(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    return {name: min(one.get(name, inf), other.get(name, inf)) for name in {**one, **other}}


def _gauges(pool: BackendPool) -> dict[str, int]:
    limit = pool.backend.max_connections
    return {"busy": pool.busy, "idle": pool.idle, "limit": limit, "waiting": pool.waiting}
