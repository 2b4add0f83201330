"""A scripted LMTP peer on a real unix or TCP socket, one plain thread per connection.

It follows a `Script` and records every byte that matters; it knows nothing of the proxy.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from types import TracebackType

from tests.support.conversation import Conversation, Ended, Users
from tests.support.patience import SOON
from tests.support.record import SeenConnection, SeenTransaction
from tests.support.script import HEALTHY, Script


class FakeBackend:
    """One listening backend. `transport` is "unix" or "tcp"; `peer` says what a connect meets:

    "listening", "refused" (an address without a listener), "absent" (no socket file; refused on TCP) or
    "full" (its backlog is full). `script` may be exchanged at any time, or be a function of the connection's number.
    `processes`: serves so many connections at a time; the next ones are accepted and hear nothing until one ends.
    `address`: of TCP; port 0 is any that is free. `users`: refuses RCPTs above a limit for each, as Dovecot 2.4 does.
    """

    def __init__(
        self,
        script: Script | Callable[[int], Script] = HEALTHY,
        *,
        transport: str = "unix",
        peer: str = "listening",
        keep_body: bool = True,
        receive_buffer: int | None = None,
        processes: int = 10_000,
        address: tuple[str, int] = ("127.0.0.1", 0),
        users: Users | None = None,
    ) -> None:
        self._users = users
        self._processes = threading.Semaphore(processes)
        self.script = script
        self.transport = transport
        self.keep_body = keep_body
        self.connections: list[SeenConnection] = []
        self._changed = threading.Condition()
        self._live: dict[socket.socket, threading.Thread] = {}
        self._fillers: list[socket.socket] = []
        self._stopping = False
        self._acceptor: threading.Thread | None = None
        self.directory = tempfile.mkdtemp(prefix="lpb", dir="/tmp")
        os.chmod(self.directory, 0o755)
        self.path = os.path.join(self.directory, "s")
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._listener = socket.socket(socket.AF_UNIX if transport == "unix" else family)
        if receive_buffer is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if transport == "unix":
            if peer != "absent":
                self._listener.bind(self.path)
                os.chmod(self.path, 0o777)
        else:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # it may have one at its port after it
            self._listener.bind(address)
            self.host = address[0]
            self.port: int = self._listener.getsockname()[1]
        if peer == "full":
            self._listener.listen(0)
            self._fill_backlog()
        elif peer == "listening":
            self._listener.listen(1024)
            self._acceptor = threading.Thread(target=self._accept, daemon=True)
            self._acceptor.start()

    # -- what tests ask -------------------------------------------------------------------------------------------

    @property
    def config(self) -> dict[str, object]:
        """Keys of a `backends:` entry. No connection is kept: each transaction meets the script in force then."""
        address = {"socket": self.path} if self.transport == "unix" else {"host": self.host, "port": self.port}
        return {**address, "idle_timeout": 0}

    def peers(self) -> list[int]:
        """The ports of those who are connected over TCP."""
        with self._changed:
            return [sock.getpeername()[1] for sock in self._live]

    def transactions(self, sender: str | None = None) -> list[SeenTransaction]:
        """Transactions of all connections in the order they began; only those of `sender` when given."""
        with self._changed:
            seen = [transaction for connection in self.connections for transaction in connection.transactions]
        return [transaction for transaction in seen if sender is None or transaction.sender == sender]

    def wait_for(self, condition: Callable[[], bool], timeout: float = SOON) -> bool:
        """Waits until `condition` holds; it is looked at after each change of the record. False after `timeout` s."""
        with self._changed:
            return self._changed.wait_for(condition, timeout)

    def wait_closed(self, count: int | None = None, timeout: float = SOON) -> bool:
        """True when every connection (the first `count`) was closed by the peer within `timeout` seconds."""
        return self.wait_for(
            lambda: (
                len(self.connections) >= (count or 0)
                and all(connection.ended is not None for connection in self.connections[:count])
            ),
            timeout,
        )

    def forget(self) -> None:
        """Empties the record of all that happened so far."""
        with self._changed:
            self.connections.clear()

    def stop(self) -> None:
        """Closes everything and waits for the threads. May be called again."""
        if self._stopping:
            return
        self._stopping = True
        if self._acceptor is not None:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
            self._acceptor.join(5)
        self._listener.close()
        for filler in self._fillers:
            filler.close()
        with self._changed:
            live = list(self._live.items())
        for connection, _ in live:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for _ in live:
            self._processes.release()
        for _, thread in live:
            thread.join(5)
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> FakeBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- the listening side ---------------------------------------------------------------------------------------

    def _fill_backlog(self) -> None:
        for _ in range(64):
            filler = socket.socket(self._listener.family)
            self._fillers.append(filler)
            filler.setblocking(False)
            try:
                filler.connect(self._listener.getsockname())
            except BlockingIOError:
                if self.transport == "unix":
                    return
                if not select.select([], [filler], [], 0.2)[1]:
                    return
        raise AssertionError("the backlog does not fill up")

    def _accept(self) -> None:
        while not self._stopping:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            if self.transport == "tcp":  # replies in writes of their own must not wait for each other
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._changed:
                seen = SeenConnection(len(self.connections), time.monotonic())
                self.connections.append(seen)
                script = self.script if isinstance(self.script, Script) else self.script(seen.index)
                thread = threading.Thread(target=self._serve, args=(sock, seen, script), daemon=True)
                self._live[sock] = thread
                self._changed.notify_all()
            thread.start()

    def _serve(self, sock: socket.socket, seen: SeenConnection, script: Script) -> None:
        talk = Conversation(sock, seen, script, self.keep_body, self._changed, self._users)
        try:
            with self._processes:
                if not self._stopping:
                    talk.run()
        except (Ended, ConnectionError):
            pass
        finally:
            sock.close()
            with self._changed:
                if seen.ended is None and not self._stopping:
                    seen.ended = time.monotonic()
                seen.done = True
                self._live.pop(sock, None)
                self._changed.notify_all()
