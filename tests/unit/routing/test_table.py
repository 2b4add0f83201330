# SPDX-License-Identifier: GPL-3.0-or-later
"""The interface of a table: what each driver must have, and that "cannot say" is never taken for "not there".

What every driver must do is in test_static_table, which is for all that there are.
"""

import inspect

import pytest

from lmtp_proxy.routing.static_table import StaticTable
from lmtp_proxy.routing.table import Table, TableUnavailable

DRIVERS = [StaticTable]


def asked_of(interface: type) -> set[str]:
    return {
        name
        for name, value in vars(interface).items()
        if inspect.isfunction(value) or isinstance(value, property)
        if not name.startswith("_") or name == "__len__"
    }


def test_what_a_table_is_asked_for() -> None:
    assert asked_of(Table) == {"lookup", "has_domains", "constant", "__len__"}


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_driver_has_all_of_it(driver: type) -> None:
    assert all(hasattr(driver, name) for name in asked_of(Table))
    ours, theirs = inspect.signature(Table.lookup), inspect.signature(driver.lookup)  # type: ignore[attr-defined]
    assert list(ours.parameters) == list(theirs.parameters)
    assert ours.return_annotation == theirs.return_annotation == str | None


def test_what_is_unavailable_is_no_error_that_a_mapping_has() -> None:
    """Whoever catches KeyError for a user who is not there must not catch this."""
    assert not issubclass(TableUnavailable, LookupError)
    with pytest.raises(TableUnavailable, match="ldap://directory: timed out"):
        raise TableUnavailable("ldap://directory: timed out")
