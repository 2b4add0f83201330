# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a store slow: an LMTP relay before it that hands on messages at a limited rate and holds back their final dot.

What a busy disk does in seconds now and then it does to every message, so that a test sees it. It passes octets and
knows of LMTP only how a message ends.
"""

import contextlib
import socket
import threading
import time
from pathlib import Path
from types import TracebackType

END = b"\r\n.\r\n"
CHUNK = 65536


class SlowRelay:
    """Listens on the unix socket `path`, passes each connection on to `store`. Use as a context manager."""

    def __init__(self, path: Path, store: Path, *, commit_delay: float, rate: float) -> None:
        """`commit_delay`: seconds from the end of a message to when the store gets it; `rate`: octets a second."""
        self.path = path
        self._store = store
        self._commit_delay = commit_delay
        self._rate = rate
        self._listener = socket.socket(socket.AF_UNIX)
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "SlowRelay":
        self._listener.bind(str(self.path))
        self.path.chmod(0o666)
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.path.unlink()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._relay, args=(client,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _relay(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as store:
            try:
                store.connect(str(self._store))
            except OSError:
                return  # as the store itself would: no greeting
            forward = threading.Thread(target=self._to_store, args=(client, store), daemon=True)
            forward.start()
            with contextlib.suppress(OSError):
                while data := store.recv(CHUNK):
                    client.sendall(data)
            _shut(client, socket.SHUT_RDWR)
            forward.join()

    def _to_store(self, client: socket.socket, store: socket.socket) -> None:
        last = b""
        with contextlib.suppress(OSError):
            while data := client.recv(CHUNK):
                time.sleep(len(data) / self._rate)
                if END in last + data:
                    time.sleep(self._commit_delay)
                last = (last + data)[-len(END) + 1 :]
                store.sendall(data)
        _shut(store, socket.SHUT_WR)


def _shut(end: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):  # the other side was faster
        end.shutdown(how)
