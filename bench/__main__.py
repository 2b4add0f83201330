# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `python -m bench`: what is measured, in which order, and where the results go."""

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from bench import machine
from bench.floor import FLOOR, Floor
from bench.offline import NightRun, nights
from bench.peers import Direct, Dovecot, HAProxy, Program
from bench.plot import plot
from bench.processes import BenchError
from bench.profiling import profile
from bench.proxy import LmtpProxy
from bench.report import as_text, tables, write_page
from bench.results import BESIDE, DIRECT, OURS, TWO_WORKERS, UNLOGGED, Results, load
from bench.rounds import in_turn
from bench.tables import SIZES, TableRun, measure_table
from bench.tools import build
from bench.workloads import WORKLOADS, Run
from tests import ROOT

RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "performance.md"
LETTERS = "".join(workload.letter for workload in WORKLOADS) + "FG"
QUICK_SIZES = (100_000,)
QUICK_WITHOUT = {"A": {DIRECT, "HAProxy TCP", FLOOR}, "C": {DIRECT, "HAProxy TCP", FLOOR}, "D": {DIRECT, "HAProxy TCP"},
                 "E": {DIRECT, "HAProxy TCP", "Dovecot LMTP proxy"}}  # fmt: skip
"""What no target compares with in this workload."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it, too, ends what was started
    try:
        if options.results:
            results = load(options.results)
        else:
            build()
            if options.profile:
                workload = next(each for each in WORKLOADS if each.letter == options.profile)
                print(profile(LmtpProxy(python=options.python), workload))
                return 0
            results = _measure(options)
            _keep(results, RESULTS / "kept" if options.keep else RESULTS)
        print("\n\n".join(map(as_text, tables(results))))
        if options.write_docs:
            write_page(PAGE, results)
            PAGE.with_suffix(".svg").write_text(plot(results), "utf-8")
            print(f"\nwritten: {PAGE} and the chart beside it", file=sys.stderr)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    description = "Measure lmtp-proxy beside its peers; see docs/performance.md."
    parser = argparse.ArgumentParser(prog="python -m bench", description=description, allow_abbrev=False)
    add = parser.add_argument
    add("--quick", action="store_true", help="what the targets need, briefly: less than 90 seconds")
    add("--only", default=LETTERS, type=_letters, metavar="LETTERS", help=f"these workloads, of {LETTERS}")
    add("--rounds", type=_positive, help="that count, besides the first one (default: 5; quick: 1)")
    add("--seconds", type=float, help="of one run (default: 3; quick: 0.5)")
    add("--python", default=sys.executable, help="the interpreter that runs the proxy")
    add("--beside", type=Path, metavar="DIR", help="another checkout, an older one say: measure its proxy, too")
    add("--beside-python", metavar="PATH", help="the interpreter that runs that one (default: the same)")
    add("--keep", action="store_true", help="write the results to where git sees them")
    add("--write-docs", action="store_true", help="renew the results and the chart in docs/")
    add("--from", dest="results", type=Path, metavar="JSON", help="measure nothing, take these results")
    add("--profile", choices=LETTERS[:-2], help="show where the time goes in this workload, nothing else")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return int(text)


def _letters(text: str) -> str:
    if not text or set(text.upper()) - set(LETTERS):
        raise argparse.ArgumentTypeError(f"must be some of {LETTERS}, such as BF")
    return text.upper()


def _measure(options: argparse.Namespace) -> Results:
    ours = LmtpProxy(python=options.python)
    beside = _beside(options)
    programs: list[Program] = [
        Direct(),
        HAProxy(),
        Dovecot(),
        ours,
        *([beside] if beside else []),
        replace(ours, name=TWO_WORKERS, workers=2),
        replace(ours, name=UNLOGGED, level="warning"),
        Floor(python=options.python),
    ]
    missing = {program.name: why for program in programs if (why := program.missing())}
    for name, why in missing.items():
        print(f"not measured: {name}: {why}", file=sys.stderr)
    if OURS in missing:
        raise BenchError(f"lmtp-proxy does not start: {missing[OURS]}")
    if beside and BESIDE in missing:
        raise BenchError(f"the proxy of {beside.root} does not start: {missing[BESIDE]}")
    rounds = options.rounds or (1 if options.quick else 5)
    results = Results(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        quick=options.quick,
        rounds=rounds,
        machine=machine.facts(),
        versions=machine.versions(ours, beside),
        missing=missing,
    )
    runs: list[Run] = []
    for workload in WORKLOADS:
        if workload.letter in options.only:
            left_out = {*missing, *(QUICK_WITHOUT.get(workload.letter, ()) if options.quick else ())}
            if workload.letter != "C":
                left_out.add(UNLOGGED)
            if workload.letter not in "ABC":  # it knows no NOOP, and keeps no message in pieces
                left_out.add(FLOOR)
            if options.quick and workload.letter != "B":
                left_out.add(TWO_WORKERS)
            chosen = [program for program in programs if program.name not in left_out]
            seconds = options.seconds or (0.5 if options.quick else 3.0)
            runs += in_turn(workload, chosen, rounds, seconds, _say)
    measured: list[TableRun] = []
    if "F" in options.only:
        for users in QUICK_SIZES if options.quick else SIZES:
            for proxy in filter(None, (ours, beside)):
                print(f"F  {users:,} users  {proxy.name}", file=sys.stderr, flush=True)
                measured.append(measure_table(proxy, users, 1.0, 1.0) if options.quick else measure_table(proxy, users))
    migrated: list[NightRun] = []
    if "G" in options.only:
        migrated = nights([proxy for proxy in (ours, beside) if proxy], rounds, _say_night)
    return replace(results, runs=runs, tables=measured, nights=migrated)


def _beside(options: argparse.Namespace) -> LmtpProxy | None:
    """The proxy of another checkout, if there is to be one."""
    if options.beside is None:
        return None
    proxy = LmtpProxy(name=BESIDE, python=options.beside_python or options.python, root=options.beside.resolve())
    if not proxy.program.is_file():
        raise BenchError(f"--beside {options.beside}: no checkout of lmtp-proxy: there is no {proxy.program}")
    return proxy


def _say(run: Run) -> None:
    cost = "" if run.cpu_us is None else f"{run.cpu_us:10.1f} us"
    text = run.error or f"{run.messages:6} messages  {cost:>13}  {run.rate:8.0f}/s  p99 {run.p99_ms:.2f} ms"
    which = f"round {run.round}" if run.round else "dropped"
    print(f"{run.workload}  {which}  {run.program:28} {text}", file=sys.stderr, flush=True)


def _say_night(run: NightRun) -> None:
    text = run.error if run.own_ms is None else f"{run.own_ms:10.1f} ms offline by ourselves"
    print(
        f"G  {f'round {run.round}' if run.round else 'dropped'}  {run.program:28} {text}", file=sys.stderr, flush=True
    )


def _keep(results: Results, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{results.date.removesuffix(' UTC').replace(' ', 'T').replace(':', '')}.json"
    path.write_text(results.to_json(), "utf-8")
    print(f"written: {path}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
