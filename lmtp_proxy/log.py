# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the log goes, and how foreign text is written in it.

One format, to syslog or to stderr. What is logged, and when, is decided by those who log.
"""

import logging
import logging.handlers
import socket
import sys

from lmtp_proxy.config_values import Log

_NAME = "lmtp_proxy"
_MAX_TEXT = 600  # of one piece of foreign text: a syslog line should stay below 1 KiB or two
DEFAULT_SYSLOG = "/dev/log"


def printable(octets: bytes) -> str:
    """Text from a client or backend as it may stand in a log: one line, no controls, not too long.

    What is not valid UTF-8 or not printable becomes an escape, and so does a backslash, so that it can be told apart.
    """
    text = octets[:_MAX_TEXT].replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return text if len(octets) <= _MAX_TEXT else text + "..."


class SyslogHandler(logging.handlers.SysLogHandler):
    """stdlib's syslog handler that never waits: lines that a full or dead syslog does not take are counted."""

    ident = "lmtp-proxy: "

    def __init__(self, address: str, facility: str) -> None:
        self._lost = 0
        self._path = address
        self._channel: socket.socket | None = None
        super().__init__(address, facility, socket.SOCK_DGRAM)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record, and before it how many were lost since the last one that went through."""
        try:
            if self._lost:
                self._send(self._datagram(logging.WARNING, f"{self._lost} log lines were lost: syslog took none"))
                self._lost = 0
            self._send(self._datagram(record.levelno, self.format(record)))
        except OSError:
            self._lost += 1
        except Exception:  # noqa: BLE001  (as logging has it: a log line must not stop the work it is about)
            self.handleError(record)

    def _datagram(self, level: int, text: str) -> bytes:
        priority = self.encodePriority(self.facility, self.mapPriority(logging.getLevelName(level)))
        return f"<{priority}>{self.ident}{text}".encode("utf-8", "backslashreplace")

    def _send(self, datagram: bytes) -> None:
        for attempt in (1, 2):
            try:
                if self._channel is None:
                    self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                    self._channel.setblocking(False)
                    self._channel.connect(self._path)
                self._channel.send(datagram)
                return
            except BlockingIOError:
                raise
            except OSError:  # syslog was restarted, or is not there
                self._close_channel()
                if attempt == 2:
                    raise

    def createSocket(self) -> None:
        """Nothing at the start: the first record opens the socket, so a syslog that comes up later is found."""

    def close(self) -> None:
        """See logging.Handler.close."""
        self._close_channel()
        super().close()

    def _close_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = None


def set_up_log(log: Log, *, daemonised: bool) -> None:
    """Send everything that this package logs to syslog (daemonised, or `log.syslog` is set) or stderr.

    May be called again with other settings; the old handler goes.
    """
    handler: logging.Handler
    if daemonised or log.syslog:
        handler = SyslogHandler(log.syslog or DEFAULT_SYSLOG, log.facility)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger(_NAME)
    logger.setLevel(log.level.upper())
    logger.propagate = False
    old = list(logger.handlers)
    logger.addHandler(handler)
    for gone in old:
        logger.removeHandler(gone)
        gone.close()
    logging.raiseExceptions = False  # stderr is not there in a daemon, and nobody reads it elsewhere
