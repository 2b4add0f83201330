# SPDX-License-Identifier: GPL-3.0-or-later
"""The status page from values: what it says, and that nothing in it can become more than text."""

from __future__ import annotations

import copy
import re
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from lmtp_proxy.backends.counts import Counts
from lmtp_proxy.counts import tree_of
from lmtp_proxy.figures.samples import KEPT, Samples
from lmtp_proxy.text import octets
from lmtp_proxy.web.frame import HEADERS, framed
from lmtp_proxy.web.history import paired
from lmtp_proxy.web.page import Shown, page, rate

VOID = {"meta", "link", "br"}
HISTOGRAM = {"counts": [0] * 4 + [7] + [0] * 13, "sum": 0.1}


def of_backend(**values: int) -> dict[str, Any]:
    return {**tree_of(Counts()), "connect": HISTOGRAM, "replies": HISTOGRAM, **values}


def status_of(name: str, **values: Any) -> dict[str, Any]:
    return {"name": name, "address": f"/run/{name}", "state": "up", "trouble": None, "users": 12345, **values}


def shown(name: str = "old") -> Shown:
    """A page's worth of everything; `name` stands wherever text from outside can."""
    figures: dict[str, Any] = {
        "counters": {
            "sessions": 5, "octets": 10**9,
            "transactions": {"answered": 1234567, "refused": 1, "declined": 7, "aborted": 2},
            "refused": {"parked": 1, "unknown": 2, "lookup": 3}, "uncertain": 1,
            "lateness": HISTOGRAM, "backends": {name: of_backend(sent=41, uncertain=1)},
        },
        "gauges": {
            "sessions": 3, "held": 1, "in_flight": {"data": 2, "final dot": 1},
            "backends": {name: {"busy": 3, "idle": 1, "limit": 20, "waiting": 0}},
        },
        "longest": 0.01, "down": [], "certificates": {},
        "hold_limit": 2, "users": {name: 12345, "reject": 1}, "time": 1795511630.0,
        "started": 0.0, "generation": 4, "reloads": {"done": 3, "refused": 1}, "last_reload_refused": False,
    }  # fmt: skip
    status: dict[str, Any] = {
        "version": name, "uptime": 90000.0, "generation": 4, "pid": 77, "workers": [], "socket": name,
        "stopping": False,
        "reloading": None, "reload": None, "after_crash": None, "backends": [status_of(name, trouble=name)],
        "fallback_backend": name, "torn": None,
    }  # fmt: skip
    samples = Samples(lambda: None)
    samples.take(figures, 10.0)
    later = copy.deepcopy(figures)
    later["counters"]["transactions"]["answered"] += 50
    samples.take(later, 15.0)
    return Shown(
        hostname=name,
        status=status,
        figures=figures,
        flights=[{"session": name, "backend": name, "count": 1, "phase": name, "seconds": 2.5, "octets": 9}],
        uncertain=[{"time": "2026-11-24T09:00:00.000Z", "backend": name, "size": 4000, "session": name}],
        history=[
            {"kind": "reload", "time": "2026-11-24T09:00:00.000Z", "ok": False, "errors": [name]},
            {"kind": "drain", "time": "2026-11-24T09:00:00.000Z", "count": 3, "done": True, "waited": 1.5,
             "uncertain": 1},
            {"kind": "reload", "time": "2026-11-24T09:00:00.000Z", "ok": True, "generation": 3,
             "changes": f"1 users, changed: {name}", "moved": [{"from": name, "to": None, "count": 1500}]},
        ],
        samples=samples,
    )  # fmt: skip


class Tags(HTMLParser):
    """Every element with its attributes, and all text; asserts that they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def text_of(given: Shown) -> str:
    return " ".join(Tags(page(given)[2]).text.split())


@pytest.mark.parametrize(
    "name",
    [
        *("<script>alert(1)</script>", '"><img src=x onerror=1>', "a' onload='1", "</main></style>&lt;"),
        *("\u202e\u0000", "&#60;b&#62;", "${x}", "{0}"),
    ],
)
def test_text_from_outside_stays_text(name: str) -> None:
    honest, odd = Tags(framed(*page(shown("old")))), Tags(framed(*page(shown(name))))
    assert [tag for tag, _ in odd.tags] == [tag for tag, _ in honest.tags]
    assert [sorted(attributes) for _, attributes in odd.tags] == [sorted(attributes) for _, attributes in honest.tags]


def test_the_page_needs_nothing_else() -> None:
    text = framed(*page(shown()))
    tags = Tags(text).tags
    for tag, attributes in tags:
        for key, value in attributes.items():
            assert not key.startswith("on") and key != "style", f"{tag} {key}: the policy would forbid it"
            if key in ("src", "href"):
                assert value is not None and (value.startswith("data:image/svg+xml,") or value in ("metrics", "status"))
        assert tag not in ("img", "iframe", "object", "form", "input", "button")
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in text
    policy = dict(HEADERS)["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy


def test_the_policy_names_what_is_in_the_page() -> None:
    from base64 import b64encode
    from hashlib import sha256

    text = framed("t", "good", "<p>x</p>")
    policy = dict(HEADERS)["Content-Security-Policy"]
    for tag in ("style", "script"):
        [inside] = re.findall(f"(?s)<{tag}>(.*?)</{tag}>", text)
        assert f"{tag}-src 'sha256-{b64encode(sha256(inside.encode()).digest()).decode()}'" in policy


def test_what_is_said() -> None:
    said = text_of(shown())
    for part in (
        "Messages10.0 / s",
        "1,234,567 answered, 7 with nobody accepted, 1 refused, 2 broken off",
        "1.0 GB since the start",
        "Parked users1",
        "1 on reject, 0 on hold; 1 of 2 held back, 1 told to come again; deferred, too: 2 unknown, 3 without a look-up",
        "Users 12,346",
        "everybody else old",
        "3 in use, 1 kept, of 20",
        "3 users, waited 1.5 s, 1 uncertain",
        "1,500 old \u2192 removed, changed: old generation 3",
        "lmtp-proxyctl uncertain",
        "up 25 h 0 min",
    ):
        assert part in said, part
    title, state, _ = page(shown())
    assert (title, state) == ("old: lmtp-proxy", "good")


@pytest.mark.parametrize(
    ("values", "pill"),
    [
        ({}, "serving"),
        ({"reloading": 1.0}, "reloading"),
        ({"backends": [status_of("old", state="down", trouble="x")]}, "1 store down"),
        (
            {
                "backends": [status_of(name, state="down", trouble="x") for name in ("old", "new")],
                "reload": {"ok": False, "errors": ["x"]},
                "after_crash": {"seconds": 3.0, "worker": None},
            },
            "reload refused, 2 stores down",
        ),
        ({"after_crash": {"seconds": 3.0, "worker": None}}, "was killed"),
        ({"stopping": True, "backends": [status_of("old", state="down", trouble="x")]}, "stopping"),
    ],
)
def test_the_pill_says_what_its_colour_means(values: dict[str, Any], pill: str) -> None:
    [said] = re.findall(r'<header>.*?<span class="pill \w+">(.*?)</span>', page(changed(**values))[2])
    assert said == pill


def test_a_reload_and_its_drain_are_one_row() -> None:
    """Also where other moves come between them; the rest is as it was."""

    def reload(user: str, generation: int, to: str = "new") -> dict[str, Any]:
        moved = [{"from": "old", "to": to, "count": 1, "users": [user]}]
        return {"kind": "reload", "time": "2026-11-24T09:00:00.000Z", "ok": True, "generation": generation,
                "changes": "3 users", "moved": moved}  # fmt: skip

    def drain(user: str, waited: float, count: int | None = 1) -> dict[str, Any]:
        return {"kind": "drain", "time": "2026-11-24T09:00:00.000Z", "count": count, "users": [user], "done": True,
                "waited": waited, "uncertain": 0}  # fmt: skip

    refused = {"kind": "reload", "time": "2026-11-24T09:00:00.000Z", "ok": False, "errors": ["x"]}
    alone = drain("carol", 9.0, None)
    history = [drain("bob", 2.0), drain("alice", 3.0), refused, alone, reload("bob", 5), drain("alice", 1.0),
               reload("alice", 4, "new"), reload("alice", 3, "reject")]  # fmt: skip
    rows = paired(history)
    assert [(row["kind"], row.get("generation"), row.get("drain", {}).get("waited")) for row in rows] == [
        ("reload", None, None), ("drain", None, None), ("reload", 5, 2.0), ("reload", 4, 3.0), ("reload", 3, 1.0)
    ]  # fmt: skip
    assert "drain" not in history[4], "what was given is as it was"
    given = replace(shown(), history=paired([drain("bob", 2.0), reload("bob", 5)]))
    assert "drained1 old \u2192 new, waited 2.0 s generation 5" in text_of(given)


MIGRATION = {"from": "<old>", "to": "new", "running": True, "seconds": 600.0, "ago": 0.5, "total": 1000, "before": 100,
             "done": 199, "copied": 7, "failed": 0, "attention": 1}  # fmt: skip


def test_a_migration_stands_on_top_with_rate_and_end() -> None:
    said = text_of(replace(shown(), migration=MIGRATION))
    at = 1795511630.0 + 700 * 600.5 / 200
    for part in (
        "Migration <old> \u2192 new 300 of 1,000 users, 30 %",
        "299 done; 1 needs attention; 7 copied, and wait for their cutover; 20.0 users a minute; about 35 min left, "
        "until " + time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at)),
        "1 user needs attention, half-way in the migration",
    ):
        assert part in said, part
    assert said.index("Migration <old>") < said.index("Messages")
    assert page(replace(shown(), migration=MIGRATION))[1] == "bad"
    just_begun = {**MIGRATION, "attention": 0, "done": 0, "copied": 0, "seconds": 3.0, "ago": 1.0}
    assert "100 done; 4.0 s so far" in text_of(replace(shown(), migration=just_begun))


@pytest.mark.parametrize(
    ("values", "state", "words"),
    [
        ({"attention": 0}, "good", "about "),
        ({"attention": 0, "failed": 2}, "warn", "2 users stay on <old>, as the migration failed for them"),
        ({"attention": 0, "ago": 300.0}, "warn", "The migration has not said anything for 5 min"),
        ({"attention": 0, "ago": 300.0, "running": False}, "good", "ended 5 min ago, after 10 min"),
    ],
)
def test_what_went_wrong_in_a_migration_is_a_notice(values: dict[str, Any], state: str, words: str) -> None:
    given = replace(shown(), migration={**MIGRATION, **values})
    assert page(given)[1] == state and words in text_of(given)


def test_it_needs_no_module_that_comes_with_the_first_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may be asked for when no file can be opened, or by a user who cannot read it."""
    monkeypatch.setitem(sys.modules, "_strptime", None)
    assert " ago</small>" in page(shown())[2]


def changed(**values: Any) -> Shown:
    given = shown()
    given.status.update(values)
    return given


@pytest.mark.parametrize(
    ("values", "state", "words"),
    [
        ({"reload": {"ok": False, "errors": ["2 errors (/c.yml:3)"]}}, "bad", "not in force: 2 errors (/c.yml:3)"),
        ({"torn": "worker 1 has sha256 abc"}, "bad", "worker 1 has sha256 abc"),
        ({"backends": [status_of("old", state="down", trouble="broken")]}, "bad", "Backend old is down: broken"),
        ({"workers": [{"number": 2, "state": "dead"}]}, "bad", "Worker 2 is dead"),
        ({"stopping": True}, "warn", "no new clients are accepted"),
        ({"after_crash": {"seconds": 3.0, "worker": 12}}, "warn", "worker 12 died 3.0 s ago"),
        ({"after_crash": {"seconds": 3.0, "worker": None}}, "warn", "the process before this one died"),
        ({"reloading": 1.0}, "good", "reloading"),
    ],
)
def test_what_the_operator_has_to_know_stands_at_the_top(values: dict[str, Any], state: str, words: str) -> None:
    given = changed(**values)
    title, found, _ = page(given)
    assert found == state and title.startswith({"good": "old", "warn": "(!)", "bad": "(!!)"}[state])
    assert words in text_of(given)


def test_an_idle_proxy_without_backends_or_samples() -> None:
    given = shown()
    given.figures["counters"]["backends"] = given.figures["gauges"]["backends"] = {}
    given.figures["users"] = {}
    given.status["backends"] = []
    empty = Shown(given.hostname, given.status, given.figures, [], [], [], Samples(lambda: None))
    said = text_of(empty)
    assert "None at this moment." in said and said.count("None since the start.") == 2


def test_a_backend_that_came_with_a_reload_between_the_two_answers_is_left_out() -> None:
    assert "brandnew" not in text_of(changed(backends=[status_of("old"), status_of("brandnew")]))


# --- samples ---------------------------------------------------------------------------------------------------------


def test_samples_are_bounded_and_a_counter_that_begins_anew_is_no_negative_rate() -> None:
    given = shown()
    samples = Samples(lambda: None)
    for index in range(KEPT + 50):
        given.figures["counters"]["transactions"]["answered"] = (index * 10) % 100
        samples.take(given.figures, index * 5.0)
    rates = samples.rates(lambda sample: sample.transactions)
    assert len(rates) == KEPT - 1
    assert set(rates) == {0.0, 2.0}
    assert samples.rates(lambda sample: None) == [0.0] * (KEPT - 1)


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_numbers() -> None:
    assert [rate(value) for value in (0, 0.004, 0.25, 3.14159, 250)] == ["0", "0", "0.25", "3.1", "250"]
    assert [octets(value) for value in (0, 999, 1500, 123456, 10**7, 10**14)] == [
        "0 B", "999 B", "1.5 kB", "123 kB", "10.0 MB", "100 TB"
    ]  # fmt: skip
