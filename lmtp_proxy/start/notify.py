# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells who started the process that clients are served: READY=1 to NOTIFY_SOCKET (sd_notify(3), Type=notify).

The protocol is one datagram, so no library is needed for it. It knows nothing of what is served.
"""

import os
import socket


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
