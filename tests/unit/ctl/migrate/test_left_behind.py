# SPDX-License-Identifier: GPL-3.0-or-later
"""What a dead run left: what is ended, what is left alone, and when nobody may go on. The keeper is dead, too."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lmtp_proxy.ctl.migrate import keeper, left_behind
from lmtp_proxy.ctl.migrate.hooks import MARK, STEP, Begun
from lmtp_proxy.ctl.migrate.left_behind import Unsettled, boot, lock_path, settle, take_lock

STEP_NUMBER = 7
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def journal(tmp_path: Path) -> str:
    return str(tmp_path / "j.db")


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts something that sleeps, in a session of its own."""
    began: list[subprocess.Popen[bytes]] = []

    def begin(*program: str, **settings: object) -> subprocess.Popen[bytes]:
        settings = {"env": {}, "start_new_session": True, **settings}
        process: subprocess.Popen[bytes] = subprocess.Popen(program or ("/bin/sleep", "300"), **settings)  # type: ignore[call-overload]
        threading.Thread(target=process.wait, daemon=True).start()  # nobody else does, and a zombie has its number
        began.append(process)
        return process

    yield begin
    for process in began:
        process.kill()
        process.wait()


def left(process: subprocess.Popen[bytes], **changed: object) -> Unsettled:
    own = keeper.process(process.pid)
    assert own is not None
    begun = Begun(process.pid, own.start, 2**22 + 1, 1)
    return replace(Unsettled(STEP_NUMBER, "alice", "block", boot(), begun, mirror=False), **changed)  # type: ignore[arg-type]


def gone(process: subprocess.Popen[bytes]) -> None:
    latest = time.monotonic() + 20
    while process.poll() is None:
        assert time.monotonic() < latest, "it lives"
        time.sleep(0.01)


def eventually(condition: Callable[[], object]) -> None:
    latest = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < latest
        time.sleep(0.02)


def test_its_process_is_found_by_its_number_and_start(journal: str, start: Start) -> None:
    process = start()
    told: list[int] = []
    assert settle(left(process), journal, told.append) is None
    gone(process)
    assert told == [process.pid]


def test_a_number_that_was_given_out_again_is_another_process(journal: str, start: Start) -> None:
    """And its session is, too."""
    process = start("/bin/sh", "-c", "sleep 300 & wait")
    was = left(process)
    again = replace(was, begun=replace(was.begun, start=was.begun.start - 100))
    eventually(lambda: len(members(process.pid)) == 2)
    assert settle(again, journal) is None
    assert len(members(process.pid)) == 2
    os.killpg(process.pid, signal.SIGKILL)


def members(session: int) -> list[int]:
    return [each.pid for each in keeper.processes() if each.alive and each.session == session]


def test_nothing_runs_since_before_the_machine_was_started(journal: str, start: Start) -> None:
    process = start()
    assert settle(left(process, boot="another"), journal) is None
    assert settle(left(process, boot="another", mirror=True), journal) is None
    assert process.poll() is None


def test_its_session_and_what_came_from_it(journal: str, start: Start) -> None:
    script = "sleep 300 & trap '' TERM; (setsid -w sleep 300; :) & while :; do sleep 0.1; done"
    process = start("/bin/sh", "-c", script)
    told: list[int] = []
    eventually(lambda: len(members(process.pid)) >= 4)
    began = time.monotonic()
    assert settle(left(process), journal, told.append) is None
    gone(process)
    assert len(told) >= 4 and members(process.pid) == [] and 4 < time.monotonic() - began < 30


def test_whoever_has_its_lock(journal: str, start: Start) -> None:
    lock = take_lock(journal, STEP_NUMBER)
    process = start()
    holder = start("/usr/bin/setsid", "sleep", "300", pass_fds=[lock])
    os.close(lock)
    reading = open(lock_path(journal, STEP_NUMBER), "rb")  # noqa: SIM115  (who only looks at the file has no lock)
    reader = start(stdin=reading)
    reading.close()
    was = left(process)
    process.kill()
    gone(process)
    assert settle(was, journal) is None
    gone(holder)
    assert reader.poll() is None


def test_a_lock_of_another_step_is_nothing_to_us(journal: str, start: Start) -> None:
    """Of one that has ended: a server that it started anew was meant to stay."""
    other = take_lock(journal, STEP_NUMBER + 1)
    server = start(pass_fds=[other])
    os.close(other)
    process = start()
    assert settle(left(process), journal) is None
    gone(process)
    assert server.poll() is None


def test_a_lock_that_is_held_by_nobody_that_we_see(journal: str, start: Start) -> None:
    lock = take_lock(journal, STEP_NUMBER)
    process = start()
    found = settle(left(process), journal)
    assert found == f"{lock_path(journal, STEP_NUMBER)} is held by a process that cannot be seen from here: end it"
    os.close(lock)
    assert settle(left(start()), journal) is None


def test_whoever_has_its_mark(journal: str, start: Start) -> None:
    mine = {MARK: journal, STEP: str(STEP_NUMBER)}
    process = start()
    marked = [start(env=mine), start(env={**mine, "A": "b"})]
    others = [start(env={**mine, STEP: "77"}), start(env={**mine, MARK: f"{journal}2"}), start(env={MARK: journal})]
    assert settle(left(process), journal) is None
    for each in marked:
        gone(each)
    assert [each.poll() for each in others] == [None] * 3


def test_who_may_be_of_it_or_not_is_left_alone_and_refused(journal: str, start: Start) -> None:
    """In a session of that number, whose first process is gone: the number may have been given out again."""
    process = start("/bin/sh", "-c", "env -i sleep 300 & exit 0")
    was = Unsettled(STEP_NUMBER, "alice", "block", boot(), Begun(process.pid, 1, 2**22 + 1, 1), mirror=False)
    gone(process)
    eventually(lambda: len(members(process.pid)) == 1)
    [pid] = members(process.pid)
    assert settle(was, journal) == f"process {pid} may be of its block, and may be another's: end it if it is"
    assert settle(was, journal, looked=True) is None, "a human has looked"
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: members(process.pid) == [])
    assert settle(was, journal) is None


def test_without_a_keepers_word_no_sync_is_known_to_have_ended(journal: str, start: Start) -> None:
    process = start()
    was = left(process, name="sync", mirror=True)
    found = settle(was, journal)
    what = "of its sync nobody knows whether all has ended, as its keeper was killed, too: see that nothing of it runs"
    assert found == what
    gone(process)
    assert settle(was, journal, looked=True) is None
    os.close(take_lock(journal, STEP_NUMBER))
    assert settle(was, journal) == what
    Path(lock_path(journal, STEP_NUMBER)).write_bytes(keeper.ENDED)
    assert settle(was, journal) is None


def test_what_cannot_be_ended(journal: str, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    process = start()
    monkeypatch.setattr(left_behind, "_PATIENCE", 0.2)
    monkeypatch.setattr(keeper, "send", lambda _number, _to: None)  # it hangs in the kernel, say
    found = settle(left(process), journal, looked=True)
    assert found == f"process {process.pid} of its block cannot be ended: kill -KILL, or wait for it"


def test_a_keeper_that_is_stopped_is_woken_and_waited_for(journal: str, start: Start) -> None:
    script = "import time, sys; time.sleep(0.5); open(sys.argv[1], 'wb').write(b'ended\\n')"
    warden = start(sys.executable, "-IS", "-c", script, lock_path(journal, STEP_NUMBER))
    os.kill(warden.pid, signal.SIGSTOP)
    process = start()
    process.kill()
    gone(process)
    own = keeper.process(warden.pid)
    assert own is not None
    begun = Begun(process.pid, 1, warden.pid, own.start)
    assert settle(Unsettled(STEP_NUMBER, "a", "sync", boot(), begun, mirror=True), journal) is None


def test_a_lock_is_of_one_step(journal: str) -> None:
    lock = take_lock(journal, 1)
    with pytest.raises(BlockingIOError):
        take_lock(journal, 1)
    os.close(take_lock(journal, 2))
    os.close(lock)
    assert os.stat(lock_path(journal, 1)).st_mode & 0o777 == 0o600
    with open(lock_path(journal, 1), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
