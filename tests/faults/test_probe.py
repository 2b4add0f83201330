# SPDX-License-Identifier: GPL-3.0-or-later
"""`lmtp-proxyctl probe`: each store is asked before there is mail, and the exit status says whether all is well."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.support.backend import FakeBackend
from tests.support.ctl import Run, controlled, ctl
from tests.support.proxy import ProxyProcess
from tests.support.script import FULL_OFFER, Close, Script, say


@dataclass
class Stores:
    """A proxy that nobody sends mail to yet, and two stores."""

    old: FakeBackend
    new: FakeBackend
    proxy: ProxyProcess

    def probe(self, *arguments: str) -> Run:
        """No store ever sees a message, and all connections end."""
        done = self.deliver(*arguments)
        for store in (self.old, self.new):
            assert not [line for line in self.said(store) if line.upper().startswith((b"DATA", b"BDAT"))]
        return done

    def deliver(self, *arguments: str) -> Run:
        """The same, and one of them may see a message."""
        socket = str(self.proxy.config["config"]["control"]["socket"])  # type: ignore[index]
        done = ctl("--socket", socket, *arguments)
        for store in (self.old, self.new):
            assert store.wait_closed()
        return done

    @staticmethod
    def said(store: FakeBackend) -> list[bytes]:
        return [line.strip() for connection in store.connections for line in connection.commands]


@pytest.fixture(params=[1, 2], ids=["one process", "two workers"])
def stores(request: pytest.FixtureRequest) -> Iterator[Stores]:
    with ExitStack() as stack:
        old, new = stack.enter_context(FakeBackend()), stack.enter_context(FakeBackend())
        proxy = stack.enter_context(controlled({"old": old, "new": new}, {}, workers=request.param))
        yield Stores(old, new, proxy)


def test_each_store_is_a_line(stores: Stores) -> None:
    done = stores.probe("probe")
    assert (done.status, done.err) == (0, "")
    lines = re.sub(r"\n +", " ", done.out).splitlines()
    offers = ", ".join(FULL_OFFER)
    for line, store, name in zip(lines, (stores.old, stores.new), ("old", "new"), strict=True):
        assert re.fullmatch(rf"{name}\[.*\]: ready in [\d.]+ m?s, offers {re.escape(offers)}", line), line
        assert stores.said(store)[0].upper().startswith(b"LHLO ") and stores.said(store)[1:] == [b"QUIT"]


def test_would_it_take_their_mail(stores: Stores) -> None:
    stores.new.script = Script(rcpt_by={"bob@x": say("550 5.1.1 no such user"), "carol@x": say("452 4.2.2 full")})
    done = stores.probe("--json", "probe", "--rcpt", "alice@x", "--rcpt", "<carol@x>")
    assert done.status == 0, "who is full is known there"
    old, new = done.document["backends"]
    assert [each["code"] for each in old["replies"] + new["replies"]] == [250, 250, 250, 452]
    assert old["ok"] and 0 < old["ready"] <= old["seconds"]
    said = [line.partition(b" ")[0].upper() for line in stores.said(stores.new)]
    assert said == [b"LHLO", b"MAIL", b"RCPT", b"RCPT", b"RSET", b"QUIT"]

    done = stores.probe("probe", "new", "--rcpt", "alice@x", "--rcpt", "bob@x")
    assert done.status == 1 and done.error == "1 of 1 store is not as wanted"
    assert "    FAILED: bob@x: 550 5.1.1 no such user" in done.out.splitlines()
    assert any(line.startswith("    alice@x: 250") for line in done.out.splitlines())
    assert "old[" not in done.out


def test_a_store_that_does_not_answer_well_is_no_reason_to_ask_no_other(stores: Stores) -> None:
    stores.old.script = Script(greeting=say("554 5.3.2 no"))
    stores.new.script = Script(mail=(Close(),))
    done = stores.probe("probe", "--rcpt", "alice@x")
    assert done.status == 1 and done.error == "2 of 2 stores are not as wanted"
    text = re.sub(r"\n {8,}", " ", done.out)
    assert re.search(r"^old\[.*\]: FAILED after .*: greeting: 554 5.3.2 no$", text.replace("\n    ", " "), re.MULTILINE)
    assert re.search(r"^    FAILED after .*it closed the connection$", text, re.MULTILINE)
    document = stores.probe("--json", "probe").document
    assert [store["ok"] for store in document["backends"]] == [False, True] and document["status"] == 1


def test_names_that_are_wrong(stores: Stores) -> None:
    done = stores.probe("probe", "nwe")
    what = "there is no backend nwe in the running configuration, did you mean new?; nothing was asked"
    assert (done.status, done.error) == (1, what)
    assert stores.probe("probe", "--rcpt", "a@b@c").status == 64
    assert stores.said(stores.old) == stores.said(stores.new) == []


# --- a test mail -----------------------------------------------------------------------------------------------------


def test_one_store_is_sent_one_mail_for_one_user(stores: Stores) -> None:
    done = stores.deliver("--json", "probe", "--deliver", "alice@x", "new")
    assert (done.status, done.err) == (0, "")
    [store] = done.document["backends"]
    message_id = store["message_id"]
    assert re.fullmatch(r"<lmtp-proxy-test\.[0-9a-f]{24}@[^<>@\s]+>", message_id)
    assert store["ok"] and store["final"]["code"] == 250 and store["refused"] is None
    said = [line.partition(b" ")[0].upper() for line in stores.said(stores.new)]
    assert said == [b"LHLO", b"MAIL", b"RCPT", b"DATA", b"RSET", b"QUIT"] and stores.said(stores.old) == []
    [seen] = [seen for seen in stores.new.transactions() if seen.dotted]
    assert (seen.sender, [each.path for each in seen.recipients]) == ("", ["alice@x"])
    assert seen.body is not None
    data = seen.body.bytes
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert f"Message-ID: {message_id}".encode() in lines and b"Auto-Submitted: auto-generated" in lines
    assert {line.partition(b":")[0] for line in lines} >= {b"From", b"To", b"Date", b"Subject"}
    assert body and b"\n." not in data and data.count(b"\n") == data.count(b"\r\n")

    again = stores.deliver("probe", "new", "--deliver", "<alice@x>")
    assert re.search(r"(?m)^    alice@x: 250 ", again.out)
    assert re.search(r"(?m)^    test mail <lmtp-proxy-test\.\S+ 250 ", re.sub(r"\n {8}", " ", again.out))
    assert message_id not in again.out and again.status == 0


@pytest.mark.parametrize(
    "script, said, dotted",
    [
        (Script(rcpt_by={"alice@x": say("550 5.1.1 no such user")}), "    FAILED: alice@x: 550 5.1.1 no such", False),
        (Script(rcpt_by={"alice@x": say("452 4.2.2 full")}), "    alice@x: 452 4.2.2 full", False),
        (Script(mail=say("451 4.3.0 not now")), "in reply to MAIL: 451 4.3.0 not now", False),
        (Script(data=say("451 4.3.0 not now")), "in reply to DATA: 451 4.3.0 not now", False),
        (Script(data=(Close(),)), "it closed the connection", False),
        (Script(final=say("552 5.2.2 quota")), "    FAILED: test mail <lmtp-proxy-test.", True),
        (Script(final=(Close(),)), "it closed the connection; the message may be delivered", True),
        (Script(final=say("421 4.3.2 bye")), "it said 421 4.3.2 bye; the message may be delivered", True),
    ],
    ids=["no user", "full", "MAIL", "DATA", "gone at DATA", "final", "gone", "421"],
)
def test_a_store_that_does_not_take_it(stores: Stores, script: Script, said: str, dotted: bool) -> None:
    stores.new.script = script
    done = stores.deliver("probe", "new", "--deliver", "alice@x")
    assert (done.status, done.error) == (1, "1 of 1 store is not as wanted")
    assert said in re.sub(r"\n {8,}", " ", done.out), done.out
    assert any(seen.dotted for seen in stores.new.transactions()) == dotted


def test_a_mail_is_for_one_user_and_one_store(stores: Stores) -> None:
    for arguments in (
        ("--deliver", "a@x"), ("--deliver", "a@x", "old", "new"), ("--deliver", "a@x", "--rcpt", "b@x", "new"),
        ("--deliver", "a@b@c", "new"),
    ):  # fmt: skip
        assert stores.probe("probe", *arguments).status == 64
    assert stores.probe("probe", "--deliver", "a@x", "nwe").status == 1
    assert stores.said(stores.old) == stores.said(stores.new) == []
