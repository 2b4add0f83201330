"""Connections to backends are kept, used again, replaced, limited and given up; each test with a proxy of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from tests.support.backend import FakeBackend
from tests.support.client import Outcome
from tests.support.patience import SOON
from tests.support.proxy import ProxyProcess, config_of
from tests.support.record import SeenConnection
from tests.support.script import HEALTHY, Await, Close, Hang, Pause, Reset, Script, Step, Steps, say

TIMEOUTS = {"connect": 2, "greeting": 1, "command": 1, "data_write": 1, "final_reply": 3}


@contextmanager
def site(
    *scripts: Script, transport: str = "unix", idle_timeout: float = 30, **keys: object
) -> Iterator[tuple[ProxyProcess, FakeBackend]]:
    """A proxy with one backend, which serves its connections by `scripts` in turn, the last one from then on."""
    with FakeBackend(lambda index: scripts[min(index, len(scripts) - 1)], transport=transport) as backend:
        config = config_of({"a": backend}, idle_timeout=idle_timeout, timeouts=TIMEOUTS)
        config["backends"]["a"] = {**config["backends"]["a"], **keys}  # type: ignore[dict-item]
        with ProxyProcess(config) as proxy:
            yield proxy, backend


def deliver(proxy: ProxyProcess, *recipients: str) -> Outcome:
    """One message on a connection of its own."""
    with proxy.client() as client:
        outcome = client.deliver("s@x", list(recipients or ["u@a"]))
        client.quit()
    return outcome


def codes(outcome: Outcome) -> list[int]:
    return [outcome.verdict(position).code for position in range(len(outcome.recipients))]


def verbs(connection: SeenConnection) -> list[str]:
    return [line.split(b" ")[0].decode().upper() for line in connection.commands]


def wait_for_reset(backend: FakeBackend) -> None:
    """Until its only connection was reset and is free again: nobody tells, but the answer to RSET is on its way."""
    assert backend.wait_for(lambda: verbs(backend.connections[0])[-1] == "RSET")
    time.sleep(0.3)


# --- kept and used again ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_one_connection_serves_one_message_after_the_other(transport: str) -> None:
    with site(HEALTHY, transport=transport) as (proxy, backend):
        for _ in range(5):
            assert codes(deliver(proxy)) == [250]
        with proxy.client() as client:
            for pipelined in (True, False, True):
                assert codes(client.deliver("s@x", ["u@a", "v@a"], pipelined=pipelined)) == [250, 250]
            client.quit()
        [connection] = backend.connections
        assert [len(seen.accepted) for seen in connection.transactions] == [1] * 5 + [2] * 3
        assert verbs(connection).count("LHLO") == 1 and "RSET" not in verbs(connection)


def test_no_more_connections_than_messages_at_a_time() -> None:
    with site(HEALTHY) as (proxy, backend):
        clients = [proxy.client() for _ in range(6)]
        for _ in range(10):
            for client in clients:
                client.envelope("s@x", ["u@a"])
            for client in clients:
                client.send(b"x\r\n.\r\n")
                assert client.reply().code == 250
        for client in clients:
            client.quit()
        assert len(backend.connections) == 6


def test_the_whole_envelope_and_data_go_in_one_write() -> None:
    with site(HEALTHY) as (proxy, backend):
        deliver(proxy, "u@a", "v@a")
        [connection] = backend.connections
        assert connection.pipelined[-3:] == [b"MAIL FROM:<s@x>", b"RCPT TO:<u@a>", b"RCPT TO:<v@a>"]


def test_after_recipients_that_were_all_refused_it_is_reset_and_used_again() -> None:
    script = Script(rcpt_by={"no@a": say("550 5.1.1 no")})
    with site(script) as (proxy, backend):
        for _ in range(2):
            assert codes(deliver(proxy, "no@a")) == [550]
            wait_for_reset(backend)
            assert codes(deliver(proxy, "u@a")) == [250]
        [connection] = backend.connections
        # DATA had gone with the recipients, and was answered 503, as it has to be.
        assert verbs(connection)[1:6] == ["MAIL", "RCPT", "DATA", "RSET", "MAIL"]


def test_a_354_without_a_recipient_is_answered_with_a_lone_dot() -> None:
    script = replace(HEALTHY, rcpt=say("550 5.1.1 no"), data_always=True)
    with site(script, HEALTHY) as (proxy, backend):
        assert codes(deliver(proxy)) == [550]
        assert backend.wait_closed(1)
        assert verbs(backend.connections[0])[1:] == ["MAIL", "RCPT", "DATA", "."]
        assert codes(deliver(proxy)) == [250]  # on another one


def test_a_client_that_resets_or_leaves_before_data_costs_no_connection() -> None:
    with site(HEALTHY) as (proxy, backend):
        for leave in ("reset", "quit", "vanish"):
            client = proxy.client()
            client.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\n")
            assert [client.reply().code for _ in range(2)] == [250, 250]
            if leave == "reset":
                assert client.command("RSET").code == 250
            if leave == "vanish":
                client.reset()
            else:
                client.quit()
            assert len(backend.connections) == 1
            wait_for_reset(backend)
        assert codes(deliver(proxy)) == [250]
        assert len(backend.connections) == 1


# --- given up ---------------------------------------------------------------------------------------------------------


def test_an_idle_connection_is_left_with_quit_in_time() -> None:
    with site(HEALTHY, idle_timeout=4) as (proxy, backend):
        deliver(proxy)
        time.sleep(2)
        deliver(proxy)
        ended = time.monotonic()
        assert backend.wait_closed(1)
        assert time.monotonic() - ended > 2.5, "it counts from the last message"
        [connection] = backend.connections
        assert verbs(connection)[-1] == "QUIT" and len(connection.transactions) == 2


def test_zero_keeps_none() -> None:
    with site(HEALTHY, idle_timeout=0) as (proxy, backend):
        for number in range(1, 4):
            deliver(proxy)
            assert backend.wait_closed(number)
        assert [verbs(connection)[-1] for connection in backend.connections] == ["QUIT"] * 3


@pytest.mark.parametrize(
    "odd",
    [
        Script(after_finals=say("250 2.0.0 one more")),
        Script(after_finals=(Close(),)),
        Script(after_finals=(*say("421 4.3.2 going down"), Close())),
        Script(after_finals=(Pause(0.1), *say("421 4.4.1 bye idle for too long"), Close())),
        Script(final=say("421 4.3.2 going down")),
        Script(final=say("250 2.0.0 stored", "250 2.0.0 and again")),
    ],
    ids=["a surplus reply", "closed", "421", "421 after a while", "421 for the message", "two replies"],
)
def test_whatever_is_odd_is_not_used_again(odd: Script) -> None:
    with site(odd, HEALTHY) as (proxy, backend):
        first = deliver(proxy)
        assert codes(first)[0] in (250, 451)
        assert backend.wait_closed(1)
        for _ in range(2):
            assert codes(deliver(proxy)) == [250]
        assert len(backend.connections) == 2
        assert [len(connection.transactions) for connection in backend.connections] == [1, 2]


def test_a_reload_retires_the_connections_of_a_backend_that_changed_and_no_others() -> None:
    with (
        FakeBackend() as a,
        FakeBackend() as b,
        ProxyProcess(config_of({"a": a, "b": b}, idle_timeout=30)) as proxy,
    ):
        deliver(proxy, "u@a", "u@b")
        proxy.config["backends"]["a"] = {**a.config, "max_connections": 3}
        assert "active" in proxy.reload()
        assert a.wait_closed(1)
        assert verbs(a.connections[0])[-1] == "QUIT"
        deliver(proxy, "u@a", "u@b")
        assert (len(a.connections), len(b.connections)) == (2, 1)
        # A busy one goes when its message is through.
        with proxy.client() as client:
            outcome = client.envelope("s@x", ["u@a"])
            proxy.config["backends"]["a"] = {**a.config, "max_connections": 4}
            assert "active" in proxy.reload()
            assert codes(client.finals_after(outcome, b"x\r\n.\r\n")) == [250]
            client.quit()
        assert a.wait_closed(2)


def test_a_stop_takes_leave_of_all() -> None:
    with site(HEALTHY) as (proxy, backend):
        deliver(proxy)
        assert proxy.stop() == 0
        assert backend.wait_closed(1)
        assert verbs(backend.connections[0])[-1] == "QUIT"


# --- dead when it is used again ---------------------------------------------------------------------------------------


def second_mail(*steps: Step) -> Script:
    """Serves one message, and does this with the next MAIL."""
    return replace(HEALTHY, mail_again=steps)


@pytest.mark.parametrize(
    "steps", [(Close(),), (Reset(),), (*say("421 4.4.1 bye idle for too long"), Close())], ids=["close", "reset", "421"]
)
@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_a_connection_that_had_died_is_replaced_and_nobody_notices(steps: Steps, transport: str) -> None:
    with site(second_mail(*steps), HEALTHY, transport=transport) as (proxy, backend):
        for _ in range(2):
            assert codes(deliver(proxy, "u@a", "v@a")) == [250, 250]
        assert len(backend.connections) == 2
        assert len(backend.connections[0].transactions) == 2 and len(backend.connections[1].transactions) == 1
        assert "may be delivered" not in proxy.log()


def test_it_is_replaced_once_only() -> None:
    with site(second_mail(Close()), Script(mail=(Close(),))) as (proxy, backend):
        assert codes(deliver(proxy)) == [250]
        assert codes(deliver(proxy)) == [451]
        assert len(backend.connections) == 2


def test_a_new_connection_that_fails_is_not_replaced() -> None:
    with site(Script(mail=(Close(),)), HEALTHY) as (proxy, backend):
        assert codes(deliver(proxy)) == [451]
        assert len(backend.connections) == 1


def test_one_that_has_said_something_is_not_replaced() -> None:
    script = replace(HEALTHY, mail_again=(*say("250 2.1.0 ok"), Close()))
    with site(script, HEALTHY) as (proxy, backend):
        assert codes(deliver(proxy)) == [250]
        assert codes(deliver(proxy)) == [451]
        assert len(backend.connections) == 1


def test_silence_may_be_death_and_is_asked_once_more_on_a_fresh_connection() -> None:
    """Something between the two still takes what is sent, and nobody is behind it any more."""
    with site(second_mail(Hang()), HEALTHY) as (proxy, backend):
        assert codes(deliver(proxy)) == [250]
        began = time.monotonic()
        assert codes(deliver(proxy)) == [250]
        assert 0.9 < time.monotonic() - began < SOON
        assert len(backend.connections) == 2
    with site(second_mail(Hang()), Script(mail=(Hang(),))) as (proxy, backend):
        assert codes(deliver(proxy)) == [250]
        assert codes(deliver(proxy)) == [451]
        assert len(backend.connections) == 2


def test_one_that_is_silent_condemns_those_kept_before_it() -> None:
    with site(*[second_mail(Hang())] * 4, HEALTHY) as (proxy, backend):
        with ExitStack() as clients:
            for outcome, client in [
                (client.envelope("s@x", ["u@a"]), client)
                for client in (clients.enter_context(proxy.client()) for _ in range(4))
            ]:
                client.finals_after(outcome, b"x\r\n.\r\n")
        assert len(backend.connections) == 4
        assert codes(deliver(proxy)) == [250]
        assert backend.wait_closed(4)
        began = time.monotonic()
        assert codes(deliver(proxy)) == [250]
        assert time.monotonic() - began < 0.9
        assert len(backend.connections) == 5
        assert "a kept connection has died without a word; so may 3 others" in proxy.log()


def test_one_that_died_and_has_no_successor_delays_no_other_backend() -> None:
    """While a second backend is tried in vain, the first one answers; a third one fails before that."""
    gone = (*say("421 4.3.2 closing"), Close())
    second = [Script(after_finals=(Pause(0.3), Close())), Script(greeting=(Pause(0.3), *gone))]
    third = Script(greeting=(Pause(0.6), *gone))
    with FakeBackend() as a, FakeBackend(lambda index: second[min(index, 1)]) as b, FakeBackend(third) as c:
        config = config_of({"a": a, "b": b, "c": c}, idle_timeout=30, timeouts={**TIMEOUTS, "command": 60})
        with ProxyProcess(config) as proxy, proxy.client() as client:
            assert codes(client.deliver("1@x", ["u@a", "u@b"])) == [250, 250]
            outcome = client.envelope("2@x", ["u@a", "u@b", "u@c"])
            assert [reply.code for reply in outcome.rcpts] == [250, 451, 451]
            client.finals_after(outcome, b"x" * 70 + b"\r\n" + b"y" * 200_000 + b"\r\n.\r\n")
            assert outcome.verdict(0).code == 250
            client.quit()


# --- limits -----------------------------------------------------------------------------------------------------------


def test_who_waits_for_a_place_gets_it_in_turn_and_the_connection_with_it() -> None:
    with site(HEALTHY, max_connections=2, max_per_user=8) as (proxy, backend):
        clients = [proxy.client() for _ in range(8)]
        for number, client in enumerate(clients):
            client.send(f"MAIL FROM:<{number}@x>\r\nRCPT TO:<u@a>\r\nDATA\r\n".encode())
            assert client.reply().code == 250  # to MAIL: it has come, and waits for a place
        assert backend.wait_for(lambda: len(backend.transactions()) == 2)
        for number, client in enumerate(clients):
            there = [seen.sender for seen in backend.transactions()]
            expected = [f"{each}@x" for each in range(min(number + 2, 8))]
            assert sorted(there) == expected, "not in turn"
            assert [client.reply().code for _ in range(2)] == [250, 354]
            client.send(b"x\r\n.\r\n")
            assert client.reply().positive
            client.quit()
            more = min(number + 3, 8)
            assert backend.wait_for(lambda more=more: len(backend.transactions()) == more)  # type: ignore[misc]
        assert len(backend.connections) == 2


def test_without_a_place_in_time_it_is_451_for_these_recipients() -> None:
    release = threading.Event()
    script = Script(final=(Await(release), *say("250 2.0.0 stored")))
    with site(script, max_connections=1, max_per_user=2, timeouts={"connect": 0.5}) as (proxy, backend):
        with proxy.client() as first, proxy.client() as second:
            first.envelope("1@x", ["u@a"])
            first.send(b"x\r\n.\r\n")
            began = time.monotonic()
            outcome = second.deliver("2@x", ["u@a"])
            assert outcome.verdict(0).text.startswith("451 4.3.2 ")
            assert 0.4 < time.monotonic() - began < SOON
            release.set()
            assert first.reply().code == 250
            assert codes(second.deliver("3@x", ["u@a"])) == [250]
            second.quit()
            first.quit()
        assert len(backend.connections) == 1


# --- a backend that cannot be reached ---------------------------------------------------------------------------------


def test_a_backend_that_is_down_is_tried_one_at_a_time_and_found_again() -> None:
    silent, greeting = Script(greeting=(Hang(),)), 3.0
    with site(silent, silent, HEALTHY, timeouts={"greeting": greeting}) as (proxy, backend):
        since = proxy.mark()
        began = time.monotonic()
        assert codes(deliver(proxy)) == [451]
        assert time.monotonic() - began > greeting - 0.1
        # For a second nobody asks it at all; then one message does, and the others need not wait for that.
        assert backend.wait_closed(1)
        ended = backend.connections[0].ended or 0.0
        while time.monotonic() - ended < 0.4:
            assert deliver(proxy).verdict(0).text.startswith("451 4.4.2 ") and len(backend.connections) == 1
        time.sleep(1.1)
        with proxy.client() as probing:
            probing.send(b"MAIL FROM:<p@x>\r\nRCPT TO:<u@a>\r\n")
            assert backend.wait_for(lambda: len(backend.connections) == 2)
            began = time.monotonic()
            assert codes(deliver(proxy)) == [451]
            assert time.monotonic() - began < greeting - 0.5 and len(backend.connections) == 2
            assert [probing.reply().code for _ in range(2)] == [250, 451]
            probing.quit()
        time.sleep(1.1)
        assert codes(deliver(proxy)) == [250]
        proxy.wait_log(" is up again", since=since)
        log = proxy.log()[since:]
        assert log.count(" is down: ") == 1 and log.count(" is up again") == 1
