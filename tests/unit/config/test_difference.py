# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs between two configurations: groups of users, backends, keys."""

from dataclasses import replace
from typing import Any

import pytest

from lmtp_proxy.config import difference as config_difference
from lmtp_proxy.config.difference import compare_users, too_many_removed, who_moved, without
from lmtp_proxy.config.values import Backend, Config, MaxRemoved, UnixAddress
from lmtp_proxy.routing.static_table import StaticTable

OLD = Config(
    path="/etc/a.yml",
    socket=(UnixAddress("/run/s"),),
    hostname="mx",
    backends={name: Backend(name, UnixAddress(f"/run/{name}")) for name in ("old", "new")},
    users=StaticTable({"a": "old", "b": "old", "c": "new", "d": "reject"}),
    digest="1",
)
SAME = {"users": 4, "added": [], "removed": [], "moved": [], "backends": [], "config": [], "notes": []}


def difference(old: Config, new: Config) -> dict[str, Any]:
    return config_difference.difference(old, new, compare_users(old.users, new.users))


def test_nothing_differs() -> None:
    assert difference(OLD, OLD) == SAME
    # Another file, read at another time.
    assert difference(OLD, replace(OLD, path="/tmp/b.yml", digest="2", modified=5.0)) == SAME
    assert difference(OLD, replace(OLD, notes=("a",))) == {**SAME, "notes": ["a"]}


def test_users_are_grouped_by_where_they_were_and_will_be() -> None:
    new = replace(OLD, users=StaticTable({"a": "new", "b": "new", "c": "hold", "e": "old", "f": "reject"}))
    assert difference(OLD, new) == {
        **SAME,
        "users": 5,
        "added": [{"to": "old", "count": 1, "users": ["e"]}, {"to": "reject", "count": 1, "users": ["f"]}],
        "removed": [{"from": "reject", "count": 1, "users": ["d"]}],
        "moved": [
            {"from": "new", "to": "hold", "count": 1, "users": ["c"]},
            {"from": "old", "to": "new", "count": 2, "users": ["a", "b"]},
        ],
    }


def test_the_count_is_exact_where_not_all_are_shown() -> None:
    many = [f"u{number:03d}" for number in range(21)]
    (group,) = difference(OLD, replace(OLD, users=StaticTable({**OLD.users, **dict.fromkeys(many, "new")})))["added"]
    assert (group["count"], group["users"]) == (21, many[:20])


def test_backends_and_keys() -> None:
    backends = {"new": replace(OLD.backends["new"], max_connections=5), "third": Backend("third", UnixAddress("/x"))}
    new = replace(OLD, backends=backends, hostname="other", ignore_domain=True)
    found = difference(OLD, new)
    assert found["backends"] == [
        {"name": "new", "change": "changed"},
        {"name": "old", "change": "removed"},
        {"name": "third", "change": "added"},
    ]
    assert found["config"] == ["config.hostname", "config.ignoreDomain"]


def test_what_a_reload_may_not_remove() -> None:
    old = replace(OLD, users=StaticTable({f"u{number:03}": "old" for number in range(200)}))
    fewer = {f"u{number:03}": "new" for number in range(180)}

    def refused(users: dict[str, str], config: Config = old) -> str | None:
        return too_many_removed(config, compare_users(config.users, StaticTable(users)))

    assert refused(fewer) is None
    del fewer["u000"]
    assert refused(fewer) == (
        "/etc/a.yml: users: would remove 21 of 200 users (u000, u180, u181, ...), more than config.max_removed allows "
        "(10%, which is 20): was the file cut off? `lmtp-proxyctl reload --force`, or a restart, puts it in force all "
        "the same"
    )
    assert refused({**fewer, **{f"x{number}": "old" for number in range(100)}}) is not None, (
        "new ones do not make up for it"
    )
    assert refused({}, replace(OLD, users=StaticTable(dict.fromkeys("abcdefghij", "old")))) is None
    assert refused({}, replace(OLD, max_removed=MaxRemoved(0))) is not None
    assert difference(old, replace(old, users=StaticTable(fewer)))["notes"] == [refused(fewer)]


@pytest.mark.parametrize("more", [0, 30])
def test_who_moved_is_named_the_first_of_many(more: int) -> None:
    old = {"a@x": "old", "b@x": "old", "c@x": "old", "d@x": "old"}
    new = {"a@x": "reject", "b@x": "old", "d@x": "new", "e@x": "hold"}
    new |= {f"n{number}@x": "new" for number in range(more)}
    named = who_moved(compare_users(StaticTable(old), StaticTable(new)))
    assert named[:3] == ["d@x: old -> new", "a@x: old -> reject", "c@x: removed from old"]
    assert "e@x: added on hold" in named
    assert len(named) == (21 if more else 4) and named[-1] == ("and 14 more" if more else named[3])
    assert who_moved(compare_users(StaticTable(old), StaticTable(old))) == []


def test_changes_but_for_some_users() -> None:
    old = StaticTable({"a": "old", "b": "old", "c": "old"} | {f"u{number:02}": "old" for number in range(30)})
    new = StaticTable({"a": "new", "b": "new", "d": "old"} | {f"u{number:02}": "new" for number in range(30)})
    users = compare_users(old, new)
    assert without(users, old, new, ()) == users
    rest = without(users, old, new, {"a", "c", "x", "u29"})
    assert rest["moved"][0]["count"] == 30 and "a" not in rest["moved"][0]["users"]
    assert rest["removed"] == [] and rest["added"] == users["added"]
