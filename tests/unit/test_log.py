# SPDX-License-Identifier: GPL-3.0-or-later
"""Foreign text in the log, and a syslog that is not there, or full, or comes back."""

import logging
import socket
from pathlib import Path

import pytest

from lmtp_proxy.log import SyslogHandler, printable


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (b"<a@b>", "<a@b>"),
        ("<\u00fc@\u4f60>".encode(), "<\u00fc@\u4f60>"),
        (b"a\r\nb", r"a\r\nb"),
        (b"a\nJan 1 host lmtp-proxy: forged", r"a\nJan 1 host lmtp-proxy: forged"),
        (b"\x00\x1b[31m\x7f", r"\x00\x1b[31m\x7f"),
        (b"\xff\xfe", r"\xff\xfe"),
        (rb"\xff", r"\\xff"),
        ("\u2028\u202e".encode(), r"\u2028\u202e"),
    ],
)
def test_foreign_text_is_one_line_without_controls(octets: bytes, text: str) -> None:
    assert printable(octets) == text


def test_every_octet_is_printable_after_it() -> None:
    for octet in range(256):
        assert printable(b"a" + bytes([octet]) + b"b").isprintable()


def test_long_text_is_cut_and_says_so() -> None:
    assert len(printable(b"x" * 100_000)) < 1000
    assert printable(b"x" * 100_000).endswith("x...")
    assert printable("\u00fc".encode() * 2000).isprintable()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


def listen(path: Path) -> socket.socket:
    syslog = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    syslog.bind(str(path))
    syslog.settimeout(5)
    return syslog


def log(handler: SyslogHandler, text: str, level: int = logging.INFO) -> None:
    handler.handle(logging.LogRecord("lmtp_proxy", level, "", 0, text, None, None))


def test_facility_and_level(path: Path) -> None:
    handler = SyslogHandler(str(path), "mail")
    with listen(path) as syslog:
        log(handler, "one")
        assert syslog.recv(1000) == b"<22>lmtp-proxy: one"
        log(handler, "two", logging.ERROR)
        assert syslog.recv(1000) == b"<19>lmtp-proxy: two"
    handler.close()


def test_lines_that_nobody_took_are_counted(path: Path) -> None:
    handler = SyslogHandler(str(path), "mail")
    log(handler, "lost")
    log(handler, "lost")
    with listen(path) as syslog:
        log(handler, "here")
        assert syslog.recv(1000) == b"<20>lmtp-proxy: 2 log lines were lost: syslog took none"
        assert syslog.recv(1000) == b"<22>lmtp-proxy: here"
    handler.close()


def test_a_syslog_that_was_restarted_loses_nothing(path: Path) -> None:
    handler = SyslogHandler(str(path), "mail")
    with listen(path) as syslog:
        log(handler, "before")
        assert syslog.recv(1000).endswith(b"before")
    path.unlink()
    with listen(path) as syslog:
        log(handler, "after")
        assert syslog.recv(1000) == b"<22>lmtp-proxy: after"
    handler.close()


def test_a_full_syslog_does_not_make_us_wait(path: Path) -> None:
    handler = SyslogHandler(str(path), "mail")
    with listen(path) as syslog:
        for number in range(5000):  # far more than any socket buffer holds
            log(handler, f"{number} {'x' * 500}")
        taken = 0
        syslog.setblocking(False)
        try:
            while syslog.recv(2000):
                taken += 1
        except BlockingIOError:
            pass
        log(handler, "at last")
        assert syslog.recv(2000) == f"<20>lmtp-proxy: {5000 - taken} log lines were lost: syslog took none".encode()
        assert syslog.recv(2000).endswith(b"at last")
    handler.close()
