# SPDX-License-Identifier: GPL-3.0-or-later
"""Rounds, medians, ratios, stalls and targets: arithmetic on runs that were made up."""

from dataclasses import replace

import pytest

from bench.comparison import compared
from bench.floor import FLOOR
from bench.peers import Direct, HAProxy
from bench.proxy import LmtpProxy
from bench.results import BESIDE, DOVECOT, HAPROXY, OURS, UNLOGGED, Results
from bench.rounds import in_turn, paired_difference, pairs, summaries
from bench.stall import stall
from bench.tables import TableRun
from bench.targets import MILLION, missed, reopened, targets
from bench.tools import Counts, Sample, sample_of
from bench.workloads import WORKLOADS, Run, Workload, wrong_counts

B = next(workload for workload in WORKLOADS if workload.letter == "B")
STALL = stall([Sample(0, 10.0, 4.0, 1.0), Sample(1, 10.0, 1.0, 0.5)], 9.0, 11.0)


def run(program: str, workload: str, number: int, cpu_us: float, **figures: object) -> Run:
    return replace(Run(program, workload, number, 100, cpu_us=cpu_us), **figures)  # type: ignore[arg-type]


def results(runs: list[Run], tables: list[TableRun] | None = None) -> Results:
    return Results("2030-01-01 00:00 UTC", False, 3, {"CPU": "x"}, {"Python": "3"}, {}, runs, tables or [])


# --- rounds ----------------------------------------------------------------------------------------------------------


def test_programs_take_turns_and_the_order_is_reversed_each_round() -> None:
    said: list[Run] = []

    def measure(program: object, workload: Workload, number: int, messages: int) -> Run:
        name: str = program.name  # type: ignore[attr-defined]
        return Run(name, workload.letter, number, messages, rate=10.0 if name == "direct" else 5000.0)

    runs = in_turn(B, [Direct(), HAProxy(), LmtpProxy()], 2, 3.0, said.append, measure)
    assert said == runs
    turns = [(one.round, one.program) for one in runs]
    assert turns == [
        (0, "direct"), (0, HAPROXY), (0, OURS), (1, OURS), (1, HAPROXY), (1, "direct"), (2, "direct"), (2, HAPROXY),
        (2, OURS),
    ]  # fmt: skip
    assert [one.messages for one in runs[:3]] == [B.first] * 3
    assert {one.program: one.messages for one in runs[3:]} == {"direct": B.least, HAPROXY: 15000, OURS: 15000}


def test_medians_are_of_the_runs_that_count() -> None:
    runs = [run(OURS, "B", 0, 900.0), run(OURS, "B", 1, 3.0), run(OURS, "B", 2, 1.0), run(OURS, "B", 3, 2.0),
            run(OURS, "B", 4, 0.1, error="1 recipient was lost")]  # fmt: skip
    found = summaries(runs)["B", OURS]
    assert (found.cpu_us, found.lowest_cpu_us, found.highest_cpu_us) == (2.0, 1.0, 3.0)
    assert (found.runs, found.failed, found.error) == (4, 1, "1 recipient was lost")


def test_a_program_without_a_run_that_counts_has_no_figure() -> None:
    found = summaries([run(OURS, "B", 1, 3.0, error="no")])["B", OURS]
    assert found.cpu_us is None and found.failed == found.runs == 1


def test_differences_are_taken_within_a_round() -> None:
    runs = [run(OURS, "C", 0, 999.0), run(UNLOGGED, "C", 0, 1.0)]
    for number, (with_log, without) in enumerate(((100.0, 80.0), (200.0, 179.0), (400.0, 390.0)), 1):
        runs += [run(OURS, "C", number, with_log), run(UNLOGGED, "C", number, without)]
    assert paired_difference(runs, "C", OURS, UNLOGGED) == 20.0
    runs[3] = replace(runs[3], error="lost")
    assert paired_difference(runs, "C", OURS, UNLOGGED) == 15.5
    assert paired_difference(runs, "B", OURS, UNLOGGED) is None


def test_figures_are_paired_where_both_have_one() -> None:
    runs = [run(OURS, "E", 0, 1.0, rate=9.0), run(BESIDE, "E", 0, 1.0, rate=9.0)]  # the first round is dropped
    runs += [run(OURS, "E", 1, 1.0, rate=3.0), run(BESIDE, "E", 1, 1.0, rate=2.0)]
    runs += [run(OURS, "E", 2, 1.0, rate=5.0), run(BESIDE, "E", 2, 1.0, rate=1.0, error="lost")]
    runs += [run(BESIDE, "E", 3, 1.0, rate=6.0), run(OURS, "B", 3, 1.0, rate=6.0), run(OURS, "E", 3, 1.0, rate=4.0)]
    assert pairs(runs, "E", OURS, BESIDE, lambda run: run.rate) == [(3.0, 2.0), (4.0, 6.0)]
    assert pairs(runs, "E", OURS, BESIDE, lambda run: run.rate if run.rate < 6 else None) == [(3.0, 2.0)]


# --- one run ---------------------------------------------------------------------------------------------------------


def counts(recipients: int, errors: int = 0) -> Counts:
    return Counts("x", 1, 1, 1, recipients, recipients, 0, errors, 0, 0)


def test_a_run_counts_only_when_each_recipient_was_seen_once() -> None:
    assert wrong_counts([counts(3), counts(2)], 5) == ""
    assert wrong_counts([counts(3), counts(1)], 5) == "5 recipients were sent, the backends have seen 4"
    assert wrong_counts([counts(3), counts(3)], 5) == "5 recipients were sent, the backends have seen 6"
    assert wrong_counts([counts(3), counts(2, errors=1)], 5).startswith("the backends have seen 1 wrong")


def test_connections_are_compared_with_what_was_needed_at_once() -> None:
    def opened(opened: tuple[int, int], peak: tuple[int, int]) -> float:
        return reopened(run(OURS, "B", 1, 1.0, opened=opened, peak=peak))

    assert opened((20, 18), (20, 18)) == 1.0
    assert opened((20, 22), (20, 20)) == 1.1
    assert opened((500, 20), (20, 20)) == 25.0
    assert opened((40, 0), (40, 0)) == 2.0, "kept, but more than there are sessions"


# --- stalls ----------------------------------------------------------------------------------------------------------


def test_a_line_of_the_prober() -> None:
    assert sample_of("1 2000000 1500 250") == Sample(1, 2.0, 1.5, 0.25)


def test_a_stall_is_a_round_trip_without_waits_for_a_core() -> None:
    samples = [
        Sample(0, 1.0, 50.0, 0.0),  # over before the reload
        Sample(0, 1.99, 30.0, 5.0),  # sent before, answered in it
        Sample(0, 2.5, 40.0, 39.0),  # the machine was busy
        Sample(0, 2.6, 0.1, 0.3),  # clocks differ a little
        Sample(1, 2.5, 9.0, 2.0),
        Sample(0, 3.01, 99.0, 0.0),  # after it
    ]
    found = stall(samples, 2.0, 3.0)
    assert (found.longest, found.raw, found.reference, found.samples) == (25.0, 40.0, 7.0, 3)
    assert stall([], 0.0, 1.0).longest == 0.0


# --- targets ---------------------------------------------------------------------------------------------------------

GOOD = [
    *(run(program, letter, 1, cost) for letter, program, cost in (
        ("A", DOVECOT, 1000.0), ("A", OURS, 250.0), ("B", HAPROXY, 40.0), ("B", DOVECOT, 800.0), ("B", FLOOR, 62.5),
        ("C", DOVECOT, 3000.0), ("C", UNLOGGED, 140.0), ("D", DOVECOT, 100_000.0),
    )),
    run(OURS, "B", 1, 100.0, p99_ms=4.0, pss_idle=14 * 1024, opened=(21, 20), peak=(20, 20)),
    run(OURS, "C", 1, 150.0),
    run(OURS, "D", 1, 17_000.0, pss_warm=20_000, pss_peak=20_512),
    run(OURS, "E", 1, 150.0, pss_warm=20_000, pss_connected=24_000),
]  # fmt: skip
GOOD[2] = replace(GOOD[2], p99_ms=1.0)
TABLE = TableRun(
    MILLION, start_cpu=2.0, pss=60 * 1024, idle=STALL, busy=replace(STALL, longest=20.0), busy_seconds=3.0,
    failed_commands=0, pss_peak=401 * 1024,
)  # fmt: skip
EXPECTED = {
    1: ((1.6,), "met"), 2: ((2.5,), "met, aim reached"), 3: ((0.25,), "met"), 4: ((0.05,), "met, aim reached"),
    5: ((0.17,), "missed"), 6: ((0.5,), "met, aim reached"), 7: ((4.0, 1.5), "missed"), 8: ((4.0,), "missed"),
    9: ((20.0,), "met"), 10: ((0.0, 3.0), "met, aim reached"), 11: ((2.0,), "met, aim reached"),
    12: ((60.0, 401.0), "missed"), 13: ((1.0,), "met, aim reached"), 14: ((14.0,), "met, aim reached"),
    15: ((1.05,), "met"),
}  # fmt: skip


def test_all_targets() -> None:
    found = targets(results(GOOD, [TABLE]))
    assert [target.number for target in found] == list(range(1, 16))
    for target in found:
        values, state = EXPECTED[target.number]
        assert tuple(part.value for part in target.parts) == pytest.approx(values), target.number
        assert target.state == state, target.number
    assert [target.number for target in missed(found)] == [5, 7, 8, 12]


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    found = targets(results([run(OURS, "B", 1, 100.0, p99_ms=4.0, pss_idle=99 * 1024)]))
    states = {target.number: target.state for target in found}
    assert states[14] == "missed" and set(states.values()) == {"missed", "not measured", "met, aim reached"}
    assert {number for number, state in states.items() if state == "not measured"} == set(range(1, 14))


def test_half_of_a_target_can_be_missed_but_not_met() -> None:
    half = replace(TABLE, pss=None)
    assert targets(results([], [half]))[11].state == "missed"
    assert targets(results([], [replace(half, pss_peak=1)]))[11].state == "not measured"


# --- another checkout ------------------------------------------------------------------------------------------------


def beside(workload: str, number: int, this: float, other: float, **figures: tuple[object, object]) -> list[Run]:
    """A round of both."""
    mine, theirs = ({name: pair[n] for name, pair in figures.items()} for n in (0, 1))
    return [run(OURS, workload, number, this, **mine), run(BESIDE, workload, number, other, **theirs)]


def test_another_checkout_is_compared_round_by_round() -> None:
    runs = beside("B", 0, 1.0, 900.0) + beside("B", 1, 90.0, 100.0) + beside("B", 2, 240.0, 300.0)
    runs += beside("B", 3, 60.0, 40.0)
    cpu, *_ = compared(results(runs))
    assert (cpu.what, cpu.medians()) == ("B: CPU of a message", ("90.0 us", "100.0 us"))
    assert cpu.ratios == [0.9, 0.8, 1.5] and cpu.ratio == 0.9, "the median of the rounds, not of medians"
    runs[2] = replace(runs[2], error="lost")
    assert compared(results(runs))[0].ratios == [0.8, 1.5]


def test_memory_and_idle_connections_are_compared() -> None:
    runs = beside("B", 1, 1.0, 1.0, pss_idle=(10 * 1024, 20 * 1024), pss_warm=(30 * 1024, 40 * 1024))
    runs += beside("E", 1, 1.0, 2.0, pss_warm=(1000, 1000), pss_connected=(5000, 9000))
    runs += beside("D", 1, 8000.0, 4000.0, pss_warm=(1024, 1024), pss_peak=(3 * 1024, 2 * 1024))
    tables = [
        TableRun(1000, start_cpu=1.0, pss=1024),
        TableRun(1000, start_cpu=4.0, pss=2048, program=BESIDE),
        TableRun(MILLION, start_cpu=1.0),
        TableRun(MILLION, start_cpu=1.0, error="ended", program=BESIDE),
    ]
    found = {figure.what: (*figure.medians(), figure.ratio) for figure in compared(results(runs, tables))}
    assert found == {
        "B: CPU of a message": ("1.0 us", "1.0 us", 1.0),
        "B: PSS": ("30.0 MB", "40.0 MB", 0.75),
        "B: PSS before any mail": ("10.0 MB", "20.0 MB", 0.5),
        "D: CPU of a message": ("8.0 ms", "4.0 ms", 2.0),
        "D: PSS": ("3.0 MB", "2.0 MB", 1.5),
        "E: CPU of a message": ("1.0 us", "2.0 us", 0.5),
        "E: PSS": ("4.9 MB", "8.8 MB", 5000 / 9000),
        "E: PSS of an idle connection": ("4.0 KiB", "8.0 KiB", 0.5),
        "F, 1,000 users: CPU of a start": ("1.00 s", "4.00 s", 0.25),
        "F, 1,000 users: PSS": ("1.0 MB", "2.0 MB", 0.5),
    }
    assert targets(results([], [*tables[:2], replace(TABLE, program=BESIDE)]))[10].state == "not measured"


def test_nothing_beside_is_no_comparison_and_nothing_is_no_ratio() -> None:
    assert compared(results(GOOD, [TABLE])) == []
    nothing = compared(results(beside("B", 1, 1.0, 0.0)))[0]
    assert nothing.ratio is None and nothing.medians() == ("1.0 us", "0.0 us")
