# SPDX-License-Identifier: GPL-3.0-or-later
"""The fifteen targets: what each is worth in one run of the bench, what it must be and what it is to be.

Arithmetic alone. A figure that was not measured is None, and its target is neither met nor missed.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from bench.floor import FLOOR
from bench.results import DOVECOT, HAPROXY, OURS, UNLOGGED, Results
from bench.rounds import Summary, paired_difference, summaries
from bench.tables import TableRun
from bench.workloads import WORKLOADS, Run

MILLION = 1_000_000
_OPTIONS = {workload.letter: workload.options for workload in WORKLOADS}


@dataclass(frozen=True, slots=True)
class Part:
    """One figure of a target, with its limits; all three are shown as `form` says."""

    value: float | None
    must: float
    aim: float
    form: str

    def shown(self, number: float | None) -> str:
        return "?" if number is None else self.form.format(number)


@dataclass(frozen=True, slots=True)
class Target:
    """A target as measured; it is met when each of its parts is."""

    number: int
    what: str
    parts: tuple[Part, ...]

    @property
    def state(self) -> str:
        values = [part.value for part in self.parts]
        if any(part.value is not None and part.value > part.must for part in self.parts):
            return "missed"
        if None in values:
            return "not measured"
        at_aim = all(part.value is not None and part.value <= part.aim for part in self.parts)
        return "met, aim reached" if at_aim else "met"

    def column(self, pick: Callable[[Part], float | None], sign: str = "") -> str:
        return "; ".join(sign + part.shown(pick(part)) for part in self.parts)


class _Figures:
    """What the targets are computed from."""

    def __init__(self, results: Results) -> None:
        self.runs = results.runs
        self._summaries = summaries(results.runs)
        self._tables = {table.users: table for table in results.tables if table.program == OURS}

    def of(self, workload: str, program: str) -> Summary | None:
        return self._summaries.get((workload, program))

    def good(self, workload: str) -> list[Run]:
        """Our runs that count."""
        return [run for run in self.runs
                if (run.workload, run.program) == (workload, OURS) and run.round > 0 and not run.error]  # fmt: skip

    def cost(self, workload: str, program: str) -> float | None:
        found = self.of(workload, program)
        return found.cpu_us if found else None

    def cost_ratio(self, workload: str, program: str) -> float | None:
        return ratio(self.cost(workload, OURS), self.cost(workload, program))

    def table(self, pick: Callable[[TableRun], float | None], users: int = MILLION) -> float | None:
        found = self._tables.get(users)
        return pick(found) if found else None


def ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def targets(results: Results) -> list[Target]:
    """All of them, in order."""
    figures = _Figures(results)
    cpu, mb, ms, s = "{:.3f}", "{:.1f} MB", "{:.1f} ms", "{:.1f} s"
    p99 = [found.p99_ms if (found := figures.of("B", program)) and found.p99_ms else None for program in
           (OURS, HAPROXY)]  # fmt: skip
    logging = paired_difference(results.runs, "C", OURS, UNLOGGED)
    return [
        Target(1, "CPU of a message in B / nothing but octets",
               (Part(figures.cost_ratio("B", FLOOR), 1.6, 1.4, "{:.2f}"),)),
        Target(2, "CPU of a message in B / HAProxy", (Part(figures.cost_ratio("B", HAPROXY), 3.5, 2.5, "{:.2f}"),)),
        Target(3, "CPU of a message in A / Dovecot", (Part(figures.cost_ratio("A", DOVECOT), 0.25, 0.15, cpu),)),
        Target(4, "CPU of a message in C / Dovecot", (Part(figures.cost_ratio("C", DOVECOT), 0.08, 0.05, cpu),)),
        Target(5, "CPU of a message in D / Dovecot", (Part(figures.cost_ratio("D", DOVECOT), 0.16, 0.08, cpu),)),
        Target(6, "memory growth in D, 4 x 10 MiB",
               (Part(_megabytes(_median(run.pss_peak - run.pss_warm for run in figures.good("D"))), 2, 0.5, mb),)),
        Target(7, "PSS of an idle connection in E; CPU of a message in E / B",
               (Part(_median(per_connection(run) for run in figures.good("E")), 12, 4, "{:.1f} KiB"),
                Part(ratio(figures.cost("E", OURS), figures.cost("B", OURS)), 1.4, 1.15, "{:.2f}"))),
        Target(8, "p99 of a delivery in B / HAProxy", (Part(ratio(*p99), 3, 1.7, "{:.2f}"),)),
        Target(9, "longest stall in a reload, 1M users (idle or under load)",
               (Part(figures.table(longest_stall), 20, 5, ms),)),
        Target(10, "the same under load: failed commands; time until active",
               (Part(figures.table(lambda table: table.failed_commands), 0, 0, "{:.0f}"),
                Part(figures.table(lambda table: table.busy_seconds), 8, 3, s))),
        Target(11, "CPU of a start, 1M users", (Part(figures.table(lambda table: table.start_cpu), 4, 2, s),)),
        Target(12, "PSS with 1M users; peak in a reload, children included",
               (Part(_megabytes(figures.table(lambda table: table.pss)), 150, 60, "{:.0f} MB"),
                Part(_megabytes(figures.table(lambda table: table.pss_peak)), 400, 200, "{:.0f} MB"))),
        Target(13, "CPU of the log for a recipient",
               (Part(None if logging is None else logging / _OPTIONS["C"].recipients, 5, 1.5, "{:.1f} us"),)),
        Target(14, "idle PSS, 1,000 users", (Part(_megabytes(_median(run.pss_idle for run in figures.good("B"))),
                                                 20, 14, mb),)),
        Target(15, "connections opened to a backend in B / most at once",
               (Part(max((reopened(run) for run in figures.good("B")), default=None), 1.1, 1, "{:.2f}"),)),
    ]  # fmt: skip


def longest_stall(table: TableRun) -> float | None:
    """Of the reload with nobody there and of the one under load the longer."""
    if table.idle is None or table.busy is None:
        return None
    return max(table.idle.longest, table.busy.longest)


def reopened(run: Run) -> float:
    """How many connections each backend got for one that it needed at the same time, of all backends the most.

    No backend needs more at once than there are sessions, so keeping more open than that counts as well.
    """
    sessions = _OPTIONS[run.workload].sessions
    needed = ((opened, min(peak, sessions)) for opened, peak in zip(run.opened, run.peak, strict=True))
    return max((opened / most for opened, most in needed if most), default=0.0)


def per_connection(run: Run) -> float:
    """Memory of an idle connection of E, KiB."""
    return (run.pss_connected - run.pss_warm) / _OPTIONS[run.workload].idle


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return median(found) if found else None


def _megabytes(kib: float | None) -> float | None:
    return None if kib is None else kib / 1024


def missed(found: Sequence[Target]) -> list[Target]:
    return [target for target in found if target.state == "missed"]
