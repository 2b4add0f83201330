# SPDX-License-Identifier: GPL-3.0-or-later
"""A private Exim without a daemon: messages are put into the queue, and delivered by queue runs."""

from collections.abc import Sequence
from pathlib import Path

from .beside import HOST, INSIDE, Beside, own
from .mta import SENDER, Mta, content
from .postfix import DOMAIN

_PROGRAM = "usr/sbin/exim4"
_USER = 61001  # of Debian-exim, which Exim insists on


class Exim(Mta):
    """On a unix socket by its driver `lmtp`, else by `smtp` with the protocol LMTP."""

    name = "Exim"
    key = "exim"

    def __init__(self, directory: Path, nexthop: Path | tuple[str, int]) -> None:
        super().__init__(directory, nexthop)
        self._beside = Beside(directory / "beside", {"Debian-exim": _USER}, {})
        self._spool = directory / "spool"
        (self._spool / "log").mkdir(parents=True)
        own(self._spool, _USER)
        if isinstance(nexthop, Path):
            transport = f"driver = lmtp\n  socket = {nexthop}\n  batch_max = 100\n  timeout = 10m\n  user = Debian-exim"
            router = "driver = accept\n  transport = proxy"
        else:
            host, port = nexthop
            transport = f"driver = smtp\n  protocol = lmtp\n  port = {port}\n  allow_localhost"
            router = f"driver = manualroute\n  route_list = * {host}\n  self = send\n  transport = proxy"
        # queue_only: bounces, too, wait for the next run.
        (directory / "exim.conf").write_text(
            f"""\
exim_path = {INSIDE / _PROGRAM}
spool_directory = {self._spool}
log_file_path = {self._spool}/log/%s
primary_hostname = {HOST}
qualify_domain = {DOMAIN}
never_users =
queue_only
keep_environment =
begin routers
everybody:
  {router}
begin transports
proxy:
  {transport}
  rcpt_include_affixes
begin retry
* * F,1d,1s
""",
            "utf-8",
        )

    def _run(self, *arguments: str, stdin: str = "") -> str:
        return self._beside.run(_PROGRAM, "-C", str(self.directory / "exim.conf"), *arguments, stdin=stdin)

    def submit(self, ident: str, recipients: Sequence[str]) -> None:
        self._run("-odq", "-oi", "-f", SENDER, "--", *recipients, stdin=content(ident))

    def run_queue(self) -> None:
        self._run("-qff")

    def program(self) -> list[str]:
        return self._beside.command(_PROGRAM, "-C", str(self.directory / "exim.conf"))

    def queue_length(self) -> int:
        return len([*(self._spool / "input").glob("*-H")])

    def log(self) -> str:
        return "".join(path.read_text("utf-8", "replace") for path in (self._spool / "log").iterdir())
