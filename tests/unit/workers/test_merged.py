# SPDX-License-Identifier: GPL-3.0-or-later
"""Several workers' answers as one."""

from typing import Any

from lmtp_proxy.backends.counts import Counts
from lmtp_proxy.counts import counters_of
from lmtp_proxy.workers.merged import merged_backends, merged_status, of_worker


def backend(name: str, state: str = "up", **values: Any) -> dict[str, Any]:
    counts = ("busy", "idle", "waiting", *(counter.name for counter in counters_of(Counts) if counter.in_status))
    return {
        "name": name, "address": f"/{name}", "state": state, "trouble": None, "max_connections": 10, "users": 3,
        "waits_for": {"its greeting": 1, name: 2}, "tls": None, **dict.fromkeys(counts, 1), **values,
    }  # fmt: skip


def test_what_is_counted_is_added_up() -> None:
    one = {"sessions": 2, "held": 1, "uncertain": 0, "in_flight": {"data": 1, "commit": 0}, "backends": [backend("a")]}
    one["log"] = {"to": "syslog", "trouble": "", "waiting": 0, "lost": 2}
    broken = {"to": "syslog", "trouble": "gone", "waiting": 5, "lost": 1}
    other = {**one, "log": broken, "sessions": 5, "uncertain": 4, "in_flight": {"data": 2, "commit": 3}, "users": 9}
    merged = merged_status([{**one, "users": 9, "version": "1"}, other])
    (only,) = merged.pop("backends")
    assert merged.pop("log") == {"to": "syslog", "trouble": "gone", "waiting": 5, "lost": 3}
    assert merged == {
        "sessions": 7, "held": 2, "uncertain": 4, "in_flight": {"data": 3, "commit": 3}, "users": 9, "version": "1"
    }  # fmt: skip
    assert (only["sent"], only["max_connections"], only["users"]) == (2, 20, 3)
    assert (only["waiting"], only["waits_for"]) == (2, {"a": 4, "its greeting": 2})


def test_a_backend_is_down_where_one_worker_says_so_and_how_many_do_is_told() -> None:
    down = backend("a", "down", trouble="refused")
    cases = [
        ([backend("a"), backend("a", "unused")], "up", None),
        ([backend("a", "unused")] * 2, "unused", None),
        ([backend("a"), down], "down", "refused (seen by 1 of 2 workers)"),
        ([down, down], "down", "refused"),
    ]
    for backends, state, trouble in cases:
        (merged,) = merged_backends([[each] for each in backends])
        assert (merged["state"], merged["trouble"]) == (state, trouble)


def test_of_two_certificates_the_one_that_ends_first_is_told() -> None:
    late, soon, unknown = {"days_left": 30.0}, {"days_left": 2.0}, {"days_left": None}
    cases: list[tuple[list[Any], Any]] = [([late, None, soon], soon), ([unknown, late], late), ([None, None], None)]
    for spoken, told in cases:
        (merged,) = merged_backends([[backend("a", tls=each)] for each in spoken])
        assert merged["tls"] == told


def test_a_backend_that_one_worker_has_already_is_there() -> None:
    assert [each["name"] for each in merged_backends([[backend("a")], [backend("a"), backend("b")]])] == ["a", "b"]


def test_flights_of_two_workers_are_never_taken_for_one_another() -> None:
    flights = [flight for pid in (2, 4194304) for flight in of_worker(pid, [{"number": 0}, {"number": 7}])]
    assert len({flight["number"] for flight in flights}) == 4
    assert [flight["worker"] for flight in flights] == [2, 2, 4194304, 4194304]
    assert max(flight["number"] for flight in flights) < 2**53 + 8, "JSON has no larger ones that are exact"
    assert of_worker(5, [{"session": "x"}]) == [{"session": "x", "worker": 5}]
