"""Preflight: what a backend would say to mail for some recipients, and that nothing is ever delivered by asking."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.backend import FakeBackend
from tests.support.control import Control, add_control, bare_connection
from tests.support.patience import SOON
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import FULL_OFFER, HEALTHY, Close, Hang, Pause, Script, Steps, say

COMMAND = 1.0  # seconds; the backend's deadline for a reply
LOCKSTEP = tuple(word for word in FULL_OFFER if word != "PIPELINING")


@dataclass
class Asked:
    """A proxy in front of one store, which is asked."""

    store: FakeBackend
    proxy: ProxyProcess
    control: Control

    def ask(self, *recipients: str) -> Any:
        """The answer; the store never saw DATA, and every connection to it has ended."""
        answer = self.control.post("/preflight", {"backend": "new", "recipients": list(recipients)})
        assert self.store.wait_closed()
        assert not [line for line in self.commands() if line.upper().startswith((b"DATA", b"BDAT"))]
        return answer

    def commands(self) -> list[bytes]:
        return [line.strip() for connection in self.store.connections for line in connection.commands]


@pytest.fixture(scope="module")
def running() -> Iterator[Asked]:
    with FakeBackend() as store:
        config = config_of({"new": store}, {"u": "new"}, log={"level": "debug"})
        config["backends"]["new"] = {
            **store.config,
            "max_connections": 3,
            "max_per_user": 3,
            "timeouts": {"connect": COMMAND / 2, "greeting": COMMAND, "command": COMMAND},
        }
        proxy = ProxyProcess(config)
        add_control(proxy)
        with proxy:
            yield Asked(store, proxy, Control(proxy))
            time.sleep(1.1)  # the process title is brought up to date after a second
            assert proxy.stop() == 0
            assert "greenlets left: 0\n" in proxy.log()


@pytest.fixture
def asked(running: Asked) -> Iterator[Asked]:
    running.store.script = HEALTHY
    running.store.forget()
    yield running
    assert running.store.wait_closed()
    deadline = time.monotonic() + SOON
    while running.control.get("/backends")["backends"][0]["busy"]:
        assert time.monotonic() < deadline, "a place was not given back"
        time.sleep(0.01)


@pytest.mark.parametrize("offer", [FULL_OFFER, LOCKSTEP, ()], ids=["pipelining", "lockstep", "nothing offered"])
def test_each_reply_is_reported(asked: Asked, offer: tuple[str, ...]) -> None:
    replies = {
        "gone@x": say("550-5.1.1 no", "550 5.1.1 such user"),
        "full@x": say("452 4.2.2 over quota"),
        "big@x": say("552 5.2.2 over quota"),
    }
    asked.store.script = Script(offer=offer, rcpt_by=replies)
    answer = asked.ask("alice", "gone@x", "<full@x>", "big@x")
    assert answer["backend"] == "new" and answer["address"] == asked.store.path and answer["refused"] is None
    assert [tuple(reply.values()) for reply in answer["replies"]] == [
        ("alice", 250, "250 2.1.5 recipient ok"),
        ("gone@x", 550, "550 5.1.1 no 5.1.1 such user"),
        ("full@x", 452, "452 4.2.2 over quota"),
        ("big@x", 552, "552 5.2.2 over quota"),
    ]
    assert asked.commands()[1:] == [
        b"MAIL FROM:<>", b"RCPT TO:<alice>", b"RCPT TO:<gone@x>", b"RCPT TO:<full@x>", b"RCPT TO:<big@x>",
        b"RSET", b"QUIT",
    ]  # fmt: skip
    (connection,) = asked.store.connections
    assert bool(connection.pipelined) is ("PIPELINING" in offer)


def test_without_recipients_it_ends_after_mail(asked: Asked) -> None:
    answer = asked.ask()
    assert answer["refused"] is None and answer["replies"] == []
    assert asked.commands()[1:] == [b"MAIL FROM:<>", b"RSET", b"QUIT"]


def test_many_recipients_go_in_transactions_of_100(asked: Asked) -> None:
    users = [f"u{number}@example.org" for number in range(250)] + ["x" * 900 + "@y"] * 40
    answer = asked.ask(*users)
    assert answer["refused"] is None
    assert [reply["recipient"] for reply in answer["replies"]] == users
    assert len(asked.store.connections) == 1
    commands = asked.commands()[1:-1]
    sizes, octets, count = [], [], 0
    for line in commands:
        if line == b"MAIL FROM:<>":
            octets.append(0)
        elif line == b"RSET":
            sizes.append(count)
            count = 0
        else:
            count += 1
            octets[-1] += len(line) + 2
    assert sum(sizes) == 290 and max(sizes) == 100 and max(octets) <= 16384
    assert commands[-1] == b"RSET"


REFUSALS: dict[str, tuple[Script, str]] = {
    "greeting": (Script(greeting=say("554 5.3.2 go away")), "greeting: 554 5.3.2 go away"),
    "greeting 421": (Script(greeting=say("421 4.3.2 later")), "it said 421 4.3.2 later"),
    "lhlo": (Script(lhlo=say("500 5.5.1 what")), "LHLO: 500 5.5.1 what; is it an SMTP server?"),
    "mail": (Script(mail=say("430 please authenticate")), "in reply to MAIL: 430 4.0.0 please authenticate"),
    "mail 5xx": (Script(mail=say("530 5.7.0 no")), "in reply to MAIL: 530 5.7.0 no"),
    "mail 3xx": (Script(mail=say("354 go")), "in reply to MAIL: 354 go"),
    "rcpt 3xx": (Script(rcpt=say("354 go")), "in reply to RCPT: 354 go"),
    "rcpt 421": (Script(rcpt=say("421 4.3.2 bye")), "it said 421 4.3.2 bye"),
    "close": (Script(mail=(Close(),)), "it closed the connection"),
    "nonsense": (Script(rcpt=say("hello \x1b[31m")), "what it sent is no reply"),
    "hang": (Script(rcpt=(Hang(),)), "no answer in time"),
    "escaped": (Script(mail=say("550 5.0.0 \x1b[31m red")), r"in reply to MAIL: 550 5.0.0 \x1b[31m red"),
    "too many": (Script(mail=say("250 2.0.0 ok", "250 2.0.0 ok")), "it said out of turn: 250 2.0.0 ok"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_backend_that_does_not_get_so_far(asked: Asked, name: str) -> None:
    asked.store.script, reason = REFUSALS[name]
    begun = time.monotonic()
    answer = asked.ask("alice")
    assert time.monotonic() - begun < SOON
    assert answer["refused"] == reason and answer["replies"] == []


@pytest.mark.parametrize("peer", ["refused", "absent", "full"])
def test_a_backend_that_is_not_there(peer: str) -> None:
    with FakeBackend(peer=peer) as store:
        proxy = ProxyProcess(config_of({"new": store}))
        add_control(proxy)
        with proxy:
            answer = Control(proxy).post("/preflight", {"backend": "new", "recipients": ["alice"]})
            assert answer["refused"].startswith("connect: ") and answer["replies"] == []
            (backend,) = Control(proxy).get("/backends")["backends"]
            assert (backend["state"], backend["failures"], backend["busy"]) == ("down", 1, 0)


def test_what_was_answered_before_a_failure_is_reported(asked: Asked) -> None:
    asked.store.script = Script(rcpt_by={"third@x": (Close(),)})
    answer = asked.ask("first@x", "second@x", "third@x", "fourth@x")
    assert answer["refused"] is not None
    assert [reply["recipient"] for reply in answer["replies"]] == ["first@x", "second@x"]


@pytest.mark.parametrize("rset", [say("500 5.5.1 what"), (Close(),), say("421 4.3.2 bye")])
def test_a_failure_after_the_last_recipient_is_none(asked: Asked, rset: Steps) -> None:
    asked.store.script = Script(rset=rset)
    answer = asked.ask("alice")
    assert answer["refused"] is None and [reply["code"] for reply in answer["replies"]] == [250]


def test_an_address_that_the_backend_cannot_take(asked: Asked) -> None:
    assert [reply["code"] for reply in asked.ask("zoë@x", "bob")["replies"]] == [250, 250]
    assert b"MAIL FROM:<> SMTPUTF8" in asked.commands()
    asked.store.forget()
    asked.store.script = Script(offer=("PIPELINING",))
    replies = {reply["recipient"]: reply["reply"] for reply in asked.ask("zoë@x", "bob")["replies"]}
    assert replies["bob"] == "250 2.1.5 recipient ok"
    assert replies["zoë@x"].startswith("553 5.6.7")
    assert b"MAIL FROM:<>" in asked.commands()


def test_it_counts_against_the_places_of_the_backend(asked: Asked) -> None:
    """At most two ask at once, so that mail finds a place; a place that is taken is waited for as long as by mail."""
    asked.store.script = Script(rcpt=(Pause(0.5), *say("250 2.1.5 ok")))
    with ThreadPoolExecutor(4) as workers:
        begun = time.monotonic()
        running = [workers.submit(asked.ask, f"u{number}") for number in range(4)]
        assert asked.store.wait_for(lambda: len(asked.store.transactions()) == 2)
        (backend,) = asked.control.get("/backends")["backends"]
        assert (backend["busy"], backend["max_connections"]) == (2, 3)
        assert all(worker.result()["refused"] is None for worker in running)
        assert 0.9 < time.monotonic() - begun < SOON


def test_no_place_is_a_refusal(asked: Asked) -> None:
    asked.store.script = Script(rcpt=(Pause(2.5), *say("250 2.1.5 ok")))
    with ExitStack() as stack:
        for _ in range(3):
            client = stack.enter_context(asked.proxy.client())
            client.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<u>\r\n")
            assert client.reply().code == 250
        answer = asked.control.post("/preflight", {"backend": "new", "recipients": []})
        # Of two workers the one that is asked has a share of them, and may have a place.
        busy = "all 3 connections (max_connections) are in use: they wait, 3 for its replies to recipients"
        assert asked.proxy.workers > 1 or answer["refused"] == busy


def test_a_client_that_is_gone_is_not_asked_for(asked: Asked) -> None:
    asked.store.script = Script(offer=LOCKSTEP, rcpt=(Pause(0.3), *say("250 2.1.5 ok")))
    with bare_connection(asked.control.path) as sock:
        body = (
            b'{"backend": "new", "recipients": ["'
            + b'", "'.join(b"%c" % n for n in b"abcdefghijklmnopqrstuvwxyz")
            + b'"]}'
        )
        sock.sendall(b"POST /preflight HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        assert asked.store.wait_for(lambda: any(b"<a>" in line for line in asked.commands()))
    assert asked.store.wait_closed(1, timeout=1.5)
    assert len([line for line in asked.commands() if line.startswith(b"RCPT")]) < 20


@pytest.mark.parametrize(
    "document, code",
    [
        ({"backend": "nowhere", "recipients": []}, 404),
        ({"backend": "reject", "recipients": []}, 404),
        ({"backend": "new"}, 400),
        ({"recipients": []}, 400),
        ({"backend": 5, "recipients": []}, 400),
        ({"backend": "new", "recipients": [""]}, 400),
        ({"backend": "new", "recipients": ["a b"]}, 400),
        ({"backend": "new", "recipients": ["fine@x", "a@b@c"]}, 400),
        ({"backend": "new", "recipients": ["a>\r\nDATA"]}, 400),
        ({"backend": "new", "recipients": ["<a> NOTIFY=NEVER"]}, 400),
        ({"backend": "new", "recipients": ["<a> ORCPT=rfc822;b>"]}, 400),
        ({"backend": "new", "recipients": ["\ud800"]}, 400),
        ({"backend": "new", "recipients": ["x" * 2000]}, 400),
        ({"backend": "new", "recipients": [], "data": True}, 400),
    ],
)
def test_what_makes_no_sense_reaches_no_backend(asked: Asked, document: object, code: int) -> None:
    answer = asked.control.ask("POST", "/preflight", document)
    assert answer.code == code
    assert answer.document["error"].isprintable()
    assert not asked.store.connections


def test_a_bad_recipient_is_named(asked: Asked) -> None:
    answer = asked.control.ask("POST", "/preflight", {"backend": "new", "recipients": ["fine@x", "a\x1b b"]})
    assert answer.document["error"] == r'"a\x1b b" is no address that RCPT would take'
