# SPDX-License-Identifier: GPL-3.0-or-later
"""The rings: who may import whom, as the docstring of the package says it, and what each module may not hold.

The checks are functions over a map and sources, so that they are tested themselves with sources that break the rules.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import lmtp_proxy

PACKAGE = "lmtp_proxy"
ROOT = Path(__file__).resolve().parents[2] / PACKAGE
LEAF = "demo"
"""A program of its own, which may use the package; nothing in the package may use it."""
MAX_LINES = 360  # the rule is "about 350"
NAMES_WITHOUT_MEANING = {"util", "utils", "common", "helper", "helpers", "error", "errors", "misc"}
WITHOUT_GEVENT = {0, 1, 2, 7}
ON_THE_LOOP = "stream"
"""Of ring 1, as it is used on both sides; all others of these rings run anywhere."""
MONKEY = "service"
# Ring 0 does no I/O, keeps no time and writes no log.
NOT_IN_RING_0 = {
    "asyncio", "datetime", "io", "logging", "multiprocessing", "os", "pathlib", "select", "selectors", "signal",
    "smtplib", "socket", "ssl", "subprocess", "syslog", "tempfile", "threading", "time",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a module stands: its ring, and how far down the whole map."""

    ring: int
    line: int


def parse_map(text: str) -> dict[str, Place]:
    """`Ring N, ...:` and below it one indented line per module, its name first."""
    places: dict[str, Place] = {}
    ring: int | None = None
    for number, line in enumerate(text.splitlines()):
        if heading := re.match(r"Ring (\d+)\b.*:$", line):
            if ring is not None and int(heading[1]) <= ring:
                raise ValueError(f"ring {heading[1]} stands below ring {ring}")
            ring = int(heading[1])
        elif ring is not None and (entry := re.match(r" {4}([a-z_][a-z0-9_.]*) {2,}\S", line)):
            if entry[1] in places:
                raise ValueError(f"{entry[1]} stands twice in the map")
            places[entry[1]] = Place(ring, number)
        elif ring is not None and line.strip():
            raise ValueError(f"neither a ring nor a module: {line!r}")
    return places


def modules_of(root: Path) -> dict[str, Path]:
    """Each module below `root` by its dotted name within the package; the package itself is ""."""
    found: dict[str, Path] = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(source: str, module: str, known: set[str], *, is_package: bool = False) -> set[str]:
    """Every module that a source imports, wherever in it: our own as "lmtp_proxy.x", others by their whole name.

    known: our modules, to tell `from lmtp_proxy.tables import static`, a module, from `... import Table`, a name.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = [PACKAGE, *filter(None, module.split("."))]
                parent = here if is_package else here[:-1]
                base = ".".join([*parent[: len(parent) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                if not ours(base):
                    found.update({base, name})
                elif inner(name) in known or alias.name == "*":
                    found.add(name.removesuffix(".*"))
                else:
                    found.add(base)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                found.add(node.args[0].value)
    return found


def ours(name: str) -> bool:
    return name.partition(".")[0] == PACKAGE


def inner(name: str) -> str:
    """The name within the package; the package itself is ""."""
    return name.removeprefix(PACKAGE).removeprefix(".")


def violations(module: str, source: str, places: Mapping[str, Place], *, is_package: bool = False) -> list[str]:
    """What is wrong with one module's imports, each as one sentence."""
    wrong: list[str] = []
    here = places.get(module)
    for name in sorted(imports_of(source, module, set(places) | {LEAF}, is_package=is_package)):
        top = name.partition(".")[0]
        if ours(name):
            target = inner(name)
            if target == LEAF or target.startswith(f"{LEAF}."):
                wrong.append(f"{module} imports {target}, which nothing may import")
            elif target == "" or target == module or here is None:
                continue  # the package holds its version and this map, no code
            elif target not in places:
                wrong.append(f"{module} imports {target}, which is not in the map")
            elif places[target].ring > here.ring:
                wrong.append(f"{module} (ring {here.ring}) imports {target} (ring {places[target].ring})")
            elif places[target].line > here.line:
                wrong.append(f"{module} imports {target}, which stands below it in ring {here.ring}")
        elif here is not None:
            if top in ("gevent", "greenlet") and here.ring in WITHOUT_GEVENT and module != ON_THE_LOOP:
                wrong.append(f"{module} (ring {here.ring}) imports {name}")
            if re.match(r"gevent\.monkey\b", name) and module != MONKEY:
                wrong.append(f"{module} imports {name}, which is for {MONKEY} alone")
            if here.ring == 0 and top in NOT_IN_RING_0:
                wrong.append(f"{module} (ring 0) imports {name}")
    return wrong


PLACES = parse_map(lmtp_proxy.__doc__ or "")
MODULES = modules_of(ROOT)


def is_leaf(module: str) -> bool:
    return module == LEAF or module.startswith(f"{LEAF}.")


def is_package(module: str) -> bool:
    return MODULES[module].name == "__init__.py"


# --- the package -----------------------------------------------------------------------------------------------------


def test_the_map_has_all_rings() -> None:
    assert {place.ring for place in PLACES.values()} == set(range(8))


def test_every_module_is_in_the_map_and_every_entry_is_a_module() -> None:
    existing = {module for module in MODULES if module and not is_leaf(module)}
    assert existing - set(PLACES) == set(), "not in the map"
    assert set(PLACES) - existing == set(), "in the map, but there is no such module"


@pytest.mark.parametrize("module", sorted(module for module in MODULES if not is_leaf(module)))
def test_a_module_imports_only_from_inside_and_above(module: str) -> None:
    source = MODULES[module].read_text("utf-8")
    assert violations(module, source, PLACES, is_package=is_package(module)) == []
    if module == "":
        assert not any(map(ours, imports_of(source, "", set(PLACES), is_package=True))), "the package imports itself"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_is_short_and_has_a_name_of_its_own(module: str) -> None:
    source = MODULES[module].read_text("utf-8")
    assert len(source.splitlines()) <= MAX_LINES
    assert not set(module.split(".")) & NAMES_WITHOUT_MEANING
    assert ast.get_docstring(ast.parse(source)), "a module opens with what it is for"


def test_only_the_service_patches() -> None:
    """Written differently from the check of imports: the word itself, in code, stands in one module."""
    using = {
        module
        for module, path in MODULES.items()
        if not is_leaf(module)
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if (isinstance(node, ast.Name) and node.id == "monkey")
        or (isinstance(node, ast.Attribute) and node.attr in ("monkey", "patch_all"))
        or (isinstance(node, ast.alias) and node.name.split(".")[-1] == "monkey")
    }
    assert using == {MONKEY}


# --- the checks themselves -------------------------------------------------------------------------------------------

MAP = """A package.

Ring 0, values:
    reply           a reply
    events          events
Ring 1, files:
    tables          the interface
    tables.static   a driver
Ring 5, clients:
    session         the loop
    server          listening
Ring 6, the process:
    service         one process
Ring 7, the command:
    cli             the command
"""


def test_the_map_is_read() -> None:
    places = parse_map(MAP)
    assert [(name, place.ring) for name, place in places.items()] == [
        ("reply", 0), ("events", 0), ("tables", 1), ("tables.static", 1), ("session", 5), ("server", 5), ("service", 6),
        ("cli", 7),
    ]  # fmt: skip
    assert places["reply"].line < places["events"].line < places["tables"].line


@pytest.mark.parametrize(
    "text, message",
    [
        ("Ring 1, b:\n    a  x\nRing 0, a:\n    b  x\n", "ring 0 stands below ring 1"),
        ("Ring 1, b:\n    a  x\nRing 1, c:\n    b  x\n", "ring 1 stands below ring 1"),
        ("Ring 0, a:\n    a  x\n    a  x\n", "a stands twice"),
        ("Ring 0, a:\n  a  x\n", "neither a ring nor a module"),
        ("Ring 0, a:\n    a\n", "neither a ring nor a module"),
    ],
)
def test_a_broken_map_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_map(text)


@pytest.mark.parametrize(
    "module, source, wrong",
    [
        # Right ones.
        ("session", "import socket\nimport gevent\nfrom lmtp_proxy import reply as say\n", None),
        ("session", "from lmtp_proxy.reply import Reply\nfrom lmtp_proxy.tables import Table, static\n", None),
        ("server", "from lmtp_proxy.session import Session\n", None),
        ("events", "import lmtp_proxy.reply\nfrom lmtp_proxy import __version__\n", None),
        ("tables.static", "from lmtp_proxy.tables import TableUnavailable\n", None),
        ("tables.static", "from . import TableUnavailable\nfrom ..reply import OK\n", None),
        ("service", "from gevent import monkey\nmonkey.patch_all()\n", None),
        ("cli", "def main():\n    from lmtp_proxy import service\n", None),
        # Outer rings, in each way of writing it.
        ("reply", "from lmtp_proxy.tables import Table\n", "reply (ring 0) imports tables (ring 1)"),
        ("reply", "from lmtp_proxy import session\n", "reply (ring 0) imports session (ring 5)"),
        ("reply", "import lmtp_proxy.session\n", "reply (ring 0) imports session (ring 5)"),
        ("reply", "import lmtp_proxy.session as s, sys\n", "reply (ring 0) imports session (ring 5)"),
        ("reply", "from . import session\n", "reply (ring 0) imports session (ring 5)"),
        ("reply", "from .session import Session\n", "reply (ring 0) imports session (ring 5)"),
        ("tables.static", "from ..session import Session\n", "tables.static (ring 1) imports session (ring 5)"),
        ("session", "def f():\n    from lmtp_proxy import service\n", "session (ring 5) imports service (ring 6)"),
        ("session", "if False:\n    import lmtp_proxy.cli\n", "session (ring 5) imports cli (ring 7)"),
        ("session", "import importlib\nimportlib.import_module('lmtp_proxy.cli')\n",
         "session (ring 5) imports cli (ring 7)"),
        ("session", "__import__('lmtp_proxy.cli')\n", "session (ring 5) imports cli (ring 7)"),
        ("reply", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lmtp_proxy import cli\n",
         "reply (ring 0) imports cli (ring 7)"),
        # Below in the same ring.
        ("session", "from lmtp_proxy.server import Server\n",
         "session imports server, which stands below it in ring 5"),
        ("reply", "from lmtp_proxy import events\n", "reply imports events, which stands below it in ring 0"),
        ("tables", "from lmtp_proxy.tables import static\n",
         "tables imports tables.static, which stands below it in ring 1"),
        ("tables", "from .static import StaticTable\n",
         "tables imports tables.static, which stands below it in ring 1"),
        # What is not there.
        ("session", "import lmtp_proxy.helpers\n", "session imports helpers, which is not in the map"),
        ("session", "from lmtp_proxy.helpers import x\n", "session imports helpers, which is not in the map"),
        # The leaf.
        ("session", "from lmtp_proxy import demo\n", "session imports demo, which nothing may import"),
        ("cli", "import lmtp_proxy.demo.store\n", "cli imports demo.store, which nothing may import"),
        ("cli", "from lmtp_proxy.demo.store import Store\n", "cli imports demo.store, which nothing may import"),
        ("", "from lmtp_proxy import demo\n", " imports demo, which nothing may import"),
        # gevent where it may not be, patching where it may not be.
        ("tables", "import gevent\n", "tables (ring 1) imports gevent"),
        ("cli", "from gevent.event import Event\n", "cli (ring 7) imports gevent.event"),
        ("cli", "import greenlet\n", "cli (ring 7) imports greenlet"),
        ("server", "from gevent import monkey\n", "server imports gevent.monkey, which is for service alone"),
        ("server", "import gevent.monkey\n", "server imports gevent.monkey, which is for service alone"),
        ("server", "from gevent.monkey import patch_all\n", "server imports gevent.monkey, which is for service alone"),
        # I/O in ring 0.
        ("reply", "import socket\n", "reply (ring 0) imports socket"),
        ("events", "from time import monotonic\n", "events (ring 0) imports time"),
        ("events", "import logging.handlers\n", "events (ring 0) imports logging.handlers"),
    ],
)  # fmt: skip
def test_the_check_finds_what_is_wrong_and_nothing_else(module: str, source: str, wrong: str | None) -> None:
    found = violations(module, source, parse_map(MAP), is_package=module in ("", "tables"))
    assert (wrong in found) if wrong else (found == [])


def test_modules_are_found_by_their_dotted_names(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    for name in ("__init__.py", "reply.py", "tables/__init__.py", "tables/static.py", "notes.txt"):
        (tmp_path / name).touch()
    assert set(modules_of(tmp_path)) == {"", "reply", "tables", "tables.static"}
