# SPDX-License-Identifier: GPL-3.0-or-later
"""Replies of 5xx that are about our conversation and not about the mail, where the table of failures has no row."""

from __future__ import annotations

import re

import pytest

from tests.faults.conftest import Pair
from tests.support.backend import FakeBackend
from tests.support.client import LmtpClient, Outcome, Reply
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import FULL_OFFER, Script, say

ALARM = r" ERROR .*backend a\["


def told(client: LmtpClient, mail: str, recipients: list[str]) -> list[Reply]:
    """The replies to RCPT, behind a MAIL with parameters."""
    client.send("".join(line + "\r\n" for line in (mail, *(f"RCPT TO:<{to}>" for to in recipients), "DATA")).encode())
    assert client.reply().positive
    replies = [client.reply() for _ in recipients]
    client.reply()
    return replies


@pytest.mark.parametrize("parameter", ["SIZE=100", "BODY=8BITMIME", "SIZE=100 BODY=7BIT"])
def test_555_to_a_parameter_that_we_sent_bounces_nothing(pair: Pair, parameter: str) -> None:
    since = pair.proxy.mark()
    pair.a.script = Script(mail=say("555 5.5.4 unsupported parameter"))
    with pair.proxy.client() as client:
        first, second = told(client, f"MAIL FROM:<s@x> {parameter}", ["u@a", "u@b"])
        assert first.text.startswith("451 4.3.0") and second.positive
        assert re.search(ALARM + ".*555", pair.proxy.log()[since:])


def test_555_stands_where_the_store_got_no_parameter(pair: Pair) -> None:
    since = pair.proxy.mark()
    pair.a.script = Script(offer=("PIPELINING",), mail=say("555 5.5.4 no"))
    with pair.proxy.client() as client:
        first, second = told(client, "MAIL FROM:<s@x> SIZE=100 BODY=8BITMIME", ["u@a", "u@b"])
        assert first.text == "555 5.5.4 no" and second.positive
        assert not re.search(ALARM, pair.proxy.log()[since:])


@pytest.mark.parametrize("code", [503, 554])
def test_data_behind_recipients_who_were_all_refused_is_no_alarm(code: int) -> None:
    """RFC 2033 section 4.2. The connection is as good as before."""
    script = Script(rcpt_by={"u@a": say("550 5.1.1 no such user")}, data=say(f"{code} 5.5.1 no"), data_always=True)
    with FakeBackend(script) as a, FakeBackend() as b:
        config = config_of({"a": a, "b": b})
        config["backends"]["a"] = {**a.config, "idle_timeout": 30, "max_connections": 1}
        with ProxyProcess(config) as proxy, proxy.client() as client:
            assert client.deliver("s@x", ["u@a"]).rcpts[0].text == "550 5.1.1 no such user"
            a.script = Script()
            assert client.deliver("s@x", ["u@a"]).rcpts[0].text == "550 5.1.1 no such user"
            assert len(a.connections) == 1
            assert not re.search(ALARM, proxy.log())


def test_after_the_final_dot_it_is_its_verdict(pair: Pair) -> None:
    """P6: a final reply is about the message, whatever its code."""
    pair.a.script = Script(final=say("503 5.5.1 no"))
    with pair.proxy.client() as client:
        assert client.deliver("s@x", ["u@a"]).verdict(0).text == "503 5.5.1 no"
        client.quit()


def test_a_store_that_wants_authentication_first_bounces_nobody_in_lockstep(pair: Pair) -> None:
    offer = tuple(word for word in FULL_OFFER if word != "PIPELINING")
    pair.a.script = Script(offer=offer, mail=say("503 5.5.1 You must authenticate first."))
    with pair.proxy.client() as client:
        outcome: Outcome = client.deliver("s@x", ["u@a", "v@a", "u@b"], pipelined=False)
        assert [outcome.verdict(at).text[:9] for at in range(3)] == ["451 4.3.0", "451 4.3.0", "250 2.0.0"]
        client.quit()
