# SPDX-License-Identifier: GPL-3.0-or-later
"""A connected socket on gevent's loop, for clients and backends alike: what has come, what is to go out, and waiting.

One watcher takes in what comes as soon as it comes, and wakes the greenlet that waits for it: half the cost of
gevent.socket, which asks the kernel in vain first and then starts and stops a watcher for each wait (measured: 40 us a
message). The end of the stream is noticed at once, also while nobody reads. It knows no LMTP, and raises no deadline:
who waits looks at the clock.
"""

import math
import select
import time
from _socket import AF_UNIX, MSG_PEEK
from _socket import socket as Socket
from collections.abc import Callable, Sequence
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import Any, TypeAlias

from gevent import get_hub
from greenlet import getcurrent, greenlet

AHEAD = 65536
"""Octets that are taken in while nobody wants them; what is more waits in the kernel, and so does its sender."""

BULK = 131072
"""Octets that are taken in at once where somebody waits for them and so many come that the last ones filled AHEAD."""

_READ, _WRITE = 1, 2  # libev's events
# Not `Hub.switch`: that looks for `switch_out` in the greenlet that waits, to forbid a wait in the hub itself. Most
# have none, so each wait would make an AttributeError and drop it, 5 % of a small message. It does nothing else, and
# nobody waits in the hub here: what runs there says so, and on_event is told not to.
_switch = greenlet.switch
_EARLY = 0.001  # seconds: the loop's clock lags behind the other one

OnEvent: TypeAlias = Callable[[], None]


class _Deadlines:
    """The streams of one hub, and the greenlets that wait for them: one timer for all, set to `due`.

    `due` is not put back when a wait ends in time, which nearly all do; when the timer fires it looks at all streams
    for the next deadline. So a wait costs next to nothing, and an idle process is not woken before somebody's deadline.

    Attributes:
        switch: lets others run, until somebody switches back.
        streams: those of the hub.
        due: no wait has to end before.
    """

    def __init__(self, hub: Any) -> None:
        self.hub = hub
        self.switch: Callable[[], object] = _switch.__get__(hub)
        self.streams: set[Stream] = set()
        _deadlines[hub] = self
        self._timer: Any = None
        self.due = math.inf

    def set(self, due: float) -> None:
        """No wait has to end before `due`."""
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
        self.due = due
        self._timer = self.hub.loop.timer(max(0.0, due - time.monotonic()))
        self._timer.start(self._expire)

    def _expire(self) -> None:
        # Runs in the hub. A greenlet that is woken may end the wait of another one, or begin its next one.
        now = time.monotonic() + _EARLY
        waited_for = [stream for stream in self.streams if stream._waiter is not None]
        self.due = math.inf
        if rest := [stream._deadline for stream in waited_for if stream._deadline > now]:
            self.set(min(rest))
        for stream in waited_for:
            waiter = stream._waiter
            if waiter is not None and stream._deadline <= now:
                stream._waiter = None
                waiter.switch(False)


_deadlines: dict[Any, _Deadlines] = {}  # of each hub: there is one


class Stream:
    """Owns `sock`, a connected socket of the C type, until `close`.

    Attributes:
        received: what has come and was not taken.
        ended: nothing more comes.
        error: why, if not in order.
        full: what was written has not gone out yet, or no room was found to write anything.
        paused: so much has come that the end of the stream is not looked for until somebody takes it.
        on_event: called in the hub, so it must not wait, when something came or the stream ended and nobody waits for
            it.
    """

    __slots__ = (
        *("_deadline", "_deadlines", "_loop", "_most", "_poll", "_reads", "_recv", "_roomy", "_send", "_sock"),
        *("_unsent", "_waiter", "_writes", "ended", "error", "full", "on_event", "paused", "received"),
    )

    def __init__(self, sock: Socket) -> None:
        sock.setblocking(False)
        hub = get_hub()
        self._deadlines = deadlines = _deadlines.get(hub) or _Deadlines(hub)
        deadlines.streams.add(self)
        self._sock = sock
        self._recv, self._send = sock.recv, sock.send
        self._loop = hub.loop
        self._waiter: greenlet | None = None
        self._deadline = 0.0  # of this one
        self._most = AHEAD
        self._roomy = False  # there was room again while nobody waited
        self._unsent: bytes | memoryview = b""
        self._writes: Any = None
        self._poll: Any = None
        self.received = b""
        self.ended = False
        self.error: OSError | None = None
        self.full = False
        self.paused = False
        self.on_event: OnEvent | None = None
        self._reads: Any = self._loop.io(sock.fileno(), _READ)
        self._reads.start(self._readable)

    def __repr__(self) -> str:
        state = "ended" if self.ended else "paused" if self.paused else "full" if self.full else "open"
        return f"<Stream {state} received={len(self.received)} unsent={len(self._unsent)}>"

    def fileno(self) -> int:
        """Of the socket; -1 once it is closed."""
        return self._sock.fileno()

    @property
    def awaited(self) -> bool:
        """Somebody waits for what comes, and not for room."""
        return self._waiter is not None and not self.full

    # --- in ----------------------------------------------------------------------------------------------------------

    def take(self) -> bytes:
        """What has come, b"" if nothing has."""
        octets = self.received
        self.received = b""
        if self.paused:
            self.paused = False
            self._reads.start(self._readable)
        return octets

    def receive(self, deadline: float) -> bytes | None:
        """Take what has come, or else what comes until `deadline`: None if nothing does, b"" at the end of the stream.

        See `wait`; not to be called while `full`.
        """
        while not self.received and not self.ended:
            if not self.wait(deadline) and time.monotonic() >= deadline:
                return None
        if self.paused:
            return self.take()
        octets, self.received = self.received, b""
        return octets

    def look(self) -> bool:
        """Whether something has come or the stream has ended: up to now, not up to when the loop last looked."""
        if not self.received and not self.ended:
            if self._poll is None:
                poll = select.poll()
                poll.register(self._sock.fileno(), select.POLLIN)
                self._poll = poll.poll
            if not self._poll(0):  # 0.5 us; to receive in vain takes 1.4
                return False
            try:
                octets = self._recv(AHEAD)
            except BlockingIOError:
                return False
            except OSError as error:
                self._end(error)
            else:
                self.received = octets
                if not octets:
                    self._end(None)
        return bool(self.received) or self.ended

    def ahead(self, most: int) -> bytes | None:
        """`received` and what waits in the kernel behind it; None where that is `most` octets, or more. To be called
        only where something waits there, or the stream has ended there. Raises OSError."""
        octets = self._recv(most, MSG_PEEK)
        return None if len(octets) == most else self.received + octets

    def wait(self, deadline: float) -> bool:
        """Wait until something has come that was not taken, the stream has ended, or is not `full` any more.

        False at `deadline` (time.monotonic). Only one greenlet may wait for a stream.
        """
        if self.received or self.ended or self._roomy:
            self._roomy = False
            return True
        deadlines = self._deadlines
        if deadline < deadlines.due:
            deadlines.set(deadline)
        self._deadline = deadline
        self._waiter = getcurrent()
        try:
            woken = deadlines.switch()
        except BaseException:
            self._waiter = None
            raise
        if woken is True:  # whoever says so has put the waiter away
            return True
        self._waiter = None
        return False

    def wait_for_room(self, deadline: float) -> bool:
        """Wait until the stream is not `full`; False at `deadline`. Raises OSError where nothing goes out any more."""
        while self.full:
            if not _wait((self,), deadline) and time.monotonic() >= deadline:
                return False
        if self.error is not None:
            raise self.error
        return True

    def _readable(self) -> None:
        waiter = self._waiter
        try:
            octets = self._recv(AHEAD if waiter is None or self.full else self._most)
        except BlockingIOError:
            return  # `look` was faster
        except OSError as error:
            self._end(error)
        else:
            if not octets:
                self._end(None)
            elif waiter is not None and not self.received and len(octets) < AHEAD:  # what follows is for more
                self.received = octets
                self._most = AHEAD
                self._waiter = None
                waiter.switch(True)
                return
            else:
                self.received = self.received + octets if self.received else octets
                self._most = BULK if len(octets) >= AHEAD else AHEAD
        if waiter is not None:
            self._waiter = None
            waiter.switch(True)
        # Who waits for room leaves it where it is.
        if self.received and len(self.received) >= AHEAD and not self.ended:
            self.paused = True
            self._reads.stop()
        if waiter is None and self.on_event is not None:
            self.on_event()

    def _end(self, error: OSError | None) -> None:
        self.ended = True
        self.error = self.error or error
        self._reads.stop()

    # --- out ---------------------------------------------------------------------------------------------------------

    def send(self, octets: bytes, flags: int = 0) -> int:
        """Send what goes out without waiting; how many octets that were. `full` if not all. Raises OSError.

        flags: MSG_MORE where `finish` comes next. Not to be called while `full`.
        """
        try:
            sent = self._send(octets, flags) if flags else self._send(octets)
        except BlockingIOError:
            sent = 0
        if sent < len(octets):
            self.full = True
            if self._writes is None:
                self._writes = self._loop.io(self._sock.fileno(), _WRITE)
            self._writes.start(self._writable)
        return sent

    def undelivered(self) -> bool:
        """Whether the peer's host has not acknowledged all that was sent; on a unix socket always False."""
        if self._sock.family == AF_UNIX:
            return False
        return ioctl(self._sock.fileno(), TIOCOUTQ, b"\0\0\0\0") != b"\0\0\0\0"

    def keep(self, octets: bytes | memoryview) -> None:
        """Send what the last `send` left, or a part of it, as soon as there is room; `full` until it is out.

        An error ends the stream.
        """
        self._unsent = octets

    def _writable(self) -> None:
        try:
            if self._unsent:
                self._unsent = self._unsent[self._send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError as error:
            self._unsent = b""
            self._end(error)
        if self._unsent:
            return
        self._unsent = b""  # a view of nothing still holds all that was viewed
        self.full = False
        self._writes.stop()
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.switch(True)
            return
        self._roomy = True
        if self.ended and self.on_event is not None:
            self.on_event()

    # --- the end -----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Say to the peer that nothing more comes from here. Raises OSError."""
        self._sock.shutdown(1)

    def close(self) -> None:
        """Close the socket, whatever is unread or unsent. May be called again."""
        self.ended = True
        self.full = self.paused = False
        self.on_event = None
        self._unsent = b""
        if self._reads is not None:
            self._reads.close()  # which stops it
            self._reads = None
        if self._writes is not None:
            self._writes.close()
            self._writes = None
        self._deadlines.streams.discard(self)
        self._sock.close()


def wait_for_any(streams: Sequence[Stream], deadline: float) -> bool:
    """As Stream.wait, for the first of several in the same hub; at least one is needed."""
    for stream in streams:
        if stream.received or stream.ended or stream._roomy:
            stream._roomy = False
            return True
    return _wait(streams, deadline)


def _wait(streams: Sequence[Stream], deadline: float) -> bool:
    """Let others run until one of the streams has something to say (True), or until `deadline`."""
    deadlines = streams[0]._deadlines
    if deadline < deadlines.due:
        deadlines.set(deadline)
    me = getcurrent()
    for stream in streams:
        stream._waiter = me
        stream._deadline = deadline
    try:
        return deadlines.switch() is True
    finally:
        for stream in streams:
            stream._waiter = None
