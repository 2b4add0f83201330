"""Each resource of the control socket, asked over the socket of the real process in front of scripted backends."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.backend import FakeBackend
from tests.support.client import LmtpClient
from tests.support.control import Control, ControlConnection, add_control
from tests.support.delays import Delays
from tests.support.patience import SOON
from tests.support.proxy import BOTH_MODES, ProxyProcess, config_of
from tests.support.script import HEALTHY, Await, Close, Pause, Script, say

TIME = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d\d\dZ")
USERS = {
    "alice@example.org": "old",
    "bob@example.org": "new",
    "carol@example.org": "reject",
    "dave@example.org": "hold",
    "@example.net": "new",
    "u001": "old",
}


@dataclass
class Served:
    """Two stores behind a proxy with a control socket."""

    old: FakeBackend
    new: FakeBackend
    proxy: ProxyProcess
    control: Control

    def write_users(self, **users: str) -> None:
        """Changes the table in the file, and nothing else."""
        self.proxy.config["users"].update(users)
        self.proxy.write_config()


@pytest.fixture
def served() -> Iterator[Served]:
    with FakeBackend() as old, FakeBackend(transport="tcp") as new:
        proxy = ProxyProcess(config_of({"old": old, "new": new}, dict(USERS), hold_timeout=12.5))
        add_control(proxy)
        with proxy:
            yield Served(old, new, proxy, Control(proxy))


def send_dot(proxy: ProxyProcess, *recipients: str, sender: str = "s@x") -> LmtpClient:
    """A client that has sent a whole message and waits for the final replies."""
    client = proxy.client(timeout=20)
    outcome = client.envelope(sender, recipients)
    assert outcome.data is not None and outcome.data.code == 354, outcome
    client.send(b"Subject: x\r\nMessage-ID: <1@x>\r\n\r\nx\r\n.\r\n")
    return client


def eventually(condition: Callable[[], bool], seconds: float = SOON) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.01)


# --- what is ---------------------------------------------------------------------------------------------------------


@BOTH_MODES
def test_status(served: Served) -> None:
    with served.proxy.client() as client:
        client.deliver("s@x", ["alice@example.org", "bob@example.org", "carol@example.org"])
        status = served.control.get("/status")
    with open(served.proxy.config_path, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    config = status.pop("config")
    assert (config["path"], config["sha256"]) == (served.proxy.config_path, digest)
    assert TIME.fullmatch(config["modified"]) and TIME.fullmatch(config["loaded"])
    backends = {backend["name"]: backend for backend in status.pop("backends")}
    assert (backends["old"]["sent"], backends["new"]["sent"]) == (1, 1)
    assert TIME.fullmatch(status.pop("started"))
    assert re.fullmatch("[0-9a-f]{16}", status.pop("instance"))
    assert 0 < status.pop("uptime") < 60
    assert len(status.pop("workers")) in (0, served.proxy.workers)
    assert status.pop("torn", None) is None
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", status.pop("version"))
    assert status["log"].pop("waiting") >= 0
    assert status == {
        "pid": served.proxy.pid,
        "generation": 1,
        "socket": served.proxy.address,
        "sockets": [served.proxy.address],
        "metrics": None,
        "reload": None,
        "reloading": None,
        "stopping": False,
        "after_crash": None,
        "longest_delivery": 500,
        "in_force": digest,
        "table": None,
        "sessions": 1,
        "held": 0,
        "in_flight": {"envelope": 0, "data": 0, "commit": 0, "final dot": 0},
        "uncertain": 0,
        "uncertain_log": None,
        "log": {"to": "standard error", "trouble": "", "lost": 0},
        "users": len(USERS),
        "ignore_domain": False,
        "fallback_backend": None,
        "default_domain": None,
        "users_on": {"old": 2, "new": 2, "reject": 1, "hold": 1},
    }


def test_what_there_is_to_ask_and_what_is_in_force(served: Served) -> None:
    resources = served.control.get("/")["resources"]
    assert resources["/status"] == ["GET"] and resources["/drain"] == ["POST"] and resources["/"] == ["GET"]
    assert {"/config", "/lookup", "/receipts", "/preflight"} <= resources.keys()
    document = served.control.get("/config")
    assert document["config"]["socket"] == served.proxy.address and document["generation"] == 1
    assert document["backends"].keys() == {"old", "new"} and "users" not in document


def test_status_tells_how_the_last_reload_ended(served: Served) -> None:
    served.write_users(u001="new")
    served.proxy.signal_reload()
    last = served.control.get("/status")["reload"]
    assert TIME.fullmatch(last.pop("time"))
    changes = last.pop("changes")
    assert last == {"ok": True, "generation": 2}
    assert "1 moved" in changes
    served.write_users(u001="nowhere")
    served.proxy.signal_reload()
    status = served.control.get("/status")
    assert status["generation"] == 2
    last = status["reload"]
    assert TIME.fullmatch(last.pop("time"))
    assert last["ok"] is False and len(last["errors"]) == 1 and "nowhere" in last["errors"][0]


def test_backends_are_unused_up_or_down(served: Served) -> None:
    def states() -> list[tuple[str, str]]:
        return [(backend["name"], backend["state"]) for backend in served.control.get("/backends")["backends"]]

    assert states() == [("old", "unused"), ("new", "unused")]
    served.new.script = Script(greeting=(Close(),))
    with served.proxy.client() as client:
        client.deliver("s@x", ["alice@example.org", "bob@example.org"])
        client.quit()
    assert states() == [("old", "up"), ("new", "down")]
    backends = served.control.get("/backends")["backends"]
    assert backends[1]["trouble"].startswith("it closed the connection")
    assert (backends[1]["failures"], backends[1]["connections"], backends[1]["sent"]) == (1, 0, 0)
    assert backends[0]["trouble"] is None
    assert (backends[0]["address"], backends[0]["max_connections"]) == (served.old.path, 20)
    assert (backends[0]["connections"], backends[0]["sent"], backends[0]["users"]) == (1, 1, 2)


@BOTH_MODES
def test_sessions_and_flights(served: Served) -> None:
    go = threading.Event()
    served.old.script = Script(final=(Await(go), *say("250 2.0.0 stored")))
    with (
        served.proxy.client() as idle,
        send_dot(served.proxy, "alice@example.org", "u001", sender="boss@x") as committed,
        served.proxy.client() as amid,
    ):
        assert amid.envelope("t@x", ["bob+tag@example.org"]).data is not None
        amid.send(b"x" * 1000)
        eventually(lambda: served.control.get("/status")["in_flight"]["final dot"] == 1)
        eventually(lambda: sum(flight["octets"] for flight in served.control.get("/inflight")["in_flight"]) > 1000)
        # By their senders: two workers look at their clocks one after the other, so the order is not sure.
        flights = sorted(served.control.get("/inflight")["in_flight"], key=lambda flight: str(flight["sender"]))
        first, second = flights
        assert first["recipients"] == ["alice@example.org", "u001"]
        assert (first["sender"], first["phase"], first["backend"]) == ("boss@x", "final dot", "old")
        assert (first["address"], first["number"] > 0, first["count"]) == (served.old.path, True, 2)
        assert second["recipients"] == ["bob+tag@example.org"]
        assert (second["phase"], second["backend"]) == ("data", "new")
        assert 0 <= second["seconds"] < 20
        sessions = sorted(served.control.get("/sessions")["sessions"], key=lambda session: session["sender"] or "")
        assert [session["state"] for session in sessions] == ["idle", "final dot", "data"]
        assert [session["sender"] for session in sessions] == [None, "boss@x", "t@x"]
        assert [session["recipients"] for session in sessions] == [0, 2, 1]
        assert sessions[1]["session"] == first["session"]
        go.set()
        assert committed.reply().positive and committed.reply().positive
        idle.quit()
    eventually(lambda: served.control.get("/inflight") == {"in_flight": []})


@pytest.mark.parametrize(
    "address, expected",
    [
        ("alice@example.org", (["alice@example.org", "@example.org"], "alice@example.org", "users", "old")),
        ("<Alice+x@Example.org>", (["alice+x@example.org", "alice@example.org", "@example.org"], "alice@example.org",
                                   "users", "old")),
        ("any@example.net", (["any@example.net", "@example.net"], "@example.net", "users", "new")),
        ('"u001"', (["u001"], "u001", "users", "old")),
        ("carol@example.org", (["carol@example.org", "@example.org"], "carol@example.org", "users", "reject")),
        ("dave@example.org", (["dave@example.org", "@example.org"], "dave@example.org", "users", "hold")),
        ("stranger", (["stranger"], None, None, None)),
    ],
)  # fmt: skip
def test_lookup(pair_free: Served, address: str, expected: tuple[Any, ...]) -> None:
    found = pair_free.control.get(f"/lookup?address={quote(address)}")
    assert pair_free.control.get(f"/lookup?address={address}") == found  # as an operator writes it for curl
    assert found["address"] == address.strip("<>")
    assert (found["keys"], found["hit"], found["source"], found["backend"]) == expected
    with open(pair_free.proxy.config_path, encoding="utf-8") as file:
        lines = file.read().splitlines()
    if found["hit"] is None:
        assert found["line"] is None
    else:
        assert lines[found["line"] - 1].strip().startswith((found["hit"], f'"{found["hit"]}"'))
    answers = {
        "old": f"what old[{pair_free.old.path}] answers",
        "new": f"what new[127.0.0.1:{getattr(pair_free.new, 'port', 0)}] answers",
        "reject": "450 4.2.1 Mailbox is being moved, try again later",
        "hold": "parked for up to 12.5 s, then 450 4.2.1 Mailbox is being moved, try again later",
        None: "450 4.1.1 No backend is known for this user (it has no domain, and config.default_domain is not set)",
    }
    assert found["answer"] == answers[found["backend"]]


@pytest.fixture(scope="module")
def pair_free(processes: None) -> Iterator[Served]:
    """One for all tests that change nothing."""
    with FakeBackend() as old, FakeBackend(transport="tcp") as new:
        proxy = ProxyProcess(config_of({"old": old, "new": new}, dict(USERS), hold_timeout=12.5))
        add_control(proxy)
        with proxy:
            yield Served(old, new, proxy, Control(proxy))


@pytest.mark.parametrize("query", ["", "?address=", "?address=a%20b", "?address=%3C%3E", "?address=a@b@c", "?user=a",
                                   "?address=a&address=b", "?address=%FF", "?address=a%0D%0AQUIT",
                                   "?address=" + "a" * 3000])  # fmt: skip
def test_lookup_takes_what_rcpt_takes(pair_free: Served, query: str) -> None:
    answer = pair_free.control.ask("GET", f"/lookup{query}")
    assert answer.code == 400
    assert isinstance(answer.document["error"], str) and "\n" not in answer.document["error"]


def test_lookup_says_that_a_backend_is_down_and_knows_the_fallback(served: Served) -> None:
    served.proxy.config["config"]["fallback_backend"] = "old"
    served.proxy.reload()
    served.old.script = Script(greeting=say("554 5.3.2 not today"))
    with served.proxy.client() as client:
        client.deliver("s@x", ["alice@example.org"])
        client.quit()
    found = served.control.get("/lookup?address=stranger@x")
    assert (found["hit"], found["line"], found["source"], found["backend"]) == (None, None, "fallback_backend", "old")
    # Of several workers one is asked, which need not have met it yet.
    down = "; it is down: greeting: 554 5.3.2 not today" if served.proxy.workers == 1 else ".*"
    assert re.fullmatch(rf"what old\[.*\] answers{down}", found["answer"])


# --- reload and check ------------------------------------------------------------------------------------------------


@BOTH_MODES
def test_reload_returns_after_the_swap(served: Served) -> None:
    served.write_users(u001="new")
    answer = served.control.post("/reload")
    assert answer["generation"] == 2
    assert "1 moved" in answer["changes"] and answer["restart"] == [] and 0 < answer["seconds"] < 10
    assert served.control.get("/lookup?address=u001")["backend"] == "new"
    served.proxy.config["config"]["max_clients"] = 5
    served.proxy.write_config()
    assert served.control.post("/reload", {})["restart"] == ["config.max_clients"]
    assert served.control.ask("POST", "/reload", {"now": True}).code == 400


@BOTH_MODES
def test_a_reload_that_is_refused_says_all_errors(served: Served) -> None:
    served.proxy.config["config"]["hold_limit"] = "many"
    served.write_users(u001="nowhere")
    answer = served.control.ask("POST", "/reload")
    assert answer.code == 409
    assert answer.document["error"] == "refused: 2 errors; nothing was changed"
    assert len(answer.document["errors"]) == 2
    assert all(error.startswith(served.proxy.config_path) for error in answer.document["errors"])
    assert served.control.get("/status")["generation"] == 1


@BOTH_MODES
def test_check_tells_what_would_change_and_changes_nothing(served: Served) -> None:
    config = served.proxy.config
    config["config"]["ignoreDomain"] = False
    config["config"]["hostname"] = "other.example.org"
    config["backends"]["third"] = {"socket": "/run/third"}
    config["backends"]["old"] = {**served.old.config, "max_connections": 3}
    config["users"] = {"alice@example.org": "new", "bob@example.org": "new", "carol@example.org": "third"}
    config["users"] |= {f"u{number}@x": "third" for number in range(50)}
    served.proxy.write_config()
    answer = served.control.post("/check", {"path": served.proxy.config_path})
    assert answer["errors"] == [] and answer["users"] == 53
    (added,) = answer["added"]
    assert (added["to"], added["count"], len(added["users"])) == ("third", 50, 20)
    assert sorted((group["from"], group["users"]) for group in answer["removed"]) == [
        ("hold", ["dave@example.org"]), ("new", ["@example.net"]), ("old", ["u001"]),
    ]  # fmt: skip
    assert answer["moved"] == [
        {"from": "old", "to": "new", "count": 1, "users": ["alice@example.org"]},
        {"from": "reject", "to": "third", "count": 1, "users": ["carol@example.org"]},
    ]
    assert answer["backends"] == [{"name": "old", "change": "changed"}, {"name": "third", "change": "added"}]
    assert answer["config"] == ["config.hostname"]
    status = served.control.get("/status")
    assert (status["generation"], status["reload"], status["users"]) == (1, None, len(USERS))


def test_check_of_a_file_that_does_not_load(pair_free: Served) -> None:
    errors = pair_free.control.post("/check", {"path": "/nowhere/at/all.yml"})["errors"]
    assert len(errors) == 1 and "/nowhere/at/all.yml" in errors[0]
    for path in ("relative.yml", "", 5, "/a\0b"):
        assert pair_free.control.ask("POST", "/check", {"path": path}).code == 400


# --- drain -----------------------------------------------------------------------------------------------------------


def test_a_drain_returns_at_once_when_nothing_is_in_flight(served: Served) -> None:
    answer = served.control.post("/drain", {"users": ["alice@example.org", "@example.net", "nobody"]})
    assert answer["done"] is True and answer["waiting"] == [] and answer["uncertain"] == []
    assert answer["routes"] == {"alice@example.org": "old", "@example.net": "new", "nobody": None}
    assert answer["generation"] == 1 and answer["reload"] is None
    assert answer["instance"] == served.control.get("/status")["instance"]


@BOTH_MODES
def test_a_drain_waits_for_exactly_the_deliveries_past_their_dot(served: Served) -> None:
    go = threading.Event()
    served.old.script = Script(final=(Await(go), *say("250 2.0.0 stored")))
    with (
        send_dot(served.proxy, "alice+tag@example.org") as slow,
        served.proxy.client() as amid,
        ThreadPoolExecutor(1) as worker,
    ):
        assert amid.envelope("amid@x", ["alice@example.org"]).data is not None  # in DATA: not waited for
        eventually(lambda: served.control.get("/status")["in_flight"]["final dot"] == 1)
        assert served.control.post("/drain", {"users": ["u001", "bob@example.org"]})["done"] is True, "others' mail"
        answer = let_go_amid(worker.submit(served.control.post, "/drain", {"users": ["ALICE@example.org"]}), go)
        assert answer["done"] is True and answer["waiting"] == [] and answer["waited"] >= 0.7
        assert slow.reply().positive, "the drain ended before the delivery"
    go.clear()
    with send_dot(served.proxy, "u001") as slow, ThreadPoolExecutor(1) as worker:
        eventually(lambda: served.control.get("/status")["in_flight"]["final dot"] == 1)
        assert let_go_amid(worker.submit(served.control.post, "/drain", {"all": True}), go)["done"] is True
        assert slow.reply().positive


def let_go_amid(drain: Future[Any], go: threading.Event) -> Any:
    """The answer to a drain that waits for what `go` ends. Sets that when the drain has waited for a second."""
    time.sleep(1.0)
    assert not drain.done(), "it did not wait"
    go.set()
    return drain.result(SOON)


@BOTH_MODES
def test_a_drain_that_times_out_can_be_continued(served: Served) -> None:
    go = threading.Event()
    served.old.script = Script(final=(Await(go), *say("250 2.0.0 stored")))
    with send_dot(served.proxy, "alice@example.org", sender="first@x") as one:
        assert served.old.wait_for(lambda: any(seen.dotted for seen in served.old.transactions("first@x")))
        first = served.control.post("/drain", {"users": ["alice@example.org"], "timeout": 0.3})
        assert first["done"] is False and 0.3 <= first["waited"] < SOON
        (flight,) = first["waiting"]
        assert (flight["sender"], flight["phase"]) == ("first@x", "final dot")
        assert served.proxy.workers > 1 or flight["number"] <= first["until"]
        # What enters later under the same route is not waited for: a drain does not starve.
        with send_dot(served.proxy, "alice@example.org", sender="second@x") as two:
            assert served.old.wait_for(lambda: any(seen.dotted for seen in served.old.transactions("second@x")))
            again = {"users": ["alice@example.org"], "timeout": 0.3, "until": first["until"]}
            assert [flight["sender"] for flight in served.control.post("/drain", again)["waiting"]] == ["first@x"]
            one.reset()  # its client's going away ends no delivery past its dot
            assert served.control.post("/drain", again)["done"] is False
            go.set()
            answer = served.control.post("/drain", {**again, "timeout": 5})
            assert answer["done"] is True and answer["until"] == first["until"]
            assert two.reply().positive


@BOTH_MODES
def test_a_drain_does_not_starve_under_traffic(served: Served) -> None:
    served.old.script = Script(final=(Pause(0.05), *say("250 2.0.0 stored")))
    stop = threading.Event()

    def deliver(number: int) -> None:
        with served.proxy.client() as client:
            while not stop.is_set():
                assert client.deliver(f"{number}@x", ["alice@example.org"]).verdict(0).positive

    with ThreadPoolExecutor(8) as workers:
        running = [workers.submit(deliver, number) for number in range(8)]
        try:
            time.sleep(0.2)
            for _ in range(10):
                answer = served.control.post("/drain", {"users": ["alice@example.org"]})
                assert answer["done"] is True and answer["waited"] < SOON
        finally:
            stop.set()
        for worker in running:
            worker.result()


@BOTH_MODES
def test_an_edit_a_signal_and_a_drain_are_exact(served: Served) -> None:
    """30 times: after the drain's answer the store that was left sees no dot of the user, until they are sent back."""
    served.old.script = served.new.script = Script(final=(Pause(0.02), *say("250 2.0.0 stored")))
    served.old.keep_body = served.new.keep_body = False
    stop = threading.Event()
    quiet: list[tuple[FakeBackend, float, float]] = []

    def deliver(number: int) -> int:
        count = 0
        with served.proxy.client() as client:
            while not stop.is_set():
                code = client.deliver(f"{number}@x", ["u001"]).verdict(0).code
                assert code in (250, 451), code
                count += code == 250
        return count

    with ThreadPoolExecutor(6) as workers:
        running = [workers.submit(deliver, number) for number in range(6)]
        try:
            for turn in range(30):
                left, target = (served.old, "new") if turn % 2 == 0 else (served.new, "old")
                time.sleep(0.01)
                served.write_users(u001=target)
                served.proxy.signal(signal.SIGUSR1)
                answer = served.control.post("/drain", {"users": ["u001"]})
                since = time.monotonic()
                assert answer["done"] is True and answer["routes"] == {"u001": target}
                assert answer["generation"] == turn + 2
                time.sleep(0.05)
                quiet.append((left, since, time.monotonic()))
        finally:
            stop.set()
        assert sum(worker.result() for worker in running) > 100
    for store, since, until in quiet:
        dots = [seen.dot_at for seen in store.transactions() if seen.dot_at is not None]
        assert dots
        assert not [dot - since for dot in dots if since < dot < until], "a dot after the drain"


@BOTH_MODES
def test_a_drain_sees_the_signal_that_was_sent_before_it(served: Served) -> None:
    """Over a connection that is there already the request is no slower than the signal."""
    connection = ControlConnection(served.control.path)
    connection.ask("GET", "/status")
    for turn in range(100):
        served.proxy.signal(signal.SIGUSR1)
        answer = connection.ask("POST", "/drain", {"users": ["u001"]}).document
        assert answer["done"] is True and answer["generation"] == turn + 2
    connection.close()


def test_a_drain_while_the_file_is_bad_says_so(served: Served) -> None:
    served.write_users(u001="nowhere")
    served.proxy.signal(signal.SIGUSR1)
    answer = served.control.post("/drain", {"users": ["u001"]})
    assert answer["done"] is True and answer["routes"] == {"u001": "old"} and answer["generation"] == 1
    assert answer["reload"]["ok"] is False and "nowhere" in answer["reload"]["errors"][0]


@BOTH_MODES
def test_an_uncertain_delivery_is_reported(served: Served) -> None:
    served.old.script = Script(final=(Pause(0.2), Close()))
    with send_dot(served.proxy, "alice@example.org") as client:
        answer = served.control.post("/drain", {"all": True})
        assert client.reply().text.startswith("451 4.4.2")
    (record,) = served.control.get("/uncertain")["uncertain"]
    assert record["recipient"] == record["user"] == "alice@example.org" and record["backend"] == "old"
    assert answer["done"] is True and answer["uncertain"] == [record]
    assert served.control.post("/drain", {"users": ["alice@example.org"]})["uncertain"] == [record]
    assert served.control.post("/drain", {"users": ["bob@example.org"]})["uncertain"] == []
    assert served.control.get("/uncertain")["log"] is None
    assert served.control.get("/status")["uncertain"] == 1


@pytest.mark.parametrize(
    "document",
    [
        {}, {"users": []}, {"users": "alice"}, {"users": [""]}, {"users": [1]}, {"users": ["a"] * 200_001},
        {"all": False}, {"all": 1}, {"users": ["a"], "all": True}, {"users": ["a"], "all": False},
        {"all": True, "timeout": -1}, {"all": True, "timeout": 601}, {"all": True, "timeout": "5"},
        {"all": True, "timeout": True}, {"all": True, "until": -1}, {"all": True, "until": 1.5},
        {"all": True, "until": None}, {"all": True, "unti": 5}, [], "all", None, 5,
        b"", b"{", b"\xff{}", b'{"all": true, "all": true}', b'{"all": true, "timeout": NaN}',
        b"[" * 100_000, b'{"all": ' + b"9" * 10_000 + b"}", b'{"users": ["\\ud800"], "timeout": []}',
    ],
    ids=lambda document: repr(document)[:40],
)  # fmt: skip
@BOTH_MODES
def test_a_drain_that_makes_no_sense(pair_free: Served, document: object) -> None:
    answer = pair_free.control.ask("POST", "/drain", b"null" if document is None else document)
    assert answer.code == 400, answer
    assert isinstance(answer.document["error"], str) and answer.document["error"].isprintable()


def test_odd_users_are_only_users(pair_free: Served) -> None:
    users = ["\ud800", "a\r\nb", "\\", "@", "x" * 10_000, "é@exämple.org"]
    answer = pair_free.control.post("/drain", {"users": users})
    assert answer["done"] is True and set(answer["routes"]) == set(users)
    line = pair_free.proxy.wait_log(r"control: drain \\ud800, a\\r\\nb, \\ and 3 more by uid")
    assert len(line) < 400


def test_a_domain_cannot_be_drained_where_it_is_no_part_of_a_key(served: Served) -> None:
    served.proxy.config["config"]["ignoreDomain"] = True
    served.proxy.config["users"] = {"u001": "old"}
    assert "active" in served.proxy.reload()
    assert served.control.post("/drain", {"users": ["u001@anything"]})["routes"] == {"u001@anything": "old"}
    assert served.control.ask("POST", "/drain", {"users": ["u001", "@example.org"]}).code == 400


# --- nothing waits ---------------------------------------------------------------------------------------------------


def waits(served: Served, stop: threading.Event) -> Delays:
    """Many requests, on one connection."""
    delays = Delays(served.proxy)
    connection = ControlConnection(served.control.path)
    try:
        while not stop.is_set():
            with delays.one():
                assert connection.ask("GET", "/lookup?address=u001").code == 200
            time.sleep(0.002)
    finally:
        connection.close()
    return delays


def test_a_drain_of_100000_users_holds_nobody_up(served: Served) -> None:
    body = json.dumps({"users": [f"user{number:06d}@example.org" for number in range(100_000)]}).encode()
    stop = threading.Event()
    with ThreadPoolExecutor(1) as worker:
        watch = worker.submit(waits, served, stop)
        try:
            begun = time.monotonic()
            answer = served.control.post("/drain", body)
            took = time.monotonic() - begun
        finally:
            stop.set()
        delays = watch.result()
    assert answer["done"] is True and answer["routes"] == {}
    longest = max(delays.clock)
    print(f"a drain of 100,000 users took {took:.3f} s, the longest wait of another client was {longest:.3f} s")
    assert took < SOON
    delays.check(0.25)  # some 0.02 s


def test_a_slow_reload_makes_no_other_request_wait(served: Served) -> None:
    served.proxy.config["users"].update({f"user{number}@x": "old" for number in range(50_000)})
    served.proxy.write_config()
    with ThreadPoolExecutor(2) as workers:
        reload = workers.submit(served.control.post, "/reload")
        time.sleep(0.1)
        drain = workers.submit(served.control.post, "/drain", {"users": ["u001"]})
        asked = 0
        while not reload.done():
            assert served.control.get("/status")["users"] in (len(USERS), len(USERS) + 50_000)
            asked += 1
        assert asked > 3
        assert reload.result(SOON)["generation"] == 2
        assert drain.result(SOON)["generation"] == 2, "the drain did not wait for the reload under way"


def test_a_drain_ends_in_time_even_if_a_reload_does_not(served: Served) -> None:
    served.control.post("/drain", {"users": ["u001"]})  # a first client waits for imports, longer than a reload takes
    served.proxy.config["users"].update({f"user{number}@x": "old" for number in range(50_000)})
    served.proxy.write_config()
    served.proxy.signal(signal.SIGUSR1)
    answer = served.control.post("/drain", {"users": ["u001"], "timeout": 0.01})
    assert answer["done"] is False and answer["waited"] < SOON and answer["generation"] == 1
    again = served.control.post("/drain", {"users": ["u001"], "until": answer["until"]})
    assert again["done"] is True and again["generation"] == 2


# --- HTTP ------------------------------------------------------------------------------------------------------------


@BOTH_MODES
@pytest.mark.parametrize(
    "method, resource, code, allow",
    [
        ("POST", "/", 405, "GET, HEAD"),
        ("GET", "/metrics/", 404, None),
        ("POST", "/metrics", 405, "GET, HEAD"),
        ("GET", "/status/", 404, None),
        ("GET", "/%00%0a%ff", 404, None),
        ("POST", "/status", 405, "GET, HEAD"),
        ("DELETE", "/status", 405, "GET, HEAD"),
        ("GET", "/reload", 405, "POST"),
        ("HEAD", "/drain", 405, "POST"),
        ("PUT", "/drain", 405, "POST"),
    ],
)
def test_what_there_is_not(pair_free: Served, method: str, resource: str, code: int, allow: str | None) -> None:
    answer = pair_free.control.ask(method, resource)
    assert (answer.code, answer.header.get("allow")) == (code, allow)
    assert method == "HEAD" or isinstance(answer.document["error"], str)


@pytest.mark.parametrize("resource", ["/drain", "/preflight", "/check"])
def test_a_post_needs_a_body(pair_free: Served, resource: str) -> None:
    connection = ControlConnection(pair_free.control.path)
    connection.putrequest("POST", resource)
    connection.endheaders()
    assert connection.getresponse().status == 411
    connection.close()


def test_head_is_get_without_a_body(pair_free: Served) -> None:
    connection = ControlConnection(pair_free.control.path)
    for _ in range(2):
        head = connection.ask("HEAD", "/sessions")
        assert (head.code, head.document) == (200, None)
        got = connection.ask("GET", "/sessions")
        assert got.document is not None and got.header["content-length"] == head.header["content-length"]
    connection.close()


@BOTH_MODES
def test_posts_are_logged_with_the_uid_of_the_peer(pair_free: Served) -> None:
    pair_free.control.post("/drain", {"users": ["alice@example.org"]})
    pair_free.proxy.wait_log(rf"control: drain alice@example\.org by uid {os.getuid()}$")
    pair_free.control.ask("POST", "/no/%1b[31m")
    pair_free.proxy.wait_log(rf"control: POST /no.*by uid {os.getuid()}: there is no /no")
    assert "\x1b" not in pair_free.proxy.log()


@pytest.mark.skipif(not os.path.exists("/usr/bin/curl"), reason="curl is not installed")
@pytest.mark.parametrize("options", [[], ["-0"], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect: 100-continue"]])
def test_it_is_usable_with_curl(pair_free: Served, options: list[str]) -> None:
    command = ["/usr/bin/curl", "-sS", "-w", " %{http_code}", *options, "--unix-socket", pair_free.control.path]
    done = subprocess.run([*command, "-d", '{"all": true}', "http://x/drain"], capture_output=True, timeout=10)
    assert done.stderr == b"" and done.stdout.startswith(b'{"done": true') and done.stdout.endswith(b" 200")
    done = subprocess.run(
        [*command[:4], *command[-2:], "http://x/lookup?address=u001+x"], capture_output=True, timeout=10
    )
    assert b'"hit": "u001"' in done.stdout


# --- the socket ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("permissions, mode", [(None, 0o600), ("0660", 0o660)])
def test_the_mode_of_the_socket(permissions: str | None, mode: int) -> None:
    with FakeBackend() as old:
        proxy = ProxyProcess(config_of({"old": old}))
        path = add_control(proxy, **({} if permissions is None else {"permissions": permissions}))
        with proxy:
            status = os.stat(path)
            assert stat.S_ISSOCK(status.st_mode)
            assert (stat.S_IMODE(status.st_mode), status.st_uid) == (mode, os.getuid())
            assert Control(proxy).get("/status")["generation"] == 1
        assert not os.path.exists(path)


@BOTH_MODES
def test_a_stop_does_not_wait_for_a_drain(served: Served) -> None:
    served.old.script = Script(final=(Pause(1.0), *say("250 2.0.0 stored")))
    with send_dot(served.proxy, "alice@example.org") as client, ThreadPoolExecutor(1) as worker:
        eventually(lambda: served.control.get("/status")["in_flight"]["final dot"] == 1)
        drain = worker.submit(served.control.post, "/drain", {"all": True})
        served.proxy.wait_log("control: drain all")
        begun = time.monotonic()
        assert served.proxy.stop() == 0
        assert time.monotonic() - begun < SOON
        assert client.reply().positive
        assert drain.result(5)["done"] is True, "what was in flight ended, and so did the drain"
    served.old.script = HEALTHY
