# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/architecture.md names every folder and nothing that is not there."""

import re
from collections import Counter
from pathlib import Path

import pytest

from tests import ROOT
from tests.unit.test_rings import HERE, MAPS, MODULES, entries

PAGE = (ROOT / "docs/architecture.md").read_text("utf-8")
NAMED = set(re.findall(r"`([^`\n]+)`", PAGE))
FOLDERS = sorted(
    {module.replace(".", "/") for module, path in MODULES.items() if module and path.name == "__init__.py"}
)
_PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)*/?")
_WORD = re.compile(r"[A-Za-z_]\w*")
OF_OTHERS = "Makefile SCM_RIGHTS inspect smtp-sink smtp-source"
BROAD = re.compile(r"except (?:Exception|BaseException)?.*# noqa: BLE001(.*)$", re.MULTILINE)


def is_path(name: str) -> bool:
    return bool(_PATH.fullmatch(name)) and (name.endswith((".py", ".md", ".yml", ".json", "/")) or "/" in name)


def names_in_use() -> set[str]:
    """All that a name can be of: the package, the configuration, the files that the page names; and others' own."""
    files = {
        *HERE.rglob("*.py"),
        ROOT / "etc/lmtp-proxy.yml",
        ROOT / "Makefile",
        *(ROOT / name for name in filter(is_path, NAMED)),
    }
    words = (_WORD.findall(path.read_text("utf-8")) for path in files - {Path(__file__)} if path.is_file())
    return set(_WORD.findall(OF_OTHERS)).union(*words)


KNOWN = names_in_use()


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_is_named(folder: str) -> None:
    assert f"`{folder}/`" in PAGE.partition("\n## Folders\n")[2].partition("\n## ")[0]


def test_every_module_at_the_top_is_named() -> None:
    for name in entries(MAPS[""]):
        assert f"`{name}`" in PAGE or f"`{name}.py`" in PAGE, name


def test_the_folders_stand_in_their_order() -> None:
    table = PAGE.partition("\n## Folders\n")[2].partition("\n## ")[0]
    found = [
        name.removesuffix(".py") for row in re.findall(r"(?m)^\| (`.*?`) \|", table) for name in row[1:-1].split("` `")
    ]
    assert [name for name in found if name not in ("ctl/fleet/", "ctl/migrate/")] == entries(MAPS[""])


@pytest.mark.parametrize("name", sorted(name for name in NAMED if is_path(name)))
def test_every_path_that_is_named_is_there(name: str) -> None:
    if name.startswith("/"):
        return
    assert any((place / name).exists() for place in (HERE, ROOT)), "neither in the package nor beside it"


@pytest.mark.parametrize("name", sorted(name for name in NAMED if not is_path(name)))
def test_every_name_is_one_in_the_code(name: str) -> None:
    """A module, class, function, key or verb that is gone is not told of any more."""
    assert set(_WORD.findall(name)) <= KNOWN


def test_the_checks_find_what_is_gone() -> None:
    assert not {"worker_process", "control_channel", "receipts_batch"} & KNOWN
    assert is_path("workers/worker_process.py") and is_path("workers/") and not is_path("worker_process")


def test_the_broad_excepts_are_those_of_the_table_and_each_says_why() -> None:
    found: Counter[str] = Counter()
    for path in HERE.rglob("*.py"):
        for why in BROAD.findall(path.read_text("utf-8")):
            found[path.relative_to(HERE).as_posix()] += 1
            assert re.fullmatch(r"  \(.{12,}\)", why), f"{path}: write why, behind BLE001 in parentheses"
    table = {name: int(number) for name, number in re.findall(r"(?m)^\| `(\S+\.py)` \| (\d+) \|$", PAGE)}
    assert table == found, "a new one has its line in the page: may one error there not end others?"
    assert f"\n| all | {found.total()} |\n" in PAGE
