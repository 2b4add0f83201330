# SPDX-License-Identifier: GPL-3.0-or-later
"""The two mail stores behind the proxy: real Cyrus and real Dovecot, each a private instance in a directory of its own.

Cyrus takes LMTP on a unix socket (trusted) and on three TCP ports that want authentication, one for each mechanism
that the proxy knows, and on one that wants TLS before. Dovecot takes LMTP on a unix socket and on two TCP ports, both
with TLS. Both are read back over IMAP. Neither knows a mailbox that `add_users` did not make. The directory's path must
be short (unix sockets) and its parents open to everybody. Dovecot can copy a mailbox out of another store. Each may be
that of another Debian release.
"""

import abc
import imaplib
import os
import pwd
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.support.certificates import Authority

from .dovecot_conf import Settings, migration_conf, server_conf
from .machine import HERE, Machine
from .process import Pid, accepts_tcp, accepts_unix, end_family, free_port, kill_family, wait_until
from .requirements import CYRUS_BIN, DOVEADM, DOVECOT, SASLPASSWD, dovecot_imap_programs

PASSWORD = "secret"
TEST_USERS = ("test1", "test2")
"""Those whom a plan proves a new store with."""
MECHANISMS = ("PLAIN", "LOGIN", "CRAM-MD5")
TLS_SERVICE = "lmtptls"
"""The name of the Cyrus service with a certificate."""


class Store(abc.ABC):
    """One server: start and stop as often as wanted, mailboxes stay."""

    name = ""
    _package = ""
    """Debian's, whose version it has."""
    admin = ""
    """Who may log in for any other user, with PASSWORD."""
    prefix = "INBOX."
    """Before the names of all folders but INBOX."""

    def __init__(self, directory: Path, machine: Machine) -> None:
        self.directory = directory
        self.machine = machine
        self.imap_port = free_port()
        self.lmtp_socket = directory / "lmtp"
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"{self.name} {self.machine.version(self._package)} ({self.machine.release})"

    @abc.abstractmethod
    def _command(self) -> list[str]:
        """What runs the server in the foreground."""

    @abc.abstractmethod
    def add_users(self, users: Iterable[str]) -> None:
        """Gives each an empty mailbox. Cyrus must be running for it, Dovecot not yet (it looks again only later)."""

    @abc.abstractmethod
    def _login(self, imap: imaplib.IMAP4, user: str) -> None:
        """Opens `user`'s mailboxes."""

    @property
    def master(self) -> Pid:
        """The server's first process. Only while it runs."""
        assert self._process is not None, f"{self.name} is not running"
        return Pid.of(self._process.pid)  # nobody else's: it is our child, and was not waited for

    def start(self) -> None:
        assert self._process is None, f"{self.name} runs already"
        with open(self.directory / "out", "ab") as output:
            self._process = subprocess.Popen(
                self.machine.command(*self._command()),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        wait_until(self._serves, 30, lambda: f"{self.name} serving; it said:\n{self.log()}")

    def ensure_started(self) -> None:
        if self._process is None:
            self.start()

    def _serves(self) -> bool:
        assert self._process is not None and self._process.poll() is None, f"{self.name} ended:\n{self.log()}"
        return accepts_tcp(self.imap_port) and accepts_unix(self.lmtp_socket)

    def stop(self) -> None:
        """The server's own orderly stop. Nothing happens when it does not run."""
        if self._process is not None:
            end_family(self.master, 3.0)
            self._process.wait(10)
            self._process = None

    def kill(self) -> None:
        """A crash: the master and everything it started, at once."""
        if self._process is not None:
            kill_family(self.master)
            self._process.wait(10)
            self._process = None

    def log(self) -> str:
        """What the server wrote to its log and its output."""
        files = [self.directory / "out", self.directory / "log"]
        return "".join(file.read_text("utf-8", "replace") for file in files if file.exists())

    def imap(self, user: str) -> imaplib.IMAP4:
        imap = imaplib.IMAP4("127.0.0.1", self.imap_port, timeout=60)
        self._login(imap, user)
        return imap

    def messages(self, user: str) -> list[bytes]:
        """Every message in `user`'s INBOX, whole, as IMAP hands it out (CRLF line ends)."""
        with self.imap(user) as imap:
            status, answer = imap.select("INBOX", readonly=True)
            assert status == "OK" and answer[0] is not None, f"{self.name}: {user}: SELECT: {answer!r}"
            count = int(answer[0])
            if count == 0:
                return []
            status, parts = imap.fetch("1:*", "(BODY.PEEK[])")
            assert status == "OK", f"{self.name}: {user}: FETCH: {status}"
            found = [part[1] for part in parts if isinstance(part, tuple)]
            assert len(found) == count, f"{self.name}: {user}: {count} messages, {len(found)} fetched"
            return found

    def subjects(self, user: str) -> list[str]:
        """The subject of each message in `user`'s INBOX: much faster than `messages` when they are large."""
        with self.imap(user) as imap:
            status, answer = imap.select("INBOX", readonly=True)
            assert status == "OK", f"{self.name}: {user}: SELECT: {answer!r}"
            if answer[0] == b"0":
                return []
            _, parts = imap.fetch("1:*", "(BODY.PEEK[HEADER.FIELDS (SUBJECT)])")
            return [
                part[1].decode("ascii").removeprefix("Subject: ").strip() for part in parts if isinstance(part, tuple)
            ]


class Cyrus(Store):
    name = "Cyrus"
    _package = "cyrus-imapd"
    lmtp_user = "lmtp"
    """Who may authenticate to the LMTP TCP ports, with PASSWORD."""
    admin = "cyrus"

    _server_name = "old.example.test"

    def __init__(self, directory: Path, machine: Machine = HERE) -> None:
        super().__init__(directory, machine)
        self.lmtp_ports = {mechanism: free_port() for mechanism in MECHANISMS}
        """The LMTP port on 127.0.0.1 that offers this AUTH mechanism alone."""
        self.lmtp_tls_port = free_port()
        """That which offers PLAIN, and that behind STARTTLS only."""
        self.authority = Authority(directory / "ca")
        self._configure()

    def _configure(self) -> None:
        base = self.directory
        for part in ("db", "user", "quota", "msg", "socket", "log", "../spool", "../run/proc", "../run/lock"):
            (base / "lib" / part).resolve().mkdir(parents=True, exist_ok=True)
        signed = self.authority.sign("127.0.0.1", file="store")
        # duplicatesuppression would hide a message delivered twice, which is what the tests look for
        (base / "imapd.conf").write_text(
            f"configdirectory: {base}/lib\n"
            f"partition-default: {base}/spool\n"
            "defaultpartition: default\n"
            f"proc_path: {base}/run/proc\n"
            f"mboxname_lockpath: {base}/run/lock\n"
            f"lmtpsocket: {self.lmtp_socket}\n"
            f"servername: {self._server_name}\n"
            f"admins: {self.admin}\n"
            "allowplaintext: yes\n"
            "sasl_pwcheck_method: auxprop\n"
            "sasl_auxprop_plugin: sasldb\n"
            f"sasl_sasldb_path: {base}/sasldb2\n"
            "sasl_mech_list: PLAIN LOGIN\n"
            + "".join(
                f"{service}_sasl_mech_list: {mechanism}\n{service}_admins: {self.lmtp_user}\n"
                for mechanism, service in ((mechanism, _service(mechanism)) for mechanism in MECHANISMS)
            )
            + f"{TLS_SERVICE}_allowplaintext: no\n{TLS_SERVICE}_sasl_mech_list: PLAIN\n"
            f"{TLS_SERVICE}_allowstarttls: yes\n"  # 3.10 offers it no more by itself; 3.6 knows no such option
            f"{TLS_SERVICE}_admins: {self.lmtp_user}\n"
            f"{TLS_SERVICE}_tls_server_cert: {signed.certificate}\n{TLS_SERVICE}_tls_server_key: {signed.key}\n"
            "virtdomains: off\n"
            "altnamespace: no\n"
            "unixhierarchysep: no\n"
            "duplicatesuppression: no\n",
            "utf-8",
        )
        conf = base / "imapd.conf"
        tcp_services = "".join(
            f'  {_service(mechanism)} cmd="{CYRUS_BIN}/lmtpd -C {conf}" listen="127.0.0.1:{port}" prefork=0\n'
            for mechanism, port in self.lmtp_ports.items()
        ) + (f'  {TLS_SERVICE} cmd="{CYRUS_BIN}/lmtpd -C {conf}" listen="127.0.0.1:{self.lmtp_tls_port}" prefork=0\n')
        (base / "cyrus.conf").write_text(
            f'START {{\n  recover cmd="{CYRUS_BIN}/ctl_cyrusdb -C {conf} -r"\n}}\n'
            "SERVICES {\n"
            f'  imap cmd="{CYRUS_BIN}/imapd -C {conf}" listen="127.0.0.1:{self.imap_port}" prefork=0\n'
            f'  lmtp cmd="{CYRUS_BIN}/lmtpd -C {conf}" listen="{self.lmtp_socket}" prefork=0\n'
            f"{tcp_services}}}\n"
            f'EVENTS {{\n  checkpoint cmd="{CYRUS_BIN}/ctl_cyrusdb -C {conf} -c" period=30\n}}\n',
            "utf-8",
        )
        for user in (self.admin, self.lmtp_user):
            self.set_password(user)
        self.machine.run("chown", "-R", "cyrus:mail", str(base))

    def set_password(self, user: str) -> None:
        """From now on `user` can log in with PASSWORD; `imap` needs no such thing."""
        arguments = ["-f", f"{self.directory}/sasldb2", "-c", "-p", "-u", self._server_name, user]
        self.machine.run(SASLPASSWD, *arguments, stdin=PASSWORD)

    def _command(self) -> list[str]:
        base = self.directory
        files = ["-C", f"{base}/imapd.conf", "-M", f"{base}/cyrus.conf", "-p", f"{base}/run/master.pid"]
        return [f"{CYRUS_BIN}/master", *files, "-D"]

    def add_users(self, users: Iterable[str]) -> None:
        with self.imap(self.admin) as imap:
            for user in users:
                status, answer = imap.create(f"user.{user}")
                assert status == "OK", f"Cyrus: CREATE user.{user}: {answer!r}"

    def _login(self, imap: imaplib.IMAP4, user: str) -> None:
        # the administrator authenticates and acts for the user: no password for each
        status, answer = imap.authenticate("PLAIN", lambda _challenge: f"{user}\0{self.admin}\0{PASSWORD}".encode())
        assert status == "OK", f"Cyrus: login for {user}: {answer!r}"


def _service(mechanism: str) -> str:
    """The name of the Cyrus service that offers `mechanism`."""
    return "lmtp" + mechanism.replace("-", "").lower()


class Dovecot(Store):
    name = "Dovecot"
    _package = "dovecot-core"
    admin = "admin"

    def __init__(self, directory: Path, machine: Machine = HERE, prefix: str = "INBOX.") -> None:
        super().__init__(directory, machine)
        self.prefix = prefix
        self.lmtp_port = free_port()
        """Also of STARTTLS."""
        self.lmtps_port = free_port()
        """Of TLS from the first octet."""
        self.authority = Authority(directory / "ca")
        self._owner = pwd.getpwnam("nobody")
        programs = dovecot_imap_programs(machine.root or Path("/"))
        assert programs is not None
        signed = self.authority.sign("127.0.0.1", file="store")
        ports = self.imap_port, self.lmtp_port, self.lmtps_port
        self._settings = Settings(directory, *ports, self.lmtp_socket, programs, prefix, signed)
        self._configure()

    def _configure(self) -> None:
        base = self.directory
        for part in ("run", "state", "mail", "tmp"):
            (base / part).mkdir(exist_ok=True)
        for part in ("mail", "tmp"):
            os.chown(base / part, self._owner.pw_uid, self._owner.pw_gid)
        self._settings.users.touch()
        self._settings.masters.write_text(f"{self.admin}:{{PLAIN}}{PASSWORD}::::::\n", "ascii")
        conf = server_conf(self.machine.dovecot_version, self._settings)
        (base / "dovecot.conf").write_text(conf, "utf-8")

    def copy_from(self, old: Store) -> None:
        """Lets `backup` log in to `old`, as its administrator for each user: by the file that is shipped for it."""
        version = "2.4" if self.machine.dovecot_version >= (2, 4) else "2.3"
        shipped = f"{old.name.lower()}-to-dovecot-{version}.conf"
        text = migration_conf(shipped, "127.0.0.1", old.imap_port, old.admin, PASSWORD)
        self.migration_conf.write_text(text, "utf-8")

    @property
    def migration_conf(self) -> Path:
        """The configuration file of `doveadm backup`."""
        return self.directory / "migration.conf"

    def doveadm(self, *arguments: str) -> list[str]:
        """The command that is this store's doveadm."""
        return self.machine.command(str(DOVEADM), *arguments)

    def backup(self, user: str) -> None:
        """`doveadm backup`: makes `user`'s mailboxes here exactly what they are in the store of `copy_from`."""
        command = self.doveadm("-c", str(self.migration_conf), "backup", "-R", "-u", user, "imapc:")
        for _ in range(5):
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            if done.returncode != 2:  # 2: something changed meanwhile, run it again
                break
        assert done.returncode == 0, f"doveadm backup of {user}: exit {done.returncode}\n{done.stdout}{done.stderr}"

    def _command(self) -> list[str]:
        # a killed master leaves its pid file, and the number may be somebody else's by now
        (self.directory / "run/master.pid").unlink(missing_ok=True)
        return [str(DOVECOT), "-F", "-c", f"{self.directory}/dovecot.conf"]

    def add_users(self, users: Iterable[str]) -> None:
        uid, gid = self._owner.pw_uid, self._owner.pw_gid
        with open(self._settings.users, "a", encoding="utf-8") as file:
            for user in users:
                file.write(f"{user}:{{PLAIN}}{PASSWORD}:{uid}:{gid}::{self.directory}/mail/{user}::\n")

    def _login(self, imap: imaplib.IMAP4, user: str) -> None:
        status, answer = imap.login(user, PASSWORD)
        assert status == "OK", f"Dovecot: login of {user}: {answer!r}"
