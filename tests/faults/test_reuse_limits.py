"""A store that takes only so many messages, recipients or seconds on a connection: the client hears nothing of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest

from tests.faults.test_pool import codes, deliver, site, verbs
from tests.support.backend import FakeBackend
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import FULL_OFFER, HEALTHY, Close, Script, Steps, say

LIMIT = say("452 4.4.5 Maximum number of messages per session exceeded.")
LOCKSTEP = tuple(word for word in FULL_OFFER if word != "PIPELINING")


def tired(phase: str, steps: Steps, offer: tuple[str, ...] = FULL_OFFER) -> Script:
    """Says this to the second and each later transaction of a connection."""
    return replace(HEALTHY, offer=offer, **{f"{phase}_again": steps})  # type: ignore[arg-type]


CASES = {
    "MAIL 451": ("mail", say("451 4.3.0 too many messages on this connection")),
    "MAIL 421": ("mail", (*say("421 4.7.0 enough"), Close())),
    "RCPT 452": ("rcpt", say("452 4.5.3 too many")),
    "RCPT 453": ("rcpt", say("453 4.3.2 Session open for too long.")),
    "RCPT 421": ("rcpt", (*say("421 4.3.2 Session open for too long."), Close())),
    "DATA 452": ("data", LIMIT),
    "DATA 421": ("data", (*say("421 4.4.5 enough"), Close())),
}


@pytest.mark.parametrize("offer", [FULL_OFFER, LOCKSTEP], ids=["pipelining", "lockstep"])
@pytest.mark.parametrize("pipelined", [True, False], ids=["at once", "one by one"])
@pytest.mark.parametrize("case", CASES)
def test_what_a_used_connection_defers_is_asked_on_a_fresh_one(
    case: str, pipelined: bool, offer: tuple[str, ...]
) -> None:
    with site(tired(*CASES[case], offer)) as (proxy, backend), proxy.client() as client:
        for _ in range(6):
            assert codes(client.deliver("s@x", ["u@a", "v@a"], pipelined=pipelined)) == [250, 250]
        client.quit()
        assert len(backend.connections) == 6
        assert [len(seen.accepted) for seen in backend.transactions() if seen.dotted] == [2] * 6


@pytest.mark.parametrize("case", ["MAIL 451", "RCPT 452", "DATA 452"])
def test_a_fresh_connection_is_asked_once(case: str) -> None:
    phase, steps = CASES[case]
    with site(HEALTHY, replace(HEALTHY, **{phase: steps})) as (proxy, backend):  # type: ignore[arg-type]
        backend.script = lambda index: tired(phase, steps) if index == 0 else replace(HEALTHY, **{phase: steps})  # type: ignore[arg-type]
        assert codes(deliver(proxy)) == [250]
        assert codes(deliver(proxy)) == [int(steps[0].data[:3])]  # type: ignore[union-attr]
        assert len(backend.connections) == 2


@pytest.mark.parametrize("phase", ["mail", "rcpt", "data"])
def test_a_5xx_is_final_on_a_used_connection(phase: str) -> None:
    with site(tired(phase, say("550 5.7.1 no"))) as (proxy, backend):
        assert codes(deliver(proxy)) == [250]
        assert codes(deliver(proxy)) == [550]
        assert len(backend.connections) == 1


def test_one_deferred_recipient_among_others_is_not_asked_again() -> None:
    script = Script(rcpt_by={"full@a": say("452 4.2.2 over quota")})
    with site(script) as (proxy, backend):
        for _ in range(2):
            assert codes(deliver(proxy, "u@a", "full@a")) == [250, 452]
        assert len(backend.connections) == 1


def test_a_connection_that_deferred_everybody_is_not_kept() -> None:
    with site(Script(rcpt_by={"full@a": say("452 4.2.2 over quota")})) as (proxy, backend):
        assert codes(deliver(proxy, "full@a")) == [452]
        assert backend.wait_closed(1)
        assert verbs(backend.connections[0])[-1] == "QUIT"
        assert codes(deliver(proxy, "u@a")) == [250]


@pytest.mark.parametrize("offer", [FULL_OFFER, LOCKSTEP], ids=["pipelining", "lockstep"])
@pytest.mark.parametrize("refused", [{0: 550}, {1: 452}, {2: 550}, {0: 450, 2: 550}, {0: 550, 1: 550, 2: 450}])
def test_who_was_told_yes_and_is_refused_then_gets_that_as_the_final_reply(
    refused: dict[int, int], offer: tuple[str, ...]
) -> None:
    names = ["u@a", "v@a", "w@a"]
    fresh = Script(
        offer=offer, rcpt_by={names[at]: say(f"{code} {code // 100}.1.1 not now") for at, code in refused.items()}
    )
    with FakeBackend(lambda index: tired("data", LIMIT, offer) if index == 0 else fresh) as backend:
        with ProxyProcess(config_of({"a": backend}, idle_timeout=30)) as proxy, proxy.client() as client:
            assert codes(client.deliver("1@x", ["u@a"])) == [250]
            outcome = client.envelope("2@x", names, pipelined=False)
            assert [reply.code for reply in outcome.rcpts] == [250] * 3
            client.finals_after(outcome, b"x\r\n.\r\n")
            assert codes(outcome) == [refused.get(at, 250) for at in range(3)]
            assert codes(client.deliver("3@x", ["x@a"])) == [250]
            client.quit()
        assert len(backend.connections[1].transactions) == 1 + (len(refused) < 3 or 1)


@pytest.mark.parametrize("data", [say("503 5.5.1 nobody"), say("550 5.5.0 nobody"), say("354 go ahead")])
def test_all_who_were_told_yes_are_refused_whatever_data_gets_then(data: Steps) -> None:
    fresh = Script(rcpt_by={"u@a": say("550 5.1.1 no"), "v@a": say("452 4.2.2 full")}, data=data, data_always=True)
    with site(tired("data", LIMIT), fresh) as (proxy, _), proxy.client() as client:
        assert codes(client.deliver("1@x", ["w@a"])) == [250]
        outcome = client.deliver("2@x", ["u@a", "v@a"], pipelined=False)
        assert [reply.code for reply in outcome.rcpts] == [250, 250]
        assert codes(outcome) == [550, 452]
        client.quit()


def test_who_comes_after_them_is_told_what_the_second_session_says() -> None:
    """It has accepted nobody then, and refuses the DATA that came along: no mistake of ours, and no alarm."""
    first = replace(HEALTHY, rcpt_by={"v@a": (*say("421 4.3.2 enough"), Close())})
    refused = {f"{name}@a": say("550 5.1.1 no") for name in "uvw"}
    with site(first, Script(rcpt_by=refused)) as (proxy, backend), proxy.client() as client:
        assert codes(client.deliver("1@x", ["w@a"])) == [250]
        for command, code in (("MAIL FROM:<2@x>", 250), ("RCPT TO:<u@a>", 250), ("RCPT TO:<v@a>", 550)):
            assert client.command(command).code == code
        client.send(b"RCPT TO:<w@a>\r\nDATA\r\n")
        assert client.reply().text == "550 5.1.1 no"
        assert client.reply().code == 354  # for u@a
        client.send(b"x\r\n.\r\n")
        assert client.reply().text == "550 5.1.1 no"
        client.quit()
        assert len(backend.connections) == 2


def test_who_was_told_no_is_not_asked_again() -> None:
    script = replace(tired("data", LIMIT), rcpt_by={"no@a": say("550 5.1.1 no")})
    with site(script, HEALTHY) as (proxy, backend), proxy.client() as client:
        assert codes(client.deliver("1@x", ["u@a"])) == [250]
        outcome = client.deliver("2@x", ["u@a", "no@a", "v@a"], pipelined=False)
        assert codes(outcome) == [250, 550, 250]
        client.quit()
        assert [each.path for each in backend.connections[1].transactions[0].recipients] == ["u@a", "v@a"]


def test_a_421_between_rcpt_and_data_is_not_heard() -> None:
    script = replace(HEALTHY, rcpt_again=(*say("250 2.1.5 ok"), *say("421 4.3.2 idle"), Close()))
    with site(script) as (proxy, backend), proxy.client() as client:
        for _ in range(3):
            assert codes(client.deliver("s@x", ["u@a"], pipelined=False)) == [250]
        client.quit()
        assert len(backend.connections) == 3


def test_max_messages_is_obeyed() -> None:
    with site(HEALTHY, max_messages=3) as (proxy, backend):
        for _ in range(7):
            assert codes(deliver(proxy)) == [250]
        assert backend.wait_for(lambda: verbs(backend.connections[1])[-1] == "QUIT")
        assert [len(connection.transactions) for connection in backend.connections] == [3, 3, 1]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ("LIMITS MAILMAX=2", [2, 2, 1]),
        ("LIMITS RCPTMAX=5 MAILMAX=2", [2, 2, 1]),
        ("limits mailmax=2", [2, 2, 1]),
        ("LIMITS MAILMAX=0", [5]),
        ("LIMITS MAILMAX=-2 XMAILMAX=2", [5]),
        ("LIMITS MAILMAX=2x", [5]),
        ("LIMITS", [5]),
    ],
)
def test_mailmax_is_obeyed(limits: str, expected: list[int]) -> None:
    with site(replace(HEALTHY, offer=(*FULL_OFFER, limits))) as (proxy, backend):
        for _ in range(5):
            assert codes(deliver(proxy)) == [250]
        assert [len(connection.transactions) for connection in backend.connections] == expected


@pytest.mark.parametrize("pipelined", [True, False], ids=["at once", "one by one"])
def test_rcptmax_splits_a_transaction(pipelined: bool) -> None:
    names = [f"u{number}@a" for number in range(12)]
    script = replace(
        HEALTHY,
        offer=(*FULL_OFFER, "LIMITS RCPTMAX=5"),
        rcpt_by={"u6@a": say("550 5.1.1 no")},
        final_by={"u2@a": say("452 4.2.2 full"), "u11@a": say("554 5.7.1 no")},
    )
    with site(script) as (proxy, backend), proxy.client() as client:
        for sender in ("1@x", "2@x"):
            outcome = client.deliver(sender, names, pipelined=pipelined)
            assert codes(outcome) == [{2: 452, 6: 550, 11: 554}.get(number, 250) for number in range(12)]
            parts = [[each.path for each in seen.recipients] for seen in backend.transactions(sender)]
            assert sorted(chain.from_iterable(parts)) == sorted(names)
            assert max(map(len, parts)) <= 6 and len(parts) == 3
            assert all(seen.dotted for seen in backend.transactions(sender))
        client.quit()
        assert len(backend.connections) == 3, "one was given up: a reply was waited for that nobody owes"


def test_rcptmax_without_a_place_defers_the_rest() -> None:
    script = replace(HEALTHY, offer=(*FULL_OFFER, "LIMITS RCPTMAX=2"))
    with site(script, max_connections=2) as (proxy, _), proxy.client() as client:
        outcome = client.deliver("s@x", [f"u{number}@a" for number in range(7)])
        assert codes(outcome) == [250] * 4 + [452] * 3
        client.quit()
        proxy.wait_log("more recipients than it takes in a transaction")
