# SPDX-License-Identifier: GPL-3.0-or-later
"""Another Debian release on this machine, in a directory: what tests/trixie/root.sh makes and enters."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests import ROOT

ROOTS = Path(os.environ.get("LMTP_PROXY_E2E_STATE", "/var/lib/lmtp-proxy-e2e")) / "roots"
SCRIPT = ROOT / "tests/trixie/root.sh"
_CANNOT = 77


class CannotBeMade(Exception):
    """The text is the reason, in one line: it begins with "this machine cannot"."""


def root(release: str, name: str, packages: Iterable[str]) -> Path:
    """The directory with `release` and these packages, made now if it is not there, which takes a minute or two.

    It stays for the next run. Two lists of packages need two names, else each run makes it anew.

    Raises:
        CannotBeMade: this machine has no root, no debootstrap or no right to mount.
        AssertionError: what should have worked did not, with what was said.
    """
    directory = ROOTS / name
    done = subprocess.run(
        [SCRIPT, "make", release, directory, *packages],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=900,
    )
    if done.returncode == _CANNOT:
        raise CannotBeMade(done.stderr.strip().split(": ", 1)[-1])
    assert done.returncode == 0, done.stderr
    return directory


def inside(directory: Path, *, shared: Iterable[Path] = (), keep: bool = False) -> list[str]:
    """The prefix of a command that is to run in there, as the process that is started.

    Args:
        shared: directories and files of this machine that it sees under their own names.
        keep: it writes into the root itself; else what it writes outside of `shared` is gone with it.
    """
    words = [str(SCRIPT), "run"]
    if keep:
        words.append("--keep")
    for path in shared:
        words += ["--bind", str(path)]
    return [*words, str(directory)]
