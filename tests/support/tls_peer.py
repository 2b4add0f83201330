"""The other end of a TlsStream, with each octet of its own in the test's hand; and a kernel without room."""

from __future__ import annotations

import ssl
import time
from _socket import socket as Socket
from pathlib import Path
from socket import socketpair

import gevent
import pytest

from lmtp_proxy.loop.tls import TlsStream
from lmtp_proxy.loop.tls_context import client_context
from tests.support.certificates import Authority
from tests.support.patience import SOON


class Peer:
    """The server's side of a socket pair, which speaks when the test wants it to, in octets that it chooses."""

    def __init__(self, context: ssl.SSLContext) -> None:
        ours, self.sock = socketpair()
        self.sock.setblocking(False)
        self.stream = TlsStream(Socket(fileno=ours.detach()))
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_side=True)

    def take_in(self) -> None:
        while True:
            try:
                octets = self.sock.recv(65536)
            except BlockingIOError:
                return
            if not octets:
                return
            self._in.write(octets)

    def shake(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            self.take_in()
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.put(self._out.read())
                gevent.sleep(0.001)
            else:
                self.put(self._out.read())
                return

    def put(self, octets: bytes, size: int = 65536) -> None:
        """In pieces of so many octets each."""
        while octets:
            try:
                octets = octets[self.sock.send(octets[:size]) :]
            except BlockingIOError:  # a unix socket has room for a few hundred single octets
                gevent.sleep(0.001)
            gevent.sleep(0)

    def record(self, octets: bytes) -> bytes:
        self.tls.write(octets)
        return self._out.read()

    def end(self) -> bytes:
        """A close_notify."""
        with pytest.raises(ssl.SSLError):
            self.tls.unwrap()
        return self._out.read()

    def heard(self) -> bytes:
        self.take_in()
        found = b""
        try:
            while octets := self.tls.read(65536):
                found += octets
        except ssl.SSLWantReadError:
            pass
        return found

    def close(self) -> None:
        self.stream.close()
        self.sock.close()


class Narrow:
    """A kernel that takes so many octets more."""

    def __init__(self, stream: TlsStream, room: int) -> None:
        self.room = room
        self._send = stream._send_octets
        stream._send_octets = self  # type: ignore[assignment]

    def __call__(self, octets: bytes, flags: int = 0) -> int:
        if not self.room:
            raise BlockingIOError
        sent = self._send(octets[: self.room], flags)
        self.room -= sent
        return sent


def client(authority: Authority) -> ssl.SSLContext:
    return client_context(verify=True, name=True, ca=Path(authority.path).read_bytes(), certificate=None, key=None)


def soon() -> float:
    return time.monotonic() + 2 * SOON


def connect(authority: Authority, *, latest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> Peer:
    """After the handshake."""
    peer = Peer(authority.signed["peer"].server(maximum_version=latest))
    shaking = gevent.spawn(peer.shake, soon())
    peer.stream.start_tls(client(authority), "peer", soon())
    shaking.join(SOON)
    assert peer.stream.tls is not None
    return peer
