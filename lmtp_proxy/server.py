# SPDX-License-Identifier: GPL-3.0-or-later
"""The listening socket: a greenlet per client, the client limit, who may connect, and the drain on stop.

The socket comes bound and listening. Above the limit clients wait in the kernel's backlog: a 421 in the greeting would
make Postfix suspend the whole destination. It speaks no LMTP beyond "554 and close".
"""

import logging
import socket
import time
from _socket import socket as Socket
from collections.abc import Callable, Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any

import gevent
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer

from lmtp_proxy import reply as say
from lmtp_proxy.log import printable
from lmtp_proxy.patient_acceptor import PatientAcceptor
from lmtp_proxy.session import Session, SessionState, Shared
from lmtp_proxy.stream import Stream

_log = logging.getLogger(__name__)


class _PlainSockets(StreamServer):
    """Hands out sockets of the C type, for Stream; gevent's own type costs 10 us more a client."""

    def do_read(self) -> Any:
        listener = self.socket
        try:
            handle, address = listener._accept()  # type: ignore[attr-defined]  # what socket.accept() itself calls
        except BlockingIOError:
            return None
        return Socket(listener.family, listener.type, listener.proto, handle), address


class _Acceptor(PatientAcceptor, _PlainSockets):
    """Accepts clients for mail."""


class Server:
    """Accepts clients on `listener`, a gevent socket, and serves them.

    sessions_changed: called with the number of sessions each time it changes; must not wait. alone: no other process
    accepts on `listener`.
    """

    def __init__(
        self,
        listener: socket.socket,
        shared: Shared,
        max_clients: int,
        sessions_changed: Callable[[int], None],
        *,
        alone: bool = True,
    ) -> None:
        self._shared = shared
        self._sessions: set[Session] = set()
        self._changed = Event()
        self._sessions_changed = sessions_changed
        self._stopping = False
        self._tcp = listener.family != socket.AF_UNIX
        self._stream_server = _Acceptor(listener, self._serve, spawn=Pool(max_clients))
        if not alone:
            self._stream_server.max_accept = 1  # who wakes up first would take all, and the others have nothing to do

    def __repr__(self) -> str:
        return f"<Server {len(self._sessions)} sessions>"

    def sessions(self) -> list[SessionState]:
        """All sessions, the oldest first."""
        return sorted((session.state for session in self._sessions), key=lambda state: -state.seconds)

    def start(self) -> None:
        """Begin to accept."""
        self._stream_server.start()

    def stop(self) -> None:
        """Accept nobody any more, let transactions finish, and return when the last session has ended.

        Idle clients are told 421 at once. A transaction whose final dot was not read within `timeouts.shutdown` is
        given up; one whose final dot was read has until its own deadline (`timeouts.final_reply`).
        """
        self._stream_server.close()
        self._stopping = True
        gevent.sleep(0)  # a client that was accepted just now has its greenlet, but that has not run yet
        deadline = time.monotonic() + self._shared.cutover.current().config.timeouts.shutdown
        for session in tuple(self._sessions):
            session.stop()
        if self._sessions:
            _log.info("stopping: %d sessions have a transaction to finish or are told to leave", len(self._sessions))
        while self._sessions:
            self._changed.clear()
            seconds = deadline - time.monotonic()
            if seconds > 0:
                self._changed.wait(seconds)
                continue
            for session in tuple(self._sessions):
                session.stop_now()
            # Those that are committing end by their own deadline, so this wait ends too.
            self._changed.wait()

    def _serve(self, sock: Socket, address: Any) -> None:
        peer = f"{address[0]}:{address[1]}" if self._tcp else "unix"
        if self._tcp:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not self._may_connect(str(address[0])):
                self._turn_away(sock, peer)
                return
        session = Session(sock, peer, self._shared, trusted=not self._tcp or self._is_trusted(str(address[0])))
        _log.debug("%s: connect from %s", session.name, peer)
        self._sessions.add(session)
        self._shared.cutover.tallies.accepted += 1
        self._sessions_changed(len(self._sessions))
        if self._stopping:
            session.stop()
        try:
            session.run()
        finally:
            self._sessions.discard(session)
            self._shared.cutover.tallies.ended += 1
            self._changed.set()
            self._sessions_changed(len(self._sessions))
            _log.debug("%s: disconnect from %s", session.name, peer)

    def _may_connect(self, host: str) -> bool:
        allow = self._shared.cutover.current().config.allow
        return allow is None or _is_within(host, allow)

    def _is_trusted(self, host: str) -> bool:
        trusted = self._shared.cutover.current().config.trusted
        return trusted is not None and _is_within(host, trusted)

    def _turn_away(self, sock: Socket, peer: str) -> None:
        _log.warning("refused a connection from %s: not in config.allow", printable(peer.encode()))
        stream = Stream(sock)
        try:
            stream.send(say.NOT_ALLOWED.to_bytes())
            # Closing while the client's first words are unread would reset the connection, and the reply with it.
            stream.finish()
            deadline = time.monotonic() + 1.0
            while not stream.ended and time.monotonic() < deadline:
                stream.wait(deadline)
                stream.take()
        except OSError:
            pass
        finally:
            stream.close()


def _is_within(host: str, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    address = ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return any((mapped or address) in network or address in network for network in networks)
