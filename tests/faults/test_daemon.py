"""`-D`: errors are seen before the program goes into the background; pid file, syslog, a relative -c."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import ROOT
from tests.faults.test_start import refused, run
from tests.support.backend import FakeBackend
from tests.support.client import LmtpClient
from tests.support.patience import SOON
from tests.support.proxy import PROGRAM, config_of, yaml_of

HERE = {**os.environ, "PYTHONPATH": str(ROOT)}


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


# -- what it inherits from who starts it ------------------------------------------------------------------------------


def started_by(daemon: Daemon, redirections: str) -> subprocess.CompletedProcess[str]:
    """A start by a shell with some of its standard descriptors closed."""
    words = ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, str(PROGRAM), "-D", "-c", "c.yml"]
    return subprocess.run(words, cwd=daemon.directory, capture_output=True, text=True, timeout=20)


@pytest.mark.parametrize("redirections", ["<&-", ">&-", "2>&-", "<&- >&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_standard_descriptors_that_are_closed_are_dev_null(daemon: Daemon, redirections: str) -> None:
    """Else a socket gets the number of one, which is closed or written to as standard output."""
    done = started_by(daemon, redirections)
    assert done.returncode == 0 and not done.stderr, done
    assert [os.readlink(f"/proc/{daemon.pid()}/fd/{number}") for number in range(3)] == ["/dev/null"] * 3
    assert deliver(daemon)
    assert daemon.wait_log("to=<u@a>")


def test_in_the_foreground_too(daemon: Daemon) -> None:
    del daemon.config["config"]["log"]  # to its standard error, which is closed
    daemon.write()
    words = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, str(PROGRAM), "-c", "c.yml"]
    with subprocess.Popen(words, cwd=daemon.directory) as process:
        try:
            wait_for(lambda: os.path.exists(daemon.socket))
            assert deliver(daemon)
            assert [os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)] == ["/dev/null"] * 3
        finally:
            process.terminate()
    assert process.returncode == 0


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_start_that_is_refused_leaves_neither_socket_nor_pid_file(daemon: Daemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        daemon.config["config"] |= {
            "control": {"socket": f"{daemon.directory}/control"},
            "metrics": ["127.0.0.1", taken.getsockname()[1]],
        }
        daemon.write()
        assert "config.metrics: cannot listen on" in refused(daemon.start())
    assert sorted(os.listdir(daemon.directory)) == ["c.yml", "log"]


def test_a_daemon_that_cannot_serve_leaves_neither_socket_nor_pid_file(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "setproctitle.py").write_text("raise ImportError('spoilt')\n")
    daemon.config["config"]["control"] = {"socket": f"{daemon.directory}/control"}
    daemon.write()
    done = run("-D", "-c", "c.yml", cwd=daemon.directory, PYTHONPATH=str(tmp_path))
    assert "the daemon ended before it was ready" in refused(done)
    wait_for(lambda: sorted(os.listdir(daemon.directory)) == ["c.yml", "log"])


def test_signals_that_the_parent_has_blocked_are_heard(daemon: Daemon) -> None:
    heard = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    try:
        assert daemon.start().returncode == 0
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    pid = daemon.pid()
    os.kill(pid, signal.SIGUSR1)
    daemon.wait_log("generation 2 active")
    os.kill(pid, signal.SIGTERM)
    assert wait_gone(pid)


@pytest.mark.parametrize("command", ["lmtp_proxy.cli", "lmtp_proxy.ctl.command"])
def test_no_command_keeps_blocked_what_the_parent_has_blocked(command: str) -> None:
    """Nor SIGCHLD ignored: how a child ended would be lost."""
    code = f"""
import signal
from {command} import main
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
try:
    main(["--version"])
finally:
    print(signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.getsignal(signal.SIGCHLD).name)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=ROOT, env=HERE, capture_output=True, text=True)
    assert done.stdout.splitlines()[1:] == ["set() SIG_DFL"], done


_LIMIT = """
import resource, sys
limit = resource.getrlimit
def getrlimit(which):
    if which == resource.RLIMIT_NOFILE and sys._getframe(1).f_globals["__name__"].startswith("daemon."):
        return 1024, 1_048_576
    return limit(which)
resource.getrlimit = getrlimit
"""


def test_it_is_no_larger_for_a_high_limit_of_descriptors(daemon: Daemon, tmp_path: Path) -> None:
    """As containers have it. python-daemon 2.3.2 makes a set of all the numbers: 85 MB for a million, 1 GB for 16."""

    def private() -> int:
        """In kB."""
        found = re.findall(r"(?m)^Private_\w+:\s+(\d+) kB", Path(f"/proc/{daemon.pid()}/smaps_rollup").read_text())
        return sum(map(int, found))

    assert daemon.start().returncode == 0
    before = private()
    os.kill(daemon.pid(), signal.SIGTERM)
    wait_for(lambda: not os.path.exists(daemon.pid_path))
    (tmp_path / "sitecustomize.py").write_text(_LIMIT)
    done = run("-D", "-c", "c.yml", cwd=daemon.directory, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done
    assert private() < before + 3000
