# SPDX-License-Identifier: GPL-3.0-or-later
"""A private Sendmail without a daemon: messages are put into the queue, and delivered by queue runs."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from .beside import Beside
from .mta import SENDER, Mta, content
from .postfix import DOMAIN
from .requirements import UNPACKED_MTAS, program, run

_PROGRAM = "usr/libexec/sendmail/sendmail"
# It trusts no file below a directory where all may write. So here it sees its directory, and the socket's.
_HERE, _SOCKETS = Path("/mnt"), Path("/srv")
_STATUSES = (0, 67, 69, 70, 75)
"""Of a queue run: all went well, or some mail could not be delivered, now or ever (sysexits.h)."""


class Sendmail(Mta):
    """All mail goes by one mailer: `[IPC]` with LMTP (`F=z`), up to 100 recipients at a time, with their domains."""

    name = "Sendmail"
    key = "sendmail"

    def __init__(self, directory: Path, nexthop: Path | tuple[str, int]) -> None:
        super().__init__(directory, nexthop)
        (directory / "queue").mkdir(0o700)
        places = {directory: _HERE}
        if isinstance(nexthop, Path):
            places[nexthop.parent] = _SOCKETS
            to, host = f"FILE {_SOCKETS / nexthop.name}", "proxy"
        else:
            to, host = f"TCP $h {nexthop[1]}", f"[{nexthop[0]}]"
        (directory / "service.switch").write_text("hosts files\naliases files\n", "ascii")
        (directory / "sendmail.mc").write_text(
            f"""\
divert(0)dnl
OSTYPE(`linux')dnl
FEATURE(`nocanonify')dnl
FEATURE(`accept_unqualified_senders')dnl
FEATURE(`accept_unresolvable_domains')dnl
define(`confDEF_USER_ID', `nobody:nogroup')dnl
define(`confTRUSTED_USER', `root')dnl
define(`QUEUE_DIR', `{_HERE}/queue')dnl
define(`STATUS_FILE', `{_HERE}/statistics')dnl
undefine(`ALIAS_FILE')dnl
define(`HELP_FILE', `-o {_HERE}/none')dnl
define(`confPID_FILE', `{_HERE}/pid')dnl
define(`confCW_FILE', `-o {_HERE}/none')dnl
define(`confSERVICE_SWITCH_FILE', `{_HERE}/service.switch')dnl
define(`confTO_DATAFINAL', `10m')dnl
define(`confMIN_QUEUE_AGE', `0')dnl
define(`confQUEUE_LA', `100000')dnl
define(`confREFUSE_LA', `100000')dnl
MAILER(`smtp')dnl
LOCAL_RULE_0
R$+ < @ $+ > $*\t$#lmtpproxy $@ {host} $: $1 < @ $2 > $3
R$+\t$#lmtpproxy $@ {host} $: $1 < @ {DOMAIN} >
MAILER_DEFINITIONS
Mlmtpproxy,\tP=[IPC], F=DFMXzA@/:|m, S=EnvFromSMTP/HdrFromSMTP, R=EnvToSMTP, E=\\r\\n, L=990, r=100,
\t\tT=DNS/RFC822/SMTP, A={to}
Mlocal,\tP=/bin/false, F=lsDFMAw5:/|@qPhn9S, S=EnvFromL/HdrFromL, R=EnvToL/HdrToL, T=DNS/RFC822/X-Unix, A=false
Mprog,\tP=/bin/false, F=lsDFMoqeu9, S=EnvFromL/HdrFromL, R=EnvToL/HdrToL, T=X-Unix/X-Unix/X-Unix, A=false
""",
            "ascii",
        )
        macros = UNPACKED_MTAS / "usr/share/sendmail/cf"
        m4 = program("m4")
        assert m4 is not None
        configuration = run(m4, f"-D_CF_DIR_={macros}/", str(macros / "m4/cf.m4"), str(directory / "sendmail.mc"))
        (directory / "sendmail.cf").write_text(configuration, "utf-8")
        (directory / "log").touch()
        self._beside = Beside(directory / "beside", {}, places)

    def submit(self, ident: str, recipients: Sequence[str]) -> None:
        arguments = ("-Am", "-odq", "-i", "-f", SENDER, "--", *recipients)
        self._beside.run(_PROGRAM, "-C", f"{_HERE}/sendmail.cf", *arguments, stdin=content(ident))

    def run_queue(self) -> None:
        """-v: its log goes to syslog, where nobody is, so the conversation has to do."""
        command = self._beside.command(_PROGRAM, "-C", f"{_HERE}/sendmail.cf", "-Am", "-q", "-v")
        with open(self.directory / "log", "ab") as log:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=60, check=False)
        assert done.returncode in _STATUSES, f"a queue run ended with {done.returncode}:\n{self.log()}"

    def program(self) -> list[str]:
        return self._beside.command(_PROGRAM, "-C", f"{_HERE}/sendmail.cf")

    def queue_length(self) -> int:
        return len([*(self.directory / "queue").glob("qf*")])

    def log(self) -> str:
        return (self.directory / "log").read_text("utf-8", "replace")
