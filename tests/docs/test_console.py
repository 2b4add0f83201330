# SPDX-License-Identifier: GPL-3.0-or-later
"""Every `console` block of a document is run by a test, or it is said here why it cannot be."""

import re

import pytest

from tests import ROOT
from tests.docs.pages import DOCUMENTS, blocks, name_of

RUN_BY: dict[tuple[str, str], str] = {
    ("README.md", "Install"): "tests/packaging/building.py",
    ("README.md", "Move one user"): "tests/docs/test_first_hour.py",
    ("docs/migration.md", ""): "tests/e2e/migration_stand.py",
    ("docs/migration-by-hand.md", ""): "tests/e2e/migration_stand.py",
}
"""Page and section, or all sections of the page -> the test, or what a test takes its commands from there with."""
NOT_RUN: dict[tuple[str, str], str] = {
    ("README.md", "Migrate many"): "has a window in the night; docs/migration.md has the same verb, and is run",
}


def where() -> list[tuple[str, str]]:
    """Page and section of each block."""
    found = []
    for document in DOCUMENTS:
        for part in re.split(r"(?m)^## ", document.read_text("utf-8")):
            title = part.partition("\n")[0]
            found += [(name_of(document), title)] * len(blocks(part, "console"))
    return found


@pytest.mark.parametrize("page,title", sorted(set(where())))
def test_it_is_run(page: str, title: str) -> None:
    if (page, title) in NOT_RUN:
        return
    test = RUN_BY.get((page, title)) or RUN_BY.get((page, ""))
    assert test is not None, "say in RUN_BY which test runs it, or in NOT_RUN why none can"
    text = (ROOT / test).read_text("utf-8")
    assert page.rpartition("/")[2] in text and (title in text or (page, title) not in RUN_BY)


def test_nothing_is_listed_that_is_not_there() -> None:
    pages = {page for page, _ in where()}
    for page, title in {**RUN_BY, **NOT_RUN}:
        assert page in pages and (not title or (page, title) in where()), (page, title)


def test_the_blocks_are_found() -> None:
    assert len(where()) > 30
