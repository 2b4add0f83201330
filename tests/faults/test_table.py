# SPDX-License-Identifier: GPL-3.0-or-later
"""config.table: users in SQLite, against the real process, alone and with workers.

What is promised of a file of users is promised of a table, too; and a database that is away stops no mail.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lmtp_proxy.table.sqlite import SqliteConnection, init
from lmtp_proxy.table.store import TableStore
from tests.faults.conftest import Move
from tests.faults.test_ctl import in_flight, run
from tests.faults.test_move import flat
from tests.support.backend import FakeBackend
from tests.support.client import Reply
from tests.support.ctl import end_ctl, start_ctl
from tests.support.patience import SOON
from tests.support.proxy import BOTH_MODES, ProxyProcess
from tests.support.script import Await, Close, Script
from tests.support.site import Site

ALICE, BOB = "alice@example.org", "bob@example.org"
USERS = {ALICE: "old", BOB: "new", "carol@example.org": "old", "@example.net": "old"}

pytestmark = BOTH_MODES


def proxy_of(old: FakeBackend, new: FakeBackend, **settings: object) -> ProxyProcess:
    """Not started yet, with USERS in its table."""
    directory = tempfile.mkdtemp(prefix="lpt", dir="/tmp")
    config: dict[str, dict[str, object]] = {
        "config": {
            "control": {"socket": f"{directory}/ctl"},
            "uncertain_log": f"{directory}/uncertain",
            "table": {"sqlite": f"{directory}/table.db"},
            **settings,
        },
        "backends": {name: {**store.config, "idle_timeout": 0} for name, store in {"old": old, "new": new}.items()},
    }
    proxy = ProxyProcess(config, directory=directory)
    init(f"{directory}/table.db", [], 1, None)
    with closing(SqliteConnection(f"{directory}/table.db")) as base:
        TableStore(base).put(iter(USERS.items()), "import")
    return proxy


@pytest.fixture
def move(processes: None) -> Iterator[Move]:
    with FakeBackend() as old, FakeBackend() as new, proxy_of(old, new) as proxy:
        yield Move(old, new, proxy)


def database(move: Move) -> str:
    return f"{move.proxy.directory}/table.db"


def script(move: Move, *statements: str) -> list[tuple[object, ...]]:
    """What somebody's own script does, as they know nothing of a proxy; the rows of the last statement."""
    with closing(sqlite3.connect(database(move), timeout=10)) as base, base:
        for statement in statements[:-1]:
            base.execute(statement)
        return base.execute(statements[-1]).fetchall()


def backend_of(move: Move, user: str) -> object:
    [(backend,)] = script(move, f"SELECT backend FROM route WHERE address = '{user}'")
    return backend


def said_to(move: Move, user: str) -> Reply:
    """The reply that a mail for `user` gets."""
    with move.proxy.client() as client:
        reply = client.deliver("after@x", [user]).verdict(0)
        client.quit()
    return reply


# --- moves -----------------------------------------------------------------------------------------------------------


def test_mail_goes_where_the_table_says(move: Move) -> None:
    assert [move.delivered(user) for user in (ALICE, BOB, "x@example.net")] == ["old", "new", "old"]
    assert said_to(move, "nobody@example.org").text.startswith("450 4.1.1")
    assert "users       4: 3 on old, 1 on new" in run(move, "status").out
    looked = run(move, "lookup", ALICE)
    assert "found in  table" in looked.out and "backend   old" in looked.out


def test_move(move: Move) -> None:
    ended = run(move, "move", ALICE, "new")
    assert ended.status == 0, ended
    assert re.match(rf"{ALICE}: old -> new, generation \d+, nothing in flight \(", flat(ended.out))
    assert backend_of(move, ALICE) == "new"
    assert move.delivered(ALICE) == "new" and move.delivered("carol@example.org") == "old"
    assert script(move, "SELECT count(*) FROM route WHERE moving = 1") == [(0,)]
    again = run(move, "move", ALICE, "new")
    assert again.status == 0 and "was on new already" in again.out


def test_a_plain_update_is_a_move_and_drain_tells_when_it_is_quiet(move: Move) -> None:
    go = threading.Event()
    delivery = in_flight(move, ALICE, go)
    script(move, f"UPDATE route SET backend = 'new' WHERE address = '{ALICE}'")
    late = run(move, "drain", ALICE, "--timeout", "0.3")
    assert late.status == 3 and "1 delivery still in flight" in flat(late.out), late
    go.set()
    delivery.join()
    drained = run(move, "drain", ALICE)
    assert drained.status == 0 and f"{ALICE}: on new" in drained.out
    assert move.delivered(ALICE) == "new"


def test_an_update_is_in_force_without_anybody_asking(move: Move) -> None:
    script(move, f"UPDATE route SET backend = 'new' WHERE address = '{ALICE}'")
    move.proxy.wait_log(f"users: {ALICE}: old -> new")
    assert move.delivered(ALICE) == "new"
    script(move, f"UPDATE route SET backend = 'old' WHERE address = '{ALICE}'")
    move.proxy.wait_log(f"users: {ALICE}: new -> old")
    assert move.delivered(ALICE) == "old"


def test_a_user_who_is_parked_goes_on_when_the_table_says_so(move: Move) -> None:
    assert run(move, "move", ALICE, "hold").status == 0
    with move.proxy.client() as client:
        client.send(f"MAIL FROM:<s@x>\r\nRCPT TO:<{ALICE}>\r\n".encode())
        assert client.reply().positive
        script(move, f"UPDATE route SET backend = 'new' WHERE address = '{ALICE}'")
        assert client.reply().positive
        client.quit()


def test_the_move_waits_and_nothing_reaches_the_old_store_after_it(move: Move) -> None:
    go = threading.Event()
    delivery = in_flight(move, ALICE, go)
    began = time.monotonic()
    process = start_ctl("-c", move.proxy.config_path, "move", ALICE, "new")
    assert process.stderr is not None
    assert process.stderr.readline().startswith("waiting for 1 delivery to old[")
    go.set()
    ended = end_ctl(process, began)
    delivery.join()
    assert ended.status == 0 and "for 1 delivery" in flat(ended.out), ended
    assert move.delivered(ALICE) == "new"


def test_an_uncertain_delivery_is_status_2(move: Move) -> None:
    go = threading.Event()
    move.old.script = Script(final=(Await(go), Close()))
    with move.proxy.client() as client:
        outcome = client.envelope("s@x", [ALICE])
        client.send(b"Message-ID: <uncertain@x>\r\n\r\nx\r\n.\r\n")
        assert move.old.wait_for(lambda: any(seen.dotted for seen in move.old.transactions()))
        began = time.monotonic()
        process = start_ctl("-c", move.proxy.config_path, "move", ALICE, "new")
        move.proxy.wait_log("control: drain alice")
        go.set()
        ended = end_ctl(process, began)
        assert client.finals(outcome).verdict(0).code == 451
        client.quit()
    assert ended.status == 2 and "<uncertain@x>" in ended.out, ended


def test_a_move_that_runs_out_of_time_is_in_force(move: Move) -> None:
    go = threading.Event()
    delivery = in_flight(move, ALICE, go)
    late = run(move, "move", ALICE, "new", "--timeout", "0.3")
    assert late.status == 3 and backend_of(move, ALICE) == "new", late
    go.set()
    delivery.join()
    assert run(move, "move", ALICE, "new").status == 0, "the mark of the first one is nobody's any more"


def test_a_list(move: Move, tmp_path: Path) -> None:
    users = [f"user{number}@example.org" for number in range(300)]
    script(move, *(f"INSERT INTO route (address, backend) VALUES ('{user}', 'old')" for user in users))
    (tmp_path / "list").write_text("\n".join(users))
    ended = run(move, "move", "--no-preflight", "--file", str(tmp_path / "list"), "new")
    assert ended.status == 0 and "300 users: 300 old -> new" in flat(ended.out), ended
    assert script(move, "SELECT count(*) FROM route WHERE backend = 'new'") == [(301,)]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([ALICE, "nowhere"], 'there is no backend "nowhere"'),
        (["alice", "new"], "has no domain, and is on no line"),
    ],
)
def test_a_move_that_is_refused_changes_nothing(move: Move, arguments: list[str], words: str) -> None:
    before = script(move, "SELECT gen FROM fleet")
    ended = run(move, "move", "--no-preflight", *arguments)
    assert ended.status == 1 and words in flat(ended.err) and "nothing was changed" in ended.err, ended
    assert script(move, "SELECT gen FROM fleet") == before


def test_a_rehearsal_and_a_condition_change_nothing(move: Move) -> None:
    before = script(move, "SELECT gen FROM fleet")
    looked = run(move, "move", "--no-preflight", "--dry-run", ALICE, "new")
    assert looked.status == 0 and f"{ALICE}: old -> new" in looked.out, looked
    refused = run(move, "move", "--no-preflight", "--only-from", "new,reject", ALICE, "new")
    assert refused.status == 1 and "nothing was changed" in refused.err, refused
    assert script(move, "SELECT gen FROM fleet") == before
    assert run(move, "move", "--no-preflight", "--only-from", "old", ALICE, "new").status == 0


def test_two_movers_of_one_user(move: Move) -> None:
    go = threading.Event()
    delivery = in_flight(move, ALICE, go)
    began = time.monotonic()
    first = start_ctl("-c", move.proxy.config_path, "move", ALICE, "new")
    move.proxy.wait_log("control: drain alice")
    second = run(move, "move", ALICE, "reject")
    assert second.status == 1 and f"{ALICE} is being moved by" in second.err, second
    first.send_signal(signal.SIGKILL)
    end_ctl(first, began)
    go.set()
    delivery.join()
    assert run(move, "move", ALICE, "reject").status == 0, "who is gone moves nobody"
    assert backend_of(move, ALICE) == "reject"


def test_migrate(processes: None) -> None:
    site = Site()
    with FakeBackend() as old, FakeBackend() as new:
        receipts = f"{site.directory}/receipts.db"
        with proxy_of(old, new, receipts=receipts) as proxy:
            move = Move(old, new, proxy)
            plan = site.plan()
            looked = run(move, "migrate", plan, "--all-on", "old", "--dry-run")
            assert looked.status == 0 and ALICE in looked.out and "carol@example.org" in looked.out, looked
            done = run(move, "migrate", plan, "--all-on", "old", "--jobs", "2")
            assert done.status == 0, done
            assert {user: backend_of(move, user) for user in USERS} == {
                ALICE: "new",
                BOB: "new",
                "carol@example.org": "new",
                "@example.net": "old",
            }
            assert site.hooks_of(ALICE) == ["sync", "block", "final_sync", "verify", "redirect", "unblock"]
            assert move.delivered(ALICE) == "new"
            assert script(move, "SELECT count(*) FROM route WHERE moving = 1") == [(0,)]
    shutil.rmtree(site.directory)


# --- rows that cannot be served --------------------------------------------------------------------------------------


def test_what_cannot_be_served_is_deferred_and_named(move: Move) -> None:
    script(
        move,
        "INSERT INTO route (address, backend) VALUES ('Dave@example.net', 'new'), ('erin@example.net', 'nowhere')",
    )
    assert run(move, "drain", "--all").status == 0
    for user in ("dave@example.net", "erin@example.net"):
        assert said_to(move, user).text.startswith("451 4.3.0"), user
    checked = run(move, "table", "check")
    assert checked.status == 1
    assert 'Dave@example.net: must be written "dave@example.net"' in checked.err
    assert 'erin@example.net: there is no backend "nowhere"' in checked.err
    script(
        move,
        "DELETE FROM route WHERE address = 'Dave@example.net'",
        "UPDATE route SET backend = 'new' WHERE address = 'erin@example.net'",
    )
    assert run(move, "drain", "--all").status == 0
    assert move.delivered("dave@example.net") == "old" and move.delivered("erin@example.net") == "new"


def test_who_was_taken_away_is_deferred_for_a_while(move: Move) -> None:
    script(move, "INSERT INTO route (address, backend) VALUES ('dave@example.net', 'new')")
    assert run(move, "drain", "--all").status == 0 and move.delivered("dave@example.net") == "new"
    script(move, "DELETE FROM route WHERE address = 'dave@example.net'")
    assert run(move, "drain", "--all").status == 0
    assert said_to(move, "dave@example.net").text.startswith("451 4.3.0")
    script(move, "INSERT INTO route (address, backend) VALUES ('dave@example.net', 'new')")
    assert run(move, "drain", "--all").status == 0 and move.delivered("dave@example.net") == "new"


def test_most_users_are_not_taken_away_by_a_mistake(move: Move) -> None:
    script(move, *(f"INSERT INTO route (address, backend) VALUES ('u{number}@x', 'old')" for number in range(40)))
    assert run(move, "drain", "--all").status == 0
    script(move, "DELETE FROM route")
    refused = run(move, "drain", "--all")
    assert refused.status == 1 and "the table has lost 44 of 44 users" in flat(refused.err), refused
    assert move.delivered(ALICE) == move.delivered("u1@x") == "old"
    stopped = run(move, "move", "--no-preflight", ALICE, "new")
    assert stopped.status == 1 and "nothing was changed" in stopped.err, stopped
    assert script(move, "SELECT count(*) FROM route") == [(0,)]
    forced = run(move, "reload", "--force")
    assert forced.status == 0, forced
    assert said_to(move, ALICE).code in (450, 451)


# --- a database that is away -----------------------------------------------------------------------------------------


def test_a_database_that_is_gone_stops_no_mail(move: Move) -> None:
    os.rename(database(move), database(move) + ".gone")
    move.proxy.wait_log("there is no such file")
    assert move.delivered(ALICE) == "old"
    for verb in (["move", "--no-preflight", ALICE, "new"], ["drain", ALICE]):
        ended = run(move, *verb)
        assert ended.status == 1 and "there is no such file" in ended.err, ended
    os.rename(database(move) + ".gone", database(move))
    assert run(move, "move", ALICE, "new").status == 0
    assert move.delivered(ALICE) == "new"


def test_a_database_that_is_locked_stops_no_mail(move: Move) -> None:
    with closing(sqlite3.connect(database(move), isolation_level=None)) as base:
        base.execute("BEGIN IMMEDIATE")
        assert move.delivered(ALICE) == "old"
        assert run(move, "drain", ALICE).status == 0, "who reads does not wait for who writes"
        ended = run(move, "move", ALICE, "new")
        assert ended.status == 1 and "is locked by another process" in ended.err, ended
        base.execute("ROLLBACK")
    assert run(move, "move", ALICE, "new").status == 0


def test_a_database_that_is_damaged_stops_no_mail_and_no_start(move: Move) -> None:
    assert run(move, "move", ALICE, "new").status == 0
    for name in (database(move), f"{database(move)}-wal", f"{database(move)}-shm"):
        Path(name).write_bytes(b"x" * 20000)
    ended = run(move, "move", ALICE, "old")
    assert ended.status == 1 and "nothing was changed" in ended.err, ended
    assert move.delivered(ALICE) == "new"
    move.proxy.stop()
    move.proxy.start()
    assert move.delivered(ALICE) == "new" and move.delivered("carol@example.org") == "old"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_start_without_the_database_goes_on_where_it_was(move: Move, how: int) -> None:
    assert run(move, "move", ALICE, "new").status == 0
    script(move, f"UPDATE route SET backend = 'old' WHERE address = '{BOB}'")
    assert run(move, "drain", BOB).status == 0
    workers = move.proxy.worker_pids
    move.proxy.signal(how)
    move.proxy.wait()
    for pid in workers:
        _wait_gone(pid)
    os.rename(database(move), database(move) + ".gone")
    since = move.proxy.mark()
    move.proxy.start()
    move.proxy.wait_log("mail goes on by the copy of it", since=since)
    assert [move.delivered(user) for user in (ALICE, BOB, "carol@example.org")] == ["new", "old", "old"]
    os.rename(database(move) + ".gone", database(move))
    # Of what a process that was killed had handed over nobody knows, as ever.
    assert run(move, "move", "carol@example.org", "new").status == (0 if how == signal.SIGTERM else 2)
    assert move.delivered("carol@example.org") == "new"


def test_a_start_with_neither_database_nor_copy_defers(move: Move) -> None:
    move.proxy.stop()
    for name in os.listdir(move.proxy.directory):
        if name.startswith("table.db"):
            os.unlink(os.path.join(move.proxy.directory, name))
    move.proxy.start()
    assert said_to(move, ALICE).text.startswith("451 4.3.0")


def test_a_backup_that_is_put_back_takes_nothing_back_by_itself(move: Move) -> None:
    with closing(sqlite3.connect(database(move))) as base, closing(sqlite3.connect(database(move) + ".b")) as backup:
        base.backup(backup)
    assert run(move, "move", ALICE, "new").status == 0
    with closing(sqlite3.connect(database(move))) as base, closing(sqlite3.connect(database(move) + ".b")) as backup:
        backup.backup(base)
    # As many changes as before, and other ones.
    script(move, *["UPDATE route SET moving = 1 - moving WHERE address = '@example.net'"] * 3)
    refused = run(move, "drain", ALICE)
    assert refused.status == 1 and "was it put back from a backup?" in flat(refused.err), refused
    assert move.delivered(ALICE) == "new"
    stopped = run(move, "move", "--no-preflight", BOB, "old")
    assert stopped.status == 1 and "nothing was changed" in stopped.err, stopped
    assert backend_of(move, BOB) == "new"
    assert run(move, "reload", "--force").status == 0
    assert move.delivered(ALICE) == "old"
    assert run(move, "move", BOB, "old").status == 0


# --- under load ------------------------------------------------------------------------------------------------------


def test_nothing_reaches_the_former_store_after_a_move_while_mail_flows(move: Move) -> None:
    stop = threading.Event()
    troubles: list[str] = []

    def load(number: int) -> None:
        while not stop.is_set():
            with move.proxy.client() as client:
                verdict = client.deliver(f"load{number}@x", [ALICE]).verdict(0)
                if verdict.code not in (250, 451):
                    troubles.append(verdict.text)
                client.quit()

    threads = [threading.Thread(target=load, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    stores = {"old": move.old, "new": move.new}
    try:
        for number in range(10):
            to, former = ("new", "old") if number % 2 == 0 else ("old", "new")
            if number % 3 == 2:
                script(move, f"UPDATE route SET backend = '{to}' WHERE address = '{ALICE}'")
                ended = run(move, "drain", ALICE)
            else:
                ended = run(move, "move", "--no-preflight", ALICE, to)
            quiet = time.monotonic()
            assert ended.status == 0, ended
            time.sleep(0.2)
            late = [seen for seen in stores[former].transactions() if seen.dot_at is not None and seen.dot_at > quiet]
            assert late == []
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert troubles == []


# --- one configuration -----------------------------------------------------------------------------------------------


def test_a_reload_keeps_the_table(move: Move) -> None:
    assert run(move, "move", ALICE, "new").status == 0
    move.proxy.config["config"]["hold_timeout"] = 7
    move.proxy.write_config()
    assert "changed: config.hold_timeout" in move.proxy.signal_reload()
    assert move.delivered(ALICE) == "new"
    assert run(move, "reload").status == 0
    move.proxy.config["config"]["recipient_delimiter"] = "-"
    move.proxy.write_config()
    assert "active" in move.proxy.signal_reload()
    assert move.delivered(ALICE) == move.delivered("alice-x@example.org") == "new"


def test_users_beside_a_table_are_refused_with_the_way_to_bring_them_over(move: Move) -> None:
    move.proxy.config["users"] = {"dave@example.org": "old"}
    move.proxy.write_config()
    line = move.proxy.signal_reload()
    assert "refused" in line
    assert "`lmtp-proxyctl table import" in move.proxy.log()
    assert move.delivered(ALICE) == "old"


def test_another_table_needs_a_restart(move: Move) -> None:
    move.proxy.config["config"]["table"] = {"sqlite": database(move) + "2"}
    move.proxy.write_config()
    assert "refused" in move.proxy.signal_reload()
    assert "where the users are changes at a restart only" in move.proxy.log()


def test_export_and_import_are_each_other(move: Move) -> None:
    exported = run(move, "table", "export")
    assert exported.status == 0
    again = Path(move.proxy.directory, "again.yml")
    again.write_text(exported.out)
    assert run(move, "table", "import", str(again)).status == 1, "it is not empty"
    move.proxy.config["config"]["table"] = {"sqlite": database(move) + "2"}
    move.proxy.write_config()
    assert run(move, "table", "init").status == 0
    assert run(move, "table", "import", str(again)).status == 0
    assert run(move, "table", "export").out == exported.out


def _wait_gone(pid: int) -> None:
    latest = time.monotonic() + SOON
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < latest
        time.sleep(0.02)


def test_check_names_what_is_missing(move: Move) -> None:
    os.rename(database(move), database(move) + ".gone")
    program = [sys.executable, "bin/lmtp-proxy", "-c", move.proxy.config_path, "--check"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "`lmtp-proxyctl table init` makes one" in done.stderr
    done = subprocess.run([*program[:-1], "--check=file"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    os.rename(database(move) + ".gone", database(move))
