# SPDX-License-Identifier: GPL-3.0-or-later
"""The package as files and names: a copy of it to do things to, and names of modules that are sure to be some."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import lmtp_proxy

PACKAGE = Path(lmtp_proxy.__file__).parent
"""The package that the tests import."""


def existing(*names: str) -> set[str]:
    """The names, each of a module that is there: else a test that one is not loaded could not fail any more."""
    missing = [name for name in names if find_spec(name) is None]
    assert not missing, f"there is no module {', '.join(missing)}: has it another name now?"
    return set(names)


def copied_package(to: Path) -> Path:
    """A copy of the package in the directory `to`. Returns the copy."""
    return Path(shutil.copytree(PACKAGE, to / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__")))


def code_of_copy(copy: Path) -> str:
    """For `python -P -c`: the command `lmtp-proxy` of that copy, whatever else is installed."""
    return (
        f"import sys; sys.path.insert(0, {str(copy.parent)!r});"
        "sys.meta_path = [each for each in sys.meta_path if 'Editable' not in repr(each)];"  # which finds the checkout
        "from lmtp_proxy.cli import main; sys.exit(main())"
    )
