# SPDX-License-Identifier: GPL-3.0-or-later
"""The listening sockets: a greenlet per client, the client limit, who may connect, and the drain on stop.

The sockets come bound and listening. Above the limit clients wait in the kernel's backlog: a 421 in the greeting would
make Postfix suspend the whole destination. It speaks no LMTP beyond "421 and close".
"""

import logging
import socket
import time
from _socket import socket as Socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from gevent.event import Event

from lmtp_proxy.clients.access import Complaints, Members, Networks, is_loopback, private_networks
from lmtp_proxy.clients.proxied import NoHeader, read_header
from lmtp_proxy.clients.session import Session, SessionState, Shared, hear_out
from lmtp_proxy.config.values import Config, ListenerTls
from lmtp_proxy.loop.acceptor import Acceptor, Crowd, Serve
from lmtp_proxy.loop.late import late_import
from lmtp_proxy.loop.stream import Stream
from lmtp_proxy.wire import reply as say
from lmtp_proxy.wire.reply import Reply

if TYPE_CHECKING:
    from lmtp_proxy.clients.tls import ClientTls

_log = logging.getLogger(__name__)
_AT_ONCE = 100
"""Clients accepted before those that are there have their turn."""
_HEADER = 10.0  # seconds for what a proxy says at once; three may be one lost packet
_NOT_ALLOWED = 'not in config.allow, where it can be added; allow: [0.0.0.0/0, "::/0"] is for everybody'


class Server:
    """Accepts clients on `listeners`, gevent sockets, and serves them.

    Args:
        max_clients: on all of them.
        sessions_changed: called with the number of sessions each time it changes; must not wait.
        alone: no other process accepts on them.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
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
        self._tls: ClientTls | None = None  # until there is a client for it
        self._allowed, self._trusted, self._proxies = Members(), Members(), Members()
        self._complaints = Complaints()
        crowd = Crowd(max_clients)
        # Where several accept, who wakes up first would take all, and the others have nothing to do.
        at_once = _AT_ONCE if alone else 1
        self._acceptors = [Acceptor(each, self._serve_on(each), crowd, at_once) for each in listeners]

    def __repr__(self) -> str:
        return f"<Server {len(self._sessions)} sessions>"

    def sessions(self) -> list[SessionState]:
        """All sessions, the oldest first."""
        return sorted((session.state for session in self._sessions), key=lambda state: -state.seconds)

    def start(self) -> None:
        """Begin to accept."""
        for acceptor in self._acceptors:
            acceptor.start()

    def stop(self) -> None:
        """Accept nobody any more, let transactions finish, and return when the last session has ended.

        Idle clients are told 421 at once. A transaction whose final dot was not read within `timeouts.shutdown` is
        given up; one whose final dot was read has until its own deadline (`timeouts.final_reply`).
        """
        for acceptor in self._acceptors:
            acceptor.close()
        self._stopping = True
        deadline = time.monotonic() + self._shared.parts.current().config.timeouts.shutdown
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

    def _serve_on(self, listener: socket.socket) -> Serve:
        if listener.family == socket.AF_UNIX:
            return self._serve_local
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # each accepted socket has it from there
        if is_loopback(listener.getsockname()[0]):
            return self._serve_tcp
        return partial(self._serve_tcp, default=private_networks())

    def _serve_local(self, sock: Socket, _address: Any) -> None:
        self._serve(Session(Stream(sock), "unix", self._shared, self._shared.parts.current().config, True), "unix")

    def _serve_tcp(
        self, sock: Socket, address: Any, default: "Networks | None" = None, *, by: str | None = None
    ) -> None:
        """A client at `address`.

        Args:
            default: who may connect where the configuration does not say; None for everybody.
            by: the proxy that has said the address.
        """
        config = self._shared.parts.current().config
        host, port = address[:2]
        peer = f"{host}:{port}"
        if config.proxy_protocol is not None and by is None and self._proxies.has(host, config.proxy_protocol):
            self._serve_proxied(sock, address, default)
            return
        allow = config.allow or default
        if allow is not None and not self._allowed.has(host, allow):
            said_something = _say_and_close(sock, say.NOT_ALLOWED)
            if said_something or host != by:  # else it is a health check in version 1, which has no LOCAL
                self._complaints.make(host, peer, _NOT_ALLOWED)
            return
        self._serve_host(sock, host, peer, config)

    def _serve_proxied(self, sock: Socket, address: Any, default: "Networks | None") -> None:
        """A client of a proxy at `address`, which says first who that is."""
        host, port = address[:2]
        peer = f"{host}:{port}"
        try:
            header = read_header(sock, min(_HEADER, self._shared.parts.current().config.timeouts.client_idle))
        except NoHeader as error:
            if error.why is not None:
                self._complaints.make(host, peer, f"{error.why}, which config.proxy_protocol asks of it")
            sock.close()
            return
        if self._stopping:
            sock.close()
        elif header.local:  # it may name any client, so `allow` would keep nothing from it
            self._serve_host(sock, host, peer, self._shared.parts.current().config)
        else:
            self._serve_tcp(sock, header.source or address, default, by=host)

    def _serve_host(self, sock: Socket, host: str, peer: str, config: Config) -> None:
        """A client that may connect."""
        trusted = config.trusted is not None and self._trusted.has(host, config.trusted)
        if config.tls is not None:
            self._serve_tls(sock, peer, config, config.tls, trusted)
        else:
            self._serve(Session(Stream(sock), peer, self._shared, config, trusted), peer)

    def _serve_tls(self, sock: Socket, peer: str, config: Config, keys: ListenerTls, trusted: bool) -> None:
        tls = self._tls
        if tls is None or (tls.keys is not keys and tls.keys != keys):  # after a reload
            try:
                with late_import():
                    from lmtp_proxy.clients.tls import ClientTls

                tls = self._tls = ClientTls(keys, self._shared.parts.tallies)
            except (ImportError, OSError, ValueError) as error:
                _log.error("no TLS for %s: %s; it is told to come again", peer, error)
                _say_and_close(sock, say.NO_TLS_NOW)
                return
        session = Session(tls.stream(sock), peer, self._shared, config, trusted)
        session.expect_tls(tls)
        self._serve(session, peer)

    def _serve(self, session: Session, peer: str) -> None:
        debug = _log.isEnabledFor(logging.DEBUG)
        if debug:
            _log.debug("%s: connect from %s", session.name, peer)
        sessions, tallies = self._sessions, self._shared.parts.tallies
        sessions.add(session)
        tallies.accepted += 1
        self._sessions_changed(len(sessions))
        try:
            session.run()
        finally:
            sessions.discard(session)
            tallies.ended += 1
            if self._stopping:
                self._changed.set()
            self._sessions_changed(len(sessions))
            if debug:
                _log.debug("%s: disconnect from %s", session.name, peer)


def _say_and_close(sock: Socket, reply: Reply) -> bool:
    """Whether it has said anything."""
    stream = Stream(sock)
    said = False
    try:
        stream.send(reply.to_bytes())
        # Closing while the client's first words are unread would reset the connection, and the reply with it.
        stream.finish()
        said = hear_out(stream)
    except OSError:
        pass
    finally:
        stream.close()
    return said
