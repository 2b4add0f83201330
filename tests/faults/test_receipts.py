# SPDX-License-Identifier: GPL-3.0-or-later
"""XFORWARD and receipts of the real process: what each mailbox got, what waits, and what may be missing."""

from __future__ import annotations

import os
import pwd
import signal
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmtp_proxy.ctl.client import ControlClient, Refusal
from tests.faults.conftest import Move
from tests.support.backend import FakeBackend
from tests.support.client import LmtpClient, Outcome
from tests.support.ctl import controlled, ctl
from tests.support.patience import SOON
from tests.support.proxy import BOTH_MODES, ProxyProcess, config_of
from tests.support.script import Await, Close, Script, say

USERS = {"alice@x": "old", "bob@x": "reject", "carol@x": "new", "carol+list@x": "old", "@y": "new"}


def new_proxy(old: FakeBackend, new: FakeBackend, **settings: object) -> ProxyProcess:
    proxy = controlled({"old": old, "new": new}, USERS, **settings)
    proxy.config["config"].setdefault("receipts", f"{proxy.directory}/receipts")
    proxy.write_config()
    return proxy


@pytest.fixture
def own() -> Iterator[Move]:
    with FakeBackend() as old, FakeBackend() as new, new_proxy(old, new) as proxy:
        yield Move(old, new, proxy)


def path_of(proxy: ProxyProcess) -> str:
    return str(proxy.config["config"]["receipts"])


def deliver(proxy: ProxyProcess, queue_id: str, *users: str) -> Outcome:
    with proxy.client() as client:
        assert "XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE" in client.command("LHLO c").text
        client.send(f"XFORWARD NAME=c PROTO=ESMTP HELO=h IDENT={queue_id} SOURCE=REMOTE\r\n".encode())
        assert client.reply().code == 250
        outcome = client.deliver("s@x", list(users))
        client.quit()
        return outcome


def asked(proxy: ProxyProcess, *users: str) -> dict[str, Any]:
    client = ControlClient(str(proxy.config["config"]["control"]["socket"]))  # type: ignore[index]
    return dict(client.post("/receipts", {"users": list(users)}, timeout=20).document)


def of(proxy: ProxyProcess, user: str) -> tuple[list[tuple[str, int, int]], list[tuple[str, int, str]]]:
    """Of one user: (backend, count, uncertain) and (queue id, count, why)."""
    found = asked(proxy, user)["users"][user]
    return (
        [(row["backend"], row["count"], row["uncertain"]) for row in found["delivered"]],
        [(row["queue_id"], row["count"], row["why"]) for row in found["deferred"]],
    )


# --- who may say it --------------------------------------------------------------------------------------------------


def offered(client: LmtpClient) -> bool:
    client.reply()
    client.send(b"LHLO c\r\n")
    return "XFORWARD" in client.reply().text


@pytest.mark.parametrize(("trusted", "expected"), [(None, False), (["10.0.0.0/8"], False), (["127.0.0.0/8"], True)])
def test_over_tcp_for_trusted_networks(trusted: list[str] | None, expected: bool) -> None:
    settings = {} if trusted is None else {"trusted": trusted}
    with FakeBackend() as backend:
        config = config_of({"a": backend}, **settings)  # type: ignore[arg-type]
        with ProxyProcess(config, tcp=True) as proxy:
            with LmtpClient(proxy.address) as client:
                assert offered(client) is expected
                client.send(b"XFORWARD IDENT=4fX\r\nMAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\nDATA\r\n")
                assert client.reply().code == (250 if expected else 500)
                assert [client.reply().code for _ in range(3)] == [250, 250, 354]
                client.send(b"x\r\n.\r\nQUIT\r\n")
                assert [client.reply().code for _ in range(2)] == [250, 221]
            line = proxy.wait_log("status=sent")
            assert f"to=<u@a>, {'orig_queue_id=4fX, ' if expected else ''}backend=a[" in line


def test_the_queue_id_is_in_each_line_of_its_transaction_and_no_other(own: Move) -> None:
    own.new.script = Script(rcpt=say("452 4.2.2 full"))
    deliver(own.proxy, "4fXa", "alice@x", "bob@x", "carol@x")
    with own.proxy.client() as client:
        client.send(b"XFORWARD IDENT=4fXb\r\nMAIL FROM:<s@x>\r\nRCPT TO:<alice@x>\r\n")
        assert [client.reply().code for _ in range(3)] == [250, 250, 250]
    with own.proxy.client() as client:
        client.deliver("s@x", ["alice@x"])
        client.quit()
    own.proxy.wait_log("status=aborted")
    own.proxy.wait_log("to=<alice@x>, backend=old.*status=sent")
    lines = [line for line in own.proxy.log().splitlines() if "status=" in line]
    assert sum("orig_queue_id=4fXa, " in line for line in lines) == 3
    [aborted] = [line for line in lines if "status=aborted" in line]
    assert "orig_queue_id=4fXb, " in aborted
    assert len([line for line in lines if "orig_queue_id" not in line]) == 1


# --- what is remembered ----------------------------------------------------------------------------------------------


def test_what_was_delivered_is_there_as_soon_as_its_reply_has_come(own: Move) -> None:
    before = time.time()
    for number in range(1, 21):
        assert deliver(own.proxy, f"4fX{number}", "Alice+x@x", "alice@x").verdict(1).positive
        assert of(own.proxy, "alice@x") == ([("old", 2 * number, 0)], [])
    [row] = asked(own.proxy, "alice@x")["users"]["alice@x"]["delivered"]
    assert before <= row["first"] < row["last"] <= time.time()
    assert of(own.proxy, "nobody@x") == ([], [])


def test_a_reply_that_waits_for_its_turn_is_there_too(own: Move) -> None:
    """Who drains and then asks may rely on it, whatever another backend of the same message takes its time for."""
    go = threading.Event()
    own.old.script = Script(final=(Await(go), *say("250 2.0.0 stored")))
    with own.proxy.client(timeout=20) as client:
        client.envelope("s@x", ["alice@x", "carol@x"])
        client.send(b"x\r\n.\r\n")
        deadline = time.monotonic() + SOON
        while of(own.proxy, "carol@x") != ([("new", 1, 0)], []) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert of(own.proxy, "carol@x") == ([("new", 1, 0)], [])
        assert of(own.proxy, "alice@x") == ([], [])
        go.set()
        assert [client.reply().code for _ in range(2)] == [250, 250]
        assert of(own.proxy, "alice@x") == ([("old", 1, 0)], [])
        client.quit()


def test_under_which_names(own: Move) -> None:
    """The one under which the table was hit, and the mailbox without detail, which a store may put it in."""
    deliver(own.proxy, "A1", "carol+list@x", "carol+other@x", "Zoe+d@Y")
    assert of(own.proxy, "carol+list@x") == ([("old", 1, 0)], [])
    assert of(own.proxy, "carol@x") == ([("old", 1, 0), ("new", 1, 0)], []) or of(own.proxy, "carol@x") == (
        [("new", 1, 0), ("old", 1, 0)],
        [],
    )
    assert of(own.proxy, "zoe@y") == ([("new", 1, 0)], [])
    assert of(own.proxy, "ZOE+whatever@y") == ([("new", 1, 0)], [])
    assert of(own.proxy, "@y") == ([], [])


def test_what_was_deferred_waits_until_it_is_delivered_or_bounces(own: Move) -> None:
    deliver(own.proxy, "4fX1", "bob@x")
    deliver(own.proxy, "4fX2", "bob@x")
    deliver(own.proxy, "4fX1", "bob@x")
    parked = "450 4.2.1 Mailbox is being moved, try again later"
    assert of(own.proxy, "bob@x") == ([], [("4fX1", 2, parked), ("4fX2", 1, parked)])
    own.proxy.config["users"]["bob@x"] = "new"
    own.proxy.write_config()
    assert ctl("-c", own.proxy.config_path, "reload").status == 0
    deliver(own.proxy, "4fX1", "bob@x")
    assert of(own.proxy, "bob@x") == ([("new", 1, 0)], [("4fX2", 1, parked)])
    own.new.script = Script(rcpt=say("550 5.1.1 unknown"))
    deliver(own.proxy, "4fX2", "bob@x")
    assert of(own.proxy, "bob@x") == ([("new", 1, 0)], [])


@pytest.mark.parametrize("others", ["slow-store", "held"])
def test_what_is_refused_is_there_although_the_client_has_yet_to_hear_of_it(own: Move, others: str) -> None:
    """Replies to RCPTs that came together go out together: until then bob may have been moved, and be asked about."""
    go = threading.Event()
    own.old.script = Script(rcpt=(Await(go), *say("250 2.1.5 ok")))
    own.proxy.config["users"]["held@x"] = "hold"
    own.proxy.write_config()
    assert ctl("-c", own.proxy.config_path, "reload").status == 0
    other = "alice@x" if others == "slow-store" else "held@x"
    with own.proxy.client(timeout=20) as client:
        client.send(b"XFORWARD IDENT=4fX7\r\nMAIL FROM:<s@x>\r\n")
        assert [client.reply().code for _ in range(2)] == [250, 250]
        client.send(f"RCPT TO:<bob@x>\r\nRCPT TO:<{other}>\r\nDATA\r\n".encode())
        deadline = time.monotonic() + SOON
        while not of(own.proxy, "bob@x")[1] and time.monotonic() < deadline:
            time.sleep(0.05)
        assert of(own.proxy, "bob@x") == ([], [("4fX7", 1, "450 4.2.1 Mailbox is being moved, try again later")])
        assert client.silent(0.1)
        own.proxy.config["users"] |= {"bob@x": "new", "held@x": "new"}
        own.proxy.write_config()
        assert ctl("-c", own.proxy.config_path, "reload").status == 0
        go.set()
        assert [client.reply().code for _ in range(3)] == [450, 250, 354]
        client.send(b"x\r\n.\r\nQUIT\r\n")
        assert [client.reply().code for _ in range(2)] == [250, 221]
    assert of(own.proxy, "bob@x")[1] == [("4fX7", 1, "450 4.2.1 Mailbox is being moved, try again later")]


@BOTH_MODES
def test_mail_that_is_still_coming_in_for_the_old_store_is_counted() -> None:
    with (
        FakeBackend() as old,
        FakeBackend() as new,
        new_proxy(old, new) as proxy,
        proxy.client() as client,
        proxy.client() as other,
    ):
        client.send(b"LHLO c\r\nXFORWARD IDENT=4fX9\r\nMAIL FROM:<s@x>\r\nRCPT TO:<alice+x@x>\r\nDATA\r\n")
        assert [client.reply().code for _ in range(5)] == [250, 250, 250, 250, 354]
        other.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<carol@x>\r\nDATA\r\n")
        assert [other.reply().code for _ in range(3)] == [250, 250, 354]
        assert asked(proxy, "alice@x", "carol@x")["cut_off"] == 0
        assert ctl("-c", proxy.config_path, "move", "alice@x", "new").status == 0
        assert asked(proxy, "alice@x", "carol@x")["cut_off"] == 1
        assert asked(proxy, "carol@x")["cut_off"] == 0
        client.send(b"x\r\n.\r\n")
        assert client.reply().code == 451
        answer = asked(proxy, "alice@x")
        assert answer["cut_off"] == 0
        assert [row["queue_id"] for row in answer["users"]["alice@x"]["deferred"]] == ["4fX9"]


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (Script(rcpt=say("452 4.2.2 over quota")), "452 4.2.2 over quota"),
        (Script(final=say("451 4.2.0 locked")), "451 4.2.0 locked"),
        (Script(mail=say("451 4.3.2 later")), "451 4.3.2 later; in reply to MAIL"),
        (Script(data=(Close(),)), "451 4.4.2 Backend did not answer in time or closed the connection; "),
    ],
)
def test_of_whatever_the_backend_defers(own: Move, script: Script, why: str) -> None:
    own.old.script = script
    deliver(own.proxy, "4fX1", "alice@x")
    delivered, [(queue_id, count, said)] = of(own.proxy, "alice@x")
    assert delivered == [] and (queue_id, count) == ("4fX1", 1)
    assert said.startswith(why)


def unnamed(proxy: ProxyProcess, user: str) -> list[tuple[bool, int, str]]:
    """Of one user: what was deferred of clients that said no queue id: (said XFORWARD, count, why)."""
    rows = asked(proxy, user)["users"][user]["unnamed"]
    return [(row["forwarded"], row["count"], row["why"]) for row in rows]


def test_what_is_deferred_without_a_queue_id_is_counted(own: Move) -> None:
    """It waits all the same: by Postfix's own defaults all mail is so, and that of sendmail(1) always is."""
    for _ in range(2):
        with own.proxy.client() as client:
            client.deliver("s@x", ["bob@x", "alice@x"])
            client.quit()
    rejected = "450 4.2.1 Mailbox is being moved, try again later"
    assert of(own.proxy, "bob@x") == ([], []) and unnamed(own.proxy, "bob@x") == [(False, 2, rejected)]
    assert of(own.proxy, "alice@x") == ([("old", 2, 0)], []) and unnamed(own.proxy, "alice@x") == []
    with own.proxy.client() as client:
        client.command("LHLO c")
        assert client.command("XFORWARD SOURCE=LOCAL").code == 250
        client.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<bob@x>\r\nRSET\r\n")
        assert [client.reply().code for _ in range(3)] == [250, 450, 250]
        # XFORWARD was for that message alone.
        client.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<bob@x>\r\nRSET\r\n")
        assert [client.reply().code for _ in range(3)] == [250, 450, 250]
    assert unnamed(own.proxy, "bob@x") == [(False, 3, rejected), (True, 1, rejected)]


def test_what_bounces_without_a_queue_id_waits_for_nobody(own: Move) -> None:
    own.old.script = Script(rcpt=say("550 5.1.1 no such user"))
    with own.proxy.client() as client:
        client.deliver("s@x", ["alice@x"])
        client.quit()
    assert of(own.proxy, "alice@x") == ([], []) and unnamed(own.proxy, "alice@x") == []


def test_an_uncertain_delivery_is_both(own: Move) -> None:
    own.old.script = Script(final=(Close(),))
    deliver(own.proxy, "4fX1", "alice@x")
    delivered, [(queue_id, _, why)] = of(own.proxy, "alice@x")
    assert delivered == [("old", 0, 1)]
    assert queue_id == "4fX1" and why.endswith("; may be delivered")
    own.old.script = Script()
    deliver(own.proxy, "4fX1", "alice@x")
    assert of(own.proxy, "alice@x") == ([("old", 1, 1)], [])


def test_a_client_that_goes_away_has_the_message_still(own: Move) -> None:
    with own.proxy.client() as client:
        client.send(b"XFORWARD IDENT=4fX1\r\nMAIL FROM:<s@x>\r\nRCPT TO:<alice@x>\r\n")
        assert [client.reply().code for _ in range(3)] == [250, 250, 250]
    own.proxy.wait_log("status=aborted")
    assert of(own.proxy, "alice@x") == ([], [("4fX1", 1, "the client closed the connection")])


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_file_is_private_and_outlives_the_process(own: Move) -> None:
    proxy = own.proxy
    deliver(proxy, "4fX1", "alice@x", "bob@x")
    assert of(proxy, "alice@x") == ([("old", 1, 0)], [])
    files = [path for path in Path(proxy.directory).iterdir() if path.name.startswith("receipts")]
    assert len(files) == 3  # the log and its index beside it
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    deliver(proxy, "4fX2", "alice@x", "bob@x")
    assert proxy.stop() == 0
    assert [path.name for path in Path(proxy.directory).iterdir() if path.name.startswith("receipts")] == ["receipts"]
    proxy.start()
    assert of(proxy, "alice@x") == ([("old", 2, 0)], [])
    assert [row[0] for row in of(proxy, "bob@x")[1]] == ["4fX1", "4fX2"]
    [first] = asked(proxy)["gaps"]
    assert first["from"] is None and first["until"] < time.time()


def test_what_was_written_survives_kill_9_and_the_rest_is_told(own: Move) -> None:
    proxy = own.proxy
    deliver(proxy, "4fX1", "alice@x")
    time.sleep(4.0)  # nobody asks: it is written by itself
    assert proxy.process is not None
    killed = time.time()
    for pid in [*children(proxy.process.pid), proxy.process.pid]:
        os.kill(pid, signal.SIGKILL)
    proxy.process.wait()
    proxy.start()
    answer = asked(proxy, "alice@x")
    assert [(row["backend"], row["count"]) for row in answer["users"]["alice@x"]["delivered"]] == [("old", 1)]
    assert answer["after_crash"] is not None
    gaps = answer["gaps"][1:]
    assert gaps and all("did not end well" in gap["why"] and gap["from"] < killed < gap["until"] for gap in gaps)
    proxy.stop()
    proxy.start()
    assert asked(proxy)["gaps"][1:] == gaps, "a stop in order is none"


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]


def test_a_file_that_cannot_be_written_harms_no_mail(own: Move) -> None:
    proxy = own.proxy
    deliver(proxy, "4fX1", "alice@x")
    assert of(proxy, "alice@x") == ([("old", 1, 0)], [])
    with sqlite3.connect(path_of(proxy), isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        for number in range(2, 6):
            deliver(proxy, f"4fX{number}", "alice@x")
        with pytest.raises(Refusal, match="database is locked") as refused:
            asked(proxy, "alice@x")
        assert refused.value.code == 503
        other.execute("ROLLBACK")
    other.close()
    proxy.wait_log("can be written again", timeout=20)
    assert of(proxy, "alice@x") == ([("old", 5, 0)], [])
    assert len([line for line in proxy.log().splitlines() if "locked; mail goes on" in line]) == proxy.workers


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda path: path.write_bytes(b"no database at all" * 100), "file is not a database"),
        (lambda path: newer(path), "is of a newer lmtp-proxy (format 99, this one knows 1): name another file, or "),
        (lambda path: foreign(path), "is a database of something else: name another file"),
        (lambda path: os.mkfifo(path), "is not a regular file"),
        (lambda path: path.symlink_to("/dev/null"), "Too many levels of symbolic links"),
    ],
)
def test_a_file_that_is_none_of_ours_is_left_alone(spoil: Callable[[Path], None], what: str) -> None:
    with FakeBackend() as old, FakeBackend() as new:
        proxy = new_proxy(old, new)
        spoil(Path(path_of(proxy)))
        before = None if Path(path_of(proxy)).is_fifo() else Path(path_of(proxy)).read_bytes()
        with proxy:
            proxy.wait_log("receipts: ")
            deliver(proxy, "4fX1", "alice@x")
            with pytest.raises(Refusal) as refused:
                asked(proxy, "alice@x")
            assert refused.value.code == 503 and what in str(refused.value)
            assert before is None or Path(path_of(proxy)).read_bytes() == before


def newer(path: Path) -> None:
    with sqlite3.connect(path) as base:
        base.execute("PRAGMA user_version = 99")
        base.execute("CREATE TABLE new_things(x)")
    base.close()


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as base:
        base.execute("CREATE TABLE things(x)")
    base.close()


def test_a_file_that_is_taken_away_is_made_anew(own: Move) -> None:
    deliver(own.proxy, "4fX1", "alice@x")
    assert of(own.proxy, "alice@x") == ([("old", 1, 0)], [])
    for path in Path(own.proxy.directory).glob("receipts*"):
        path.unlink()
    deliver(own.proxy, "4fX2", "alice@x")
    assert of(own.proxy, "alice@x") == ([("old", 1, 0)], [])
    assert os.path.exists(path_of(own.proxy))


def test_a_reload_takes_it_elsewhere(own: Move) -> None:
    proxy = own.proxy
    deliver(proxy, "4fX1", "alice@x")
    first = path_of(proxy)

    def reload(path: str | None) -> None:
        proxy.config["config"]["receipts"] = path
        if path is None:
            del proxy.config["config"]["receipts"]
        proxy.write_config()
        assert ctl("-c", proxy.config_path, "reload").status == 0

    reload(f"{proxy.directory}/second")
    deliver(proxy, "4fX2", "alice@x")
    assert of(proxy, "alice@x") == ([("old", 1, 0)], [])
    assert asked(proxy)["receipts"] == f"{proxy.directory}/second"
    reload(None)
    deliver(proxy, "4fX3", "alice@x")
    with pytest.raises(Refusal, match=r"config\.receipts is not set") as refused:
        asked(proxy, "alice@x")
    assert refused.value.code == 409
    reload(first)
    assert of(proxy, "alice@x") == ([("old", 1, 0)], [])
    gaps = asked(proxy)["gaps"]
    assert [gap["why"] for gap in gaps[1:]] == ["receipts were not kept here then"] * proxy.workers
    assert all(gap["until"] is not None for gap in gaps)


def test_workers_share_it() -> None:
    with FakeBackend() as old, FakeBackend() as new:
        proxy = controlled({"old": old, "new": new}, USERS, workers=2)
        proxy.config["config"]["receipts"] = f"{proxy.directory}/receipts"
        proxy.workers = 2
        proxy.write_config()
        with proxy:
            for number in range(1, 41):
                deliver(proxy, f"A{number}", "alice@x", "bob@x")
                assert of(proxy, "alice@x") == ([("old", number, 0)], [])
            assert len(of(proxy, "bob@x")[1]) == 40
            answer = asked(proxy)
            assert answer["after_crash"] is None and len(answer["gaps"]) == 1
            assert proxy.process is not None
            os.kill(victim := children(proxy.process.pid)[0], signal.SIGKILL)
            deadline = time.monotonic() + SOON
            while os.path.exists(f"/proc/{victim}") or len(asked(proxy)["gaps"]) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            answer = asked(proxy, "alice@x")
            [gap] = answer["gaps"][1:]
            assert gap["why"].startswith(f"lmtp-proxy process {victim} did not end well, ")
            assert answer["after_crash"]["worker"] == victim
            assert [row["count"] for row in answer["users"]["alice@x"]["delivered"]] == [40]


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    with FakeBackend() as old, FakeBackend() as new:
        proxy = new_proxy(old, new, receipts=str(tmp_path / "missing" / "receipts"))
        for arguments in (["-c", proxy.config_path, "--check"], ["-c", proxy.config_path]):
            since = proxy.mark()
            assert proxy.spawn(arguments).wait(10) == 1
            [line] = proxy.log()[since:].splitlines()
            me = pwd.getpwuid(os.geteuid()).pw_name
            what = f"config.receipts: {me} cannot write in {tmp_path}/missing; see mkdir, chown and chmod"
            assert line == f"{proxy.config_path}: {what}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user: run the tests as root")
def test_the_user_who_serves_owns_it(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    with FakeBackend() as old, FakeBackend() as new:
        proxy = new_proxy(old, new, run_as="nobody", permissions="0666")
        os.chmod(proxy.directory, 0o755)
        what = f"config.receipts: nobody cannot write in {proxy.directory}; see mkdir, chown and chmod"
        del proxy.config["config"]["uncertain_log"]
        proxy.write_config()
        for arguments in (["-c", proxy.config_path, "--check"], ["-c", proxy.config_path]):
            since = proxy.mark()
            assert proxy.spawn(arguments).wait(10) == 1
            assert proxy.log()[since:].splitlines() == [f"{proxy.config_path}: {what}"]
        own = Path(proxy.directory) / "own"
        own.mkdir()
        os.chown(own, nobody, -1)
        proxy.config["config"]["receipts"] = str(own / "receipts")
        proxy.write_config()
        with proxy:
            deliver(proxy, "4fX1", "alice@x")
            assert of(proxy, "alice@x") == ([("old", 1, 0)], [])
            made = [path.stat() for path in own.iterdir()]
            assert len(made) == 3 and {(each.st_uid, stat.S_IMODE(each.st_mode)) for each in made} == {(nobody, 0o600)}


def test_odd_requests(own: Move) -> None:
    client = ControlClient(str(own.proxy.config["config"]["control"]["socket"]))  # type: ignore[index]
    odd: list[dict[str, object]] = [{"users": users} for users in ("alice", [""], ["a"] * 1001, ["\ud800"], None)]
    for body in ({}, {"users": [], "more": 1}, *odd):
        with pytest.raises(Refusal) as refused:
            client.post("/receipts", body, timeout=10)
        assert refused.value.code == 400
    assert asked(own.proxy, "a'; DROP TABLE delivered; --", "\u00e4@x")["users"].keys() == {
        "a'; DROP TABLE delivered; --",
        "\u00e4@x",
    }
