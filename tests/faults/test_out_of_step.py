# SPDX-License-Identifier: GPL-3.0-or-later
"""A reply too many on a kept connection, which shifts all that come after it: nobody gets another's verdict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.faults.conftest import Pair
from tests.support.backend import FakeBackend
from tests.support.client import Outcome
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import FULL_OFFER, Close, Pause, Script, Steps, say

BAD = "550 5.1.1 User unknown"
GOOD = Script(rcpt_by={"bad@a": say(BAD)})
STRAY = ("250 2.0.0 late", "550 5.1.1 late User unknown", "554 5.6.0 late")


@pytest.fixture(scope="module")
def keeping() -> Iterator[Pair]:
    with FakeBackend() as a, FakeBackend() as b:
        config = config_of({"a": a, "b": b})
        config["backends"]["a"] = {**a.config, "idle_timeout": 60, "max_connections": 1, "max_per_user": 5}
        with ProxyProcess(config) as proxy:
            yield Pair(proxy, a, b)


def second(keeping: Pair, script: Script, recipients: list[str], *, pipelined: bool = True, dots: int = 0) -> Outcome:
    """What is said of these in the second transaction on a connection. dots: that the store may see in it."""
    keeping.a.forget()
    keeping.a.script = script
    with keeping.proxy.client() as client:
        assert client.deliver("first@x", ["good@a"]).verdict(0).positive
        outcome = client.deliver("second@x", recipients, pipelined=pipelined)
        client.quit()
    assert keeping.a.wait_closed(1), "the connection stays open"
    seen = keeping.a.connections[0].transactions
    assert [each.sender for each in seen] == ["first@x", "second@x"]
    assert sum(each.dotted for each in seen[1:]) == dots
    return outcome


def check_nobody_bounces(outcome: Outcome) -> None:
    for position, recipient in enumerate(outcome.recipients):
        verdict = outcome.verdict(position)
        if recipient.endswith("@b"):
            assert verdict.positive, outcome
        else:
            assert verdict.text.startswith("451 4.3.0"), outcome


@pytest.mark.parametrize("recipients", [["good@a", "bad@a", "x@b"], ["bad@a", "good@a"], ["bad@a"], ["good@a"]])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("stray", STRAY)
def test_before_the_reply_to_mail(keeping: Pair, recipients: list[str], apart: bool, stray: str) -> None:
    pause: Steps = (Pause(0.1),) if apart else ()
    script = replace(GOOD, mail_again=(*say(stray), *pause, *say("250 2.1.0 ok")))
    check_nobody_bounces(second(keeping, script, recipients))


@pytest.mark.parametrize("stray", STRAY)
def test_to_a_store_without_pipelining(keeping: Pair, stray: str) -> None:
    """There the reply is seen before the next command goes out, or right behind it."""
    offer = tuple(word for word in FULL_OFFER if word != "PIPELINING")
    for pause in ((), (Pause(0.1),)):
        script = replace(GOOD, offer=offer, mail_again=(*say(stray), *pause, *say("250 2.1.0 ok")))
        check_nobody_bounces(second(keeping, script, ["good@a", "x@b"]))


@pytest.mark.parametrize("stray", STRAY)
def test_from_a_client_in_lockstep(keeping: Pair, stray: str) -> None:
    script = replace(GOOD, mail_again=say(stray, "250 2.1.0 ok"))
    check_nobody_bounces(second(keeping, script, ["good@a", "x@b"], pipelined=False))


@pytest.mark.parametrize("stray", STRAY)
def test_before_the_reply_to_rcpt(keeping: Pair, stray: str) -> None:
    """Where all are refused by what was shifted, no dot may go out behind DATA: the store may have accepted one."""
    script = Script(rcpt_by={"late@a": say(stray, "250 2.1.5 ok")})
    check_nobody_bounces(second(keeping, script, ["late@a"]))
    script = Script(rcpt_by={"late@a": say(stray, "452 4.2.2 over quota")})
    check_nobody_bounces(second(keeping, script, ["late@a"]))
    script = Script(rcpt_by={"late@a": say(stray, "250 2.1.5 ok"), "bad@a": say(BAD)})
    check_nobody_bounces(second(keeping, script, ["late@a", "bad@a"]))


def test_two_too_many(keeping: Pair) -> None:
    script = replace(GOOD, mail_again=say("250 2.0.0 late", "250 2.0.0 late", "250 2.1.0 ok"))
    for recipients in (["bad@a", "good@a"], ["good@a", "bad@a"], ["bad@a", "bad@a", "good@a"]):
        check_nobody_bounces(second(keeping, script, recipients))


@pytest.mark.parametrize("code", ["550 5.1.1 User unknown", "452 4.2.2 over quota"])
def test_behind_the_reply_to_data(pair: Pair, code: str) -> None:
    """No octet of the message has gone out: it is no verdict on it."""
    pair.a.script = Script(data=say("354 go", code))
    with pair.proxy.client() as client:
        check_nobody_bounces(client.deliver("s@x", ["u@a", "x@b"]))
        client.quit()


@pytest.mark.parametrize("rset", [say("250 2.0.0 ok"), (Close(),), say("421 4.3.2 bye")], ids=["250", "closes", "421"])
@pytest.mark.parametrize(
    ("script", "told"),
    [
        (Script(mail_again=say("553 5.1.8 bad sender")), "553 5.1.8 bad sender"),
        (Script(rcpt_by={"u@a": say(BAD)}, data=say("550 5.5.0 nobody"), data_always=True), BAD),
    ],
    ids=["mail", "all recipients"],
)
def test_what_a_store_in_step_says_stands(keeping: Pair, script: Script, told: str, rset: Steps) -> None:
    keeping.a.forget()
    keeping.a.script = script.at("rset", rset)
    with keeping.proxy.client() as client:
        client.deliver("first@x", ["v@a"])
        outcome = client.deliver("second@x", ["u@a", "x@b"])
        assert (outcome.verdict(0).text, outcome.verdict(1).positive) == (told, True)
        client.quit()
    assert keeping.a.wait_closed(1)
