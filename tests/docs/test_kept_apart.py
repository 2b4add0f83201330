# SPDX-License-Identifier: GPL-3.0-or-later
"""The script that proves a store before the first user: one that keeps nobody apart is refused, and so is whatever
cannot be told.

By programs and servers that play a script; tests/e2e/test_kept_apart.py has the real ones.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.support import doveadm
from tests.support.imap import FakeImap, Folders

SCRIPT = ROOT / "etc" / "migrate" / "kept-apart"
USER, OTHER = "test1@example.org", "test2@example.org"
SENT = "<lmtp-proxy-test.0123456789@mx>"
APART = f"new: a mail for {USER} is in their INBOX, and not in the mailbox of {OTHER}\n"

CTL = """\
import json, os, pathlib, sys
site = pathlib.Path(os.environ["SITE"])
(site / "asked").write_text("\\n".join(sys.argv[1:]))
answer = json.loads((site / "answer").read_text())
stand_in = json.loads((site / "stand-in").read_text())
for user, folder in answer["puts"]:
    stand_in["new"][user].setdefault(folder, []).append([99, answer["message_id"], 500, ""])
(site / "stand-in").write_text(json.dumps(stand_in))
print(json.dumps(answer["says"]))
print(answer["complains"], file=sys.stderr)
sys.exit(answer["status"])
"""
"""A lmtp-proxyctl that is none: the store puts the test mail where `answer` says."""


class Site:
    """Test users in the new store, and a store that plays a script. puts: into which folders of whom."""

    def __init__(self, directory: Path, *puts: tuple[str, str], version: str = "2.4") -> None:
        self.directory = directory
        (directory / "bin").mkdir()
        self.program("doveadm", f'exec {sys.executable} -IS {doveadm.__file__} "$@"')
        (directory / "ctl.py").write_text(CTL, "ascii")
        self.program("lmtp-proxyctl", f'exec {sys.executable} -IS {directory}/ctl.py "$@"')
        self.new: dict[str, dict[str, list[list[Any]]]] = {USER: {"INBOX": []}, OTHER: {"INBOX": []}}
        self.version = version
        self.answer: dict[str, Any] = {
            "puts": puts,
            "message_id": SENT,
            "says": {"backends": [{"message_id": SENT, "refused": None}], "status": 0},
            "complains": "",
            "status": 0,
        }

    def program(self, name: str, command: str) -> None:
        path = self.directory / "bin" / name
        path.write_text(f"#!/bin/sh\n{command}\n", "utf-8")
        path.chmod(0o755)

    def run(self, *arguments: str, options: tuple[str, ...] = ("--wait", "0")) -> tuple[int, str, str]:
        stand_in = {"version": self.version, "server": "192.0.2.10:143", "old": {}, "new": self.new}
        (self.directory / "stand-in").write_text(json.dumps(stand_in), "utf-8")
        (self.directory / "answer").write_text(json.dumps(self.answer), "utf-8")
        environment = {
            "PATH": f"{self.directory}/bin:/usr/bin:/bin",
            "SITE": str(self.directory),
            "STAND_IN": str(self.directory / "stand-in"),
            "DOVEADM_CONFIG": str(self.directory / "migration.conf"),
            "LC_ALL": "C.UTF-8",
        }
        done = subprocess.run(
            [SCRIPT, *options, *(arguments or ("new", USER, OTHER))],
            capture_output=True, text=True, timeout=30, check=False, env=environment,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    @property
    def asked(self) -> list[str] | None:
        """How lmtp-proxyctl was called, if it was."""
        path = self.directory / "asked"
        return path.read_text("ascii").split("\n") if path.exists() else None


@pytest.mark.parametrize("version", ["2.3", "2.4"])
def test_a_store_that_keeps_users_apart(tmp_path: Path, version: str) -> None:
    site = Site(tmp_path, (USER, "INBOX"), version=version)
    assert site.run() == (0, APART, "")
    assert site.asked == ["--json", "probe", f"--deliver={USER}", "--", "new"]


def test_test_mails_of_before_do_not_count(tmp_path: Path) -> None:
    site = Site(tmp_path, (USER, "INBOX"))
    for user in (USER, OTHER):
        site.new[user]["INBOX"].append([1, "<lmtp-proxy-test.abc@mx>", 500, ""])
    assert site.run() == (0, APART, "")


def test_a_store_that_takes_its_time(tmp_path: Path) -> None:
    site = Site(tmp_path, (USER, "INBOX"))
    later = f"(sleep 0.3; exec {sys.executable} -IS {tmp_path}/ctl.py) >/dev/null 2>&1 &"
    site.program("lmtp-proxyctl", f"{later} echo '{json.dumps(site.answer['says'])}'")
    assert site.run(options=()) == (0, APART, "")


def test_names_without_a_domain(tmp_path: Path) -> None:
    site = Site(tmp_path, ("test1", "Junk"))
    site.new = {"test1": {"INBOX": []}, "test2": {"INBOX": []}}
    options = ("--domain", "example.org", "--socket", "/run/other")
    status, out, err = site.run("new", "test1", "test2", options=options)
    assert (status, err) == (0, "") and out.startswith("new: a mail for test1 is in their Junk, and not in")
    assert site.asked == ["--socket", "/run/other", "--json", "probe", "--deliver=test1@example.org", "--", "new"]


@pytest.mark.parametrize(
    "puts, said",
    [
        ([(USER, "INBOX"), (OTHER, "INBOX")], f"a mail for {USER} is in the mailbox of {OTHER}, too; with Dovecot"),
        ([(OTHER, "INBOX")], f"a mail for {USER} is in the mailbox of {OTHER}, and not in their own; with Dovecot"),
        ([(OTHER, "Junk")], f"a mail for {USER} is in the mailbox of {OTHER}, and not in their own; with Dovecot"),
        ([], f"new said 250 to {SENT} for {USER}, and it is not in that mailbox"),
        ([(USER, "INBOX"), (USER, "INBOX")], f"new has {SENT} for {USER} 2 times, in INBOX, INBOX"),
        ([(USER, "INBOX"), (USER, "Copies")], f"new has {SENT} for {USER} 2 times, in Copies, INBOX"),
    ],
    ids=["one mailbox for all", "another's", "another's folder", "nowhere", "twice", "twice in two folders"],
)  # fmt: skip
def test_a_store_that_does_not(tmp_path: Path, puts: list[tuple[str, str]], said: str) -> None:
    status, out, err = Site(tmp_path, *puts).run()
    assert (status, out) == (1, "") and said in err and len(err.splitlines()) == 1
    assert len(err) < 300, "a run says no more of a command's output"


@pytest.mark.parametrize("who", [USER, OTHER])
def test_a_mailbox_that_was_used_before(tmp_path: Path, who: str) -> None:
    """What all users have in one mailbox looks like this; and nothing is sent into somebody's mailbox."""
    site = Site(tmp_path, (USER, "INBOX"))
    site.new[who]["Sent"] = [[1, "<real@x>", 500, ""], [2, "", 500, ""]]
    status, _, err = site.run()
    assert status == 1 and f"{who} has 2 messages in new already, in Sent" in err and site.asked is None


@pytest.mark.parametrize("version", ["imapc", "no json", "no size", "odd number", "silent", "half a list", "trouble"])
def test_a_doveadm_that_is_not_understood(tmp_path: Path, version: str) -> None:
    site = Site(tmp_path, (USER, "INBOX"), version=version)
    for user in (USER, OTHER):
        site.new[user]["INBOX"] = [[1, "<lmtp-proxy-test.abc@mx>", 500, ""]]
    status, out, err = site.run()
    assert (status, out, site.asked) == (2, "", None) and err.startswith("kept-apart: ")


def test_a_doveadm_that_shows_nobody_anything(tmp_path: Path) -> None:
    """Before the first mail that is how an untouched mailbox looks; after it, as where all folders have a prefix."""
    status, _, err = Site(tmp_path, (USER, "INBOX"), version="empty").run()
    assert status == 1 and err.endswith(": has the namespace in $DOVEADM_CONFIG a prefix?\n")


def test_a_store_that_takes_no_mail(tmp_path: Path) -> None:
    site = Site(tmp_path)
    replies = [{"recipient": USER, "code": 550, "reply": "550 5.1.1 who?"}]
    final = {"code": 552, "reply": "552 5.2.2 full"}
    for refused, said, last, expected in (
        ("connect: refused", [], None, "connect: refused"),
        (None, replies, None, "550 5.1.1 who?"),
        (None, replies, final, "552 5.2.2 full"),
    ):
        store = {"message_id": SENT, "refused": refused, "replies": said, "final": last}
        site.answer.update(status=1, says={"backends": [store], "status": 1})
        assert site.run() == (2, "", f"kept-apart: new takes no mail for {USER}: {expected}\n")


def test_a_proxy_that_does_not_answer(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.answer.update(
        status=1, says={"error": "x"}, complains="waiting\nlmtp-proxyctl: /run/c: is lmtp-proxy running?"
    )
    assert site.run() == (2, "", "kept-apart: lmtp-proxyctl: /run/c: is lmtp-proxy running?\n")
    (tmp_path / "bin" / "lmtp-proxyctl").unlink()
    status, _, err = site.run()
    assert status == 2 and "No such file or directory: 'lmtp-proxyctl'" in err


def test_wrong_arguments(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for arguments in (("new", USER), ("new", USER, USER), ("new", "", OTHER), ("new", USER, OTHER, "x"), ("--x",)):
        status, _, err = site.run(*arguments)
        assert status == 64 and err.startswith("usage: kept-apart ") and site.asked is None


def test_over_imap(tmp_path: Path) -> None:
    site = Site(tmp_path)
    shared: Folders = {"INBOX": [(1, "<lmtp-proxy-test.abc@mx>", 500, "")]}
    plays: list[tuple[dict[str, Folders], int, str]] = [
        ({USER: shared, OTHER: {"INBOX": []}}, 1, "and it is not in that mailbox"),
        ({USER: {"INBOX": [(1, "<real@x>", 500, "")]}, OTHER: {"INBOX": []}}, 1, "has 1 message in new already"),
        ({USER: shared}, 2, "who are you?"),
    ]
    for users, status, said in plays:
        with FakeImap(users) as imap:
            config = tmp_path / "same-mail.conf"
            config.write_text(f"[new]\nserver = {imap.address}\npassword = secret\ntls = no\n", "ascii")
            done = site.run(options=("--wait", "0", "--imap", str(config)))
        assert done[0] == status and said in done[2]
