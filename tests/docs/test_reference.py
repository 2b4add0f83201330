# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/reference/ is what the man pages say now."""

import pytest

from tests.docs.reference import DOCS, PAGES, made, path_of


@pytest.mark.parametrize("name", PAGES)
def test_it_is_made_from_the_man_page_as_it_is(name: str) -> None:
    assert path_of(name).read_text("utf-8") == made(name), "write it anew: .venv/bin/python -m tests.docs.reference"


def test_no_man_page_is_left_out() -> None:
    assert {path.name for path in DOCS.glob("*.[58]")} == set(PAGES)
    index = (DOCS / "README.md").read_text("utf-8")
    assert all(f"(reference/{name}.md)" in index for name in PAGES)


def test_nothing_of_the_markup_is_left() -> None:
    for name in PAGES:
        text = made(name)
        assert "\0" not in text and "\\(" not in text, name
        assert not [line for line in text.splitlines() if line.startswith(".")], name
