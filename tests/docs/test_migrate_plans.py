# SPDX-License-Identifier: GPL-3.0-or-later
"""The plans that are shipped are plans, and their scripts do no harm to a name of whatever kind.

tests/e2e/test_migrate.py runs them in front of real servers.
"""

import fcntl
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from lmtp_proxy.ctl.migrate.plan import Plan, load_plan

PLANS = Path(__file__).parents[2] / "etc" / "migrate"
INSTALLED = "/usr/share/lmtp-proxy/migrate/"
SCRIPTS = ("mbsync-user", "perdition-map", "same-mail", "same-state")
NAMES = ("alice", "-n", "a b", 'a"b', "a'b", "$(touch pwned)", "a;touch pwned", "ü漢", "a\\tb", "a.*", "a&b", "*")


def plans() -> list[Path]:
    return sorted(PLANS.glob("*.yml"))


@pytest.mark.parametrize("path", plans(), ids=lambda path: path.stem)
def test_a_plan_is_complete_and_names_scripts_that_are_there(path: Path) -> None:
    plan = load_plan(str(path))
    assert {"sync", "final_sync", "block", "verify", "redirect", "unblock"} <= plan.hooks.keys()
    for hook in plan.hooks.values():
        assert not hook.shell
        if hook.program.startswith(INSTALLED):
            assert os.access(PLANS / hook.program.removeprefix(INSTALLED), os.X_OK)
        assert any("{user}" in argument for argument in hook.arguments)


def test_there_are_no_other_files() -> None:
    names = {path.name for path in PLANS.iterdir() if path.name != "__pycache__"}
    assert names == {"cyrus-to-cyrus.yml", "cyrus-to-dovecot.yml", "imapsync.yml", *SCRIPTS}


def values(plan: Plan, user: str) -> Mapping[str, str]:
    return plan.values(user, "old")


@pytest.mark.parametrize("user", NAMES)
def test_a_name_is_one_argument_of_imapsync(user: str) -> None:
    """All that is known of this plan: it was not run."""
    path = PLANS / "imapsync.yml"
    assert "NOT RUN" in path.read_text("utf-8")
    plan = load_plan(str(path))
    arguments = plan.hooks["sync"].filled(values(plan, user))
    assert arguments[0] == "imapsync"
    assert [arguments[arguments.index(option) + 1] for option in ("--user1", "--user2")] == [user, user]
    assert plan.hooks["final_sync"] == plan.hooks["sync"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_how_it_is_called(name: str) -> None:
    done = subprocess.run([PLANS / name], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode != 0
    assert f"usage: {name}" in done.stderr


# --- perdition-map ---------------------------------------------------------------------------------------------------


class Map:
    """A map, and a makegdbm that is none: the file is the text."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.text = directory / "popmap"
        self.text.write_text("zoe:10.0.0.1:143\nalice2:10.0.0.1:143\n", "utf-8")
        (directory / "bin").mkdir()
        makegdbm = directory / "bin" / "makegdbm"
        makegdbm.write_text('#!/bin/sh\necho >>calls\nexec cat >"$1"\n', "ascii")
        makegdbm.chmod(0o755)
        (directory / "pid").write_text(str(os.getpid()), "ascii")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.directory}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PERDITION_MAP": str(self.text),
            "PERDITION_PID": str(self.directory / "pid"),
            "LC_ALL": "C.UTF-8",
        }
        return subprocess.run(
            [PLANS / "perdition-map", *arguments], capture_output=True, text=True, timeout=20, check=False,
            env=environment, cwd=self.directory,
        )  # fmt: skip

    @property
    def lines(self) -> list[str]:
        lines = self.text.read_text("utf-8").splitlines()
        if (self.directory / "popmap.gdbm.db").exists():
            assert (self.directory / "popmap.gdbm.db").read_text("utf-8").splitlines() == lines
        return lines

    @property
    def calls(self) -> int:
        calls = self.directory / "calls"
        return len(calls.read_text("ascii").splitlines()) if calls.exists() else 0


@pytest.fixture
def popmap(tmp_path: Path) -> Map:
    return Map(tmp_path)


SERVERS = ("old=10.0.0.1:143", "new=10.0.0.2:143")


@pytest.mark.parametrize("user", NAMES)
def test_a_name_in_the_map_is_what_it_is(popmap: Map, user: str) -> None:
    for where, server in (("new", "10.0.0.2:143"), ("old", "10.0.0.1:143")):
        done = popmap.run(where, *SERVERS, user)
        assert (done.returncode, done.stderr) == (0, "")
        assert popmap.lines == ["zoe:10.0.0.1:143", "alice2:10.0.0.1:143", f"{user}:{server}"]
    assert popmap.calls == 2
    assert popmap.run("old", *SERVERS, user).returncode == 0
    assert popmap.calls == 2, "the map said so already"
    assert not (popmap.directory / "pwned").exists()


def test_the_domain_is_no_part_of_the_map(popmap: Map) -> None:
    assert popmap.run("new", *SERVERS, "zoe@example.org").returncode == 0
    assert sorted(popmap.lines) == ["alice2:10.0.0.1:143", "zoe:10.0.0.2:143"]


@pytest.mark.parametrize("arguments, said", [
    (("elsewhere", *SERVERS, "zoe"), "no elsewhere=HOST:PORT among the arguments"),
    (("new", *SERVERS, "a\nb"), "not a name for this map"),
    (("new", *SERVERS, "@example.org"), "not a name for this map"),
    (("block", "a:1.2.3.4:5"), "not a name for this map"),
])  # fmt: skip
def test_what_cannot_be_in_the_map_is_refused(popmap: Map, arguments: tuple[str, ...], said: str) -> None:
    before = popmap.lines
    done = popmap.run(*arguments)
    assert done.returncode == 1 and said in done.stderr
    assert popmap.lines == before


def wait_until_titled(process: "subprocess.Popen[bytes]", title: str) -> None:
    while not Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(f"perdition.imap4: {title}".encode()):
        time.sleep(0.01)


def test_sessions_that_cannot_be_found_are_no_success(popmap: Map) -> None:
    (popmap.directory / "pid").unlink()
    before = popmap.lines
    done = popmap.run("block", "alice")
    assert done.returncode == 1 and "no session can be ended" in done.stderr
    assert popmap.lines == before


@pytest.fixture
def sessions() -> Iterator[dict[str, "subprocess.Popen[bytes]"]]:
    """Processes with the titles that Perdition's have, children of the one in the pid file."""
    command = 'exec -a "perdition.imap4: connect ($0)" cat'
    started = {
        user: subprocess.Popen(["/bin/bash", "-c", command, user], stdin=subprocess.PIPE)
        for user in ("alice", "alice2", "a.*")
    }
    for user, process in started.items():
        wait_until_titled(process, f"connect ({user})")
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("user", ["alice", "a.*"])
def test_block_ends_the_sessions_of_this_user_alone(
    popmap: Map, sessions: dict[str, "subprocess.Popen[bytes]"], user: str
) -> None:
    assert popmap.run("block", user).returncode == 0
    assert f"{user}:127.0.0.1:1" in popmap.lines
    sessions[user].wait(5)
    assert [name for name, process in sessions.items() if process.poll() is None] == [
        name for name in sessions if name != user
    ]


def test_block_waits_for_a_login_that_is_under_way(popmap: Map) -> None:
    """It may have read the map as it was: a moment later it is a session."""
    title = "perdition.imap4: connect"
    becomes = f"sleep 0.6; exec -a '{title} (alice)' cat"
    pair = socket.socketpair()
    under_way = subprocess.Popen(
        ["/bin/bash", "-c", f'exec -a "{title} ( 10.0.0.3:1->10.0.0.4:143)" bash -c "$0"', becomes],
        stdin=subprocess.PIPE,
        pass_fds=[end.fileno() for end in pair],
    )
    idle = subprocess.Popen(  # has not said yet who it is, and may take its time
        ["/bin/bash", "-c", f'exec -a "{title} ( 10.0.0.3:2->10.0.0.4:143)" cat'],
        stdin=subprocess.PIPE,
        pass_fds=[pair[0].fileno()],
    )
    try:
        wait_until_titled(under_way, "connect ( 10.0.0.3:1")
        wait_until_titled(idle, "connect ( 10.0.0.3:2")
        began = time.monotonic()
        assert popmap.run("block", "alice").returncode == 0
        assert under_way.wait(2) == -15
        assert time.monotonic() - began >= 0.4
        assert idle.poll() is None
    finally:
        for process in (under_way, idle):
            process.kill()
            process.communicate()
        for end in pair:
            end.close()


# --- the man page ----------------------------------------------------------------------------------------------------


def test_the_man_page_says_how_a_command_runs_elsewhere(tmp_path: Path) -> None:
    """All four that leave their other end behind are named; what it shows is a plan, and waits for who was before."""
    page = (PLANS.parents[1] / "docs" / "lmtp-proxy-migrate.5").read_text("utf-8")
    section = page.partition(".Ss Commands that run elsewhere\n")[2].partition("\n.S")[0]
    for name in ("docker exec", "kubectl exec", "ssh", "systemd-run"):
        assert name in section
    shown = section.partition("-offset indent\n")[2].partition("\n.Ed")[0].replace("\\(dq", '"')
    path = tmp_path / "plan.yml"
    path.write_text(f"from: old\nto: new\npark: reject\n{shown}\n")
    arguments = load_plan(str(path)).hooks["sync"].filled({"user": "alice"})
    there = [each.replace("/run/lock", str(tmp_path)) for each in arguments[3:]]
    assert arguments[:3] == ("docker", "exec", "dovecot") and there[0] == "flock"
    there[there.index("doveadm") :] = ["true"]
    with open(tmp_path / "migrate-alice", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        second = subprocess.Popen(there)
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(0.5)
    assert second.wait(20) == 0
