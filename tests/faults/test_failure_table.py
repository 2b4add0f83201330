"""Every row of the failure table, against the real process, on unix and TCP backends, pipelined and in lockstep.

In each transaction a second, healthy backend has recipients around the faulty one's: they must get their own 250.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from tests.faults.failure_cases import CASES, FIRST, SECOND, Case, Told
from tests.support.accounting import check_earned
from tests.support.backend import FakeBackend
from tests.support.client import LmtpClient, Outcome, Reply
from tests.support.proxy import ProxyProcess
from tests.support.script import Script

# What is to be done in time is done in time on a busy machine, too; only who is to miss a deadline has a short one.
TIMEOUTS = {"connect": 8, "greeting": 8, "command": 8, "data_write": 8, "final_reply": 10, "client_idle": 20}
SHORT = {"connect": 0.6, "greeting": 0.6, "command": 0.6, "data_write": 0.6, "final_reply": 0.8}
MOST = 4.0  # seconds: any one fault is answered in less, with the short deadlines; a drip goes on for longer
LARGE = b"Subject: large\r\n\r\n" + (b"x" * 78 + b"\r\n") * 120_000


@dataclass
class Rig:
    transport: str
    proxy: ProxyProcess
    healthy: FakeBackend
    faulty: dict[str, FakeBackend]


def with_domain(script: Script, domain: str) -> Script:
    """The script with the full addresses of this run."""
    return replace(script, rcpt_by={f"{local}@{domain}": steps for local, steps in script.rcpt_by.items()})


def domain_of(case: Case, style: str) -> str:
    return f"{case.name}.{style}"


# Cases that run into a deadline take their time: in lockstep these go on one transport only.
SLOW = [case for case in CASES if any(word in case.name for word in ("silence", "drip", "stall", "backlog", "resolv"))]
QUICK = [case for case in CASES if case not in SLOW]
on_both = pytest.mark.parametrize("rig", ["unix", "tcp", "unix, kept"], indirect=True, scope="module")
on_unix = pytest.mark.parametrize("rig", ["unix"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    transport, _, kept = str(request.param).partition(", ")
    healthy = FakeBackend(transport=transport, keep_body=False)
    faulty: dict[str, FakeBackend] = {}
    keep = {"idle_timeout": 60 if kept else 0}
    backends: dict[str, object] = {"healthy": {**healthy.config, **keep}}
    users: dict[str, object] = {"@healthy": "healthy"}
    for case in CASES:
        for style in ("pipelined", "lockstep"):
            domain = domain_of(case, style)
            fake = FakeBackend(
                with_domain(case.script, domain),
                transport=transport,
                peer=case.peer,
                keep_body=False,
                receive_buffer=4096 if transport == "tcp" and case.body == "large" else None,
            )
            faulty[domain] = fake
            address = dict(fake.config)
            if case.host is not None and transport == "tcp":
                address["host"] = case.host
            short = {"timeouts": SHORT} if case in SLOW else {}
            backends[domain] = {**address, **keep, **short, **case.keys}
            users["@" + domain] = domain
    config: dict[str, dict[str, object]] = {"config": {"timeouts": TIMEOUTS}, "backends": backends, "users": users}
    try:
        with ProxyProcess(config) as proxy:
            yield Rig(transport, proxy, healthy, faulty)
    finally:
        for fake in (healthy, *faulty.values()):
            fake.stop()


def send_body(client: LmtpClient, case: Case) -> None:
    if case.body == "large":
        client.send(LARGE + b".\r\n")
        return
    client.send(b"Subject: x\r\n\r\n" + b"line\r\n" * 500)
    if case.body == "paused":
        time.sleep(0.15)
    client.send(b"last line\r\n.\r\n")


@on_both
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pipelined(rig: Rig, case: Case) -> None:
    check_case(rig, case, "pipelined")


@on_both
@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_in_lockstep(rig: Rig, case: Case) -> None:
    check_case(rig, case, "lockstep")


@on_unix
@pytest.mark.parametrize("case", SLOW, ids=lambda case: case.name)
def test_slow_in_lockstep(rig: Rig, case: Case) -> None:
    check_case(rig, case, "lockstep")


def check_case(rig: Rig, case: Case, style: str) -> None:
    domain = domain_of(case, style)
    faulty = rig.faulty[domain]
    sender = f"s@{domain}"
    recipients = ["one@healthy", f"{FIRST}@{domain}", "two@healthy", f"{SECOND}@{domain}"]
    since = rig.proxy.mark()
    with rig.proxy.client() as client:
        begun = time.monotonic()
        outcome = client.envelope(sender, recipients, pipelined=style == "pipelined")
        assert outcome.data is not None and outcome.data.code == 354
        enveloped = time.monotonic()
        send_body(client, case)
        client.finals(outcome)
        ended = time.monotonic()
        # The connection is as good as new, and nothing is left over in it.
        again = client.deliver(f"again-{sender}", ["one@healthy"])
        client.quit()

    # Who has pipelined DATA is told of a failure there in place of the replies to RCPT, which the reply to DATA proves.
    early = style == "pipelined" and case.name.startswith("data-") and not case.first.verbatim
    check_verdict(outcome, 1, replace(case.first, when="rcpt") if early else case.first)
    check_verdict(outcome, 3, replace(case.second, when="rcpt") if early else case.second)
    for position in (0, 2):
        assert outcome.verdict(position).text == "250 2.0.0 stored", outcome
    check_earned(outcome, [rig.healthy, faulty, rig.healthy, faulty])
    check_earned(again, [rig.healthy])
    assert again.verdict(0).positive

    steps = 1 if style == "pipelined" else 2
    assert enveloped - begun < MOST * steps and ended - enveloped < MOST
    check_fate(case, faulty, sender)
    check_log(rig, case, outcome, domain, since)


def check_verdict(outcome: Outcome, position: int, told: Told) -> None:
    rcpt, got = outcome.rcpts[position], outcome.verdict(position)
    if told.when == "rcpt":
        assert not rcpt.positive, f"{outcome.recipients[position]} was accepted: {outcome}"
    elif told.when == "final":
        assert rcpt.positive, f"{outcome.recipients[position]} was refused early: {outcome}"
    assert matches(got, told), f"{outcome.recipients[position]} was told {got.text}, expected {told}"


def matches(reply: Reply, told: Told) -> bool:
    if told.verbatim:
        return reply.text in told.replies
    return any(reply.text == text or reply.text.startswith(text + " ") for text in told.replies)


def check_fate(case: Case, faulty: FakeBackend, sender: str) -> None:
    if case.fate == "none":
        assert not faulty.connections
        return
    if case.fate == "close":
        assert faulty.wait_closed(1), f"the connection stays open: {faulty.connections}"
    tries = faulty.transactions(sender)
    if case.fate == "keep":
        (only,) = tries
        assert only.dotted
    if case.fate == "reset":
        assert not any(seen.dotted for seen in tries)
        for connection in faulty.connections:
            said = [line.upper() for line in connection.commands]
            rest = said[said.index(b"DATA") + 1 :] if b"DATA" in said else []
            # RSET, and a DATA that is refused then, show that replies are in step.
            assert rest[:2] in ([], [b"RSET"], [b"QUIT"], [b"RSET", b"DATA"]), said
            assert set(rest[2:]) <= {b"RSET", b"QUIT"}, said
    if case.fate == "close" and not case.name.startswith("final"):
        assert not any(seen.dotted for seen in tries), "a final dot reached a backend that had failed before it"
    password = str(case.keys.get("password", ""))
    if case.name in ("auth-not-offered", "auth-no-usable-mechanism"):
        assert password and not any(connection.auth_lines for connection in faulty.connections)


def check_log(rig: Rig, case: Case, outcome: Outcome, domain: str, since: int) -> None:
    for position, address in enumerate(outcome.recipients):
        got = outcome.verdict(position)
        # The healthy recipients are the same in all cases: the sender tells them apart.
        line = rig.proxy.wait_log(
            rf"from=<{re.escape(outcome.sender)}>, to=<{re.escape(address)}>, .*status=", since=since
        )
        status = {2: "sent", 4: "deferred", 5: "bounced"}[got.code // 100]
        assert f"status={status} " in line and f"dsn={got.enhanced}," in line, (line, got)
        assert f"backend={domain if address.endswith(domain) else 'healthy'}[" in line, line
        if address.endswith(domain) and not got.positive and case.uncertain:
            assert "may be delivered" in line, line
        if not case.name.startswith("final"):
            assert "may be delivered" not in line, line
    text = rig.proxy.log()[since:]
    assert "secret-word" not in text
    if case.alarm:
        assert re.search(rf" ERROR .*backend {re.escape(domain)}\[", text), text
