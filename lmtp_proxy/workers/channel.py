# SPDX-License-Identifier: GPL-3.0-or-later
"""How the supervisor reaches the control application of a worker: connections handed over a pair of sockets.

No name in the file system, so nobody else can connect and nothing is left behind; and as the supervisor alone holds the
other end, the worker learns of its death.
"""

import json
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent.socket

from lmtp_proxy.control.request import UID
from lmtp_proxy.control.server import ControlServer, HttpAcceptor
from lmtp_proxy.control.state import MAX_CONNECTIONS

_log = logging.getLogger(__name__)

HEADER = "Lmtp-Proxy-Uid"
"""Of a request: the user id of the client who sent it to the supervisor."""

# Each client of the supervisor may have one request under way, and another that asks whether the worker is alive.
_CONNECTIONS = 2 * MAX_CONNECTIONS + 16
_MAX_MESSAGE = 65536


class WorkerChannel:
    """The supervisor's end.

    Attributes:
        far: the end of the worker, to be handed to its process and closed.
    """

    def __init__(self) -> None:
        near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._near = gevent.socket.socket(near.family, near.type, near.proto, fileno=near.detach())

    def connect(self) -> socket.socket:
        """A connection to the worker's application. Raises OSError: it has ended, or takes none."""
        ours, theirs = socket.socketpair()
        with theirs:
            own = gevent.socket.socket(ours.family, ours.type, ours.proto, fileno=ours.detach())
            try:
                self._near.settimeout(0.0)
                socket.send_fds(self._near, [b"c"], [theirs.fileno()])
            except BaseException:
                own.close()
                raise
        return own

    def hear(self) -> list[str] | None:
        """Wait for what the worker says at its start: why it cannot serve, nothing if it can; None if it ended."""
        try:
            self._near.settimeout(None)
            message = self._near.recv(_MAX_MESSAGE)
        except OSError:
            return None
        return [str(line) for line in json.loads(message)] if message else None

    def close(self) -> None:
        """Close both ends."""
        self.far.close()
        self._near.close()


def say(channel: socket.socket, errors: list[str]) -> None:
    """The worker's answer to `hear`.

    Args:
        channel: its end, before gevent is there.
        errors: why it cannot serve; none if it can.
    """
    while len(message := json.dumps(errors).encode("ascii")) > _MAX_MESSAGE:
        errors = errors[: len(errors) // 2]
    channel.send(message)


class ChannelServer(ControlServer):
    """Serves requests on the connections that the supervisor hands over.

    Args:
        channel: the worker's end, a gevent socket.
        application: WSGI.
        orphaned: called when the supervisor has ended; must not wait.
    """

    def __init__(self, channel: socket.socket, application: Callable[..., Any], orphaned: Callable[[], object]) -> None:
        def forwarded(environ: dict[str, Any], start_response: Any) -> Any:
            environ[UID] = int(environ["HTTP_" + HEADER.upper().replace("-", "_")])
            return application(environ, start_response)

        super().__init__(channel, forwarded, partial(_HandedOver, orphaned), _CONNECTIONS)


class _HandedOver(HttpAcceptor):
    """Takes its connections from the channel. orphaned: see ChannelServer."""

    def __init__(self, orphaned: Callable[[], object], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._orphaned = orphaned

    def do_read(self) -> Any:
        try:
            octets, handles, _, _ = socket.recv_fds(self.socket, 16, 1)
        except BlockingIOError:
            return None
        if not octets:
            self.stop_accepting()
            self._orphaned()
            return None
        if not handles:
            _log.warning("control: cannot accept a request from the supervisor: too many open files")
            return None
        return gevent.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=handles[0]), ""
