"""SIGTERM and SIGINT: nothing new is taken, what runs may finish, idle clients are told, no trace stays behind."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

import pytest

from tests.support.accounting import check_earned
from tests.support.backend import FakeBackend
from tests.support.client import Disconnected, LmtpClient
from tests.support.patience import SOON
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import Await, BodyTrigger, Hang, Pause, Script, say


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_an_idle_proxy_stops_at_once(number: int, tcp: bool) -> None:
    with FakeBackend() as backend, ProxyProcess(config_of({"a": backend}), tcp=tcp) as proxy, proxy.client() as client:
        begun = time.monotonic()
        proxy.signal(number)
        assert client.reply().code == 421
        assert client.at_end()
        assert proxy.wait() == 0
        assert time.monotonic() - begun < SOON
        if isinstance(proxy.address, str):
            assert not os.path.exists(proxy.address)
        with pytest.raises(OSError):
            LmtpClient(proxy.address)


@pytest.mark.parametrize("moment", ["mail", "rcpt", "body"])
def test_a_transaction_may_finish(moment: str) -> None:
    with FakeBackend() as backend, ProxyProcess(config_of({"a": backend}, timeouts={"shutdown": 30})) as proxy:
        with proxy.client() as client, proxy.client() as idle:
            assert client.command("MAIL FROM:<s@x>").positive
            if moment != "mail":
                assert client.command("RCPT TO:<u@a>").positive
            if moment == "body":
                assert client.command("DATA").code == 354
                client.send(b"Subject: x\r\n\r\n")
            proxy.signal(signal.SIGTERM)
            assert idle.reply().code == 421
            with pytest.raises((OSError, Disconnected)), LmtpClient(proxy.address, timeout=0.5) as late:
                late.reply()
            if moment == "mail":
                assert client.command("RCPT TO:<u@a>").positive
            if moment != "body":
                assert client.command("DATA").code == 354
            client.send(b"x\r\n.\r\n")
            assert client.reply().positive
            assert client.reply().code == 421, "after the transaction the client is idle"
            assert client.at_end()
        assert proxy.wait() == 0
        assert backend.transactions("s@x")[0].dotted


def test_a_client_that_is_about_to_send_mail_may() -> None:
    """Postfix says LHLO and XFORWARD first, one after the other; a busy machine takes its time over each."""
    with FakeBackend() as backend, ProxyProcess(config_of({"a": backend})) as proxy:
        with proxy.client(greeted=False) as client:
            client.reply()
            proxy.signal(signal.SIGTERM)
            for command in ("LHLO mta", "XFORWARD NAME=c ADDR=192.0.2.1", "XFORWARD PROTO=ESMTP HELO=h IDENT=4fX"):
                time.sleep(0.9)
                assert client.command(command).code == 250
            time.sleep(0.9)
            assert client.deliver("s@x", ["u@a"]).verdict(0).positive
            assert client.reply().code == 421
        assert proxy.wait() == 0
        assert backend.transactions("s@x")[0].dotted


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([b"QUIT\r\n"], 221),
        ([b"q", b"u", b"i", b"T\r", b"\n"], 221),
        ([b"MAIL FROM:<t@x>\r\n"], 421),
        ([b"NOOP\r\n"], 421),
        ([b"Q"], 421),
        ([], 421),
    ],
)
def test_a_client_whose_message_was_answered_may_say_goodbye(words: list[bytes], code: int) -> None:
    """OpenSMTPD delivers again where its QUIT is answered 421, and bounces where it can no longer be written."""
    go = threading.Event()
    script = Script(final=(Await(go), *say("250 2.0.0 stored")))
    with FakeBackend(script) as backend, ProxyProcess(config_of({"a": backend})) as proxy:
        with proxy.client() as client:
            outcome = client.envelope("s@x", ["u@a"])
            client.send(b"x\r\n.\r\n")
            assert backend.wait_for(lambda: any(seen.dotted for seen in backend.transactions()))
            proxy.signal(signal.SIGTERM)
            proxy.wait_log("stopping: 1 ")
            go.set()
            assert client.finals(outcome).verdict(0).positive
            client.pieces(words)
            assert client.reply().code == code
            assert client.at_end()
        assert proxy.wait() == 0
        assert not backend.transactions("t@x")


def test_so_may_one_that_was_answered_just_before() -> None:
    with FakeBackend() as backend, ProxyProcess(config_of({"a": backend})) as proxy:
        with proxy.client() as client:
            assert client.deliver("s@x", ["u@a"]).verdict(0).positive
            proxy.signal(signal.SIGTERM)
            time.sleep(0.05)
            client.quit()
        assert proxy.wait() == 0


@pytest.mark.parametrize("newcomer", [True, False])
def test_a_client_who_reads_late_is_told_when_it_has(newcomer: bool) -> None:
    """Its replies have no room when it would be told, and it has said something since the stop began."""
    commands = b"NOOP\r\n" * 40_000 if newcomer else b"HELP\r\n" * 8_000  # these are taken in at once
    with FakeBackend() as backend, ProxyProcess(config_of({"a": backend}, timeouts={"shutdown": 30})) as proxy:
        with proxy.client() as client:
            if not newcomer:
                assert client.deliver("s@x", ["u@a"]).verdict(0).positive
            sender = threading.Thread(target=client.send, args=(commands,))
            if newcomer:
                proxy.signal(signal.SIGTERM)
                proxy.wait_log("stopping: 1 ")
                sender.start()
                time.sleep(1.8)
            else:
                sender.start()
                time.sleep(0.3)
                proxy.signal(signal.SIGTERM)
                proxy.wait_log("stopping: 1 ")
            for _ in range(commands.count(b"\n")):
                assert client.reply().positive
            sender.join()
            assert client.reply().code == 421
            assert client.at_end()
        assert proxy.wait() == 0


def test_a_client_that_uses_its_connection_again_may() -> None:
    """Postfix says RSET to see whether a kept one lives, then XFORWARD, and defers the mail if a 421 comes then."""
    with FakeBackend() as backend, ProxyProcess(config_of({"a": backend})) as proxy:
        with proxy.client() as client, proxy.client() as other:
            for each in (client, other):
                assert each.deliver("s@x", ["u@a"]).verdict(0).positive
            assert client.command("RSET").code == 250
            proxy.signal(signal.SIGTERM)
            time.sleep(0.5)
            assert client.command("XFORWARD NAME=c IDENT=4fX").code == 250
            assert client.deliver("t@x", ["u@a"]).verdict(0).positive
            assert other.reply().code == 421
            assert client.reply().code == 421
        assert proxy.wait() == 0
        assert backend.transactions("t@x")[0].dotted


def test_past_the_dot_it_waits_longer() -> None:
    script = Script(final=(Pause(1.5), *say("250 2.0.0 stored")))
    config_timeouts = {"shutdown": 0.3, "final_reply": 30}
    with FakeBackend(script) as backend, ProxyProcess(config_of({"a": backend}, timeouts=config_timeouts)) as proxy:
        with proxy.client() as client:
            outcome = client.envelope("s@x", ["u@a", "v@a"])
            client.send(b"x\r\n.\r\n")
            assert backend.wait_for(lambda: any(seen.dotted for seen in backend.transactions()))
            proxy.signal(signal.SIGTERM)
            client.finals(outcome)
            check_earned(outcome, [backend, backend])
            assert outcome.verdict(0).positive and outcome.verdict(1).positive
        assert proxy.wait() == 0


def test_past_the_dot_it_waits_even_when_the_client_has_gone() -> None:
    go = threading.Event()
    script = Script(final=(Await(go), *say("250 2.0.0 stored")))
    with FakeBackend(script) as backend, ProxyProcess(config_of({"a": backend}, timeouts={"shutdown": 0.2})) as proxy:
        client = proxy.client()
        client.envelope("s@x", ["u@a"])
        client.send(b"x\r\n.\r\n")
        assert backend.wait_for(lambda: any(seen.dotted for seen in backend.transactions()))
        client.close()
        proxy.signal(signal.SIGTERM)
        time.sleep(0.8)
        go.set()
        proxy.wait_log("from=<s@x>, to=<u@a>.*status=sent")
        assert proxy.wait() == 0


@pytest.mark.parametrize("moment", ["rcpt", "body", "slow-rcpt"])
def test_what_does_not_finish_in_time_is_ended_without_a_dot(moment: str) -> None:
    script = Script(rcpt=(Hang(),)) if moment == "slow-rcpt" else Script()
    with FakeBackend(script) as backend, ProxyProcess(config_of({"a": backend}, timeouts={"shutdown": 0.5})) as proxy:
        with proxy.client() as client:
            client.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\n")
            assert client.reply().code == 250
            if moment != "slow-rcpt":
                assert client.reply().code == 250
            else:
                assert backend.wait_for(lambda: bool(backend.transactions()))
            if moment == "body":
                assert client.command("DATA").code == 354
                client.send(b"half")
            begun = time.monotonic()
            proxy.signal(signal.SIGTERM)
            assert proxy.wait() == 0
            assert 0.3 < time.monotonic() - begun < SOON
            last = client.at_end_or_reply()
            while last is not None:
                assert last.code in (421, 451), last
                last = client.at_end_or_reply()
        assert backend.wait_closed(1)
        assert not any(seen.dotted for seen in backend.transactions())


@pytest.mark.parametrize("what", ["hold", "full-pool", "stalled-body"])
def test_no_wait_outlasts_the_stop(what: str) -> None:
    script = Script(body=BodyTrigger(1000, (Hang(),)))
    with FakeBackend(script) as backend:
        config = config_of({"a": backend}, {"@a": "a", "h@a": "hold"}, hold_timeout=60)
        config["config"]["timeouts"] = {"shutdown": 0.5, "connect": 60, "data_write": 60}
        config["backends"]["a"] = {**backend.config, "max_connections": 1}
        with ProxyProcess(config) as proxy, proxy.client() as client, proxy.client() as other:
            if what == "hold":
                client.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<h@a>\r\n")
                assert client.reply().code == 250 and client.silent(0.1)
            else:
                client.envelope("s@x", ["u@a"])
            if what == "full-pool":
                other.send(b"MAIL FROM:<t@x>\r\nRCPT TO:<u@a>\r\n")
                assert other.silent(0.2) or other.reply().positive
            if what == "stalled-body":
                client.sock.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    client.send(b"x" * 50_000_000)
            begun = time.monotonic()
            proxy.signal(signal.SIGTERM)
            assert proxy.wait() == 0
            assert time.monotonic() - begun < SOON
            assert not any(seen.dotted for seen in backend.transactions())


def test_a_stop_amid_the_start() -> None:
    """Whenever the signal comes: no traceback, no socket left, an end."""
    with FakeBackend() as backend:
        for delay in (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3):
            proxy = ProxyProcess(config_of({"a": backend}))
            try:
                proxy.spawn()
                time.sleep(delay)
                proxy.signal(signal.SIGTERM)
                assert proxy.wait() in (0, -signal.SIGTERM)
                assert not os.path.exists(str(proxy.address))
            finally:
                proxy.close()


def test_a_second_signal_does_not_break_the_first(tmp_path_factory: pytest.TempPathFactory) -> None:
    del tmp_path_factory
    with FakeBackend() as backend, ProxyProcess(config_of({"a": backend}, timeouts={"shutdown": 30})) as proxy:
        with proxy.client() as client:
            outcome = client.envelope("s@x", ["u@a"])
            proxy.signal(signal.SIGTERM)
            time.sleep(0.1)
            proxy.signal(signal.SIGUSR1)
            proxy.signal(signal.SIGHUP)
            time.sleep(0.2)
            assert client.finals_after(outcome, b"x\r\n.\r\n").verdict(0).positive
        assert proxy.wait() == 0


def test_clients_in_the_backlog_are_not_accepted_and_dropped() -> None:
    """With every place taken, a stop must not greet those who wait; they see a closed socket and try again."""
    with FakeBackend() as backend, ProxyProcess(config_of({"a": backend}, max_clients=1)) as proxy:
        with proxy.client() as client, proxy.client(greeted=False) as waiting:
            proxy.signal(signal.SIGTERM)
            assert client.reply().code == 421
            reply = waiting.at_end_or_reply()
            assert reply is None or reply.code == 421
        assert proxy.wait() == 0


def test_a_socket_that_somebody_else_put_there_is_left_alone() -> None:
    with FakeBackend() as backend, ProxyProcess(config_of({"a": backend})) as proxy:
        assert isinstance(proxy.address, str)
        os.unlink(proxy.address)
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(proxy.address)
            assert proxy.stop() == 0
            assert os.path.exists(proxy.address), "the socket of a successor was removed"
