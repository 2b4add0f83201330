# SPDX-License-Identifier: GPL-3.0-or-later
"""The load: what it writes is what Postfix would write, and no wrong answer passes for a right one.

Its peers are scripted backends on real sockets.
"""

import socket
import time
from dataclasses import replace

import pytest

from bench.processes import Stage
from bench.tools import Load, LoadOptions, Sink, run_load
from tests.support.backend import FakeBackend
from tests.support.script import FULL_OFFER, HEALTHY, BodyTrigger, Close, Reset, Script, raw, say


def test_a_kept_connection_carries_all_messages_each_in_two_writes(stage: Stage) -> None:
    with FakeBackend() as backend:
        result = run_load(stage, f"unix:{backend.path}", LoadOptions(5, 1, recipients=3, users=4))
        assert backend.wait_closed(1)
    assert (result.messages, result.recipients, result.errors, result.first_error) == (5, 15, 0, "")
    assert 0 < result.p50_ms <= result.p99_ms <= result.max_ms < result.seconds * 1000
    (connection,) = backend.connections
    users = [recipient.path for transaction in connection.transactions for recipient in transaction.recipients]
    assert users == [f"u{number % 4:07}@bench.test" for number in range(15)]
    verbs = [command.split()[0].decode() for command in connection.commands]
    assert verbs == ["LHLO", *["MAIL", "RCPT", "RCPT", "RCPT", "DATA"] * 5, "QUIT"]
    behind = [command.split()[0].decode() for command in connection.pipelined]
    assert behind.count("MAIL") == 5 and behind.count("RCPT") == 15, "the envelope is one write"
    for transaction in connection.transactions:
        assert transaction.body is not None and transaction.body.size == 4096
        assert all(len(line) <= 998 for line in transaction.body.bytes.split(b"\r\n"))


def test_quit_comes_with_the_dot_when_a_connection_carries_one_message(stage: Stage) -> None:
    path = stage.path("peer")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(5)
        listener.settimeout(10)
        load = Load(stage, f"unix:{path}", LoadOptions(2, 1, per_connection=1))
        load.go()
        for _ in range(2):
            with listener.accept()[0] as peer:
                peer.settimeout(10)
                peer.sendall(b"220 peer\r\n")
                assert peer.recv(100) == b"LHLO load.bench.test\r\n"
                peer.sendall(b"250-peer\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
                assert peer.recv(1000).endswith(b">\r\nDATA\r\n"), "the envelope is one write"
                peer.sendall(b"250 a\r\n250 b\r\n354 c\r\n")
                message = peer.recv(8192)  # before anything was answered
                assert message.endswith(b"\r\n.\r\nQUIT\r\n") and len(message) == 4096 + len(b".\r\nQUIT\r\n")
                peer.sendall(b"250 d\r\n221 e\r\n")
                assert peer.recv(100) == b""
        result = load.result()
    assert (result.messages, result.errors) == (2, 0)


WRONG = {
    "greeting": (HEALTHY.at("greeting", say("421 4.3.2 full")), "greeting: 421 4.3.2 full"),
    "no greeting": (HEALTHY.at("greeting", (Close(),)), "greeting: the connection was closed"),
    "LHLO": (HEALTHY.at("lhlo", say("500 5.5.1 what")), "LHLO: 500 5.5.1 what"),
    "no pipelining": (Script(offer=FULL_OFFER[1:]), "LHLO: PIPELINING is not offered"),
    "MAIL": (HEALTHY.at("mail", say("451 4.3.0 later")), "envelope: 451 4.3.0 later"),
    "RCPT": (HEALTHY.at("rcpt", say("550 5.1.1 unknown")), "envelope: 550 5.1.1 unknown"),
    "DATA": (HEALTHY.at("data", say("250 2.0.0 fine")), "envelope: 250 2.0.0 fine"),
    "a final reply": (replace(HEALTHY, final_at={1: say("452 4.2.2 full")}), "final reply: 452 4.2.2 full"),
    "a final reply that is missing": (
        replace(HEALTHY, final_at={1: (Close(),)}), "final reply: the connection was closed"),
    "a reset": (replace(HEALTHY, final_at={1: (Reset(),)}), "final reply: "),
    "one reply too many": (
        replace(HEALTHY, final_at={1: say("250 2.0.0 a", "250 2.0.0 b")}), "more replies than commands: 250 2.0.0 a"),
    "a reply before the dot": (
        replace(HEALTHY, body=BodyTrigger(1000, say("250 2.0.0 early"))), "a reply before the final dot was sent"),
    "a bare LF": (HEALTHY.at("rcpt", raw(b"250 2.1.5 ok\n")), "envelope: a line that does not end in CRLF"),
    "no end of a line": (HEALTHY.at("rcpt", raw(b"2" * 5000)), "envelope: a line without an end"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_answer_is_an_error_and_no_delivery(stage: Stage, what: str) -> None:
    script, expected = WRONG[what]
    with FakeBackend(script, transport="tcp") as backend:
        # large, so that the last octets cannot have been sent when a reply comes amid the data
        octets = 30_000_000 if what == "a reply before the dot" else 4096
        result = run_load(stage, f"127.0.0.1:{backend.port}", LoadOptions(3, 1, octets, recipients=2))
    assert result.first_error.startswith(expected)
    assert result.errors >= 1
    # behind the last message there is a QUIT, and it is that one which is answered wrongly
    assert result.messages == (1 if what == "one reply too many" else 0)


def test_one_bad_message_among_good_ones_is_one_error(stage: Stage) -> None:
    def script(number: int) -> Script:
        return HEALTHY.at("final", say("452 4.2.2 full")) if number == 2 else HEALTHY

    with FakeBackend(script) as backend:
        result = run_load(stage, f"unix:{backend.path}", LoadOptions(8, 2, per_connection=1))
    assert (result.messages, result.errors, result.first_error) == (7, 1, "final reply: 452 4.2.2 full")


def test_nobody_there_is_an_error_and_no_endless_loop(stage: Stage) -> None:
    with FakeBackend(peer="absent") as backend:
        result = run_load(stage, f"unix:{backend.path}", LoadOptions(3, 1))
    assert result.messages == 0 and result.errors >= 1 and result.first_error.startswith("connect: ")


def test_silence_is_given_up(stage: Stage) -> None:
    with FakeBackend(HEALTHY.at("final", ())) as backend:
        result = run_load(stage, f"unix:{backend.path}", LoadOptions(3, 1), patience=1)
    assert result.messages == 0 and result.first_error == "given up: no reply to any session"


def test_idle_connections_trickle_whole_commands_and_are_checked(stage: Stage) -> None:
    sink = Sink(stage, ["127.0.0.1:0"])
    load = Load(stage, sink.addresses[0], LoadOptions(0, 2, idle=30, trickle=20))
    load.go()
    time.sleep(0.5)
    load.stop()
    result = load.result()
    assert (result.errors, result.first_error, result.idle) == (0, "", 30)
    (counts,) = sink.counts()
    assert counts.peak_connections == 32
    with FakeBackend() as backend:  # its answer to NOOP is 500
        result = run_load(stage, f"unix:{backend.path}", LoadOptions(2000, 1, idle=3, trickle=2))
    assert result.errors >= 1 and result.first_error.startswith("NOOP: 500")


def test_until_it_is_told_to_stop_nothing_is_lost(stage: Stage) -> None:
    sink = Sink(stage, ["127.0.0.1:0", f"unix:{stage.path('sink')}"])
    load = Load(stage, sink.addresses[1], LoadOptions(0, 7, recipients=2))
    load.go()
    time.sleep(1.0)
    load.stop()
    result = load.result()
    other, counts = sink.counts()
    assert result.errors == 0 and result.messages > 100
    assert (counts.messages, counts.recipients) == (result.messages, result.recipients)
    assert counts.connections == 7 and other.connections == 0 and counts.errors == 0
