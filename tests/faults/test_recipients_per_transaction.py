"""A store that takes few recipients in a transaction, or answers a message once for all of them."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from tests.faults.test_pool import TIMEOUTS, codes, site
from tests.support.backend import FakeBackend
from tests.support.control import Control, add_control
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import FULL_OFFER, HEALTHY, Close, Hang, Script, say

ONCE = Script(final_at=dict.fromkeys(range(1, 100), ()))
NAMES = [f"u{number}@a" for number in range(7)]


def parts(backend: FakeBackend, sender: str) -> list[list[str]]:
    """The recipients of each of its transactions that came to an end."""
    return [[each.path for each in seen.recipients] for seen in backend.transactions(sender) if seen.dotted]


@pytest.mark.parametrize("pipelined", [True, False], ids=["at once", "one by one"])
@pytest.mark.parametrize("most", [1, 3])
def test_more_recipients_become_several_transactions_at_once(most: int, pipelined: bool) -> None:
    with site(HEALTHY, recipients_per_transaction=most) as (proxy, backend), proxy.client() as client:
        for sender in ("1@x", "2@x"):
            body = b"x" * 300_000 + b"\r\n"
            assert codes(client.deliver(sender, NAMES, body, pipelined=pipelined)) == [250] * 7
            assert sorted(map(len, parts(backend, sender))) == ([1] * 7 if most == 1 else [1, 3, 3])
            assert sorted(each for part in parts(backend, sender) for each in part) == NAMES
            assert {seen.body.bytes for seen in backend.transactions(sender) if seen.body} == {body}
        client.quit()
        assert len(backend.connections) == (7 if most == 1 else 3), "each on one of its own, which are kept"


def test_one_recipient_each_gets_every_reply_of_a_store_that_answers_once() -> None:
    with site(ONCE, recipients_per_transaction=1) as (proxy, _), proxy.client() as client:
        for _ in range(3):
            began = time.monotonic()
            assert codes(client.deliver("s@x", NAMES)) == [250] * 7
            assert time.monotonic() - began < 2
        client.quit()
        assert "may be delivered" not in proxy.log()


def test_verdicts_of_one_are_their_own_and_in_order() -> None:
    script = Script(
        rcpt_by={"u1@a": say("550 5.1.1 no"), "u5@a": say("450 4.2.1 later")},
        final_by={"u2@a": say("452 4.2.2 full"), "u6@a": say("554 5.7.1 no")},
    )
    expected = [250, 550, 452, 250, 250, 450, 554]
    with site(script, recipients_per_transaction=1) as (proxy, _), proxy.client() as client:
        for pipelined in (True, False):
            assert codes(client.deliver("s@x", NAMES, pipelined=pipelined)) == expected
        client.quit()


def test_recipients_beyond_the_places_are_deferred_and_come_next() -> None:
    with site(HEALTHY, recipients_per_transaction=1, max_connections=3) as (proxy, _), proxy.client() as client:
        outcome = client.deliver("s@x", NAMES)
        assert codes(outcome) == [250] * 3 + [452] * 4
        assert outcome.rcpts[3].enhanced == "4.5.3"
        assert codes(client.deliver("s@x", NAMES[3:6])) == [250] * 3
        client.quit()
        proxy.wait_log("to=<u3@a>.*status=deferred .452 4.5.3 ")


def test_the_lesser_of_what_is_configured_and_what_the_store_says_counts() -> None:
    offering = replace(HEALTHY, offer=(*FULL_OFFER, "LIMITS RCPTMAX=2"))
    for most, expected in ((5, [1, 2, 2, 2]), (1, [1] * 7)):
        with site(offering, recipients_per_transaction=most) as (proxy, backend), proxy.client() as client:
            assert codes(client.deliver("s@x", NAMES)) == [250] * 7
            client.quit()
            assert sorted(map(len, parts(backend, "s@x"))) == expected


def test_one_transaction_that_fails_leaves_the_others() -> None:
    scripts = [HEALTHY, Script(final=(Close(),)), HEALTHY]
    with site(*scripts, recipients_per_transaction=1) as (proxy, _), proxy.client() as client:
        assert sorted(codes(client.deliver("s@x", NAMES[:3]))) == [250, 250, 451]
        client.quit()


def test_the_same_recipient_twice_has_two_transactions() -> None:
    with site(ONCE, recipients_per_transaction=1) as (proxy, backend), proxy.client() as client:
        assert codes(client.deliver("s@x", ["u@a", "u@a", "U@a"])) == [250] * 3
        client.quit()
        assert parts(backend, "s@x") == [["u@a"], ["u@a"], ["U@a"]]


def test_it_is_of_one_backend_and_follows_a_reload() -> None:
    with FakeBackend() as a, FakeBackend() as b:
        config = config_of({"a": a, "b": b}, idle_timeout=30)
        config["backends"]["a"] = {**config["backends"]["a"], "recipients_per_transaction": 1}  # type: ignore[dict-item]
        with ProxyProcess(config) as proxy, proxy.client() as client:
            names = ["u@a", "u@b", "v@a", "v@b", "w@b"]
            assert codes(client.deliver("1@x", names)) == [250] * 5
            assert sorted(parts(a, "1@x")) == [["u@a"], ["v@a"]] and parts(b, "1@x") == [["u@b", "v@b", "w@b"]]
            proxy.config["backends"]["a"] = {**a.config, "idle_timeout": 30}
            assert "active" in proxy.reload()
            assert codes(client.deliver("2@x", names)) == [250] * 5
            assert parts(a, "2@x") == [["u@a", "v@a"]]
            client.quit()


def test_nobody_is_left_behind_when_the_client_goes() -> None:
    with site(HEALTHY, recipients_per_transaction=1, max_connections=7) as (proxy, backend):
        for _ in range(3):
            client = proxy.client()
            client.envelope("gone@x", NAMES)
            client.reset()
            proxy.wait_log("status=aborted")
            with proxy.client() as other:
                assert codes(other.deliver("s@x", NAMES)) == [250] * 7
                other.quit()
        assert parts(backend, "gone@x") == []


@pytest.mark.parametrize("script", [HEALTHY, replace(HEALTHY, offer=(*FULL_OFFER, "LIMITS RCPTMAX=2"))])
def test_a_preflight_obeys_it_too(script: Script) -> None:
    with FakeBackend(script) as backend:
        config = config_of({"a": backend})
        most = 2 if script is HEALTHY else 0
        config["backends"]["a"] = {**config["backends"]["a"], "recipients_per_transaction": most}  # type: ignore[dict-item]
        proxy = ProxyProcess(config)
        add_control(proxy)
        with proxy:
            answer = Control(proxy).post("/preflight", {"backend": "a", "recipients": NAMES})
        assert [each["code"] for each in answer["replies"]] == [250] * 7
        assert [len(seen.recipients) for seen in backend.transactions()] == [2, 2, 2, 1]


# --- without the key -------------------------------------------------------------------------------------------------


def lines(proxy: ProxyProcess, text: str) -> int:
    return proxy.log().count(text)


def test_a_store_that_answers_once_is_named_and_then_gets_one_at_a_time() -> None:
    with site(ONCE) as (proxy, backend), proxy.client() as client:
        for number in range(3):
            assert codes(client.deliver(f"{number}@x", NAMES[:3])) == [250, 451, 451]
            line = proxy.wait_log("final replies: does it answer per recipient")
            assert "gave 1 of 3 final replies" in line and "recipients_per_transaction: 1 is the cure" in line
            assert lines(proxy, "it gets one recipient in a transaction") == (number == 2)
        began = time.monotonic()
        assert codes(client.deliver("3@x", NAMES)) == [250] * 7
        assert time.monotonic() - began < 2
        assert sorted(parts(backend, "3@x")) == [[name] for name in NAMES]
        client.quit()
        assert lines(proxy, "does it answer per recipient") == 1 == lines(proxy, "it gets one recipient in a")
        assert lines(proxy, "as many recipients in a transaction as before") == 0


def test_a_store_that_answers_for_several_gets_several_again() -> None:
    """One message was under way since before; it is answered in full."""
    scripts = [HEALTHY, ONCE, ONCE, ONCE, HEALTHY]
    with site(*scripts) as (proxy, backend), proxy.client() as slow, proxy.client() as client:
        outcome = slow.envelope("slow@x", NAMES[:2])
        for number in range(3):
            assert codes(client.deliver(f"{number}@x", NAMES[:2])) == [250, 451]
        proxy.wait_log("it gets one recipient in a transaction")
        assert codes(client.deliver("3@x", NAMES[:2])) == [250] * 2
        slow.finals_after(outcome, b"x\r\n.\r\n")
        assert codes(outcome) == [250] * 2
        proxy.wait_log("gave 2 of 2 final replies: it gets as many recipients in a transaction as before")
        assert codes(client.deliver("4@x", NAMES[:2])) == [250] * 2
        assert sorted(parts(backend, "3@x")) == [[each] for each in NAMES[:2]]
        assert parts(backend, "4@x") == [NAMES[:2]]
        slow.quit()
        client.quit()


@pytest.mark.parametrize("final", [Script(final_at={1: (Close(),)}), Script(final_at={0: (Hang(),)})])
def test_other_troubles_say_nothing_about_it(final: Script) -> None:
    """A store that crashes behind the first reply, or gives none at all."""
    patient = {**TIMEOUTS, "command": 60}  # a close that is seen later than that says something
    with site(final, timeouts=patient) as (proxy, backend), proxy.client() as client:
        for number in range(4):
            assert 451 in codes(client.deliver(f"{number}@x", NAMES[:2]))
            assert parts(backend, f"{number}@x") == [NAMES[:2]]
        client.quit()
        assert "per recipient" not in proxy.log() and "one recipient in" not in proxy.log()
