# SPDX-License-Identifier: GPL-3.0-or-later
"""The workloads A to E, and one run of one of them against one program: started for it, warmed up, measured, ended.

A run counts only if every reply was right and the backends have seen each recipient exactly once.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from bench.peers import Program, Surroundings
from bench.processes import BenchError, Stage, family
from bench.tools import Counts, Load, LoadOptions, Sink, run_load
from bench.usage import PssPeak, cpu_seconds, pss_kib

WARM_UP = 200  # messages of 4 KiB before anything is measured: imports, caches, connections to the backends
_SETTLED = 0.15  # seconds: what is written in batches has been written then
_IDLE_SETTLED = 1.0


@dataclass(frozen=True, slots=True)
class Workload:
    """first: messages in the first round, which is dropped. least, most: messages in the others."""

    letter: str
    title: str
    options: LoadOptions
    first: int
    least: int
    most: int
    watch_memory: bool = False


WORKLOADS = (
    Workload("A", "one message per connection", LoadOptions(per_connection=1), 200, 200, 20000),
    Workload("B", "connection kept, pipelined", LoadOptions(), 300, 500, 60000),
    Workload("C", "as B, 10 recipients over 2 backends", LoadOptions(recipients=10), 100, 150, 30000),
    Workload("D", "messages of 10 MiB, 4 sessions", LoadOptions(octets=10 << 20, sessions=4), 4, 4, 300,
             watch_memory=True),
    Workload("E", "as B, with 1,000 more connections that trickle", LoadOptions(idle=1000, trickle=200), 300, 500,
             60000),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """One run. cpu_us: CPU microseconds for one message, None: there is no program. pss: of all its processes, KiB.

    pss_idle: started and not used yet; pss_warm: after the warm-up; pss_connected: with the idle connections of E;
    pss_peak: the highest in D. opened, peak: connections to the backends, and the most at once, for each backend.
    recipients: sent, with those of the warm-up. unlogged: of them without a line in the log, None: none was logged.
    error: why it does not count, "": it does.
    """

    program: str
    workload: str
    round: int
    messages: int
    cpu_us: float | None = None
    rate: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0
    pss_idle: int = 0
    pss_warm: int = 0
    pss_connected: int = 0
    pss_peak: int = 0
    opened: tuple[int, ...] = ()
    peak: tuple[int, ...] = ()
    recipients: int = 0
    unlogged: int | None = None
    error: str = ""


def run_once(program: Program, workload: Workload, number: int, messages: int) -> Run:
    """Start the program, measure it once, end it. What goes wrong stands in the run."""
    empty = Run(program.name, workload.letter, number, messages)
    try:
        with Stage() as stage:
            return _measure(stage, program, workload, empty)
    except BenchError as error:
        return replace(empty, error=str(error))


def _measure(stage: Stage, program: Program, workload: Workload, run: Run) -> Run:
    sink = Sink(stage, ["127.0.0.1:0", "127.0.0.1:0"])
    log = Sink(stage, [f"log:{stage.path('log')}"])  # a process of its own, as a syslog is
    around = Surroundings((sink.addresses[0], sink.addresses[1]), stage.path("log"), workload.options.users)
    at = program.start(stage, around)
    pss_idle = _pss(at.root)
    options = workload.options
    warm = run_load(stage, at.address, LoadOptions(WARM_UP, options.sessions, recipients=options.recipients))
    time.sleep(_SETTLED)
    pss_warm = _pss(at.root)
    load = Load(stage, at.address, replace(options, messages=run.messages))
    time.sleep(_IDLE_SETTLED if options.idle else _SETTLED)
    pss_connected = _pss(at.root)
    with ExitStack() as watch:
        peak = watch.enter_context(PssPeak(at.root)) if workload.watch_memory and at.root else None
        before = _cpu(at.root)
        load.go()
        result = load.result()
        time.sleep(_SETTLED)
        used = _cpu(at.root) - before
    counts = sink.counts()
    logged = log.counts()[0].deliveries_logged
    sent = (WARM_UP + run.messages) * options.recipients
    return replace(
        run,
        cpu_us=used / run.messages * 1e6 if at.root else None,
        rate=result.messages / result.seconds,
        p50_ms=result.p50_ms,
        p99_ms=result.p99_ms,
        max_ms=result.max_ms,
        pss_idle=pss_idle,
        pss_warm=pss_warm,
        pss_connected=pss_connected,
        pss_peak=peak.kib if peak else 0,
        opened=tuple(count.connections for count in counts),
        peak=tuple(count.peak_connections for count in counts),
        recipients=sent,
        unlogged=sent - logged if logged else None,
        error=warm.first_error or result.first_error or wrong_counts(counts, sent),
    )


def wrong_counts(counts: Sequence[Counts], sent: int) -> str:
    """What does not fit what was sent; "" when all is well."""
    seen, errors = sum(count.recipients for count in counts), sum(count.errors for count in counts)
    if seen != sent:
        return f"{sent} recipients were sent, the backends have seen {seen}"
    return f"the backends have seen {errors} wrong commands or torn transactions" if errors else ""


def _pss(root: int | None) -> int:
    return pss_kib(family(root)) if root else 0


def _cpu(root: int | None) -> float:
    return cpu_seconds(family(root)) if root else 0.0
