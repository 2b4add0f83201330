# SPDX-License-Identifier: GPL-3.0-or-later
"""imapsync from a private Cyrus to a private Dovecot, which speak TLS and have administrators, by the plan as shipped.

imapsync is in no Debian release and not in this repository: LMTP_PROXY_IMAPSYNC names one, or it is in the PATH.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from threading import Event, Thread

import pytest

from lmtp_proxy.ctl.migrate.plan import load_plan
from tests.conftest import CANNOT

from .dovecot_conf import PLANS
from .requirements import run
from .stores import PASSWORD, Cyrus, Dovecot, Store

_DATE = re.compile(rb'INTERNALDATE "([^"]*)"')
_FLAGS = re.compile(rb"FLAGS \(([^()]*)\)")


def imapsync() -> Path:
    """Where the program is. The test is skipped where there is none, and fails where it does not run."""
    path = os.environ.get("LMTP_PROXY_IMAPSYNC") or shutil.which("imapsync")
    if not path:
        pytest.skip(f"{CANNOT}install imapsync: it is in no Debian release; LMTP_PROXY_IMAPSYNC may name one")
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        pytest.fail(f"{path} does not run; docs/migration.md has the modules that it needs: {done.stdout}{done.stderr}")
    return Path(path).absolute()


@dataclass(frozen=True, slots=True)
class Site:
    """The stores, and the files that the plan names."""

    program: Path
    directory: Path
    old: Cyrus
    new: Dovecot
    unused: list[str] = field(default_factory=list)
    """Users with an empty mailbox in both, each for one test."""

    @property
    def environment(self) -> dict[str, str]:
        """With it the stores' authority is trusted, and no other."""
        return {**os.environ, "SSL_CERT_FILE": str(self.directory / "ca.pem")}

    def here(self, plan: str) -> str:
        """The text of the plan with the servers and files of this place."""
        for number, name, store, address in ((1, "old", self.old, "192.0.2.10"), (2, "new", self.new, "192.0.2.20")):
            there = f'    - {address}\n    - --port{number}\n    - "143"\n'
            assert there in plan
            plan = plan.replace(there, f'    - 127.0.0.1\n    - --port{number}\n    - "{store.imap_port}"\n')
            plan = plan.replace(f"/etc/lmtp-proxy/{name}.password", str(self.directory / f"{name}.password"))
        return plan

    def sync(self, user: str, without: str = "") -> str:
        """What the plan's command says of this user. without: lines of the plan that are left out, separated by blanks.

        It ends with 0, whatever it has left out.
        """
        text = self.here((PLANS / "imapsync.yml").read_text("utf-8"))
        for word in without.split():
            assert f"    - {word}\n" in text
            text = text.replace(f"    - {word}\n", "")
        plan = self.directory / "plan.yml"
        plan.write_text(text, "utf-8")
        loaded = load_plan(str(plan))
        command = loaded.hooks["sync"].filled(loaded.values(user, "old"))
        assert command[0] == "imapsync"
        done = subprocess.run(
            [self.program, *command[1:]], capture_output=True, text=True, timeout=60, check=False, env=self.environment
        )
        assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout[-3000:]}{done.stderr}"
        return done.stdout

    def same_mail(self, user: str) -> "subprocess.CompletedProcess[str]":
        command = [str(PLANS / "same-mail"), str(self.directory / "same-mail.conf"), user]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=self.environment)


def make_site(program: Path, directory: Path, old: Cyrus, new: Dovecot) -> Site:
    """Of stores that do not run yet."""
    certificates(directory)
    for store, owner in ((old, "cyrus"), (new, "root")):
        for part in ("pem", "key"):
            file = store.directory / f"tls.{part}"
            shutil.copyfile(directory / f"server.{part}", file)
            shutil.chown(file, owner)
            file.chmod(0o600)
    with open(old.directory / "imapd.conf", "a", encoding="utf-8") as conf:
        conf.write(f"tls_server_cert: {old.directory}/tls.pem\ntls_server_key: {old.directory}/tls.key\n")
    with open(new.directory / "dovecot.conf", "a", encoding="utf-8") as conf:
        conf.write(tls_of_dovecot(new))
    same_mail = "[compare]\nkeywords = yes\ndates = yes\n"
    for name, store in (("old", old), ("new", new)):
        private(directory / f"{name}.password", f"{PASSWORD}\n")
        same_mail += f"[{name}]\nserver = 127.0.0.1:{store.imap_port}\nadmin = {store.admin}\npassword = {PASSWORD}\n"
    private(directory / "same-mail.conf", same_mail)
    return Site(program, directory, old, new)


def private(path: Path, text: str) -> None:
    with open(path, "w", encoding="ascii", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(text)


def tls_of_dovecot(store: Dovecot) -> str:
    """What goes behind its configuration, in the language of its version."""
    base = store.directory
    if store.machine.dovecot_version >= (2, 4):
        return f"ssl = yes\nssl_server_cert_file = {base}/tls.pem\nssl_server_key_file = {base}/tls.key\n"
    return f"ssl = yes\nssl_cert = <{base}/tls.pem\nssl_key = <{base}/tls.key\n"


def certificates(directory: Path) -> None:
    """ca.pem, of another authority other.pem, and server.pem with server.key for 127.0.0.1 by the first."""
    new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    # without the usage Python 3.13 refuses it
    authority = [*new, "-x509", "-days", "2", "-addext", "keyUsage=critical,keyCertSign"]
    ca, server = f"{directory}/ca", f"{directory}/server"
    for path in (f"{directory}/other", ca):
        run("openssl", *authority, "-subj", "/CN=authority", "-keyout", f"{path}.key", "-out", f"{path}.pem")
    run("openssl", *new, "-subj", "/CN=server", "-keyout", f"{server}.key", "-out", f"{server}.csr")
    (directory / "names").write_text("subjectAltName=IP:127.0.0.1\n", "ascii")
    signed = ["-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial", "-extfile", str(directory / "names")]
    run("openssl", "x509", "-req", "-days", "2", "-in", f"{server}.csr", *signed, "-out", f"{server}.pem")


# --- what is seen of it ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Seen:
    """Of the processes of imapsync that there were: by command line, their environment."""

    processes: dict[bytes, bytes] = field(default_factory=dict)


@contextmanager
def watched() -> Iterator[Seen]:
    """Looks at what everybody on the machine can see, again and again."""
    seen, end = Seen(), Event()

    def look() -> None:
        while not end.wait(0.05):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    line = (process / "cmdline").read_bytes()
                    if any(word.endswith(b"/imapsync") for word in line.split(b"\0")[:3]):  # env, perl, it
                        seen.processes[line] = (process / "environ").read_bytes()
                except OSError:  # it has ended
                    pass

    thread = Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        end.set()
        thread.join()


Mail = tuple[bytes, str, tuple[str, ...]]
"""Content, time of arrival, flags."""


def mailbox(store: Store, user: str) -> dict[str, list[Mail]]:
    """All that the user has, by folder, in no order; read by nothing of what is tested."""
    with store.imap(user) as imap:
        found: dict[str, list[Mail]] = {}
        for line in imap.list()[1]:
            assert isinstance(line, bytes)
            name = line.decode("ascii").partition(' "." ')[2].strip('"')
            status, answer = imap.select(f'"{name}"', readonly=True)
            assert status == "OK", answer
            found[name] = []
            if answer != [b"0"]:  # else 1:* is an error
                _, parts = imap.fetch("1:*", "(FLAGS INTERNALDATE BODY.PEEK[])")
                found[name] = sorted(map(_mail, _told(parts)))
        return found


def _told(parts: Sequence[object]) -> Iterator[tuple[bytes, bytes]]:
    for part, after in zip(parts, [*parts[1:], b""], strict=True):
        if isinstance(part, tuple):
            yield part[0] + (after if isinstance(after, bytes) else b""), part[1]


def _mail(told: tuple[bytes, bytes]) -> Mail:
    date, flags = _DATE.search(told[0]), _FLAGS.search(told[0])
    assert date is not None and flags is not None, told
    arrived = datetime.strptime(date[1].decode("ascii").strip(), "%d-%b-%Y %H:%M:%S %z")
    own = (flag.lower() for flag in flags[1].decode("ascii").split() if flag != "\\Recent")
    return told[1], str(arrived.timestamp()), tuple(sorted(own))
