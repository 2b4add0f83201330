# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulation delivers what it says it does, and its counts are the same each time."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.simulate import WORKLOADS
from tests import ROOT


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: it puts its own sockets in the place of those of the package."""
    command = [sys.executable, "-m", "bench.simulate", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("letter", WORKLOADS)
def test_every_workload_runs_and_is_counted(letter: str) -> None:
    done = simulate("--only", letter, "--rounds", "2", "--profile")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    head, figures, _, titles, *functions = done.stdout.splitlines()
    assert head.split() == ["us:", "least", "median", "calls", "C", "calls", "instructions"]
    least, median, calls, c_calls, instructions = map(float, figures.split()[-5:])
    assert figures.startswith(f"{letter}: ") and 0 < least <= median
    assert 20 < calls < c_calls + calls < instructions
    assert titles.split() == ["calls", "instructions"]
    assert any(line.endswith("Transaction.finish") for line in functions)


def test_another_checkout_is_asked_by_its_own_simulation(tmp_path: Path) -> None:
    other = tmp_path / "other"
    for part in ("bench", "lmtp_proxy"):
        ignored = shutil.ignore_patterns("__pycache__", "build", "results")
        shutil.copytree(ROOT / part, other / part, ignore=ignored)
    log = other / "lmtp_proxy" / "delivery" / "log.py"
    text = log.read_text("utf-8")
    assert "def log_recipients(" in text
    more = "\n_plain = log_recipients\n\n\ndef log_recipients(*a, **k):\n    return _plain(*a, **k)\n"
    log.write_text(text + more, "utf-8")  # a call more for each message
    done = simulate("--only", "B", "--rounds", "2", "--beside", str(other))
    assert done.returncode == 0 and done.stderr == "", done.stderr
    _, this, beside, ratios = (line.split() for line in done.stdout.splitlines())
    assert this[0] == "B:" and beside[0] == "beside" and ratios[0] == "this/beside"
    assert float(beside[3]) == pytest.approx(float(this[-3]) + 1), "calls"
    assert float(this[-1]) < float(beside[-1]) < float(this[-1]) + 20, "instructions"
    for column in (-3, -2, -1):
        assert float(ratios[column]) == pytest.approx(float(this[column]) / float(beside[column]), abs=0.001)


def test_a_directory_that_is_no_checkout_is_an_error_in_one_line(tmp_path: Path) -> None:
    done = simulate("--only", "B", "--rounds", "2", "--beside", str(tmp_path))
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert str(tmp_path) in done.stderr and "Traceback" not in done.stderr
