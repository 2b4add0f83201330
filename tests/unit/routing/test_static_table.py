# SPDX-License-Identifier: GPL-3.0-or-later
"""The check that every table must pass, and the tables that there are."""

import os
import pickle
import random
from array import array
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtp_proxy.routing.static_table import KeyChange, SameKey, StaticTable, changes, write_table
from lmtp_proxy.routing.table import Table, TableUnavailable


def in_a_file(users: Mapping[str, str]) -> StaticTable:
    """As another process would have made it."""
    handle = os.memfd_create("test")
    table = StaticTable(users)
    os.write(handle, table.octets())
    return StaticTable.of_file(handle, table.shape)


# One row per driver: how a test makes a table that holds these keys.
DRIVERS: dict[str, Callable[[Mapping[str, str]], Table]] = {"static": StaticTable, "static in a file": in_a_file}


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


def test_it_says_whether_a_key_has_a_domain(make: Callable[[Mapping[str, str]], Table]) -> None:
    bare = {f"user{number:04}": "new@store" for number in range(300)}
    assert not make({}).has_domains and not make(bare).has_domains
    for key in ("a@x", "zoe@x", "@x", "user0100@x", "a@b@c"):
        assert make({**bare, key: "old"}).has_domains


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from(["old", "new"])),
    st.dictionaries(st.sampled_from("abcdefghij"), st.sampled_from(["old", "other", None])),
)
def test_what_lies_over_a_table_is_what_it_says(users: dict[str, str], overlay: dict[str, str | None]) -> None:
    table = StaticTable(users)
    expected = {key: name for key, name in {**users, **overlay}.items() if name is not None}
    found = table.overlaid(overlay)
    assert dict(found) == expected and list(found) == sorted(expected)
    assert found == StaticTable(expected) and dict(table) == users
    assert (found is table) == (not overlay)


def test_a_mapping_that_was_given_up_is_made_again() -> None:
    """Its file stays. What is in no file has nothing to give up."""
    for table in (StaticTable({"a": "old"}), in_a_file({"a": "old"})):
        table.unmap()  # there is none yet
        assert table.lookup("a") == "old"
        table.unmap()
        assert table.lookup("a") == "old" and table["a"] == "old"


def test_repr_gives_the_size(make: Callable[[Mapping[str, str]], Table]) -> None:
    table = make({"a": "old", "b": "new"})
    assert "2 keys" in repr(table)
    assert "old" not in repr(table)  # 100,000 users do not fit into a log line


def test_unavailable_says_which_table_and_why() -> None:
    assert str(TableUnavailable("static: gone")) == "static: gone"
    assert not issubclass(TableUnavailable, LookupError)  # nobody may take it for "not found"


# --- of the static table alone ---------------------------------------------------------------------------------------

MANY = {f"user{number:04d}@x": ("old", "new", "third")[number % 3] for number in range(10_000)}


@pytest.mark.parametrize("make", [StaticTable, in_a_file])
def test_a_large_one_in_any_order(make: Callable[[Mapping[str, str]], StaticTable]) -> None:
    keys = random.Random(1).sample(sorted(MANY), len(MANY))
    table = make({key: MANY[key] for key in keys})
    assert dict(table) == MANY == dict(table.items())
    assert list(table) == sorted(MANY)
    assert [table.lookup(key) for key in keys] == [MANY[key] for key in keys]
    assert [table.line(key) for key in keys] == list(range(1, len(keys) + 1))
    for stranger in ("", "user", "user0000@", "user0000@xx", "user9999@x!", "\udcff", "z"):
        assert table.lookup(stranger) is None
    with pytest.raises(KeyError):
        table["stranger"]


def test_a_key_cannot_reach_into_the_next_record() -> None:
    table = StaticTable({"a": "old", "b": "new"})
    for key in ("a\told\nb", "a\told", "\na", "a\t", "\t", "old\nb"):
        assert table.lookup(key) is None


def test_a_key_that_is_the_start_of_others() -> None:
    users = {"a": "1", "a!": "2", "aa": "3", "ab": "4", "b": "5", "é": "6", "\U0001f600": "7"}
    assert dict(StaticTable(users)) == users


def test_lines_are_no_part_of_the_value() -> None:
    table = StaticTable({"a": "old", "b": "new"}, [7, 3])
    assert (table.line("a"), table.line("b")) == (7, 3)
    assert table == StaticTable({"b": "new", "a": "old"})
    assert table == {"a": "old", "b": "new"}
    assert table not in (StaticTable({"a": "old"}), StaticTable({"a": "old", "b": "old"}), {"a": "old"}, "ab")


def test_two_records_of_one_key() -> None:
    for records in ([b"a\told", b"a\tnew"], [b"a\told"] * 2, [*(b"%03d\tx" % n for n in range(64)), b"063\ty"]):
        with pytest.raises(SameKey):
            write_table(records, array("I", range(len(records))), (), len)


def test_a_file_that_is_mapped_before_its_first_use_needs_no_descriptor_then() -> None:
    table = in_a_file({"alice@example.test": "old"})
    table.open()
    [handle] = table.handles
    os.dup2(os.open("/dev/null", os.O_RDONLY), handle)
    assert table.lookup("alice@example.test") == "old"


def test_a_closed_one_is_unavailable_and_leaves_no_descriptor() -> None:
    table = in_a_file({"a": "old"})
    (handle,) = table.handles
    assert table.lookup("a") == "old"
    table.close()
    assert table.handles == ()
    with pytest.raises(TableUnavailable, match="another table"):
        table.lookup("a")
    with pytest.raises(OSError):
        os.fstat(handle)
    table.close()
    of_octets = StaticTable({"a": "old"})
    of_octets.close()
    assert of_octets.lookup("a") == "old"
    forgotten = in_a_file({"a": "old"})
    (handle,) = forgotten.handles
    del forgotten
    with pytest.raises(OSError):
        os.fstat(handle)


def test_a_copy_by_pickle() -> None:
    table = in_a_file({"a": "old", "b": "new"})
    copy = pickle.loads(pickle.dumps(table))
    assert copy == table and copy.line("b") == 2 and copy.handles == ()


SOME_KEYS = st.sampled_from(sorted(MANY)[::90]) | st.text("abé", max_size=3)
USERS = st.dictionaries(SOME_KEYS, st.sampled_from(["old", "new"]))


@settings(max_examples=40, deadline=None)
@given(USERS, USERS, st.sampled_from([{}, MANY]), st.sampled_from([{}, MANY]))
def test_changes(one: dict[str, str], other: dict[str, str], base: dict[str, str], base2: dict[str, str]) -> None:
    before, after = {**base, **one}, {**base2, **other}
    old, new = StaticTable(before), StaticTable(after)
    wanted = {
        KeyChange(key, before.get(key), name, new.line(key)) for key, name in after.items() if before.get(key) != name
    }
    wanted |= {KeyChange(key, name, None, old.line(key)) for key, name in before.items() if key not in after}
    found = list(changes(old, new))
    assert len(found) == len(wanted)
    assert set(found) == wanted
    assert (old == new) is (before == after)
