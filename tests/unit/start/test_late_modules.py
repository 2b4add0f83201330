# SPDX-License-Identifier: GPL-3.0-or-later
"""The list of what is imported late is whole: looked up in the modules that serve, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest

from lmtp_proxy.config.values import Config, TableSetting, TcpAddress, UnixAddress
from lmtp_proxy.start import late_modules as listed
from lmtp_proxy.start.late_modules import late_modules
from tests import ROOT

PLAIN = Config("/c.yml", (UnixAddress("/s"),), "h")
WITH_ALL = replace(PLAIN, metrics=TcpAddress("127.0.0.1", 1), receipts="/r", table=TableSetting("/t"))
SERVE = ["lmtp_proxy.service", "lmtp_proxy.workers.supervisor"]
NOT_SERVING = ["lmtp_proxy.delivery.uncertain", "calendar"]
"""Who reads records, which lmtp-proxyctl alone does. On Python 3.11 something else has loaded it by then."""

MISSING = """
import ast, importlib, json, sys
from importlib.util import find_spec

serve, late = json.loads(sys.argv[1])
importlib.import_module(serve)
for name in late:
    importlib.import_module(name)

def inside_functions(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            yield from (each for each in ast.walk(node) if isinstance(each, (ast.Import, ast.ImportFrom)))

def is_module(name):
    try:
        return find_spec(name) is not None
    except (ImportError, AttributeError, ValueError):
        return False

missing = set()
for name, module in list(sys.modules.items()):
    if name.partition(".")[0] != "lmtp_proxy" or not getattr(module, "__file__", None):
        continue
    for node in inside_functions(ast.parse(open(module.__file__, encoding="utf-8").read())):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        else:
            assert not node.level, f"{name}: the check knows whole names only"
            wanted = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        missing.update((name, each) for each in wanted if each not in sys.modules and is_module(each))
print(json.dumps(sorted(missing)))
"""


def missing_after(serve: str, late: list[str]) -> list[list[str]]:
    """Who imports what late, of all that a process has loaded before it gives up its privileges, that is not there."""
    command = [sys.executable, "-c", MISSING, json.dumps([serve, late])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("serve", SERVE)
def test_nothing_is_imported_late_that_is_not_in_the_list(serve: str) -> None:
    assert [each for each in missing_after(serve, [*late_modules(WITH_ALL)]) if each != NOT_SERVING] == []


@pytest.mark.parametrize(
    "left_out, by",
    [
        ("lmtp_proxy.backends.tls_session", "lmtp_proxy.backends.new_session"),  # which brings the one without TLS
        ("lmtp_proxy.config.read", "lmtp_proxy.generations.manager"),
        ("lmtp_proxy.receipts.file", "lmtp_proxy.receipts.receipts"),
        ("gevent.threadpool", "lmtp_proxy.loop.late"),
        ("lmtp_proxy.web.server", "lmtp_proxy.service"),
    ],
)
def test_the_check_finds_what_is_left_out(left_out: str, by: str) -> None:
    late = [name for name in late_modules(WITH_ALL) if name != left_out]
    assert [by, left_out] in missing_after("lmtp_proxy.service", late)


def test_every_name_is_that_of_a_module() -> None:
    names = {
        name
        for key, value in vars(listed).items()
        if key.isupper()
        for name in ([value] if isinstance(value, str) else value)
    }
    assert names == set(late_modules(WITH_ALL)), "a group that nobody imports before the privileges go"
    assert [name for name in names if find_spec(name) is None] == []


def test_what_is_not_configured_is_not_loaded() -> None:
    rest = set(late_modules(WITH_ALL)) - set(late_modules(PLAIN))
    assert rest == {"lmtp_proxy.receipts.file", "lmtp_proxy.web.server", *listed.FOR_A_SCRAPE, *listed.FOR_TABLE}
