# SPDX-License-Identifier: GPL-3.0-or-later
"""A report as one HTML page that needs nothing but itself: no script, no font, no picture from anywhere.

Everything that comes from the journal is foreign text (user names, the output of hooks): it goes through `_text` or
`_lines`, always. Values in, text out.
"""

from html import escape

from lmtp_proxy import __version__
from lmtp_proxy.ctl.migrate.journal import Step
from lmtp_proxy.ctl.migrate.report import Distribution, Offline, Report, UserReport
from lmtp_proxy.ctl.migrate.report_style import STYLE
from lmtp_proxy.ctl.migrate.report_svg import histogram
from lmtp_proxy.ctl.migrate.report_words import (
    clock,
    mail_words,
    moment,
    percent,
    receipt_words,
    route,
    run_words,
    seconds_of,
    state_word,
    step_word,
    verdict,
)
from lmtp_proxy.ctl.migrate.states import DONE, FAILED, NEEDS_ATTENTION
from lmtp_proxy.ctl.output import count, safe, span

_SLOWEST = 20
_RUNS = 3
_AXIS = '<p class="axis">Users by how long they were offline; from bar to bar it is 26 % longer.</p>\n'
_BADGES = {DONE: "good", FAILED: "warn", NEEDS_ATTENTION: "bad"}


def report_page(report: Report, now: float) -> str:
    """The whole page. now: when it is made."""
    numbers = {user.user: number for number, user in enumerate(report.users)}
    parts = [_head(report)]
    if left := _left_to_do(report):
        parts.append(_attention(left, numbers))
    parts.append(_downtime(report))
    if report.slowest:
        parts.append(_slowest(report, numbers))
    if troubled := _troubled(report):
        parts.append(_failures(troubled, numbers))
    if report.users:
        parts.append(_receipts(report))
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Migration {_text(route(report))}: {_text(verdict(report))}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n<footer>Made {_text(moment(now))} by lmtp-proxyctl migrate report, lmtp-proxy {__version__},"
        " from the journal of the migration.</footer>\n</body>\n</html>\n"
    )


def _text(text: object) -> str:
    """One line of foreign text."""
    return escape(safe(str(text)))


def _lines(text: str) -> str:
    """Foreign text of several lines."""
    return "\n".join(_text(line.expandtabs()) for line in text.splitlines())


def _title(name: str, title: str, more: str) -> str:
    return f'<h2 id="{name}">{title} <small>{_text(more)}</small></h2>\n'


def _link(user: UserReport, numbers: dict[str, int]) -> str:
    return f'<a class="user" href="#u{numbers[user.user]}">{_text(user.user)}</a>'


def _who(user: UserReport, numbers: dict[str, int]) -> str:
    return f"{_link(user, numbers)} {_badge(user)}{_offline_now(user)}"


def _badge(user: UserReport) -> str:
    return f'<span class="badge {_BADGES.get(user.state, "warn")}">{_text(state_word(user.state))}</span>'


# --- the sections ----------------------------------------------------------------------------------------------------


def _head(report: Report) -> str:
    stuck = report.in_state(NEEDS_ATTENTION) or (report.under_way and not report.running)
    look = " bad" if stuck else " warn" if report.in_state(FAILED) else ""
    facts = []
    if report.runs:
        last = report.runs[-1]
        facts += [("plan", f"<code>{_text(last.plan_path)}</code>"), ("parked on", _text(last.park))]
    facts.append(("runs", _runs(report)))
    facts.append(("mail while parked", _text(mail_words(report))))
    rows = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts)
    links = [("left", "Left to do")] if _left_to_do(report) else []
    links += [("downtime", "Downtime")]
    links += [("slowest", "Slowest users")] if report.slowest else []
    links += [("failures", "Failures")] if _troubled(report) else []
    links += [("receipts", "Receipts")] if report.users else []
    nav = "".join(f'<a href="#{name}">{title}</a>' for name, title in links)
    title = (
        f"Migration from {_text(report.runs[-1].old)} to {_text(report.runs[-1].new)}" if report.runs else "Migration"
    )
    return (
        f'<header>\n<h1>{title}</h1>\n<div class="verdict{look}">{_text(verdict(report))}</div>\n'
        f'<dl class="facts">{rows}</dl>\n<nav>{nav}</nav>\n</header>'
    )


_DIED = "A run died at this point: run the same command again."
_UNCERTAIN = (
    "Uncertain deliveries: a store was given the whole message and did not answer. Postfix tries it again, so it may be"
    " there twice:"
)


def _runs(report: Report) -> str:
    lines = [f'{_text(when)} <span class="muted">{_text(how)}</span>' for when, how in run_words(report)]
    if len(lines) > _RUNS + 1:
        before = "<br>".join(lines[:-_RUNS])
        lines[:-_RUNS] = [f"<details><summary>{len(lines) - _RUNS:,} before</summary>{before}</details>"]
    return "<br>".join(lines).replace("</details><br>", "</details>") or "none yet"


def _left_to_do(report: Report) -> list[tuple[UserReport, str]]:
    """Who waits for a human, and what for."""
    left = [(user, user.error or "") for user in report.in_state(NEEDS_ATTENTION)]
    if not report.running:
        left += [(user, user.error or _DIED) for user in report.under_way]
    left += [(user, f"{_UNCERTAIN} {'; '.join(user.uncertain)}") for user in report.users if user.uncertain]
    return left


def _attention(left: list[tuple[UserReport, str]], numbers: dict[str, int]) -> str:
    items = "".join(
        f'<div class="trouble{"" if user.state == DONE else " bad"}"><p>{_who(user, numbers)}</p>'
        f"<p>{_text(what)}</p></div>\n"
        for user, what in left
    )
    return f"<section>\n{_title('left', 'Left to do', count(len(left), 'case'))}{items}</section>"


def _offline_now(user: UserReport) -> str:
    if not user.is_offline or user.offline is None:
        return ""
    return f' <span class="badge bad">offline since {_text(moment(user.offline.began))}</span>'


def _downtime(report: Report) -> str:
    opening = (
        '<section>\n<h2 id="downtime">Downtime <small>from the begin of block to the end of unblock</small></h2>\n'
    )
    downtime = report.downtime
    if downtime is None:
        return f"{opening}<p>Nobody has been moved yet.</p>\n</section>"
    values = (
        ("users", f"{downtime.count:,}"),
        ("median", span(downtime.median)),
        ("90 % within", span(downtime.p90)),
        ("99 % within", span(downtime.p99)),
        ("longest", span(downtime.most)),
    )
    figures = "".join(f"<div><dt>{name}</dt><dd>{_text(value)}</dd></div>" for name, value in values)
    chart = f"{histogram(downtime)}\n{_AXIS}"
    return f'{opening}<dl class="figures">{figures}</dl>\n{chart}{_shares(report, downtime)}</section>'


def _shares(report: Report, downtime: Distribution) -> str:
    total = downtime.total
    taken: tuple[tuple[str, str, float, str], ...] = (
        ("sync", "final sync", report.final_sync, ""),
        ("hooks", "block, verify, redirect, unblock", report.hooks, ""),
        ("ours", "lmtp-proxy and the runner", report.ours, f", median {span(report.ours_median or 0.0)} a user"),
    )
    if report.alone:
        taken = (*taken, ("alone", "no run at work, as one had died", report.alone, ""))
    bar = "".join(
        f'<i class="{name}" style="width:{100 * part / (total or 1):.2f}%"></i>' for name, _, part, _ in taken
    )
    keys = "".join(
        f'<li><i class="key {name}"></i>{title}: {percent(part, total)}{_text(more)}</li>'
        for name, title, part, more in taken
    )
    return (
        "<p>Who took that time, of all users together:</p>\n"
        f'<div class="share">{bar}</div>\n<ul class="keys">{keys}</ul>\n'
    )


def _slowest(report: Report, numbers: dict[str, int]) -> str:
    users = report.slowest[:_SLOWEST]
    most = users[0].downtime or 1.0
    rows = "".join(_slow_row(user, user.offline, most, numbers) for user in users if user.offline)
    heads = "".join(f'<th class="number">{name}</th>' for name in ("offline", "final sync", "hooks", "the rest"))
    title = _title("slowest", "Slowest users", f"{len(users)} of {len(report.slowest):,}")
    return (
        f'<section>\n{title}<div class="scroll"><table class="narrow">'
        f"<thead><tr><th>user</th><th></th>{heads}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n</section>"
    )


def _slow_row(user: UserReport, offline: Offline, most: float, numbers: dict[str, int]) -> str:
    parts = [("sync", offline.final_sync), ("hooks", offline.hooks), ("ours", offline.ours or 0.0)]
    parts.append(("alone", offline.alone))
    bar = "".join(f'<i class="{name}" style="width:{100 * part / most:.2f}%"></i>' for name, part in parts)
    named = zip(("offline", "sync", "hooks", "rest"), (offline.seconds, *(part for _, part in parts[:3])), strict=True)
    cells = "".join(
        f'<td class="number" data-name="{name}">{_text(seconds_of(value))}</td>'
        for name, value in named
    )
    return (
        f'<tr><td class="wide">{_link(user, numbers)}</td>'
        f'<td class="bars wide"><div class="share">{bar}</div></td>{cells}</tr>\n'
    )


def _troubled(report: Report) -> list[UserReport]:
    """Who needs attention first, then who failed, then those who failed once and got there in the end."""
    later = [user for user in report.in_state(DONE) if user.failures]
    return report.in_state(NEEDS_ATTENTION) + report.in_state(FAILED) + later


def _failures(users: list[UserReport], numbers: dict[str, int]) -> str:
    items = []
    for user in users:
        outputs = "".join(map(_output, user.failures))
        error = f"<p>{_text(user.error)}</p>" if user.error else ""
        look = " bad" if user.state == NEEDS_ATTENTION else ""
        items.append(
            f'<article class="trouble{look}"><p>{_who(user, numbers)}</p>{error}'
            f"{outputs}</article>\n"
        )
    return f"<section>\n{_title('failures', 'Failures', count(len(users), 'user'))}{''.join(items)}</section>"


def _output(step: Step) -> str:
    taken = f" after {span(step.ended - step.began)}" if step.ended is not None else ""
    again = f", attempt {step.attempt}" if step.attempt > 1 else ""
    head = f"{step_word(step.step)}{again}: {step.outcome}{taken}, {moment(step.began)}"
    text = _lines(step.output or "")
    return f'<p class="step">{_text(head)}</p>' + (
        f"<pre>{text}</pre>" if text else "<p class=muted>It said nothing.</p>"
    )


# --- receipts --------------------------------------------------------------------------------------------------------


def _receipts(report: Report) -> str:
    said = f"{count(len(report.users), 'user')}; each opens to its steps"
    users = "".join(_receipt(number, user) for number, user in enumerate(report.users))
    return (
        f"<section>\n{_title('receipts', 'Receipts', said)}"
        f'<div class="users">\n{users}</div>\n</section>'
    )


def _receipt(number: int, user: UserReport) -> str:
    receipt = "".join(f"<span>{_text(words)}</span>" for words in receipt_words(user))
    time = "offline" if user.is_offline else seconds_of(user.downtime)
    return (
        f'<details id="u{number}"><summary><span class="user">{_text(user.user)}</span>{_badge(user)}'
        f'<span class="time">{_text(time)}</span><span class="receipt">{receipt}</span></summary>\n'
        f'<div class="body">{_body(user)}</div></details>\n'
    )


def _body(user: UserReport) -> str:
    parts = [f"<p>{_text(user.error)}</p>"] if user.error else []
    named = (("deferred", user.deferred), ("requeued", user.requeued), ("uncertain", user.uncertain))
    parts += [
        f'<p class="ids"><span class="muted">{name}:</span> <code>{_text(" ".join(ids))}</code></p>'
        for name, ids in named
        if ids
    ]
    rows = "".join(
        f"<tr><td>{_text(step_word(step.step))}{f' ({step.attempt})' if step.attempt > 1 else ''}</td>"
        f'<td class="number">{_text(clock(step.began, user.since))}</td>'
        f'<td class="number">{_text(seconds_of(None if step.ended is None else step.ended - step.began))}</td>'
        f"<td>{_text(step.outcome or 'no end on record')}</td></tr>"
        for step in user.steps
    )
    head = '<tr><th>step</th><th class="number">at</th><th class="number">took</th><th>outcome</th></tr>'
    return "".join(parts) + f'<div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
