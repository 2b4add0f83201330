# SPDX-License-Identifier: GPL-3.0-or-later
"""Where log lines go: syslog's socket, or standard error. Neither is ever waited for.

A channel takes as many lines as go out at once and says how many that were; the rest is its caller's.
"""

import logging
import os
import select
import socket
import time
from _socket import socket as Socket
from collections.abc import Sequence
from itertools import islice
from typing import Protocol

from lmtp_proxy.config.values import FACILITIES

DEFAULT_SYSLOG = "/dev/log"
_LONGEST = 65536  # octets of a datagram: one that is larger than the socket's buffer (212,992) would never go out
_AT_ONCE = 4096  # PIPE_BUF: so much goes out whole where poll says that there is room


class Channel(Protocol):
    """name: as the log calls it."""

    name: str

    def lines(self, level: int, texts: Sequence[str]) -> list[bytes]:
        """`texts` as they go out. level: of the module logging."""

    def lines_alike(self, level: int, beginning: str, middles: Sequence[str], end: str) -> list[bytes]:
        """The same for texts, one at least, that begin and end alike and none of which holds the end of a line."""

    def send(self, lines: Sequence[bytes]) -> int:
        """Send lines in order; how many went out without waiting."""

    def close(self) -> None: ...


class SyslogChannel:
    """A datagram per line to syslog's unix socket, which may be absent, full, or another one than before.

    pid: of this process, where others log to the same place.
    """

    name = "syslog"

    def __init__(self, path: str, facility: str, pid: int | None = None) -> None:
        self._path = path
        self._socket: Socket | None = None
        self._prefixes: dict[int, str] = {}
        ident = "lmtp-proxy: " if pid is None else f"lmtp-proxy[{pid}]: "
        for level, severity in ((logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3)):
            self._prefixes[level] = f"<{FACILITIES[facility] << 3 | severity}>{ident}"

    def lines(self, level: int, texts: Sequence[str]) -> list[bytes]:
        """See Channel."""
        prefix = self._prefixes.get(level) or self._prefixes[logging.ERROR]
        return [f"{prefix}{text}".encode("utf-8", "backslashreplace")[:_LONGEST] for text in texts]

    def lines_alike(self, level: int, beginning: str, middles: Sequence[str], end: str) -> list[bytes]:
        """See Channel. All at once: that takes a tenth of the time for each."""
        prefix = self._prefixes.get(level) or self._prefixes[logging.ERROR]
        if len(middles) == 1:
            return [f"{prefix}{beginning}{middles[0]}{end}".encode("utf-8", "backslashreplace")[:_LONGEST]]
        beginning = prefix + beginning
        joined = (beginning + f"{end}\n{beginning}".join(middles) + end).encode("utf-8", "backslashreplace")
        lines = joined.split(b"\n")
        return lines if len(joined) <= _LONGEST else [line[:_LONGEST] for line in lines]

    def send(self, lines: Sequence[bytes]) -> int:
        """See Channel."""
        sent = 0
        fresh = False
        while sent < len(lines):
            try:
                if self._socket is None:
                    fresh = True
                    self._socket = self._connected()
                send = self._socket.send
                for line in islice(lines, sent, None):
                    send(line)
                    sent += 1
            except BlockingIOError:
                break
            except OSError:  # syslog was restarted, or is not there
                self.close()
                if fresh:
                    break
        return sent

    def _connected(self) -> Socket:
        sock = Socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.connect(self._path)
        except OSError:
            sock.close()
            raise
        return sock

    def close(self) -> None:
        """See Channel."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None


class StreamChannel:
    """A file descriptor, with time and level in front of each line. It may be a file, a terminal or a pipe.

    pid: as for SyslogChannel.
    """

    name = "standard error"

    def __init__(self, handle: int, pid: int | None = None) -> None:
        self._handle = handle
        self._pid = "" if pid is None else f" [{pid}]"
        self._poll = select.poll()
        self._poll.register(handle, select.POLLOUT)
        self._begun = 0  # octets of the first line to send that are out already
        self._second = 0
        self._time = ""  # of it

    def lines(self, level: int, texts: Sequence[str]) -> list[bytes]:
        """See Channel. The time is as the logging module has it: local, with milliseconds."""
        now = time.time()
        if int(now) != self._second:
            self._second = int(now)
            self._time = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
        name = logging.getLevelName(level) + self._pid
        beginning = f"{self._time},{int(now * 1000) % 1000:03d} {name} "
        return [f"{beginning}{text}\n".encode("utf-8", "backslashreplace") for text in texts]

    def lines_alike(self, level: int, beginning: str, middles: Sequence[str], end: str) -> list[bytes]:
        """See Channel."""
        return self.lines(level, [f"{beginning}{middle}{end}" for middle in middles])

    def send(self, lines: Sequence[bytes]) -> int:
        """See Channel."""
        taken = 0
        while taken < len(lines):
            first = lines[taken]
            octets = len(first) - self._begun
            batch = [first[self._begun :] if self._begun else first]
            for index in range(taken + 1, len(lines)):
                octets += len(lines[index])
                if octets > _AT_ONCE:
                    break
                batch.append(lines[index])
            try:
                if not self._poll.poll(0):
                    break
                written = self._begun + os.write(self._handle, b"".join(batch)[:_AT_ONCE])
            except BlockingIOError:
                break
            except OSError:  # a full disk, a reader that is gone
                self._begun = 0
                break
            while taken < len(lines) and written >= len(lines[taken]):
                written -= len(lines[taken])
                taken += 1
            self._begun = written
        return taken

    def close(self) -> None:
        """See Channel. The descriptor is not ours."""
