"""Recipients without a domain, as stock Sendmail and OpenSMTPD send them: the table holds for them, too."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Move
from tests.support.backend import FakeBackend
from tests.support.client import Reply
from tests.support.ctl import Run, controlled, ctl
from tests.support.proxy import BOTH_MODES
from tests.support.script import Await, Script, say

USERS = {"carol@example.org": "reject", "alice@example.org": "old", "postmaster": "new"}


def site(default_domain: str | None, users: dict[str, str]) -> Iterator[Move]:
    settings = {"fallback_backend": "old"} | ({"default_domain": default_domain} if default_domain else {})
    with (
        FakeBackend() as old,
        FakeBackend() as new,
        controlled({"old": old, "new": new}, users, **settings) as proxy,
    ):
        yield Move(old, new, proxy)


@pytest.fixture
def without() -> Iterator[Move]:
    yield from site(None, USERS)


@pytest.fixture
def completed() -> Iterator[Move]:
    users = {**USERS, "bob": "old", "dave@xn--bcher-kva.example": "old"}
    yield from site("Example.ORG", users)


def run(move: Move, *arguments: str) -> Run:
    return ctl("--socket", f"{move.proxy.directory}/ctl", *arguments)


def asked(move: Move, *paths: str) -> list[Reply]:
    """The replies to RCPTs with these paths."""
    with move.proxy.client() as client:
        lines = ["MAIL FROM:<s@x>", *(f"RCPT TO:<{path}>" for path in paths)]
        client.send("".join(line + "\r\n" for line in lines).encode())
        replies = [client.reply() for _ in lines]
        client.quit()
    return replies[1:]


def delivered(move: Move, path: str) -> str:
    before = [len(store.transactions()) for store in (move.old, move.new)]
    with move.proxy.client() as client:
        assert client.deliver("s@x", [path]).verdict(0).positive
        client.quit()
    after = [len(store.transactions()) for store in (move.old, move.new)]
    store = move.old if after[0] > before[0] else move.new
    assert [recipient.path for recipient in store.transactions()[-1].recipients] == [path], (
        "the store gets what was sent"
    )
    return "old" if store is move.old else "new"


@BOTH_MODES
def test_none_reaches_the_fallback_past_its_entry(without: Move) -> None:
    paths = ["carol", "CAROL+x", '"carol"', "dave", "@relay.test:carol"]
    assert {reply.text[:9] for reply in asked(without, *paths)} == {"450 4.1.1"}
    assert not without.old.transactions()
    assert delivered(without, "Postmaster") == "new", "this very name is on a line"
    assert delivered(without, "dave@example.org") == "old", "the fallback is for those with a domain"
    found = run(without, "--json", "lookup", "carol").document
    assert (found["hit"], found["backend"]) == (None, None)
    assert "450 4.1.1" in found["answer"] and "default_domain" in found["answer"]


def test_one_line_a_minute_names_the_client(without: Move) -> None:
    for _ in range(3):
        asked(without, "carol", "dave")
    lines = [line for line in without.proxy.log().splitlines() if "without a domain" in line]
    assert len(lines) == 1
    assert "the client unix sends recipients without a domain, such as <carol>, which are deferred" in lines[0]
    assert "default_domain" in lines[0]
    assert "it has no domain, and config.default_domain is not set" in without.proxy.wait_log("to=<dave>")


@BOTH_MODES
def test_with_a_default_domain_each_is_who_they_are_there(completed: Move) -> None:
    assert asked(completed, "carol")[0].text[:9] == "450 4.2.1", "parked, as carol@example.org is"
    assert (
        delivered(completed, "alice") == delivered(completed, "bob") == delivered(completed, "bob@example.org") == "old"
    )
    assert delivered(completed, "postmaster@example.org") == delivered(completed, "postmaster") == "new"
    assert delivered(completed, "postmaster@other.example") == "old", "the fallback"
    assert run(completed, "--json", "lookup", "Carol").document["hit"] == "carol@example.org"


@BOTH_MODES
@pytest.mark.parametrize("name", ["alice", "alice@example.org"])
@pytest.mark.parametrize("sent", ["alice", "ALICE+x", '"alice"', "alice@Example.org."])
def test_a_move_of_either_name_waits_for_either_and_takes_it_along(completed: Move, name: str, sent: str) -> None:
    go = threading.Event()
    completed.old.script = Script(final=(Await(go), *say("250 2.0.0 stored")))
    with completed.proxy.client() as client:
        outcome = client.envelope("s@x", [sent])
        client.send(b"x\r\n.\r\n")
        assert completed.old.wait_for(lambda: any(seen.dotted for seen in completed.old.transactions()))
        flights = run(completed, "--json", "inflight").document["in_flight"]
        assert len(flights) == 1
        moved = run(completed, "move", "--no-preflight", name, "new", "--timeout", "0.3")
        assert moved.status == 3 and "old -> new" in " ".join(moved.out.split()), moved
        go.set()
        assert client.finals(outcome).verdict(0).positive
        assert run(completed, "drain", name, "--timeout", "5").status == 0
        client.quit()
    assert delivered(completed, sent) == "new"
    assert '"alice@example.org": new' in Path(completed.proxy.config_path).read_text()


def test_a_name_and_its_address_with_two_backends_are_an_error_that_names_both_lines(completed: Move) -> None:
    text = Path(completed.proxy.config_path).read_text()
    bob = next(number for number, line in enumerate(text.splitlines(), 1) if "bob" in line)
    Path(completed.proxy.config_path).write_text(text + "  bob@example.org: new\n")
    refused = run(completed, "reload")
    assert refused.status == 1
    assert f"users.bob@example.org: is the same user as bob on line {bob}, who is on old" in " ".join(
        refused.err.split()
    )


@BOTH_MODES
def test_who_is_on_no_line_is_asked_about_with_the_default_domain(completed: Move) -> None:
    """As the proxy looks the name up, and as mail for it mostly comes: a store may know no bare names at all."""
    unknown = say("550 5.1.1 User unknown")
    for store in (completed.old, completed.new):
        store.script = Script(rcpt_by={"dave": unknown, "erin": unknown, "dvae@Example.ORG": unknown})
    assert run(completed, "move", "dave", "reject").status == 0
    assert run(completed, "move", "erin", "new").status == 0, "the preflight on the target"
    refused = run(completed, "move", "dvae", "reject")
    assert refused.status == 1 and "550 5.1.1 User unknown: is the name right?" in " ".join(refused.err.split())
    text = Path(completed.proxy.config_path).read_text()
    assert "dave@Example.ORG: reject\n" in text and "erin@Example.ORG: new\n" in text and "dvae" not in text
    asked_for = [recipient.path for seen in completed.old.transactions() for recipient in seen.recipients]
    assert asked_for == ["dave@Example.ORG", "dvae@Example.ORG"]
    completed.old.script = Script(rcpt_by={"finn@other.example": unknown})
    assert run(completed, "move", "--domain", "other.example", "finn", "reject").status == 1, "what is said counts"
