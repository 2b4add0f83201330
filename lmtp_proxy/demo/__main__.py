# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo: two stores, the real proxy between them and us, some mail, one user moves. `make demo` runs it.

It talks to the proxy as an operator and an MTA do, and no other way: by its commands, configuration file, signals, log
and sockets. What it says it has checked; exit status 1 if something was not so. All its files lie under one
temporary directory, which goes with it.
"""

import contextlib
import re
import shutil
import signal
import smtplib
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmtp_proxy import ROOT, __version__
from lmtp_proxy.demo.store import Store

PATIENCE = 10.0  # seconds for anything that is waited for; all of it takes well under one
WIDTH = 78
UNIX_PATH_MAX = 107  # octets of a socket's path; the longest name below has 10
TABLE = {"alice": "old", "bob": "old", "carol": "new", "dave": "reject"}
CONFIG = """\
config:
  socket: {home}/proxy.sock
  fallback_backend: old
  control:
    socket: {home}/control
backends:
  old:
    socket: {home}/old.sock
  new:
    host: 127.0.0.1
    port: {port}
users:
{users}
"""
BODY = "\r\nGruß aus Köln,\r\n.this line begins with a dot\r\n.\r\nand so does, alone, the one above.\r\n"


class DemoFailed(Exception):
    """Something did not happen, or was not as the demo says; the text tells what."""


@dataclass(frozen=True)
class DemoMail:
    """One message, and what is to become of it.

    Attributes:
        expected: for each recipient the reply's first digits, and the store that is to hold it (None: neither).
    """

    subject: str
    expected: dict[str, tuple[str, str | None]]

    @property
    def data(self) -> bytes:
        """As it is to be stored: CRLF line ends, not dot-stuffed."""
        return f"From: demo@example.org\r\nSubject: {self.subject}\r\n{BODY}".encode()


def program(name: str) -> list[str]:
    """How to run one of our commands: of the checkout, or as it is installed."""
    script = Path(ROOT) / "bin" / name
    return [sys.executable, str(script)] if script.is_file() else [shutil.which(name) or name]


class DemoProxy:
    """The running process of bin/lmtp-proxy and all lines of its log so far."""

    def __init__(self, config: Path) -> None:
        command = [*program("lmtp-proxy"), "-c", str(config)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        self._ended = False
        self._news = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.log.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def wait_for(self, pattern: str) -> str:
        """The first line of the log that matches, from the match on. Waits for it; raises DemoFailed if none comes."""

        def matching() -> re.Match[str] | None:
            return next(filter(None, (re.search(pattern + ".*", line) for line in self.log)), None)

        with self._news:
            self._news.wait_for(lambda: self._ended or matching(), PATIENCE)
            found = matching()
        if found is None:
            raise DemoFailed(f"the proxy {'ended' if self._ended else 'runs'} and has not logged {pattern!r}")
        return found[0]

    def stop(self) -> int:
        """Ask it to end, and kill it if it does not. Returns its exit status."""
        self.process.terminate()
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class Demo:
    """One run: what was sent, and what must therefore lie where."""

    def __init__(self, home: Path, old: Store, new: Store) -> None:
        self.home, self.config = home, home / "lmtp-proxy.yml"
        self.stores = {"old": old, "new": new}
        self.table = dict(TABLE)
        self.held: dict[tuple[str, str], list[bytes]] = {}  # (user, store) -> messages that must be there, in order
        self.checks = 0

    def check(self, claim: str, true: bool) -> None:
        if not true:
            raise DemoFailed(f"not so: {claim}")
        self.checks += 1
        print(f"   ok: {claim}")

    def write_config(self) -> None:
        users = "\n".join(f"  {user}@example.org: {backend}" for user, backend in self.table.items())
        port = self.stores["new"].server_address[1]
        self.config.write_text(CONFIG.format(home=self.home, port=port, users=users), "utf-8")

    def send(self, *messages: DemoMail) -> None:
        """Send each through the proxy, show and check the reply for each recipient."""
        rows, wrong = [], []
        for message in messages:
            replies = send(self.home / "proxy.sock", list(message.expected), message.data)
            for (user, (code, store)), reply in zip(message.expected.items(), replies, strict=True):
                rows.append((f'"{message.subject}"', user, reply))
                if store is not None:
                    self.held.setdefault((user, store), []).append(message.data)
                if not reply.startswith(code):
                    wrong.append(f"{user} was to get {code}, got {reply}")
        show(("message", "recipient", "reply to the client"), rows)
        if wrong:
            raise DemoFailed("; ".join(wrong))
        self.check("each recipient got the reply that is its own", True)

    def show_stores(self) -> None:
        """Count what each store really holds, show it, check it to the byte."""
        users = [*self.table, "erin"]
        found = {(user, name): [_without_trace(path) for path in store.messages(user)]
                 for user in users for name, store in self.stores.items()}  # fmt: skip
        show(("user", "in the table", *self.stores),
             [(user, self.table.get(user, "- (so: old)"), *(str(len(found[user, name])) for name in self.stores))
              for user in users])  # fmt: skip
        claim = f"{sum(map(len, self.held.values()))} copies, none missing, none twice, each byte for byte as sent"
        self.check(claim, found == {key: self.held.get(key, []) for key in found})

    def move(self, user: str, backend: str) -> None:
        """As an operator does it: one command, which ends when nothing can reach the former store any more."""
        command = ["-c", str(self.config), "move", f"{user}@example.org", backend]
        print(f"   $ lmtp-proxyctl {' '.join(command[2:])}")
        done = subprocess.run(
            [*program("lmtp-proxyctl"), *command], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        print(*(f"   {line}" for line in (done.stdout + done.stderr).splitlines()), sep="\n")
        self.table[user] = backend
        line = f"  {user}@example.org: {backend}"
        self.check(
            f"status 0, and the file has the line {line.strip()!r}",
            done.returncode == 0 and line in self.config.read_text("utf-8").splitlines(),
        )

    def run(self, proxy: DemoProxy) -> None:
        title("1. The table (`users:` in the configuration); all others go to old, the fallback")
        for user, backend in self.table.items():
            print(f"     {user}@example.org: {backend}")
        log(proxy.wait_for("ready:"))

        title("2. Three messages", end="")
        self.send(
            DemoMail("lunch?", {"alice": ("250", "old")}),
            DemoMail("to all", {"alice": ("250", "old"), "carol": ("250", "new"), "bob": ("250", "old"),
                               "dave": ("450", None)}),
            DemoMail("hello?", {"erin": ("250", "old")}),
        )  # fmt: skip
        print("   dave is on `reject`: 450 is temporary, the MTA keeps the mail to try again.")

        title("3. What each store holds", end="")
        self.show_stores()

        title("4. alice moves: first `reject`, so that her mailbox rests for the last copy")
        self.move("alice", "reject")
        self.send(DemoMail("late news", {"alice": ("450", None), "bob": ("250", "old")}))

        title("5. Her mailbox is copied (not shown); now the table points to the new store")
        self.move("alice", "new")
        print("   The MTA tries again what was deferred:")
        self.send(DemoMail("late news", {"alice": ("250", "new")}))

        title("6. What each store holds now", end="")
        self.show_stores()
        alice = [len(store.messages("alice")) for store in self.stores.values()]
        self.check("alice's two older messages are where they were, the late news is in new", alice == [2, 1])
        log(proxy.wait_for(r"\S+: from=.*to=<alice@example.org>, backend=new"))

        title("7. End")
        self.check("SIGTERM ended the proxy with exit status 0", proxy.stop() == 0)
        self.check("its socket is gone", not (self.home / "proxy.sock").exists())


def send(socket: Path, users: Sequence[str], data: bytes) -> list[str]:
    """Deliver a message as an MTA does (RFC 2033): for each user the reply that decides, at RCPT or after the data."""
    with smtplib.LMTP(str(socket), timeout=PATIENCE) as client:
        client.ehlo()
        client.mail("demo@example.org")
        replies = [client.rcpt(f"{user}@example.org") for user in users]
        accepted = [index for index, (code, _) in enumerate(replies) if code == 250]
        if accepted and client.docmd("DATA")[0] == 354:
            client.send(re.sub(rb"(?m)^\.", b"..", data) + b".\r\n")
            for index in accepted:
                replies[index] = client.getreply()
    return [f"{code} {text.decode('utf-8', 'replace')}" for code, text in replies]


def _without_trace(path: Path) -> bytes:
    """A stored message without the two header lines that the store put in front of it."""
    return path.read_bytes().split(b"\r\n", 2)[2]


def title(text: str, end: str = "\n") -> None:
    print(f"\n{text}", end=f"\n{end}")


def show(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table: numbers to the right, all else to the left, no line wider than the terminal."""
    print()
    columns = list(zip(head, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numbers = [all(cell.isdigit() for cell in column[1:]) for column in columns]
    for row in (head, ["-" * width for width in widths], *rows):
        cells = [cell.rjust(width) if number else cell.ljust(width)
                 for cell, width, number in zip(row, widths, numbers, strict=True)]  # fmt: skip
        print(("     " + "  ".join(cells)).rstrip()[:WIDTH])
    print()


def log(line: str) -> None:
    """A line of the proxy's log, folded to the terminal."""
    print(textwrap.fill(line, WIDTH, initial_indent="   log: ", subsequent_indent="        "))


@contextlib.contextmanager
def temporary_home() -> Iterator[Path]:
    """A directory with a path short enough for unix sockets, whatever TMPDIR says."""
    long = len(tempfile.gettempdir()) + len("/lmtp-proxy-demo-12345678/proxy.sock") > UNIX_PATH_MAX
    with tempfile.TemporaryDirectory(prefix="lmtp-proxy-demo-", dir="/tmp" if long else None) as home:  # noqa: S108
        yield Path(home)


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the files go then, too
    started = time.monotonic()
    with (
        temporary_home() as home,
        Store("old", str(home / "old.sock"), home / "old") as old,
        Store("new", ("127.0.0.1", 0), home / "new") as new,
    ):
        demo = Demo(home, old, new)
        demo.write_config()
        proxy = DemoProxy(demo.config)
        print(f"lmtp-proxy {__version__}, a demo in {home}\n")
        print("   this program --LMTP---> bin/lmtp-proxy ---+--LMTP--> store old (unix socket)")
        print(f"                           process {proxy.process.pid:<9} `--LMTP--> store new (TCP)")
        try:
            demo.run(proxy)
        except (DemoFailed, OSError, smtplib.SMTPException) as error:
            print(f"\nFAILED: {error!s:.500}\nThe proxy's log:", *proxy.log, sep="\n   ")
            return 1
        finally:
            proxy.stop()
    took = time.monotonic() - started
    print(f"\nAll {demo.checks} checks passed in {took:.1f} s; nothing is left running, no file is left.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
