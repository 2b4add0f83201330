# SPDX-License-Identifier: GPL-3.0-or-later
"""Sockets that are none: a client, a store and a log that answer at once, and the loop on which they do.

They take the place of sockets, of gevent's hub and of the module select in a simulation. They know LMTP well enough for
the workloads of the bench, and nothing of what is simulated.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Callable
from typing import Any, ClassVar

USERS = 1000
OCTETS = 4096
SENDER = b"sender@bench.example"
_LINES = (b"x" * 72 + b"\r\n") * 17 + b".." + b"x" * 70 + b"\r\n" + (b"x" * 72 + b"\r\n") * 36  # as in load.c
_BODY = b"Subject: simulated\r\n\r\n" + _LINES + b".\r\n"


class Hub:
    """Calls back for the peers that have something to say, the first one first, as soon as somebody waits for one."""

    def __init__(self) -> None:
        self.loop = self
        self.ready: list[Watcher] = []

    def io(self, handle: int, events: int) -> Watcher:
        return Watcher(self, Peer.by_handle[handle])

    def timer(self, seconds: float, repeat: float = 0.0) -> Watcher:
        return Watcher(self, None)

    def switch(self) -> bool:
        while True:
            call = self.ready.pop(0).call
            stream: Any = call.__self__  # type: ignore[attr-defined]
            awaited = stream._waiter is not None
            call()
            if awaited and stream._waiter is None:
                return True


class Watcher:
    """Of gevent's loop. Timers never fire."""

    def __init__(self, hub: Hub, peer: Peer | None) -> None:
        self.hub = hub
        self.call: Callable[[], None] = lambda: None
        if peer is not None:
            peer.watcher = self

    def start(self, call: Callable[[], None]) -> None:
        self.call = call

    def stop(self) -> None: ...

    def close(self) -> None: ...


class Peer:
    """A socket with somebody at its other end, who answers each `send`."""

    by_handle: ClassVar[dict[int, Any]] = {}

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.watcher: Watcher | None = None
        self.octets: list[bytes] = []
        self.handle = max(self.by_handle, default=100) + 1
        self.by_handle[self.handle] = self

    def say(self, octets: bytes) -> None:
        self.octets.append(octets)
        if self.watcher is not None:
            self.hub.ready.append(self.watcher)

    def recv(self, most: int, flags: int = 0) -> bytes:
        if not self.octets or flags:
            raise BlockingIOError
        return self.octets.pop(0)

    def send(self, octets: bytes, flags: int = 0) -> int:
        self.answer(octets)
        return len(octets)

    def answer(self, octets: bytes) -> None:
        raise NotImplementedError

    def shutdown(self, how: int) -> None: ...

    def setblocking(self, flag: bool) -> None: ...

    def fileno(self) -> int:
        return self.handle

    def close(self) -> None:
        self.by_handle.pop(self.handle, None)


class Quiet:
    """The module select."""

    POLLIN = select.POLLIN

    def poll(self) -> QuietPoll:
        return QuietPoll()


class QuietPoll:
    """select.poll of these."""

    def register(self, handle: int, events: int) -> None:
        self.peer = Peer.by_handle[handle]

    def poll(self, milliseconds: int) -> list[tuple[int, int]]:
        return [(0, 0)] if self.peer.octets else []


class Store(Peer):
    """A backend."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self.recipients = 0
        self.octets.append(b"220 store\r\n")

    def say_first(self) -> None:
        self.hub.ready.append(self.watcher)  # type: ignore[arg-type]

    def answer(self, octets: bytes) -> None:
        if octets.startswith(b"MAIL"):
            self.recipients = octets.count(b"\r\nRCPT")
            data = b"354 go ahead\r\n" if octets.endswith(b"DATA\r\n") else b""
            self.say(b"250 2.1.0 ok\r\n" + b"250 2.1.5 ok\r\n" * self.recipients + data)
        elif octets.endswith(b"\r\n.\r\n"):
            self.say(b"250 2.0.0 delivered\r\n" * self.recipients)
        elif octets.upper().startswith(b"LHLO"):
            self.say(b"250-store\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SIZE\r\n250 ENHANCEDSTATUSCODES\r\n")
        else:
            raise AssertionError(f"nobody says so to a backend: {octets[:80]!r}")


class Mailer(Peer):
    """A client as Postfix is one: MAIL, RCPT... and DATA in one write, the message with its dot in another."""

    def __init__(self, hub: Hub, messages: int, recipients: int, quits: bool, number: int) -> None:
        super().__init__(hub)
        self.left, self.recipients, self.quits, self.number = messages, recipients, quits, number
        self.lines = 1  # of replies that are to come: the greeting
        self.step = self.lhlo
        self.finished: Callable[[], None] = lambda: None

    def envelope_octets(self) -> bytes:
        users = range(self.number, self.number + self.recipients)
        self.number += self.recipients
        lines = [b"RCPT TO:<u%06d@bench.example>" % (user % USERS) for user in users]
        return b"\r\n".join([b"MAIL FROM:<%s> SIZE=%d" % (SENDER, OCTETS), *lines, b"DATA", b""])

    def lhlo(self) -> None:
        self.lines = 6
        self.step = self.envelope
        self.say(b"LHLO bench.example\r\n")

    def envelope(self) -> None:
        self.lines = 2 + self.recipients
        self.step = self.body
        self.say(self.envelope_octets())

    def delivered(self) -> None:
        self.finished()
        self.left -= 1
        if self.left > 0:
            self.envelope()
        elif not self.quits:
            self.say(b"")

    def body(self) -> None:
        self.lines = self.recipients
        self.step = self.delivered
        last = self.quits and self.left == 1
        self.lines += last
        self.say(_BODY + b"QUIT\r\n" if last else _BODY)

    def answer(self, octets: bytes) -> None:
        if b"\r\n4" in octets or b"\r\n5" in octets or octets[:1] in (b"4", b"5"):
            raise AssertionError(f"a refusal: {octets!r}")
        self.lines -= octets.count(b"\r\n")
        if self.lines == 0:
            self.step()
        elif self.lines < 0:
            raise AssertionError(f"not asked for: {octets!r}")


class Syslog:
    """Takes each line."""

    def __init__(self) -> None:
        self.lines = 0

    def send(self, octets: bytes) -> int:
        if b"internal error" in octets:
            print(octets.decode(), file=sys.stderr)
        self.lines += 1
        return len(octets)

    def close(self) -> None: ...
