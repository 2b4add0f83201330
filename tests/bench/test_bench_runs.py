# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs of the bench with real programs, and that nothing of them is left."""

import ast
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

import bench
from bench import __main__ as command
from bench.machine import commit, versions
from bench.offline import USERS, NightRun, nights, own_ms
from bench.peers import Direct, Surroundings
from bench.processes import BenchError, Stage, family
from bench.profiling import shares
from bench.proxy import LmtpProxy, ask
from bench.results import BESIDE, OURS, load
from bench.tables import measure_table
from bench.usage import PssPeak, cpu_seconds, pss_kib
from bench.workloads import WORKLOADS, run_once
from tests import ROOT

HERE = Path(bench.__file__).resolve().parent
SMALL = {workload.letter: workload for workload in WORKLOADS}


@pytest.mark.usefixtures("programs")
def test_the_load_and_the_sink_agree() -> None:
    run = run_once(Direct(), SMALL["C"], 1, 300)
    assert run.error == "" and run.cpu_us is None and run.rate > 0
    assert run.opened == (40, 0) and run.peak[0] <= 40


@pytest.mark.usefixtures("programs")
def test_the_proxy_is_measured() -> None:
    run = run_once(LmtpProxy(), SMALL["B"], 1, 200)
    assert run.error == ""
    assert run.cpu_us is not None and 10 < run.cpu_us < 100_000
    assert 0 < run.p50_ms <= run.p99_ms <= run.max_ms
    assert 5_000 < run.pss_idle < 200_000
    assert run.unlogged is not None and 0 <= run.unlogged < 400
    assert sum(run.opened) >= 20


@pytest.mark.usefixtures("programs")
def test_a_table_is_measured() -> None:
    run = measure_table(LmtpProxy(), 50, before=0.2, after=0.2)
    assert run.error == "" and run.failed_commands == 0
    assert run.idle and run.busy and run.before and run.idle.samples > 10
    assert run.start_cpu and run.pss and run.pss_peak and run.busy_seconds and run.idle_seconds


@pytest.mark.usefixtures("programs")
def test_a_program_that_does_not_start_is_an_error_in_one_line() -> None:
    run = run_once(LmtpProxy(level="loud"), SMALL["B"], 1, 10)
    assert "ended, exit status 1" in run.error and "config.log.level" in run.error and "\n" not in run.error
    assert run.cpu_us is None


def test_a_key_that_the_proxy_does_not_know_makes_it_missing() -> None:
    assert LmtpProxy().missing() is None
    assert "config.log.level" in (LmtpProxy(level="loud").missing() or "")


def test_the_control_socket_says_no(stage: Stage) -> None:
    LmtpProxy().start(stage, Surroundings(("127.0.0.1:1", "127.0.0.1:2"), stage.path("log"), 10))
    assert ask(stage, "GET", "/status", 10)["users"] == 10
    with pytest.raises(BenchError, match="GET /nothing: 404"):
        ask(stage, "GET", "/nothing", 10)


# --- another checkout ------------------------------------------------------------------------------------------------


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A checkout with another version; of it there is what the bench needs, and no more."""
    for part in ("bin", "lmtp_proxy"):
        shutil.copytree(ROOT / part, tmp_path / "other" / part, ignore=shutil.ignore_patterns("__pycache__"))
    first = tmp_path / "other" / "lmtp_proxy" / "__init__.py"
    text, count = re.subn(r'__version__ = ".*"', '__version__ = "0.0.77"', first.read_text("utf-8"))
    assert count == 1
    first.write_text(text, "utf-8")
    return tmp_path / "other"


@pytest.mark.usefixtures("programs")
def test_the_proxy_of_another_checkout_is_its_own(other: Path, stage: Stage) -> None:
    theirs = LmtpProxy(name=BESIDE, root=other)
    assert theirs.missing() is None
    assert versions(LmtpProxy(), theirs)["beside"] == "0.0.77, other"
    assert "beside" not in versions(LmtpProxy())
    theirs.start(stage, Surroundings(("127.0.0.1:1", "127.0.0.1:2"), stage.path("log"), 10))
    assert ask(stage, "GET", "/status", 10)["version"] == "0.0.77"
    run = run_once(theirs, SMALL["B"], 1, 200)
    assert (run.program, run.error) == (BESIDE, "") and run.cpu_us is not None


def test_what_is_checked_out_is_said_of_a_checkout_only(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        settings = ("-c", "user.name=x", "-c", "user.email=x@x", "-c", "safe.directory=*")
        subprocess.run(["git", *settings, "-C", str(tmp_path), *words], check=True, capture_output=True)

    (tmp_path / "inside").mkdir()
    assert commit(tmp_path) == ""
    git("init")
    (tmp_path / "inside" / "file").touch()
    git("add", ".")
    git("commit", "-m", "x")
    assert re.fullmatch(r"[0-9a-f]{7,}", commit(tmp_path))
    assert commit(tmp_path / "inside") == "", "that of the one in which it lies"
    assert commit(tmp_path / "nowhere") == ""


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("programs")
def test_the_command_measures_both(
    other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(command, "QUICK_SIZES", (50,))
    arguments = ["--quick", "--only", "EF", "--seconds", "0.1", "--beside", str(other)]
    assert command.main(arguments) == 0
    [path] = (tmp_path / "results").glob("*.json")
    results = load(path)
    assert results.versions["beside"] == "0.0.77, other"
    assert {run.program for run in results.runs} >= {OURS, BESIDE}
    assert [table.program for table in results.tables] == [OURS, BESIDE]
    shown = capsys.readouterr().out
    for figure in ("E: CPU of a message", "E: PSS of an idle connection", "F, 50 users: CPU of a start"):
        assert re.search(rf"^{figure} .* 1$", shown, re.MULTILINE), shown


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("kind", ["no checkout", "does not start"])
def test_another_checkout_that_cannot_be_measured_is_an_error(
    kind: str, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "does not start":
        (other / "lmtp_proxy" / "cli.py").write_text("raise SystemExit('broken')\n")
    assert (
        command.main(["--quick", "--only", "B", "--beside", str(other if kind == "does not start" else tmp_path)]) == 1
    )
    error = capsys.readouterr().err.splitlines()[-1]
    expected = {"no checkout": f"no checkout of lmtp-proxy: there is no {tmp_path}/bin/lmtp-proxy",
                "does not start": f"the proxy of {other} does not start: broken"}  # fmt: skip
    assert expected[kind] in error


# --- a migration -----------------------------------------------------------------------------------------------------


def journal(path: Path, users: int) -> Path:
    """Each was offline from 10 to 20 s (and `number` more), of which commands took 6 s, and had a sync before."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE steps(id INTEGER PRIMARY KEY, user, step, began, ended)")
        steps = [("sync", 0, 9), ("block", 10, 11), ("final_sync", 12, 15), ("move", 15, 17), ("redirect", 17, 18)]
        for number in range(users):
            for step, began, ended in [*steps, ("unblock", 19 + number, 20 + number)]:
                db.execute("INSERT INTO steps(user, step, began, ended) VALUES (?, ?, ?, ?)",
                           (f"u{number}", step, began, ended))  # fmt: skip
        db.commit()
    return path


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("programs")
def test_a_migration_is_measured() -> None:
    said: list[NightRun] = []
    good, bad = LmtpProxy(), LmtpProxy(name="bad", level="loud")
    assert nights([good, bad], 1, said.append) == said
    assert [(night.program, night.round) for night in said] == [(OURS, 0), ("bad", 0), ("bad", 1), (OURS, 1)]
    assert all(night.own_ms and night.own_ms > 1 and not night.error for night in said if night.program == OURS)
    assert all(night.own_ms is None and "config.log.level" in night.error for night in said if night.program == "bad")


def test_what_a_migration_takes_itself_is_what_its_commands_do_not(tmp_path: Path) -> None:
    assert own_ms(journal(tmp_path / "all", USERS)) == 1000 * (4 + (USERS - 1) / 2)
    with pytest.raises(BenchError, match=f"{USERS} users were to be migrated, 3 were"):
        own_ms(journal(tmp_path / "some", 3))


# --- processes -------------------------------------------------------------------------------------------------------

SHELL = "trap '' TERM; sleep 300 & echo $$ $!; wait; wait"


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not Path(f"/proc/{pid}").exists()


def test_leaving_a_stage_ends_everything_that_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.processes.PATIENCE", 0.3)
    with Stage() as stage:
        process = stage.start(["/bin/sh", "-c", SHELL], talks=True)
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert set(family(process.pid)) == set(pids)
    assert all(map(gone, pids))
    assert not stage.directory.exists()


@pytest.mark.usefixtures("programs")
def test_an_interrupted_bench_leaves_nothing() -> None:
    command = [sys.executable, "-m", "bench", "--only", "B", "--seconds", "30"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while len(pids := family(process.pid)) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in said
    assert all(map(gone, pids))


def test_cpu_time_is_that_of_the_process_and_of_its_children_that_ended() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\n"
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])\n"
    parent = f"{burn}{child}print(flush=True)\ninput()"
    with Stage() as stage:
        process = stage.start([sys.executable, "-c", parent], talks=True)
        assert process.stdout is not None
        process.stdout.readline()
        assert 0.55 < cpu_seconds(family(process.pid)) < 1.5
    assert cpu_seconds([process.pid]) == 0.0


def test_the_peak_of_memory_is_seen_though_it_is_over() -> None:
    hold = "import time; b = bytearray(b'x' * 50_000_000); time.sleep(0.4); del b; print(flush=True); input()"
    with Stage() as stage:
        process = stage.start([sys.executable, "-c", hold], talks=True)
        assert process.stdout is not None
        with PssPeak(process.pid, interval=0.01) as peak:
            process.stdout.readline()
        after = pss_kib([process.pid])
    assert peak.kib > 45_000 > after > 1000


def test_shares_of_samples() -> None:
    text = shares(["main (a.py:1);f (a.py:2) 30", "main (a.py:9);f (a.py:3);recv (b.py:7) 60", "main (a.py:1) 10"])
    rows = [line.split(maxsplit=4) for line in text.splitlines()[1:]]
    assert [(row[0], row[2], row[4]) for row in rows] == [
        ("60.0", "60.0", "recv (b.py)"), ("30.0", "90.0", "f (a.py)"), ("10.0", "100.0", "main (a.py)"),
    ]  # fmt: skip


# --- the package -----------------------------------------------------------------------------------------------------


def test_each_module_is_in_the_map_and_imports_only_from_above() -> None:
    listed = re.findall(r"^    ([a-z]+) {2,}\S", bench.__doc__ or "", re.MULTILINE)
    existing = {path.relative_to(HERE).with_suffix("").as_posix() for path in HERE.rglob("*.py")} - {
        "__init__",
        "__main__",
    }
    assert set(listed) == existing
    for number, module in enumerate(listed):
        source = (HERE / f"{module}.py").read_text("utf-8")
        assert len(source.splitlines()) <= 350 and ast.get_docstring(ast.parse(source))
        imported = set(re.findall(r"^from bench\.([a-z]+) import", source, re.MULTILINE))
        assert imported <= set(listed[:number]), module
        if module not in ("floor", "simulate"):  # which say so in the map
            assert not re.search(r"\bimport lmtp_proxy|from lmtp_proxy", source), "the proxy is known from outside"


def test_workloads_are_as_the_page_says() -> None:
    options = {letter: workload.options for letter, workload in SMALL.items()}
    assert options["A"] == replace(options["B"], per_connection=1)
    assert options["C"] == replace(options["B"], recipients=10)
    assert options["D"] == replace(options["B"], octets=10 * 2**20, sessions=4)
    assert options["E"] == replace(options["B"], idle=1000, trickle=200)
    assert (options["B"].octets, options["B"].sessions, options["B"].users) == (4096, 20, 1000)
