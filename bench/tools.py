# SPDX-License-Identifier: GPL-3.0-or-later
"""The three C programs: built when their source is newer, started, and what they say as values.

Which numbers make a good run is not decided here.
"""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.processes import BenchError, Stage

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"
PROGRAMS = ("load", "sink", "probe")
_FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror")


def compiler() -> str | None:
    """The C compiler, CC or cc; None when there is none."""
    return shutil.which(os.environ.get("CC", "cc"))


def build(directory: Path = BUILD) -> None:
    """Compile what has changed. BenchError when there is no compiler, or it refuses."""
    directory.mkdir(exist_ok=True)
    for name in PROGRAMS:
        sources = [HERE / f"{name}.c", HERE / "address.h"]
        built = directory / name
        if built.exists() and built.stat().st_mtime >= max(source.stat().st_mtime for source in sources):
            continue
        if (cc := compiler()) is None:
            raise BenchError("no C compiler is here: apt install gcc libc6-dev")
        new = directory / f"{name}.{os.getpid()}"  # two runs at once must not read each other's half of a file
        done = subprocess.run([cc, *_FLAGS, "-o", new, sources[0]], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"{sources[0]} does not compile: {done.stderr.strip()}")
        new.rename(built)


@dataclass(frozen=True, slots=True)
class Counts:
    """What a sink has seen at one of its addresses so far."""

    address: str
    connections: int
    peak_connections: int
    peak_transactions: int
    messages: int
    recipients: int
    octets: int
    errors: int
    log_lines: int
    deliveries_logged: int


class Sink:
    """A sink process; `addresses` are those that were asked for, with the ports that the kernel chose."""

    def __init__(self, stage: Stage, addresses: Sequence[str]) -> None:
        self._process = stage.start([BUILD / "sink", *addresses], talks=True)
        self.pid = self._process.pid
        self.addresses: tuple[str, ...] = tuple(_line_of(self._process)["listening"])

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def counts(self) -> list[Counts]:
        self._process.send_signal(signal.SIGUSR1)
        return [Counts(**each) for each in _line_of(self._process)]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What the load does; messages = 0: until it is told to stop. trickle: milliseconds."""

    messages: int = 1000
    sessions: int = 20
    octets: int = 4096
    recipients: int = 1
    per_connection: int = 0
    users: int = 1000
    idle: int = 0
    trickle: int = 0


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What came of it: milliseconds from the envelope to the last final reply, errors and the first of them."""

    messages: int
    recipients: int
    errors: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    own_cpu_seconds: float
    idle: int
    first_error: str


class Load:
    """A load that waits, with its idle connections open, until `go`."""

    def __init__(self, stage: Stage, address: str, options: LoadOptions, patience: int = 60) -> None:
        o = options
        numbers = {"-m": o.messages, "-s": o.sessions, "-l": o.octets, "-r": o.recipients, "-k": o.per_connection,
                   "-u": o.users, "-i": o.idle, "-t": o.trickle, "-p": patience}  # fmt: skip
        words = [word for letter, number in numbers.items() for word in (letter, str(number))]
        self._process = stage.start([BUILD / "load", *words, "-w", address], talks=True)
        _line_of(self._process)

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def stop(self) -> None:
        """Let it finish the messages in hand."""
        self._process.terminate()

    def result(self) -> LoadResult:
        """Wait for the end."""
        return LoadResult(**_line_of(self._process))


def run_load(stage: Stage, address: str, options: LoadOptions, patience: int = 60) -> LoadResult:
    """patience: seconds without any reply."""
    load = Load(stage, address, options, patience)
    load.go()
    return load.result()


@dataclass(frozen=True, slots=True)
class Sample:
    """One NOOP: which address, when (seconds of time.monotonic()), how long the reply took, and how much of that the
    prober or the serving thread was ready to run and had to wait for a core. In milliseconds."""

    which: int
    sent: float
    took_ms: float
    waited_ms: float


class Probe:
    """A prober at work; `pid` is the process whose event loop answers at the first address, 0: nobody is looked at."""

    def __init__(self, stage: Stage, pid: int, addresses: Sequence[str]) -> None:
        self._process = stage.start([BUILD / "probe", str(pid), *addresses], talks=True)
        _line_of(self._process)

    def end(self) -> list[Sample]:
        """Stop it; all it saw. BenchError when it was answered wrongly, or not at all."""
        self._process.terminate()
        assert self._process.stdout is not None
        lines = self._process.stdout.read().splitlines()
        if lines and lines[-1].startswith("error"):
            raise BenchError(f"the prober: {lines[-1]}")
        return [sample_of(line) for line in lines]


def sample_of(line: str) -> Sample:
    which, sent, took, waited = map(int, line.split())
    return Sample(which, sent / 1e6, took / 1e3, waited / 1e3)


def _line_of(process: subprocess.Popen[str]) -> Any:
    """The next line of JSON that a program says."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise BenchError(f"{process.args!s:.200} ended without a word, exit status {process.wait()}")
    return json.loads(line)
