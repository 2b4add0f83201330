# SPDX-License-Identifier: GPL-3.0-or-later
"""What the Python code of a message costs: real sessions on sockets that are none, with peers that answer at once.

No kernel, no loop, no other process: what is left is our own code, and counts of it that are the same in each run, so
that a change of a microsecond can be seen on a machine where the bench itself moves by a fifth. A workload is called as
in the bench. `python -m bench.simulate` prints microseconds, calls of Python functions, calls of C functions and
instructions of the interpreter for each message. Figures of the bench are what counts in the end: caches are warm here.

With `--beside DIR` the same is asked of another checkout, and the ratios are shown. What is simulated is inside the
package, which looks different there, so it is asked by its own `bench.simulate`, in a process of its own.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeAlias

from bench import puppets
from bench.puppets import USERS, Hub, Mailer, Quiet, Store, Syslog, Watcher
from lmtp_proxy import log
from lmtp_proxy.backends import session as backend
from lmtp_proxy.clients import session
from lmtp_proxy.clients.server import Server
from lmtp_proxy.config.read import load_config
from lmtp_proxy.delivery.commit import ProcessParts
from lmtp_proxy.delivery.in_flight import InFlight
from lmtp_proxy.delivery.parking import Parking
from lmtp_proxy.delivery.uncertain_log import UncertainLog
from lmtp_proxy.generations.generation import Generation, first_generation
from lmtp_proxy.loop import stream

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 600.0  # seconds for one workload of another checkout
ROUND = 50  # messages: short enough that many rounds see no other process
COUNTED = 20
SHOWN = 60
HEAD = ("us: least", "median", "calls", "C calls", "instructions")
WIDTHS = (10, 8, 8, 9, 14)
_CONFIG = """\
config:
  socket: [127.0.0.1, 2424]
  log: {syslog: %s/none, level: %s}
backends:
  a: {host: 127.0.0.1, port: 1}
  b: {host: 127.0.0.1, port: 2}
users:
"""


Figures: TypeAlias = tuple[float, float, float, float, float]
"""As in a line of the table: least and median µs, calls, C calls, instructions."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one message. calls: of Python functions. c_calls: of C functions by them.

    per_function: calls and instructions.
    """

    least_us: float
    median_us: float
    calls: float
    c_calls: float
    instructions: float
    per_function: dict[str, tuple[float, float]]

    @property
    def figures(self) -> Figures:
        return self.least_us, self.median_us, self.calls, self.c_calls, self.instructions


class Simulation:
    """recipients, per_connection: as the workload has them; 0: connections are kept. Only one may exist at a time."""

    def __init__(self, recipients: int, per_connection: int, level: str = "info") -> None:
        self.recipients, self.per_connection = recipients, per_connection
        self.hub = Hub()
        self.stores = 0
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "lmtp-proxy.yml")
            users = "".join(f"  u{n:06d}@bench.example: {'ab'[n % 2]}\n" for n in range(USERS))
            path.write_text(_CONFIG % (directory, level) + users, "utf-8")
            config = load_config(str(path))
        self.generation: Generation = first_generation(config)
        in_flight = InFlight()
        shared = session.Shared(ProcessParts(self.current, in_flight, UncertainLog(self.current, in_flight)), Parking())
        with socket.create_server(("127.0.0.1", 0)) as listener:  # nobody ever connects to it
            self.server = Server([listener], shared, 1, lambda sessions: None)
        log.set_up_log(config.log, daemonised=False, later=lambda seconds, call: None)
        self.syslog = Syslog()
        assert log._batch is not None
        log._batch.channel._socket = self.syslog  # type: ignore[attr-defined]
        stream.get_hub = lambda: self.hub  # type: ignore[attr-defined, assignment, return-value]
        stream.select = Quiet()  # type: ignore[attr-defined, assignment]
        stream._switch = Hub.switch  # type: ignore[assignment]
        stream._deadlines.clear()
        backend.BackendSession._connection = lambda _session, *_order: self._store()  # type: ignore[method-assign]
        self.number = 0

    def current(self) -> Generation:
        return self.generation

    def _store(self) -> Any:
        self.stores += 1
        store = Store(self.hub)
        real_io = self.hub.io

        def io(handle: int, events: int) -> Watcher:
            self.hub.io = real_io  # type: ignore[method-assign]
            watcher = real_io(handle, events)
            store.say_first()
            return watcher

        self.hub.io = io  # type: ignore[method-assign]
        return store

    def run(self, messages: int, finished: Callable[[], None] = lambda: None) -> None:
        """So many messages, `finished` after each."""
        each = self.per_connection or messages
        for _ in range(messages // each):
            mailer = Mailer(self.hub, each, self.recipients, bool(self.per_connection), self.number)
            mailer.finished = finished
            self.number = (self.number + each * self.recipients) % USERS
            self.hub.ready.clear()
            self.server._serve_tcp(mailer, ("127.0.0.1", 1))  # type: ignore[arg-type]
            if mailer.left:
                raise AssertionError(f"{mailer.left} messages were not delivered")


def measure(recipients: int, per_connection: int = 0, rounds: int = 200, level: str = "info") -> Cost:
    """Times first, then counts, which take long."""
    simulation = Simulation(recipients, per_connection, level)
    simulation.run(USERS // recipients + ROUND)  # routes remembered, connections made
    times: list[float] = []

    def finished() -> None:
        stamps.append(time.perf_counter())

    for _ in range(rounds):
        stamps: list[float] = [time.perf_counter()] if per_connection else []
        simulation.run(ROUND, finished)
        times.append((stamps[-1] - stamps[0]) / (len(stamps) - 1) * 1e6)
    calls, instructions, c_calls = count(lambda: simulation.run(COUNTED))
    per_function = {name: (calls[name] / COUNTED, number / COUNTED) for name, number in instructions.most_common()}
    return Cost(
        min(times),
        statistics.median(times),
        calls.total() / COUNTED,
        c_calls / COUNTED,
        instructions.total() / COUNTED,
        per_function,
    )


def _ours(code: CodeType) -> bool:
    return code.co_filename not in (__file__, puppets.__file__)


def count(run: Callable[[], None]) -> tuple[Counter[str], Counter[str], int]:
    """Calls of each Python function but those here, its own instructions, and calls of C functions by all of them."""
    calls, instructions = Counter[str](), Counter[str]()
    c_calls = 0

    def profiled(frame: FrameType, event: str, _: object) -> None:
        nonlocal c_calls
        if event == "call" and _ours(frame.f_code):
            calls[frame.f_code.co_qualname] += 1
        elif event == "c_call" and _ours(frame.f_code):
            c_calls += 1

    def traced(frame: FrameType, event: str, _: object) -> Any:
        if not _ours(frame.f_code):
            return None
        if event == "opcode":
            instructions[frame.f_code.co_qualname] += 1
        elif event == "call":
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
        return traced

    for start, trace in ((sys.setprofile, profiled), (sys.settrace, traced)):
        start(trace)
        try:
            run()
        finally:
            start(None)
    return calls, instructions, c_calls


WORKLOADS = {
    "A": ("one message per connection", 1, 1, "info"),
    "B": ("connection kept", 1, 0, "info"),
    "C": ("10 recipients over 2 backends", 10, 0, "info"),
    "c": ("as C, no delivery log", 10, 0, "warning"),
}


class SimulationError(Exception):
    """One line: why there are no figures of a checkout."""


def simulated(root: Path, letter: str, rounds: int) -> Figures:
    """The figures of a workload in the checkout at `root`, by its own bench.simulate. Raises SimulationError."""
    command = [sys.executable, "-m", "bench.simulate", "--only", letter, "--rounds", str(rounds)]
    # The modules are those below the directory in which it runs, and no others.
    around = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    try:
        done = subprocess.run(
            command, cwd=root, env=around, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SimulationError(f"{root}: {error}") from error
    lines = [line for line in done.stdout.splitlines() if line.startswith(f"{letter}: ")]
    try:
        least, median, calls, c_calls, instructions = map(float, lines[0].split()[-5:])
    except (IndexError, ValueError):
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise SimulationError(f"{root}: bench.simulate ended with status {done.returncode}: {said}") from None
    return least, median, calls, c_calls, instructions


def _row(title: str, cells: Sequence[str]) -> str:
    return f"{title:34}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))


def _figures(title: str, figures: Figures) -> str:
    *most, instructions = figures
    return _row(title, [*(f"{figure:.1f}" for figure in most), f"{instructions:.0f}"])


def _compare(letter: str, title: str, beside: Path, rounds: int) -> None:
    """Print a workload of both checkouts. Raises SimulationError."""
    this, other = (simulated(root, letter, rounds) for root in (ROOT, beside.resolve()))
    print(_figures(f"{letter}: {title}", this))
    print(_figures("   beside", other))
    ratios = [f"{one / two:.3f}" if two else "-" for one, two in zip(this, other, strict=True)]
    print(_row("   this/beside", ratios), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.simulate", description=__doc__, allow_abbrev=False)
    parser.add_argument("--only", default="ABCc", metavar="LETTERS", help="these workloads; c: as C without its log")
    parser.add_argument("--rounds", type=int, default=200, help=f"of {ROUND} messages (default: 200)")
    parser.add_argument("--profile", action="store_true", help="show where the calls are, too")
    parser.add_argument("--beside", type=Path, metavar="DIR", help="another checkout, an older one say: of it, too")
    options = parser.parse_args(arguments)
    if options.beside and options.profile:
        parser.error("--profile shows this checkout alone: not with --beside")
    print(_row("", HEAD))
    for letter in options.only:
        title, recipients, per_connection, level = WORKLOADS[letter]
        if options.beside:
            try:
                _compare(letter, title, options.beside, options.rounds)
            except SimulationError as error:
                print(f"bench.simulate: {error}", file=sys.stderr)
                return 1
            continue
        cost = measure(recipients, per_connection, options.rounds, level)
        print(_figures(f"{letter}: {title}", cost.figures), flush=True)
        if options.profile:
            print(f"\n{'calls':>8}{'instructions':>14}")
            for name, (calls, instructions) in list(cost.per_function.items())[:SHOWN]:
                print(f"{calls:8.1f}{instructions:14.1f}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
