"""One mailbox under several names: whatever a client and an operator write, a move takes all of its mail along."""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Move
from tests.support.backend import FakeBackend
from tests.support.client import SMALL_BODY, LmtpClient
from tests.support.ctl import Run, controlled, ctl
from tests.support.proxy import BOTH_MODES, ProxyProcess, config_of
from tests.support.script import Await, Script, say

U_LABEL, A_LABEL = "anna@bücher.example", "anna@xn--bcher-kva.example"
NFD = unicodedata.normalize("NFD", U_LABEL)
SPELLINGS = [U_LABEL, A_LABEL, "Anna@XN--BCHER-KVA.EXAMPLE.", NFD, "ANNA+x@bücher.example."]
OFFER = ("PIPELINING", "SMTPUTF8", "8BITMIME", "ENHANCEDSTATUSCODES")
USERS = {U_LABEL: "old", "rené@x.example": "old", "bob@x.example": "old", "@xn--strae-oqa.example": "old"}


@pytest.fixture
def move() -> Iterator[Move]:
    script = Script(offer=OFFER)
    with (
        FakeBackend(script) as old,
        FakeBackend(script) as new,
        controlled({"old": old, "new": new}, USERS, smtputf8=True) as proxy,
    ):
        yield Move(old, new, proxy)


def run(move: Move, *arguments: str) -> Run:
    return ctl("--socket", f"{move.proxy.directory}/ctl", *arguments)


def send(client: LmtpClient, recipient: str) -> None:
    """A message up to its final dot."""
    lines = ["MAIL FROM:<s@x> SMTPUTF8", f"RCPT TO:<{recipient}>", "DATA"]
    client.send("".join(line + "\r\n" for line in lines).encode())
    assert [client.reply().code for _ in lines] == [250, 250, 354]
    client.send(SMALL_BODY + b".\r\n")


def delivered(move: Move, recipient: str) -> str:
    """The store that a mail for `recipient` reaches now."""
    before = [len(store.transactions()) for store in (move.old, move.new)]
    with move.proxy.client() as client:
        send(client, recipient)
        assert client.reply().positive
        client.quit()
    after = [len(store.transactions()) for store in (move.old, move.new)]
    return {(1, 0): "old", (0, 1): "new"}[after[0] - before[0], after[1] - before[1]]


@BOTH_MODES
@pytest.mark.parametrize("asked", [A_LABEL, U_LABEL, NFD], ids=["A-label", "U-label", "NFD"])
def test_a_mail_to_either_spelling_follows_the_move_of_either(move: Move, asked: str) -> None:
    assert {delivered(move, spelling) for spelling in SPELLINGS} == {"old"}
    ended = run(move, "move", asked, "new")
    assert ended.status == 0 and "old -> new" in ended.out, ended
    assert {delivered(move, spelling) for spelling in SPELLINGS} == {"new"}
    text = Path(move.proxy.config_path).read_text("utf-8")
    assert f'"{U_LABEL}": new' in text and text.count("cher") == 1, "the line of the user, and no second one"
    assert delivered(move, "rené@x.example") == delivered(move, "any@straße.example") == "old"


@BOTH_MODES
@pytest.mark.parametrize("sent", SPELLINGS)
@pytest.mark.parametrize("asked", [A_LABEL, U_LABEL])
def test_a_delivery_to_either_spelling_is_waited_for(move: Move, sent: str, asked: str) -> None:
    go = threading.Event()
    move.old.script = Script(offer=OFFER, final=(Await(go), *say("250 2.0.0 stored")))
    with move.proxy.client() as client:
        send(client, sent)
        assert move.old.wait_for(lambda: any(seen.dotted for seen in move.old.transactions()))
        assert run(move, "drain", asked, "--timeout", "0.1").status == 3
        assert run(move, "drain", "bob@x.example", "--timeout", "5").status == 0
        moved = run(move, "move", "--no-preflight", asked, "new", "--timeout", "0.3")
        assert moved.status == 3 and "1 delivery" in " ".join((moved.out + moved.err).split()), moved
        go.set()
        assert client.reply().positive
        assert run(move, "drain", asked, "--timeout", "5").status == 0
        client.quit()


@BOTH_MODES
def test_a_local_part_and_a_domain_of_its_own_follow_too(move: Move) -> None:
    decomposed = unicodedata.normalize("NFD", "RENÉ@x.example.")
    assert run(move, "move", decomposed, "@straße.example", "new").status == 0
    assert delivered(move, "rené@x.example") == delivered(move, decomposed) == "new"
    assert delivered(move, "any@xn--strae-oqa.example") == "new"
    with move.proxy.client() as client:
        client.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<any@strasse.example>\r\n")
        assert [client.reply().code for _ in range(2)] == [250, 450], "another domain: nothing is mapped"
        client.quit()


@BOTH_MODES
def test_what_is_known_of_one_spelling_is_known_of_all(move: Move) -> None:
    for spelling in SPELLINGS[:3]:
        found = run(move, "--json", "lookup", spelling).document
        assert (found["hit"], found["backend"]) == (U_LABEL, "old")


def test_two_spellings_with_two_backends_are_an_error_that_names_both_lines(move: Move) -> None:
    text = Path(move.proxy.config_path).read_text("utf-8")
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines, 1) if U_LABEL in line)
    Path(move.proxy.config_path).write_text(text + f"  {A_LABEL}: new\n", "utf-8")
    refused = run(move, "reload")
    assert refused.status == 1
    said = " ".join(refused.err.split())
    assert f":{len(lines) + 1}: users.{A_LABEL}: is the same user as {U_LABEL} on line {first}, who is on old" in said
    assert delivered(move, A_LABEL) == "old"


# --- reverse-paths ----------------------------------------------------------------------------------------------------

ODD_SENDERS = ["root@web$1", "a@b+c.example", "user@host#3", "root@", "u@x'", "u@a/b", "x@exa!mple.example"]


@pytest.mark.parametrize("sender", ODD_SENDERS)
def test_a_reverse_path_that_postfix_sends_is_left_to_the_store(sender: str) -> None:
    """Refused here it loses mail and bounce; a recipient of this kind is refused."""
    with FakeBackend() as store, ProxyProcess(config_of({"a": store})) as proxy, proxy.client() as client:
        outcome = client.deliver(sender, ["u@a"])
        assert [outcome.verdict(0).code] == [250]
        assert [each.line for each in store.transactions(sender)] == [f"MAIL FROM:<{sender}>".encode()]
        assert client.command("MAIL FROM:<s@x>").positive
        assert client.command(f"RCPT TO:<{sender}>").code == 501
        client.quit()
