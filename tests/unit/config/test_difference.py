# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs between two configurations: groups of users, backends, keys."""

from dataclasses import replace
from typing import Any

from lmtp_proxy.config import difference as config_difference
from lmtp_proxy.config.difference import compare_users
from lmtp_proxy.config.values import Backend, Config, UnixAddress
from lmtp_proxy.routing.static_table import StaticTable

OLD = Config(
    path="/etc/a.yml",
    socket=UnixAddress("/run/s"),
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
