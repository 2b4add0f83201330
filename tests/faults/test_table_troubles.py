# SPDX-License-Identifier: GPL-3.0-or-later
"""config.table when something is in the way: what was not taken in is never said to be in force, and nobody is lost.

Each of these was found by somebody who looked for a status 0 after which mail reaches the former store.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from lmtp_proxy.table.sqlite import SqliteConnection
from tests.faults.conftest import Move
from tests.faults.test_ctl import in_flight, run
from tests.faults.test_move import flat
from tests.faults.test_table import ALICE, BOB, backend_of, database, proxy_of, said_to, script
from tests.support.backend import FakeBackend
from tests.support.ctl import end_ctl, start_ctl
from tests.support.patience import SOON
from tests.support.proxy import BOTH_MODES
from tests.support.script import Await, Script, say

pytestmark = BOTH_MODES
CAROL = "carol@example.org"


@contextmanager
def site(users: int = 0, **settings: object) -> Iterator[Move]:
    """With more users than a look takes one by one, if so many are asked for."""
    with FakeBackend() as old, FakeBackend() as new:
        move = Move(old, new, proxy_of(old, new, **settings))
        with closing(SqliteConnection(database(move))) as base, base.writing():
            base.change_many(
                "INSERT INTO route (address, backend) VALUES (?, 'old')", [(user_of(each),) for each in range(users)]
            )
        with move.proxy:
            yield move


@pytest.fixture
def move(processes: None) -> Iterator[Move]:
    with site() as move:
        yield move


def user_of(number: int) -> str:
    return f"u{number}@example.org"


MANY = 10_050


@contextmanager
def a_look_under_way(move: Move) -> Iterator[None]:
    """A look at the table waits, as it does for a slow disk; what is asked for meanwhile comes together after it."""
    lock = f"{database(move)}.copy.lock"
    handle = os.open(lock, os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        script(move, f"UPDATE route SET backend = 'new' WHERE address = '{CAROL}'")
        _wait_until(lambda: _waits_for(lock, move), "no look waits")
        yield
    finally:
        os.close(handle)


def _waits_for(lock: str, move: Move) -> bool:
    """Whether a process of the proxy has the file open, which it has for as long as it waits."""
    for pid in (move.proxy.pid, *move.proxy.worker_pids):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if os.readlink(descriptor) == lock:
                    return True
            except OSError:
                continue
    return False


def _wait_until(condition: Callable[[], bool], what: str, seconds: float = SOON) -> None:
    latest = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < latest, what
        time.sleep(0.02)


def break_copy(move: Move) -> None:
    """The copy on the disk cannot be written any more: it stands for a disk that is full."""
    lock = f"{database(move)}.copy.lock"
    os.unlink(lock)
    os.mkdir(lock)


def mend_copy(move: Move) -> None:
    os.rmdir(f"{database(move)}.copy.lock")


# --- status 0 means that the proxy serves by it ----------------------------------------------------------------------


def test_many_for_whom_there_is_no_room_are_moved_nowhere(processes: None, tmp_path: Path) -> None:
    with site(MANY) as move:
        os.mkdir(f"{database(move)}.copy.new")
        (tmp_path / "list").write_text("\n".join(map(user_of, range(MANY))))
        ended = run(move, "move", "--no-preflight", "--file", str(tmp_path / "list"), "new")
        assert ended.status == 1 and "nothing was changed" in ended.err, ended
        assert backend_of(move, user_of(5)) == move.delivered(user_of(5)) == "old"
        script(move, "UPDATE route SET backend = 'new' WHERE address LIKE 'u%'")
        drained = run(move, "drain", user_of(5))
        assert drained.status == 1 and "cannot be written" in flat(drained.err), drained
        forced = run(move, "reload", "--force")
        assert forced.status == 1 and move.delivered(user_of(5)) == "old", forced
        os.rmdir(f"{database(move)}.copy.new")
        assert run(move, "reload").status == 0
        drained = run(move, "drain", user_of(5))
        assert drained.status == 0 and move.delivered(user_of(5)) == "new", drained


def test_a_reload_beside_a_drain_takes_many_in_as_well(processes: None) -> None:
    with site(MANY, max_removed="100%") as move:
        began = time.monotonic()
        with a_look_under_way(move):
            script(move, f"UPDATE route SET backend = 'new' WHERE address LIKE 'u%' OR address = '{ALICE}'")
            move.proxy.signal(signal.SIGUSR1)
            process = start_ctl("-c", move.proxy.config_path, "drain", ALICE)
            move.proxy.wait_log("control: drain alice")
        ended = end_ctl(process, began)
        assert ended.status == 0 and move.delivered(ALICE) == "new", ended


def test_a_reload_beside_a_drain_hides_no_refusal(move: Move) -> None:
    began = time.monotonic()
    with a_look_under_way(move):
        script(move, f"UPDATE route SET backend = 'new' WHERE address = '{ALICE}'")
        break_copy(move)
        move.proxy.signal(signal.SIGUSR1)
        process = start_ctl("-c", move.proxy.config_path, "drain", ALICE)
        move.proxy.wait_log("control: drain alice")
    ended = end_ctl(process, began)
    assert move.delivered(ALICE) == "old"
    assert ended.status == 1 and "cannot be written" in flat(ended.err), ended
    reloaded = run(move, "reload")
    assert reloaded.status == 1 and "what the files say; config.table could not be taken in" in flat(reloaded.err)


def test_a_refused_look_is_tried_again_whatever_is_reloaded_meanwhile(move: Move) -> None:
    break_copy(move)
    script(move, f"UPDATE route SET backend = 'new' WHERE address = '{ALICE}'")
    move.proxy.wait_log("cannot be written")
    move.proxy.signal_reload()
    assert move.delivered(ALICE) == "old"
    mend_copy(move)
    move.proxy.wait_log(f"users: {ALICE}: old -> new", timeout=SOON + 10)
    assert move.delivered(ALICE) == "new"


def test_a_drain_does_not_outlast_the_refusal_of_what_it_is_for(move: Move) -> None:
    go = threading.Event()
    delivery = in_flight(move, ALICE, go)
    break_copy(move)
    script(move, f"UPDATE route SET backend = 'new' WHERE address = '{ALICE}'")
    began = time.monotonic()
    ended = run(move, "drain", ALICE)  # with a delivery to wait for, beside which the refusal may pass
    assert ended.status == 1 and time.monotonic() - began < SOON, ended
    mend_copy(move)
    late = run(move, "drain", ALICE, "--timeout", "0.3")
    assert late.status == 3 and "1 delivery still in flight" in flat(late.out), late  # not by a refusal of before
    go.set()
    delivery.join()
    assert run(move, "drain", ALICE).status == 0 and move.delivered(ALICE) == "new"


def test_who_is_moved_to_and_fro_amid_a_drain_is_waited_for_anew(move: Move) -> None:
    first, second = threading.Event(), threading.Event()
    delivery = in_flight(move, ALICE, first)
    script(move, f"UPDATE route SET backend = 'new' WHERE address = '{ALICE}'")
    began = time.monotonic()
    process = start_ctl("-c", move.proxy.config_path, "drain", ALICE)
    move.proxy.wait_log(f"users: {ALICE}: old -> new")
    assert process.stderr is not None and "waiting for 1 delivery" in process.stderr.readline()
    script(move, f"UPDATE route SET backend = 'old' WHERE address = '{ALICE}'")
    move.proxy.wait_log(f"users: {ALICE}: new -> old")
    move.old.script = Script(final=(Await(second), *say("250 2.0.0 stored")))
    with move.proxy.client() as client:
        outcome = client.envelope("second@x", [ALICE])
        client.send(b"Message-ID: <2@x>\r\n\r\nx\r\n.\r\n")
        assert move.old.wait_for(lambda: sum(seen.dotted for seen in move.old.transactions()) > 1)
        since = move.proxy.mark()
        script(move, f"UPDATE route SET backend = 'new' WHERE address = '{ALICE}'")
        move.proxy.wait_log(f"users: {ALICE}: old -> new", since=since)
        first.set()
        delivery.join()
        time.sleep(1.5)  # longer than from one question of drain to the next
        assert process.poll() is None, "the second one can still reach the former store"
        second.set()
        assert client.finals(outcome).verdict(0).code == 250
        client.quit()
    assert end_ctl(process, began).status == 0


def test_a_second_proxy_of_the_same_table_does_not_start(move: Move) -> None:
    with FakeBackend() as old, FakeBackend() as new:
        other = proxy_of(old, new, table={"sqlite": database(move)})
        other.write_config()
        program = [sys.executable, "bin/lmtp-proxy", "-c", other.config_path]
        done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=SOON)
        assert done.returncode == 1 and "another lmtp-proxy serves by this table" in done.stderr, done
    move.proxy.stop()
    move.proxy.start()
    assert move.delivered(ALICE) == "old"


# --- the files are the files, the table is the table -----------------------------------------------------------------


def test_a_change_of_the_table_puts_no_edit_of_the_file_in_force(processes: None) -> None:
    with site(MANY) as move:
        path = Path(move.proxy.config_path)
        text = path.read_text()
        path.write_text(text.replace("config:\n", "config:\n  fallback_backend: new\n", 1))
        script(move, "UPDATE route SET backend = 'new' WHERE address LIKE 'u%'")
        assert run(move, "drain", "--all").status == 0 and move.delivered(user_of(5)) == "new"
        assert said_to(move, "nobody@example.org").code == 450
        path.write_text(f"{text}\nbroken: [\n")
        script(move, "UPDATE route SET backend = 'old' WHERE address LIKE 'u%'")
        assert run(move, "drain", "--all").status == 0 and move.delivered(user_of(5)) == "old"


# --- who is taken away -----------------------------------------------------------------------------------------------


def test_others_in_the_place_of_most_users_are_refused_and_the_copy_stays(processes: None) -> None:
    with site(MANY) as move:
        others = "SELECT 'v' || address, 'old' FROM route WHERE address LIKE 'u%'"
        script(
            move,
            f"INSERT INTO route (address, backend) {others}",
            "DELETE FROM route WHERE address LIKE 'u%'",
        )
        refused = run(move, "drain", "--all")
        assert refused.status == 1 and f"has lost {MANY} of {MANY + 4:,} users" in flat(refused.err), refused
        assert move.delivered(user_of(5)) == "old"
        move.proxy.stop()
        os.rename(database(move), f"{database(move)}.gone")
        move.proxy.start()
        assert move.delivered(user_of(5)) == "old", "the copy was not made of what was refused"
        os.rename(f"{database(move)}.gone", database(move))
        move.proxy.stop()
        move.proxy.start()
        assert move.delivered(user_of(5)) == "old", "a restart takes it no more than a reload"
        forced = run(move, "reload", "--force")
        assert forced.status == 0 and f"{MANY} added, {MANY} removed" in flat(forced.out), forced
        assert said_to(move, user_of(5)).code == 451 and move.delivered(f"v{user_of(5)}") == "old"


def test_who_was_taken_away_is_deferred_across_a_restart_and_a_new_copy(processes: None) -> None:
    with site(MANY, fallback_backend="new", max_removed="100%") as move:
        script(move, f"DELETE FROM route WHERE address = '{ALICE}'")
        assert run(move, "drain", ALICE).status == 0 and said_to(move, ALICE).code == 451
        script(move, "DELETE FROM route WHERE address LIKE 'u%'")
        assert run(move, "drain", ALICE).status == 0
        assert said_to(move, ALICE).code == said_to(move, user_of(5)).code == 451
        move.proxy.stop()
        move.proxy.start()
        assert said_to(move, user_of(7)).code == 451


def test_what_a_backup_sends_back_is_named(move: Move) -> None:
    assert run(move, "move", "--no-preflight", ALICE, "new").status == 0
    script(
        move,
        f"UPDATE route SET backend = 'old' WHERE address = '{ALICE}'",
        "UPDATE changed SET tag = tag + 1",
        "UPDATE fleet SET tag = tag + 1",
    )
    assert run(move, "drain", ALICE).status == 1
    since = move.proxy.mark()
    forced = run(move, "reload", "--force")
    assert forced.status == 0 and "1 moved" in forced.out, forced
    move.proxy.wait_log(f"users: {ALICE}: new -> old", since=since)


# --- rows ------------------------------------------------------------------------------------------------------------


def test_a_row_that_is_no_utf_8_is_one_row(move: Move) -> None:
    script(move, "INSERT INTO route (address, backend) VALUES (CAST(x'6dfc6c6c657240657861' AS TEXT), 'old')")
    assert run(move, "move", "--no-preflight", ALICE, "new").status == 0
    assert move.delivered(ALICE) == "new"
    checked = run(move, "table", "check")
    assert checked.status == 1 and "is no UTF-8" in checked.err, checked
    assert "1 row cannot be served" in flat(run(move, "status").out)
    move.proxy.stop()
    move.proxy.start()
    script(move, "DELETE FROM route WHERE address LIKE 'm%'")
    assert run(move, "move", "--no-preflight", ALICE, "old").status == 0
    assert "cannot be served" not in run(move, "status").out


def test_a_backend_with_a_line_feed_is_refused_and_served_to_nobody(move: Move) -> None:
    for address in (BOB, ALICE):
        script(
            move,
            "PRAGMA ignore_check_constraints = 1",
            f"UPDATE route SET backend = 'new' || char(10) WHERE address = '{address}'",
        )
    assert run(move, "drain", "--all").status == 0
    assert said_to(move, ALICE).code == 451
    move.proxy.stop()
    move.proxy.start()
    assert said_to(move, ALICE).code == said_to(move, BOB).code == 451
    assert "Traceback" not in move.proxy.log()
    assert run(move, "table", "check").status == 1
    script(move, f"UPDATE route SET backend = 'new' WHERE address = '{ALICE}'")
    assert run(move, "drain", ALICE).status == 0 and move.delivered(ALICE) == "new"


# --- marks -----------------------------------------------------------------------------------------------------------


def test_a_mark_that_nobody_takes_away_is_cleared(move: Move) -> None:
    script(
        move,
        f"UPDATE route SET moving = 1, moving_by = 'elsewhere 1 2 3 4' WHERE address = '{ALICE}'",
        f"UPDATE route SET moving = 1, moving_by = NULL WHERE address = '{BOB}'",
    )
    assert "move --clear" in flat(run(move, "table", "check").out)
    refused = run(move, "move", "--no-preflight", ALICE, "new")
    assert refused.status == 1 and "move --clear" in flat(refused.err), refused
    cleared = run(move, "move", "--clear", ALICE, CAROL)
    assert cleared.status == 0, cleared
    assert re.search(rf"{ALICE}: was marked by elsewhere 1 2 3 4\s+{CAROL}: no mark", cleared.out)
    assert run(move, "move", "--no-preflight", ALICE, "new").status == 0
    assert run(move, "move", "--no-preflight", BOB, "old").status == 0, "a mark of nobody is in nobody's way"


def test_a_log_with_a_gap_is_mended_before_anybody_starts_by_it(move: Move) -> None:
    assert run(move, "move", "--no-preflight", ALICE, "new").status == 0
    log = Path(f"{database(move)}.copy.log")
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(line for line in lines if ALICE.encode() not in line))
    script(move, f"UPDATE route SET backend = 'new' WHERE address = '{CAROL}'")
    assert run(move, "drain", CAROL).status == 0
    move.proxy.stop()
    os.rename(database(move), f"{database(move)}.gone")
    move.proxy.start()
    assert move.delivered(ALICE) == move.delivered(CAROL) == "new"
    move.proxy.stop()
    log.write_bytes(b'{"name": "x"}\n0\n')
    Path(f"{database(move)}.copy").write_bytes(b"")
    move.proxy.start()
    assert said_to(move, ALICE).code == 451, "better nobody has a route than a former one"
