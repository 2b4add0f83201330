# SPDX-License-Identifier: GPL-3.0-or-later
"""Workload F: tables of many users: what a start costs, what a reload does to those who are being served, memory.

Three reloads, since one measurement would disturb another: one with nobody there but the prober, one under load B, and
one in which memory is looked at all the time. Each moves the last user, to whom nothing is sent: a message that is on
its way to a user who moves is deferred, as promised, and would look like an error here. It is done when the control
socket says that the new generation is active.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

from bench.peers import Surroundings, user
from bench.processes import BenchError, Stage, family
from bench.proxy import LmtpProxy, ask
from bench.stall import Stall, stall
from bench.tools import Load, LoadOptions, Probe, Sample, Sink
from bench.usage import PssPeak, cpu_seconds, pss_kib
from bench.workloads import wrong_counts

SIZES = (1_000, 100_000, 1_000_000)
PATIENCE = 600.0  # seconds for a start or a reload
BEFORE = 2.0  # seconds of load before the reload: what the prober sees then is to be compared with
AFTER = 2.0  # seconds after it in which the old table goes


@dataclass(frozen=True, slots=True)
class TableRun:
    """One table of one program. CPU and times in seconds, memory in KiB, both of all processes.

    idle: the reload with nobody there; busy: under load; before: under load, before the reload.
    error: where it ended early, "": it did not.
    """

    users: int
    start_cpu: float | None = None
    start_seconds: float | None = None
    pss: int | None = None
    idle_seconds: float | None = None
    idle: Stall | None = None
    before: Stall | None = None
    busy: Stall | None = None
    busy_seconds: float | None = None
    failed_commands: int | None = None
    longest_delivery_ms: float | None = None
    pss_before: int | None = None
    pss_peak: int | None = None
    pss_after: int | None = None
    error: str = ""
    program: str = LmtpProxy.name


def measure_table(program: LmtpProxy, users: int, before: float = BEFORE, after: float = AFTER) -> TableRun:
    """All of F for a table of so many users. before, after: seconds of looking before and after a reload."""
    with Stage() as stage:
        table = _Table(stage, program, users, before, after)
        run = TableRun(users, program=program.name)
        try:
            for step in (table.start, table.reload_idle, table.reload_busy, table.reload_watched):
                run = step(run)
        except BenchError as error:
            run = replace(run, error=str(error))
        return run


class _Table:
    """One proxy with a large table; each step adds what it has measured."""

    def __init__(self, stage: Stage, program: LmtpProxy, users: int, before: float, after: float) -> None:
        self._stage = stage
        self._program = program
        self._before = before
        self._after = after
        self._sink = Sink(stage, ["127.0.0.1:0", "127.0.0.1:0"])
        self._quiet = Sink(stage, ["127.0.0.1:0"])
        Sink(stage, [f"log:{stage.path('log')}"])
        backends = (self._sink.addresses[0], self._sink.addresses[1])
        self._around = Surroundings(backends, stage.path("log"), users, PATIENCE)
        self._moves = 0

    def start(self, run: TableRun) -> TableRun:
        began = time.monotonic()
        at = self._program.start(self._stage, self._around)
        assert at.root is not None
        self._root, self._address = at.root, at.address
        run = replace(run, start_cpu=cpu_seconds(family(at.root)), start_seconds=time.monotonic() - began)
        time.sleep(self._after)
        self._serving = int(ask(self._stage, "GET", "/status", PATIENCE)["pid"])
        return replace(run, pss=pss_kib(family(at.root)))

    def reload_idle(self, run: TableRun) -> TableRun:
        probe = self._probe()
        time.sleep(self._before)
        began = time.monotonic()
        took = self._reload()
        time.sleep(self._after)
        return replace(run, idle_seconds=took, idle=_seen(probe.end(), began))

    def reload_busy(self, run: TableRun) -> TableRun:
        load = Load(self._stage, self._address, LoadOptions(messages=0, users=run.users - 1))
        probe = self._probe()
        load.go()
        time.sleep(self._before)
        loaded = time.monotonic()
        time.sleep(self._before)
        began = time.monotonic()
        took = self._reload()
        time.sleep(self._after)
        samples = probe.end()
        load.stop()
        result = load.result()
        counts = wrong_counts(self._sink.counts(), result.recipients)
        return replace(
            run,
            before=stall(samples, loaded, began),
            busy=_seen(samples, began),
            busy_seconds=took,
            failed_commands=result.errors,
            longest_delivery_ms=result.max_ms,
            error=result.first_error or counts,
        )

    def reload_watched(self, run: TableRun) -> TableRun:
        before = pss_kib(family(self._root))
        with PssPeak(self._root, interval=0.02) as peak:
            self._reload()
            time.sleep(self._after)
        return replace(run, pss_before=before, pss_peak=peak.kib, pss_after=pss_kib(family(self._root)))

    def _probe(self) -> Probe:
        return Probe(self._stage, self._serving, [self._address, self._quiet.addresses[0]])

    def _reload(self) -> float:
        """Move the last user, and reload; seconds until it is active. BenchError when it has not happened."""
        self._moves += 1
        last = self._around.users - 1
        host, _, port = self._address.rpartition(":")
        backend = "ab"[(last + self._moves) % 2]
        config: Path = self._program.configure(self._stage, self._around, (host, int(port)), {last: backend})
        generation = int(ask(self._stage, "GET", "/status", PATIENCE)["generation"])
        began = time.monotonic()
        ask(self._stage, "POST", "/reload", PATIENCE)
        took = time.monotonic() - began
        now = int(ask(self._stage, "GET", "/status", PATIENCE)["generation"])
        route = ask(self._stage, "GET", f"/lookup?address={user(last)}", PATIENCE)["backend"]
        if now <= generation or route != backend:
            raise BenchError(f"reload of {config}: generation {generation} -> {now}, {user(last)} is on {route}")
        return took


def _seen(samples: list[Sample], began: float) -> Stall:
    return stall(samples, began, time.monotonic())
