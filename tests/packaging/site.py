# SPDX-License-Identifier: GPL-3.0-or-later
"""An installed package at work: a private Postfix in front, two small stores behind, all on ports of 127.0.0.1.

Run as a program it is the test of an installed package (debian/tests): configure, start, deliver, move a user, reload,
stop. Nothing of the checkout's own lmtp_proxy is used, and nothing of pytest, so that Debian's Python is enough.

    sudo /usr/bin/python3 -m tests.packaging.site
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.e2e.mail import ID_HEADER, Message, message, submit
from tests.e2e.postfix import DOMAIN, Postfix
from tests.e2e.process import accepts_tcp, free_port, wait_until

CONFIG = Path("/etc/lmtp-proxy.yml")
SYSTEMD = Path("/run/systemd/system")
DEFAULT_PORT = 2424
USERS = ("alice", "bob", "carol")

_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def command(*words: str, statuses: Sequence[int] = (0,)) -> str:
    """As an operator would run it, from elsewhere; returns what it said. AssertionError for another exit status."""
    done = subprocess.run(
        words, cwd="/", env=_ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )
    said = done.stdout + done.stderr
    assert done.returncode in statuses, f"{' '.join(words)}: exit {done.returncode}\n{said}"
    return said


def service(action: str, *, statuses: Sequence[int] = (0,)) -> str:
    """service(8): the init.d script, or systemd where that runs."""
    return command("service", "lmtp-proxy", action, statuses=statuses)


class Site:
    """Use `running`. port: where the proxy takes mail."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # With systemd the socket unit says where, and is left as it was installed.
        self.port = DEFAULT_PORT if SYSTEMD.exists() else free_port()
        self.store_ports = {"old": free_port(), "new": free_port()}
        self.postfix = Postfix(directory / "postfix", f"inet:[127.0.0.1]:{self.port}", {})

    @contextmanager
    def _store(self, name: str) -> Iterator[None]:
        words = ["/usr/bin/python3", "-m", "lmtp_proxy.demo.store", "--name", name]
        words += ["--port", str(self.store_ports[name]), "--maildir", str(self.directory / name)]
        process = subprocess.Popen(words, cwd="/", env=_ENVIRONMENT, stdout=subprocess.DEVNULL)
        try:
            wait_until(lambda: accepts_tcp(self.store_ports[name]), 20, f"the store {name} serving")
            yield
        finally:
            process.terminate()
            process.wait(10)

    def configure(self) -> None:
        """Edits the file that the package brought, in place."""
        text = CONFIG.read_text("utf-8")
        for before, after in (
            (f"  socket: [127.0.0.1, {DEFAULT_PORT}]\n", f"  socket: [127.0.0.1, {self.port}]\n"),
            ("  #fallback_backend: old\n", "  fallback_backend: old\n"),
            ("    socket: /run/cyrus/socket/lmtp\n", f"    host: 127.0.0.1\n    port: {self.store_ports['old']}\n"),
            ("    host: 192.0.2.25\n    port: 24\n", f"    host: 127.0.0.1\n    port: {self.store_ports['new']}\n"),
            ("  alice@example.org: old\n", "".join(f"  {user}@{DOMAIN}: old\n" for user in USERS)),
        ):
            assert text.count(before) == 1, f"not in {CONFIG} as it is installed: {before}"
            text = text.replace(before, after)
        with CONFIG.open("w", encoding="utf-8") as file:
            file.write(text)

    def deliver(self, name: str, users: Sequence[str] = USERS) -> Message:
        """One message to these users by Postfix; returns when it has left the queue."""
        item = message(name, users)
        self.postfix.wait_removed(submit(self.postfix, [item]).values(), 30)
        return item

    def copies(self, store: str, user: str) -> list[str]:
        """The idents of the messages in a mailbox."""
        found = []
        for path in sorted((self.directory / store / user / "new").glob("*")):
            [line] = [line for line in path.read_bytes().splitlines() if line.startswith(ID_HEADER)]
            found.append(line.removeprefix(ID_HEADER).decode("ascii"))
        return found


@contextmanager
def running() -> Iterator[Site]:
    """Postfix and the stores run; the proxy is left as it is."""
    with ExitStack() as cleanup:
        cleanup.callback(os.umask, os.umask(0o022))
        directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="lpk-", dir="/tmp")))
        directory.chmod(0o755)
        (directory / "postfix").mkdir()
        site = Site(directory)
        for name in site.store_ports:
            cleanup.enter_context(site._store(name))
        cleanup.callback(site.postfix.stop)
        site.postfix.start()
        yield site


def started(site: Site) -> None:
    """Configured, checked, started: what an operator does after the installation."""
    site.configure()
    assert "OK: 7 users, 2 backends, fallback old" in command("lmtp-proxy", "--check")
    service("restart")
    service("status")


def delivers(site: Site) -> None:
    """Mail arrives, a user moves, and mail arrives where they are now."""
    site.deliver("first")
    assert [site.copies("old", user) for user in USERS] == [["first"]] * 3
    user = f"{USERS[0]}@{DOMAIN}"
    assert f"{user}: old -> new" in command("lmtp-proxyctl", "move", user, "new")
    site.deliver("second")
    assert site.copies("new", USERS[0]) == ["second"] and site.copies("old", USERS[0]) == ["first"]
    assert site.copies("old", USERS[1]) == ["first", "second"]


def reloads(site: Site) -> None:
    """An edit by hand is in force after `reload`; one with an error changes nothing, and lmtp-proxyctl says why."""
    good = CONFIG.read_text("utf-8")
    user = f"{USERS[1]}@{DOMAIN}"
    CONFIG.write_text(good.replace(f"  {user}: old\n", f"  {user}: new\n"), "utf-8")
    service("reload")
    wait_until(lambda: "new" in command("lmtp-proxyctl", "lookup", user), 5, "the reload")
    site.deliver("third", [USERS[1]])
    assert "third" in site.copies("new", USERS[1])
    edited = CONFIG.read_text("utf-8")
    CONFIG.write_text(edited.replace("hold_limit: 2", "hold_limit: many"), "utf-8")
    said = command("lmtp-proxyctl", "reload", statuses=[1])
    assert "config.hold_limit: must be a whole number" in said, said
    if not SYSTEMD.exists():
        assert "config.hold_limit: must be a whole number" in service("restart", statuses=[1])
    site.deliver("fourth", [USERS[1]])
    assert "fourth" in site.copies("new", USERS[1]), "it does not run as before"
    CONFIG.write_text(edited, "utf-8")


def main() -> int:
    """The whole of it, in a minute at most; AssertionError where something is not as it should be."""
    began = time.monotonic()
    with running() as site:
        started(site)
        delivers(site)
        reloads(site)
        service("stop")
        service("status", statuses=[3])
    print(f"started, delivered, moved a user, reloaded and stopped in {time.monotonic() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
