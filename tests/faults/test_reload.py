"""Reload: atomic, coalescing, never in the way of mail; and the check before each final dot that the route holds."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmtp_proxy import __version__
from tests.faults.conftest import Move
from tests.support.accounting import check_earned
from tests.support.backend import FakeBackend
from tests.support.delays import Delays
from tests.support.package import copied_package
from tests.support.patience import SOON
from tests.support.proxy import BOTH_MODES, PROGRAM, ProxyProcess, config_of
from tests.support.script import Await, Script, say

USERS = {"u": "old", "v": "old", "w": "new", "r": "reject"}


@pytest.fixture
def move() -> Iterator[Move]:
    with FakeBackend() as old, FakeBackend() as new:
        config = config_of({"old": old, "new": new}, dict(USERS), ignoreDomain=True)
        with ProxyProcess(config) as proxy:
            yield Move(old, new, proxy)


def test_a_reload_moves_a_user(move: Move) -> None:
    with move.proxy.client() as client:
        check_earned(client.deliver("1@x", ["u@x"]), [move.old])
        line = move.proxy.route("u", "new")
        assert "generation 2 active" in line
        outcome = client.deliver("2@x", ["u@x", "v@x"])
        check_earned(outcome, [move.new, move.old])
        assert outcome.verdict(0).positive and outcome.verdict(1).positive
        client.quit()


def test_a_first_reload_without_a_descriptor_left_is_refused_and_not_the_last() -> None:
    """What a reload needs is loaded only then; what cannot be loaded at the moment can be later."""
    with FakeBackend() as old, ProxyProcess(config_of({"old": old}, dict.fromkeys("uv", "old")), workers=1) as proxy:
        limits = resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            assert "reload refused: 1 error" in proxy.reload()
        finally:
            resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, limits)
        assert f"{proxy.config_path}: cannot be loaded: no thread for it: [Errno 24] Too many open files" in proxy.log()
        assert "Traceback" not in proxy.log()
        assert "generation 2 active" in proxy.route("u", "reject")


def test_sighup_reloads_too(move: Move) -> None:
    move.proxy.config["users"]["u"] = "new"
    assert "active" in move.proxy.reload(signal.SIGHUP)
    with move.proxy.client() as client:
        check_earned(client.deliver("s@x", ["u@x"]), [move.new])
        client.quit()


def test_an_open_transaction_uses_the_new_table_from_its_next_rcpt_on(move: Move) -> None:
    with move.proxy.client() as client:
        assert client.command("MAIL FROM:<s@x>").positive
        assert client.command("RCPT TO:<v@x>").positive
        assert client.command("RCPT TO:<r@x>").text.startswith("450 4.2.1")
        move.proxy.config["users"]["r"] = "new"
        move.proxy.route("u", "new")
        assert client.command("RCPT TO:<u@x>").positive
        assert client.command("RCPT TO:<r@x>").positive
        assert client.command("DATA").code == 354
        client.send(b"x\r\n.\r\n")
        assert [client.reply().positive for _ in range(3)] == [True] * 3
        client.quit()
    assert [recipient.path for recipient in move.old.transactions()[0].recipients] == ["v@x"]
    assert [recipient.path for recipient in move.new.transactions()[0].recipients] == ["u@x", "r@x"]


@pytest.mark.parametrize("target", ["new", "reject", "hold", None], ids=["moved", "reject", "hold", "removed"])
@pytest.mark.parametrize("moment", ["rcpt", "data", "body"])
def test_no_dot_for_a_route_that_changed(move: Move, moment: str, target: str | None) -> None:
    """The commit point: whoever shares the delivery with the moved user is deferred too, others are not."""

    def change() -> None:
        if target is None:
            del move.proxy.config["users"]["u"]
            assert "active" in move.proxy.reload()
        else:
            move.proxy.route("u", target)

    with move.proxy.client() as client:
        client.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<u@x>\r\nRCPT TO:<w@x>\r\nRCPT TO:<v@x>\r\n")
        assert [client.reply().code for _ in range(4)] == [250] * 4
        if moment == "rcpt":
            change()
        assert client.command("DATA").code == 354
        if moment == "data":
            change()
        client.send(b"Subject: x\r\n\r\nfirst\r\n")
        if moment == "body":
            time.sleep(0.05)
            change()
        client.send(b"last\r\n.\r\n")
        told = [client.reply().text[:9] for _ in range(3)]
        assert told == ["451 4.2.1", "250 2.0.0", "451 4.2.1"]
        assert move.old.wait_closed(1)
        assert not any(seen.dotted for seen in move.old.transactions())
        client.quit()


def test_an_unrelated_change_disturbs_no_delivery(move: Move) -> None:
    with move.proxy.client() as client:
        outcome = client.envelope("s@x", ["u@x", "w@x"])
        move.proxy.config["users"]["someone-else"] = "reject"
        move.proxy.route("r", "new")
        client.finals_after(outcome, b"x\r\n.\r\n")
        check_earned(outcome, [move.old, move.new])
        assert outcome.verdict(0).positive and outcome.verdict(1).positive
        client.quit()


def test_a_route_that_changed_and_changed_back_is_the_same_route(move: Move) -> None:
    with move.proxy.client() as client:
        outcome = client.envelope("s@x", ["u@x"])
        move.proxy.route("u", "new")
        move.proxy.route("u", "old")
        assert client.finals_after(outcome, b"x\r\n.\r\n").verdict(0).positive
        client.quit()


def test_past_the_dot_a_change_comes_too_late(move: Move) -> None:
    go = threading.Event()
    move.old.script = Script(final=(Await(go), *say("250 2.0.0 stored")))
    with move.proxy.client() as client:
        outcome = client.envelope("s@x", ["u@x"])
        client.send(b"x\r\n.\r\n")
        assert move.old.wait_for(lambda: any(seen.dotted for seen in move.old.transactions()))
        move.proxy.route("u", "new")
        go.set()
        assert client.finals(outcome).verdict(0).positive
        assert not move.new.transactions()
        client.quit()


def test_a_backend_that_vanished_from_the_file_finishes_what_it_has(move: Move) -> None:
    go = threading.Event()
    move.old.script = Script(final=(Await(go), *say("250 2.0.0 stored")))
    with move.proxy.client() as client:
        outcome = client.envelope("s@x", ["u@x"])
        client.send(b"x\r\n.\r\n")
        assert move.old.wait_for(lambda: any(seen.dotted for seen in move.old.transactions()))
        move.proxy.config["backends"] = {"new": move.new.config}
        move.proxy.config["users"] = {"u": "new"}
        assert "active" in move.proxy.reload()
        go.set()
        assert client.finals(outcome).verdict(0).positive
        check_earned(client.deliver("2@x", ["u@x"]), [move.new])
        client.quit()


def test_a_changed_address_of_a_backend_takes_effect(move: Move) -> None:
    with FakeBackend(transport="tcp") as other, move.proxy.client() as client:
        check_earned(client.deliver("1@x", ["u@x"]), [move.old])
        move.proxy.config["backends"]["old"] = other.config
        assert "active" in move.proxy.reload()
        check_earned(client.deliver("2@x", ["u@x"]), [other])
        client.quit()


@pytest.mark.parametrize(
    "text",
    [
        "users: [unclosed",
        "",
        "config: {socket: /x, bogus: 1, fallback_backend: nobody}\nbackends: {a: {socket: /y, prot: 3}}\n"
        "users: {u: c}\n",
        "\tconfig: x\n",
        "users: !!python/object/apply:os.system ['touch OWNED']\n",
    ],
    ids=["syntax", "empty", "three-errors", "tab", "python-tag"],
)
def test_a_bad_file_changes_nothing_and_says_why(move: Move, text: str) -> None:
    with move.proxy.client() as client:
        since = move.proxy.mark()
        move.proxy.write_config(text)
        line = move.proxy.signal_reload()
        assert "refused" in line and "generation 1 stays active" in line
        log = move.proxy.log()[since:]
        assert move.proxy.config_path + ":" in log
        if "bogus" in text:
            for key in ("bogus", "prot", "nobody", "users"):
                assert key in log, f"{key} is not named:\n{log}"
        check_earned(outcome := client.deliver("s@x", ["u@x", "w@x"]), [move.old, move.new])
        assert outcome.verdict(0).positive
        assert "generation 2 active" in move.proxy.reload()
        client.quit()


def test_a_missing_file_changes_nothing(move: Move) -> None:
    os.unlink(move.proxy.config_path)
    assert "refused" in move.proxy.signal_reload()
    with move.proxy.client() as client:
        check_earned(client.deliver("s@x", ["u@x"]), [move.old])
        client.quit()


def test_a_change_that_needs_a_restart_is_logged(move: Move) -> None:
    since = move.proxy.mark()
    move.proxy.config["config"]["permissions"] = "0666"
    move.proxy.reload()
    move.proxy.wait_log("permissions.*(restart|next start)", since=since)


def test_a_storm_of_signals_coalesces_and_ends_with_the_last_file(move: Move) -> None:
    since = move.proxy.mark()
    for number in range(300):
        move.proxy.config["users"]["u"] = "new" if number % 2 else "old"
        move.proxy.write_config()
        move.proxy.signal(signal.SIGUSR1)
    deadline = time.monotonic() + SOON
    with move.proxy.client() as client:
        number = 0
        while True:  # at least one load began after the last signal
            outcome = client.deliver(f"{number}@x", ["u@x"])
            number += 1
            if move.new.transactions(outcome.sender):
                break
            assert time.monotonic() < deadline, "the last signal was lost"
            time.sleep(0.02)
        client.quit()
    time.sleep(0.3)
    loads = move.proxy.log()[since:].count("reload: generation")
    assert 1 <= loads <= 300


def test_mail_flows_during_the_reload_of_a_large_table(move: Move) -> None:
    move.proxy.config["users"].update({f"user{number}": "old" for number in range(60_000)})
    move.proxy.write_config()
    since = move.proxy.mark()
    delays = Delays(move.proxy)
    with move.proxy.client() as client:
        begun = time.monotonic()
        move.proxy.signal(signal.SIGUSR1)
        number = 0
        while "generation 2 active" not in move.proxy.log()[since:]:
            assert time.monotonic() - begun < 120, move.proxy.log()[since:]
            with delays.one():
                outcome = client.deliver(f"{number}@x", ["u@x"])
            assert outcome.verdict(0).positive
            number += 1
        assert client.deliver("last@x", ["user59999@x"]).verdict(0).positive
        client.quit()
    assert number > 1, "no mail passed during the reload"
    delays.check(0.5)


def test_under_traffic_no_final_dot_reaches_the_store_that_a_user_left(move: Move) -> None:
    """Bodies that take their time are caught by the move in every phase; the log line of the reload is the frontier."""
    stop = threading.Event()
    trouble: list[BaseException] = []
    codes: dict[int, int] = {}

    def deliver(number: int) -> None:
        try:
            with move.proxy.client() as client:
                count = 0
                while not stop.is_set():
                    outcome = client.envelope(f"{number}.{count}@x", ["u@x", "w@x"], pipelined=bool(count % 2))
                    for _ in range(number % 3):
                        client.send(b"line\r\n")
                        time.sleep(0.01)
                    client.finals_after(outcome, b"last\r\n.\r\n")
                    # Who shares the delivery with a moved user is deferred with it.
                    assert outcome.verdict(1).text[:9] in ("250 2.0.0", "451 4.2.1"), outcome
                    code = outcome.verdict(0).code
                    codes[code] = codes.get(code, 0) + 1
                    count += 1
        except BaseException as error:
            trouble.append(error)

    threads = [threading.Thread(target=deliver, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    first = 0.0
    stays: list[tuple[FakeBackend, float, float]] = []  # a store, from when on, and until when dots may reach it
    for number in range(12):
        target = "new" if number % 2 == 0 else "old"
        begun = time.monotonic()
        move.proxy.route("u", target)
        if number == 0:
            first = time.monotonic()
        else:
            stays[-1] = (*stays[-1][:2], time.monotonic())
        stays.append((move.old if target == "old" else move.new, begun, 1e18))
        time.sleep(0.8)
    stop.set()
    for thread in threads:
        thread.join()
    assert not trouble, trouble
    stays.insert(0, (move.old, 0, first))
    for store in (move.old, move.new):
        for seen in store.transactions():
            if seen.dot_at is None or not any(recipient.path == "u@x" for recipient in seen.recipients):
                continue
            # 0.4 s for the dot on its way and for this process's threads
            assert any(owner is store and since <= seen.dot_at <= until + 0.4 for owner, since, until in stays), (
                f"a message was committed to a store that its user had left: {seen.line!r}"
            )
    assert codes[250] > 50 and codes.get(451, 0) > 0, codes


def test_signals_at_once_after_the_socket_appears() -> None:
    with FakeBackend() as backend:
        for delay in (0, 0, 0, 0.005, 0.02):
            proxy = ProxyProcess(config_of({"a": backend}))
            try:
                proxy.spawn()
                deadline = time.monotonic() + SOON
                while not os.path.exists(str(proxy.address)):
                    assert time.monotonic() < deadline, proxy.log()
                time.sleep(delay)
                proxy.signal(signal.SIGUSR1)
                proxy.signal(signal.SIGHUP)
                proxy.wait_log("ready: ")
                proxy.wait_log("reload: generation 2 active")
                with proxy.client() as client:
                    assert client.deliver("s@x", ["u@a"]).verdict(0).positive
                    client.quit()
            finally:
                proxy.close()


@BOTH_MODES
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_a_reload_is_refused_while_another_version_is_on_the_disk(tmp_path: Path, processes: int, large: bool) -> None:
    """Its programs are of that version then, and need not understand what serves."""
    copied_package(tmp_path)
    program = shutil.copytree(PROGRAM.parent, tmp_path / "bin") / PROGRAM.name
    file = tmp_path / "lmtp_proxy/__init__.py"
    with FakeBackend() as old, FakeBackend() as new:
        config = config_of({"old": old, "new": new}, dict(USERS), ignoreDomain=True)
        if large:  # loaded by a process of its own
            config["users"] |= {f"user-{number:06}": "hold" for number in range(40_000)}
        with ProxyProcess(config, program=program, workers=processes) as proxy:
            text = file.read_text()
            file.write_text(text.replace(f'__version__ = "{__version__}"', '__version__ = "99.1"'))
            proxy.config["users"]["u"] = "new"
            assert "reload refused: 1 error" in proxy.reload()
            what = f"version 99.1 was installed while {__version__} runs: restart lmtp-proxy"
            assert f"ERROR reload: {what}\n" in re.sub(r" \[\d+\] ", " ", proxy.log())
            with proxy.client() as client:
                check_earned(client.deliver("1@x", ["u@x"]), [old])
                client.quit()
            file.write_text(text)
            assert "generation 2 active" in proxy.signal_reload()
