"""The real proxy as a child process: its configuration file, its log, its signals, what /proc says about it.

It is started as an operator would start it; nothing of the package is imported. Ended by process id only.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from signal import SIGUSR1
from types import TracebackType

import pytest

from tests import ROOT
from tests.support.backend import FakeBackend
from tests.support.client import LmtpClient
from tests.support.patience import SOON

PROGRAM = ROOT / "bin" / "lmtp-proxy"
WORKERS = "LMTP_PROXY_TEST_WORKERS"
"""In the environment: how many workers a proxy has where the test does not say so and its limits allow it."""
BOTH_MODES = pytest.mark.parametrize(
    "processes", [pytest.param(1, id="alone"), pytest.param(2, id="workers")], indirect=True, scope="module"
)
"""For tests below tests/faults: with one process, and with two workers."""


def yaml_of(value: object, indent: int = 0) -> str:
    """Block style YAML of nested mappings, lists and scalars; text is quoted, numbers and bools are plain."""
    if isinstance(value, Mapping):
        lines = []
        for key, item in value.items():
            if isinstance(item, Mapping) and item:
                lines.append(" " * indent + f"{_scalar(key)}:\n" + yaml_of(item, indent + 2))
            else:
                lines.append(" " * indent + f"{_scalar(key)}: {_scalar(item)}\n")
        return "".join(lines)
    return _scalar(value) + "\n"


def _scalar(value: object) -> str:
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, str) and re.fullmatch(r"[a-z_][A-Za-z0-9_]*", value):
        return value
    return json.dumps(value, ensure_ascii=False)


def free_tcp_address() -> tuple[str, int]:
    """A loopback address of our own (127.x.y.z) and a port free on it, so that parallel runs do not meet."""
    host = f"127.{random.SystemRandom().randint(1, 254)}.{os.getpid() % 255}.{random.SystemRandom().randint(1, 254)}"
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return host, port


def config_of(
    backends: Mapping[str, FakeBackend],
    users: Mapping[str, str] | None = None,
    *,
    idle_timeout: float = 0,
    **settings: object,
) -> dict[str, dict[str, object]]:
    """A configuration with these backends; by default everybody at @NAME belongs to backend NAME.

    idle_timeout: of all backends.
    """
    return {
        "config": dict(settings),
        "backends": {name: {**backend.config, "idle_timeout": idle_timeout} for name, backend in backends.items()},
        "users": dict(users if users is not None else {f"@{name}": name for name in backends}),
    }


class ProxyProcess:
    """`bin/lmtp-proxy -c FILE` in the foreground, in a private directory.

    `config` is the whole file as nested mappings; `config.socket` and `config.pid` are added when missing. The log is
    what it writes to stderr. `prefix`: a command that becomes the program, as env does. `patience`: seconds in which a
    line of the log comes. `program`: of another checkout. Use as a context manager: it starts at entry, and leaving
    stops it and checks that the log holds no traceback.
    """

    def __init__(
        self,
        config: Mapping[str, Mapping[str, object]],
        *,
        tcp: bool = False,
        environment: Mapping[str, str] | None = None,
        directory: str | None = None,
        workers: int | None = None,
        prefix: Sequence[str] = (),
        program: Path = PROGRAM,
    ) -> None:
        self.directory = directory or tempfile.mkdtemp(prefix="lpp", dir="/tmp")
        os.chmod(self.directory, 0o755)
        self.config_path = os.path.join(self.directory, "c.yml")
        self.pid_path = os.path.join(self.directory, "pid")
        self.address: str | tuple[str, int] = free_tcp_address() if tcp else os.path.join(self.directory, "s")
        self.config: dict[str, dict[str, object]] = {section: dict(keys) for section, keys in config.items()}
        socket_value = list(self.address) if isinstance(self.address, tuple) else self.address
        self.config["config"] = {"socket": socket_value, "pid": self.pid_path, **self.config.get("config", {})}
        self.workers = self._workers(workers)
        if self.workers > 1:
            self.config["config"].setdefault("workers", self.workers)
        self._prefix = prefix
        self._program = program
        self._environment = {**os.environ, **(environment or {})}
        self._log = Path(self.directory) / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.patience = SOON
        self.write_config()

    def _workers(self, wanted: int | None) -> int:
        """How many processes serve: as the test wants it, else as the environment has it where that can be."""
        if wanted is not None:
            return wanted
        workers = int(os.environ.get(WORKERS, "1"))
        limits = [self.config["config"].get("max_clients", 1000)]
        limits += [
            backend.get("max_connections", 20)
            for backend in self.config.get("backends", {}).values()
            if isinstance(backend, Mapping)
        ]
        return workers if all(isinstance(limit, int) and limit >= workers for limit in limits) else 1

    # -- life -----------------------------------------------------------------------------------------------------

    def write_config(self, text: str | None = None) -> None:
        """Replaces the configuration file in one step, by `text` or by what `config` holds now."""
        new = self.config_path + ".new"
        with open(new, "w", encoding="utf-8") as file:
            file.write(yaml_of(self.config) if text is None else text)
        os.rename(new, self.config_path)

    def spawn(self, arguments: Sequence[str] | None = None) -> subprocess.Popen[bytes]:
        """Starts the program without waiting for anything."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self._prefix,
                    sys.executable,
                    str(self._program),
                    *(arguments if arguments is not None else ("-c", self.config_path)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                cwd=self.directory,
            )
        return self.process

    def start(self) -> ProxyProcess:
        """Starts the program and waits for its `ready:` line."""
        since = self.mark()
        self.spawn()
        self.wait_log(r"\bready: ", since=since)
        return self

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, timeout: float = SOON) -> int:
        """The exit status, when it comes within `timeout` seconds."""
        assert self.process is not None
        return self.process.wait(timeout)

    def stop(self, timeout: float = SOON) -> int:
        """SIGTERM; returns the exit status. A process that does not end in time is killed, which is a failure."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"SIGTERM did not end it in {timeout} s; log:\n{self.log()}") from None

    def __enter__(self) -> ProxyProcess:
        try:
            return self.start()
        except BaseException:
            self._discard()
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        self._discard()
        print("The end of the proxy's log:", self.log()[-6000:], sep="\n")  # pytest shows it with the failure
        shutil.rmtree(self.directory, ignore_errors=True)

    def close(self) -> None:
        """Stops it, checks that its log holds no traceback, removes the directory."""
        try:
            self.stop()
            log = self.log()
            assert "Traceback" not in log, log
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _discard(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    # -- reload ---------------------------------------------------------------------------------------------------

    def reload(self, number: int = SIGUSR1) -> str:
        """Writes `config`, signals, waits for the outcome; returns its log line, `active` or `refused`."""
        self.write_config()
        return self.signal_reload(number)

    def signal_reload(self, number: int = SIGUSR1) -> str:
        """Signals and waits for the line that says how the reload ended."""
        since = self.mark()
        self.signal(number)
        return self.wait_log(r"reload: generation \d+ active|reload refused", since=since)

    def route(self, user: str, backend: str) -> str:
        """Points `user` to `backend` and reloads; returns the log line."""
        self.config["users"][user] = backend
        line = self.reload()
        assert "refused" not in line, self.log()
        return line

    # -- log ------------------------------------------------------------------------------------------------------

    def log(self) -> str:
        """All that was written so far."""
        return self._log.read_bytes().decode("utf-8", "backslashreplace") if self._log.exists() else ""

    def mark(self) -> int:
        """A position in the log, for `since`."""
        return len(self.log())

    def wait_log(self, pattern: str, *, since: int = 0, timeout: float | None = None) -> str:
        """The first line after `since` that matches; AssertionError with the log when none comes in time.

        timeout: `patience` if None.
        """
        deadline = time.monotonic() + (self.patience if timeout is None else timeout)
        while True:
            ended = self.process is not None and self.process.poll() is not None
            for line in self.log()[since:].splitlines():
                if re.search(pattern, line):
                    return line
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"no line {pattern!r} in the log{' (it ended)' if ended else ''}:\n{self.log()}")
            time.sleep(0.005)

    # -- /proc ----------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def worker_pids(self) -> list[int]:
        """The processes that serve, but for the one that was started."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def status(self, key: str) -> int:
        """A number of /proc/PID/status: VmHWM and VmRSS in KiB, Threads, ...; of all processes together."""
        total = 0
        for pid in (self.pid, *self.worker_pids):
            text = Path(f"/proc/{pid}/status").read_text()
            match = re.search(rf"^{key}:\s*(\d+)", text, re.MULTILINE)
            assert match is not None, text
            total += int(match.group(1))
        return total

    def descriptors(self) -> int:
        """How many file descriptors are open, in all processes."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in (self.pid, *self.worker_pids))

    def open_files(self) -> list[str]:
        """What these are, for whoever finds too many."""
        found = []
        for pid in (self.pid, *self.worker_pids):
            for number in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):  # closed in the meantime
                    found.append(f"{pid}/{number}: {os.readlink(f'/proc/{pid}/fd/{number}')}")
        return found

    def settles(self, descriptors: int, timeout: float = SOON) -> bool:
        """True when the number of descriptors comes down to `descriptors` within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.descriptors() > descriptors:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    # -- clients --------------------------------------------------------------------------------------------------

    def client(self, *, timeout: float = SOON, greeted: bool = True, source: str | None = None) -> LmtpClient:
        """A new connection, by default with greeting and LHLO done."""
        client = LmtpClient(self.address, timeout=timeout, source=source)
        if greeted:
            try:
                client.greet()
            except BaseException:
                client.close()
                raise
        return client
