# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run asks the proxy for, over a control socket that is away, stops, refuses, or is another process now."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lmtp_proxy.ctl.client import ControlClient
from lmtp_proxy.ctl.migrate.hooks import Cancel
from lmtp_proxy.ctl.migrate.proxy import Interrupted, Proxy, ProxyError, UserReceipts
from lmtp_proxy.ctl.names import quoted
from lmtp_proxy.wire.envelope import Recipient, parse_rcpt
from tests.support.ctl import Answer, FakeControl, http
from tests.support.patience import SOON

ALICE = "alice@example.org"


def status(path: str, pid: int = 1, instance: str = "a") -> bytes:
    return http(200, {"config": {"path": path}, "instance": instance, "pid": pid})


def drained(instance: str = "a", **values: Any) -> bytes:
    document = {
        "done": True, "instance": instance, "generation": 2, "until": 3, "waited": 0.0, "waiting": [], "uncertain": [],
        "routes": {ALICE: "reject"}, "reload": None, "after_crash": None, **values,
    }  # fmt: skip
    return http(200, document)


RELOADED = http(200, {"generation": 2, "changes": "1 moved", "seconds": 0.0, "restart": [], "sha256": ""})


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "c.yml"
    path.write_text(
        "config: {socket: /run/x}\nbackends:\n  old: {socket: /run/o}\n  new: {socket: /run/n}\n"
        f"users:\n  {ALICE}: old\n"
    )
    return str(path)


@pytest.fixture
def fakes() -> Iterator[list[FakeControl]]:
    made: list[FakeControl] = []
    yield made
    for fake in made:
        fake.stop()


def proxy_of(
    fakes: list[FakeControl], answers: dict[str, Sequence[Answer]], patience: float = 5.0, **values: Any
) -> Proxy:
    fakes.append(FakeControl(answers))
    return Proxy(ControlClient(fakes[-1].path), patience=patience, **values)


def test_where_a_user_is(fakes: list[FakeControl]) -> None:
    proxy = proxy_of(fakes, {"POST /drain": [drained(routes={ALICE: None}), drained(routes={ALICE: "old"})]})
    assert proxy.route(ALICE) is None and proxy.route(ALICE) == "old"
    assert fakes[0].bodies("POST /drain")[0] == {"users": [ALICE], "timeout": 0}


def test_a_move(fakes: list[FakeControl], config: str) -> None:
    proxy = proxy_of(fakes, {"GET /status": [status(config)], "POST /reload": [RELOADED], "POST /drain": [drained()]})
    moved = proxy.move(ALICE, "reject", 5.0, interruptible=True)
    assert moved.quiet and moved.uncertain == () and moved.previous == "old"
    assert proxy.route_in_file(ALICE) == "reject" and proxy.route_in_file("bob@example.org") is None


def test_what_others_have_edited_is_named_in_journal_and_log_and_goes_on(fakes: list[FakeControl], config: str) -> None:
    """A run of 20,000 users does not end for it."""
    group = {"from": "old", "to": "new", "count": 1, "users": ["bob@example.org"]}
    found = {"errors": [], "moved": [group], "added": [], "removed": [], "backends": [], "config": [], "notes": []}
    known = [http(200, {"known": False}), http(200, {"known": True})]
    told: list[str] = []
    digest = hashlib.sha256(Path(config).read_bytes()).hexdigest()
    answers: dict[str, Sequence[Answer]] = {
        "GET /status": [status(config)],
        "POST /edit": known,
        "POST /check": [http(200, {**found, "users": 2, "sha256": digest})],
        "POST /reload": [RELOADED],
        "POST /drain": [drained()],
    }
    moved = proxy_of(fakes, answers, told=told.append).move(ALICE, "reject", 5.0, interruptible=True)
    named = "with this move is in force: 1 user moved from old to new: bob@example.org"
    assert moved.quiet and named in moved.text
    assert len(told) == 1 and told[0].startswith(f"{ALICE}: ") and named in told[0]
    assert fakes[0].bodies("POST /check") == [{"path": config, "except": [ALICE]}]
    assert [body["accept"] for body in fakes[0].bodies("POST /edit")] == [False, True]


def test_a_move_that_another_process_answered_is_done_again(fakes: list[FakeControl], config: str) -> None:
    """The one of before may still deliver by its old routes: it is waited for, if it is there."""
    fake_answers: dict[str, Sequence[Answer]] = {
        "GET /status": [status(config, 999_999_999), status(config, 999_999_999), status(config, 2, "b")],
        "POST /reload": [RELOADED],
        "POST /drain": [drained("b")],
    }
    told: list[str] = []
    proxy = proxy_of(fakes, fake_answers, told=told.append)
    assert proxy.move(ALICE, "reject", 5.0, interruptible=True).quiet
    assert len(fakes[0].bodies("POST /reload")) == 2 and "it was away" in told[0]


def test_a_refusal_is_final(fakes: list[FakeControl], config: str) -> None:
    refused = http(409, {"error": "refused: 1 error; nothing was changed", "errors": ["c.yml:3: bad"]})
    proxy = proxy_of(fakes, {"GET /status": [status(config)], "POST /reload": [refused]})
    with pytest.raises(ProxyError, match=r"refused: 1 error.*put back as it was.*c\.yml:3: bad"):
        proxy.move(ALICE, "reject", 5.0, interruptible=True)
    assert proxy.route_in_file(ALICE) == "old"


def test_a_long_drain_is_interrupted(fakes: list[FakeControl], config: str) -> None:
    flight = {
        "number": 1, "session": "x", "backend": "old", "address": "/o", "recipients": [ALICE], "count": 1,
        "sender": "s@x", "phase": "final dot", "seconds": 1.0, "octets": 9,
    }  # fmt: skip
    cancel = Cancel()
    proxy = proxy_of(
        fakes,
        {"GET /status": [status(config)], "POST /reload": [RELOADED],
         "POST /drain": [drained(done=False, waiting=[flight])]},
        cancel=cancel,
    )  # fmt: skip
    threading.Timer(0.5, cancel.set).start()
    began = time.monotonic()
    with pytest.raises(Interrupted):
        proxy.move(ALICE, "reject", 30.0, interruptible=True)
    assert time.monotonic() - began < SOON
    assert not proxy.move(ALICE, "reject", 0.5, interruptible=False).quiet, "and not where it must not be"
    cancel.close()


def test_uncertain_deliveries_and_a_crash_are_lines(fakes: list[FakeControl], config: str) -> None:
    record = {
        "time": "2026-11-23T23:09:23.123Z", "user": ALICE, "recipient": ALICE, "backend": "old", "address": "/run/x",
        "sender": "s@x", "message_id": "<1@x>", "size": 2113, "session": "4ab8b601", "reason": "it closed",
    }  # fmt: skip
    crash = {"started": "2026", "seconds": 3.0, "worker": None}
    proxy = proxy_of(
        fakes,
        {"GET /status": [status(config)], "POST /reload": [RELOADED],
         "POST /drain": [drained(uncertain=[record], after_crash=crash)]},
    )  # fmt: skip
    moved = proxy.move(ALICE, "reject", 5.0, interruptible=True)
    assert moved.quiet and len(moved.uncertain) == 2
    assert "Message-ID <1@x>: it closed" in moved.uncertain[0] and "after one that had died" in moved.uncertain[1]


def test_receipts_and_a_process_that_is_about_to_end(fakes: list[FakeControl]) -> None:
    row = {"backend": "new", "first": 1.0, "last": 2, "count": 3, "uncertain": 0}
    full = {"users": {ALICE: {"delivered": [row], "deferred": [{"queue_id": "4B", "why": "x", "last": 1.0}],
                               "unnamed": [{"count": 2, "first": 1.0, "last": 3.0}]}}}  # fmt: skip
    proxy = proxy_of(fakes, {"POST /receipts": [http(200, {"receipts": "/r"}), http(503, {"error": "busy"}),
                                                http(200, full)]})  # fmt: skip
    seen = proxy.receipts(ALICE)
    assert seen.deferred == ("4B",) and seen.on("old") is None
    assert seen.unnamed_since(1.0) == 2
    new = seen.on("new")
    assert new is not None and (new.first, new.last, new.count) == (1.0, 2.0, 3)


def test_who_is_away_is_waited_for_and_not_for_ever(tmp_path: Path) -> None:
    told: list[str] = []
    proxy = Proxy(ControlClient(str(tmp_path / "ctl")), patience=0.6, told=told.append)
    began = time.monotonic()
    with pytest.raises(ProxyError, match="there is no such socket"):
        proxy.route(ALICE)
    assert 0.5 < time.monotonic() - began < SOON and len(told) == 1


@pytest.mark.parametrize("code, text", [(550, "is the account missing there"), (450, "new said 450"), (421, "said")])
def test_a_preflight_that_says_no(fakes: list[FakeControl], code: int, text: str) -> None:
    answer = {"backend": "new", "address": "/n", "refused": None,
              "replies": [{"recipient": ALICE, "code": code, "reply": f"{code} 5.1.1 no"}]}  # fmt: skip
    proxy = proxy_of(fakes, {"POST /preflight": [http(200, answer)]})
    with pytest.raises(ProxyError, match=text):
        proxy.preflight("new", ALICE)


def test_a_full_mailbox_is_no_reason(fakes: list[FakeControl]) -> None:
    answer = {"backend": "new", "address": "/n", "refused": None,
              "replies": [{"recipient": ALICE, "code": 452, "reply": "452 4.2.2 full"}]}  # fmt: skip
    assert "is there room?" in proxy_of(fakes, {"POST /preflight": [http(200, answer)]}).preflight("new", ALICE)


@pytest.mark.parametrize("user", ["alice", "a b", 'a"b', "a\\b", "a;b", "$(x)", "-x", "a..b", "<a>", "a@b", "ü"])
def test_an_address_is_quoted_where_rcpt_needs_it(user: str) -> None:
    for address in (f"{user}@example.org", user):
        path = quoted(address)
        parsed = parse_rcpt(b"TO:<" + path.encode() + b">", smtputf8=True)
        assert isinstance(parsed, Recipient), path
        local_part, at, domain = address.rpartition("@")
        assert (parsed.local_part, parsed.domain) == ((local_part, domain) if at else (address, "")), path


def test_what_was_deferred_without_an_id() -> None:
    seen = UserReceipts((), (), ((3, 100.0, 200.0), (7, 10.0, 120.0), (5, 10.0, 90.0)))
    assert seen.unnamed_since(100.0) == 3 + 1, "of those before 100, one at least came after"
    assert seen.unnamed_since(0.0) == 15 and UserReceipts().unnamed_since(0.0) == 0
