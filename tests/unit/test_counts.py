# SPDX-License-Identifier: GPL-3.0-or-later
"""What a counter says of itself reaches everybody who shows counters: one line in its dataclass is enough."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pytest

from lmtp_proxy.backends.counts import Counts
from lmtp_proxy.control.json import backend_json
from lmtp_proxy.counts import Counter, Family, Histogram, Tallies, counter, counters_of, families_of, tree_of
from lmtp_proxy.delivery.in_flight import InFlight
from lmtp_proxy.delivery.parking import Parking
from lmtp_proxy.delivery.uncertain_log import UncertainLog
from lmtp_proxy.figures.figures import figures_of, merged_figures, with_reloads
from lmtp_proxy.workers.merged import merged_backends
from tests.unit.figures.test_prometheus import Told, generation_of, samples

PRIVATE = {"ended"}
"""What only another figure is made of."""
NAMES = {
    "sessions_accepted_total", "transactions_total", "received_message_bytes_total", "refused_recipients_total",
    "uncertain_recipients_total", "log_lines_lost_total", "event_loop_lateness_seconds_bucket",
    "event_loop_longest_stall_seconds",
    "recipients_total", "backend_uncertain_recipients_total", "backend_sent_message_bytes_total",
    "backend_connections_opened_total", "backend_connection_failures_total", "backend_pool_waits_total",
    "backend_connect_seconds_bucket", "backend_reply_seconds_bucket",
}  # fmt: skip
"""What operators have in their dashboards and alerts; there may be more."""
OF_A_BACKEND = {
    "connections", "failures", "sent", "deferred", "bounced", "aborted", "uncertain", "octets", "waits", "connect",
    "replies",
}  # fmt: skip
IN_STATUS = ["connections", "failures", "sent", "deferred", "bounced", "aborted", "uncertain", "octets"]

ALL = [(kind, each) for kind in (Tallies, Counts) for each in counters_of(kind)]


def counted(kind: type[Any], its: Counter, times: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures and `/backends` of a process in which one counter has counted, of itself or of its backend."""
    generation, in_flight, tallies = generation_of("a"), InFlight(), Tallies()
    pool = generation.pools["a"]
    counts = tallies if kind is Tallies else pool.counts
    if its.family.bounds:
        for _ in range(times):
            getattr(counts, its.name).observe(its.family.bounds[0])
    else:
        setattr(counts, its.name, times)
    uncertain = UncertainLog(lambda: generation, in_flight)
    figures = with_reloads(figures_of(generation, in_flight, Parking(), uncertain, tallies), Told(), 1, 0.0)
    return figures, backend_json(pool, 0)


def name_outside(its: Counter) -> str:
    ending = "_count" if its.family.bounds else "" if its.family.greatest else "_total"
    return f"lmtp_proxy_{its.family.name}{ending}"


@pytest.mark.parametrize("kind, its", ALL, ids=[f"{kind.__name__}.{each.name}" for kind, each in ALL])
def test_a_counter_is_shown_to_everybody_as_it_says(kind: type[Any], its: Counter) -> None:
    (one, of_one), (other, of_other), (ended, _) = (counted(kind, its, times) for times in (7, 5, 2))
    labels = {"backend": "a"} if kind is Counts else {}
    if its.family.label:
        labels[its.family.label] = its.name
    sample = (name_outside(its), frozenset(labels.items()))
    assert samples(one)[sample] == 7
    assert samples(merged_figures([other, one], ended))[sample] == (7 if its.family.greatest else 14)
    (merged,) = merged_backends([[of_one], [of_other]])
    if kind is Counts:
        assert merged.get(its.name) == (12 if its.in_status else None)


@pytest.mark.parametrize("kind", [Tallies, Counts])
def test_every_field_says_what_it_is(kind: Any) -> None:
    silent = {each.name for each in fields(kind)} - {each.name for each in counters_of(kind)}
    assert silent <= PRIVATE


def test_no_two_families_have_one_name_or_place() -> None:
    for kind in (Tallies, Counts):
        families = [family for family, _ in families_of(kind)]
        assert len({family.name for family in families}) == len(families)
        assert all(family in families for family in (each.family for each in counters_of(kind)))
        tree = {**tree_of(kind()), **tree_of(kind(), greatest=True)}
        assert all(each.value_in(tree) is not None for each in counters_of(kind))


def test_what_others_read_keeps_its_names() -> None:
    figures, backend = counted(Counts, counters_of(Counts)[0], 1)
    assert {name.removeprefix("lmtp_proxy_") for name, _ in samples(figures)} >= NAMES
    counters = figures["counters"]
    assert {"sessions", "transactions", "octets", "refused", "uncertain", "lateness", "backends"} <= counters.keys()
    assert counters["transactions"].keys() >= {"answered", "refused", "aborted"}
    assert counters["refused"].keys() >= {"parked", "unknown", "lookup"}
    assert counters["backends"]["a"].keys() >= OF_A_BACKEND
    assert [name for name in backend if name in OF_A_BACKEND] == IN_STATUS


def test_a_new_one_is_one_line() -> None:
    pair = Family("pair", "Two.", key="pairs", label="which")

    @dataclass(slots=True)
    class Some:
        one: int = counter(pair)
        other: int = counter(pair)
        alone: int = counter(Family("alone", "One."))
        renamed: int = counter(Family("renamed", "One."), in_status=True)
        slow: Histogram = counter(Family("slow_seconds", "Times.", bounds=(1.0,)))
        worst: float = counter(Family("worst_seconds", "Most.", greatest=True), start=0.5)
        own: int = 3

    some, second = Some(), Some()
    some.one += 2
    some.slow.observe(0.5)
    assert second.slow.counts == [0, 0], "each has a histogram of its own"
    assert tree_of(some) == {
        "pairs": {"one": 2, "other": 0}, "alone": 0, "renamed": 0, "slow": {"counts": [1, 0], "sum": 0.5},
    }  # fmt: skip
    assert tree_of(some, greatest=True) == {"worst": 0.5}
    assert [[each.name for each in members] for _, members in families_of(Some)] == [
        ["one", "other"], ["alone"], ["renamed"], ["slow"], ["worst"],
    ]  # fmt: skip
    tree = tree_of(some)
    assert [each.value_in(tree) for each in counters_of(Some)[:3]] == [2, 0, 0]
