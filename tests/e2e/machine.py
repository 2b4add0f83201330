# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the programs of a mail store are: on this machine, or in the root of another Debian release.

A store of the other release runs in that root: its files, sockets and ports are where those of any other store are,
below /tmp and on 127.0.0.1, and its process is that of the command.
"""

import os
import re
from functools import cached_property
from pathlib import Path

from tests.support.roots import inside, root

from .requirements import DOVECOT, missing_stores, run

_NEIGHBOURS = {"bookworm": "trixie", "trixie": "bookworm"}
_STORES = (
    "cyrus-imapd", "sasl2-bin", "libsasl2-modules", "libsasl2-modules-db", "dovecot-core", "dovecot-lmtpd",
)  # fmt: skip
_IMAPD = """\
set -e
exec 9>/var/lib/dovecot-imapd.lock
flock 9
[ ! -x /usr/lib/dovecot/imap ] || exit 0
cd "$(mktemp -d)"
apt-get -q download dovecot-imapd
dpkg -x dovecot-imapd_*.deb /
"""
"""It conflicts with cyrus-imapd by name only, so it is unpacked."""


class Machine:
    """root: of the other release; None is this machine."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root

    def __repr__(self) -> str:
        return f"Machine({self.release}{'' if self.root is None else f' in {self.root}'})"

    def command(self, *words: str) -> list[str]:
        """What runs these words there, in place of itself."""
        if self.root is None:
            return list(words)
        return [*inside(self.root, shared=[Path("/tmp")]), *words]

    def run(self, *words: str, stdin: str = "") -> str:
        """As `requirements.run`."""
        return run(*self.command(*words), stdin=stdin)

    def version(self, package: str) -> str:
        """As upstream has it."""
        found = self.run("dpkg-query", "-W", "-f", "${Version}", package)
        return re.split("[+-]", found.rpartition(":")[2])[0]

    def path(self, there: Path) -> Path:
        """Where a file of that machine is on this one."""
        return there if self.root is None else self.root / there.relative_to("/")

    @cached_property
    def release(self) -> str:
        """Debian's name of it."""
        for line in self.path(Path("/etc/os-release")).read_text("utf-8").splitlines():
            if line.startswith("VERSION_CODENAME="):
                return line.partition("=")[2].strip('"')
        raise AssertionError(f"{self.root or '/'}: of no Debian release")

    @cached_property
    def dovecot_version(self) -> tuple[int, int]:
        """Its first two numbers: 2.4 has another configuration language than 2.3."""
        first, second, *_ = self.run(str(DOVECOT), "--version").split(".")
        return int(first), int(second)


HERE = Machine()


def other_release() -> Machine:
    """The stores of the Debian release before this one or after it, made now if they are not there: a minute.

    Raises:
        CannotBeMade: see `root`.
        AssertionError: it failed, or this is neither of the two releases.
    """
    assert HERE.release in _NEIGHBOURS, f"this is {HERE.release}: only {' and '.join(_NEIGHBOURS)} are known"
    release = _NEIGHBOURS[HERE.release]
    directory = root(release, f"stores-{release}", _STORES)
    if missing_stores(directory):
        fetching = [f"{name}={os.environ[name]}" for name in ("http_proxy", "https_proxy") if name in os.environ]
        run(*inside(directory, keep=True), "env", *fetching, "sh", "-c", _IMAPD)
    assert missing_stores(directory) == []
    return Machine(directory)
