# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the log goes: one format, to syslog or to stderr.

What is logged, and when, is decided by those who log.
"""

import logging
import os
import sys
from collections.abc import Sequence

from lmtp_proxy.config.values import Log
from lmtp_proxy.log_batch import Later, LogBatch
from lmtp_proxy.log_channel import DEFAULT_SYSLOG, StreamChannel, SyslogChannel

_NAME = "lmtp_proxy"


class _Events(logging.Handler):
    """What the module logging brings: written at once, behind the lines that came before."""

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


def set_up_log(
    log: Log,
    *,
    daemonised: bool,
    later: Later | None = None,
    with_pid: bool = False,
) -> None:
    """Send everything that this package logs to syslog (daemonised, or `log.syslog` is set) or stderr.

    May be called again with other settings. later: see LogBatch.
    with_pid: several processes log to the same place.
    """
    global _batch
    pid = os.getpid() if with_pid else None
    if daemonised or log.syslog:
        batch = LogBatch(SyslogChannel(log.syslog or DEFAULT_SYSLOG, log.facility, pid), later)
    else:
        batch = LogBatch(StreamChannel(sys.stderr.fileno(), pid), later)
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


def finish_log() -> None:
    """Write what has not gone out yet; lines that come later go out at once."""
    if _batch is not None:
        _batch.finish()
        _batch.channel.close()
