# SPDX-License-Identifier: GPL-3.0-or-later
"""`--check` finds what a start, or mail after it, would trip over: directories, rights, a table that serves nobody."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests import ROOT
from tests.support.proxy import PROGRAM, yaml_of

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user: run the tests as root")

SETPRIV = shutil.which("setpriv")
WEAK = (SETPRIV or "setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""In front of a command of root's: a user who may not write everywhere."""


def command(*arguments: str, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, timeout=20
    )


class Place:
    """A configuration file that is to be checked, with a store's socket beside it that is there."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "c.yml"
        self.store = directory / "store" / "lmtp"
        self.store.parent.mkdir()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.store))
        self._listener.listen()
        self.config: dict[str, dict[str, object]] = {
            "config": {"socket": str(directory / "sock"), "control": {"socket": str(directory / "control")}},
            "backends": {"old": {"socket": str(self.store)}},
            "users": {"alice": "old"},
        }

    def close(self) -> None:
        self._listener.close()

    def run(self, *, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        self.path.write_text(yaml_of(self.config))
        return command("--check", "-c", str(self.path), prefix=prefix)

    def errors(self, *, prefix: Sequence[str] = ()) -> list[str]:
        done = self.run(prefix=prefix)
        assert done.returncode == 1 and not done.stdout and "Traceback" not in done.stderr, done
        return [line.removeprefix(f"{self.path}: ") for line in done.stderr.splitlines()]

    def notes(self) -> list[str]:
        done = self.run()
        assert done.returncode == 0 and not done.stderr, done
        *notes, last = done.stdout.splitlines()
        assert last.startswith(f"{self.path}: OK: ")
        return [note.removeprefix(f"note: {self.path}: ") for note in notes]


@pytest.fixture
def directory() -> Iterator[Path]:
    """One that every user gets to."""
    with tempfile.TemporaryDirectory(prefix="lpc", dir="/tmp") as made:
        os.chmod(made, 0o755)
        yield Path(made)


@pytest.fixture
def place(directory: Path) -> Iterator[Place]:
    made = Place(directory)
    yield made
    made.close()


def test_all_is_well(place: Place) -> None:
    assert place.notes() == []


def test_the_directories_of_both_sockets(place: Place, directory: Path) -> None:
    missing, other = directory / "missing", directory / "other"
    place.config["config"]["socket"] = str(missing / "sock")
    place.config["config"]["control"] = {"socket": str(other / "control")}
    assert place.errors() == [
        f"config.socket: there is no directory {missing}: make it",
        f"config.control.socket: there is no directory {other}: make it",
    ]
    missing.mkdir()
    (missing / "sock").write_text("mine")
    place.config["config"]["control"] = {"socket": str(directory / "control")}
    what = f"config.socket: {missing}/sock exists and is no socket: move it away, or name another path"
    assert place.errors() == [what] and (missing / "sock").read_text() == "mine"


@root
@pytest.mark.skipif(SETPRIV is None, reason="setpriv (util-linux) takes rights away from root")
def test_who_starts_cannot_write_there(place: Place, directory: Path) -> None:
    """The message names them; a start says the same."""
    os.chown(directory, pwd.getpwnam("nobody").pw_uid, -1)
    what = f"root cannot write in {directory}, so there would be no socket; see chown and chmod"
    assert place.notes() == []
    assert place.errors(prefix=WEAK) == [f"config.socket: {what}", f"config.control.socket: {what}"]
    started = command("-c", str(place.path), prefix=WEAK)
    assert started.returncode == 1
    assert f": Permission denied: root may not do so in {directory}; see chown and chmod" in started.stderr


@root
@pytest.mark.parametrize("closed", ["socket", "directory"])
def test_run_as_may_not_connect_to_a_store(place: Place, closed: str) -> None:
    """All its mail would be deferred, and a restart would end a proxy that serves."""
    os.chmod(place.store, 0o600 if closed == "socket" else 0o666)
    os.chmod(place.store.parent, 0o755 if closed == "socket" else 0o700)
    assert place.notes() == [], "root may"
    place.config["config"]["run_as"] = "nobody"
    what = f"nobody may not connect to {place.store}, so all mail for old would be deferred"
    assert place.errors() == [f"backends.old.socket: {what}; see chmod and adduser, for it and for its directories"]
    os.chmod(place.store, 0o666)
    os.chmod(place.store.parent, 0o755)
    assert place.notes() == []


@root
def test_run_as_may_connect_by_its_group(place: Place) -> None:
    os.chown(place.store, -1, pwd.getpwnam("nobody").pw_gid)
    os.chmod(place.store, 0o660)
    place.config["config"]["run_as"] = "nobody"
    assert place.notes() == []


@root
@pytest.mark.skipif(SETPRIV is None, reason="setpriv (util-linux) takes rights away from root")
def test_what_systemd_asks_before_a_reload_is_the_file_alone(place: Place, directory: Path) -> None:
    """A store of which one right is wrong keeps back no change that concerns others; nor does a socket of systemd's.

    The service may not write where that is: /var/spool/postfix is read-only to it.
    """
    unit = (ROOT / "debian/lmtp-proxy.service").read_text()
    [arguments] = re.findall(r"(?m)^ExecReload=/usr/bin/lmtp-proxy (.*)$", unit)
    words = arguments.replace("${CONFIG}", str(place.path)).split()
    os.chmod(place.store, 0o600)
    place.config["config"]["run_as"] = "nobody"
    assert [error.partition(":")[0] for error in place.errors()] == ["backends.old.socket"]
    done = command(*words)
    assert (done.returncode, done.stderr) == (0, "") and f"{place.path}: OK: 1 users" in done.stdout
    del place.config["config"]["run_as"]
    os.chown(directory, pwd.getpwnam("nobody").pw_uid, -1)
    assert {error.partition(":")[0] for error in place.errors(prefix=WEAK)} == {
        "config.socket", "config.control.socket"
    }  # fmt: skip
    assert command(*words, prefix=WEAK).returncode == 0
    place.config["users"]["bob"] = "nwe"
    assert place.errors()[-1:] != [] and command(*words).returncode == 1


@root
def test_an_upgrade_restarts_also_where_one_store_may_not_be_used(place: Place, directory: Path) -> None:
    """The one that runs may not either, and would take no reload from then on. Without its files no start works."""
    script = (ROOT / "debian/lmtp-proxy.postinst").read_text()
    [arguments] = re.findall(r"(?m)^ +if lmtp-proxy (.*) >/dev/null; then$", script)
    words = arguments.replace('"$CONFIG"', str(place.path)).split()
    os.chmod(place.store, 0o600)
    place.config["config"]["run_as"] = "nobody"
    [error] = place.errors()
    done = command(*words)
    assert (done.returncode, done.stderr) == (0, "") and f"note: {place.path}: {error}" in done.stdout.splitlines()
    place.config["config"]["receipts"] = str(directory / "missing/r.db")
    assert len(place.errors()) == 2
    done = command(*words)
    assert done.returncode == 1 and "config.receipts: nobody cannot write in" in done.stderr


def test_a_store_that_is_not_there_now_is_a_note(place: Place) -> None:
    """It may come back; what is not right in the file is an error, what is not so now is none."""
    place.config["backends"]["new"] = {"socket": "/nonexistent/lmtp"}
    place.config["backends"]["odd"] = {"socket": str(place.path)}
    place.config["backends"]["tcp"] = {"host": "192.0.2.1", "port": 24}
    assert place.notes() == [
        "backends.new.socket: there is no /nonexistent/lmtp now: is that store running?",
        f"backends.odd.socket: {place.path} is no socket",
    ]


def test_keys_that_no_mail_hits(place: Place) -> None:
    """They are notes: who knows what a script has put there, and the others are right."""
    odd = ["a@b,c@d", "a@b;old", "a@b:", "mailto:a@b", "a@@b", "alice example.org", "alice@"]
    fine = ["alice", "a.b+c@x.example", "@example.org", "o'neil@x", "jörg@müller.example", "#1@x", "a/b@x"]
    place.config["users"] = dict.fromkeys([*fine, *odd], "old")
    notes = place.notes()
    assert [note.partition('"')[2].partition('"')[0] for note in notes] == odd
    first = place.path.read_text().splitlines().index("users:") + 2
    said = "is no address that RCPT would take as it stands: is it meant for any mail?"
    line = next(number for number, line in enumerate(place.path.read_text().splitlines(), 1) if "a@b,c@d" in line)
    assert line == first + len(fine)
    assert f'note: {place.path}:{line}: users: "a@b,c@d" {said}' in place.run().stdout.splitlines()
    place.config["users"] = {f"a@@{number}": "old" for number in range(30)}
    assert len(place.notes()) == 21 and place.notes()[-1] == "and 10 more notes"


def test_users_in_a_file_of_their_own(place: Place, directory: Path) -> None:
    more = directory / "more.users"
    more.write_text("bob: old\na@@b: old\n")
    place.config["config"]["users_file"] = str(more)
    what = 'users: "a@@b" is no address that RCPT would take as it stands: is it meant for any mail?'
    assert place.notes() == [f"note: {more}:2: {what}"]


def test_nobody_would_get_mail(place: Place) -> None:
    place.config["users"] = {}
    nobody = "there are no users and there is no fallback_backend: all mail would be deferred (450 4.1.1)"
    assert place.notes() == [nobody]
    place.config["config"]["fallback_backend"] = "old"
    assert place.notes() == []
