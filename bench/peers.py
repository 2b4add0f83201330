# SPDX-License-Identifier: GPL-3.0-or-later
"""The programs that lmtp-proxy is measured beside: how each is configured, by somebody who knows it well, and started.

Clients and backends are on TCP ports of the loopback: Dovecot's proxy reaches no other backends. With what a program is
to be measured is not known here.
"""

import os
import random
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.processes import BenchError, Stage, wait_until

SBIN = "/usr/sbin:/usr/bin:/sbin:/bin"
START_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a program is started in: two backends (HOST:PORT), a log socket, and how many users take turns on them."""

    backends: tuple[str, str]
    log_socket: Path
    users: int = 1000
    start_seconds: float = START_SECONDS


@dataclass(frozen=True, slots=True)
class Started:
    """A program that serves at `address` (as the load wants it); `root` is its first process, None: there is none."""

    address: str
    root: int | None


class Program(Protocol):
    """Something that takes mail and hands it on."""

    @property
    def name(self) -> str:
        """As it stands in the tables."""

    def missing(self) -> str | None:
        """Why it cannot be measured here, and what to do about it; None when it can."""

    def start(self, stage: Stage, around: Surroundings) -> Started:
        """Start it, and wait until it greets."""


def user(number: int) -> str:
    """The users as the load names them; they alternate between the two backends."""
    return f"u{number:07d}@bench.test"


def free_address() -> tuple[str, int]:
    """A loopback address of our own and a port that is free on it, so that two runs do not meet."""
    draw = random.SystemRandom()
    host = f"127.{draw.randint(1, 254)}.{draw.randint(1, 254)}.{draw.randint(1, 254)}"
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return host, port


class Direct:
    """No proxy at all: what the load and the sink can do."""

    name = "direct"

    def missing(self) -> str | None:
        return None

    def start(self, stage: Stage, around: Surroundings) -> Started:
        return Started(around.backends[0], None)


class HAProxy:
    """Octets from here to there, to one backend: it cannot route by recipient, so it is a floor, not a choice."""

    name = "HAProxy TCP"

    def missing(self) -> str | None:
        return None if shutil.which("haproxy", path=SBIN) else "not installed: apt install haproxy"

    def start(self, stage: Stage, around: Surroundings) -> Started:
        host, port = free_address()
        config = stage.write(
            "haproxy.cfg",
            "global\n  nbthread 1\n  maxconn 4000\n"
            "defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 300s\n  timeout server 600s\n"
            f"listen lmtp\n  bind {host}:{port}\n  server sink {around.backends[0]}\n",
        )
        command = [_program("haproxy"), "-db", "-q", "-f", str(config)]
        return started(stage, command, f"{host}:{port}", around.start_seconds)


class Dovecot:
    """Dovecot's LMTP proxy, which looks the backend of each recipient up in a passdb, as ours does in its table."""

    name = "Dovecot LMTP proxy"

    def missing(self) -> str | None:
        if shutil.which("dovecot", path=SBIN) is None or not Path("/usr/lib/dovecot/lmtp").exists():
            return "not installed: apt install dovecot-core dovecot-lmtpd"
        return None if os.geteuid() == 0 else "it starts only as root"

    def start(self, stage: Stage, around: Surroundings) -> Started:
        ports = [address.rpartition(":")[2] for address in around.backends]
        stage.write(
            "users",
            "".join(f"{user(n)}:::::::nopassword=y proxy=y host=127.0.0.1 port={ports[n % 2]}\n"
                    for n in range(around.users)),
        )  # fmt: skip
        host, port = free_address()
        config = stage.write("dovecot.conf", _DOVECOT.format(home=stage.directory, host=host, port=port))
        stage.path("run").mkdir()
        command = [_program("dovecot"), "-F", "-c", str(config)]
        return started(stage, command, f"{host}:{port}", around.start_seconds)


# What an expert sets for a proxy that does nothing else. One lmtp process with many clients needs a third less CPU for
# a message than one process for each client (client_limit = 1, the default), and two need as much as one. The log goes
# to a file: to /dev/null it costs the same. No Received line, as ours adds none; no limit that bites.
_DOVECOT = """\
base_dir = {home}/run
state_dir = {home}/run
protocols = lmtp
log_path = {home}/mail.log
ssl = no
disable_plaintext_auth = no
default_vsz_limit = 0
lmtp_proxy = yes
lmtp_add_received_header = no
auth_cache_size = 16M
auth_cache_ttl = 1 hour
passdb {{
  driver = passwd-file
  args = {home}/users
}}
service lmtp {{
  client_limit = 2000
  process_limit = 1
  process_min_avail = 1
  service_count = 0
  inet_listener lmtp {{
    address = {host}
    port = {port}
  }}
}}
service anvil {{
  client_limit = 5000
}}
service auth {{
  client_limit = 5000
}}
"""


def _program(name: str) -> str:
    return shutil.which(name, path=SBIN) or name


def started(stage: Stage, command: Sequence[str | Path], address: str, seconds: float) -> Started:
    """Start a program and wait until it greets at `address`."""
    process = stage.start(command)

    def serves() -> bool:
        if process.poll() is not None:
            raise BenchError(f"{Path(command[0]).name} ended, exit status {process.returncode}: {stage.said(command)}")
        return greets(address)

    name = Path(command[-1] if len(command) == 1 else command[0]).name
    wait_until(serves, seconds, f"{name} greets at {address}")
    return Started(address, process.pid)


def greets(address: str) -> bool:
    """Whether an LMTP server answers at unix:PATH or HOST:PORT."""
    local = address.startswith("unix:")
    with socket.socket(socket.AF_UNIX if local else socket.AF_INET) as client:
        client.settimeout(START_SECONDS)
        try:
            if local:
                client.connect(address.removeprefix("unix:"))
            else:
                host, _, port = address.rpartition(":")
                client.connect((host, int(port)))
            if not client.recv(1024).startswith(b"220"):
                return False
            client.sendall(b"QUIT\r\n")
            return client.recv(1024).startswith(b"221")
        except OSError:
            return False


def version_of(command: Sequence[str]) -> str:
    """The first line of what a program says about its version; "" when it is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except OSError:
        return ""
    return (done.stdout or done.stderr).strip().partition("\n")[0]
