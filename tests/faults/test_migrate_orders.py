# SPDX-License-Identifier: GPL-3.0-or-later
"""`migrate pause`, `resume` and `jobs N`, from another terminal, of a run that is under way or was killed."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.faults.test_migrate import ALICE, BOB, Stand, heard, kill, many
from tests.faults.test_migrate import stand as stand
from tests.support.ctl import ctl, end_ctl
from tests.support.patience import SOON

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user: run the tests as root")


def begun(stand: Stand) -> list[str]:
    return sorted({call.user for call in stand.site.calls() if call.hook == "sync"})


def wait(condition: Callable[[], bool], what: str) -> None:
    latest = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < latest, what
        time.sleep(0.02)


Started: TypeAlias = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(stand: Stand) -> Iterator[Started]:
    """Starts a run of all who are on `old`, which does not outlive its test."""
    runs: list[subprocess.Popen[str]] = []

    def start(*options: str) -> subprocess.Popen[str]:
        runs.append(stand.start("--all-on", "old", *options))
        return runs[-1]

    yield start
    stand.site.let_go()
    for run in runs:
        if run.poll() is None:
            kill(run)


def held(stand: Stand, count: int) -> list[str]:
    """So many users on `old`, each of whom is held in `verify`."""
    users = many(count)
    stand.set_users(dict.fromkeys(users, "old"))
    stand.site.order("verify", hold=True)
    return users


def test_paused_it_finishes_those_in_hand_and_begins_nobody(stand: Stand, start: Started) -> None:
    users = held(stand, 6)
    process = start("--jobs", "2")
    for user in users[:2]:
        stand.site.wait_for("verify", [user])
    paused = stand.verb("pause")
    assert paused.status == 0 and paused.out.startswith("paused since 2"), paused
    assert f" by uid {os.geteuid()}: no user is begun" in " ".join(paused.out.split())
    heard(process, f"by uid {os.geteuid()}: no user is begun until `lmtp-proxyctl migrate resume`")
    stand.site.let_go()
    wait(lambda: list(stand.states().values()) == ["done", "done"], f"two are done: {stand.states()}")
    assert begun(stand) == users[:2]
    status = stand.verb("status")
    assert f"by uid {os.geteuid()}: no user is begun" in " ".join(status.out.split())
    document = stand.verb("--json", "status").document
    assert document["under_way"] is True and document["paused"]["uid"] == os.geteuid()
    assert abs(document["paused"]["since"] - time.time()) < SOON
    assert stand.verb("pause").status == 0, "twice is once"
    assert stand.verb("--json", "pause").document["paused"] == document["paused"]

    resumed = stand.verb("resume")
    assert resumed.status == 0 and resumed.out.startswith("resumed; it was paused since ")
    ended = end_ctl(process, time.monotonic())
    assert ended.status == 0 and "resumed" in ended.err
    assert set(stand.states().values()) == {"done"} and begun(stand) == users
    assert stand.verb("--json", "status").document["paused"] is None
    assert "it was not paused" in stand.verb("resume").out


def test_paused_stays_paused_when_the_runner_is_killed(stand: Stand, start: Started) -> None:
    users = held(stand, 4)
    process = start("--jobs", "1")
    stand.site.wait_for("verify", users[:1])
    assert stand.verb("pause").status == 0
    kill(process)
    stand.site.let_go()
    again = start("--jobs", "1")
    heard(again, "paused since ")
    # Who is in hand is half-way, and offline perhaps.
    wait(lambda: stand.states()[users[0]] == "done", f"who was in hand is taken up: {stand.states()}")
    assert begun(stand) == users[:1]
    again.send_signal(signal.SIGINT)
    ended = end_ctl(again, time.monotonic())
    assert ended.status == 3 and "3 not begun" in ended.err
    resumed = stand.verb("resume")
    assert resumed.status == 0 and "no run is under way" in " ".join(resumed.out.split())
    assert stand.run("--all-on", "old").status == 0
    assert set(stand.states().values()) == {"done"}


def test_another_number_at_once(stand: Stand, start: Started) -> None:
    users = held(stand, 8)
    process = start("--jobs", "1")
    stand.site.wait_for("verify", users[:1])
    more = stand.verb("jobs", "3")
    assert more.status == 0 and more.out.startswith("3 users at once from now on"), more
    heard(process, "3 users at once since ")
    for user in users[:3]:
        stand.site.wait_for("verify", [user])
    assert stand.verb("jobs", "1").status == 0
    heard(process, "1 user at once since ")
    assert begun(stand) == users[:3]
    stand.site.order("verify", sleep=0.3)
    stand.site.let_go()
    ended = end_ctl(process, time.monotonic())
    assert ended.status == 0 and set(stand.states().values()) == {"done"}
    calls = [call for event in ("began", "ended") for call in stand.site.calls(event) if call.user in users[3:]]
    alone = [(call.hook, call.event) for call in sorted(calls, key=lambda call: call.at)]
    assert [event for _, event in alone] == ["began", "ended"] * (len(alone) // 2), "one after the other"


def test_the_number_was_for_that_run(stand: Stand, start: Started) -> None:
    users = held(stand, 3)
    process = start("--jobs", "1")
    stand.site.wait_for("verify", users[:1])
    assert stand.verb("jobs", "3").status == 0
    for user in users:
        stand.site.wait_for("verify", [user])
    kill(process)
    stand.site.let_go()
    again = start("--jobs", "1")
    ended = end_ctl(again, time.monotonic())
    assert ended.status == 0 and "at once since" not in ended.err


def test_what_is_refused(stand: Stand) -> None:
    none = stand.verb("pause")
    assert none.status == 1 and "there is no such journal" in none.error
    assert stand.run(ALICE).status == 0
    for arguments in (["pause"], ["jobs", "3"]):
        done = stand.verb(*arguments)
        assert done.status == 1 and done.error.endswith("no run is under way; nothing was changed"), done
    for arguments in (["jobs"], ["jobs", "0"], ["jobs", "65"], ["jobs", "x"], ["pause", BOB], ["resume", BOB]):
        assert stand.verb(*arguments).status == 64, arguments
    assert stand.run(BOB).status == 0, "nothing of it is left"


def test_the_journal_is_that_of_the_plan(stand: Stand, start: Started) -> None:
    users = held(stand, 2)
    process = start("--jobs", "1")
    stand.site.wait_for("verify", users[:1])
    plan = os.path.join(stand.site.directory, "plan.yml")
    for arguments in (["pause", plan], ["jobs", plan, "2"], ["resume", plan]):
        done = ctl("-c", stand.proxy.config_path, "migrate", *arguments)
        assert done.status == 0, done
    stand.site.let_go()
    assert end_ctl(process, time.monotonic()).status == 0


AS_NOBODY = """import os, pwd, sys
from lmtp_proxy.ctl.command import main
import lmtp_proxy.ctl.migrate.journal, lmtp_proxy.ctl.migrate.orders, lmtp_proxy.ctl.migrate.status
import locale, shutil, lmtp_proxy.ctl.output
import lmtp_proxy.ctl.migrate.plan, lmtp_proxy.ctl.migrate.runner, lmtp_proxy.config.read
nobody = pwd.getpwnam("nobody")
os.setgroups([]); os.setgid(nobody.pw_gid); os.setuid(nobody.pw_uid)
sys.exit(main())
"""


@root
def test_another_login_with_rights_to_the_directory(stand: Stand, start: Started) -> None:
    """They may not read the journal; who they are is said."""
    users = held(stand, 3)
    process = start("--jobs", "1")
    stand.site.wait_for("verify", users[:1])

    def verb(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", AS_NOBODY, "migrate", "--journal", stand.site.journal, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30)

    os.chmod(stand.site.directory, 0o755)
    done = verb("pause")
    assert done.returncode == 1 and "must be able to write in" in " ".join(done.stderr.split()), done
    nobody = pwd.getpwnam("nobody")
    os.chown(stand.site.directory, -1, nobody.pw_gid)
    os.chmod(stand.site.directory, 0o775)
    done = verb("pause")
    assert done.returncode == 0 and f"by uid {nobody.pw_uid}" in done.stdout, done
    heard(process, f"by uid {nobody.pw_uid}: no user is begun")
    assert f"by uid {nobody.pw_uid}" in stand.verb("status").out
    assert verb("jobs", "2").returncode == 0
    heard(process, "2 users at once since ")
    assert verb("resume").returncode == 0
    stand.site.let_go()
    assert end_ctl(process, time.monotonic()).status == 0
    assert not list(Path(stand.site.directory).glob("*.paused"))
