# SPDX-License-Identifier: GPL-3.0-or-later
"""The words of a report, for whichever form it takes: times, shares, what has become of the users.

Values in, plain text out; escaping is for those who know where the text goes.
"""

import time
from collections.abc import Sequence

from lmtp_proxy.ctl.migrate.report import Report, UserReport
from lmtp_proxy.ctl.migrate.states import DONE, FAILED, NEEDS_ATTENTION, ON_OLD
from lmtp_proxy.text import count, zoned_time

STATE_WORDS = {DONE: "done", FAILED: "failed", NEEDS_ATTENTION: "needs attention", ON_OLD: "not begun"}
STEP_WORDS = {"final_sync": "final sync", "restore": "back to the old store"}


def state_word(state: str) -> str:
    return STATE_WORDS.get(state, state.replace("_", " "))


def step_word(step: str) -> str:
    return STEP_WORDS.get(step, step)


def moment(seconds: float | None) -> str:
    """Local time with its distance from UTC, as `zoned_time` has it; `-` for none."""
    return "-" if seconds is None else zoned_time(seconds)


def clock(seconds: float | None, near: float | None = None) -> str:
    """The time of day alone where date and zone are those of `near`, which stands beside it; or else as `moment`."""
    if seconds is None:
        return "-"
    here, there = time.localtime(seconds), time.localtime(seconds if near is None else near)
    same = near is not None and (*there[:3], there.tm_gmtoff) == (*here[:3], here.tm_gmtoff)
    return time.strftime("%H:%M:%S", here) if same else zoned_time(seconds)


def route(report: Report) -> str:
    """`old -> new`, of the last run."""
    return f"{report.runs[-1].old} -> {report.runs[-1].new}" if report.runs else "no run yet"


def verdict(report: Report) -> str:
    """How it stands, in one or two sentences."""
    if not report.users:
        return "No user has been taken up yet."
    new, old = (report.runs[-1].new, report.runs[-1].old) if report.runs else ("new", "old")
    done, failed, attention = (len(report.in_state(state)) for state in (DONE, FAILED, NEEDS_ATTENTION))
    total = len(report.users)
    if done == total:
        return f"{'All ' if total > 1 else ''}{count(total, 'user')} moved to {new}."
    parts = [f"{done:,} of {count(total, 'user')} moved to {new}."]
    if failed:
        parts.append(f"{failed:,} stayed on {old}, as before.")
    if attention:
        parts.append(f"{attention:,} {'needs' if attention == 1 else 'need'} attention.")
    if rest := len(report.under_way):
        parts.append(
            f"{rest:,} under way{'' if report.running else ', with no run at work: run the same command again'}."
        )
    if rest := len(report.in_state(ON_OLD)):
        parts.append(f"{rest:,} not begun.")
    return " ".join(parts)


def mail_words(report: Report) -> str:
    """What became of the mail that came while users were parked."""
    deferred, requeued, uncertain = (
        sum(len(getattr(user, name)) for user in report.users) for name in ("deferred", "requeued", "uncertain")
    )
    of = count(sum(bool(user.deferred) for user in report.users), "user")
    words = f"{deferred:,} deferred for {of}, {requeued:,} requeued" if deferred else "none was deferred"
    if unnamed := sum(user.unnamed for user in report.users):
        of = count(sum(bool(user.unnamed) for user in report.users), "user")
        more = f"{count(unnamed, 'deferral')} without a queue id, for {of}: look into the queue"
        words = f"{words}, and {more}" if deferred else more
    return f"{words}; {count(uncertain, 'uncertain delivery', 'uncertain deliveries')}"


def receipt_words(user: UserReport) -> list[str]:
    """The receipt of one user, in the order in which it happened."""
    words = [
        f"last on old {clock(user.last_on_old, user.since)}" if user.last_on_old else "no delivery to old on record"
    ]
    if user.parked_from is not None:
        until = clock(user.parked_until, user.parked_from) if user.parked_until else "now"
        words.append(f"parked {clock(user.parked_from, user.since)} to {until}")
    if user.deferred:
        words.append(f"{len(user.deferred):,} deferred, {len(user.requeued):,} requeued")
    if user.unnamed:
        words.append(f"{count(user.unnamed, 'deferral')} of mail whose queue id is unknown")
    if user.uncertain:
        words.append(f"{len(user.uncertain):,} uncertain")
    if user.state == DONE:
        new = user.first_on_new
        none = f"no mail on new by {clock(user.since, user.since)}, the end of the move"
        words.append(f"first on new {clock(new, user.since)}" if new else none)
    return words


def edges(value: float) -> str:
    """A limit on an axis, exactly: 50 ms, 2 s, 1 min 40 s."""
    if value < 60:
        return f"{value:g} s" if value >= 1 else f"{value * 1000:g} ms"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def run_words(report: Report) -> Sequence[tuple[str, str]]:
    """Each run as (from when to when, how it ended)."""
    rows = []
    for run in report.runs:
        end = "" if run.ended is None else f" to {clock(run.ended, run.began)}"
        died = "is at work" if report.running and run is report.runs[-1] else "died"
        rows.append((f"{moment(run.began)}{end}", run.result or died))
    return rows
