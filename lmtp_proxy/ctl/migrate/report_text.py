# SPDX-License-Identifier: GPL-3.0-or-later
"""A report as lines for a terminal, and as a document for programs. Values in, text out."""

from collections.abc import Sequence

from lmtp_proxy.ctl.migrate.journal import Step
from lmtp_proxy.ctl.migrate.report import Distribution, Offline, Report, UserReport
from lmtp_proxy.ctl.migrate.report_words import (
    edges,
    mail_words,
    moment,
    receipt_words,
    route,
    run_words,
    state_word,
    step_word,
    verdict,
)
from lmtp_proxy.ctl.migrate.states import FAILED, NEEDS_ATTENTION
from lmtp_proxy.ctl.output import labelled, table, wrapped
from lmtp_proxy.text import count, safe, share, span

_BAR = 40  # columns
_RUNS = 3
_SLOWEST = 10
_FAILURES = 20
_ALIKE = 10
_NO_END = "no end on record"


def report_lines(report: Report) -> list[str]:
    """The summary: what to know in the morning, and whom to look after."""
    rows = [("migration", route(report))]
    if report.runs:
        last = report.runs[-1]
        rows[0] = ("migration", f"{route(report)}, parked on {last.park}, by {last.plan_path}")
    for number, (when, how) in enumerate(_last(run_words(report))):
        rows.append(("" if number else "runs", f"{when} ({how})" if how else when))
    states = ", ".join(f"{number:,} {state_word(state)}" for state, number in report.counts.items())
    rows.append(("users", f"{len(report.users):,}{f': {states}' if states else ''}"))
    if report.downtime:
        rows += _offline_rows(report, report.downtime)
    rows.append(("mail", mail_words(report)))
    lines = [*wrapped(verdict(report)), "", *labelled(rows)]
    if report.downtime:
        lines += ["", "offline, of those who are done:", *_histogram(report.downtime)]
        lines += ["", "the longest:", *_table_of(report.slowest[:_SLOWEST])]
    for state, one, many in (
        (NEEDS_ATTENTION, "needs attention", "need attention"),
        (FAILED, "failed, and is where they were", "failed, and are where they were"),
    ):
        found = report.in_state(state)
        lines += _trouble(found, one if len(found) == 1 else many)
    if report.under_way and not report.running:
        lines += _trouble(report.under_way, "under way with no run at work; run the same command again")
    return lines


def _last(runs: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    return runs if len(runs) <= _RUNS else [(f"{len(runs) - _RUNS:,} before", ""), *runs[-_RUNS:]]


def _offline_rows(report: Report, downtime: Distribution) -> list[tuple[str, str]]:
    total = downtime.total
    return [
        (
            "offline",
            f"median {span(downtime.median)}, 90 % within {span(downtime.p90)}, 99 % within {span(downtime.p99)},"
            f" longest {span(downtime.most)}",
        ),
        (
            "",
            f"final sync {share(report.final_sync, total)}, other hooks {share(report.hooks, total)},"
            + (f" no run at work {share(report.alone, total)}," if report.alone else "")
            + f" lmtp-proxy {share(report.ours, total)} (median {span(report.ours_median)})",
        ),
    ]


def _histogram(downtime: Distribution) -> list[str]:
    most = max(users for _, _, users in downtime.bins)
    names = [edges(begin) for begin, _, _ in downtime.bins]
    column = max(map(len, names)) + 2
    return [
        f"{name:>{column}}  {'#' * -(-users * _BAR // most)}{' ' if users else ''}{users:,}".rstrip()
        for name, (_, _, users) in zip(names, downtime.bins, strict=True)
    ]


def _table_of(users: list[UserReport]) -> list[str]:
    rows = []
    for user in users:
        offline = user.offline
        assert offline is not None
        rows.append([user.user, *map(span, (offline.seconds, offline.final_sync, offline.hooks, offline.ours))])
    return table(["user", ">offline", ">final sync", ">hooks", ">lmtp-proxy"], rows)


def _trouble(users: list[UserReport], title: str) -> list[str]:
    if not users:
        return []
    lines = ["", f"{count(len(users), 'user')} {title}:"]
    groups: dict[str, list[UserReport]] = {}
    for user in users:
        why = user.error or state_word(user.state)
        groups.setdefault(why.replace(user.user, "USER"), []).append(user)
    for alike in list(groups.values())[:_FAILURES]:
        first, more = alike[0], [user.user for user in alike[1 : 1 + _ALIKE]]
        lines += wrapped(f"{first.user}: {first.error or state_word(first.state)}")
        if more:
            rest = len(alike) - 1 - len(more)
            names = ", ".join(more) + (f" and {rest:,} more" if rest else "")
            lines += wrapped(f"    the same: {names}", " " * 8)
    shown = sum(len(alike) for alike in list(groups.values())[:_FAILURES])
    if len(users) > shown:
        lines.append(f"and {len(users) - shown:,} more: --json or --html FILE has all of them")
    return lines


def receipt_lines(user: UserReport) -> list[str]:
    """All about one user."""
    lines = wrapped(f"{user.user}: {state_word(user.state)} since {moment(user.since)}")
    if user.error:
        lines += wrapped(f"    {user.error}", "    ")
    lines += [f"  {word}" for word in receipt_words(user)]
    for name in ("deferred", "requeued", "uncertain"):
        if ids := getattr(user, name):
            lines += wrapped(f"  {name}: {' '.join(ids)}")
    if user.offline is not None:
        lines.append(f"  offline {span(user.downtime)}" if user.downtime is not None else "  offline NOW")
    lines += ["", *table(["step", ">run", "at", ">took", "outcome"], [_step_row(step) for step in user.steps])]
    for step in user.failures:
        lines += ["", safe(f"{step_word(step.step)}: {step.outcome or _NO_END}")]
        lines += map(safe, (step.output or "").splitlines())
    return lines


def _step_row(step: Step) -> list[str]:
    taken = span(None if step.ended is None else step.ended - step.began)
    name = step_word(step.step) + (f" ({step.attempt})" if step.attempt > 1 else "")
    return [name, str(step.run), moment(step.began), taken, step.outcome or _NO_END]


# --- for programs ----------------------------------------------------------------------------------------------------


def report_document(report: Report, users: Sequence[str] = ()) -> dict[str, object]:
    """Times in seconds since the epoch, durations in seconds. users: who are in it, by default all."""
    return {
        "verdict": verdict(report),
        "running": report.running,
        "runs": [
            {
                name: getattr(run, name)
                for name in ("id", "began", "ended", "pid", "plan_path", "old", "new", "park", "result")
            }
            for run in report.runs
        ],
        "counts": dict(report.counts),
        "offline": None if report.downtime is None else _distribution(report, report.downtime),
        "users": {user.user: _user_document(user) for user in report.users if not users or user.user in users},
    }


def _distribution(report: Report, downtime: Distribution) -> dict[str, object]:
    shown = {name: round(getattr(downtime, name), 3) for name in ("median", "p90", "p99", "most", "total")}
    return {
        "users": downtime.count,
        **shown,
        "final_sync": round(report.final_sync, 3),
        "hooks": round(report.hooks, 3),
        "ours": round(report.ours, 3),
        "no_run": round(report.alone, 3),
        "ours_median": None if report.ours_median is None else round(report.ours_median, 3),
        "bins": [{"from": begin, "below": end, "users": users} for begin, end, users in downtime.bins],
    }


def _user_document(user: UserReport) -> dict[str, object]:
    return {
        **{name: getattr(user, name) for name in ("state", "since", "error", "parked_from", "parked_until")},
        **{name: getattr(user, name) for name in ("last_on_old", "first_on_new")},
        **{name: list(getattr(user, name)) for name in ("deferred", "requeued", "uncertain")},
        "unnamed": user.unnamed,
        "outages": [_outage(offline) for offline in user.outages],
        "steps": [
            {name: getattr(step, name) for name in ("step", "run", "attempt", "began", "ended", "outcome", "output")}
            for step in user.steps
        ],
    }


def _outage(offline: Offline) -> dict[str, object]:
    seconds, ours = offline.seconds, offline.ours
    return {
        "from": offline.began,
        "until": offline.until,
        "seconds": None if seconds is None else round(seconds, 3),
        "final_sync": round(offline.final_sync, 3),
        "hooks": round(offline.hooks, 3),
        "no_run": round(offline.alone, 3),
        "ours": None if ours is None else round(ours, 3),
    }
