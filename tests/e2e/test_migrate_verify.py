# SPDX-License-Identifier: GPL-3.0-or-later
"""A verify that cannot pass on nothing, with real servers: what a sync left out is named, and nobody is moved.

tests/docs/test_migrate_verify.py has the versions and servers that are not installed here, by script.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import Stack
from .dovecot_conf import PLANS
from .migrate_stand import credentials
from .perdition import Perdition
from .requirements import DOVEADM
from .stores import PASSWORD, TEST_USERS, Cyrus
from .test_migrate import stand_for

MAILS = 6


class Site:
    """Two users with mail in Cyrus, and the scripts of plans."""

    def __init__(self, stack: Stack, directory: Path) -> None:
        self.stack = stack
        self.directory = directory
        self.user, self.other = stack.users(2)
        self.server = f"127.0.0.1:{stack.old.imap_port}"
        for user in (self.user, self.other):
            with stack.old.imap(user) as imap:
                imap.create("INBOX.Sent")
                for folder in ("INBOX", "INBOX.Sent"):
                    for number in range(MAILS):
                        text = f"Message-ID: <{number}.{folder}.{user}@x>\r\nSubject: x\r\n\r\nText\r\n"
                        flags = r"(\Seen \Flagged)" if number % 2 else ""
                        assert imap.append(folder, flags, "", text.encode("ascii"))[0] == "OK"
        self.commands = directory / "bin"
        self.commands.mkdir()
        self.doveadm_is('exec {} "$@"')
        (directory / "same-mail.conf").write_text(
            f"[old]\nserver = {self.server}\nadmin = cyrus\npassword = {PASSWORD}\ntls = no\n"
            f"[new]\nserver = 127.0.0.1:{stack.new.imap_port}\npassword = {PASSWORD}\ntls = no\n",
            "ascii",
        )

    def doveadm_is(self, script: str) -> None:
        """script: of a shell, with {} for the real one."""
        (self.commands / "doveadm").write_text(f"#!/bin/bash\n{script.format(DOVEADM)}\n", "ascii")
        (self.commands / "doveadm").chmod(0o755)

    def script(self, name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        environment = {
            **os.environ,
            "PATH": f"{self.commands}:/usr/sbin:/usr/bin:/sbin:/bin",
            "DOVEADM_CONFIG": str(self.stack.new.migration_conf),
            "STATES": str(self.directory / "states"),
        }
        return subprocess.run(
            [PLANS / name, *arguments], capture_output=True, text=True, timeout=60, check=False, env=environment
        )

    def doveadm(self, *arguments: str) -> None:
        """On the new store."""
        command = [str(DOVEADM), "-c", f"{self.stack.new.directory}/dovecot.conf", *arguments]
        subprocess.run(command, capture_output=True, timeout=60, check=True)

    def same_state(self) -> "subprocess.CompletedProcess[str]":
        return self.script("same-state", self.server, self.user)

    def same_mail(self) -> "subprocess.CompletedProcess[str]":
        return self.script("same-mail", str(self.directory / "same-mail.conf"), self.user)


@pytest.fixture
def site(stack: Stack, tmp_path: Path) -> Site:
    return Site(stack, tmp_path)


def half(site: Site) -> None:
    site.stack.new.backup(site.user)
    site.doveadm("expunge", "-u", site.user, "mailbox", "INBOX", "uid", f"{MAILS // 2 + 1}:{MAILS}")


def one_less(site: Site) -> None:
    site.stack.new.backup(site.user)
    site.doveadm("expunge", "-u", site.user, "mailbox", "INBOX.Sent", "uid", "2")


def wrong_user(site: Site) -> None:
    command = [str(DOVEADM), "-c", str(site.stack.new.migration_conf), "-o", f"imapc_user={site.other}"]
    subprocess.run([*command, "backup", "-R", "-u", site.user, "imapc:"], capture_output=True, timeout=60, check=True)


def no_flags(site: Site) -> None:
    site.stack.new.backup(site.user)
    site.doveadm("flags", "remove", "-u", site.user, r"\Flagged", "mailbox", "INBOX", "uid", "4")


@pytest.mark.parametrize(
    "sync, said",
    [
        (lambda site: None, "INBOX: 6 only in the old store: <0.INBOX."),
        (half, "INBOX: 3 only in the old store: <3.INBOX."),
        (one_less, "Sent: 1 only in the old store: <1.INBOX.Sent."),
        (wrong_user, "Sent: 6 only in the old store: <0.INBOX.Sent."),
        (no_flags, r"\Flagged \Seen in the old store, \Seen in the new one"),
    ],
    ids=["nothing", "half", "one_less", "wrong_user", "no_flags"],
)
def test_a_sync_that_left_something_out(site: Site, sync: Callable[[Site], None], said: str) -> None:
    sync(site)
    for done in (site.same_state(), site.same_mail()):
        assert (done.returncode, done.stderr) == (1, ""), done
        assert said in done.stdout, done
    assert not (site.directory / "states").exists()


def test_a_sync_that_left_nothing_out(site: Site) -> None:
    site.stack.new.backup(site.user)
    for done in (site.same_state(), site.same_mail()):
        assert (done.returncode, done.stderr) == (0, ""), done
        assert done.stdout == f"2 folders, {2 * MAILS} messages, the same in both stores\n"


IGNORES_SETTINGS = """
for word; do
    case $skip$word in
        -o) skip=setting ;;
        setting*) skip= ;;
        *) words+=("$word") ;;
    esac
done
exec {} "${{words[@]}}"
"""
"""What 2.4 does with the settings of 2.3."""
SAYS_NOTHING = 'exec {} "$@" 2>/dev/null'


@pytest.mark.parametrize("script", [IGNORES_SETTINGS, SAYS_NOTHING], ids=["ignores", "quiet"])
def test_a_doveadm_that_does_not_say_whom_it_asked(site: Site, script: str) -> None:
    """Not even when all was copied."""
    site.stack.new.backup(site.user)
    site.doveadm_is(script)
    for done in (site.same_state(), site.script("mail-state", site.server, site.user)):
        assert (done.returncode, done.stdout) == (2, ""), done
        assert f"{site.server} is to be asked, and it asked nobody" in done.stderr


def test_a_configuration_whose_folders_have_a_prefix(site: Site) -> None:
    """Then `mailbox *` is no folder at all for doveadm, in either store, and nothing is the same as nothing."""
    site.stack.new.backup(site.user)
    conf = site.stack.new.migration_conf
    right = conf.read_text("utf-8")
    assert "  prefix =\n" in right
    try:
        conf.write_text(right.replace("  prefix =\n", "  prefix = INBOX.\n"), "utf-8")
        done = site.same_state()
    finally:
        conf.write_text(right, "utf-8")
    assert (done.returncode, done.stdout) == (2, ""), done
    assert f"the store at {site.server} shows no INBOX of {site.user}" in done.stderr


def test_a_store_that_cannot_be_asked(site: Site) -> None:
    site.stack.new.backup(site.user)
    for server in (f"127.0.0.1:{site.stack.new.imap_port}", "localhost:1"):
        done = site.script("same-state", server, site.user)
        assert done.returncode == 2 and f"{server} is to be asked, and it asked {site.server}" in done.stderr
    done = site.script("same-state", site.server, "who-is-this")
    assert done.returncode == 2 and "User doesn't exist" in done.stderr


def test_what_came_to_the_old_store_later(site: Site) -> None:
    site.stack.new.backup(site.user)
    assert site.same_state().returncode == 0
    since = ("same-state", "--since", site.server, site.user)
    assert (site.script(*since).returncode, site.script(*since).stdout) == (0, "")
    with site.stack.old.imap(site.user) as imap:
        imap.append("INBOX", "", "", b"Message-ID: <late@x>\r\n\r\nx\r\n")
    done = site.script(*since)
    assert done.returncode == 1 and "+INBOX messages=7 " in done.stdout


@pytest.fixture
def second_cyrus(stack: Stack) -> Iterator[Cyrus]:
    directory = stack.proxy_socket.with_name("cyrus3")
    directory.mkdir()
    new = Cyrus(directory)
    try:
        new.start()
        yield new
    finally:
        new.stop()


@pytest.mark.parametrize("how", ["no sync", "ignores"])
def test_nobody_is_moved_whose_mail_was_not_copied(patient_stack: Stack, perdition: Perdition, how: str) -> None:
    users = patient_stack.users(3)
    with stand_for(patient_stack, perdition, users, "cyrus-to-dovecot.yml") as stand:
        stand.change_plan(
            f'[doveadm, -c, {stand.stack.new.migration_conf}, backup, -R, -u, "{{user}}", "imapc:"]',
            '["true", "{user}"]',
        )
        if how == "ignores":  # and so compares the new store with itself
            text = IGNORES_SETTINGS.format(DOVEADM)
            (stand.directory / "bin" / "doveadm").write_text(f"#!/bin/bash\n{text}", "ascii")
        assert stand.run() == 2, stand.log()
        report = stand.report()
        assert report.counts == {"failed": 3}
        said = "only in the old store" if how == "no sync" else "it asked nobody, so it read the new store"
        for user in report.users:
            assert user.error is not None and user.error.startswith("verify: ")
            assert said in (user.failures[-1].output or ""), user.failures
        assert {user: stand.server_of(user) for user in users} == dict.fromkeys(users, "old")


def test_nobody_is_moved_whom_mbsync_did_not_copy(
    patient_stack: Stack, perdition: Perdition, second_cyrus: Cyrus
) -> None:
    users = patient_stack.users(2)
    second_cyrus.add_users([*users, *TEST_USERS])
    with (
        stand_for(patient_stack, perdition, users, "cyrus-to-cyrus.yml", new=second_cyrus) as stand,
        credentials(stand, users),
    ):
        mbsync = stand.directory / "bin" / "mbsync"
        mbsync.write_text('#!/bin/sh\n[ "$1" != --version ] || exec /usr/bin/mbsync --version\n', "ascii")
        mbsync.chmod(0o755)
        assert stand.run() == 2, stand.log()
        report = stand.report()
        assert report.counts == {"failed": 2}
        for user in report.users:
            assert user.error is not None and user.error.startswith("verify: ")
            assert "INBOX: 3 only in the old store" in (user.failures[-1].output or "")
