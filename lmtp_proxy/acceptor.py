# SPDX-License-Identifier: GPL-3.0-or-later
"""Accepts clients, and has each served in a greenlet of its own, up to a limit.

gevent's StreamServer does the same for a hundred kinds of server, at 50 us a client, which is a quarter of what a
client with one message costs. It knows neither what is served nor who may connect.
"""

import logging
import socket
from _socket import socket as Socket
from collections.abc import Callable
from typing import Any, TypeAlias

from gevent import get_hub
from greenlet import getcurrent, greenlet

from lmtp_proxy.patient_acceptor import ACCEPT_PAUSE, CANNOT_ACCEPT, EXHAUSTED

_log = logging.getLogger(__name__)
_READ = 1  # libev's event
_KEPT = 20
"""Greenlets that wait for their next client: a new one maps 16 KiB for its frames, and unmaps it at its end."""

Serve: TypeAlias = Callable[[Socket, Any], None]


class Acceptor:
    """On `listener`, a gevent socket that does not block.

    serve: given the socket and address of each client; its greenlet is the hub's child and not one of gevent's.
    limit: clients who are served at once; above that they wait in the kernel's backlog. at_once: clients accepted
    before those that are there get their turn.
    """

    def __init__(self, listener: socket.socket, serve: Serve, limit: int, at_once: int) -> None:
        self._listener = listener
        self._serve = serve
        self._limit = limit
        self._at_once = at_once
        self._clients = 0
        self._hub = get_hub()
        self._watcher = self._hub.loop.io(listener.fileno(), _READ)
        self._accepts = False
        self._pause: Any = None
        self._closed = False
        self._idle: list[greenlet] = []

    def __repr__(self) -> str:
        return f"<Acceptor {self._clients} of {self._limit} clients>"

    def start(self) -> None:
        """Accept clients from now on."""
        if not self._accepts and not self._closed and self._clients < self._limit:
            self._accepts = True
            self._watcher.start(self._accept)

    def _stop(self) -> None:
        self._accepts = False
        self._watcher.stop()

    def close(self) -> None:
        """Accept nobody any more, and close the listening socket."""
        self._closed = True
        self._stop()
        self._watcher.close()
        if self._pause is not None:
            self._pause.close()
        self._listener.close()
        while self._idle:
            self._hub.loop.run_callback(self._idle.pop().throw)  # it ends in the hub, so it must be left from there

    def _accept(self) -> None:
        # Runs in the hub, and so does each session, until it waits for the first time.
        listener = self._listener
        for _ in range(self._at_once):
            try:
                handle, address = listener._accept()  # type: ignore[attr-defined]  # what socket.accept() itself calls
                sock = Socket(listener.family, listener.type, listener.proto, handle)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in EXHAUSTED:
                    self._be_patient(error)
                    return
                continue  # the client has gone already
            self._clients += 1
            worker = self._idle.pop() if self._idle else greenlet(self._work, self._hub)
            worker.switch(sock, address)
            if self._clients >= self._limit and self._accepts:
                self._stop()
            if not self._accepts:
                return

    def _work(self, sock: Socket, address: Any) -> None:
        """The life of a greenlet: one client after the other."""
        while True:
            try:
                self._serve(sock, address)
            except Exception:  # noqa: BLE001  (an error of ours, which is not to stop the hub)
                _log.exception("a client was given up")
                sock.close()
            self._clients -= 1
            if self._pause is None:
                self.start()
            if self._closed or len(self._idle) >= _KEPT:
                return
            self._idle.append(getcurrent())
            sock = address = None  # type: ignore[assignment]  # nothing of the last client stays
            sock, address = self._hub.switch()

    def _be_patient(self, error: OSError) -> None:
        _log.warning("%s: %s; clients wait, next try in %g s", CANNOT_ACCEPT, error.strerror, ACCEPT_PAUSE)
        self._stop()
        self._pause = self._hub.loop.timer(ACCEPT_PAUSE)
        self._pause.start(self._go_on)

    def _go_on(self) -> None:
        self._pause.close()
        self._pause = None
        self.start()
