# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan as it is shipped, with the addresses of the private servers in it, and `lmtp-proxyctl migrate` run with it.

The plan's own scripts are run, and find their files by the environment variables that they are made for.
"""

import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from contextlib import contextmanager
from pathlib import Path

from lmtp_proxy.ctl.migrate.journal import open_journal
from lmtp_proxy.ctl.migrate.report import Report, read_report
from tests import ROOT
from tests.support.proxy import ProxyProcess

from .conftest import Stack
from .dovecot_conf import PLANS
from .mail import message
from .perdition import Perdition
from .postfix import DOMAIN
from .process import wait_until
from .requirements import program
from .stores import PASSWORD, TEST_USERS, Dovecot, Store

PROVEN = " prove: new: ok "
"""In what a run says once its new store is proven."""
OLD_MAIL = 3
"""Messages that each user has from the beginning, in each of two folders."""


class MigrateStand:
    """`old` and `new` are stores, TEST_USERS have accounts on the latter; Perdition stands before both."""

    def __init__(
        self,
        stack: Stack,
        directory: Path,
        perdition: Perdition,
        proxy: ProxyProcess,
        plan: str,
        old: Store | None = None,
        new: Store | None = None,
    ) -> None:
        self.stack = stack
        self.proxy = proxy
        self.perdition = perdition
        self.directory = directory
        self.old, self.new = old or stack.old, new or stack.new
        self.plan = directory / "plan.yml"
        self.journal = directory / "migrate.db"
        self.list = directory / "users"
        commands = directory / "bin"
        commands.mkdir()
        dovecot = self.new if isinstance(self.new, Dovecot) else stack.new
        for name, command in {
            "doveadm": f'exec {shlex.join(dovecot.doveadm())} "$@"',
            "lmtp-proxyctl": f'exec {sys.executable} {ROOT}/bin/lmtp-proxyctl -c {proxy.config_path} "$@"',
            "postqueue": f'exec {program("postqueue")} -c {stack.postfix.directory}/etc "$@"',
        }.items():
            (commands / name).write_text(f"#!/bin/sh\n{command}\n", "ascii")
            (commands / name).chmod(0o755)
        self._environment = {
            **os.environ,
            "PATH": f"{commands}:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "PERDITION_MAP": str(perdition.map_text),
            "PERDITION_PID": str(perdition.pid_file),
            "DOVEADM_CONFIG": str(dovecot.migration_conf),
            "STATES": str(directory / "states"),
            "PASSWORDS": str(directory / "passwords"),
            "MBSYNC_SSL": "None",
        }
        text = (PLANS / plan).read_text("utf-8")
        for there, here in {
            "/usr/share/lmtp-proxy/migrate": str(PLANS),
            f"{PLANS}/kept-apart": f"{PLANS}/kept-apart, --domain, {DOMAIN}",
            "test1@example.org, test2@example.org": ", ".join(TEST_USERS),
            "/etc/dovecot/migration.conf": str(dovecot.migration_conf),
            "/etc/lmtp-proxy/same-mail.conf": str(directory / "same-mail.conf"),
            "192.0.2.10:143": f"127.0.0.1:{self.old.imap_port}",
            "192.0.2.20:143": f"127.0.0.1:{self.new.imap_port}",
            "/var/lib/lmtp-proxy/migrate.db": str(self.journal),
            "#domain: example.org": f"domain: {DOMAIN}",
        }.items():
            text = text.replace(there, here)
        self.plan.write_text(text, "utf-8")

    def change_plan(self, there: str, here: str) -> None:
        text = self.plan.read_text("utf-8")
        assert there in text
        self.plan.write_text(text.replace(there, here), "utf-8")

    # -- what users have ----------------------------------------------------------------------------------------------

    def fill(self, users: Sequence[str]) -> None:
        """Gives each some old mail in INBOX and in a folder, and a place in Perdition's map."""
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self._fill, users))
        self.list.write_text("".join(f"{user}\n" for user in users), "ascii")
        self.perdition.write_map(dict.fromkeys(users, self.old.imap_port))

    def _fill(self, user: str) -> None:
        with self.old.imap(user) as imap:
            imap.create(f"{self.old.prefix}Sent")
            for folder in ("INBOX", f"{self.old.prefix}Sent"):
                for number in range(OLD_MAIL):
                    text = message(f"{folder}-{number}-{user}", [user]).content
                    imap.append(folder, r"(\Seen)" if number else "", "", text)

    def folders(self, store: Store, user: str) -> dict[str, Counter[str]]:
        """The Message-IDs in each folder, by its name without the store's prefix."""
        found = {}
        with store.imap(user) as imap:
            for line in imap.list()[1]:
                assert isinstance(line, bytes)
                name = line.decode("ascii").rpartition(' "." ')[2].strip('"')
                assert imap.select(name, readonly=True)[0] == "OK"
                _, parts = imap.fetch("1:*", "(BODY.PEEK[HEADER.FIELDS (MESSAGE-ID)])")
                found[name.removeprefix(store.prefix)] = Counter(
                    part[1].decode("ascii").strip() for part in parts if isinstance(part, tuple)
                )
        return found

    def check_folders(self, users: Sequence[str]) -> None:
        """Whatever a moved user had in the old store they have in the new one, folder by folder."""
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda user: (user, self.folders(self.old, user), self.folders(self.new, user)), users)
        for user, old, new in found:
            assert old.keys() == new.keys(), user
            assert {name: +(old[name] - new[name]) for name in old if old[name] - new[name]} == {}, user
            assert old["Sent"] == new["Sent"] and old["Sent"].total() == OLD_MAIL

    def server_of(self, user: str) -> str:
        """old, new or blocked, as Perdition's map has it."""
        names = {self.old.imap_port: "old", self.new.imap_port: "new", 1: "blocked"}
        [port] = [
            int(line.rpartition(":")[2])
            for line in self.perdition.map_text.read_text("ascii").splitlines()
            if line.startswith(f"{user}:")
        ]
        return names[port]

    # -- the command --------------------------------------------------------------------------------------------------

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(ROOT / "bin/lmtp-proxyctl"), "-c", self.proxy.config_path, "migrate", *arguments]

    def begin(self, *arguments: str) -> "subprocess.Popen[bytes]":
        """The run, under way; what it says goes to `log`."""
        with open(self.directory / "log", "ab") as log:
            return subprocess.Popen(
                self.command(str(self.plan), "--users", str(self.list), "--jobs", "4", *arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
            )

    def begin_proven(self) -> "subprocess.Popen[bytes]":
        """The same, now that the store is proven and users are begun, however long that took; or it has ended."""
        proofs = self.log().count(PROVEN)
        process = self.begin()
        wait_until(lambda: self.log().count(PROVEN) > proofs or process.poll() is not None, 60, self.log)
        return process

    def run(self, *arguments: str, timeout: float = 150) -> int:
        """A whole run: its exit status."""
        process = self.begin(*arguments)
        try:
            return process.wait(timeout)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
                print(self.log()[-6000:])

    def tell(self, *arguments: str) -> str:
        """What another verb of `migrate` prints."""
        done = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=60, check=False, env=self._environment
        )
        assert done.returncode == 0, f"{arguments}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def script(self, name: str, *arguments: str, status: int = 0, umask: int = -1) -> str:
        """What a script beside the plans prints."""
        command = [str(PLANS / name), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env=self._environment, umask=umask
        )
        assert done.returncode == status, f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def log(self) -> str:
        log = self.directory / "log"
        return log.read_text("utf-8", "replace") if log.exists() else ""

    def report(self) -> Report:
        with open_journal(str(self.journal), read_only=True) as journal:
            return read_report(journal)


@contextmanager
def credentials(stand: MigrateStand, users: Sequence[str]) -> Iterator[None]:
    """What mbsync-user and same-mail log in with: the latter by the file that is shipped for it."""
    passwords, path = stand.directory / "passwords", stand.directory / "same-mail.conf"
    passwords.write_text("".join(f"{user}:{PASSWORD}\n" for user in users), "ascii")
    config = ConfigParser(inline_comment_prefixes="#")
    config.read(PLANS / path.name)
    for name, store in (("old", stand.old), ("new", stand.new)):
        settings = {"server": f"127.0.0.1:{store.imap_port}", "admin": store.admin, "password": PASSWORD, "tls": "no"}
        assert config[name].keys() == settings.keys()
        config[name].update(settings)
    with open(path, "w", encoding="ascii") as file:
        config.write(file)
    for each in (passwords, path):
        each.chmod(0o600)
    yield
