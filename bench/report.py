# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of a run: for a terminal, and as the results section of docs/performance.md. All made from Results."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.comparison import Compared, compared
from bench.offline import JOBS, USERS, NightRun
from bench.processes import BenchError
from bench.results import OURS, Results
from bench.rounds import Summary, summaries
from bench.stall import Stall
from bench.tables import TableRun
from bench.targets import Target, targets
from bench.workloads import WORKLOADS

BEGIN = "<!-- results: written by `make bench ARGS=--write-docs`, not by hand -->"
END = "<!-- end of the results -->"


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text; the first row is the head. Columns are right-aligned but for the first `left`."""

    title: str
    rows: Sequence[Sequence[str]]
    left: int = 1


def tables(results: Results) -> list[Table]:
    """What was measured: a table for each workload, the other checkout if there was one, and the targets at the end."""
    found = summaries(results.runs)
    made = [
        _workload_table(f"{workload.letter}: {workload.title}", rows, in_ms=workload.watch_memory)
        for workload in WORKLOADS
        if (rows := [summary for (letter, _), summary in found.items() if letter == workload.letter])
    ]
    for program in dict.fromkeys(table.program for table in results.tables):
        title = "F: tables of many users" + ("" if program == OURS else f": {program}")
        made.append(_users_table(title, [table for table in results.tables if table.program == program]))
    if results.nights:
        made.append(_nights_table(results.nights))
    if both := compared(results):
        made.append(_comparison_table(both))
    return [*made, _targets_table(targets(results))]


def _workload_table(title: str, rows: Sequence[Summary], *, in_ms: bool) -> Table:
    factor, unit = (1000, "ms") if in_ms else (1, "us")
    head = ("program", f"CPU {unit}/message", "lowest-highest", "messages/s", "p50 ms", "p99 ms", "PSS MB",
            "log lines lost", "runs")  # fmt: skip
    return Table(title, [head, *(_workload_row(row, factor) for row in rows)])


def _workload_row(row: Summary, factor: int) -> Sequence[str]:
    if row.runs == row.failed:
        return (row.program, "none counts", row.error[:60], "", "", "", "", "", f"0 of {row.runs}")
    cpu = spread = pss = "-"
    if row.cpu_us is not None and row.lowest_cpu_us is not None and row.highest_cpu_us is not None:
        cpu = f"{row.cpu_us / factor:.1f}"
        spread = f"{row.lowest_cpu_us / factor:.1f}-{row.highest_cpu_us / factor:.1f}"
        pss = f"{row.pss_kib / 1024:.1f}"
    lost = "-" if row.unlogged is None else f"{100 * row.unlogged:.1f} %"
    runs = f"{row.runs - row.failed} of {row.runs}" if row.failed else str(row.runs)
    return (row.program, cpu, spread, f"{row.rate:,.0f}", f"{row.p50_ms:.2f}", f"{row.p99_ms:.2f}", pss, lost, runs)


def _users_table(title: str, rows: Sequence[TableRun]) -> Table:
    """Turned by a quarter: many figures, few tables."""
    lines: list[tuple[str, Callable[[TableRun], str]]] = [
        ("start: CPU s", lambda t: _number(t.start_cpu, 2)),
        ("start: until it greets, s", lambda t: _number(t.start_seconds, 2)),
        ("PSS MB", lambda t: _megabytes(t.pss)),
        ("reload, idle: until active, s", lambda t: _number(t.idle_seconds, 2)),
        ("  longest stall ms (idle sink; with waits for a core)", lambda t: _stall(t.idle)),
        ("load B before the reload: p99 of a NOOP ms", lambda t: _number(t.before.p99 if t.before else None, 1)),
        ("  longest stall ms (idle sink; with waits)", lambda t: _stall(t.before)),
        ("reload under load B: until active, s", lambda t: _number(t.busy_seconds, 2)),
        ("  longest stall ms (idle sink; with waits)", lambda t: _stall(t.busy)),
        ("  failed commands", lambda t: _number(t.failed_commands, 0)),
        ("  longest delivery ms", lambda t: _number(t.longest_delivery_ms, 0)),
        ("reload: PSS MB before, peak, after",
         lambda t: ", ".join(map(_megabytes, (t.pss_before, t.pss_peak, t.pss_after)))),
    ]  # fmt: skip
    if any(table.error for table in rows):
        lines.append(("ended early", lambda t: t.error[:100] or "-"))
    head = ("users", *(f"{table.users:,}" for table in rows))
    return Table(title, [head, *((name, *map(cell, rows)) for name, cell in lines)])


def _stall(stall: Stall | None) -> str:
    return f"{stall.longest:.1f} ({stall.reference:.1f}; {stall.raw:.1f})" if stall else "-"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _megabytes(kib: int | None) -> str:
    return _number(None if kib is None else kib / 1024, 1)


def _nights_table(nights: Sequence[NightRun]) -> Table:
    rows = [_nights_row(program, [run for run in nights if run.program == program and run.round > 0])
            for program in dict.fromkeys(run.program for run in nights)]  # fmt: skip
    title = f"G: `migrate`, {USERS} users, {JOBS} at once, commands that do nothing"
    return Table(title, [("program", "own ms offline", "lowest-highest", "runs"), *rows])


def _nights_row(program: str, runs: Sequence[NightRun]) -> Sequence[str]:
    own = [run.own_ms for run in runs if run.own_ms is not None]
    if not own:
        return (program, "none counts", next((run.error for run in runs), "")[:60], f"0 of {len(runs)}")
    count = str(len(runs)) if len(own) == len(runs) else f"{len(own)} of {len(runs)}"
    return (program, f"{median(own):.1f}", f"{min(own):.1f}-{max(own):.1f}", count)


def _comparison_table(rows: Sequence[Compared]) -> Table:
    head = ("figure", "this", "beside", "this/beside", "lowest-highest", "rounds")
    return Table("This checkout and the one beside it", [head, *map(_comparison_row, rows)])


def _comparison_row(row: Compared) -> Sequence[str]:
    this, beside = row.medians()
    if row.ratio is None:
        return (row.what, this, beside, "-", "-", str(len(row.values)))
    spread = f"{min(row.ratios):.3f}-{max(row.ratios):.3f}"
    return (row.what, this, beside, f"{row.ratio:.3f}", spread, str(len(row.values)))


def _targets_table(found: Sequence[Target]) -> Table:
    head = ("#", "target", "value", "must", "aim", "")
    rows = [
        (
            str(target.number),
            target.what,
            target.column(lambda part: part.value),
            target.column(lambda part: part.must, "<= "),
            target.column(lambda part: part.aim, "<= "),
            target.state,
        )
        for target in found
    ]
    return Table("Targets", [head, *rows], left=6)


def as_text(table: Table) -> str:
    """For a terminal."""
    widths = [max(map(len, column)) for column in zip(*table.rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) if n < table.left else cell.rjust(width)
                  for n, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in table.rows
    ]  # fmt: skip
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([table.title, "", lines[0], rule, *lines[1:]])


def as_markdown(table: Table) -> str:
    """For the page; a µ where the terminal may not have one, and a ≤."""
    align = ["---" if n < table.left else "---:" for n in range(len(table.rows[0]))]
    rows = [table.rows[0], align, *table.rows[1:]]
    lines = ["| " + " | ".join(_markdown_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join([f"### {table.title}", "", *lines])


def _markdown_cell(cell: str) -> str:
    text = re.sub(r"\bus\b", "µs", cell.replace("<=", "≤").replace("|", "\\|"))
    return f"**{text}**" if text == "missed" else text.strip()


def results_section(results: Results) -> str:
    """The results of a run as Markdown, with what they were measured on."""
    facts = {"date": results.date, **results.machine, **results.versions}
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]
    about = f"Medians of {results.rounds} rounds that count." + (" A `--quick` run." if results.quick else "")
    missing = [f"- not measured: {name}: {why}" for name, why in results.missing.items()]
    chart = "![CPU time per message, by program and workload](performance.svg)"
    parts = ["\n".join(lines), "\n".join([about, *missing]), chart, *map(as_markdown, tables(results))]
    return "\n\n".join(parts)


def renewed(page: str, results: Results) -> str:
    """The page with another results section. BenchError when it has no place for one."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise BenchError(f"the page has no place for results: a line {BEGIN!r}, and below it {END!r}")
    return f"{before}{BEGIN}\n\n{results_section(results)}\n\n{END}{after}"


def write_page(path: Path, results: Results) -> None:
    path.write_text(renewed(path.read_text("utf-8"), results), "utf-8")
