# SPDX-License-Identifier: GPL-3.0-or-later
"""The plans that are shipped are plans, and their scripts do no harm to a name of whatever kind.

tests/e2e/test_migrate.py and test_migrate_releases.py run them in front of real servers.
"""

import fcntl
import os
import re
import shutil
import socket
import stat
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from lmtp_proxy.ctl.migrate.plan import Plan, load_plan
from tests import ROOT

PLANS = ROOT / "etc" / "migrate"
INSTALLED = "/usr/share/lmtp-proxy/migrate/"
SCRIPTS = ("kept-apart", "mail-state", "mbsync-user", "perdition-map", "same-mail", "same-state")
CONFIGURATIONS = (
    "cyrus-to-dovecot-2.3.conf", "cyrus-to-dovecot-2.4.conf", "dovecot-to-dovecot-2.4.conf", "same-mail.conf",
)  # fmt: skip
NAMES = ("alice", "-n", "a b", 'a"b', "a'b", "$(touch pwned)", "a;touch pwned", "ü漢", "a\\tb", "a.*", "a&b", "*")


def plans() -> list[Path]:
    return sorted(PLANS.glob("*.yml"))


@pytest.mark.parametrize("path", plans(), ids=lambda path: path.stem)
def test_a_plan_is_complete_and_names_scripts_that_are_there(path: Path) -> None:
    plan = load_plan(str(path))
    assert {"prove", "sync", "final_sync", "block", "verify", "redirect", "unblock"} <= plan.hooks.keys()
    for name, hook in plan.hooks.items():
        assert not hook.shell
        if hook.program.startswith(INSTALLED):
            assert os.access(PLANS / hook.program.removeprefix(INSTALLED), os.X_OK)
        assert any(("{to}" if name == "prove" else "{user}") in argument for argument in hook.arguments)


def test_there_are_no_other_files() -> None:
    names = {path.name for path in PLANS.iterdir() if path.name != "__pycache__"}
    plans = {"cyrus-to-cyrus.yml", "cyrus-to-dovecot.yml", "dovecot-to-dovecot.yml", "imapsync.yml"}
    assert names == plans | {*CONFIGURATIONS, "by_imap.py", "mailboxes.py", *SCRIPTS}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_is_of_a_plan_that_names_its_place(name: str) -> None:
    """Its first line says where it goes, and whose it is."""
    first, second, *_ = (PLANS / name).read_text("utf-8").splitlines()
    place = re.match(r"# (/etc/[\w/.-]+\.conf)\b", first)
    of = re.findall(r"\b[\w-]+\.yml\b", f"{first} {second}")
    assert place is not None and of and "Mode 0600" in f"{first} {second}"
    for plan in of:
        text = (PLANS / plan).read_text("utf-8")
        assert place[1] in text
        assert any(place[1] in hook.arguments for hook in load_plan(str(PLANS / plan)).hooks.values())


@pytest.mark.parametrize("name", [name for name in CONFIGURATIONS if "dovecot" in name])
def test_the_page_shows_what_is_shipped(name: str) -> None:
    lines = [line for line in (PLANS / name).read_text("utf-8").splitlines() if line and not line.startswith("#")]
    assert "```\n" + "\n".join(lines) + "\n```\n" in PAGE


def values(plan: Plan, user: str) -> Mapping[str, str]:
    return plan.values(user, "old")


@pytest.mark.parametrize("user", NAMES)
def test_a_name_is_one_argument_of_imapsync(user: str) -> None:
    arguments = imapsync_arguments(user)
    assert arguments[0] == "imapsync"
    assert [arguments[arguments.index(option) + 1] for option in ("--user1", "--user2")] == [user, user]
    assert arguments.count(user) == 2


def imapsync_arguments(user: str) -> tuple[str, ...]:
    plan = load_plan(str(PLANS / "imapsync.yml"))
    assert plan.hooks["final_sync"] == plan.hooks["sync"]
    return plan.hooks["sync"].filled(values(plan, user))


def test_imapsync_has_its_passwords_from_files_and_checks_whom_it_sends_them_to() -> None:
    """What it does with them is seen by tests/e2e/test_imapsync.py."""
    arguments = imapsync_arguments("alice")
    for number, name in ((1, "old"), (2, "new")):
        assert arguments[arguments.index(f"--passfile{number}") + 1] == f"/etc/lmtp-proxy/{name}.password"
        assert f"--tls{number}" in arguments
        assert arguments[arguments.index(f"--sslargs{number}") + 1] == "SSL_verify_mode=1"
    assert not [word for word in arguments if word.startswith(("--password", "--oauth", "--showpasswords"))]
    assert arguments[arguments.index("--pidfile") + 1] == ""


def test_the_page_and_the_plan_for_imapsync_agree() -> None:
    """Of each option that the page speaks of: in the plan, or left out of it."""
    arguments = imapsync_arguments("alice")
    table = PAGE.partition("| imapsync 2.229 |")[2].partition("\n\n")[0]
    against = [row.split(" | ")[1] for row in table.splitlines() if row.startswith("| ") and " | " in row[2:]]
    wanted, unwanted = set[str](), set[str]()
    for cell in against:
        for text in re.findall(r"(?:[Nn]ot? )?`--[^`]+`", cell):
            words = text.partition("`")[2].rstrip("`").split()
            (unwanted if text[0] in "Nn" else wanted).update(words)
    assert {"--useheader", "ALL", "--syncduplicates", "--noskipsize", "--delete2", "--delete2folders"} < wanted
    assert unwanted == {"--addheader", "--automap", "--useuid"}
    assert wanted - {'""'} <= {*arguments}
    assert not unwanted & {*arguments}


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

    def run(self, *arguments: str, umask: int = -1, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.directory}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PERDITION_MAP": str(self.text),
            "PERDITION_PID": str(self.directory / "pid"),
            "LC_ALL": "C.UTF-8",
            **more,
        }
        return subprocess.run(
            [PLANS / "perdition-map", *arguments], capture_output=True, text=True, timeout=20, check=False,
            env=environment, cwd=self.directory, umask=umask,
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


# --- whose the map is ------------------------------------------------------------------------------------------------

NOBODY = 65534
UMASKS = (0o022, 0o027, 0o077)
PAGE = (ROOT / "docs" / "migration.md").read_text("utf-8")
BY_HAND = (ROOT / "docs" / "migration-by-hand.md").read_text("utf-8")
_IMAP_TO = BY_HAND.partition("`/usr/local/sbin/imap-to`:\n\n```bash\n")[2].partition("```")[0]
_TAGS = {"user": 1, "member": 2, "group": 4, "others": 32, "mask": 16}


def acl(**entries: tuple[int, int]) -> bytes:
    """As the kernel has it: a version, and for each entry its tag, its bits, and whose it is."""
    return struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", _TAGS[name], bits, who % 2**32) for name, (bits, who) in entries.items()
    )


@pytest.fixture
def open_map() -> Iterator[Map]:
    """Where everybody may go, and a Perdition that is nobody."""
    directory = Path(tempfile.mkdtemp(prefix="lpmap", dir="/tmp"))
    directory.chmod(0o755)
    popmap = Map(directory)
    (directory / "popmap.gdbm.db").write_text(popmap.text.read_text("utf-8"), "utf-8")
    daemon = subprocess.Popen(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sleep", "300"])
    (directory / "pid").write_text(str(daemon.pid), "ascii")
    while b"sleep" not in Path(f"/proc/{daemon.pid}/cmdline").read_bytes()[:6]:
        time.sleep(0.01)
    yield popmap
    daemon.kill()
    daemon.wait()
    shutil.rmtree(directory)


def imap_to(popmap: Map, server: str, umask: int) -> "subprocess.CompletedProcess[str]":
    """The script of docs/migration-by-hand.md, for zoe."""
    script = _IMAP_TO.replace("/etc/perdition/popmap", str(popmap.text))
    script = script.replace("/run/perdition.imap4/perdition.imap4.pid", str(popmap.directory / "pid"))
    (popmap.directory / "list").write_text("zoe@example.org\n", "ascii")
    path = popmap.directory / "imap-to"
    path.write_text(script, "utf-8")
    return subprocess.run(
        ["/bin/bash", path, server, popmap.directory / "list"],
        capture_output=True, text=True, timeout=20, check=False, umask=umask,
        env={"PATH": f"{popmap.directory}/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, cwd=popmap.directory,
    )  # fmt: skip


def put(popmap: Map, how: str, where: str, umask: int) -> "subprocess.CompletedProcess[str]":
    if how == "imap-to":
        return imap_to(popmap, {"new": "10.0.0.2:143", "old": "10.0.0.1:143"}[where], umask)
    return popmap.run(where, *SERVERS, "zoe", umask=umask)


def is_like(path: Path) -> tuple[object, ...]:
    status = path.stat()
    access = "system.posix_acl_access"
    return (
        status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), os.getxattr(path, access)
        if access in os.listxattr(path) else None, path.is_symlink() and os.readlink(path),
    )  # fmt: skip


@pytest.mark.parametrize("how", ["perdition-map", "imap-to"])
@pytest.mark.parametrize("umask", UMASKS, ids="{:03o}".format)
def test_the_map_stays_what_it_is_whatever_the_umask(open_map: Map, umask: int, how: str) -> None:
    """Owner, group, mode, ACL; and a link is one still, with another target's content."""
    text, db = open_map.text, open_map.directory / "popmap.gdbm.db"
    elsewhere = open_map.directory / "data"
    elsewhere.mkdir(mode=0o755)
    os.rename(db, elsewhere / "map.db")
    db.symlink_to("data/map.db")
    os.chown(elsewhere / "map.db", 1, 2)
    os.chmod(elsewhere / "map.db", 0o640)
    entries = acl(user=(6, -1), member=(4, NOBODY), group=(4, -1), mask=(4, -1), others=(0, -1))
    os.setxattr(elsewhere / "map.db", "system.posix_acl_access", entries)
    os.chown(text, 3, 4)
    os.chmod(text, 0o604)
    before = [is_like(path) for path in (text, db, elsewhere / "map.db")]
    for where, server in (("new", "10.0.0.2"), ("old", "10.0.0.1")):
        done = put(open_map, how, where, umask)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"zoe:{server}:143" in open_map.lines
        assert [is_like(path) for path in (text, db, elsewhere / "map.db")] == before
    assert sorted(path.name for path in elsewhere.iterdir()) == ["map.db"]


@pytest.mark.parametrize("how", ["perdition-map", "imap-to"])
@pytest.mark.parametrize("umask", UMASKS, ids="{:03o}".format)
def test_a_map_that_perdition_cannot_read_is_no_success(open_map: Map, umask: int, how: str) -> None:
    """As an earlier run may have left it: then nobody is blocked, and who was moved goes to the old store."""
    db = open_map.directory / "popmap.gdbm.db"
    db.chmod(0o600)
    before = open_map.lines
    done = put(open_map, how, "new", umask)
    assert done.returncode == 1 and "Perdition (user 65534" in done.stderr and open_map.lines == before
    db.chmod(0o640)
    os.chown(db, 0, NOBODY)
    assert put(open_map, how, "new", umask).returncode == 0
    db.chmod(0o600)
    if how == "perdition-map":
        assert put(open_map, how, "new", umask).returncode == 1, "also where it says so already"
    db.chmod(0o644)
    open_map.directory.chmod(0o700)
    assert put(open_map, how, "old", umask).returncode == 1, "nor one behind a directory"


@pytest.mark.parametrize("umask", UMASKS, ids="{:03o}".format)
def test_a_first_map_is_like_its_text(open_map: Map, umask: int) -> None:
    db = open_map.directory / "popmap.gdbm.db"
    db.unlink()
    open_map.text.chmod(0o644)
    assert open_map.run("new", *SERVERS, "zoe", umask=umask).returncode == 0
    assert is_like(db) == is_like(open_map.text)
    (open_map.directory / "pid").unlink()  # not running: as who it would
    assert open_map.run("old", *SERVERS, "zoe", umask=umask).returncode == 0
    assert open_map.run("old", *SERVERS, "zoe", umask=umask, PERDITION_USER="daemon").returncode == 0
    os.chown(db, NOBODY, 0)
    db.chmod(0o600)
    assert open_map.run("new", *SERVERS, "zoe", umask=umask).returncode == 0
    refused = open_map.run("new", *SERVERS, "zoe", umask=umask, PERDITION_USER="daemon")
    assert refused.returncode == 1 and "may not read it" in refused.stderr


@pytest.mark.parametrize("umask", UMASKS, ids="{:03o}".format)
def test_what_the_other_scripts_write_is_for_their_user_alone(tmp_path: Path, umask: int) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "mbsync"
    program.write_text("#!/bin/sh\necho isync 1.4.4\n", "ascii")
    program.chmod(0o755)
    (tmp_path / "passwords").write_text("zoe:secret\n", "ascii")
    environment = {
        "PATH": f"{tmp_path}/bin:/usr/bin:/bin", "STATES": f"{tmp_path}/states", "PASSWORDS": f"{tmp_path}/passwords",
    }  # fmt: skip
    done = subprocess.run(
        [PLANS / "mbsync-user", "a:1", "b:2", "zoe"],
        env=environment, umask=umask, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert stat.S_IMODE((tmp_path / "states").stat().st_mode) == 0o700


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
    sessions[user].wait(20)
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
        assert under_way.wait(20) == -15
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
    page = (ROOT / "docs" / "lmtp-proxy-migrate.5").read_text("utf-8")
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
