# SPDX-License-Identifier: GPL-3.0-or-later
"""Moves users from Cyrus to Dovecot as docs/migration.md does it, and remembers what each final sync took.

The proxy is told by its own command; `naive=True` is what an operator without it does.
"""

import http.client
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import ROOT
from tests.support.proxy import ProxyProcess

from .conftest import Stack
from .postfix import DOMAIN
from .process import wait_until

PROXYCTL = ROOT / "bin" / "lmtp-proxyctl"


def proxyctl(proxy: ProxyProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `lmtp-proxyctl` for this proxy, as an operator would."""
    return subprocess.run(
        [sys.executable, str(PROXYCTL), "-c", proxy.config_path, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def post(control: Path, resource: str, body: object) -> dict[str, Any]:
    """The answer of the control socket to a POST, which must be 200."""
    connection = _UnixConnection(control)
    try:
        connection.request("POST", resource, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        assert response.status == 200, (response.status, answer)
        return answer
    finally:
        connection.close()


class Cutover:
    """One migration: `copy` once, then `move` each user."""

    def __init__(self, stack: Stack, proxy: ProxyProcess, *, naive: bool = False) -> None:
        self.taken: dict[str, Counter[str]] = {}
        """By user: the subjects that were in Dovecot when the final sync had ended."""
        self.seconds: dict[str, float] = {}
        """By user: how long both steps of the proxy took together."""
        self._stack = stack
        self._proxy = proxy
        self._naive = naive

    def copy(self, users: Sequence[str]) -> None:
        for user in users:
            self._stack.new.backup(user)

    def move(self, user: str, park: str) -> None:
        """Park by `park` (reject or hold), final sync, on to the new store."""
        began = time.monotonic()
        self.route(user, park)
        parked = time.monotonic()
        self._stack.new.backup(user)
        synced = time.monotonic()
        self.taken[user] = Counter(self._stack.new.subjects(user))
        moving = time.monotonic()
        self.route(user, "new")
        first, sync, second = parked - began, synced - parked, time.monotonic() - moving
        self.seconds[user] = first + second
        print(f"{user}: {park} {first:.3f} s, final sync {sync:.3f} s, new {second:.3f} s")

    def route(self, user: str, backend: str) -> None:
        if self._naive:
            self._proxy.route(user, backend)
            return
        done = proxyctl(self._proxy, "move", user, backend, "--domain", DOMAIN)
        assert done.returncode == 0, f"move {user} {backend}: exit {done.returncode}\n{done.stdout}{done.stderr}"

    def came_later(self) -> Counter[str]:
        """What the old store holds and the final sync did not take, as `user/subject`."""
        later: Counter[str] = Counter()
        for user, taken in self.taken.items():
            held = Counter(self._stack.old.subjects(user))
            later += Counter({f"{user}/{subject}": count for subject, count in (held - taken).items()})
        return later


def deliver_the_rest(stack: Stack) -> None:
    """Flushes the queue until nothing is left in it: everybody has a place again."""

    def empty() -> bool:
        stack.postfix.flush()
        time.sleep(0.5)
        return stack.postfix.queue_length() == 0

    wait_until(empty, 60, stack.postfix.log)
