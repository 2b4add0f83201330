# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of the house: who may import whom, as the maps say it, and what each room may not hold.

The package's docstring lists folders and modules in one order; the docstring of each folder's `__init__.py` lists what
is in it. The checks are functions over maps and sources, so that they are tested themselves with sources that break the
rules.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

import pytest

from tests import ROOT

PACKAGE = "lmtp_proxy"
HERE = ROOT / PACKAGE
LEAF = "demo"
"""A program of its own, which may use the package; nothing in the package may use it."""
MAX_LINES = 600  # a longer module has more than one subject, as a rule
MAX_AT_THE_TOP = 8  # files beside the folders
NAMES_WITHOUT_MEANING = {"util", "utils", "common", "helper", "helpers", "errors", "misc"}
MONKEY = "service"
WITHOUT_GEVENT = {
    "text", "streams", "counts", "wire", "routing", "config", "table", "log", "start", "ctl", "check", "trial",
    "cli",
}  # fmt: skip
"""Folders and modules that are used where there is no loop, too: before it, in the loader, in the command."""
WITHOUT_GEVENT_IN_OTHERS = {
    "loop.certificate", "loop.tls_context",
    "generations.share", "receipts.batch", "receipts.file", "delivery.uncertain", "delivery.in_flight",
    "workers.settings", "workers.worker", "web.markup", "web.graphics",
}  # fmt: skip
START_THE_REST = {"cli", "workers.worker"}
"""Of those, the ones that import what has gevent once all is ready for it."""
PURE = {"text", "counts", "wire"}
NOT_IN_PURE = {
    "asyncio", "datetime", "io", "logging", "multiprocessing", "os", "pathlib", "select", "selectors", "signal",
    "smtplib", "socket", "ssl", "subprocess", "syslog", "tempfile", "threading", "time",
}  # fmt: skip
KINDS = {"Exception", "BaseException", "ValueError", "enum.Enum", "Enum", "Protocol"}
ONE_OF_SEVERAL = {
    "loop.tls.TlsStream": "loop.stream.Stream",
    "backends.tls_session.TlsSession": "backends.session.BackendSession",
    "control.table.ControlApplication": "control.application.JsonApplication",
    "control.resources.Application": "control.table.ControlApplication",
    "workers.merged.MergedApplication": "control.table.ControlApplication",
    "web.server.MetricsApplication": "control.application.JsonApplication",
    "control.server.HttpAcceptor": "loop.acceptor.PatientAcceptor",
    "web.server._PublicAcceptor": "control.server.HttpAcceptor",
    "web.server._PublicHandler": "control.server.Handler",
    "workers.channel.ChannelServer": "control.server.ControlServer",
    "workers.channel._HandedOver": "control.server.HttpAcceptor",
    "generations.manager.ConfigManager": "generations.reloads.Reloads",
    "workers.team.Team": "generations.reloads.Reloads",
    "ctl.arguments.Parser": "streams.ProgramParser",
    "ctl.migrate.proxy._Quiet": "ctl.drain.Progress",
}
"""All that inherits from a class of another module, and why it may: several kinds of one thing, which differ in what
they answer, print or listen at. One thing in two files is not among them: who reads half a class knows nothing."""
FORMATS_TIMES = "text"
"""Of those that are pure, the one that writes times; it reads no clock."""


def entries(docstring: str) -> list[str]:
    """The names that a map lists: `    name  what it is` each; a folder has a slash, a module may have its `.py`."""
    names = re.findall(r"^ {4}([a-z_][a-z0-9_]*(?:/|\.py)?) {2,}\S", docstring, re.MULTILINE)
    names = [name.removesuffix(".py") for name in names]
    for name, same in groupby(sorted(name.rstrip("/") for name in names)):
        if len(list(same)) > 1:
            raise ValueError(f"{name} stands twice in the map")
    return names


def in_order(maps: Mapping[str, str], folder: str = "") -> Iterator[str]:
    """Every module by its dotted name, in the order of all maps. maps: the docstring of each folder, "" the package's.

    A folder stands before what is in it: it holds its map, and may hold a value that all of it needs.
    """
    for name in entries(maps[folder]):
        dotted = f"{folder}.{name.rstrip('/')}".lstrip(".")
        yield dotted
        if name.endswith("/"):
            yield from in_order(maps, dotted)


def modules_of(root: Path) -> dict[str, Path]:
    """Each module below `root` by its dotted name within the package; the package itself is ""."""
    found: dict[str, Path] = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def maps_of(root: Path) -> dict[str, str]:
    """The map of each folder below `root`, but for the leaf's: it is a program of its own."""
    return {
        module: ast.get_docstring(ast.parse(path.read_text("utf-8")), clean=False) or ""
        for module, path in modules_of(root).items()
        if path.name == "__init__.py" and not is_leaf(module)
    } | {LEAF: ""}


def imports_of(source: str, module: str, known: set[str], *, is_package: bool = False) -> set[str]:
    """Every module that a source imports, wherever in it: our own as "lmtp_proxy.x", others by their whole name.

    known: our modules, to tell `from lmtp_proxy.wire import reply`, a module, from `... import Reply`, a name.
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


def is_leaf(module: str) -> bool:
    return module == LEAF or module.startswith(f"{LEAF}.")


def runs_without_gevent(module: str) -> bool:
    return module.partition(".")[0] in WITHOUT_GEVENT or module in WITHOUT_GEVENT_IN_OTHERS


def violations(module: str, source: str, order: list[str], *, is_package: bool = False) -> list[str]:
    """What is wrong with one module's imports, each as one sentence. order: of all maps."""
    wrong: list[str] = []
    known = {*order, LEAF}
    room = module.partition(".")[0]
    for name in sorted(imports_of(source, module, known, is_package=is_package)):
        top = name.partition(".")[0]
        if ours(name):
            target = inner(name)
            if is_leaf(target):
                wrong.append(f"{module} imports {target}, which nothing may import")
            elif target in ("", module) or module not in order:
                continue  # the package holds its version, its place and its map, no code
            elif target not in order:
                wrong.append(f"{module} imports {target}, which is in no map")
            elif order.index(target) > order.index(module):
                wrong.append(f"{module} imports {target}, which stands below it")
        elif module in order:
            if top in ("gevent", "greenlet") and runs_without_gevent(module):
                wrong.append(f"{module} imports {name}, and should run without a loop")
            if re.match(r"gevent\.monkey\b", name) and module != MONKEY:
                wrong.append(f"{module} imports {name}, which is for {MONKEY} alone")
            if room in PURE and top in NOT_IN_PURE and (module, top) != (FORMATS_TIMES, "time"):
                wrong.append(f"{module} imports {name}, and is to be pure")
    return wrong


def classes_named_twice(sources: Mapping[str, str]) -> dict[str, list[str]]:
    """Names of more than one class, and the modules that have one; a `_` before it makes no other name of it."""
    found: dict[str, list[str]] = {}
    for module, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name.lstrip("_"), []).append(module)
    return {name: modules for name, modules in found.items() if len(modules) > 1}


def inherited_from_elsewhere(sources: Mapping[str, str]) -> dict[str, str]:
    """Classes with a base in another module of the package, and that base, both as module.Class.

    Exceptions are left out, and the other bases that only say of which kind a class is (KINDS).
    """
    bases: dict[str, list[str]] = {}
    for module, source in sources.items():
        tree = ast.parse(source)
        names: dict[str, str] = {}  # as they are used here
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and ours(node.module or ""):
                at = inner(node.module or "")
                names.update({alias.asname or alias.name: f"{at}.{alias.name}".lstrip(".") for alias in node.names})
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                names.setdefault(node.name, f"{module}.{node.name}")
                used = [ast.unparse(base.value if isinstance(base, ast.Subscript) else base) for base in node.bases]
                dotted = [(names.get(first, first), rest) for first, _, rest in (each.partition(".") for each in used)]
                bases[f"{module}.{node.name}"] = [f"{first}.{rest}" if rest else first for first, rest in dotted]

    def only_a_kind(name: str) -> bool:
        return any(base in KINDS or (base in bases and only_a_kind(base)) for base in bases[name])

    return {
        name: base
        for name, its in bases.items()
        for base in its
        if base in bases and base.rpartition(".")[0] != name.rpartition(".")[0] and not only_a_kind(base)
    }


MODULES = modules_of(HERE)
MAPS = maps_of(HERE)
ORDER = [*in_order(MAPS)]


def is_package(module: str) -> bool:
    return MODULES[module].name == "__init__.py"


# --- the package -----------------------------------------------------------------------------------------------------


def test_every_module_is_in_a_map_and_every_entry_is_a_module() -> None:
    existing = {module for module in MODULES if module and not is_leaf(module)}
    listed = set(ORDER) - {LEAF}
    assert existing - listed == set(), "in no map"
    assert listed - existing == set(), "in a map, but there is no such module"
    for folder, text in MAPS.items():
        for name in entries(text):
            path = MODULES[f"{folder}.{name.rstrip('/')}".lstrip(".")]
            assert (path.name == "__init__.py") == name.endswith("/"), f"{name} in the map of {folder or PACKAGE}"


def test_the_top_level_fits_on_half_a_screen() -> None:
    at_the_top = [path for path in MODULES.values() if path.parent == HERE]
    assert HERE / "__init__.py" in at_the_top
    assert len(at_the_top) <= MAX_AT_THE_TOP


@pytest.mark.parametrize("module", sorted(module for module in MODULES if not is_leaf(module)))
def test_a_module_imports_only_what_stands_above_it(module: str) -> None:
    source = MODULES[module].read_text("utf-8")
    assert violations(module, source, ORDER, is_package=is_package(module)) == []
    if is_package(module):
        assert not any(map(ours, imports_of(source, module, set(ORDER), is_package=True))), "a map imports none of ours"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_is_short_and_has_a_name_of_its_own(module: str) -> None:
    source = MODULES[module].read_text("utf-8")
    assert len(source.splitlines()) <= MAX_LINES
    assert not set(module.split(".")) & NAMES_WITHOUT_MEANING
    assert ast.get_docstring(ast.parse(source)), "a module opens with what it is for"


def test_no_class_has_the_name_of_another() -> None:
    """Who reads `Answer` in a traceback, a log or a signature knows which one is meant."""
    twice = classes_named_twice({module: path.read_text("utf-8") for module, path in MODULES.items()})
    assert twice == {}


def test_no_class_is_one_class_in_two_files() -> None:
    sources = {module: path.read_text("utf-8") for module, path in MODULES.items() if not is_leaf(module)}
    assert inherited_from_elsewhere(sources) == ONE_OF_SEVERAL


@pytest.mark.parametrize("module", sorted(module for module in MODULES if runs_without_gevent(module)))
def test_what_has_no_gevent_gets_none_by_what_it_imports(module: str) -> None:
    imports = imports_of(MODULES[module].read_text("utf-8"), module, set(ORDER), is_package=is_package(module))
    with_it = {name for name in filter(ours, imports) if inner(name) and not runs_without_gevent(inner(name))}
    assert module in START_THE_REST or with_it == set()


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

EXAMPLE = {
    "": """A package. Its order:

    text.py      text
    wire/        octets
    routing/     routes
    clients/     clients
    service.py   one process
    ctl/         the command
    cli.py       the command
    demo/        a program of its own
""",
    "wire": "Octets.\n\n    reply   a reply\n    events  events\n",
    "routing": "Routes.\n\n    table         the interface\n    static_table  a driver\n",
    "clients": "Clients.\n\n    session  the loop\n    server   listening\n",
    "ctl": "The command.\n\n    output    words\n    migrate/  a verb\n    command   all verbs\n",
    "ctl.migrate": "A verb.\n\n    runner   runs\n    command  the verb\n",
    "demo": "",
}


def test_maps_are_read_in_their_order() -> None:
    assert [*in_order(EXAMPLE)] == [
        "text", "wire", "wire.reply", "wire.events", "routing", "routing.table", "routing.static_table", "clients",
        "clients.session", "clients.server", "service", "ctl", "ctl.output", "ctl.migrate", "ctl.migrate.runner",
        "ctl.migrate.command", "ctl.command", "cli", "demo",
    ]  # fmt: skip


def test_a_name_stands_once_in_a_map() -> None:
    with pytest.raises(ValueError, match="a stands twice"):
        entries("    a    x\n    b    x\n    a.py  x\n")
    assert entries("Text.\n\n  a  not deep enough\n    b\n    c  x\n     d  too deep\n") == ["c"]


@pytest.mark.parametrize(
    "module, source, wrong",
    [
        # Right ones.
        ("clients.session", "import socket\nimport gevent\nfrom lmtp_proxy.wire import reply as say\n", None),
        ("clients.session", "from lmtp_proxy.wire.reply import Reply\nfrom lmtp_proxy.routing import table\n", None),
        ("clients.server", "from lmtp_proxy.clients.session import Session\n", None),
        ("wire.events", "import lmtp_proxy.wire.reply\nfrom lmtp_proxy import __version__\n", None),
        ("routing.static_table", "from lmtp_proxy.routing.table import TableUnavailable\n", None),
        ("routing.static_table", "from .table import TableUnavailable\nfrom ..wire.reply import OK\n", None),
        ("service", "from gevent import monkey\nmonkey.patch_all()\n", None),
        ("cli", "def main():\n    from lmtp_proxy import service\n", None),
        ("ctl.command", "from lmtp_proxy.ctl.migrate.command import migrate\n", None),
        ("ctl.migrate.runner", "from lmtp_proxy.ctl import migrate, output\n", None),
        ("text", "import time\n", None),
        # A folder below, in each way of writing it.
        ("wire.reply", "from lmtp_proxy.routing.table import Table\n",
         "wire.reply imports routing.table, which stands below it"),
        ("wire.reply", "from lmtp_proxy.clients import session\n",
         "wire.reply imports clients.session, which stands below it"),
        ("wire.reply", "import lmtp_proxy.clients.session as s, sys\n",
         "wire.reply imports clients.session, which stands below it"),
        ("wire.reply", "from ..clients import session\n", "wire.reply imports clients.session, which stands below it"),
        ("wire.reply", "from ..clients.session import Session\n",
         "wire.reply imports clients.session, which stands below it"),
        ("clients.session", "def f():\n    from lmtp_proxy import service\n",
         "clients.session imports service, which stands below it"),
        ("clients.session", "if False:\n    import lmtp_proxy.cli\n",
         "clients.session imports cli, which stands below it"),
        ("clients.session", "import importlib\nimportlib.import_module('lmtp_proxy.cli')\n",
         "clients.session imports cli, which stands below it"),
        ("clients.session", "__import__('lmtp_proxy.cli')\n", "clients.session imports cli, which stands below it"),
        ("wire.reply", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lmtp_proxy import cli\n",
         "wire.reply imports cli, which stands below it"),
        # Below in the same folder, or in the folder around it.
        ("clients.session", "from lmtp_proxy.clients.server import Server\n",
         "clients.session imports clients.server, which stands below it"),
        ("wire.reply", "from lmtp_proxy.wire import events\n", "wire.reply imports wire.events, which stands below it"),
        ("wire.reply", "from . import events\n", "wire.reply imports wire.events, which stands below it"),
        ("ctl.migrate.command", "from lmtp_proxy.ctl.command import main\n",
         "ctl.migrate.command imports ctl.command, which stands below it"),
        ("ctl.output", "from lmtp_proxy.ctl.migrate import runner\n",
         "ctl.output imports ctl.migrate.runner, which stands below it"),
        # What is not there.
        ("clients.session", "import lmtp_proxy.helpers\n", "clients.session imports helpers, which is in no map"),
        ("clients.session", "from lmtp_proxy.wire.helpers import x\n",
         "clients.session imports wire.helpers, which is in no map"),
        # The leaf.
        ("clients.session", "from lmtp_proxy import demo\n", "clients.session imports demo, which nothing may import"),
        ("cli", "import lmtp_proxy.demo.store\n", "cli imports demo.store, which nothing may import"),
        ("cli", "from lmtp_proxy.demo.store import Store\n", "cli imports demo.store, which nothing may import"),
        ("", "from lmtp_proxy import demo\n", " imports demo, which nothing may import"),
        # gevent where it may not be, patching where it may not be.
        ("routing.table", "import gevent\n", "routing.table imports gevent, and should run without a loop"),
        ("cli", "from gevent.event import Event\n", "cli imports gevent.event, and should run without a loop"),
        ("cli", "import greenlet\n", "cli imports greenlet, and should run without a loop"),
        ("ctl.migrate.runner", "import gevent\n", "ctl.migrate.runner imports gevent, and should run without a loop"),
        ("clients.server", "from gevent import monkey\n",
         "clients.server imports gevent.monkey, which is for service alone"),
        ("clients.server", "import gevent.monkey\n",
         "clients.server imports gevent.monkey, which is for service alone"),
        ("clients.server", "from gevent.monkey import patch_all\n",
         "clients.server imports gevent.monkey, which is for service alone"),
        # I/O in what is pure.
        ("wire.reply", "import socket\n", "wire.reply imports socket, and is to be pure"),
        ("wire.events", "from time import monotonic\n", "wire.events imports time, and is to be pure"),
        ("wire.events", "import logging.handlers\n", "wire.events imports logging.handlers, and is to be pure"),
        ("text", "import os\n", "text imports os, and is to be pure"),
    ],
)  # fmt: skip
def test_the_check_finds_what_is_wrong_and_nothing_else(module: str, source: str, wrong: str | None) -> None:
    found = violations(module, source, [*in_order(EXAMPLE)], is_package=module in ("", "wire", "ctl"))
    assert (wrong in found) if wrong else (found == [])


@pytest.mark.parametrize(
    "sources, twice",
    [
        ({"a": "class One: ...\n", "b": "class Other: ...\nOne = 1\n"}, {}),
        ({"a": "class One: ...\n", "b": "from a import One\nclass Two(One): ...\n"}, {}),
        ({"a": "class One: ...\n", "b": "class One: ...\n"}, {"One": ["a", "b"]}),
        ({"a": "class One: ...\n", "b": "class _One: ...\n"}, {"One": ["a", "b"]}),
        ({"a": "class One: ...\n", "b": "def f():\n    class One: ...\n"}, {"One": ["a", "b"]}),
        ({"a": "class One: ...\nclass Two:\n    class One: ...\n"}, {"One": ["a", "a"]}),
    ],
)
def test_the_check_finds_a_name_that_is_there_twice(sources: dict[str, str], twice: dict[str, list[str]]) -> None:
    assert classes_named_twice(sources) == twice


@pytest.mark.parametrize(
    "sources, found",
    [
        ({"a": "class One: ...\nclass Two(One): ...\n"}, {}),
        ({"a": "class One: ...\n", "b": "from lmtp_proxy.a import One\nclass Two(One): ...\n"}, {"b.Two": "a.One"}),
        ({"a": "class One: ...\n", "b": "from lmtp_proxy.a import One as X\nclass Two(X): ...\n"}, {"b.Two": "a.One"}),
        ({"a.c": "class One: ...\n", "b": "from lmtp_proxy.a import c\nclass Two(int, c.One): ...\n"},
         {"b.Two": "a.c.One"}),
        ({"a": "class One: ...\n", "b": "from lmtp_proxy import a\nclass Two(a.One): ...\n"}, {"b.Two": "a.One"}),
        ({"a": "class One(Generic[T]): ...\n", "b": "from lmtp_proxy.a import One\nclass Two(One[int]): ...\n"},
         {"b.Two": "a.One"}),
        ({"a": "class One(Exception): ...\n", "b": "from lmtp_proxy.a import One\nclass Two(One): ...\n"}, {}),
        ({"a": "class One(Exception): ...\nclass Two(One): ...\n",
          "b": "from lmtp_proxy.a import Two\nclass Three(Two): ...\n"}, {}),
        ({"a": "class One(Protocol): ...\n", "b": "from lmtp_proxy.a import One\nclass Two(One): ...\n"}, {}),
        ({"b": "from threading import Thread\nclass Two(Thread): ...\n"}, {}),
    ],
)  # fmt: skip
def test_the_check_finds_what_is_inherited_from_elsewhere(sources: dict[str, str], found: dict[str, str]) -> None:
    assert inherited_from_elsewhere(sources) == found


def test_modules_are_found_by_their_dotted_names(tmp_path: Path) -> None:
    (tmp_path / "wire").mkdir()
    for name in ("__init__.py", "text.py", "wire/__init__.py", "wire/reply.py", "notes.txt"):
        (tmp_path / name).touch()
    assert set(modules_of(tmp_path)) == {"", "text", "wire", "wire.reply"}
    assert set(maps_of(tmp_path)) == {"", "wire", "demo"}
