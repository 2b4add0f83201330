# SPDX-License-Identifier: GPL-3.0-or-later
"""This checkout against another one that ran beside it: what each costs, and the ratio of the two.

A ratio is taken within each round, where both were measured one after the other, and what is shown is the median of
these ratios: it moves less than a ratio of two medians. Arithmetic alone.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from bench.offline import NightRun
from bench.results import BESIDE, OURS, Results
from bench.rounds import pairs
from bench.tables import TableRun
from bench.targets import per_connection
from bench.workloads import WORKLOADS, Run


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure of both checkouts, of each round that counts for both.

    form: how a figure is shown. values: of this checkout and of the other one, a pair for each round.
    """

    what: str
    form: str
    values: Sequence[tuple[float, float]]

    @property
    def ratios(self) -> list[float]:
        """this / other, a round each; a round in which the other has nothing has none."""
        return [this / other for this, other in self.values if other > 0]

    @property
    def ratio(self) -> float | None:
        ratios = self.ratios
        return median(ratios) if ratios else None

    def medians(self) -> tuple[str, str]:
        """Of this checkout and of the other one."""
        this, other = (median(column) for column in zip(*self.values, strict=True))
        return self.form.format(this), self.form.format(other)


def compared(results: Results) -> list[Compared]:
    """All figures that were measured of both; none when nothing ran beside this checkout."""
    found = [
        figure
        for workload in WORKLOADS
        for figure in _of_workload(results.runs, workload.letter, in_ms=workload.watch_memory)
    ]
    found += [figure for users in dict.fromkeys(table.users for table in results.tables)
              for figure in _of_table(results.tables, users)]  # fmt: skip
    found.append(Compared("G: own time for which a user is offline", "{:.1f} ms", _of_nights(results.nights)))
    return [figure for figure in found if figure.values]


def _of_nights(runs: Iterable[NightRun]) -> list[tuple[float, float]]:
    own = {(run.program, run.round): run.own_ms for run in runs if run.round > 0 and run.own_ms is not None}
    return [(one, own[BESIDE, number]) for (name, number), one in own.items()
            if name == OURS and (BESIDE, number) in own]  # fmt: skip


def _of_workload(runs: Iterable[Run], letter: str, *, in_ms: bool) -> list[Compared]:
    def figure(what: str, form: str, pick: Callable[[Run], float | None]) -> Compared:
        return Compared(f"{letter}: {what}", form, pairs(runs, letter, OURS, BESIDE, pick))

    cost = (figure("CPU of a message", "{:.1f} ms", lambda run: None if run.cpu_us is None else run.cpu_us / 1000)
            if in_ms else figure("CPU of a message", "{:.1f} us", lambda run: run.cpu_us))  # fmt: skip
    found = [cost, figure("PSS", "{:.1f} MB", lambda run: max(run.pss_warm, run.pss_connected, run.pss_peak) / 1024)]
    if letter == "B":
        found.append(figure("PSS before any mail", "{:.1f} MB", lambda run: run.pss_idle / 1024))
    if letter == "E":
        found.append(figure("PSS of an idle connection", "{:.1f} KiB", per_connection))
    return found


def _of_table(tables: Iterable[TableRun], users: int) -> list[Compared]:
    of = {table.program: table for table in tables if table.users == users and not table.error}

    def figure(what: str, form: str, pick: Callable[[TableRun], float | None]) -> Compared:
        one, two = (pick(of[name]) if name in of else None for name in (OURS, BESIDE))
        return Compared(f"F, {users:,} users: {what}", form, [] if one is None or two is None else [(one, two)])

    return [
        figure("CPU of a start", "{:.2f} s", lambda table: table.start_cpu),
        figure("PSS", "{:.1f} MB", lambda table: None if table.pss is None else table.pss / 1024),
    ]
