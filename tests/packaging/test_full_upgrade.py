# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian 12 becomes Debian 13 by `apt full-upgrade`, with the package in service and mail flowing all the while.

The packages are fetched first, as the booted machine has no network. What sends and stores the mail runs outside of it,
in its network: an upgrade replaces the Python of all that runs within.
"""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import ROOT
from tests.conftest import CANNOT
from tests.e2e.process import wait_until
from tests.support.roots import inside

from . import booted as booted_module
from .booted import Booted, CannotBoot, booted, files_for, missing_for_booting

SERVICE = "lmtp-proxy.service"
USER = "alice@example.org"
TO_TRIXIE = "sed -i s/bookworm/trixie/g /etc/apt/sources.list.d/debian.sources"
APT = "env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-confold"
_SEND = """
import json, select, sys, time
sys.path.insert(0, sys.argv[1])
from tests.support.client import LmtpClient
number = 0
while not select.select([sys.stdin], [], [], 0.1)[0]:
    began = time.monotonic()
    said = "no answer"
    try:
        with LmtpClient(("127.0.0.1", 2424), timeout=60) as client:
            client.greet()
            outcome = client.deliver("s@example.org", [sys.argv[2]], b"X-Number: %d\\r\\n\\r\\ntext\\r\\n" % number)
            said = str(outcome.verdict(0).code)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    print(json.dumps([number, said, time.monotonic() - began]), flush=True)
    number += 1
"""


@pytest.fixture(scope="module")
def fetched(package: Path) -> Path:
    """A directory with the package, and below `debian13` all that the upgrade of the root brings, and its lists."""
    if (reason := missing_for_booting()) is not None:
        pytest.skip(reason)
    if "VERSION_CODENAME=bookworm\n" not in Path("/etc/os-release").read_text("utf-8"):
        pytest.skip(f"{CANNOT}be upgraded to Debian 13 any more")
    files = files_for(package)
    new = files / "debian13"
    (new / "archives/partial").mkdir(parents=True, exist_ok=True)
    script = f"""
        {TO_TRIXIE}
        {APT} update
        {APT} -o Dir::Cache::archives={new}/archives -o APT::Keep-Downloaded-Packages=true --download-only full-upgrade
        cp -r /var/lib/apt/lists {new}/
    """
    words = [*inside(booted_module.ROOT, shared=[new]), "sh", "-exc", script]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return files


@pytest.mark.timeout(2400)
def test_mail_flows_while_debian_12_becomes_13(fetched: Path, package: Path, tmp_path: Path) -> None:
    try:
        with booted(fetched) as machine:
            _life(machine, package, tmp_path)
    except CannotBoot as error:
        pytest.skip(str(error))


def _life(machine: Booted, package: Path, directory: Path) -> None:
    machine.run("dpkg", "-i", f"/mnt/{package.name}")
    machine.shell(
        "sed -i 's|^    socket: /run/cyrus/socket/lmtp$|    host: 127.0.0.1\\n    port: 2525|' /etc/lmtp-proxy.yml"
    )
    with _store(machine, directory / "mail"):
        machine.run("systemctl", "restart", SERVICE)
        pid, python = machine.show(SERVICE, "MainPID"), machine.run("python3", "--version")
        with _flow(machine) as flow:
            flow.wait_for(20)
            machine.shell(f"{TO_TRIXIE} && rm -rf /var/lib/apt/lists && cp -r /mnt/debian13/lists /var/lib/apt/lists")
            machine.shell("cp /mnt/debian13/archives/*.deb /var/cache/apt/archives/")
            began = time.monotonic()
            machine.shell(f"{APT} --no-download full-upgrade", timeout=1500)
            seconds = time.monotonic() - began
            assert machine.run("cat", "/etc/debian_version").startswith("13.")
            assert "Python 3.11." in python and "Python 3.13." in machine.run("python3", "--version")
            assert machine.run("dpkg-query", "-W", "-f", "${Status}", "lmtp-proxy") == "install ok installed"
            assert machine.show(SERVICE, "ActiveState") == "active"
            flow.wait_for(20)
            print(f"{seconds:.0f} s of full-upgrade, {len(flow.said)} mails, the same process: "
                  f"{machine.show(SERVICE, 'MainPID') == pid}")  # fmt: skip
            # What an operator does then, and what they may do before: neither loses a mail.
            machine.shell("sed -i 's/^  #*hold_limit: 2/  hold_limit: 3/' /etc/lmtp-proxy.yml")
            machine.run("systemctl", "reload", SERVICE, statuses=[0, 1])
            flow.wait_for(10)
            machine.run("systemctl", "restart", SERVICE)
            flow.wait_for(20)
            assert machine.run("lmtp-proxy", "--check")
        bad = [each for each in flow.said if each[1] != "250"]
        assert bad == [], "deferred, or not taken"
        stored = sorted(
            int(re.findall(rb"X-Number: (\d+)", path.read_bytes())[0]) for path in (directory / "mail").glob("*/new/*")
        )
        assert stored == list(range(len(flow.said))), "lost, or stored twice"
        print(f"{len(stored)} mails, each once; the longest took {max(took for _, _, took in flow.said):.1f} s")
    machine.run("dpkg", "--purge", "lmtp-proxy")
    assert not re.search("lmtp-proxy", machine.run("getent", "passwd"))


@contextmanager
def _outside(machine: Booted, *words: str) -> Iterator["subprocess.Popen[str]"]:
    """A program of this machine in the other one's network."""
    words = ("nsenter", "--net", "--target", str(machine.leader), sys.executable, *words)
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


@contextmanager
def _store(machine: Booted, mail: Path) -> Iterator[None]:
    with _outside(machine, "-m", "lmtp_proxy.demo.store", "--port", "2525", "--maildir", str(mail)):
        listens = "import socket; socket.create_connection(('127.0.0.1', 2525)).close()"
        wait_until(lambda: not _fails(machine, listens), 30, "the store")
        yield


def _fails(machine: Booted, code: str) -> bool:
    return "Error" in machine.run("python3", "-c", code, statuses=[0, 1])


class _Flow:
    """said: number, the reply's code or what happened, and seconds, of each message so far."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.said: list[tuple[int, str, float]] = []
        self._process = process
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := re.fullmatch(r'\[(\d+), "(.*)", ([\d.e-]+)\]\n', line):
                self.said.append((int(found[1]), found[2], float(found[3])))

    def wait_for(self, more: int) -> None:
        """So many more messages have had their reply."""
        until = len(self.said) + more
        wait_until(lambda: len(self.said) >= until, 120, lambda: f"{more} more messages; {self.said[-3:]}")

    def end(self) -> None:
        """The one that is on its way is the last."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._thread.join(90)
        assert not self._thread.is_alive()


@contextmanager
def _flow(machine: Booted) -> Iterator[_Flow]:
    with _outside(machine, "-c", _SEND, str(ROOT), USER) as process:
        flow = _Flow(process)
        try:
            yield flow
        finally:
            flow.end()
