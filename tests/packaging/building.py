# SPDX-License-Identifier: GPL-3.0-or-later
"""The package as the README builds it, and the one that comes after it."""

import shutil
import subprocess
from pathlib import Path

from lmtp_proxy import __version__
from tests import ROOT
from tests.e2e.shell_doc import Command, Shell, steps

NEXT = f"{__version__}+next"
# As for an operator: Debian's programs, nothing of a virtual environment. nocheck: these tests have been run.
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEB_BUILD_OPTIONS": "nocheck",
    "DEB_BUILD_PROFILES": "nocheck",
    "DEBIAN_FRONTEND": "noninteractive",
    "VIRTUAL_ENV": "",
    "PYTHONPATH": "",
}


def commands_of_the_readme() -> list[str]:
    """In the order of its section Install: those that build and install, and those behind `Edit that`."""
    text = (ROOT / "README.md").read_text("utf-8").split("\n## Install\n", 1)[1].split("\n## ", 1)[0]
    return [step.text for step in steps(text) if isinstance(step, Command)]


def run_in(directory: Path, *commands: str) -> None:
    """By a shell, as they stand in the README."""
    with Shell(directory, {**ENVIRONMENT, "APT_CONFIG": _apt_config(directory)}) as shell:
        for text in commands:
            said = shell.run(text)
            status = shell.run("echo $?")
            assert status == ["0"], "\n".join([text, *said])


def _apt_config(directory: Path) -> str:
    path = directory.parent / "apt.conf"
    path.write_text('DPkg::Lock::Timeout "120";\nDpkg::Use-Pty "0";\nAPT::Install-Recommends "false";\n')
    return str(path)


def next_version(package: Path) -> Path:
    """The package again with a higher number, and an example that differs where the operator's file does."""
    directory = package.parent / "next"
    shutil.rmtree(directory, ignore_errors=True)
    subprocess.run(["dpkg-deb", "-R", package, directory], check=True)
    for name, old, new in (
        ("DEBIAN/control", f"Version: {__version__}\n", f"Version: {NEXT}\n"),
        ("usr/lib/python3/dist-packages/lmtp_proxy/__init__.py", f'"{__version__}"', f'"{NEXT}"'),
        ("usr/share/lmtp-proxy/lmtp-proxy.yml", "hold_limit: 2", "hold_limit: 3"),
    ):
        path = directory / name
        text = path.read_text("utf-8")
        assert old in text, name
        path.write_text(text.replace(old, new), "utf-8")
    newer = package.parent / "next.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", directory, newer], check=True, capture_output=True)
    return newer
