# SPDX-License-Identifier: GPL-3.0-or-later
"""The check that every table must pass, and the tables that there are."""

from collections.abc import Callable, Mapping

import pytest

from lmtp_proxy.tables import Table, TableUnavailable
from lmtp_proxy.tables.static import StaticTable

# One row per driver: how a test makes a table that holds these keys.
DRIVERS: dict[str, Callable[[Mapping[str, str]], Table]] = {"static": StaticTable}


@pytest.fixture(params=sorted(DRIVERS))
def make(request: pytest.FixtureRequest) -> Callable[[Mapping[str, str]], Table]:
    return DRIVERS[request.param]


def test_a_key_has_its_backend_and_others_have_none(make: Callable[[Mapping[str, str]], Table]) -> None:
    table = make({"alice@example.test": "old", "@example.test": "new", "bob": "reject", "jürgen": "hold"})
    assert table.lookup("alice@example.test") == "old"
    assert table.lookup("@example.test") == "new"
    assert table.lookup("bob") == "reject"  # what a name means is not for the table
    assert table.lookup("jürgen") == "hold"
    for stranger in ("", "alice", "Alice@example.test", "alice@example.test ", "@", "*", "%"):
        assert table.lookup(stranger) is None
    assert len(table) == 4


def test_an_empty_table(make: Callable[[Mapping[str, str]], Table]) -> None:
    table = make({})
    assert table.lookup("alice") is None
    assert len(table) == 0


def test_repr_gives_the_size(make: Callable[[Mapping[str, str]], Table]) -> None:
    table = make({"a": "old", "b": "new"})
    assert "2 keys" in repr(table)
    assert "old" not in repr(table)  # 100,000 users do not fit into a log line


def test_unavailable_says_which_table_and_why() -> None:
    assert str(TableUnavailable("static: gone")) == "static: gone"
    assert not issubclass(TableUnavailable, LookupError)  # nobody may take it for "not found"
