# SPDX-License-Identifier: GPL-3.0-or-later
"""Workload G: what `lmtp-proxyctl migrate` itself adds to the time for which a user is offline.

Users are moved from one backend to the other by commands that do nothing. The journal of the run has when each step
began and ended; what is left of the time from the begin of `block` to the end of `unblock` without the commands is the
proxy's and lmtp-proxyctl's own: the final edit, reload and drain, and what lies between two steps.
"""

import sqlite3
import subprocess
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from bench.peers import Surroundings
from bench.processes import BenchError, Stage
from bench.proxy import LmtpProxy
from bench.tools import Sink

USERS = 16
JOBS = 4
PATIENCE = 120.0  # seconds for one run
_COMMANDS = ("block", "final_sync", "verify", "redirect", "unblock")


@dataclass(frozen=True, slots=True)
class NightRun:
    """One run. own_ms: the median over its users. error: why it does not count, "": it does."""

    program: str
    round: int
    own_ms: float | None = None
    error: str = ""


def nights(programs: Sequence[LmtpProxy], rounds: int, say: Callable[[NightRun], None]) -> list[NightRun]:
    """So many runs that count for each program, in turn, the order reversed each round; number 0 is to be dropped."""
    found: list[NightRun] = []
    order = list(programs)
    for number in range(rounds + 1):
        for program in order:
            run = NightRun(program.name, number)
            try:
                with Stage() as stage:
                    run = replace(run, own_ms=_night(stage, program))
            except BenchError as error:
                run = replace(run, error=str(error))
            found.append(run)
            say(run)
        order.reverse()
    return found


def _night(stage: Stage, program: LmtpProxy) -> float:
    sink = Sink(stage, ["127.0.0.1:0", "127.0.0.1:0"])
    Sink(stage, [f"log:{stage.path('log')}"])
    around = Surroundings((sink.addresses[0], sink.addresses[1]), stage.path("log"), 2 * USERS)
    replace(program, receipts=True).start(stage, around)
    journal = stage.path("migrate.db")
    hooks = "".join(f'{name}: ["/bin/true", "{{user}}"]\n' for name in ("sync", *_COMMANDS))
    plan = stage.write("plan.yml", f"from: a\nto: b\npark: reject\nrequeue: no\njournal: {journal}\n{hooks}")
    options = ("migrate", str(plan), "--all-on", "a", "--jobs", str(JOBS))
    command = [program.python, str(program.program.with_name("lmtp-proxyctl")), "-c", str(stage.path("lmtp-proxy.yml"))]
    try:
        done = subprocess.run(
            [*command, *options], capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=stage.directory
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"lmtp-proxyctl migrate did not end in {PATIENCE:g} s") from error
    if done.returncode:
        said = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise BenchError(f"lmtp-proxyctl migrate ended with status {done.returncode}: {said}")
    return own_ms(journal)


def own_ms(journal: Path) -> float:
    """The median over the users of a journal, in milliseconds. BenchError when not all of them were moved."""
    with closing(sqlite3.connect(journal)) as db:
        rows = db.execute("SELECT user, step, began, ended FROM steps ORDER BY id").fetchall()
    steps: dict[str, list[tuple[str, float, float]]] = {}
    for user, *step in rows:
        steps.setdefault(user, []).append((step[0], step[1], step[2]))
    own = []
    for mine in steps.values():
        names = [name for name, _, _ in mine]
        if "block" not in names or "unblock" not in names:
            continue
        offline = mine[names.index("block") :]
        commands = sum(ended - began for name, began, ended in offline if name in _COMMANDS)
        own.append(offline[-1][2] - offline[0][1] - commands)
    if len(own) != USERS:
        raise BenchError(f"{USERS} users were to be migrated, {len(own)} were")
    return 1000 * median(own)
