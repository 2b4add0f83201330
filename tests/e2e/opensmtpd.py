# SPDX-License-Identifier: GPL-3.0-or-later
"""A private OpenSMTPD: SMTP in on a port of 127.0.0.1, all mail out by `action lmtp ... rcpt-to`.

It delivers each recipient on its own, at once, and takes a 5xx for temporary.
"""

import smtplib
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .beside import INSIDE, Beside
from .mta import SENDER, Mta, content
from .process import Pid, accepts_tcp, end_family, free_port, wait_until

_USER, _QUEUE_USER = 61002, 61003


class OpenSmtpd(Mta):
    name = "OpenSMTPD"
    key = "opensmtpd"
    returns_5xx = False

    def __init__(self, directory: Path, nexthop: Path | tuple[str, int]) -> None:
        super().__init__(directory, nexthop)
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        for part in ("spool/smtpd", "lib/opensmtpd/empty", "run"):
            (directory / part).mkdir(parents=True)
        (directory / "spool/smtpd").chmod(0o711)
        to = nexthop if isinstance(nexthop, Path) else ":".join(map(str, nexthop))
        (directory / "smtpd.conf").write_text(
            f"""\
table everybody {{ "@" = "nobody" }}
listen on 127.0.0.1 port {self._port}
action "proxy" lmtp "{to}" rcpt-to virtual <everybody>
match from any for any action "proxy"
""",
            "utf-8",
        )
        self._beside = Beside(
            directory / "beside",
            {"opensmtpd": _USER, "opensmtpq": _QUEUE_USER},
            {
                directory / "spool": Path("/var/spool"),
                directory / "lib": Path("/var/lib"),
                directory / "run": Path("/run"),
                INSIDE / "usr/libexec": Path("/usr/libexec"),
            },
        )

    def start(self) -> None:
        command = self._beside.command("usr/sbin/smtpd", "-d", "-f", str(self.directory / "smtpd.conf"))
        with open(self.directory / "out", "ab") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        wait_until(self._serves, 20.0, lambda: f"{self.name} serving; it said:\n{self.log()}")

    def _serves(self) -> bool:
        assert self._process is not None and self._process.poll() is None, f"{self.name} ended:\n{self.log()}"
        return accepts_tcp(self._port)

    def stop(self) -> None:
        if self._process is not None:
            end_family(Pid.of(self._process.pid), 3.0)
            self._process.wait(10)
            self._process = None

    def submit(self, ident: str, recipients: Sequence[str]) -> None:
        with smtplib.SMTP("127.0.0.1", self._port, timeout=30) as smtp:
            assert smtp.sendmail(SENDER, recipients, content(ident).replace("\n", "\r\n").encode("ascii")) == {}

    def _control(self, *arguments: str) -> str:
        return self._beside.run("usr/sbin/smtpctl", *arguments, group=_QUEUE_USER)  # it has to be of this group

    def run_queue(self) -> None:
        self._control("schedule", "all")

    def program(self) -> list[str]:
        group = ("setpriv", "--regid", str(_QUEUE_USER), "--clear-groups")
        return [*group, *self._beside.command("usr/sbin/smtpctl")]

    def queue_length(self) -> int:
        return len(self._control("show", "queue").splitlines())

    def log(self) -> str:
        return (self.directory / "out").read_text("utf-8", "replace")
