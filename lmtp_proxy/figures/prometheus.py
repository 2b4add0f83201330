# SPDX-License-Identifier: GPL-3.0-or-later
"""The figures in the words of Prometheus: names, labels, help texts, and the text format that a scraper asked for.

A label's value is a backend's name from the configuration or one of a few words, never anything that a client sent.
prometheus_client is imported when somebody asks for the first time: it takes 3 MB and 50 ms, which an idle proxy and
its mail should not pay for. What is written for those who watch is made in a thread, because it takes longer than mail
should wait; `render` runs there, so it may not touch gevent.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from lmtp_proxy import __version__
from lmtp_proxy.backends.counts import Counts
from lmtp_proxy.counts import Family, Tallies, families_of
from lmtp_proxy.figures.figures import Figures
from lmtp_proxy.loop.late import OneThread, Unavailable, late_import

if TYPE_CHECKING:
    from prometheus_client.core import Metric

OPENMETRICS = "application/openmetrics-text"
PLAIN = "text/plain"
_WEIGHT = re.compile(r"[01](\.[0-9]{0,3})?")


def render(figures: Figures, accept: str) -> tuple[str, bytes]:
    """Content type and octets: OpenMetrics if `accept`, as HTTP has it, names that, else the text format."""
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.registry import CollectorRegistry

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(figures))
    # Not what the client sent: prometheus_client stumbles over versions that are no numbers.
    encode, content_type = choose_encoder(f"{OPENMETRICS}; version=1.0.0" if wants_openmetrics(accept) else "")
    return content_type, encode(registry)


def wants_openmetrics(accept: str) -> bool:
    """Whether `accept` names that format, and prefers no plain text to it (`q=`, RFC 9110, section 12.4.2)."""
    plain, openmetrics = 0.0, 0.0
    for each in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in each.split(";"))
        weights = [part.removeprefix("q=") for part in parameters if part.startswith("q=")]
        weight = float(weights[0]) if weights and _WEIGHT.fullmatch(weights[0]) else float(not weights)
        if kind == OPENMETRICS:
            openmetrics = max(openmetrics, weight)
        elif kind == PLAIN:
            plain = max(plain, weight)
    return openmetrics > 0 and openmetrics >= plain


class _Collector:
    """See prometheus_client.registry.Collector."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """Every family, with a sample for each label that it has."""
        figures = self._figures
        yield _gauge("build_info", "The version that runs.", {(__version__, _PYTHON): 1}, "version", "python")
        yield _gauge("start_time_seconds", "When the proxy started, since the epoch.", figures["started"])
        yield from _of_the_proxy(figures)
        yield from _of_the_configuration(figures)
        yield from _of_the_backends(figures)


_PYTHON = sys.version.partition(" ")[0]


def _of_the_proxy(figures: Figures) -> Iterator[Metric]:
    counters, gauges = figures["counters"], figures["gauges"]
    yield _gauge("sessions", "Clients that are connected.", gauges["sessions"])
    for family, members in families_of(Tallies):
        tree = figures if family.greatest else counters
        values: dict[tuple[str, ...], Any] = {
            ((each.name,) if family.label else ()): each.value_in(tree) for each in members
        }
        yield _family(family, values)
    yield _gauge("held_sessions", "Sessions that wait for the route of a recipient on hold.", gauges["held"])
    yield _gauge("held_sessions_limit", "How many may wait so at once (hold_limit).", figures["hold_limit"])
    phases = {phase.replace(" ", "_"): count for phase, count in gauges["in_flight"].items()}
    yield _gauge("deliveries_in_flight", "Deliveries to a backend that are under way.", phases, "phase")
    yield _counter(
        "uncertain_recipients",
        "Recipients whose message went out to its end without a reply: it may be stored, and comes again.",
        counters["uncertain"],
    )
    if "workers" in figures:
        yield _gauge("workers", "Processes that serve, and how many are to (workers).", figures["workers"], "state")
        yield _counter("worker_restarts", "Workers that were started again after they had died.", figures["restarts"])


def _of_the_configuration(figures: Figures) -> Iterator[Metric]:
    yield _counter("reloads", "Reloads that were done, or refused and changed nothing.", figures["reloads"], "result")
    yield _gauge(
        "last_reload_successful",
        "0 while the file on the disk is not what is in force, because the last reload was refused.",
        int(not figures["last_reload_refused"]),
    )
    yield _gauge("config_generation", "How many configurations have been in force.", figures["generation"])
    yield _gauge(
        "users",
        "Entries of the table of users, by the backend that they are on; reject and hold are parked users.",
        figures["users"],
        "backend",
    )


def _of_the_backends(figures: Figures) -> Iterator[Metric]:
    gauges: Mapping[str, Any] = figures["gauges"]["backends"]
    # Of a backend that is not configured any more a worker that has ended may have left something.
    counters = {name: each for name, each in figures["counters"]["backends"].items() if name in gauges}
    yield _gauge(
        "backend_up",
        "0 while the last attempt to connect has failed, else 1.",
        {name: int(name not in figures["down"]) for name in gauges},
        "backend",
    )
    if certificates := {name: ends for name, ends in figures["certificates"].items() if name in gauges}:
        yield _gauge(
            "backend_certificate_expiry_timestamp_seconds",
            "Until when the certificate is valid that the backend showed last, since the epoch.",
            certificates,
            "backend",
        )
    for family, members in families_of(Counts):
        values: dict[tuple[str, ...], Any] = {
            ((name, each.name) if family.label else (name,)): each.value_in(tree)
            for name, tree in counters.items()
            for each in members
        }
        yield _family(family, values, "backend")
    yield _gauge(
        "backend_connections",
        "Connections in use, or kept for the next message.",
        {(name, {"busy": "in_use"}.get(state, state)): each[state] for name, each in gauges.items()
         for state in ("busy", "idle")},
        "backend",
        "state",
    )  # fmt: skip
    for key, name, text in (
        ("limit", "connections_limit", "How many connections there may be at once (max_connections)."),
        ("waiting", "pool_waiting", "Transactions that wait for a free connection now."),
    ):
        yield _gauge(f"backend_{name}", text, {backend: each[key] for backend, each in gauges.items()}, "backend")


def _family(family: Family, values: Mapping[tuple[str, ...], Any], *labels: str) -> Metric:
    """What a counter says of itself.

    Args:
        labels: before its own.
    """
    if family.label:
        labels = (*labels, family.label)
    if family.bounds:
        return _histogram(family.name, family.text, family.bounds, values, *labels)
    return (_gauge if family.greatest else _counter)(family.name, family.text, values, *labels)


def _gauge(name: str, text: str, values: Any, *labels: str) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(f"lmtp_proxy_{name}", text, labels=labels)
    _fill(family, values)
    return family


def _counter(name: str, text: str, values: Any, *labels: str) -> Metric:
    """prometheus_client adds the `_total`."""
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(f"lmtp_proxy_{name}", text, labels=labels)
    _fill(family, values)
    return family


def _fill(family: Any, values: Any) -> None:
    """Put in `values`: a number, or one for each value of the label or labels."""
    for labels, value in (values if isinstance(values, Mapping) else {(): values}).items():
        family.add_metric((labels,) if isinstance(labels, str) else labels, value)


def _histogram(
    name: str, text: str, bounds: Sequence[float], values: Mapping[tuple[str, ...], Any], *labels: str
) -> Metric:
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(f"lmtp_proxy_{name}", text, labels=labels)
    for label, histogram in values.items():
        below, buckets = 0, []
        for bound, count in zip((*bounds, math.inf), histogram["counts"], strict=True):
            below += count
            buckets.append(("+Inf" if bound == math.inf else str(bound), below))
        family.add_metric(label, buckets, histogram["sum"])
    return family


A = TypeVar("A")
T = TypeVar("T")

_imported: list[bool] = []  # True, once that has gone well
_thread = OneThread()  # of its own: prometheus_client is used in no other


def exposed(figures: Figures, accept: str) -> tuple[str, bytes]:
    """The content type and the text that a scraper gets. accept: see `render`.

    Raises Unavailable while prometheus_client cannot be imported.
    """
    if not _imported:
        try:
            in_thread(_import, None)
        except (ImportError, OSError) as error:
            raise Unavailable(f"prometheus_client cannot be imported: {error}") from error
        _imported.append(True)
    return in_thread(lambda accept: render(figures, accept), accept)


def _import(_: None) -> None:
    with late_import():
        import prometheus_client.core
        import prometheus_client.exposition  # noqa: F401


def in_thread(work: Callable[[A], T], argument: A) -> T:
    """What `work` returns or raises; it may not know gevent. One after the other. Raises Unavailable."""
    return _thread.outcome(work, argument)
