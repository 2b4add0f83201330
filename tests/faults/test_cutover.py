"""A user is moved while mail is on its way: what may still reach the old store, what must not, and after how long."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGUSR1

import pytest

from tests.support.backend import FakeBackend
from tests.support.client import SMALL_BODY, LmtpClient
from tests.support.ctl import Run, ctl, end_ctl, start_ctl
from tests.support.patience import SOON
from tests.support.proxy import BOTH_MODES, ProxyProcess, config_of
from tests.support.script import Await, BodyTrigger, Close, Hang, Pause, Reset, Script, Send, Stall, say

ALICE = "alice@example.org"


@dataclass
class Site:
    """Two stores, the proxy with its control socket, alice and bob on the old one."""

    old: FakeBackend
    new: FakeBackend
    proxy: ProxyProcess
    control: str
    uncertain_log: Path

    def ctl(self, *arguments: str) -> Run:
        return ctl("--socket", self.control, *arguments)

    def in_flight(self, phase: str) -> bool:
        """Waits until one delivery is in `phase`."""
        deadline = time.monotonic() + SOON
        while time.monotonic() < deadline:
            flights = self.ctl("--json", "inflight").document["in_flight"]
            if [flight["phase"] for flight in flights] == [phase]:
                return True
        return False


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with FakeBackend(keep_body=False) as old, FakeBackend(keep_body=False) as new:
        control = f"/tmp/lpt-{os.getpid()}-{id(old):x}"
        log = tmp_path / "uncertain"
        users = {ALICE: "old", "bob@example.org": "old"}
        config = config_of({"old": old, "new": new}, users, idle_timeout=30, uncertain_log=str(log))
        config["config"]["control"] = {"socket": control}
        with ProxyProcess(config) as proxy:
            yield Site(old, new, proxy, control, log)
        assert not os.path.exists(control), "the control socket outlives the process"


def dots(backend: FakeBackend, user: str) -> list[float]:
    """When final dots came for `user`."""
    return [
        seen.dot_at or 0.0
        for seen in backend.transactions()
        if seen.dotted and any(recipient.path.lower() == user for recipient in seen.recipients)
    ]


def send_until_dot(client: LmtpClient, *recipients: str, body: bytes = b"Subject: x\r\n\r\nx\r\n") -> None:
    client.send(b"MAIL FROM:<s@example.net>\r\n" + b"".join(b"RCPT TO:<%s>\r\n" % to.encode() for to in recipients))
    client.send(b"DATA\r\n")
    assert [client.reply().code for _ in range(len(recipients) + 2)] == [250] * (len(recipients) + 1) + [354]
    client.send(body + b".\r\n")


# --- what a move waits for --------------------------------------------------------------------------------------------


@BOTH_MODES
def test_a_move_takes_as_long_as_the_reply_to_a_final_dot(site: Site) -> None:
    site.old.script = Script(final=(Pause(5.0), *say("250 2.0.0 stored")))
    with site.proxy.client() as client:
        send_until_dot(client, ALICE)
        assert site.old.wait_for(lambda: bool(dots(site.old, ALICE)))
        [dot] = dots(site.old, ALICE)
        run = site.ctl("move", ALICE, "new", "--no-preflight")
        ended = time.monotonic()
        assert run.status == 0, run
        assert 4.9 < ended - dot < SOON
        assert client.reply().code == 250  # it is where the final sync will find it
        assert "waiting for 1 delivery" in run.err and ALICE in run.err
        client.quit()
    with site.proxy.client() as client:
        assert client.deliver("s@example.net", [ALICE]).verdict(0).positive
        client.quit()
    assert len(dots(site.old, ALICE)) == 1 and len(dots(site.new, ALICE)) == 1


def test_a_large_message_that_is_still_coming_in_goes_to_nobody_and_nobody_waits_for_it(site: Site) -> None:
    seconds, size = 20.0, 30 * 2**20
    piece = b"x" * 1022 + b"\r\n"
    pieces = size // 1024
    moved: list[Run] = []

    def move() -> None:
        moved.append(site.ctl("move", ALICE, "new"))

    with site.proxy.client(timeout=30) as client:
        client.send(b"MAIL FROM:<s@example.net>\r\nRCPT TO:<%s>\r\nDATA\r\n" % ALICE.encode())
        assert [client.reply().code for _ in range(3)] == [250, 250, 354]
        mover = threading.Thread(target=move)
        began = time.monotonic()
        for number in range(pieces):
            client.send(piece)
            if number == pieces // 2:
                mover.start()
            time.sleep(max(0.0, began + seconds * number / pieces - time.monotonic()))
        assert not mover.is_alive(), "the move waits for a message that is past nothing"
        mover.join()
        client.send(b".\r\n")
        assert client.reply().text.startswith("451 4.2.1 ")
        assert time.monotonic() - began >= seconds - 1
        [run] = moved
        assert run.status == 0 and "nothing in flight" in run.out
        assert dots(site.old, ALICE) == []
        # The client tries again.
        assert client.deliver("s@example.net", [ALICE], piece * pieces).verdict(0).positive
        client.quit()
    assert dots(site.old, ALICE) == []
    [stored] = [seen for seen in site.new.transactions() if seen.dotted]
    assert stored.body is not None and stored.body.size == size


def test_a_backend_without_room_for_the_dot_does_not_keep_a_move_waiting(site: Site) -> None:
    """The dot has not gone out, and will not: before it does, the route is looked up again."""
    site.old.script = Script(body=BodyTrigger(1000, (Stall(12.0),)))
    body = b"Subject: x\r\n\r\n" + (b"x" * 1022 + b"\r\n") * 2048
    with site.proxy.client(timeout=40) as client:
        sender = threading.Thread(target=send_until_dot, args=(client, ALICE), kwargs={"body": body})
        sender.start()
        assert site.in_flight("data")
        run = site.ctl("move", ALICE, "new")
        assert run.status == 0 and run.seconds < 11, run
        sender.join()
        assert client.reply().text.startswith("451 4.2.1 ")
        client.quit()
    assert dots(site.old, ALICE) == []


def test_others_are_not_waited_for(site: Site) -> None:
    go_on = threading.Event()
    site.old.script = Script(final=(Await(go_on), *say("250 2.0.0 stored")))
    with site.proxy.client() as client:
        send_until_dot(client, "bob@example.org")
        assert site.old.wait_for(lambda: bool(dots(site.old, "bob@example.org")))
        run = site.ctl("move", ALICE, "new")
        assert run.status == 0 and "nothing in flight" in run.out, run
        waiting = start_ctl("--socket", site.control, "drain", "--all")
        began = time.monotonic()
        time.sleep(1.5)
        assert waiting.poll() is None, "drain --all waits for everybody"
        go_on.set()
        assert end_ctl(waiting, began).status == 0
        assert client.reply().code == 250
        client.quit()


def test_a_message_for_two_is_waited_for_by_the_one_who_moves(site: Site) -> None:
    """bob's reply comes after alice's, but the message is alice's, too, until both are there."""
    go_on = threading.Event()
    site.old.script = Script(final_at={0: say("250 2.0.0 one"), 1: (Await(go_on), *say("250 2.0.0 two"))})
    with site.proxy.client() as client:
        send_until_dot(client, ALICE, "bob@example.org")
        assert site.old.wait_for(lambda: bool(dots(site.old, ALICE)))
        waiting = start_ctl("--socket", site.control, "-c", site.proxy.config_path, "move", ALICE, "reject")
        began = time.monotonic()
        site.proxy.wait_log(f"control: drain {ALICE}")
        time.sleep(1.0)
        assert waiting.poll() is None, "it did not wait for bob's reply"
        go_on.set()
        assert end_ctl(waiting, began).status == 0
        assert [client.reply().code for _ in range(2)] == [250, 250]
        client.quit()


def test_a_message_for_two_of_whom_one_moved_is_refused_to_both(site: Site) -> None:
    """One message to one store has one dot; bob's copy comes with the next attempt."""
    with site.proxy.client() as client:
        client.send(
            b"MAIL FROM:<s@example.net>\r\nRCPT TO:<bob@example.org>\r\nRCPT TO:<alice@example.org>\r\nDATA\r\n"
        )
        assert [client.reply().code for _ in range(4)] == [250, 250, 250, 354]
        assert site.ctl("move", ALICE, "new").status == 0
        client.send(b"x: y\r\n\r\n.\r\n")
        assert [client.reply().text[:9] for _ in range(2)] == ["451 4.2.1"] * 2
        assert client.deliver("s@example.net", ["bob@example.org", ALICE]).finals
        client.quit()
    assert len(dots(site.old, "bob@example.org")) == 1 and dots(site.old, ALICE) == []
    assert len(dots(site.new, ALICE)) == 1


@BOTH_MODES
def test_an_edit_by_hand_a_signal_and_a_drain_are_exact_too(site: Site) -> None:
    """No log line is waited for: the drain itself waits for the reload that the signal asked for."""
    stop = threading.Event()
    failures: list[str] = []

    def deliver() -> None:
        with site.proxy.client() as client:
            while not stop.is_set():
                verdict = client.deliver("s@example.net", [ALICE]).verdict(0)
                if not verdict.positive and not verdict.text.startswith("451 4.2.1"):
                    failures.append(verdict.text)
            client.quit()

    site.old.script = Script(final=(Pause(0.02), *say("250 2.0.0 stored")))
    clients = [threading.Thread(target=deliver) for _ in range(4)]
    for thread in clients:
        thread.start()
    try:
        at, quiet = "old", []
        for _ in range(12):
            leaving, at = at, "new" if at == "old" else "old"
            site.proxy.config["users"][ALICE] = at
            site.proxy.write_config()
            site.proxy.signal(SIGUSR1)
            run = site.ctl("drain", ALICE)
            assert run.status == 0 and at in run.out, run
            since = time.monotonic()
            time.sleep(0.15)
            quiet.append((leaving, since, time.monotonic()))
    finally:
        stop.set()
        for thread in clients:
            thread.join()
    assert failures == []
    stores = {"old": site.old, "new": site.new}
    for leaving, since, until in quiet:
        late = [dot for dot in dots(stores[leaving], ALICE) if since < dot < until]
        assert late == [], f"{len(late)} messages came to {leaving} after it was quiet"
    assert len(dots(site.old, ALICE)) > 20 and len(dots(site.new, ALICE)) > 20


def test_a_drain_waits_for_a_slow_reload_that_a_signal_has_asked_for(site: Site) -> None:
    """150,000 users take half a second or more to load; the drain is there long before that."""
    site.proxy.config["users"].update({f"user{number}@example.org": "old" for number in range(150_000)})
    site.proxy.reload()
    for at in ("new", "old"):
        site.proxy.config["users"][ALICE] = at
        site.proxy.write_config()
        began = time.monotonic()
        site.proxy.signal(SIGUSR1)
        drained = site.ctl("--json", "drain", ALICE).document
        assert drained["routes"] == {ALICE: at}
        assert time.monotonic() - began > 0.2, "this table is too small to show anything"


# --- uncertain deliveries ---------------------------------------------------------------------------------------------


def read_log(site: Site) -> list[dict[str, object]]:
    return [json.loads(line) for line in site.uncertain_log.read_text("ascii").splitlines()]


@BOTH_MODES
@pytest.mark.parametrize("end", [Close(), Reset()])
def test_a_backend_that_ends_after_the_dot_leaves_a_record(site: Site, end: Close | Reset) -> None:
    site.old.script = Script(final=(Pause(1.5), end))
    body = b"Subject: x\r\nMessage-ID: <1.2@example.net>\r\n\r\nx\r\n"
    with site.proxy.client() as client:
        send_until_dot(client, "Alice+List@example.org", body=body)
        assert site.old.wait_for(lambda: bool(site.old.transactions()) and site.old.transactions()[0].dotted)
        run = site.ctl("move", ALICE, "new")
        assert run.status == 2, run
        assert client.reply().text.startswith("451 4.4.2 ")
        client.quit()
    # What the operator is shown, what is on the disk, what the log has: the same.
    for shown in ("<1.2@example.net>", "s@example.net", "old"):
        assert shown in run.out + run.err
    [record] = read_log(site)
    expected = {
        "user": ALICE, "recipient": "Alice+List@example.org", "backend": "old", "address": site.old.path,
        "sender": "s@example.net", "message_id": "<1.2@example.net>", "size": len(body),
    }  # fmt: skip
    assert {key: record[key] for key in expected} == expected
    assert stat.S_IMODE(site.uncertain_log.stat().st_mode) == 0o600
    site.proxy.wait_log("may be delivered")
    listed = site.ctl("--json", "uncertain", ALICE).document["uncertain"]
    assert [entry["message_id"] for entry in listed] == ["<1.2@example.net>"]
    # It is remembered for those who come later, and nobody else is bothered with it.
    assert site.ctl("drain", ALICE).status == 2
    assert site.ctl("drain", "bob@example.org").status == 0


def test_of_several_recipients_those_without_a_reply_are_uncertain(site: Site) -> None:
    site.old.script = Script(final_at={0: say("250 2.0.0 one"), 1: (Close(),)})
    with site.proxy.client() as client:
        send_until_dot(client, ALICE, "bob@example.org", "bob+x@example.org")
        assert [client.reply().code for _ in range(3)] == [250, 451, 451]
        client.quit()
    assert site.ctl("drain", ALICE).status == 0
    assert site.ctl("drain", "bob@example.org").status == 2
    assert [(record["user"], record["recipient"]) for record in read_log(site)] == [
        ("bob@example.org", "bob@example.org"),
        ("bob@example.org", "bob+x@example.org"),
    ]
    status = site.ctl("--json", "status").document
    assert status["uncertain"] == 2
    assert [backend["uncertain"] for backend in status["backends"] if backend["name"] == "old"] == [2]


def test_what_failed_before_the_dot_is_not_uncertain(site: Site) -> None:
    site.old.script = Script(body=BodyTrigger(10, (Close(),)))
    with site.proxy.client() as client:
        outcome = client.envelope("s@example.net", [ALICE])
        client.send(SMALL_BODY)
        # The proxy must have had the chance to see it: a dot that crosses the end of the stream may be delivered.
        [transaction] = site.old.transactions()
        assert site.old.wait_for(lambda: transaction.body is not None and transaction.body.size >= 10)
        time.sleep(1.0)
        assert client.finals_after(outcome, b".\r\n").verdict(0).code == 451
        site.old.script = Script(final=say("452 4.2.2 Over quota"))
        assert client.deliver("s@example.net", [ALICE]).verdict(0).code == 452
        site.old.script = Script(data=(Hang(),))
        client.send(b"MAIL FROM:<s@example.net>\r\nRCPT TO:<alice@example.org>\r\n")
        assert [client.reply().code for _ in range(2)] == [250, 250]
        client.send(b"DATA\r\n")
        assert site.old.wait_for(lambda: b"DATA" in site.old.connections[-1].commands)
    assert site.old.wait_closed()
    assert site.ctl("drain", ALICE).status == 0
    assert not site.uncertain_log.exists()


def test_a_log_that_cannot_be_written_is_said_and_delays_nobody(site: Site) -> None:
    site.uncertain_log.mkdir()
    site.old.script = Script(final=(Close(),))
    with site.proxy.client() as client:
        send_until_dot(client, ALICE)
        assert client.reply().code == 451
        client.quit()
    line = site.proxy.wait_log(r"uncertain_log: .* cannot be written \(Is a directory\); the record: ")
    assert ALICE in line
    assert site.ctl("drain", ALICE).status == 2  # it is remembered in any case


def test_a_stop_writes_what_is_uncertain(site: Site) -> None:
    site.old.script = Script(final=(Pause(1.0), Close()))
    with site.proxy.client() as client:
        send_until_dot(client, ALICE)
        assert site.old.wait_for(lambda: bool(dots(site.old, ALICE)))
        assert site.proxy.stop() == 0
    assert len(read_log(site)) == 1


def test_a_part_of_a_line_that_a_crash_left_does_not_spoil_the_next(site: Site) -> None:
    site.uncertain_log.write_bytes(b'{"half": ')
    site.old.script = Script(final=(Close(),))
    with site.proxy.client() as client:
        send_until_dot(client, ALICE)
        assert client.reply().code == 451
        client.quit()
    assert site.ctl("drain", ALICE).status == 2
    first, second = site.uncertain_log.read_bytes().splitlines()
    assert first == b'{"half": ' and json.loads(second)["user"] == ALICE


def test_a_partly_sent_dot_is_uncertain_only_if_some_of_it_went_out(site: Site) -> None:
    """The backend takes the whole message and is gone before the dot: nothing was delivered, and it is known."""
    body = b"Subject: x\r\n\r\n" + (b"x" * 1022 + b"\r\n") * 512
    site.old.script = Script(body=BodyTrigger(len(body) - 10, (Reset(),)))
    with site.proxy.client() as client:
        client.send(b"MAIL FROM:<s@example.net>\r\nRCPT TO:<alice@example.org>\r\nDATA\r\n")
        assert [client.reply().code for _ in range(3)] == [250, 250, 354]
        client.send(body)
        assert site.old.wait_for(lambda: site.old.connections[0].was_reset or site.old.connections[0].done)
        time.sleep(1.0)
        client.send(b".\r\n")
        assert client.reply().code == 451
        client.quit()
    assert site.ctl("drain", ALICE).status == 0


@BOTH_MODES
def test_killed_between_the_dot_and_the_reply_it_starts_again_and_knows_nothing(site: Site) -> None:
    """What docs/migration.md warns of: a killed proxy takes its knowledge of deliveries under way with it."""
    site.old.script = Script(final=(Pause(2.0), Send(b"250 2.0.0 stored\r\n")))
    with site.proxy.client() as client:
        send_until_dot(client, ALICE)
        assert site.old.wait_for(lambda: bool(dots(site.old, ALICE)))
        site.proxy.signal(SIGKILL)
        site.proxy.wait()
    site.proxy.start()
    assert "after one that had died" in site.ctl("status").out
    drained = site.ctl("drain", ALICE)
    assert drained.status == 2, "nobody knows what the store makes of it"
    assert "after one that had died" in drained.out and "in flight" in drained.out
    # Only for as long as a delivery may take; and a process that ended well leaves no such doubt.
    assert site.proxy.stop() == 0
    site.proxy.start()
    assert site.ctl("drain", ALICE).status == 0
