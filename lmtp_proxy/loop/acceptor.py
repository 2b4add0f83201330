# SPDX-License-Identifier: GPL-3.0-or-later
"""gevent's servers for many short connections: a greenlet for each client, up to a limit.

What StreamServer does for every kind of server costs 50 us a client, a quarter of what a client with one message costs:
a Pool, a Greenlet and a socket object each time. Where no file or memory is left for a client, they wait, and one line
in the log says so.
"""

import errno
import logging
import socket
from _socket import socket as Socket
from collections.abc import Callable
from typing import Any, TypeAlias

import gevent
from gevent import get_hub
from gevent.baseserver import BaseServer
from gevent.server import StreamServer
from greenlet import getcurrent, greenlet

_log = logging.getLogger(__name__)
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_ACCEPT_PAUSE = 1.0  # seconds


class PatientAcceptor(BaseServer):  # type: ignore[type-arg]  # generic in the stubs only
    """For gevent's servers, which would write a traceback each time there is no file or memory left for a client.

    Here it is one line and a pause; clients wait in the backlog meanwhile.

    Attributes:
        cannot_accept: how the line begins.
    """

    cannot_accept = "cannot accept a client"

    def do_read(self) -> Any:
        try:
            return super().do_read()
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            _log.warning("%s: %s; clients wait, next try in %g s", self.cannot_accept, error.strerror, _ACCEPT_PAUSE)
            self.stop_accepting()
            gevent.spawn_later(_ACCEPT_PAUSE, self._go_on)
            return None

    def _go_on(self) -> None:
        if self.started:
            self.start_accepting()


_KEPT = 20
"""Greenlets that wait for their next client: a new one maps 16 KiB for its frames, and unmaps it at its end."""

Serve: TypeAlias = Callable[[Socket, Any], None]


class _PlainSockets(StreamServer):
    """Hands out sockets of the C type, for Stream; gevent's own type costs 10 us more a client.

    Args:
        at_once: how many clients are handled before the rest of the process gets its turn.
    """

    def __init__(self, listener: socket.socket, serve: Serve, at_once: int) -> None:
        super().__init__(listener, serve)
        self._at_once = range(at_once)
        self._kind = listener.family, listener.type, listener.proto

    def do_read(self) -> Any:
        """Handle all clients who wait: what gevent does around each one that it is given is needed only once."""
        accept = self.socket._accept  # type: ignore[attr-defined]  # what socket.accept() itself calls
        for _ in self._at_once:
            try:
                handle, address = accept()
            except BlockingIOError:
                return None
            self.do_handle(Socket(*self._kind, handle), address)  # type: ignore[arg-type]
            if self.full():
                self.stop_accepting()
                break
        return None


class Crowd:
    """The clients of all acceptors that share a limit.

    Attributes:
        limit: how many may be served at once.
        clients: how many are.
        stopped: acceptors that take nobody until one leaves.
    """

    __slots__ = ("clients", "limit", "stopped")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.clients = 0
        self.stopped: set[Acceptor] = set()

    def __repr__(self) -> str:
        return f"<Crowd {self.clients} of {self.limit} clients>"


class Acceptor(PatientAcceptor, _PlainSockets):
    """On `listener`, a gevent socket that does not block.

    Args:
        serve: is given the socket and address of each client, in a greenlet that is the hub's child and not gevent's.
        crowd: when that is full, others wait in the kernel's backlog.
        at_once: how many clients are accepted before those that are there get their turn.
    """

    def __init__(self, listener: socket.socket, serve: Serve, crowd: Crowd, at_once: int) -> None:
        super().__init__(listener, serve, at_once)
        self._serve = serve
        self._crowd = crowd
        self._hub = get_hub()
        self._idle: list[greenlet] = []

    def __repr__(self) -> str:
        return f"<Acceptor of {self._crowd!r}>"

    def close(self) -> None:
        """Accept nobody any more, and close the listening socket."""
        super().close()
        while self._idle:
            self._hub.loop.run_callback(self._idle.pop().throw)  # it ends in the hub, so it must be left from there

    def full(self) -> bool:
        """Whether there are as many clients as may be."""
        crowd = self._crowd
        if crowd.clients < crowd.limit:
            return False
        crowd.stopped.add(self)
        return True

    def do_handle(self, sock: Socket, address: Any) -> None:
        """Serve a client. Runs in the hub, and so does each session until it waits for the first time."""
        self._crowd.clients += 1
        worker = self._idle.pop() if self._idle else greenlet(self._work, self._hub)
        worker.switch(sock, address)

    def _work(self, sock: Socket, address: Any) -> None:
        """The life of a greenlet: one client after the other."""
        while True:
            try:
                self._serve(sock, address)
            except Exception:  # noqa: BLE001  (an error of ours, which is not to stop the hub)
                _log.exception("a client was given up")
                sock.close()
            crowd = self._crowd
            crowd.clients -= 1
            if crowd.stopped:
                stopped, crowd.stopped = crowd.stopped, set()
                for acceptor in stopped:
                    acceptor._go_on()
            if not self.started or len(self._idle) >= _KEPT:
                return
            self._idle.append(getcurrent())
            sock = address = None  # type: ignore[assignment]  # nothing of the last client stays
            sock, address = self._hub.switch()
