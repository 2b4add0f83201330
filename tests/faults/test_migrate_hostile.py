# SPDX-License-Identifier: GPL-3.0-or-later
"""lmtp-proxyctl migrate against a tired operator and a hostile world: what must not be lost, forgotten or undone."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from lmtp_proxy.ctl.migrate import keeper
from tests.faults.test_migrate import ALICE, BOB, Stand, kill
from tests.support.backend import FakeBackend
from tests.support.ctl import PROGRAM, controlled, ctl, end_ctl
from tests.support.site import Site

LISTS = "alice+lists@example.org"


@pytest.fixture
def stand() -> Iterator[Stand]:
    receipts = f"/tmp/lpr{os.getpid()}.{random.SystemRandom().randrange(10**9)}"
    os.mkdir(receipts)
    site = Site()
    with (
        FakeBackend() as old,
        FakeBackend() as new,
        controlled({"old": old, "new": new}, {ALICE: "old", BOB: "old"}, receipts=f"{receipts}/r.db") as proxy,
    ):
        yield Stand(old, new, proxy, site)
    shutil.rmtree(receipts)
    shutil.rmtree(site.directory)


def program(stand: Stand, *arguments: str) -> list[str]:
    return [sys.executable, str(PROGRAM), *stand.arguments(*arguments)]


def script(stand: Stand, text: str) -> list[str]:
    path = Path(stand.site.directory, f"script{random.SystemRandom().randrange(10**9)}")
    path.write_text(text)
    return ["/bin/sh", str(path)]


# --- the commands ----------------------------------------------------------------------------------------------------


def test_a_parent_that_ignores_sigchld_does_not_turn_failures_into_successes(stand: Stand) -> None:
    stand.site.order("final_sync", exit=1)
    ended = subprocess.run(
        program(stand, stand.site.plan(), ALICE),
        capture_output=True,
        text=True,
        timeout=50,
        preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
    )
    assert ended.returncode == 2 and "final_sync: exit 1" in ended.stderr, ended
    assert stand.backends()[ALICE] == "old" and stand.states() == {ALICE: "failed"}


def test_a_sync_that_goes_on_when_its_command_has_ended_is_a_failure(stand: Stand) -> None:
    late = Path(stand.site.directory, "late")
    ended = stand.run(ALICE, plan=stand.site.plan(final_sync=script(stand, f"(sleep 6; touch {late}) &\n")))
    assert ended.status == 2 and "final_sync: ended, and left processes behind" in ended.err, ended
    assert stand.backends()[ALICE] == "old" and stand.site.hooks_of(ALICE) == ["sync", "block", "unblock"]
    time.sleep(6)
    assert not late.exists()


FIRST = "[ -e {site}/first ] && exit 0; echo $$ >{site}/first; "


def first_sync(stand: Stand, text: str, **hooks: Any) -> tuple[subprocess.Popen[bytes], str, int]:
    """A final sync that does `text` the first time, the plan, and the process id that it had."""
    plan = stand.site.plan(final_sync=script(stand, (FIRST + text).replace("{site}", stand.site.directory)), **hooks)
    process = subprocess.Popen(program(stand, plan, ALICE), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    number = Path(stand.site.directory, "first")
    latest = time.monotonic() + 20
    while not number.exists() or not number.read_text():
        assert time.monotonic() < latest and process.poll() is None
        time.sleep(0.01)
    return process, plan, int(number.read_text())


def kill_with_keeper(process: subprocess.Popen[bytes], command: keeper.Process) -> None:
    """The run and, before it can do anything about that, the keeper of its command."""
    os.kill(command.parent, signal.SIGSTOP)
    process.kill()
    process.wait()
    os.kill(command.parent, signal.SIGKILL)


def lives(pid: int) -> bool:
    found = keeper.process(pid)
    return found is not None and found.alive


@pytest.mark.parametrize(
    "text",
    [
        "exec env -i sleep 15",
        "setsid env -i sh -c 'echo $$ >{site}/first; exec sleep 15' & wait",
        # doveadm, ssh's master and whatever calls itself a daemon: two forks, a session, no descriptor, no name.
        "exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-; "
        "(setsid env -i sh -c 'echo $$ >{site}/first; exec sleep 15' &); sleep 15",
    ],
)
def test_a_sync_without_its_environment_does_not_outlive_its_run(stand: Stand, text: str) -> None:
    process, plan, pid = first_sync(stand, text)
    process.kill()
    process.wait()
    ended = stand.run(ALICE, plan=plan)
    assert ended.status == 0 and stand.backends()[ALICE] == "new", ended
    assert not lives(pid)


def test_a_sync_whose_keeper_died_with_the_run_is_ended_and_the_user_refused(stand: Stand) -> None:
    """Nobody can say whether that was all of it; after a human has looked it goes on."""
    process, plan, pid = first_sync(stand, "exec env -i sleep 60")
    found = keeper.process(pid)
    assert found is not None
    kill_with_keeper(process, found)
    ended = stand.run(ALICE, BOB, plan=plan)
    assert ended.status == 2 and not lives(pid), ended
    assert f"process {pid} of a run that died is still there: ending it" in ended.err
    what = "of its final_sync nobody knows whether all has ended, as its keeper was killed, too"
    assert f"{what}: see that nothing of it runs; then `lmtp-proxyctl migrate release` or `reset`" in ended.err
    assert stand.states() == {ALICE: "needs_attention", BOB: "done"}, "the others go on"
    assert stand.backends()[ALICE] == "reject"
    again = stand.run(ALICE, plan=plan)
    assert again.status == 2 and "nobody knows" in again.err and stand.backends()[ALICE] == "reject"
    assert stand.verb("release", ALICE).status == 0 and stand.backends()[ALICE] == "old"
    assert stand.run(ALICE, plan=plan).status == 0 and stand.states()[ALICE] == "done"
    assert [name for name in os.listdir(stand.site.directory) if ".step" in name] == []


def test_a_command_that_deletes_nothing_goes_on_when_what_is_left_was_ended(stand: Stand) -> None:
    first = (FIRST + "exec env -i sleep 60").replace("{site}", stand.site.directory)
    plan = stand.site.plan(block=script(stand, first))
    process = subprocess.Popen(program(stand, plan, ALICE), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    number = Path(stand.site.directory, "first")
    while not number.exists() or not number.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    found = keeper.process(int(number.read_text()))
    assert found is not None
    kill_with_keeper(process, found)
    ended = stand.run(ALICE, plan=plan)
    assert ended.status == 0 and "ending it" in ended.err and not lives(found.pid), ended


def test_a_server_of_an_earlier_step_outlives_the_run_that_died_later(stand: Stand) -> None:
    """It has the lock of the step that started it, and its environment; but that step had ended."""
    number = Path(stand.site.directory, "server")
    restart = script(stand, f"setsid sh -c 'echo $$ >{number}; exec sleep 120' >/dev/null 2>&1 &\n")
    process, plan, _ = first_sync(stand, "exec env -i sleep 60", block=restart)
    server = int(number.read_text())
    process.kill()
    process.wait()
    assert stand.run(ALICE, plan=plan).status == 0
    assert lives(server)
    os.kill(server, signal.SIGKILL)
    os.kill(int(number.read_text()), signal.SIGKILL)


def test_what_ends_a_moment_after_the_sync_is_no_failure(stand: Stand) -> None:
    assert stand.run(ALICE, plan=stand.site.plan(final_sync=script(stand, "sleep 0.3 &\n"))).status == 0


def test_a_server_that_a_command_has_started_anew_outlives_the_next_run(stand: Stand) -> None:
    number = Path(stand.site.directory, "server")
    restart = script(stand, f"setsid sh -c 'echo $$ >{number}; exec sleep 120' >/dev/null 2>&1 &\n")
    assert stand.run(ALICE, plan=stand.site.plan(redirect=restart)).status == 0
    while not number.exists() or not number.read_text():
        time.sleep(0.01)
    server = int(number.read_text())
    try:
        ended = stand.run(BOB)
        assert ended.status == 0 and "ending it" not in ended.err
        assert Path(f"/proc/{server}/cmdline").read_bytes().startswith(b"sleep")
    finally:
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)


# --- who looks on ----------------------------------------------------------------------------------------------------


def test_a_pager_that_takes_nothing_holds_up_nobody(stand: Stand) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    for size in (4096, 1):
        with suppress(BlockingIOError):
            while True:
                os.write(writing, b"x" * size)
    os.set_blocking(writing, True)
    process = subprocess.Popen(program(stand, stand.site.plan(), ALICE), stdout=subprocess.DEVNULL, stderr=writing)
    try:
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        os.close(writing)
    assert stand.states() == {ALICE: "done"}


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_without_a_standard_error(stand: Stand, closed: str) -> None:
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", *program(stand, stand.site.plan(), ALICE)]
    assert subprocess.run(command, timeout=50).returncode == 0
    assert stand.states() == {ALICE: "done"}


# --- somebody else ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["new", "reject"])
def test_who_is_moved_by_somebody_else_during_the_sync_is_left_there(stand: Stand, where: str) -> None:
    stand.site.order("sync", hold=True)
    process = stand.start(ALICE)
    stand.site.wait_for("sync")
    assert ctl("-c", stand.proxy.config_path, "move", ALICE, where).status == 0
    stand.site.let_go()
    ended = end_ctl(process, time.monotonic())
    assert ended.status == 2 and f"is on {where}: somebody else moved the user meanwhile" in ended.err
    assert stand.backends()[ALICE] == where and stand.site.hooks_of(ALICE) == ["sync"]
    assert stand.states() == {ALICE: "needs_attention"}


def test_no_sync_is_run_again_for_who_was_moved_by_somebody_else(stand: Stand) -> None:
    stand.site.order("sync", hold=True)
    process = stand.start(ALICE, sync_again_above=0)
    stand.site.wait_for("sync")
    assert ctl("-c", stand.proxy.config_path, "move", ALICE, "new").status == 0
    stand.site.let_go()
    assert end_ctl(process, time.monotonic()).status == 2
    assert stand.site.hooks_of(ALICE) == ["sync"]


def test_a_journal_by_two_names_has_one_lock(stand: Stand) -> None:
    link = f"{stand.site.directory}/link.db"
    os.symlink(stand.site.journal, link)
    stand.site.order("sync", hold=True)
    process = stand.start(ALICE)
    stand.site.wait_for("sync")
    ended = stand.run(BOB, plan=stand.site.plan(name="other.yml", journal=link))
    stand.site.let_go()
    assert end_ctl(process, time.monotonic()).status == 0
    assert ended.status == 1 and "another run is at work on it" in ended.error
    assert stand.states() == {ALICE: "done"}


def test_receipts_that_are_made_anew_amid_are_not_taken_for_no_mail(stand: Stand) -> None:
    stand.set_users({ALICE: "new", BOB: "old"})
    assert stand.deliver(ALICE) == 250
    stand.set_users({ALICE: "old", BOB: "old"})
    stand.site.order("sync", BOB, hold=True)
    process = stand.start("--jobs", "1", BOB, ALICE)
    stand.site.wait_for("sync")
    path = str(stand.proxy.config["config"]["receipts"])
    for suffix in ("", "-wal", "-shm"):
        Path(path + suffix).unlink(missing_ok=True)
    stand.site.let_go()
    ended = end_ctl(process, time.monotonic())
    assert ended.status == 2 and "the file of receipts (`config.receipts`) is another one" in ended.err
    assert stand.site.hooks_of(ALICE) == []
    assert stand.states() == {ALICE: "failed", BOB: "failed"} and stand.backends() == {ALICE: "old", BOB: "old"}


def test_a_line_for_a_detail_does_not_stay_on_the_old_store(stand: Stand) -> None:
    """Nor is the mailbox migrated a second time, under that name, over the mail that it has got."""
    for backend, users in (("old", (ALICE,)), ("old", (ALICE, LISTS)), ("old", (LISTS,)), ("new", (LISTS,))):
        stand.set_users({ALICE: backend, LISTS: "old"})
        ended = stand.run(*users)
        assert ended.status == 1 and f"{LISTS}: is a line of its own in users: for the mailbox of {ALICE}" in ended.err
    stand.set_users({ALICE: "old", LISTS: "new"})
    assert stand.run(ALICE).status == 0, "that is where they go"
    stand.set_users({LISTS: "old"})
    assert stand.run(LISTS).status == 0, "nobody knows of another name"
    assert stand.site.hooks_of(ALICE)[0] == "sync" and stand.states() == {ALICE: "done", LISTS: "done"}


def test_who_is_parked_cannot_be_reset_and_forgotten(stand: Stand) -> None:
    stand.site.order("verify", exit=1, hold=True)
    process = stand.start(ALICE)
    stand.site.wait_for("verify")
    good = Path(stand.proxy.config_path).read_text()
    Path(stand.proxy.config_path).write_text(f"{good}\nbroken: [\n")
    stand.site.let_go()
    assert end_ctl(process, time.monotonic()).status == 2 and stand.states() == {ALICE: "needs_attention"}
    Path(stand.proxy.config_path).write_text(good)
    arguments = stand.arguments("--journal", stand.site.journal)
    reset = ctl(*arguments, "reset", ALICE)
    assert reset.status == 1 and f"{ALICE}: is on reject still, and would be forgotten there" in reset.err, reset
    assert ctl(*arguments, "release", ALICE).status == 0 and stand.backends()[ALICE] == "old"
    stand.site.no_orders()
    assert stand.run(ALICE).status == 0
    stuck(stand)
    reset = ctl(*arguments, "reset", ALICE)
    assert reset.status == 1 and "run the plan again, which goes on" in reset.err
    stand.set_users({ALICE: "new", BOB: "old"})
    assert ctl(*arguments, "reset", ALICE).status == 0


# --- another plan ----------------------------------------------------------------------------------------------------


def test_who_is_done_but_elsewhere_again_is_told_of(stand: Stand) -> None:
    assert stand.run(ALICE).status == 0
    again = stand.run(ALICE)
    assert again.status == 0 and "1 done before" in again.err
    stand.set_users({ALICE: "old", BOB: "old"})
    ended = stand.run(ALICE)
    assert ended.status == 2 and f"{ALICE}: skipped: is done, but is on old" in ended.err


def test_who_is_half_way_is_not_taken_to_the_store_of_another_plan(stand: Stand) -> None:
    stuck(stand)
    swapped = stand.site.plan(name="swapped.yml", **{"from": "new", "to": "old"})
    ended = stand.run(ALICE, plan=swapped)
    assert ended.status == 2 and "needs attention since run 1, of the plan" in ended.err, ended
    assert stand.backends()[ALICE] == "reject" and stand.states() == {ALICE: "needs_attention"}
    dry = stand.run("--dry-run", ALICE, plan=swapped)
    assert dry.status == 2 and "go on" not in dry.out, dry
    assert stand.run(ALICE).status == 0 and stand.backends()[ALICE] == "new"


def stuck(stand: Stand) -> None:
    """Moved in the journal, on `reject` in the proxy: as where the configuration could not be written for minutes."""
    assert stand.run(ALICE).status == 0
    with closing(sqlite3.connect(stand.site.journal)) as db:
        db.execute("UPDATE users SET state = 'needs_attention', error = 'move: no'")
        query = "INSERT INTO transitions(run, user, at, before, after) VALUES(1, ?, 1, 'moved', 'needs_attention')"
        db.execute(query, (ALICE,))
        db.commit()
    stand.set_users({ALICE: "reject", BOB: "old"})


def test_who_may_be_blocked_needs_a_plan_that_unblocks(stand: Stand) -> None:
    stand.site.order("final_sync", hold=True)
    process = stand.start(ALICE)
    stand.site.wait_for("final_sync")
    kill(process)
    stand.site.let_go()
    ended = stand.run(ALICE, plan=stand.site.plan(name="other.yml", block=None, unblock=None))
    assert ended.status == 1 and "had a `block`, and this one has no `unblock`" in ended.error, ended
    assert stand.run().status == 0 and stand.states() == {ALICE: "done"}
