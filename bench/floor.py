# SPDX-License-Identifier: GPL-3.0-or-later
"""The least that a proxy in Python costs here: what no amount of work on lmtp-proxy can get below.

A greenlet for each client on lmtp-proxy's own Stream, kept connections to the backends, one write for each envelope,
message and reply. No checks, no deadlines, no log, no reload, no commit point, no failure of anybody: a client that is
not the bench's load breaks it. It is measured in turn with the others, and target 1 is the ratio to it.
"""

import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.peers import Started, Surroundings, free_address, started, user
from bench.processes import Stage
from tests import ROOT

FLOOR = "Python, nothing but octets"
_ENVELOPE = re.compile(rb"(MAIL [^\r]*\r\n)((?:RCPT TO:<[^\r]*>\r\n)+)DATA\r\n")
_PATH = re.compile(rb"<([^>]+)>")


@dataclass(frozen=True)
class Floor:
    """See above. python: the interpreter that runs it."""

    name: str = FLOOR
    python: str = sys.executable

    def missing(self) -> str | None:
        return None

    def start(self, stage: Stage, around: Surroundings) -> Started:
        host, port = free_address()
        command = [
            *("/usr/bin/env", f"PYTHONPATH={ROOT}", self.python, "-m", "bench.floor"),
            *(host, str(port), *around.backends, str(around.users)),
        ]
        return started(stage, command, f"{host}:{port}", around.start_seconds)


class Proxy:
    """table: the backend of each recipient."""

    def __init__(self, table: dict[bytes, str]) -> None:
        self.table = table
        self.kept: dict[str, list[Any]] = {backend: [] for backend in table.values()}

    def backend(self, address: str) -> Any:
        """A connection that is ready for MAIL."""
        if self.kept[address]:
            return self.kept[address].pop()
        from _socket import socket as Socket

        from lmtp_proxy.loop.stream import Stream

        host, _, port = address.rpartition(":")
        sock = Socket()
        sock.connect((host, int(port)))
        sock.setsockopt(6, 1, 1)
        stream = Stream(sock)
        lines(stream, 1)
        stream.send(b"LHLO floor\r\n")
        while b"\n250 " not in b"\n" + octets(stream):
            pass
        return stream

    def serve(self, sock: Any) -> None:
        """One client, from its greeting to its QUIT."""
        from lmtp_proxy.loop.stream import Stream

        stream = Stream(sock)
        stream.send(b"220 floor\r\n")
        rest = octets(stream)
        while rest:
            if rest[:4] == b"LHLO":
                stream.send(b"250-floor\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
                rest = rest.partition(b"\n")[2]
            elif envelope := _ENVELOPE.match(rest):
                rest = self.deliver(stream, *envelope.groups()) + rest[envelope.end() :]
            else:
                break
            rest = rest or octets(stream)
        if rest:
            stream.send(b"221 bye\r\n")
        stream.close()

    def deliver(self, client: Any, mail: bytes, rcpts: bytes) -> bytes:
        """One message; what the client said behind it."""
        groups: dict[str, list[bytes]] = {}
        order = [self.table[path] for path in _PATH.findall(rcpts)]
        for address, rcpt in zip(order, rcpts.split(b"\r\n"), strict=False):
            groups.setdefault(address, []).append(rcpt)
        backends = [(self.backend(address), len(group), address) for address, group in groups.items()]
        for (backend, _, _), group in zip(backends, groups.values(), strict=True):
            backend.send(b"%s%s\r\nDATA\r\n" % (mail, b"\r\n".join(group)))
        for backend, number, _ in backends:
            lines(backend, number + 2)
        client.send(b"250 2.1.0 ok\r\n" + b"250 2.1.5 ok\r\n" * len(order) + b"354 go ahead\r\n")
        message = octets(client)
        while (end := message.find(b"\r\n.\r\n", -16 if message.endswith(b"\r\n.\r\n") else 0)) < 0:
            message += octets(client)
        rest = message[end + 5 :]
        if rest:
            message = message[: end + 5]
        for backend, _, _ in backends:
            backend.send(message)
        client.send(b"".join([lines(backend, number) for backend, number, _ in backends]))
        for backend, _, address in backends:
            self.kept[address].append(backend)
        return rest


def octets(stream: Any) -> bytes:
    """What has come, at least one octet unless the stream has ended."""
    if not stream.received and not stream.ended:
        stream.wait(time.monotonic() + 300)
    taken: bytes = stream.take()
    return taken


def lines(stream: Any, number: int) -> bytes:
    """What has come, at least so many lines."""
    said = octets(stream)
    while said.count(b"\n") < number:
        said += octets(stream)
    return said


def main(arguments: Sequence[str]) -> None:
    """HOST PORT BACKEND BACKEND USERS"""
    import gc

    from gevent import get_hub
    from gevent import socket as gevent_socket
    from greenlet import greenlet

    host, port, a, b, users = arguments
    table = {user(number).encode(): (a, b)[number % 2] for number in range(int(users))}
    proxy = Proxy(table)
    listener = gevent_socket.socket()
    listener.setsockopt(gevent_socket.SOL_SOCKET, gevent_socket.SO_REUSEADDR, 1)
    listener.setsockopt(gevent_socket.IPPROTO_TCP, gevent_socket.TCP_NODELAY, 1)  # accepted ones inherit it
    listener.bind((host, int(port)))
    listener.listen(1024)
    gc.freeze()
    from _socket import socket as Socket

    hub = get_hub()

    def accept() -> None:
        for _ in range(32):
            try:
                handle, _address = listener._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            greenlet(proxy.serve, hub).switch(Socket(listener.family, listener.type, listener.proto, handle))

    watcher = hub.loop.io(listener.fileno(), 1)
    watcher.start(accept)
    hub.join()


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)
