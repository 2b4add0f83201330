"""What an attacker found: states that two peers reach together, each test with a proxy of its own."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from tests.faults.test_pool import codes, deliver, site
from tests.support.backend import FakeBackend
from tests.support.client import LmtpClient
from tests.support.control import Control, add_control
from tests.support.patience import SOON
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import HEALTHY, Await, BodyTrigger, Hang, Pause, Script, Stall, raw, say

NO_PIPELINING = ("ENHANCEDSTATUSCODES", "8BITMIME", "SIZE")


# --- one message's reply taken for another's --------------------------------------------------------------------------


@pytest.mark.parametrize("late", ["550 5.7.1 late", "250 2.0.0 late", "421 4.3.2 going", "25"])
@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_what_a_kept_connection_said_is_no_answer_to_what_it_is_asked_next(late: str, transport: str) -> None:
    """It comes together with the next message, before the loop has looked at either."""
    surplus = threading.Event()
    script = Script(after_finals=(Await(surplus), *say(late)))
    with site(script, HEALTHY, transport=transport) as (proxy, _), proxy.client() as client:
        assert codes(client.deliver("s@x", ["u@a"])) == [250]
        time.sleep(0.1)
        proxy.signal(signal.SIGSTOP)
        surplus.set()
        time.sleep(0.1)
        client.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\nRCPT TO:<v@a>\r\n")
        time.sleep(0.1)
        proxy.signal(signal.SIGCONT)
        assert [client.reply().code for _ in range(3)] == [250] * 3
        assert client.command("DATA").code == 354
        client.send(b"x\r\n.\r\n")
        assert [client.reply().code for _ in range(2)] == [250] * 2
        client.quit()


def test_a_reply_that_came_before_its_command_is_no_answer_to_it() -> None:
    script = Script(
        offer=NO_PIPELINING,
        mail=say("250 2.1.0 ok", "250 2.1.0 and again"),
        rcpt=(Pause(0.2), *say("250 2.1.5 ok")),
        rcpt_by={"no@a": (Pause(0.2), *say("550 5.1.1 no such user"))},
    )
    with site(script) as (proxy, _):
        outcome = deliver(proxy, "no@a", "u@a")
        assert outcome.verdict(1).code == 451, outcome


def test_what_is_said_behind_the_answer_to_lhlo_answers_nothing() -> None:
    with site(Script(lhlo=say("250-fake.test", "250 PIPELINING", "550 5.1.1 no such user"))) as (proxy, _):
        assert deliver(proxy).verdict(0).text.startswith("451 4.3.0 ")


# --- one peer's slowness at another's cost ----------------------------------------------------------------------------


def test_room_that_comes_while_another_backend_is_waited_for_is_not_missed() -> None:
    """Both are full; one of them begins a reply and never ends it, while the other one begins to read again."""
    slow = Script(body=BodyTrigger(400_000, (Stall(2),)))
    odd = Script(body=BodyTrigger(400_000, (*raw(b"45"), Hang())))
    with (
        FakeBackend(slow, transport="tcp", receive_buffer=4096) as a,
        FakeBackend(odd, transport="tcp", receive_buffer=4096) as b,
        ProxyProcess(config_of({"a": a, "b": b}, timeouts={"data_write": 55})) as proxy,
        proxy.client(timeout=60) as client,
    ):
        outcome = client.envelope("s@x", ["u@a", "u@b"])
        began = time.monotonic()
        assert codes(client.finals_after(outcome, (b"x" * 998 + b"\r\n") * 30_000 + b".\r\n")) == [250, 451]
        assert time.monotonic() - began < 2 * SOON  # 5 s for the rest of the reply, and not data_write
        client.quit()


def test_a_client_that_does_not_read_its_replies_keeps_no_delivery_in_flight() -> None:
    long = say(*(f"250-2.0.0 {'x' * 1000}" for _ in range(30)), "250 2.0.0 stored")
    with (
        FakeBackend(Script(final=long)) as a,
        FakeBackend(Script(final=(Pause(0.5), *say("250 2.0.0 stored")))) as b,
    ):
        proxy = ProxyProcess(config_of({"a": a, "b": b}))
        add_control(proxy)
        with proxy, proxy.client() as client:
            outcome = client.envelope("s@x", [*(f"u{number}@a" for number in range(30)), "u@b"])
            client.send(b"x\r\n.\r\n")
            assert b.wait_for(lambda: b.transactions()[0].dot_at is not None)
            answer = Control(proxy).post("/drain", {"users": ["u@b"], "timeout": 5})
            assert answer["done"] and not answer["waiting"]
            assert codes(client.finals(outcome)) == [250] * 31
            client.quit()


def test_a_stop_cuts_no_reply_in_two() -> None:
    """A client reads again only when the proxy has given it up: what it gets is whole up to the last words."""
    with FakeBackend() as a, ProxyProcess(config_of({"a": a}, timeouts={"shutdown": 1})) as proxy:
        with proxy.client() as client:
            whole = client.command("HELP")
            _send_without_reading(client, b"HELP\r\n")
            assert proxy.process is not None
            proxy.process.terminate()
            proxy.wait_log("stopping: 1 sessions")
            time.sleep(1.3)
            while (reply := client.at_end_or_reply()) is not None and reply.code != 421:
                assert reply == whole
        assert proxy.wait() == 0


def _send_without_reading(client: LmtpClient, line: bytes) -> None:
    """Until nothing more is taken for a second."""
    before = client.sock.gettimeout()
    client.sock.settimeout(1)
    try:
        while True:
            client.send(line * 1000)
    except TimeoutError:
        client.sock.settimeout(before)
