# SPDX-License-Identifier: GPL-3.0-or-later
"""A private Postfix: SMTP in on a port of 127.0.0.1, everything for example.test out by lmtp(8) to one unix socket.
Mail for further domains may go to other sockets.

Its limits and times are Debian's, but for the ones that change a message (long lines are left whole) and, unless it is
a patient one, the ones that would make a test wait (retries after seconds, not minutes).
"""

import json
import os
import pwd
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .process import Pid, accepts_tcp, end_family, free_port, wait_until
from .requirements import POSTFIX_DAEMONS, program, run

DOMAIN = "example.test"
QUEUES = ("maildrop", "incoming", "active", "deferred", "hold", "corrupt")

# Debian's times; but it tells the proxy the ids of its queue.
_PATIENT = "lmtp_send_xforward_command = yes\n"
_IMPATIENT = "queue_run_delay = 1s\nminimal_backoff_time = 2s\nmaximal_backoff_time = 4s\n"

_DELIVERY = re.compile(
    r" postfix/(?P<agent>lmtp|error|retry)\[\d+\]: (?P<queue_id>\w+): to=<(?P<to>[^>]*)>, .*?"
    r"delay=(?P<delay>[\d.]+), .*?dsn=(?P<dsn>[\d.]+), status=(?P<status>\w+) \((?P<text>.*)\)$"
)
_REMOVED = re.compile(r" postfix/qmgr\[\d+\]: (\w+): removed$")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One line of Postfix's log about one recipient."""

    queue_id: str
    to: str
    delay: float
    """Seconds since the message came."""
    dsn: str
    status: str
    """sent, deferred or bounced"""
    text: str
    """What the server said, or what went wrong."""


class Postfix:
    """Start and stop as often as wanted; the queue stays."""

    name = "Postfix"

    def __init__(
        self, directory: Path, nexthop: Path | str, further: Mapping[str, Path], *, patient: bool = False
    ) -> None:
        """nexthop: a unix socket, or anything else as transport(5) has it."""
        self.directory = directory
        self.smtp_port = free_port()
        self._master: Pid | None = None
        self._log_start = 0
        self._configure(nexthop, further, _PATIENT if patient else _IMPATIENT)

    def _configure(self, nexthop: Path | str, further: Mapping[str, Path], times: str) -> None:
        base = self.directory
        # a list of maps: an inline one must not be empty
        transports = " ".join(f"inline:{{ {{{domain} = lmtp:unix:{socket}}} }}" for domain, socket in further.items())
        for part in ("etc", "spool", "data"):
            (base / part).mkdir()
        os.chown(base / "data", pwd.getpwnam("postfix").pw_uid, -1)
        (base / "etc/main.cf").write_text(
            f"""\
compatibility_level = 3.6
queue_directory = {base}/spool
data_directory = {base}/data
command_directory = /usr/sbin
daemon_directory = {POSTFIX_DAEMONS}
maillog_file = {base}/log
maillog_file_prefixes = {base}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = mta.{DOMAIN}
mydestination =
mynetworks = 127.0.0.0/8
smtp_dns_support_level = disabled
default_transport = error:nothing leaves this test
virtual_mailbox_domains = {DOMAIN} {" ".join(further)}
transport_maps = {transports}
virtual_transport = lmtp:{nexthop if isinstance(nexthop, str) else f"unix:{nexthop}"}
virtual_mailbox_maps =
alias_maps =
alias_database =
smtpd_peername_lookup = no
enable_long_queue_ids = yes
local_header_rewrite_clients =
message_size_limit = 0
lmtp_line_length_limit = 0
{times}""",
            "utf-8",
        )
        (base / "log").touch()
        (base / "etc/master.cf").write_text(
            f"""\
127.0.0.1:{self.smtp_port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
showq unix n - n - - showq
flush unix n - n 1000? 0 flush
error unix - - n - - error
retry unix - - n - - error
lmtp unix - - n - - lmtp
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
tlsmgr unix - - n 1000? 1 tlsmgr
postlog unix-dgram n - n - 1 postlogd
""",
            "utf-8",
        )

    def start(self) -> None:
        command = program("postfix")
        assert command is not None
        run(command, "-c", f"{self.directory}/etc", "start")
        self._master = Pid.of(int((self.directory / "spool/pid/master.pid").read_text("ascii")))
        wait_until(lambda: accepts_tcp(self.smtp_port), 30, lambda: f"Postfix serving; it said:\n{self.log()}")

    def stop(self) -> None:
        if self._master is not None:
            end_family(self._master)
            self._master = None

    def wipe(self) -> None:
        """Throws the whole queue away: what a failed test left must not reach the next one."""
        self.stop()
        for queue in QUEUES:
            shutil.rmtree(self.directory / "spool" / queue, ignore_errors=True)
        self.start()  # makes them again

    def queue_length(self) -> int:
        """How many messages are in the queue."""
        command = program("postqueue")
        assert command is not None
        return len(run(command, "-c", f"{self.directory}/etc", "-j").splitlines())

    def queues(self) -> dict[str, str]:
        """Queue id -> incoming, active, deferred or hold."""
        command = program("postqueue")
        assert command is not None
        lines = run(command, "-c", f"{self.directory}/etc", "-j").splitlines()
        return {each["queue_id"]: each["queue_name"] for each in map(json.loads, lines)}

    def remove(self, queue_id: str) -> None:
        """`postsuper -d`: an operator throws it away."""
        command = program("postsuper")
        assert command is not None
        run(command, "-c", f"{self.directory}/etc", "-d", queue_id)

    def flush(self) -> None:
        """`postqueue -f`: tries everything that is deferred, now."""
        command = program("postqueue")
        assert command is not None
        run(command, "-c", f"{self.directory}/etc", "-f")

    def log(self) -> str:
        """What Postfix logged since `begin_log`."""
        with open(self.directory / "log", "rb") as file:
            file.seek(self._log_start)
            return file.read().decode("utf-8", "replace")

    def begin_log(self) -> None:
        """From now on, what was logged so far is of no interest."""
        self._log_start = (self.directory / "log").stat().st_size

    def attempts(self, queue_ids: Iterable[str]) -> list[Attempt]:
        """Every delivery attempt for these messages so far, in the order of the log."""
        wanted = set(queue_ids)
        found = []
        for line in self.log().splitlines():
            match = _DELIVERY.search(line)
            if match and match["queue_id"] in wanted:
                delay = float(match["delay"])
                found.append(
                    Attempt(match["queue_id"], match["to"], delay, match["dsn"], match["status"], match["text"])
                )
        return found

    def lines(self, pattern: str) -> list[str]:
        """The log's lines that the regular expression finds."""
        return [line for line in self.log().splitlines() if re.search(pattern, line)]

    def removed(self) -> set[str]:
        """The queue ids of messages that are done with: each recipient delivered or bounced."""
        return {match[1] for line in self.log().splitlines() if (match := _REMOVED.search(line))}

    def wait_removed(self, queue_ids: Iterable[str], timeout: float) -> None:
        """Returns when each of these messages has left the queue."""
        wanted = set(queue_ids)
        last: list[set[str]] = [wanted]

        def done() -> bool:
            last[0] = wanted - self.removed()
            if last[0]:
                time.sleep(0.1)  # the log is long
            return not last[0]

        wait_until(done, timeout, lambda: self._still_queued(last[0]))

    def _still_queued(self, queue_ids: set[str]) -> str:
        attempts = self.attempts(queue_ids)
        tail = "\n".join(f"{a.queue_id} {a.to} {a.status} {a.text}" for a in attempts[-20:])
        return f"{len(queue_ids)} messages out of the queue; last attempts:\n{tail}"
