# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs in turn, the order reversed each round, the first round dropped; medians of what counts.

On a shared machine two measurements are comparable only when they were made side by side: nothing here ever compares
two runs of the bench.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from bench.peers import Program
from bench.workloads import Run, Workload, run_once

Measure = Callable[[Program, Workload, int, int], Run]


@dataclass(frozen=True, slots=True)
class Summary:
    """Medians of the runs of one program in one workload that count; `failed` of `runs` do not.

    unlogged: the share of recipients whose line in the log was lost; None: it logs none that we could count.
    """

    program: str
    workload: str
    runs: int
    failed: int
    error: str
    cpu_us: float | None
    rate: float
    p50_ms: float
    p99_ms: float
    pss_kib: int
    unlogged: float | None
    lowest_cpu_us: float | None
    highest_cpu_us: float | None


def in_turn(
    workload: Workload,
    programs: Sequence[Program],
    rounds: int,
    seconds: float,
    say: Callable[[Run], None],
    measure: Measure = run_once,
) -> list[Run]:
    """All runs of a workload, `rounds` that count for each program, of about `seconds` each.

    The first round, number 0, is there to warm the machine up and to learn how many messages fill these seconds.
    """
    runs: list[Run] = []
    messages = {program.name: workload.first for program in programs}
    order = list(programs)
    for number in range(rounds + 1):
        for program in order:
            run = measure(program, workload, number, messages[program.name])
            runs.append(run)
            say(run)
            if number == 0 and not run.error:
                wanted = round(run.rate * seconds)
                messages[program.name] = min(max(wanted, workload.least), workload.most)
        order.reverse()
    return runs


def summaries(runs: Iterable[Run]) -> dict[tuple[str, str], Summary]:
    """By workload and program, in the order in which they first ran."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.workload, run.program), [])
        if run.round > 0:
            groups[run.workload, run.program].append(run)
    return {key: summary(*key, group) for key, group in groups.items()}


def summary(workload: str, program: str, runs: Sequence[Run]) -> Summary:
    good = [run for run in runs if not run.error]
    costs = [run.cpu_us for run in good if run.cpu_us is not None]
    return Summary(
        program=program,
        workload=workload,
        runs=len(runs),
        failed=len(runs) - len(good),
        error=next((run.error for run in runs if run.error), ""),
        cpu_us=median(costs) if costs else None,
        rate=_median(run.rate for run in good),
        p50_ms=_median(run.p50_ms for run in good),
        p99_ms=_median(run.p99_ms for run in good),
        pss_kib=round(_median(max(run.pss_warm, run.pss_connected, run.pss_peak) for run in good)),
        unlogged=_share(good),
        lowest_cpu_us=min(costs, default=None),
        highest_cpu_us=max(costs, default=None),
    )


def _share(runs: Sequence[Run]) -> float | None:
    shares = [run.unlogged / run.recipients for run in runs if run.unlogged is not None]
    return median(shares) if shares else None


def _median(values: Iterable[float]) -> float:
    found = list(values)
    return median(found) if found else 0.0


def pairs(
    runs: Iterable[Run], workload: str, program: str, other: str, figure: Callable[[Run], float | None]
) -> list[tuple[float, float]]:
    """A figure of both programs for each round in which both runs count and have one.

    Each round is compared with itself: a machine that slows down from one round to the next does not show in it.
    """
    values = {
        (run.round, run.program): value
        for run in runs
        if run.workload == workload and run.round > 0 and not run.error and (value := figure(run)) is not None
    }
    return [
        (value, values[number, other])
        for (number, name), value in values.items()
        if name == program and (number, other) in values
    ]


def paired_difference(runs: Iterable[Run], workload: str, program: str, other: str) -> float | None:
    """The median, over the rounds, of what a message costs more CPU (µs) with one program than with the other."""
    differences = [one - two for one, two in pairs(runs, workload, program, other, lambda run: run.cpu_us)]
    return median(differences) if differences else None
