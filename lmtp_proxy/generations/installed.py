# SPDX-License-Identifier: GPL-3.0-or-later
"""Which version of the package is on the disk now, which need not be the one that runs.

What a process loads later, and the processes that it starts, are of the version on the disk. Two versions need not
agree on what they say to each other.
"""

import os
import re

from lmtp_proxy import ROOT, __version__

_FILE = os.path.join(ROOT, "lmtp_proxy", "__init__.py")
_VERSION = re.compile(rb'^__version__ = "([^"]{1,80})"$', re.MULTILINE)


def another_installed() -> str | None:
    """The sentence about another version on the disk; None if it is this one, or cannot be told."""
    try:
        with open(_FILE, "rb") as file:
            found = _VERSION.search(file.read())
    except OSError:
        return None
    if found is None or (version := found[1].decode("ascii", "replace")) == __version__:
        return None
    return another(version, __version__)


def another(installed: str, running: str) -> str:
    """The sentence about two versions."""
    return f"version {installed} was installed while {running} runs: restart lmtp-proxy"
