# SPDX-License-Identifier: GPL-3.0-or-later
"""lmtp-proxy as it is measured: as an operator runs it, and what one asks it over the control socket.

A line in the log for each recipient, all deadlines at their defaults, the control socket on. Nothing of the package is
imported: the proxy is its command, its configuration file and its sockets. So it may as well be that of another
checkout, an older one included: `bin/lmtp-proxy` and the keys of this configuration are what both must have.
"""

import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers import Started, Surroundings, free_address, started, user
from bench.processes import BenchError, Stage
from tests import ROOT

CONFIG = """\
config:
  socket: [{host}, {port}]
  pid: {home}/pid
  max_clients: 4000
  control:
    socket: {home}/control
  log:
    syslog: {log}
    level: {level}
{more}backends:
  a:
    host: 127.0.0.1
    port: {a}
  b:
    host: 127.0.0.1
    port: {b}
users:
"""


@dataclass(frozen=True)
class LmtpProxy:
    """The proxy of a checkout.

    level: of the log; below info there is no line for each recipient.
    workers: 0: the key is left away.
    receipts: whether it keeps them.
    python: the interpreter that runs it.
    root: of the checkout; this one by default.
    """

    name: str = "lmtp-proxy"
    workers: int = 0
    level: str = "info"
    python: str = sys.executable
    root: Path = ROOT
    receipts: bool = False

    @property
    def program(self) -> Path:
        return self.root / "bin" / "lmtp-proxy"

    def missing(self) -> str | None:
        with Stage() as stage:
            around = Surroundings(("127.0.0.1:1", "127.0.0.1:2"), stage.path("log"), users=1)
            config = self.configure(stage, around, ("127.0.0.1", 2424))
            # As a package is installed; otherwise each start compiles, and keeps what that leaves in memory.
            compiling = [self.python, "-m", "compileall", "-q", str(self.root / "lmtp_proxy")]
            subprocess.run(compiling, stdout=subprocess.DEVNULL, timeout=60, check=False)
            command = [self.python, str(self.program), "--check", "-c", str(config)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            if done.returncode == 0:
                return None
            return (done.stderr.strip() or "--check failed").splitlines()[-1].removeprefix(f"{config}:")[:200]

    def configure(
        self,
        stage: Stage,
        around: Surroundings,
        address: tuple[str, int],
        elsewhere: Mapping[int, str] | None = None,
    ) -> Path:
        """Write the configuration. elsewhere: users who are not on the backend where they would be by turns."""
        a, b = (backend.rpartition(":")[2] for backend in around.backends)
        more = f"  workers: {self.workers}\n" if self.workers else ""
        more += f"  receipts: {stage.directory}/receipts.db\n" if self.receipts else ""
        head = CONFIG.format(
            host=address[0], port=address[1], home=stage.directory, log=around.log_socket, level=self.level,
            a=a, b=b, more=more,
        )  # fmt: skip
        moved = elsewhere or {}
        users = (f"  {user(n)}: {moved.get(n) or 'ab'[n % 2]}\n" for n in range(around.users))
        return stage.write("lmtp-proxy.yml", head + "".join(users))

    def start(self, stage: Stage, around: Surroundings) -> Started:
        address = free_address()
        config = self.configure(stage, around, address)
        command = [self.python, str(self.program), "-c", str(config)]
        return started(stage, command, f"{address[0]}:{address[1]}", around.start_seconds)


class _LocalConnection(http.client.HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask(stage: Stage, method: str, resource: str, seconds: float) -> dict[str, Any]:
    """One request to the proxy's control socket. BenchError when the answer is none, late, or not 200."""
    connection = _LocalConnection(stage.path("control"), seconds)
    try:
        connection.request(method, resource)
        response = connection.getresponse()
        answer = response.read()
    except OSError as error:
        raise BenchError(f"{method} {resource}: {error}") from error
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise BenchError(f"{method} {resource}: {response.status} {answer[:300]!r}")
    document: dict[str, Any] = json.loads(answer)
    return document
