# SPDX-License-Identifier: GPL-3.0-or-later
"""What `make coverage` holds to the last branch: each pure module of wire and routing, by a test file of its name."""

import re

import pytest

from tests import ROOT

MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
COVERED = re.search(r"(?m)^COVERED := ((?:.*\\\n)*.*)$", MAKEFILE)[1].replace("\\\n", " ").split()  # type: ignore[index]


@pytest.mark.parametrize("folder", ["wire", "routing"])
def test_every_module_is_covered_by_its_own_tests(folder: str) -> None:
    modules = {path.stem for path in (ROOT / "lmtp_proxy" / folder).glob("*.py")} - {"__init__"}
    assert modules == {name for where, _, name in (each.partition("/") for each in COVERED) if where == folder}
    assert modules <= {path.stem.removeprefix("test_") for path in (ROOT / "tests/unit" / folder).glob("test_*.py")}
