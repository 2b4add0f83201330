# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures: the package, built once from what is in the checkout, and the machine, for one test at a time."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmtp_proxy import __version__
from tests import ROOT
from tests.e2e.requirements import INSTALL, missing_for_servers, program

from .building import commands_of_the_readme, run_in
from .machine import machine_of_our_own

_TOOLS = ("dpkg-buildpackage", "lintian", "systemd-analyze", "systemd-sysusers", "man")


def missing_for_building() -> str | None:
    """Why the package cannot be built here, in one line; None when it can."""
    release = Path("/etc/os-release").read_text("utf-8") if Path("/etc/os-release").exists() else ""
    if "ID=debian\n" not in release or not re.search(r"VERSION_ID=\"1[23]\"", release):
        return "the package is for Debian 12 and 13"
    absent = [tool for tool in _TOOLS if program(tool) is None]
    if absent:
        return f"not installed: {', '.join(absent)}; to install: {INSTALL}"
    words = ["dpkg-checkbuilddeps", "-Pnocheck", str(ROOT / "debian/control")]
    checked = subprocess.run(words, capture_output=True, text=True, check=False)
    return f"{checked.stderr.strip()}; to install: {INSTALL}" if checked.returncode else None


def missing_for_installing() -> str | None:
    """Why the package cannot be installed and purged here, in one line; None when it can."""
    if os.environ.get("LMTP_PROXY_INSTALL", "") != "1":
        return "it installs and purges a package on this machine: allow that with LMTP_PROXY_INSTALL=1"
    if os.geteuid() != 0:
        return "a package is installed by root: run the tests as root"
    if Path("/run/systemd/system").exists():
        return "this test is about a machine on which systemd does not run"
    return missing_for_building() or missing_for_servers()


@pytest.fixture(scope="session")
def tree() -> Iterator[Path]:
    """A clean checkout, with what is changed and not committed; in the directory above there is room for more."""
    if (reason := missing_for_building()) is not None:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="lpb-", dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        tree = Path(directory) / "lmtp-proxy"
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        for name in listed.stdout.decode().split("\0"):
            if name and (ROOT / name).is_file():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, tree / name)
        yield tree


@pytest.fixture(scope="session")
def package(tree: Path) -> Path:
    """The .deb, built as the README says."""
    build_dep, build, install = commands_of_the_readme()[:3]
    assert (build_dep, build) == ("apt-get build-dep ./", "dpkg-buildpackage -us -uc -b") and "apt-get" in install
    run_in(tree, build)
    [deb] = tree.parent.glob("*.deb")
    assert deb.name == f"lmtp-proxy_{__version__}_all.deb"
    return deb


@pytest.fixture
def machine() -> Iterator[None]:
    """The right to install lmtp-proxy here: one test of one run has it."""
    if (reason := missing_for_installing()) is not None:
        pytest.skip(reason)
    with machine_of_our_own() as used:
        if used is not None:
            pytest.skip(used)
        yield
