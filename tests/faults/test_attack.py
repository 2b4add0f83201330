"""What an attacker found: states that two peers reach together, each test with a proxy of its own."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from tests.faults.test_pool import codes, deliver, site
from tests.support.backend import FakeBackend
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
        ProxyProcess(config_of({"a": a, "b": b}, timeouts={"data_write": 20})) as proxy,
        proxy.client(timeout=60) as client,
    ):
        outcome = client.envelope("s@x", ["u@a", "u@b"])
        began = time.monotonic()
        assert codes(client.finals_after(outcome, (b"x" * 998 + b"\r\n") * 30_000 + b".\r\n")) == [250, 451]
        assert time.monotonic() - began < 9  # 5 s for the rest of the reply, once
        client.quit()
