# SPDX-License-Identifier: GPL-3.0-or-later
"""The log: where it goes, and lines in batches. One format, to syslog or to stderr; neither is ever waited for.

A channel takes as many lines as go out at once and says how many that were. A batch is written every 50 ms at most, in
order. What the channel does not take is kept and tried again; above a bound the newest lines are dropped, counted and
reported.
"""

import errno
import json
import logging
import os
import select
import socket
import sys
import time
from _socket import socket as Socket
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, Protocol, TypeAlias

from lmtp_proxy.config.values import FACILITIES, Log
from lmtp_proxy.text import iso_time, zoned_time

DEFAULT_SYSLOG = "/dev/log"
_LONGEST = 65536  # octets of a datagram: one that is larger than the socket's buffer (212,992) would never go out
_AT_ONCE = 4096  # PIPE_BUF: so much goes out whole where poll says that there is room


_SEVERITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}
"""Of syslog(3), by levels of the module logging."""


def _severity(level: int) -> int:
    return _SEVERITIES.get(level, _SEVERITIES[logging.ERROR])


def _is_journal(handle: int) -> bool:
    """Whether systemd has connected it to the journal: JOURNAL_STREAM, systemd.exec(5)."""
    if not (stream := os.environ.get("JOURNAL_STREAM")):
        return False
    try:
        status = os.fstat(handle)
    except OSError:
        return False
    return stream == f"{status.st_dev}:{status.st_ino}"


class Channel(Protocol):
    """Where lines go.

    Attributes:
        name: as the log calls it.
        trouble: why it took nothing when it was last tried; empty if it took something, or is only full.
    """

    name: str

    @property
    def trouble(self) -> str: ...

    def lines(self, level: int, texts: Sequence[str]) -> list[bytes]:
        """`texts` as they go out.

        Args:
            level: of the module logging.
        """

    def lines_alike(self, level: int, beginning: str, middles: Sequence[str], end: str) -> list[bytes]:
        """The same for one text or more that begin and end alike, and none of which holds the end of a line."""

    def send(self, lines: Sequence[bytes]) -> int:
        """Send lines in order. How many went out without waiting."""

    def close(self) -> None: ...


class SyslogChannel:
    """Lines to syslog's unix socket, which may be absent, full, or another one than before.

    A datagram each; where the socket is one of streams (syslog-ng's `unix-stream`), each ends in NUL, as syslog(3) has
    it.

    Args:
        pid: of this process, where others log to the same place.
    """

    name = "syslog"

    def __init__(self, path: str, facility: str, pid: int | None = None) -> None:
        self._path = path
        self._socket: Socket | None = None
        self._is_stream = False
        self._begun = 0  # octets of the first line to send that are out already, of a stream
        self.trouble = ""
        self._prefixes: dict[int, str] = {}
        ident = "lmtp-proxy: " if pid is None else f"lmtp-proxy[{pid}]: "
        for level, severity in _SEVERITIES.items():
            self._prefixes[level] = f"<{FACILITIES[facility] << 3 | severity}>{ident}"

    def lines(self, level: int, texts: Sequence[str]) -> list[bytes]:
        """See Channel."""
        prefix = self._prefixes.get(level) or self._prefixes[logging.ERROR]
        return [f"{prefix}{text}".encode("utf-8", "backslashreplace")[:_LONGEST] for text in texts]

    def lines_alike(self, level: int, beginning: str, middles: Sequence[str], end: str) -> list[bytes]:
        """See Channel. Encoded all at once, which takes a tenth of the time."""
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
                if self._is_stream:
                    while sent < len(lines):
                        rest = lines[sent][self._begun :] + b"\0"
                        if (octets := send(rest)) < len(rest):
                            self._begun += octets
                            break
                        self._begun = 0
                        sent += 1
                    break
                for line in islice(lines, sent, None):
                    send(line)
                    sent += 1
            except BlockingIOError:
                break
            except OSError as error:  # syslog was restarted, or is not there
                self.close()
                if fresh:
                    self.trouble = f"{self._path}: {error.strerror or error}"
                    break
        if sent:
            self.trouble = ""
        return sent

    def _connected(self) -> Socket:
        try:
            connected = self._connected_by(socket.SOCK_DGRAM)
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise
            connected, self._is_stream = self._connected_by(socket.SOCK_STREAM), True
        else:
            self._is_stream = False
        return connected

    def _connected_by(self, kind: int) -> Socket:
        sock = Socket(socket.AF_UNIX, kind)
        try:
            sock.setblocking(False)
            sock.connect(self._path)
        except OSError:
            sock.close()
            raise
        return sock

    def try_to_connect(self) -> None:
        """Sets `trouble`; sends nothing."""
        try:
            self._connected().close()
        except BlockingIOError:
            pass
        except OSError as error:
            self.trouble = f"{self._path}: {error.strerror or error}"

    def close(self) -> None:
        """See Channel."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._begun = 0


class StreamChannel:
    """A file descriptor, with time and level in front of each line. It may be a file, a terminal or a pipe.

    Args:
        pid: see SyslogChannel.
        bare: without time and level.

    Where it is systemd's journal, which keeps the time itself, the level is a priority: `<6>` (sd-daemon(3)).
    """

    name = "standard error"

    def __init__(self, handle: int, pid: int | None = None, *, bare: bool = False) -> None:
        self._handle = handle
        self._bare = bare
        self._is_journal = _is_journal(handle)
        self._pid = "" if pid is None else f" [{pid}]"
        self._poll = select.poll()
        self._poll.register(handle, select.POLLOUT)
        self._begun = 0  # octets of the first line to send that are out already
        self.trouble = ""
        self._second = 0
        self._time = self._zone = ""  # of it

    def lines(self, level: int, texts: Sequence[str]) -> list[bytes]:
        """See Channel. The time is local, with milliseconds and its distance from UTC."""
        if self._bare or self._is_journal:
            beginning = f"<{_severity(level)}>" if self._is_journal else ""
            beginning += f"{self._pid.lstrip()} " if self._pid and not self._bare else ""
            return [f"{beginning}{text}\n".encode("utf-8", "backslashreplace") for text in texts]
        now = time.time()
        if int(now) != self._second:
            self._second = int(now)
            self._time, self._zone = zoned_time(now).rsplit(" ", 1)
        name = logging.getLevelName(level) + self._pid
        beginning = f"{self._time},{int(now * 1000) % 1000:03d} {self._zone} {name} "
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
            except OSError as error:  # a full disk, a reader that is gone
                self._begun = 0
                self.trouble = f"{self.name}: {error.strerror or error}"
                break
            while taken < len(lines) and written >= len(lines[taken]):
                written -= len(lines[taken])
                taken += 1
            self._begun = written
        if taken:
            self.trouble = ""
        return taken

    def close(self) -> None:
        """See Channel. The descriptor is not ours."""


class JsonChannel:
    """One object a line, by another channel, which adds no time and level to it.

    Args:
        channel: for JSON as text.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.name = channel.name
        self._pid = os.getpid()

    @property
    def trouble(self) -> str:
        """See Channel."""
        return self._channel.trouble

    def lines(self, level: int, texts: Sequence[str]) -> list[bytes]:
        """See Channel."""
        return self.objects(level, [{"message": text} for text in texts])

    def lines_alike(self, level: int, beginning: str, middles: Sequence[str], end: str) -> list[bytes]:
        """See Channel."""
        return self.lines(level, [f"{beginning}{middle}{end}" for middle in middles])

    def objects(self, level: int, objects: Sequence[Mapping[str, object]]) -> list[bytes]:
        """As `lines`, of what the caller has in fields."""
        common = {"time": iso_time(time.time()), "level": logging.getLevelName(level).lower(), "pid": self._pid}
        return self._channel.lines(level, [json.dumps({**common, **each}, ensure_ascii=False) for each in objects])

    def send(self, lines: Sequence[bytes]) -> int:
        """See Channel."""
        return self._channel.send(lines)

    def close(self) -> None:
        """See Channel."""
        self._channel.close()


Later: TypeAlias = Callable[[float, Callable[[], None]], None]
"""Calls something after so many seconds."""

INTERVAL = 0.05  # seconds
KEPT = 10_000
"""Lines that wait for a channel which takes none: some megabytes."""

_FULL = 64  # lines that are written before the interval is over: 0.2 ms, in which nobody is served
_SOON = 0.002  # seconds: a syslog socket takes 10 datagrams where nobody has raised net.unix.max_dgram_qlen
_DEAD = 1.0  # seconds: twice as long after each attempt that got rid of no line, up to this
_LAST = 1.0  # seconds for what is left when the process ends


class LogState(NamedTuple):
    """How the log is.

    Attributes:
        to: where its lines go.
        trouble: see Channel.
        waiting: lines that have not gone out yet.
        lost: lines that never will, since the start.
    """

    to: str
    trouble: str
    waiting: int
    lost: int


class LogBatch:
    """All lines of the process on their way to `channel`.

    Args:
        later: None until the loop runs; until then each line goes out at once.
    """

    def __init__(self, channel: Channel, later: Later | None) -> None:
        self.channel = channel
        self._later = later
        self._lines: list[bytes] = []
        self._asked = False  # for a flush
        self._lost = 0  # and not reported yet
        self._all_lost = 0
        self._pause = _SOON

    @property
    def state(self) -> LogState:
        """How it is now."""
        return LogState(self.channel.name, self.channel.trouble, len(self._lines), self._all_lost)

    def __repr__(self) -> str:
        return f"<LogBatch to {self.channel.name}: {len(self._lines)} lines wait, {self._lost} lost>"

    def add(self, level: int, *texts: str) -> None:
        """Take lines.

        Args:
            level: of the module logging.
        """
        self.take(self.channel.lines(level, texts))

    def take(self, new: list[bytes]) -> None:
        """Take lines as the channel's `lines` gives them."""
        lines = self._lines
        before = len(lines)
        lines += new
        after = len(lines)
        if self._asked and after < _FULL:
            return
        if after > KEPT:
            kept = max(before, KEPT)
            self._lost += after - kept
            self._all_lost += after - kept
            _tell_lost(after - kept)
            del lines[kept:]
            after = kept
        if self._later is None or after // _FULL > before // _FULL:
            self.flush()
        elif not self._asked and lines:
            self._asked = True
            self._later(INTERVAL, self._flush_now)

    def flush(self) -> None:
        """Write what can be written now."""
        sent = self._send()
        if self._lines and self._later is not None and not self._asked:
            self._asked = True
            self._pause = _SOON if sent else min(_DEAD, 2 * self._pause)
            self._later(self._pause, self._flush_now)

    def finish(self) -> None:
        """The process ends: write what is left, within a second."""
        deadline = time.monotonic() + _LAST
        while (self._lines or self._lost) and time.monotonic() < deadline:
            if not self._send():
                time.sleep(_SOON)

    def _flush_now(self) -> None:
        self._asked = False
        self.flush()

    def _send(self) -> int:
        sent = self.channel.send(self._lines) if self._lines else 0
        del self._lines[:sent]
        if self._lost and not self._lines:
            lost, self._lost = self._lost, 0
            text = f"{lost} log lines were lost: {self.channel.name} took none"
            self._lines += self.channel.lines(logging.WARNING, (text,))
            sent += 1
        return sent


_NAME = "lmtp_proxy"


class _Events(logging.Handler):
    """What comes by the module logging: written at once, behind the lines that came before."""

    def __init__(self, batch: LogBatch) -> None:
        super().__init__()
        self._batch = batch

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        try:
            self._batch.add(record.levelno, self.format(record))
            self._batch.flush()
        except Exception:  # noqa: BLE001  (as logging has it: a log line must not stop the work it is about)
            self.handleError(record)


_batch: LogBatch | None = None
_tell_lost: Callable[[int], object] = int


def tell_lost_lines(tell: Callable[[int], object]) -> None:
    """Have it called with the number of lines whenever some are lost."""
    global _tell_lost
    _tell_lost = tell


def log_state() -> LogState:
    """How the log of this process is."""
    return _batch.state if _batch is not None else LogState("nowhere", "", 0, 0)


def log_trouble(log: Log, *, daemonised: bool) -> str | None:
    """Why lines that are written now would not arrive, in one line; None if they would."""
    if not (daemonised or log.syslog):
        return None
    channel = SyslogChannel(log.syslog or DEFAULT_SYSLOG, log.facility)
    channel.try_to_connect()
    if not channel.trouble:
        return None
    return f"no syslog at {channel.trouble}; up to {KEPT} lines of the log wait for one, the rest is lost"


def set_up_log(
    log: Log,
    *,
    daemonised: bool,
    later: Later | None = None,
    with_pid: bool = False,
) -> None:
    """Send everything that this package logs to syslog (daemonised, or `log.syslog` is set) or stderr.

    May be called again with other settings.

    Args:
        later: see LogBatch.
        with_pid: several processes log to the same place.
    """
    global _batch
    pid = os.getpid() if with_pid else None
    is_json = log.format == "json"
    channel: Channel
    if daemonised or log.syslog:
        channel = SyslogChannel(log.syslog or DEFAULT_SYSLOG, log.facility, pid)
    else:
        handle = sys.stderr.fileno() if sys.stderr is not None else 2  # None if it was closed: see `put_right`
        channel = StreamChannel(handle, pid, bare=is_json)
    batch = LogBatch(JsonChannel(channel) if is_json else channel, later)
    finish_log()
    _batch = batch
    logger = logging.getLogger(_NAME)
    logger.setLevel(log.level.upper())
    logger.propagate = False
    logger.handlers = [_Events(batch)]
    logging.raiseExceptions = False  # stderr is not there in a daemon, and nobody reads it elsewhere


def write_lines(texts: Sequence[str]) -> None:
    """Lines of level info that go out with the next batch: for what is logged per recipient.

    The module logging needs 20 us for each line.
    """
    if _batch is not None:
        _batch.add(logging.INFO, *texts)
    else:
        for text in texts:
            logging.getLogger(_NAME).info("%s", text)


def write_alike(beginning: str, middles: Sequence[str], end: str) -> None:
    """As `write_lines`, for lines that begin and end with the same text. All of it is `printable`."""
    if _batch is not None:
        _batch.take(_batch.channel.lines_alike(logging.INFO, beginning, middles, end))
    else:
        write_lines([f"{beginning}{middle}{end}" for middle in middles])


def in_fields() -> bool:
    """Whether whoever has fields should give them to `write_fields`."""
    return _batch is not None and isinstance(_batch.channel, JsonChannel)


def write_fields(objects: Sequence[Mapping[str, object]]) -> None:
    """As `write_lines`, if `in_fields`. What is foreign in them is `printable`."""
    if _batch is not None and isinstance(_batch.channel, JsonChannel):
        _batch.take(_batch.channel.objects(logging.INFO, objects))


def finish_log() -> None:
    """Write what has not gone out yet; lines that come later go out at once."""
    if _batch is not None:
        _batch.finish()
        _batch.channel.close()
