# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs of packages that conflict with those of the system: run from where install.sh unpacked them.

They insist on accounts, and on paths below /var and /run. So each command has a mount namespace of its own, in which
private files and directories take those places, and a host name of its own, because some wait a minute for a better
one. Nobody outside sees any of it, and nothing of it outlives the command.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from .postfix import DOMAIN
from .requirements import UNPACKED_MTAS, run

HOST = f"mta.{DOMAIN}"
INSIDE = Path("/opt")
"""Where a program sees what was unpacked."""
_SCRIPT = """\
echo "$1" > /proc/sys/kernel/hostname && shift || exit
while [ "$1" != -- ]; do mount --bind "$1" "$2" && shift 2 || exit; done
shift
exec "$@"
"""


class Beside:
    """directory: for the private files. accounts: users that the programs want, with a group of the same name each.
    places: what takes the place of which existing path, in this order.
    """

    def __init__(self, directory: Path, accounts: Mapping[str, int], places: Mapping[Path, Path]) -> None:
        directory.mkdir()
        users = "".join(f"{name}:x:{number}:{number}::/:/usr/sbin/nologin\n" for name, number in accounts.items())
        groups = "".join(f"{name}:x:{number}:\n" for name, number in accounts.items())
        files = {
            "passwd": Path("/etc/passwd").read_text("utf-8") + users,
            "group": Path("/etc/group").read_text("utf-8") + groups,
            "hosts": f"127.0.0.1 {HOST} localhost\n",
            "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
        }
        for name, text in files.items():
            (directory / name).write_text(text, "utf-8")
        binds = {UNPACKED_MTAS: INSIDE, **{directory / name: Path("/etc") / name for name in files}, **places}
        self._binds = [str(path) for pair in binds.items() for path in pair]

    def command(self, program: str, *arguments: str) -> list[str]:
        """What runs `program`, a path below where the packages were unpacked."""
        inside = [HOST, *self._binds, "--", str(INSIDE / program), *arguments]
        return ["unshare", "--mount", "--uts", "--", "sh", "-c", _SCRIPT, "sh", *inside]

    def run(self, program: str, *arguments: str, stdin: str = "", group: int | None = None) -> str:
        """Runs it to its end and returns its output; AssertionError with all it said when it fails."""
        return run(*self.command(program, *arguments), stdin=stdin, group=group)


def own(path: Path, number: int) -> None:
    """Gives a directory and all in it to the account with this number."""
    for each in (path, *path.rglob("*")):
        shutil.chown(each, number, number)
