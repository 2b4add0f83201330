# SPDX-License-Identifier: GPL-3.0-or-later
"""No document has a link to nowhere, and every page can be found from the index."""

import re
from pathlib import Path

import pytest

from tests import ROOT
from tests.docs.pages import DOCUMENTS, name_of, without_code


def anchors(document: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#{1,6} (.*)$", without_code(document.read_text("utf-8")))
    plain = [
        re.sub(r"[^\w\- ]", "", heading.replace("`", "")).strip().lower().replace(" ", "-") for heading in headings
    ]
    return {name if plain[:number].count(name) == 0 else f"{name}-{plain[:number].count(name)}"
            for number, name in enumerate(plain)}  # fmt: skip


def links(document: Path) -> list[str]:
    """Their targets, pictures among them, but for those on the web."""
    found = re.findall(r"\]\(([^()\s]+)\)", without_code(document.read_text("utf-8")))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_no_link_leads_nowhere(document: Path) -> None:
    for target in links(document):
        path, _, anchor = target.partition("#")
        other = (document.parent / path).resolve() if path else document
        assert other.exists(), target
        if anchor:
            assert anchor in anchors(other), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_bracket_that_looks_like_a_link_is_one_that_is_followed(document: Path) -> None:
    text = without_code(document.read_text("utf-8"))
    assert len(re.findall(r"\]\(", text)) == len(re.findall(r"\]\(([^()\s]+)\)", text))


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, coming = set[Path](), [ROOT / "README.md"]
    while coming:
        document = coming.pop()
        if document in reached:
            continue
        reached.add(document)
        others = {(document.parent / target.partition("#")[0]).resolve() for target in links(document)}
        coming += [path for path in others if path.suffix == ".md"]
    assert set(DOCUMENTS) <= reached, [name_of(path) for path in set(DOCUMENTS) - reached]


def test_every_picture_is_on_a_page() -> None:
    shown = {(document.parent / target).resolve() for document in DOCUMENTS for target in links(document)}
    pictures = {path for path in (ROOT / "docs").rglob("*") if path.suffix in (".svg", ".png")}
    assert pictures <= shown


def test_the_contents_of_a_page_are_its_sections() -> None:
    """Where a page begins with a list of its sections, none is missing and they are in order."""
    seen = 0
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        listed = re.findall(r"(?m)^- \[[^\]]*\]\(#([^)]*)\)", text.partition("\n## ")[0])
        if not listed:
            continue
        seen += 1
        titles = re.findall(r"(?m)^## (.*)$", without_code(text))
        made = [re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles]
        assert listed == made, name_of(document)
    assert seen > 6
