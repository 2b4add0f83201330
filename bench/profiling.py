# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the time of a message goes: a workload against lmtp-proxy while perf, and then py-spy, look at it.

perf sees the kernel and C, but no Python function; py-spy sees Python functions, and none of the rest. What is not
there is named, with what to do about it.
"""

import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from bench.peers import Surroundings
from bench.processes import Stage, family
from bench.proxy import LmtpProxy
from bench.tools import Load, LoadOptions, Sink, run_load
from bench.workloads import WARM_UP, Workload

SECONDS = 8
SHOWN = 40
Look = Callable[[Stage, str, int], str]


def profile(program: LmtpProxy, workload: Workload) -> str:
    """Both profiles as text."""
    parts = []
    for title, tool, look in (("kernel and C (perf)", "perf", _perf), ("Python (py-spy)", "py-spy", _py_spy)):
        found = shutil.which(tool) or shutil.which(tool, path=str(Path(sys.executable).parent))
        if found is None:
            hint = "apt install linux-perf" if tool == "perf" else f"{sys.executable} -m pip install py-spy"
            parts.append(f"{title}: not installed: {hint}")
            continue
        with Stage() as stage:
            parts.append(f"{title}\n\n{_under_load(stage, program, workload, found, look)}")
    return "\n\n".join(parts)


def _under_load(stage: Stage, program: LmtpProxy, workload: Workload, tool: str, look: Look) -> str:
    sink = Sink(stage, ["127.0.0.1:0", "127.0.0.1:0"])
    Sink(stage, [f"log:{stage.path('log')}"])
    around = Surroundings((sink.addresses[0], sink.addresses[1]), stage.path("log"), workload.options.users)
    at = program.start(stage, around)
    assert at.root is not None
    run_load(stage, at.address, LoadOptions(WARM_UP, recipients=workload.options.recipients))
    load = Load(stage, at.address, replace(workload.options, messages=0))
    load.go()
    time.sleep(1.0)
    text = look(stage, tool, family(at.root)[-1])  # of several processes one that serves
    load.stop()
    result = load.result()
    return f"{text}\n\n{result.messages / result.seconds:,.0f} messages/s meanwhile; errors: {result.errors}"


def _perf(stage: Stage, tool: str, pid: int) -> str:
    data = str(stage.path("perf.data"))
    _run(tool, "record", "-q", "-F", "997", "-p", str(pid), "-o", data, "--", "sleep", str(SECONDS))
    by_object = _run(tool, "report", "-i", data, "--stdio", "-q", "--sort", "dso", "--percent-limit", "1")
    by_symbol = _run(tool, "report", "-i", data, "--stdio", "-q", "--sort", "dso,symbol", "--percent-limit", "0.7")
    return "\n".join([*_lines(by_object), "", *_lines(by_symbol)[:SHOWN]])


def _lines(text: str) -> list[str]:
    return [line.rstrip(" -") for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _py_spy(stage: Stage, tool: str, pid: int) -> str:
    stacks = stage.path("stacks")
    words = ("--pid", str(pid), "--duration", str(SECONDS), "--rate", "500", "--format", "raw", "--output", str(stacks))
    said = _run(tool, "record", *words)
    return shares(stacks.read_text("utf-8").splitlines()) if stacks.exists() else said


def shares(stacks: Iterable[str]) -> str:
    """Lines `outer;...;inner COUNT` -> a table: share of the samples in a function itself, and in all that it calls."""
    own, whole = Counter[str](), Counter[str]()
    for line in stacks:
        frames, _, count = line.rpartition(" ")
        names = [frame.rpartition(":")[0] + ")" if frame.rpartition(":")[1] else frame for frame in frames.split(";")]
        names = [name or "(no Python function)" for name in names]
        own[names[-1]] += int(count)
        for name in set(names):
            whole[name] += int(count)
    total = own.total() or 1
    rows = [f"{100 * own[name] / total:5.1f} %  {100 * count / total:5.1f} %  {name}"
            for name, count in whole.most_common() if own[name] / total >= 0.005]  # fmt: skip
    rows.sort(reverse=True)
    return "\n".join(["   self     total  function", *rows[:SHOWN]])


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout if done.returncode == 0 else f"{command[0]}: {done.stderr.strip()[-500:]}"
