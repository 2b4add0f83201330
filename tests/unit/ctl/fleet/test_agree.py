# SPDX-License-Identifier: GPL-3.0-or-later
"""What hosts say of users and backends, compared."""

from dataclasses import replace

import pytest

from lmtp_proxy.ctl.client import Answer, ControlError
from lmtp_proxy.ctl.fleet.agree import Look, differences, look_of
from lmtp_proxy.ctl.fleet.errands import listed
from lmtp_proxy.ctl.validity import Moment

BACKENDS: dict[str, str | None] = {"old": "/run/old", "new": "192.0.2.20:24", "other": "/run/other"}


def look(host: str, place: str | None) -> Look:
    return Look(host, {"alice": place}, {"alice": place}, {"ignoreDomain": True}, BACKENDS, Moment("b", 1.0), 1.0)


def said(*places: str | None) -> list[str]:
    looks = [look(f"mx{number}", place) for number, place in enumerate(places, 1)]
    return differences(looks, ["alice"], "new")


@pytest.mark.parametrize(
    "places",
    [
        ("old", "old"), ("old", "hold"), ("hold", "hold"), ("new", "hold", "new"), ("old", "hold", "new"),
        (None, None), (None, "hold"), ("reject", "reject", "hold"),
    ],
)  # fmt: skip
def test_the_same_and_what_an_earlier_move_has_left(places: tuple[str | None, ...]) -> None:
    assert said(*places) == []


def test_elsewhere() -> None:
    assert said("old", "other", "old") == ["alice: is on old on mx1 and mx3, other on mx2"]
    assert said("old", None) == ["alice: is on old on mx1, no backend on mx2"]
    assert said("old", "reject") == ["alice: is on old on mx1, reject on mx2"]
    assert said("hold", "old", "other", "new") == ["alice: is on hold on mx1, old on mx2, other on mx3, new on mx4"]


def test_an_address_that_is_another_one_and_a_backend_that_is_nobodys_business() -> None:
    there = {**BACKENDS, "other": "/elsewhere"}
    looks = [look("mx1", "old"), replace(look("mx2", "old"), backends=there)]
    assert differences(looks, ["alice"], "new") == []
    looks[1] = replace(look("mx2", "old"), backends={**BACKENDS, "old": "/elsewhere"})
    assert differences(looks, ["alice"], "new") == ["backend old: /run/old on mx1, /elsewhere on mx2"]
    assert differences(looks, ["alice"], "reject") == ["backend old: /run/old on mx1, /elsewhere on mx2"]
    looks[1] = replace(look("mx2", "old"), backends={"old": "/run/old"})
    assert differences(looks, ["alice"], "new") == ["backend new: 192.0.2.20:24 on mx1, not there on mx2"]


def test_names_that_are_read_differently() -> None:
    looks = [look("mx1", "old"), replace(look("mx2", "old"), keys={"ignoreDomain": False})]
    assert differences(looks, ["alice"], "new") == ["ignoreDomain: True on mx1, False on mx2"]


ANSWER = {
    "previous": {"alice": None, "bob": "old"},
    "overrides": {"alice": {"backend": "old", "by": "fallback_backend"}},
    "meaning": {"keys": {}, "backends": {"old": "/run/old"}},
    "clock": {"boot": "b", "seconds": 5},
}


def test_where_mail_goes_is_not_the_line_alone() -> None:
    found = look_of("mx1", Answer(ANSWER, "mx1"), ["bob", "alice"], 7.0)
    assert found.lines == {"alice": None, "bob": "old"} and found.places == {"alice": "old", "bob": "old"}
    assert found.clock == Moment("b", 5.0) and found.at == 7.0


@pytest.mark.parametrize(
    "wrong",
    [{"previous": {"alice": "old"}}, {"previous": []}, {"previous": {"alice": 1, "bob": None}}, {"overrides": 1},
     {"meaning": {}}, {"clock": {"boot": "b"}}, {"overrides": {"alice": {}}}],
)  # fmt: skip
def test_an_answer_to_something_else(wrong: dict[str, object]) -> None:
    with pytest.raises(ControlError):
        look_of("mx1", Answer({**ANSWER, **wrong}, "mx1"), ["alice", "bob"], 7.0)


def test_users_in_a_list() -> None:
    users = ["alice@x", "@x", "#alice@x", "#bob", 'a"b@x', "jörg@x"]
    assert listed(users).decode().splitlines() == [
        "alice@x", "@x", '"#alice"@x', '"#bob"', '"a\\"b"@x', "jörg@x",
    ]  # fmt: skip
