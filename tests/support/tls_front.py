"""TLS in front of a scripted backend: a listener that shakes hands, and hands on what is said inside.

What it does out of the ordinary is about TLS alone; what the store says is the backend's script. One plain thread for
each connection. It knows nothing of the proxy.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
from dataclasses import dataclass, field
from types import TracebackType

from tests.support.backend import FakeBackend
from tests.support.patience import SOON


@dataclass
class Manners:
    """How it behaves; may be exchanged at any time.

    Attributes:
        starttls: TLS begins behind that command, else at once.
        offer: to LHLO, in plain text.
        answer: to STARTTLS, and what goes with it.
        cut: octets of each write.
        vanish: of the handshake so many octets are sent, and then it closes; None for all.
        silent: it shakes no hands.
        truncate: where the store closes, there is no close_notify.
    """

    starttls: bool = True
    offer: bytes = b"250-fake.test\r\n250 STARTTLS\r\n"
    answer: bytes = b"220 2.0.0 go ahead\r\n"
    cut: int = 65536
    vanish: int | None = None
    silent: bool = False
    truncate: bool = False


@dataclass
class Seen:
    """One connection.

    Attributes:
        plain: commands in plain text.
        version: once hands were shaken.
        inside: what came in TLS.
    """

    plain: list[bytes] = field(default_factory=list)
    version: str | None = None
    resumed: bool = False
    peer: str | None = None
    inside: bytearray = field(default_factory=bytearray)
    over: bool = False


class TlsFront:
    """Listens at 127.0.0.1. context: as a server's."""

    def __init__(self, behind: FakeBackend, context: ssl.SSLContext, manners: Manners | None = None) -> None:
        self.behind = behind
        self.context = context
        self.manners = manners or Manners()
        self.connections: list[Seen] = []
        self._changed = threading.Condition()
        self._live: dict[socket.socket, threading.Thread] = {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._stopping = False
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    @property
    def config(self) -> dict[str, object]:
        """Keys of a `backends:` entry, but for whom to trust."""
        tls = "starttls" if self.manners.starttls else "implicit"
        return {"host": "127.0.0.1", "port": self.port, "idle_timeout": 0, "tls": tls}

    def wait_over(self, count: int) -> bool:
        """That so many connections are, and are over."""
        with self._changed:
            return self._changed.wait_for(
                lambda: len(self.connections) >= count and all(seen.over for seen in self.connections), SOON
            )

    def __enter__(self) -> TlsFront:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(5)
        self._listener.close()
        with self._changed:
            live = list(self._live.items())
        for sock, thread in live:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            thread.join(5)

    def _accept(self) -> None:
        while not self._stopping:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            seen = Seen()
            thread = threading.Thread(target=self._serve, args=(sock, seen), daemon=True)
            with self._changed:
                self.connections.append(seen)
                self._live[sock] = thread
            thread.start()

    def _serve(self, sock: socket.socket, seen: Seen) -> None:
        try:
            _Talk(sock, seen, self.manners, self.context, self.behind.path).run()
        except (OSError, EOFError):
            pass
        finally:
            sock.close()
            with self._changed:
                seen.over = True
                self._live.pop(sock, None)
                self._changed.notify_all()


class _Talk:
    def __init__(self, sock: socket.socket, seen: Seen, manners: Manners, context: ssl.SSLContext, path: str) -> None:
        self._sock = sock
        self._seen = seen
        self._manners = manners
        self._path = path
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)

    def run(self) -> None:
        if self._manners.starttls:
            self._plain()
        if self._manners.silent:
            self._sock.recv(65536)
            select.select([self._sock], [], [], 2 * SOON)
            return
        self._shake_hands()
        with socket.socket(socket.AF_UNIX) as store:
            store.connect(self._path)
            if self._manners.starttls:
                while store.recv(1) not in (b"\n", b""):  # its greeting has been said in plain text
                    pass
            self._pump(store)

    def _plain(self) -> None:
        self._send(b"220 plain text\r\n")
        line = b""
        while True:
            octet = self._sock.recv(1)
            if not octet:
                raise EOFError
            line += octet
            if not line.endswith(b"\n"):
                continue
            command, line = line.rstrip().upper(), b""
            self._seen.plain.append(command)
            if command.startswith(b"LHLO"):
                self._send(self._manners.offer)
            elif command == b"STARTTLS":
                self._send(self._manners.answer)
                if self._manners.answer.startswith(b"220"):
                    return
            else:
                self._send(b"221 bye\r\n" if command == b"QUIT" else b"500 what\r\n")

    def _shake_hands(self) -> None:
        manners = self._manners
        left = manners.vanish
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                done = False
            except ssl.SSLError:
                self._send(self._out.read())
                raise
            else:
                done = True
            octets = self._out.read()
            if left is not None:
                self._send(octets[:left])
                left -= len(octets)
                if left <= 0 and octets:
                    raise EOFError
            else:
                self._send(octets)
            if done:
                break
            octets = self._sock.recv(65536)
            if not octets:
                raise EOFError
            self._in.write(octets)
        self._seen.resumed = self._tls.session_reused is True
        found = self._tls.getpeercert(binary_form=True)
        self._seen.peer = None if found is None else str(len(found))
        self._seen.version = self._tls.version()

    def _pump(self, store: socket.socket) -> None:
        self._decrypt(store)
        while True:
            readable, _, _ = select.select([self._sock, store], [], [])
            if store in readable:
                octets = store.recv(65536)
                if not octets:
                    if not self._manners.truncate:
                        try:
                            self._tls.unwrap()
                        except ssl.SSLError:
                            pass
                        self._send(self._out.read())
                    self._sock.shutdown(socket.SHUT_WR)
                    while self._sock.recv(65536):
                        pass
                    return
                self._tls.write(octets)
                self._send(self._out.read())
            if self._sock in readable:
                octets = self._sock.recv(65536)
                if not octets:
                    return
                self._in.write(octets)
                if not self._decrypt(store):
                    return

    def _decrypt(self, store: socket.socket) -> bool:
        """False at the client's close_notify."""
        while True:
            try:
                octets = self._tls.read(65536)
            except ssl.SSLWantReadError:
                return True
            if not octets:
                return False
            self._seen.inside += octets
            store.sendall(octets)

    def _send(self, octets: bytes) -> None:
        for at in range(0, len(octets), self._manners.cut):
            self._sock.sendall(octets[at : at + self._manners.cut])
