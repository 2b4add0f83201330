# SPDX-License-Identifier: GPL-3.0-or-later
"""A listening socket that was passed to the process, as systemd does it: LISTEN_PID, LISTEN_FDS (sd_listen_fds(3)).

Whoever passes it keeps it open, so clients wait in its backlog while one process ends and the next one starts. It
neither binds nor closes anything, and knows nothing of the configuration.
"""

import os
import socket

from lmtp_proxy.config.values import Address, TcpAddress, UnixAddress

_FIRST = 3  # SD_LISTEN_FDS_START


class PassedSocketError(Exception):
    """What was passed cannot be used; the text says why."""


def take_passed_socket() -> socket.socket | None:
    """The one listening socket that was passed to this very process; None if there is none. Raises PassedSocketError.

    A second call returns None: the variables are taken out of the environment, as they mean nobody else.
    """
    pid, count, _ = (os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or count in ("", "0"):
        return None
    if count != "1":
        raise PassedSocketError(f"LISTEN_FDS={count}: one socket can be passed, the one for mail")
    try:
        os.set_inheritable(_FIRST, False)
        passed = socket.socket(fileno=_FIRST)
    except OSError as error:
        raise PassedSocketError(f"LISTEN_FDS=1, but descriptor {_FIRST} is no socket: {error.strerror}") from error
    if (
        passed.family not in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
        or passed.type != socket.SOCK_STREAM
        or not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    ):
        raise PassedSocketError("the socket that was passed does not listen for connections (Accept=no, ListenStream=)")
    return passed


def address_of(listener: socket.socket) -> Address:
    """Where it listens."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return UnixAddress(name if isinstance(name, str) else "@" + name[1:].decode("utf-8", "backslashreplace"))
    return TcpAddress(name[0], name[1])
