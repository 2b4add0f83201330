# SPDX-License-Identifier: GPL-3.0-or-later
"""Where everyone is, from the journal alone: as lines for a terminal and as a JSON document."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmtp_proxy.ctl import output as show
from lmtp_proxy.ctl.migrate.journal import Journal, Run, UserRow
from lmtp_proxy.ctl.migrate.orders import RunOrder, RunOrders
from lmtp_proxy.ctl.migrate.states import FAILED, IN_HAND, NEEDS_ATTENTION, STATES
from lmtp_proxy.text import count, natural, safe, span, zoned_time

_SHOWN = 50  # of each kind
_OUTPUT = 2000  # characters of a command's output


def status_of(journal: Journal, users: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """users: those that are shown with all that was done for them; none: everybody, in short."""
    if users:
        found = {user: _one(journal, user) for user in users}
        return {"users": {user: each[0] for user, each in found.items()}}, [
            line for _, lines in found.values() for line in lines
        ]
    rows, runs = journal.users(), journal.runs()
    counts = Counter(row.state for row in rows)
    document = {
        "journal": journal.path,
        "runs": [{**{key: value for key, value in asdict(run).items() if key != "plan"}} for run in runs],
        "under_way": bool(runs) and under_way(runs[-1]),
        "paused": asdict(paused) if (paused := RunOrders(journal.path).paused()) is not None else None,
        "states": {state: counts[state] for state in STATES if counts[state]},
        "users": {row.user: asdict(row) for row in rows},
    }
    return document, _everybody(rows, runs, counts, paused)


def under_way(run: Run) -> bool:
    """Whether its process is there still."""
    try:
        return run.result is None and b"migrate" in Path(f"/proc/{run.pid}/cmdline").read_bytes()
    except OSError:
        return False


def _everybody(
    rows: Sequence[UserRow], runs: Sequence[Run], counts: Mapping[str, int], paused: RunOrder | None
) -> list[str]:
    lines = []
    going = bool(runs) and under_way(runs[-1])
    for run in runs[-1:]:
        way = f"{run.old} -> {run.park} -> {run.new}"
        how = run.result or (f"under way, pid {run.pid}" if going else "died")
        lines += show.wrapped(f"run {run.id} of {run.plan_path} ({way}), begun {zoned_time(run.began)}: {how}")
    if paused is not None:
        lines += show.wrapped(f"paused {paused.text}: no user is begun until `lmtp-proxyctl migrate resume`")
    states = ", ".join(f"{counts[state]:,} {state}" for state in STATES if counts[state])
    lines += show.wrapped(f"{count(len(rows), 'user')}: {states}" if rows else "no users yet")
    whose = "in hand" if going else "in the hands of a run that died; the next run takes them first"
    for title, of in ((whose, IN_HAND), ("needs attention", {NEEDS_ATTENTION}), ("failed, and as before", {FAILED})):
        found = sorted((row for row in rows if row.state in of), key=lambda row: natural(row.user))
        if found:
            lines += ["", *show.wrapped(f"{title}:")]
        for row in found[:_SHOWN]:
            since = f"{row.state} for {span(max(time.time() - row.since, 0))}" if row.state in IN_HAND else ""
            text = ": ".join(filter(None, [since, row.error or ""]))
            lines += show.wrapped(f"  {row.user}: {text}", "      ")
        if len(found) > _SHOWN:
            lines.append(f"  and {len(found) - _SHOWN:,} more (--json has them all)")
    return lines


def _one(journal: Journal, user: str) -> tuple[dict[str, Any], list[str]]:
    row = journal.user(user)
    if row is None:
        return {"state": None}, show.wrapped(f"{user}: the journal has never heard of this user")
    transitions, steps = journal.transitions(user), journal.steps(user)
    document = {
        **asdict(row),
        "transitions": [asdict(each) for each in transitions],
        "steps": [asdict(each) for each in steps],
        "receipt": journal.receipt(user),
    }
    lines = show.wrapped(f"{user}: {row.state} since {zoned_time(row.since)}{f': {row.error}' if row.error else ''}")
    events: list[tuple[float, int, list[str]]] = []
    for transition in transitions:
        note = f" ({transition.note})" if transition.note else ""
        text = f"  {zoned_time(transition.at)}  {transition.before} -> {transition.after}{note}"
        events.append((transition.at, 0, show.wrapped(text, "      ")))
    for step in steps:
        took = "" if step.ended is None else f" after {span(max(step.ended - step.began, 0))}"
        again = f" (run {step.attempt})" if step.attempt > 1 else ""
        text = f"  {zoned_time(step.began)}    {step.step}{again}: {step.outcome or 'did not end'}{took}"
        said = [f"        {safe(line)}" for line in (step.output or "").strip()[-_OUTPUT:].splitlines()]
        events.append((step.began, 1, [*show.wrapped(text, "      "), *said]))
    return document, [*lines, *(line for *_, group in sorted(events, key=lambda event: event[:2]) for line in group)]
