# SPDX-License-Identifier: GPL-3.0-or-later
"""A store that takes everything and keeps nothing apart gets nobody: real ones, of both Debian releases.

tests/docs/test_kept_apart.py has what they do not do.
"""

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests import ROOT
from tests.support.proxy import ProxyProcess

from .conftest import Stack
from .dovecot_conf import PLANS
from .machine import Machine
from .postfix import DOMAIN
from .stores import PASSWORD, TEST_USERS, Cyrus, Dovecot, Store
from .test_migrate_releases import releases as releases

USER, OTHER = TEST_USERS


class Site:
    """`new` behind a proxy, and a plan that proves it: with doveadm, or over IMAP."""

    def __init__(self, directory: Path, new: Store, imap: Store | None, users: Sequence[str]) -> None:
        """imap: the server that is looked at, where that is not done by doveadm."""
        self.directory = directory
        backends = {"old": {"socket": str(directory / "none")}, "new": {"socket": str(new.lmtp_socket)}}
        config = {
            "ignoreDomain": True,
            "control": {"socket": str(directory / "control")},
            "receipts": str(directory / "receipts.db"),
        }
        self.proxy = ProxyProcess(
            {"config": config, "backends": backends, "users": dict.fromkeys(users, "old")},
            directory=str(directory),
        )
        commands = {"lmtp-proxyctl": [sys.executable, str(ROOT / "bin/lmtp-proxyctl"), "-c", self.proxy.config_path]}
        if isinstance(new, Dovecot):
            commands["doveadm"] = new.doveadm()
        (directory / "bin").mkdir()
        for name, command in commands.items():
            (directory / "bin" / name).write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n', "ascii")
            (directory / "bin" / name).chmod(0o755)
        how: list[str] = []
        if imap is not None:
            how = ["--imap", str(directory / "same-mail.conf")]
            (directory / "same-mail.conf").write_text(
                f"[new]\nserver = 127.0.0.1:{imap.imap_port}\nadmin = {imap.admin}\npassword = {PASSWORD}\ntls = no\n"
            )
        prove = [str(PLANS / "kept-apart"), *how, "--domain", DOMAIN, "--wait", "1", '"{to}"', *TEST_USERS]
        (directory / "plan.yml").write_text(
            f"from: old\nto: new\npark: reject\nprove: [{', '.join(prove)}]\nsync: [touch, {directory}/begun]\n"
            f"requeue: no\njournal: {directory}/migrate.db\n"
        )
        self._environment = {
            **os.environ,
            "PATH": f"{directory}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "DOVEADM_CONFIG": str(new.directory / "migration.conf"),
            "LC_ALL": "C.UTF-8",
        }

    def run(self, *users: str) -> tuple[int, str]:
        """Copies them, if the store is proven: the exit status, and the last line."""
        command = [str(self.directory / "bin/lmtp-proxyctl"), "migrate", str(self.directory / "plan.yml")]
        done = subprocess.run(
            [*command, "--sync-only", *users],
            capture_output=True, text=True, timeout=120, check=False, env=self._environment,
        )  # fmt: skip
        return done.returncode, done.stderr.splitlines()[-1]

    def begun(self) -> bool:
        """Whether anybody was."""
        return (self.directory / "begun").exists()


@contextmanager
def site(new: Store, imap: Store | None, users: Sequence[str]) -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="lpk-", dir="/tmp") as directory:
        found = Site(Path(directory), new, imap, users)
        with found.proxy:
            yield found


@contextmanager
def running(store: Store) -> Iterator[Store]:
    try:
        store.start()
        yield store
    finally:
        store.stop()
        print(f"{store!r}'s log:", *store.log().splitlines()[-60:], sep="\n")


RIGHT = {"bookworm": "mail_location = sdbox:~/sdbox\n", "trixie": "mail_path = ~/sdbox\n"}
WRONG = {"bookworm": "mail_location = sdbox:{}/mail/all\n", "trixie": "mail_path = {}/mail/%u\n"}
"""%u is the user for 2.3, and for 2.4 the two characters: everybody's mail is in one folder, 250 to each."""


@pytest.mark.parametrize("by", ["doveadm", "IMAP"])
@pytest.mark.parametrize("release", RIGHT)
def test_dovecot_with_one_mailbox_for_all(stack: Stack, releases: dict[str, Machine], release: str, by: str) -> None:
    with tempfile.TemporaryDirectory(prefix="lpk-", dir="/tmp") as name, ExitStack() as cleanup:
        directory = Path(name)
        directory.chmod(0o755)
        new = Dovecot(directory, releases[release])
        new.add_users([*TEST_USERS, "alice", "bob"])
        new.copy_from(stack.old)  # which writes what doveadm is asked with
        conf = directory / "dovecot.conf"
        right = conf.read_text("utf-8")
        assert right.count(RIGHT[release]) == 1
        conf.write_text(right.replace(RIGHT[release], WRONG[release].format(directory)), "utf-8")
        here = cleanup.enter_context(site(new, new if by == "IMAP" else None, ["alice", "bob"]))
        with running(new):
            status, line = here.run("alice", "bob")
            said = f"new does not keep users apart: a mail for {USER} is in the mailbox of {OTHER}, too; with Dovecot"
            assert status == 1 and f"(prove: exit 1: kept-apart: {said}" in line, line
            with new.imap("alice") as imap:  # and everybody's is everybody's
                imap.append("INBOX", "", "", b"Message-ID: <real@x>\r\nSubject: x\r\n\r\nx\r\n")
            status, line = here.run("alice", "bob")
            assert status == 1 and f"kept-apart: {USER} has 2 messages in new already, in INBOX" in line
            assert not here.begun()
        conf.write_text(right, "utf-8")
        with running(new):
            for _ in range(2):  # a test mail of before is no reason to refuse
                assert here.run("alice", "bob")[0] == 0
            assert here.begun() and len(new.messages(USER)) == 2 and new.messages(OTHER) == []


@pytest.mark.parametrize("release", RIGHT)
def test_cyrus(stack: Stack, releases: dict[str, Machine], release: str) -> None:
    with tempfile.TemporaryDirectory(prefix="lpk-", dir="/tmp") as name, ExitStack() as cleanup:
        new, other = (Cyrus(made(Path(name) / each), releases[release]) for each in ("new", "other"))
        for store in (new, other):
            cleanup.enter_context(running(store))
            store.add_users([*TEST_USERS, "alice"])
        here = cleanup.enter_context(site(new, new, ["alice"]))
        assert here.run("alice")[0] == 0 and len(new.messages(USER)) == 1
        elsewhere = cleanup.enter_context(site(new, other, ["alice"]))
        status, line = elsewhere.run("alice")
        assert status == 1 and not elsewhere.begun(), line
        assert "(prove: exit 1: kept-apart: new said 250 to <lmtp-proxy-test." in line
        assert line.endswith(f"> for {USER}, and it is not in that mailbox)")


def made(directory: Path) -> Path:
    directory.parent.chmod(0o755)
    directory.mkdir()
    return directory
