# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells that clients are served, and how the service is: to NOTIFY_SOCKET (sd_notify(3)), and by a line in the log.

The same from one process that serves and from a supervisor of several. The protocol of sd_notify is one datagram, so no
library is needed for it. With the line come warnings of what the operator may not have meant.
"""

import logging
import os
import socket
from collections.abc import Sequence

from lmtp_proxy import __version__
from lmtp_proxy.config.values import LOCALHOST, Config, TcpAddress
from lmtp_proxy.start.sockets import Listener
from lmtp_proxy.text import printable


class Notifier:
    """Who wants to know how the service is; nobody, if NOTIFY_SOCKET is not set.

    Args:
        address: of the socket, as in NOTIFY_SOCKET.
        alive_every: seconds in which it wants to hear that the process is alive, 0 for never.
    """

    def __init__(self, address: str, alive_every: float) -> None:
        self._address = address
        self.alive_every = alive_every

    def __repr__(self) -> str:
        return f"<Notifier {self._address or 'for nobody'}>"

    @classmethod
    def taken(cls) -> "Notifier":
        """What the environment says, which means no other process: it is taken out of it."""
        address, usec, pid = (os.environ.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"))
        is_ours = bool(address) and usec.isdigit() and pid in ("", str(os.getpid()))
        return cls(address, int(usec) / 2e6 if is_ours else 0.0)  # twice in that time, as sd_watchdog_enabled(3) has it

    def ready(self, config: Config, users: int) -> str | None:
        """Clients are served. Returns what went wrong, as one line, or None."""
        return self._say("READY=1", f"STATUS=generation 1: {users} users, {len(config.backends)} backends")

    def status(self, text: str) -> None:
        """How it is now, one line for people."""
        self._say(f"STATUS={printable(text.encode())}")

    def stopping(self) -> None:
        """No more clients are accepted."""
        self._say("STOPPING=1", "STATUS=stopping: no new clients are accepted")

    def alive(self) -> None:
        """To be said each `alive_every` seconds."""
        self._say("WATCHDOG=1")

    def _say(self, *lines: str) -> str | None:
        address = self._address
        if not address:
            return None
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.connect("\0" + address[1:] if address.startswith("@") else address)
                sender.send("\n".join(lines).encode("utf-8", "backslashreplace"))
        except OSError as error:
            return f"NOTIFY_SOCKET={address}: cannot say that lmtp-proxy is ready: {error.strerror or error}"
        return None


_log = logging.getLogger(__name__)
_LOOPBACK = socket.inet_pton(socket.AF_INET6, "::1")


def log_ready(config: Config, mail: Sequence[Listener], users: int, by: str = "") -> None:
    """Say that clients are served.

    Args:
        mail: where.
        users: how many keys the table has.
        by: who serves, where that is not this process: `, 2 workers`.
    """
    where_mail_comes_in = " and ".join(str(each.address) for each in mail)
    backends = len(config.backends)
    what = f"{users} users, {backends} backends{by}"
    _log.info("ready: lmtp-proxy %s on %s, generation 1 of %s: %s", __version__, where_mail_comes_in, config.path, what)
    for note in config.notes:
        _log.info("note: %s", note)
    for backend in config.backends.values():
        if backend.tls != "no" and not backend.tls_verify:
            what = "tls_verify is no, so whoever answers there gets its mail"
            _log.warning("backend %s[%s]: %s", backend.name, backend.address, what)
    if config.metrics is not None:
        where = config.metrics
        _log.info("metrics: http://%s/metrics; the status page is http://%s/", where, where)
        if not _is_loopback(where.host):
            _log.warning("%s (config.metrics) is no loopback address: any host may see the counts and backends", where)
    for listener in mail if config.allow is None else ():
        address = listener.address
        if isinstance(address, TcpAddress) and not _is_loopback(address.host):
            _log.warning(
                "%s is no loopback address and config.allow is not set: only private networks may connect", address
            )


def _is_loopback(host: str) -> bool:
    try:
        octets = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host.partition("%")[0])
    except OSError:  # a name
        return host.lower().rstrip(".") in LOCALHOST
    return octets[0] == 127 if len(octets) == 4 else octets == _LOOPBACK
