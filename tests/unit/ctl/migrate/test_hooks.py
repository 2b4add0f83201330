# SPDX-License-Identifier: GPL-3.0-or-later
"""One command: how it ends, what of its output is kept, and that nothing of it is left when it is ended."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lmtp_proxy.ctl.migrate.hooks import COMMAND, MARK, Cancel, Ran, end_left_over, run


def sh(text: str, *arguments: str, timeout: float = 20.0, cancel: Cancel | None = None) -> Ran:
    return run(("/bin/sh", "-c", text, "sh", *arguments), {"MIGRATE_USER": "alice"}, timeout, "/j.db", cancel)


@pytest.mark.parametrize(
    "text, outcome, status",
    [("true", "ok", 0), ("exit 75", "exit 75", 75), ("kill -9 $$", "ended by signal 9", None)],
)
def test_how_it_ends(text: str, outcome: str, status: int | None) -> None:
    ran = sh(text)
    assert (ran.outcome, ran.status, ran.ok) == (outcome, status, outcome == "ok")


def test_what_it_is_given() -> None:
    ran = sh('printf "%s|" "$@" "$MIGRATE_USER" "$LMTP_PROXY_MIGRATE_JOURNAL"; cat', "a b", "$(id)", "'")
    assert ran.output == "a b|$(id)|'|alice|/j.db|", "and nothing on its stdin"


def test_a_program_that_is_not_there() -> None:
    ran = run(("/no/such", "x"), {}, 5.0, "/j.db")
    assert ran.outcome == "cannot be run: No such file or directory: /no/such" and ran.status is None
    assert run(("/bin/echo", "a\0b"), {}, 5.0, "/j.db").outcome.startswith("cannot be run: embedded null byte")


def test_both_streams_and_odd_octets() -> None:
    ran = sh(r"echo out; echo err >&2; printf '\377\000'")
    assert ran.output == "out\nerr\n\\xff\\0"


def test_only_so_much_of_the_output_is_kept() -> None:
    ran = sh(f'{sys.executable} -c \'print("first" + "x" * 3_000_000 + "last")\'')
    assert ran.outcome == "ok" and len(ran.output) < 17000
    assert ran.output.startswith("first") and ran.output.endswith("last\n") and " octets ..." in ran.output


def test_it_is_not_waited_for_whom_it_leaves_behind() -> None:
    """A daemon that keeps the output open does not hold up the run."""
    ran = sh("sleep 7 & echo started")
    assert ran.outcome == "ok" and ran.output == "started\n" and ran.seconds < 5


def test_a_timeout_ends_the_whole_group_even_if_it_does_not_want_to(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    ran = sh(f"trap '' TERM; (trap '' TERM; sleep 300; sleep 300) & echo $$ $! > {pids}; wait; sleep 300", timeout=0.3)
    assert ran.outcome == "timeout after 0.3 s" and ran.seconds < 15
    assert not any(alive(int(pid)) for pid in pids.read_text().split())


def test_a_timeout_finds_who_has_left_the_group(tmp_path: Path) -> None:
    ran = sh(f"setsid sh -c 'echo $$ > {tmp_path}/pid; sleep 300' & sleep 300", timeout=0.5)
    assert ran.outcome == "timeout after 0.5 s"
    assert not alive(int((tmp_path / "pid").read_text()))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_it_is_killed_at_once_when_all_is_cancelled() -> None:
    cancel = Cancel()
    threading.Timer(0.3, cancel.set).start()
    ran = sh("sleep 300", cancel=cancel)
    assert ran.outcome == "killed" and ran.seconds < 3 and cancel.is_set()
    assert sh("sleep 300", cancel=cancel).seconds < 3, "and so is the next one"
    cancel.close()


def test_output_without_end_is_no_way_around_the_timeout() -> None:
    ran = sh("yes", timeout=0.5)
    assert ran.outcome == "timeout after 0.5 s" and ran.seconds < 3


def test_no_descriptor_is_left_open() -> None:
    sh("true")
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(5):
        sh("echo x")
        sh("sleep 9", timeout=0.05)
        run(("/no/such",), {}, 1.0, "/j")
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_what_a_dead_runner_left_is_found_by_its_mark(tmp_path: Path) -> None:
    mark = str(tmp_path / "j.db")
    environment = {**os.environ, MARK: mark, COMMAND: "4711.3"}
    done = {**environment, COMMAND: "47110.3"}  # of a runner that came to its end
    server = subprocess.Popen(["sleep", "300"], env=done, start_new_session=True)
    mine = subprocess.Popen(["sleep", "300"], env=environment, start_new_session=True)
    other = subprocess.Popen(["sleep", "300"], env={**environment, MARK: mark + "2"}, start_new_session=True)
    # What its command started has forgotten the mark, but not the session.
    script = "env -i sleep 301 & trap '' TERM; while :; do sleep 0.1; done"
    stubborn = subprocess.Popen(["sh", "-c", script], env=environment, start_new_session=True)
    time.sleep(0.3)
    told: list[int] = []
    began = time.monotonic()
    reaper = threading.Thread(target=lambda: (mine.wait(), stubborn.wait()))
    reaper.start()
    assert end_left_over(mark, {1, 4711}, told.append) == []
    reaper.join(10)
    assert {mine.pid, stubborn.pid} < set(told) and other.poll() is None and time.monotonic() - began < 12
    assert end_left_over(mark, {4711}) == [] == end_left_over(mark, set())
    for process in (server, other):
        assert process.poll() is None
        process.kill()
        process.wait()
