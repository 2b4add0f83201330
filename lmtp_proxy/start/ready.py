# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells that clients are served: READY=1 to NOTIFY_SOCKET (sd_notify(3), Type=notify), and a line in the log.

The same from one process that serves and from a supervisor of several. The protocol of sd_notify is one datagram, so no
library is needed for it. With the line come warnings of what the operator may not have meant.
"""

import logging
import os
import socket

from lmtp_proxy import __version__
from lmtp_proxy.config.values import LOCALHOST, Config


def notify_ready() -> str | None:
    """Say it, once, if anybody wants to know. Returns what went wrong, as one line, or None."""
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if not address:
        return None
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect("\0" + address[1:] if address.startswith("@") else address)
            sender.send(b"READY=1")
    except OSError as error:
        return f"NOTIFY_SOCKET={address}: cannot say that lmtp-proxy is ready: {error.strerror or error}"
    return None


_log = logging.getLogger(__name__)
_LOOPBACK = socket.inet_pton(socket.AF_INET6, "::1")


def log_ready(config: Config, listener: socket.socket, users: int, by: str = "") -> None:
    """Say that clients are served on `listener`.

    Args:
        users: how many keys the table has.
        by: who serves, where that is not this process: `, 2 workers`.
    """
    backends = len(config.backends)
    what = f"{users} users, {backends} backends{by}"
    _log.info("ready: lmtp-proxy %s on %s, generation 1 of %s: %s", __version__, config.socket, config.path, what)
    for note in config.notes:
        _log.info("note: %s", note)
    if config.metrics is not None:
        where = config.metrics
        _log.info("metrics: http://%s/metrics; the status page is http://%s/", where, where)
        if not _is_loopback(where.host):
            _log.warning("%s (config.metrics) is no loopback address: any host may see the counts and backends", where)
    if config.allow is not None or listener.family == socket.AF_UNIX:
        return
    if not _is_loopback(listener.getsockname()[0]):
        _log.warning("%s is no loopback address and config.allow is not set: any host may deliver", config.socket)


def _is_loopback(host: str) -> bool:
    try:
        octets = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host.partition("%")[0])
    except OSError:  # a name
        return host.lower().rstrip(".") in LOCALHOST
    return octets[0] == 127 if len(octets) == 4 else octets == _LOOPBACK
