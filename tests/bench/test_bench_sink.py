# SPDX-License-Identifier: GPL-3.0-or-later
"""The sink and the prober: whatever way the octets come, the sink counts what was delivered, and no more."""

import socket
import time
from signal import SIGCONT, SIGSTOP

import pytest

from bench.processes import BenchError, Stage, wait_until
from bench.tools import Probe, Sink
from tests.support.backend import FakeBackend
from tests.support.script import HEALTHY, Pause, say

DATA = b"one\r\n..two\r\n.three\r\n\r.\r\n.\n\r\n.\rx\r\n\r\n.\r\n"
"""Ends once, and looks as if it did more often. 41 octets with its dot."""
TALK = b"LHLO me\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nDATA\r\n" + DATA + b"NOOP\r\nQUIT\r\n"


def converse(address: str, pieces: list[bytes]) -> list[str]:
    """Write the pieces one by one; all that is answered, until the sink closes."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            client.sendall(piece)
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
    return [line[:3].decode() for line in answer.splitlines() if line[3:4] != b"-"]


EXPECTED = ["220", "250", "250", "250", "250", "354", "250", "250", "250", "221"]


def test_a_message_is_counted_once_wherever_it_is_cut(stage: Stage) -> None:
    sink = Sink(stage, ["127.0.0.1:0"])
    (address,) = sink.addresses
    cuts = range(1, len(TALK))
    for cut in cuts:
        assert converse(address, [TALK[:cut], TALK[cut:]]) == EXPECTED, cut
    assert converse(address, [TALK[n : n + 1] for n in range(len(TALK))]) == EXPECTED
    times = len(cuts) + 1
    (counts,) = sink.counts()
    assert (counts.messages, counts.recipients, counts.connections) == (times, 2 * times, times)
    assert (counts.octets, counts.errors) == (len(DATA) * times, 0)


@pytest.mark.parametrize(
    "talk, codes",
    [
        (b"RCPT TO:<a@b>\r\nQUIT\r\n", ["503", "221"]),
        (b"MAIL FROM:<a@b>\r\nDATA\r\nRSET\r\nQUIT\r\n", ["250", "503", "250", "221"]),
        (b"MAIL FROM:<a@b>\r\nMAIL FROM:<a@b>\r\nRSET\r\nQUIT\r\n", ["250", "503", "250", "221"]),
        (b"EXPN x\r\nQUIT\r\n", ["500", "221"]),
        (b"MAIL FROM:<a@b>\r\nQUIT\r\n", ["250", "221"]),
        (b"N" * 3000, ["500"]),
    ],
)
def test_what_a_correct_client_does_not_do_is_counted(stage: Stage, talk: bytes, codes: list[str]) -> None:
    sink = Sink(stage, ["127.0.0.1:0"])
    assert converse(sink.addresses[0], [talk]) == ["220", *codes]
    (counts,) = sink.counts()
    assert (counts.errors, counts.messages, counts.recipients) == (1, 0, 0)


def test_connections_and_transactions_at_once(stage: Stage) -> None:
    sink = Sink(stage, ["127.0.0.1:0"])
    host, _, port = sink.addresses[0].rpartition(":")
    clients = [socket.create_connection((host, int(port)), timeout=10) for _ in range(5)]
    for client in clients[:3]:
        assert client.recv(100).startswith(b"220")
        client.sendall(b"MAIL FROM:<a@b>\r\n")
        assert client.recv(100).startswith(b"250")
    for client in clients:
        client.close()
    wait_until(lambda: sink.counts()[0].errors == 3, 20, "three errors: that many were torn")
    (counts,) = sink.counts()
    assert (counts.connections, counts.peak_connections, counts.peak_transactions) == (5, 5, 3)


def test_log_lines_are_counted_by_what_they_say(stage: Stage) -> None:
    sink = Sink(stage, [f"log:{stage.path('log')}"])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.connect(str(stage.path("log")))
        two = "<22>x: to=<a@b>, status=sent (250 ok)\nx: to=<c@d>, status=sent (250 ok)"
        for text in ("<22>lmtp-proxy: ready", two, "<22>y: status=deferred (450)"):
            log.send(text.encode())
    wait_until(lambda: sink.counts()[0].log_lines >= 3, 20, "three lines")
    (counts,) = sink.counts()
    assert (counts.log_lines, counts.deliveries_logged) == (3, 2)


def test_the_prober_sees_a_pause_from_outside(stage: Stage) -> None:
    pause = HEALTHY.at("other", (Pause(0.2), *say("250 2.0.0 ok")))
    with FakeBackend(pause) as slow:
        sink = Sink(stage, [f"unix:{stage.path('sink')}"])
        began = time.monotonic()
        probe = Probe(stage, 0, [f"unix:{slow.path}", sink.addresses[0]])
        time.sleep(2.5)
        samples = probe.end()
    paused = [sample for sample in samples if sample.which == 0]
    quiet = [sample for sample in samples if sample.which == 1]
    assert 2 <= len(paused) <= 13 and all(sample.took_ms >= 200 for sample in paused[:-1])
    assert len(quiet) > 100 and sorted(sample.took_ms for sample in quiet)[len(quiet) // 2] < 100
    assert all(began - 1 < sample.sent < time.monotonic() for sample in samples)


def test_a_loop_that_never_comes_back_is_seen_too(stage: Stage) -> None:
    sink = Sink(stage, ["127.0.0.1:0"])
    probe = Probe(stage, sink.pid, sink.addresses)
    time.sleep(0.1)
    sink.signal(SIGSTOP)
    time.sleep(0.3)
    assert max(sample.took_ms for sample in probe.end()) >= 250
    sink.signal(SIGCONT)


def test_the_prober_takes_no_wrong_answer(stage: Stage) -> None:
    with FakeBackend() as backend:  # its answer to NOOP is 500
        probe = Probe(stage, 0, [f"unix:{backend.path}"])
        assert backend.wait_for(lambda: any(b"NOOP" in seen.commands for seen in backend.connections))
        time.sleep(1.0)  # it is answered
        with pytest.raises(BenchError, match="a wrong reply"):
            probe.end()
