# SPDX-License-Identifier: GPL-3.0-or-later
"""Foreign text in the log, and a syslog that is not there, or full, or comes back."""

import logging
import os
import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from lmtp_proxy import log as log_module
from lmtp_proxy.log import KEPT, LogBatch, StreamChannel, SyslogChannel
from tests.support.patience import SOON


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


def listen(path: Path) -> socket.socket:
    syslog = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    syslog.bind(str(path))
    syslog.settimeout(5)
    return syslog


class Clock:
    """What is to be called later, and after how many seconds."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, Callable[[], None]]] = []

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self.asked.append((seconds, call))

    def tick(self) -> float:
        [(seconds, call)] = self.asked
        self.asked.clear()
        call()
        return seconds


def syslog_batch(path: Path) -> tuple[LogBatch, Clock]:
    clock = Clock()
    return LogBatch(SyslogChannel(str(path), "mail"), clock.later), clock


# --- syslog ----------------------------------------------------------------------------------------------------------


def test_facility_and_level(path: Path) -> None:
    batch, _ = syslog_batch(path)
    with listen(path) as syslog:
        for level, priority in ((logging.DEBUG, 23), (logging.INFO, 22), (logging.WARNING, 20), (logging.ERROR, 19)):
            batch.add(level, "one")
            batch.flush()
            assert syslog.recv(1000) == b"<%d>lmtp-proxy: one" % priority
    batch.channel.close()


def test_lines_go_out_in_batches(path: Path) -> None:
    batch, clock = syslog_batch(path)
    with listen(path) as syslog:
        syslog.setblocking(False)
        for number in range(3):
            batch.add(logging.INFO, str(number))
        with pytest.raises(BlockingIOError):
            syslog.recv(1000)
        assert clock.tick() == 0.05
        assert [syslog.recv(1000)[-1:] for _ in range(3)] == [b"0", b"1", b"2"]
        assert clock.asked == [], "an idle log asks for nothing"
    batch.channel.close()


def test_many_lines_go_out_before_the_interval_is_over_so_that_no_batch_keeps_the_loop_long(path: Path) -> None:
    batch, clock = syslog_batch(path)
    with listen(path) as syslog:
        syslog.setblocking(False)
        for number in range(63):
            batch.add(logging.INFO, str(number))
        with pytest.raises(BlockingIOError):
            syslog.recv(1000)
        batch.add(logging.INFO, "enough")
        assert syslog.recv(1000) == b"<22>lmtp-proxy: 0"
        assert clock.asked, "for those that found no room"
    batch.channel.close()


def test_lines_that_nobody_takes_are_kept_and_tried_again_now_and_then(path: Path) -> None:
    batch, clock = syslog_batch(path)
    batch.add(logging.INFO, "kept")
    assert clock.tick() == 0.05
    assert [clock.tick() for _ in range(10)] == [0.004 * 2**n for n in range(8)] + [1.0, 1.0]
    batch.add(logging.INFO, "kept too")
    with listen(path) as syslog:
        assert clock.tick() == 1.0
        assert [syslog.recv(1000) for _ in range(2)] == [b"<22>lmtp-proxy: kept", b"<22>lmtp-proxy: kept too"]
    batch.channel.close()


def test_of_more_than_is_kept_the_rest_is_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, clock = syslog_batch(path)
    lost: list[int] = []
    monkeypatch.setattr(log_module, "_tell_lost", lost.append)
    for number in range(KEPT + 7):
        batch.add(logging.INFO, str(number))
    assert sum(lost) == 7
    assert batch.state == ("syslog", f"{path}: No such file or directory", KEPT, 7)
    received: list[bytes] = []
    with listen(path) as syslog:
        syslog.setblocking(False)
        while clock.asked:
            clock.tick()
            try:
                while True:
                    received.append(syslog.recv(1000))
            except BlockingIOError:
                pass
    assert received[:-1] == [b"<22>lmtp-proxy: %d" % number for number in range(KEPT)]
    assert received[-1] == b"<20>lmtp-proxy: 7 log lines were lost: syslog took none"
    assert batch.state == ("syslog", "", 0, 7)
    batch.channel.close()


def test_a_syslog_that_was_restarted_loses_nothing(path: Path) -> None:
    batch, clock = syslog_batch(path)
    with listen(path) as syslog:
        batch.add(logging.INFO, "before")
        clock.tick()
        assert syslog.recv(1000).endswith(b"before")
    path.unlink()
    with listen(path) as syslog:
        batch.add(logging.INFO, "after")
        clock.tick()
        assert syslog.recv(1000) == b"<22>lmtp-proxy: after"
    batch.channel.close()


def test_a_line_that_is_too_long_for_a_datagram_is_cut_and_stops_nothing(path: Path) -> None:
    batch, clock = syslog_batch(path)
    with listen(path) as syslog:
        batch.add(logging.INFO, "x" * 300_000)
        batch.add(logging.INFO, "behind it")
        clock.tick()
        assert len(syslog.recv(1 << 20)) == 65536 and syslog.recv(1000).endswith(b"behind it")
    batch.channel.close()


def test_a_full_syslog_is_not_waited_for(path: Path) -> None:
    batch, clock = syslog_batch(path)
    with listen(path):
        began = time.monotonic()
        for number in range(5000):  # far more than any socket buffer holds
            batch.add(logging.INFO, f"{number} {'x' * 500}")
        assert time.monotonic() - began < SOON
        assert clock.tick() == 0.05
        assert {seconds for seconds, _ in clock.asked} <= {0.002, 0.004}
    batch.channel.close()


def test_without_a_loop_each_line_goes_at_once_and_the_end_waits_a_second_at_most(path: Path) -> None:
    batch = LogBatch(SyslogChannel(str(path), "mail"), None)
    with listen(path) as syslog:
        batch.add(logging.INFO, "now")
        assert syslog.recv(1000).endswith(b"now")
    batch.add(logging.INFO, "never")
    began = time.monotonic()
    batch.finish()
    assert 0.9 < time.monotonic() - began < SOON
    batch.channel.close()


def test_lines_that_are_alike_are_as_if_they_were_made_one_by_one(path: Path) -> None:
    middles = ["<a@x>", "<\udcff\N{SNOWMAN}@x>", "", "x" * 70_000]
    for level in (logging.INFO, logging.ERROR):
        for some in (middles, middles[:3], middles[:1]):
            for channel in (SyslogChannel(str(path), "mail"), StreamChannel(2)):
                one_by_one = channel.lines(level, [f"8f3a: to={middle}, sent" for middle in some])
                alike = channel.lines_alike(level, "8f3a: to=", some, ", sent")
                # Standard error has the time in front.
                cut = 0 if isinstance(channel, SyslogChannel) else 24
                assert [line[cut:] for line in alike] == [line[cut:] for line in one_by_one]


# --- standard error --------------------------------------------------------------------------------------------------


def test_a_stream_has_time_and_level_in_front(tmp_path: Path) -> None:
    with (tmp_path / "err").open("wb") as file:
        batch = LogBatch(StreamChannel(file.fileno()), None)
        batch.add(logging.WARNING, "text \udcff")
    line = (tmp_path / "err").read_text()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [+-]\d{4} WARNING text \\udcff\n", line), line


def test_a_pipe_that_nobody_reads_is_not_waited_for_and_gets_whole_lines() -> None:
    reader, writer = os.pipe()
    clock = Clock()
    batch = LogBatch(StreamChannel(writer), clock.later)
    sent = [f"{number} {'x' * (number % 3000)}" for number in range(2000)]
    for text in sent:
        batch.add(logging.INFO, text)
    octets = b""
    os.set_blocking(reader, False)
    while clock.asked:
        clock.tick()
        try:
            while more := os.read(reader, 1 << 20):
                octets += more
        except BlockingIOError:
            pass
    assert [line.split(" ", 4)[4] for line in octets.decode().splitlines()] == sent
    os.close(reader)
    batch.add(logging.INFO, "to nobody")
    assert clock.tick() == 0.05  # no error
    os.close(writer)


def test_what_a_full_pipe_did_not_take_goes_out_when_there_is_room_and_at_the_end() -> None:
    reader, writer = os.pipe()
    clock = Clock()
    batch = LogBatch(StreamChannel(writer), clock.later)
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    batch.add(logging.INFO, "late")
    clock.tick()
    assert clock.asked  # for another attempt
    os.read(reader, 1 << 20)
    batch.add(logging.INFO, "x" * 10_000)
    batch.finish()
    assert [len(line) for line in os.read(reader, 1 << 20).splitlines()] == [39, 10_035]
    os.close(reader)
    os.close(writer)


def test_a_full_disk_is_reported_when_there_is_room_again() -> None:
    with open("/dev/full", "wb") as full:
        clock = Clock()
        channel = StreamChannel(full.fileno())
        batch = LogBatch(channel, clock.later)
        for number in range(KEPT + 5):
            batch.add(logging.INFO, str(number))
        assert clock.tick() == 0.05
        reader, writer = os.pipe()
        os.dup2(writer, full.fileno())
        octets = b""
        os.set_blocking(reader, False)
        while clock.asked:
            clock.tick()
            try:
                while more := os.read(reader, 1 << 20):
                    octets += more
            except BlockingIOError:
                pass
    lines = octets.decode().splitlines()
    assert len(lines) == KEPT + 1 and lines[-1].endswith("WARNING 5 log lines were lost: standard error took none")
    os.close(reader)
    os.close(writer)


def test_a_syslog_of_streams_gets_whole_lines_however_little_it_takes(path: Path) -> None:
    batch, clock = syslog_batch(path)
    wanted = b"".join(b"<22>lmtp-proxy: %s\0" % (b"%d" % number * 1000) for number in range(200))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as syslog:
        syslog.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        syslog.bind(str(path))
        syslog.listen()
        for number in range(200):
            batch.add(logging.INFO, f"{number}" * 1000)
        clock.tick()
        taken, _ = syslog.accept()
        with taken:
            taken.settimeout(SOON)
            found = b""
            while len(found) < len(wanted):
                found += taken.recv(5000)
                if clock.asked:
                    clock.tick()
    assert found == wanted
    batch.channel.close()
