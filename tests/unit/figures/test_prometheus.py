# SPDX-License-Identifier: GPL-3.0-or-later
"""Counting, figures of several processes as one, and the exposition: every name by Prometheus' rules."""

from __future__ import annotations

import copy
import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from lmtp_proxy.config.values import Backend, Config, UnixAddress
from lmtp_proxy.config.yaml_text import Mapping, Scalar, Sequence, read_source
from lmtp_proxy.counts import CONNECT_BOUNDS, LATENESS_BOUNDS, REPLY_BOUNDS, Histogram, Tallies, quantile
from lmtp_proxy.delivery.in_flight import InFlight
from lmtp_proxy.delivery.parking import Parking
from lmtp_proxy.delivery.uncertain_log import UncertainLog
from lmtp_proxy.figures.figures import added, figures_of, merged_figures, with_reloads
from lmtp_proxy.figures.prometheus import render, wants_openmetrics
from lmtp_proxy.generations.generation import first_generation
from lmtp_proxy.generations.reloads import (
    MovedUsers,
    Outcome,
    Reloaded,
    ReloadRefused,
    Reloads,
    history_json,
    moved_from,
)
from tests import ROOT


class Told(Reloads):
    """Reloads whose outcomes are given."""

    def reload(self, *, force: bool = False, table_alone: bool = False) -> Outcome:
        raise AssertionError


def generation_of(*names: str) -> Any:
    backends = {name: Backend(name, UnixAddress(f"/{name}")) for name in names}
    config = Config("/c.yml", (UnixAddress("/s"),), "h", backends=backends, users_per_backend={"reject": 2})
    return first_generation(config)


def figures(*names: str, tallies: Tallies | None = None) -> dict[str, Any]:
    generation, in_flight = generation_of(*names), InFlight()
    uncertain = UncertainLog(lambda: generation, in_flight)
    own = figures_of(generation, in_flight, Parking(), uncertain, tallies or Tallies())
    own["certificates"] = dict.fromkeys(names, 2e9)
    return with_reloads(own, Told(), 1, 1000.5)


def exposed(document: dict[str, Any]) -> list[Metric]:
    return list(text_string_to_metric_families(render(document, "")[1].decode("utf-8")))


def samples(document: dict[str, Any]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in exposed(document)
        for sample in family.samples
    }


# --- counting --------------------------------------------------------------------------------------------------------


def test_a_bound_counts_what_is_equal_to_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for seconds in (0.0, 1.0, 1.5, 2.0, 2.1, 100.0):
        histogram.observe(seconds)
    assert histogram.counts == [2, 2, 2] and histogram.total == 106.6
    assert "6 observations" in repr(histogram)


@given(st.lists(st.floats(0, 1000), max_size=40))
def test_a_histogram_is_what_prometheus_would_make_of_it(seen: list[float]) -> None:
    histogram = Histogram(REPLY_BOUNDS)
    for seconds in seen:
        histogram.observe(seconds)
    below = 0
    for bound, count in zip((*REPLY_BOUNDS, math.inf), histogram.counts, strict=True):
        below += count
        assert below == sum(seconds <= bound for seconds in seen)
    middle = quantile(REPLY_BOUNDS, histogram.counts, 0.5)
    assert (middle is None) == (not seen)
    if middle is not None:  # within the step that holds it
        true = min(sorted(seen)[(len(seen) - 1) // 2], REPLY_BOUNDS[-1])
        index = next(index for index, bound in enumerate(REPLY_BOUNDS) if true <= bound)
        assert ((0.0, *REPLY_BOUNDS)[index]) <= middle <= REPLY_BOUNDS[index]


@pytest.mark.parametrize("bounds", [CONNECT_BOUNDS, REPLY_BOUNDS, LATENESS_BOUNDS])
def test_bounds_rise(bounds: tuple[float, ...]) -> None:
    assert sorted(set(bounds)) == list(bounds)


def test_lateness() -> None:
    tallies = Tallies()
    tallies.late(0.5)
    tallies.late(0.1)
    assert tallies.longest == 0.5 and sum(tallies.lateness.counts) == 2


# --- figures of several processes ------------------------------------------------------------------------------------

TREES = st.recursive(
    st.integers(0, 1000),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


def same_form(tree: Any) -> Any:
    return {key: same_form(value) for key, value in tree.items()} if isinstance(tree, dict) else 1


@given(TREES)
def test_sums_of_trees(tree: Any) -> None:
    ones = same_form(tree)
    assert added(tree, ones) == added(ones, tree)

    def grown(value: Any) -> Any:
        return {key: grown(each) for key, each in value.items()} if isinstance(value, dict) else value + 1

    assert added(tree, ones) == grown(tree)
    assert added({"x": tree}, {"y": 1}) == {"x": tree, "y": 1}
    assert added([1, 2], [10, 20]) == [11, 22]


def test_merging_changes_nothing_that_was_given() -> None:
    one, other, ended = figures("a", "b"), figures("a", "b"), figures("a", "gone")
    ended["counters"]["backends"]["a"]["sent"] = 5
    other["counters"]["backends"]["a"]["sent"] = 2
    one["down"], other["down"], other["longest"] = ["a"], ["a", "b"], 0.5
    one["certificates"], other["certificates"] = {"a": 3e9, "b": 1e9}, {"a": 2e9}
    before = copy.deepcopy((one, other, ended))
    merged = merged_figures([one, other], ended)
    assert (one, other, ended) == before
    assert merged["counters"]["backends"]["a"]["sent"] == 7
    assert merged["gauges"]["backends"]["a"]["limit"] == 40
    assert merged["down"] == ["a", "b"] and merged["longest"] == 0.5
    assert merged["certificates"] == {"a": 2e9, "b": 1e9}, "the one that ends first"
    names = {dict(labels).get("backend") for name, labels in samples(merged) if name == "lmtp_proxy_recipients_total"}
    assert names == {"a", "b"}, "a backend that is not configured any more has no series"


def test_a_backend_that_not_all_have_is_not_half_there() -> None:
    one, other = figures("a", "b"), figures("b", "c")
    for document in (one, other):
        document["counters"]["backends"]["b"]["sent"] = 3
    merged = merged_figures([one, other], figures("a", "b"))
    for tree in ("counters", "gauges"):
        assert list(merged[tree]["backends"]) == ["b"]
    assert merged["counters"]["backends"]["b"]["sent"] == 6


def test_figures_are_plain_json() -> None:
    document = figures("a")
    assert json.loads(json.dumps(document)) == document


# --- the exposition --------------------------------------------------------------------------------------------------

_RESERVED_ENDINGS = ("_bucket", "_count", "_sum", "_info_total")
_TIMES = re.compile("(seconds|milliseconds|minutes|duration|latency|time)")
_NOT_BASE_UNITS = re.compile("(millisecond|microsecond|minute|hour|kilobyte|megabyte|octet|percent|_ms(_|$)|_kb(_|$))")


@pytest.mark.parametrize("workers", [False, True])
def test_names_follow_the_rules(workers: bool) -> None:
    """What `promtool check metrics` looks at, and the conventions of prometheus.io/docs/practices/naming."""
    document = figures("a")
    if workers:
        document |= {"workers": {"serving": 1, "wanted": 2}, "restarts": 3}
    families = exposed(document)
    assert len({family.name for family in families}) == len(families) > 25
    for family in families:
        name = family.name
        assert re.fullmatch("lmtp_proxy(_[a-z]+)+", name), "no camelCase, one prefix"
        assert family.documentation[:1].isupper() or family.documentation[:1].isdigit(), name
        assert family.documentation.endswith("."), f"{name} has a whole sentence for its help"
        assert family.samples, name
        assert not _NOT_BASE_UNITS.search(name), f"{name}: seconds and bytes"
        assert not name.endswith(_RESERVED_ENDINGS), name
        assert family.type in name or not re.search("counter|gauge|histogram|summary", name)
        if _TIMES.search(name):
            assert name.endswith("_seconds"), f"{name}: a time has its unit at the end"
        for sample in family.samples:
            if family.type == "counter":
                assert sample.name == f"{name}_total"
            else:
                assert not sample.name.endswith("_total"), f"{sample.name} is no counter"
            assert all(re.fullmatch("[a-z_]+", label) for label in sample.labels)
            assert ("le" in sample.labels) == sample.name.endswith("_bucket")


def test_both_formats_hold_the_same() -> None:
    document = figures("a")
    content_type, octets = render(document, "application/openmetrics-text; version=1.0.0, text/plain;q=0.5")
    assert content_type.startswith("application/openmetrics-text")
    parsed = list(parse_openmetrics(octets.decode("utf-8")))  # type: ignore[no-untyped-call]
    assert {family.name for family in parsed} == {family.name for family in exposed(document)}
    assert render(document, "")[0].startswith("text/plain; version=0.0.4")
    for odd in ("*/*", "text/html", "application/openmetrics-text;version=\x00", ";;;,,", "x" * 5000):
        assert render(document, odd)[1].startswith(b"# HELP lmtp_proxy_build_info "), odd


@pytest.mark.parametrize(
    "accept, wanted",
    [
        ("application/openmetrics-text", True),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2", True),
        ("application/openmetrics-text; q=0.5, text/plain", False),
        ("text/plain;q=0.9,APPLICATION/OpenMetrics-Text;Q=1.0", True),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=0.000, */*", False),
        ("application/openmetrics-text;q=x", False),
        ("text/plain", False),
        ("", False),
    ],
)
def test_the_format_that_is_preferred(accept: str, wanted: bool) -> None:
    assert wants_openmetrics(accept) == wanted


@pytest.mark.parametrize("name", ['a"b', "a\\b", 'x",outcome="sent', "\N{GREEK SMALL LETTER ALPHA}", "-", "a{b}"])
def test_labels_are_escaped(name: str) -> None:
    found = samples(figures(name))
    assert found["lmtp_proxy_backend_up", frozenset({("backend", name)})] == 1
    assert len([key for key in found if key[0] == "lmtp_proxy_backend_up"]) == 1


def test_label_sets_are_bounded() -> None:
    """Twice the backends is twice the series of backends, and nothing else makes any."""

    def per_backend(*names: str) -> int:
        return len([key for key in samples(figures(*names)) if "backend" in dict(key[1])])

    (reject,) = (1,)  # `users` has an entry that is no backend
    assert per_backend("a", "b") - reject == 2 * (per_backend("a") - reject)


def test_histograms_are_cumulative() -> None:
    tallies = Tallies()
    for seconds in (0.0005, 0.003, 0.003, 100.0):
        tallies.late(seconds)
    found = samples(figures("a", tallies=tallies))
    name = "lmtp_proxy_event_loop_lateness_seconds"
    assert found[f"{name}_bucket", frozenset({("le", "0.001")})] == 1
    assert found[f"{name}_bucket", frozenset({("le", "0.005")})] == 3
    assert found[f"{name}_bucket", frozenset({("le", "+Inf")})] == found[f"{name}_count", frozenset()] == 4


# --- what is made of them --------------------------------------------------------------------------------------------


def known_names() -> set[str]:
    document = figures("a") | {"workers": {"serving": 1, "wanted": 2}, "restarts": 3}
    return {name for name, _ in samples(document)}


def known_labels() -> dict[str, set[str]]:
    document = figures("a") | {"workers": {"serving": 1, "wanted": 2}, "restarts": 3}
    found: dict[str, set[str]] = {}
    for _, labels in samples(document):
        for label, text in labels:
            found.setdefault(label, set()).add(text)
    return found


def check_expression(text: str) -> None:
    used = set(re.findall(r"\blmtp_proxy_[a-z_]+", text))
    assert used <= known_names(), text
    labels = known_labels()
    for label, value in re.findall(r'(\w+)!?="([^"$]+)"', text):
        if label not in ("job", "instance"):
            assert value in labels[label], text


def test_every_metric_of_the_dashboard_exists() -> None:
    dashboard = json.loads((ROOT / "etc/grafana-dashboard.json").read_text("utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions += [each["expr"] for each in dashboard["annotations"]["list"]]
    expressions += [each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    assert len(expressions) > 25
    for text in expressions:
        assert "lmtp_proxy_" in text
        check_expression(text)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_every_metric_of_the_alert_rules_exists() -> None:
    root = read_source(str(ROOT / "etc/prometheus-alerts.yml")).document(None).root

    def entry(node: Any, key: str) -> Any:
        assert isinstance(node, Mapping)
        return node.entries[key]

    groups = entry(root, "groups")
    assert isinstance(groups, Sequence)
    rules = [rule for group in groups.items for rule in entry(group, "rules").items]
    names = {entry(rule, "alert").text for rule in rules}
    assert len(names) == len(rules) > 8
    for rule in rules:
        expression = entry(rule, "expr")
        assert isinstance(expression, Scalar)
        assert "lmtp_proxy_" in expression.text or 'up{job="lmtp-proxy"}' in expression.text
        check_expression(expression.text)
        assert entry(entry(rule, "labels"), "severity").text in ("warning", "critical")
        for text in ("summary", "description"):
            assert len(entry(entry(rule, "annotations"), text).text) > 20


# --- the history -----------------------------------------------------------------------------------------------------


def test_the_history_is_bounded_and_a_repeated_drain_is_one() -> None:
    told = Told()
    for number in range(30):
        told.history.append(ReloadRefused((f"error {number}",), 1.0))
    first = told.note_drain(["u1", "u2", "u3", "u4"])
    assert told.note_drain(["u1", "u2", "u3", "u4"]) is first
    assert told.note_drain(["u1"]) is not first
    first.ended(True, 2)
    again = told.note_drain(["u1", "u2", "u3", "u4"])
    assert again is not first, "the one before was done"
    assert told.note_drain(None).count is None
    shown = history_json(told.history)
    assert len(shown) == 20
    assert [event["kind"] for event in shown[:5]] == ["drain", "drain", "drain", "drain", "reload"]
    first_shown = [shown[3][key] for key in ("users", "count", "done", "uncertain")]
    assert first_shown == [["u1", "u2", "u3"], 4, True, 2]


def test_moves_are_named_largest_first() -> None:
    groups = [
        {"from": "a", "to": "b", "count": 1, "users": ["u"]},
        {"to": "b", "count": 9, "users": [f"u{number}" for number in range(9)]},
        {"from": "a", "count": 2, "users": ["x", "y"]},
    ]
    moved = moved_from(groups)
    assert moved[0] == MovedUsers(None, "b", 9, ("u0", "u1", "u2"))
    assert [each.count for each in moved] == [9, 2, 1]
    event = history_json([Reloaded(3, "2 users", 0.1, (), 1.0, moved)])[0]
    assert event["ok"] is True and event["moved"][1] == {"from": "a", "to": None, "count": 2, "users": ["x", "y"]}  # type: ignore[index]
