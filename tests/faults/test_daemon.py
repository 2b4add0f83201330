"""`-D`: errors are seen before the program goes into the background; pid file, syslog, a relative -c."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.test_start import refused, run
from tests.support.backend import FakeBackend
from tests.support.client import LmtpClient
from tests.support.patience import SOON
from tests.support.proxy import config_of, yaml_of


class Daemon:
    """A daemonised proxy, found by its pid file; its log is what arrives on a syslog socket of the test's own."""

    def __init__(self, backend: FakeBackend) -> None:
        self.directory = tempfile.mkdtemp(prefix="lpd", dir="/tmp")
        os.chmod(self.directory, 0o755)
        self.socket = os.path.join(self.directory, "s")
        self.pid_path = os.path.join(self.directory, "pid")
        self.syslog_path = os.path.join(self.directory, "log")
        self.syslog = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.syslog.bind(self.syslog_path)
        self.config = config_of(
            {"a": backend}, socket=self.socket, pid=self.pid_path, log={"syslog": self.syslog_path, "facility": "mail"}
        )
        self.seen: list[str] = []
        self.write()

    def write(self) -> None:
        Path(self.directory, "c.yml").write_text(yaml_of(self.config))

    def start(self) -> subprocess.CompletedProcess[str]:
        return run("-D", "-c", "c.yml", cwd=self.directory)

    def pid(self) -> int:
        deadline = time.monotonic() + SOON
        while time.monotonic() < deadline:
            try:
                pid = int(Path(self.pid_path).read_text())
                assert pid > 1, "signals go to this number"
                return pid
            except (OSError, ValueError):
                time.sleep(0.01)
        raise AssertionError("no pid file")

    def wait_log(self, pattern: str, timeout: float = 20.0) -> str:
        """Waits for a new line on the syslog socket that matches."""
        deadline = time.monotonic() + timeout
        while True:
            self.syslog.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                line = self.syslog.recv(65536).decode()
            except TimeoutError:
                raise AssertionError(f"no {pattern!r} in {self.seen}") from None
            self.seen.append(line)
            if re.search(pattern, line):
                return line

    def stop(self) -> None:
        """Ends the process that the pid file names, if it is ours: a test may have written any number there."""
        try:
            pid = int(Path(self.pid_path).read_text())
            if pid > 1 and self.directory.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGTERM)
                assert wait_gone(pid), "SIGTERM did not end the daemon"
        except (OSError, ValueError):
            pass
        finally:
            self.syslog.close()
            shutil.rmtree(self.directory, ignore_errors=True)


def wait_gone(pid: int, timeout: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with FakeBackend() as backend:
        daemon = Daemon(backend)
        try:
            yield daemon
        finally:
            daemon.stop()


def deliver(daemon: Daemon, user: str = "u@a") -> bool:
    with LmtpClient(daemon.socket) as client:
        client.greet()
        positive = client.deliver("s@x", [user]).verdict(0).positive
        client.quit()
        return positive


def test_a_daemon(daemon: Daemon) -> None:
    done = daemon.start()
    assert done.returncode == 0 and not done.stderr, done
    pid = daemon.pid()
    daemon.wait_log("ready: ")
    assert deliver(daemon)
    line = daemon.wait_log("to=<u@a>")
    assert re.match(r"<22>", line), f"not facility mail, level info: {line}"
    assert "lmtp-proxy" in line
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert int(fields[1]) == 1 or int(fields[3]) == pid or int(fields[3]) != os.getsid(0), "still in our session"
    assert int(fields[4]) == 0, "it has a controlling terminal"
    daemon.config["users"]["@b"] = "a"  # with a relative -c and another working directory
    daemon.write()
    os.kill(pid, signal.SIGUSR1)
    daemon.wait_log("generation 2 active")
    assert deliver(daemon, "u@b")
    os.kill(pid, signal.SIGTERM)
    assert wait_gone(pid)
    assert not os.path.exists(daemon.pid_path) and not os.path.exists(daemon.socket)


def test_a_second_daemon_is_refused(daemon: Daemon) -> None:
    assert daemon.start().returncode == 0
    pid = daemon.pid()
    refused(daemon.start())
    daemon.config["config"]["socket"] = daemon.socket + "2"  # not even with another socket: the pid file is taken
    daemon.write()
    assert daemon.pid_path in refused(daemon.start()) or str(pid) in refused(daemon.start())
    assert daemon.pid() == pid
    assert not os.path.exists(daemon.socket + "2")
    assert deliver(daemon)


@pytest.mark.parametrize("content", ["4194303\n", "", "garbage\n", "1\n", "99999999999\n"])
def test_a_stale_pid_file(daemon: Daemon, content: str) -> None:
    """Of a process that is gone, or is another program by now, or that holds nonsense."""
    Path(daemon.pid_path).write_text(content)
    done = daemon.start()
    assert done.returncode == 0, done
    daemon.wait_log("ready: ")
    assert daemon.pid() > 1 and daemon.pid() != 4194303
    assert deliver(daemon)


def test_a_pid_file_of_a_killed_daemon(daemon: Daemon) -> None:
    assert daemon.start().returncode == 0
    daemon.wait_log("ready: ")
    first = daemon.pid()
    os.kill(first, signal.SIGKILL)
    assert wait_gone(first)
    assert daemon.start().returncode == 0
    daemon.wait_log("ready: ")
    assert daemon.pid() != first
    assert deliver(daemon)


def test_a_pid_file_that_cannot_be_made(daemon: Daemon) -> None:
    daemon.config["config"]["pid"] = "/nowhere/at/all/pid"
    daemon.write()
    assert "/nowhere/at/all/pid" in refused(daemon.start())
    assert not os.path.exists(daemon.socket), "a socket was left behind"


def test_a_pid_file_that_is_a_symlink_writes_nowhere_else(daemon: Daemon) -> None:
    precious = Path(daemon.directory, "precious")
    precious.write_text("precious")
    os.symlink(precious, daemon.pid_path)
    done = daemon.start()
    assert precious.read_text() == "precious"
    if done.returncode == 0:
        daemon.wait_log("ready: ")


def test_errors_before_daemonising(daemon: Daemon) -> None:
    Path(daemon.directory, "c.yml").write_text("config:\n  socket: 17\n")
    assert "c.yml:" in refused(daemon.start())
    assert not os.path.exists(daemon.pid_path)
