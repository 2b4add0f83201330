# SPDX-License-Identifier: GPL-3.0-or-later
"""The pages that people read, and their sections."""

import re
from collections.abc import Mapping
from pathlib import Path

from tests import ROOT

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "findings/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def text_of(name: str) -> str:
    """name: the path from the root of the checkout, as in the next one."""
    return (ROOT / name).read_text("utf-8")


def section(name: str, title: str) -> str:
    """What stands under a heading of the second level."""
    return text_of(name).split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def without_code(text: str) -> str:
    """Without fenced blocks, which may be indented."""
    return re.sub(r"(?ms)^ *```.*?^ *```", "", text)


def blocks(text: str, language: str) -> list[str]:
    """What is fenced as `language`, without the indentation of its fence."""
    found = re.findall(rf"(?ms)^( *)```{language}\n(.*?)^ *```$", text)
    return [re.sub(rf"(?m)^{margin}", "", inside) for margin, inside in found]


def replaced(text: str, meanings: Mapping[str, str]) -> str:
    """The text with each of them replaced, the longest first."""
    for there in sorted(meanings, key=len, reverse=True):
        text = text.replace(there, meanings[there])
    return text
