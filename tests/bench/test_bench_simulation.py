# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulation delivers what it says it does, and its counts are the same each time."""

import subprocess
import sys

import pytest

from bench.simulate import WORKLOADS
from tests import ROOT


@pytest.mark.parametrize("letter", WORKLOADS)
def test_every_workload_runs_and_is_counted(letter: str) -> None:
    # A process of its own: it puts its own sockets in the place of those of the package.
    command = [sys.executable, "-m", "bench.simulate", "--only", letter, "--rounds", "2", "--profile"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    head, figures, _, titles, *functions = done.stdout.splitlines()
    assert head.split() == ["us:", "least", "median", "calls", "C", "calls", "instructions"]
    least, median, calls, c_calls, instructions = map(float, figures.split()[-5:])
    assert figures.startswith(f"{letter}: ") and 0 < least <= median
    assert 20 < calls < c_calls + calls < instructions
    assert titles.split() == ["calls", "instructions"]
    assert any(line.endswith("Transaction.finish") for line in functions)
