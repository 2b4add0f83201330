# SPDX-License-Identifier: GPL-3.0-or-later
"""The setting of docs/migration.md, made of the private servers: its files and commands with paths of this machine.

The pages name the files and addresses of a whole installation; here each stands for something in a private directory.
"""

import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests import ROOT
from tests.support.proxy import ProxyProcess

from .conftest import PEOPLE, Stack
from .perdition import Perdition
from .postfix import DOMAIN
from .requirements import program, run
from .shell_doc import File, Shell
from .stores import PASSWORD

PAGES = "".join((ROOT / "docs" / name).read_text("utf-8") for name in ("migration.md", "migration-by-hand.md"))
"""The page and its appendix, in the order in which they are run."""

STATE_FILES = ("uncertain.log", "receipts.db", "migrate.db")
NO_ACCOUNT = "zoe"
"""In the old store only."""


class MigrationStand:
    """`here` turns text of the page into text for this machine, `there` turns what a command printed back."""

    def __init__(
        self, stack: Stack, directory: Path, perdition: Perdition, lmtp_socket_of_old: Path | None = None
    ) -> None:
        self.proxy = ProxyProcess({"config": {}, "backends": {}, "users": {}})
        self.directory = directory
        self.work = directory / "work"
        self._stack = stack
        self._perdition = perdition
        commands = directory / "bin"
        for part in (commands, self.work):
            part.mkdir()
        old, new = stack.old, stack.new
        self._meanings: dict[str, str] = {
            "/var/spool/postfix/lmtp-proxy/sock": str(stack.proxy_socket),
            "/run/lmtp-proxy/control": str(stack.control_socket),
            **{f"/var/lib/lmtp-proxy/{name}": str(directory / name) for name in STATE_FILES},
            "/etc/lmtp-proxy/migrate.yml": str(directory / "migrate.yml"),
            "/usr/share/lmtp-proxy/migrate": str(ROOT / "etc" / "migrate"),
            "/run/cyrus/socket/lmtp": str(lmtp_socket_of_old or old.lmtp_socket),
            "/etc/lmtp-proxy.yml": self.proxy.config_path,
            "/etc/dovecot/migration.conf": str(new.migration_conf),
            "/etc/dovecot/dovecot.conf": str(new.directory / "dovecot.conf"),
            "/run/perdition.imap4/perdition.imap4.pid": str(perdition.pid_file),
            "/etc/perdition/popmap": str(perdition.map_text),
            "/usr/local/sbin": str(commands),
            "/var/lib/migration": str(self.work),
            "/root/": f"{directory}/",
            "192.0.2.10:143": f"127.0.0.1:{old.imap_port}",
            "192.0.2.20:143": f"127.0.0.1:{new.imap_port}",
            "imapc_host = 192.0.2.10": "imapc_host = 127.0.0.1",
            "imapc_port = 143": f"imapc_port = {old.imap_port}",
            "Host 192.0.2.10\nPort 143": f"Host 127.0.0.1\nPort {old.imap_port}",
            "Host 192.0.2.20\nPort 143": f"Host 127.0.0.1\nPort {new.imap_port}",
            "host: 192.0.2.20\n    port: 24": f"host: 127.0.0.1\n    port: {new.lmtp_port}",
            "split -l 50": "split -l 5",
            "example.org": DOMAIN,
        }
        if not run(str(program("mbsync")), "--version").startswith("isync 1.4"):
            self._meanings["SSLType"] = "TLSType"  # as the page says
        # the page has the journal where it is by default
        journal = f"""$(case "$1 $2" in "migrate "[a-z]*) echo --journal {directory}/migrate.db ;; esac)"""
        for name, command in {
            "lmtp-proxyctl": f'{sys.executable} {ROOT}/bin/lmtp-proxyctl -c {self.proxy.config_path} "$@" {journal}',
            "doveadm": f'{shlex.join(new.doveadm())} $([ "$1" = -c ] || echo -c {new.directory}/dovecot.conf) "$@"',
            "postqueue": f'{program("postqueue")} -c {stack.postfix.directory}/etc "$@"',
            "sendmail": f'{program("sendmail")} -C {stack.postfix.directory}/etc "$@"',
        }.items():
            self._write(commands / name, f"#!/bin/sh\nexec {command}\n", 0o755)
        self._write(directory / "carol.password", f"{PASSWORD}\n", 0o600)

    @staticmethod
    def _write(path: Path, text: str, mode: int) -> None:
        path.write_text(text, "utf-8")
        path.chmod(mode)

    @contextmanager
    def shell(self) -> Iterator[Shell]:
        environment = {
            "PATH": f"{self.directory}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            # what the scripts of plans find in places that the page does not name
            "PERDITION_MAP": str(self._perdition.map_text),
            "PERDITION_PID": str(self._perdition.pid_file),
            "DOVEADM_CONFIG": str(self._stack.new.migration_conf),
            "STATES": str(self.directory / "states"),
        }
        with Shell(self.work, environment) as shell:
            yield shell

    def here(self, text: str) -> str:
        return replaced(text, self._meanings)

    def there(self, line: str) -> str:
        back = {here: there for there, here in self._meanings.items() if "\n" not in there and len(here) > 9}
        return replaced(line, back)  # not the numbers

    def install(self, file: File) -> None:
        """Puts a file of the page in its place; that of the proxy starts it. One for another Dovecot is passed over."""
        path, new = Path(self.here(file.path)), self._stack.new
        is_2_4 = "dovecot_config_version" in file.text
        if path == new.migration_conf and is_2_4 != (new.machine.dovecot_version >= (2, 4)):
            return
        if str(path) == self.proxy.config_path:
            self.proxy.write_config(self.here(file.text))
            self.proxy.start()
        else:
            self._write(path, self.here(file.text), 0o755 if file.text.startswith("#!") else 0o600)

    def fill(self, users: Sequence[str]) -> None:
        """Gives the people and these users mail in the old store, makes the list of `users`, and Perdition's map."""
        everybody = [*PEOPLE, NO_ACCOUNT]
        self._stack.old.add_users(everybody)
        for user in PEOPLE:
            self._stack.old.set_password(user)
        for user in (*everybody, *users):
            with self._stack.old.imap(user) as imap:
                imap.create("INBOX.Sent")
                for number in range(3):
                    text = f"Message-ID: <{number}.{user}@{DOMAIN}>\r\nSubject: Old mail {number}\r\n\r\nText\r\n"
                    imap.append("INBOX.Sent" if number == 0 else "INBOX", "", "", text.encode("ascii"))
        addresses = [f"{user}@{DOMAIN}\n" for user in (*users, NO_ACCOUNT)]
        (self.work / "users").write_text("".join(addresses), "ascii")
        self._perdition.write_map(dict.fromkeys(everybody, self._stack.old.imap_port))


def replaced(text: str, meanings: Mapping[str, str]) -> str:
    """The text with each of them replaced, the longest first, in one pass.

    What has taken a place is not looked at again: this checkout may lie below /root, which has a meaning of its own.
    """
    pattern = "|".join(map(re.escape, sorted(meanings, key=len, reverse=True)))
    return re.sub(pattern, lambda found: meanings[found[0]], text)
