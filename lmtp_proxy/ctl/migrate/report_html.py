# SPDX-License-Identifier: GPL-3.0-or-later
"""A report as one HTML page that needs nothing but itself: no script, no font, no picture from anywhere.

Everything that comes from the journal is foreign text (user names, the output of hooks): it goes through `_text` or
`_lines`, always. Values in, text out. The page is light and dark, narrow and wide, and can be printed; in its picture,
the distribution of downtimes as SVG, all that lies across is in per cent, so that it is as wide as the page and its
text stays as large as it is.
"""

import math
from html import escape

from lmtp_proxy import __version__
from lmtp_proxy.ctl.migrate.journal import Step
from lmtp_proxy.ctl.migrate.report import Distribution, Offline, Report, UserReport
from lmtp_proxy.ctl.migrate.report_words import (
    clock,
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
from lmtp_proxy.ctl.migrate.states import DONE, FAILED, NEEDS_ATTENTION
from lmtp_proxy.text import count, safe, share, span

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --raised: #f6f7f9; --line: #d9dde3; --text: #1a1f26; --muted: #5a6573;
  --sync: #2b6cb0; --hooks: #9a6fc4; --ours: #d0781c;
  --good: #1f7a46; --warn: #96590a; --bad: #b3261e; --bad-page: #fdf1f0; --warn-page: #fdf6ea; --good-page: #eef8f1;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171c; --raised: #1c2128; --line: #343b46; --text: #e4e8ee; --muted: #98a3b1;
    --sync: #6aa5e6; --hooks: #bd9be6; --ours: #eb9f4d;
    --good: #62c98c; --warn: #e6ae5c; --bad: #f28b82; --bad-page: #2b1c1d; --warn-page: #2a2318; --good-page: #18261e;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 68rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", "Noto Sans", sans-serif;
}
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; text-wrap: balance; }
h2 { font-size: 1.2rem; margin: 3rem 0 .75rem; padding-top: .25rem; }
h2 small { font-size: .9rem; font-weight: normal; color: var(--muted); margin-left: .4em; }
p { margin: .5rem 0; max-width: 48rem; }
a { color: inherit; text-decoration-color: var(--muted); text-underline-offset: .15em; }
code, pre { font: .85rem/1.45 ui-monospace, "DejaVu Sans Mono", "Noto Sans Mono", Menlo, Consolas, monospace; }
.muted, .receipt, p.axis { color: var(--muted); }
.user { font-weight: 600; overflow-wrap: anywhere; }
nav { margin: 1rem 0 0; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; font-size: .95rem; }
.verdict { border-left: .3rem solid var(--good); background: var(--good-page); padding: .8rem 1rem;
  margin: 1.25rem 0; font-size: 1.1rem; }
.verdict.warn { border-color: var(--warn); background: var(--warn-page); }
.verdict.bad { border-color: var(--bad); background: var(--bad-page); }

.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: 1px; margin: 1rem 0;
  background: var(--line); border: 1px solid var(--line); border-radius: .5rem; overflow: hidden; }
.figures div { background: var(--page); padding: .7rem .9rem; }
.figures dt { color: var(--muted); font-size: .85rem; }
.figures dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.25rem; margin: 1rem 0; }
.facts dt { color: var(--muted); }
.facts dd { margin: 0; overflow-wrap: anywhere; }

svg.chart { display: block; width: 100%; overflow: visible; margin: .5rem 0 0; }
svg.chart text { fill: var(--muted); font-size: 12px; font-variant-numeric: tabular-nums; }
svg.chart .bar { fill: var(--sync); }
svg.chart .axis { stroke: var(--line); }
svg.chart .mark { stroke: var(--text); stroke-dasharray: 3 3; opacity: .7; }
p.axis { font-size: .85rem; margin: 0 0 1.25rem; }
svg.chart .name { fill: var(--text); }

.share { display: flex; height: 1.1rem; border-radius: .25rem; overflow: hidden; background: var(--line); }
.share i { display: block; height: 100%; }
.share .sync, .key.sync { background: var(--sync); }
.share .hooks, .key.hooks { background: var(--hooks); }
.share .ours, .key.ours { background: var(--ours); }
.share .alone, .key.alone { background: var(--bad); }
.keys { display: flex; flex-wrap: wrap; gap: .2rem 1.5rem; margin: .5rem 0; padding: 0; list-style: none;
  font-size: .92rem; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: .15em; margin-right: .45em; }

.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--muted); font-size: .85rem; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.bars { width: 34%; min-width: 7rem; padding-top: .6rem; }
td.bars .share { height: .7rem; background: none; }

.badge { display: inline-block; border-radius: 1em; padding: 0 .6em; font-size: .82rem; white-space: nowrap;
  border: 1px solid; }
.badge.good { color: var(--good); } .badge.warn { color: var(--warn); } .badge.bad { color: var(--bad); }
.trouble { border: 1px solid var(--line); border-left: .3rem solid var(--warn); border-radius: .35rem;
  padding: .7rem 1rem; margin: .75rem 0; }
.trouble.bad { border-left-color: var(--bad); }
.trouble p { overflow-wrap: anywhere; max-width: none; }
.trouble .step { margin: .75rem 0 .25rem; font-size: .92rem; color: var(--muted); }
pre { background: var(--raised); border-radius: .35rem; padding: .6rem .8rem; margin: .25rem 0 0;
  white-space: pre-wrap;
  overflow-wrap: anywhere; max-height: 24rem; overflow-y: auto; }

.users { border-top: 1px solid var(--line); }
.users details { border-bottom: 1px solid var(--line); content-visibility: auto; contain-intrinsic-size: auto 4rem; }
.users summary { padding: .5rem 0; cursor: pointer; display: grid; grid-template-columns: 1fr auto 6rem;
  gap: 0 1rem; align-items: baseline; }
.users summary::-webkit-details-marker { display: none; }
.users summary:hover .user { text-decoration: underline; text-decoration-color: var(--muted);
  text-underline-offset: .2em; }
.users summary .time { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.users .receipt { grid-column: 1 / -1; font-size: .88rem; font-variant-numeric: tabular-nums; }
.users .receipt span { white-space: nowrap; }
.users .receipt span + span::before { content: " \\00b7  "; }
.users .body { padding: .25rem 0 1rem 1rem; }
.users .body table { max-width: 40rem; }
.users .ids { overflow-wrap: anywhere; }
:target { outline: 2px solid var(--sync); outline-offset: .3rem; border-radius: .2rem; }
:focus-visible { outline: 2px solid var(--sync); outline-offset: .1rem; }
footer { margin-top: 3rem; color: var(--muted); font-size: .85rem; }

@media (max-width: 40rem) {
  body { padding: 1.25rem 1rem 3rem; }
  h1 { font-size: 1.4rem; }
  .facts { grid-template-columns: 1fr; gap: 0; }
  .facts dd { margin-bottom: .5rem; }
  .figures { grid-template-columns: 1fr 1fr; }
  .figures div:last-child:nth-child(odd) { grid-column: 1 / -1; }
  svg.chart .count { display: none; }
  .users summary { grid-template-columns: 1fr auto; }
  .users summary .user { grid-column: 1 / -1; }
  .users summary .badge { justify-self: start; }
  .users .receipt span { white-space: normal; }
  table.narrow thead { display: none; }
  table.narrow tr { display: grid; grid-template-columns: 1fr 1fr; padding: .4rem 0;
    border-bottom: 1px solid var(--line); }
  table.narrow td { border: 0; padding: 0; text-align: left; }
  table.narrow td.wide { grid-column: 1 / -1; width: auto; }
  table.narrow td.bars { padding: .2rem 0 .3rem; }
  table.narrow td[data-name]::before { content: attr(data-name) " "; color: var(--muted); }
}
@media print {
  :root { color-scheme: light; --page: #fff; --raised: #f3f3f3; --line: #bbb; --text: #000; --muted: #444;
    --sync: #2b6cb0; --hooks: #9a6fc4; --ours: #d0781c; --good: #1f7a46; --warn: #96590a; --bad: #b3261e;
    --bad-page: #fff; --warn-page: #fff; --good-page: #fff; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  nav { display: none; }
  h2 { break-after: avoid; margin-top: 1.5rem; }
  pre { max-height: none; overflow: visible; border: 1px solid var(--line); }
  tr, .trouble, .users details, .figures, svg.chart { break-inside: avoid; }
  td.bars { width: 20%; }
  .users details { content-visibility: visible; }
  .users summary { padding: .2rem 0; }
}
"""


_HEIGHT = 170  # of the highest bar
_TOP = 74  # three rows of names above the bars, and the number of the highest bar
_BOTTOM = 24


def histogram(downtime: Distribution) -> str:
    """Users by how long they were offline, on a logarithmic axis, with median, 90 % and 99 % marked."""
    first, last = downtime.bins[0][0], downtime.bins[-1][1]
    low, width = math.log10(first), math.log10(last) - math.log10(first)

    def across(seconds: float) -> float:
        return min(100.0, max(0.0, 100 * (math.log10(max(seconds, first)) - low) / width))

    most = max(users for _, _, users in downtime.bins)
    base = _TOP + _HEIGHT
    parts = []
    for begin, end, users in downtime.bins:
        if users:
            left, right, height = across(begin), across(end), max(2.0, _HEIGHT * users / most)
            name = f"{count(users, 'user')}: {edges(begin)} to {edges(end)}"
            parts.append(
                f'<rect class="bar" x="{left + 0.15:.2f}%" width="{right - left - 0.3:.2f}%" y="{base - height:.1f}"'
                f' height="{height:.1f}" rx="1.5"><title>{escape(name)}</title></rect>'
                f'<text class="count" x="{(left + right) / 2:.2f}%" y="{base - height - 4:.1f}" text-anchor="middle">'
                f"{users:,}</text>"
            )
    parts.append(f'<line class="axis" x1="0" x2="100%" y1="{base + 0.5}" y2="{base + 0.5}"/>')
    for tick in _ticks(first, last):
        x = across(tick)
        anchor = "start" if x < 4 else "end" if x > 96 else "middle"
        parts.append(f'<line class="axis" x1="{x:.2f}%" x2="{x:.2f}%" y1="{base}" y2="{base + 5}"/>')
        parts.append(f'<text x="{x:.2f}%" y="{base + 19}" text-anchor="{anchor}">{escape(edges(tick))}</text>')
    for row, (name, value) in enumerate((("99 %", downtime.p99), ("90 %", downtime.p90), ("median", downtime.median))):
        x, y = across(value), 14 + 18 * row
        side, shift = ("end", -6) if x > 60 else ("start", 6)
        parts.append(f'<line class="mark" x1="{x:.2f}%" x2="{x:.2f}%" y1="{y - 10}" y2="{base}"/>')
        parts.append(
            f'<text class="name" x="{x:.2f}%" dx="{shift}" y="{y}" text-anchor="{side}">{name}'
            f" {escape(span(value))}</text>"
        )
    said = f"{count(downtime.count, 'user')}: median {span(downtime.median)}, longest {span(downtime.most)}"
    return (
        f'<svg class="chart" height="{base + _BOTTOM}" role="img"'
        f' aria-label="Histogram of downtimes of {escape(said)}">'
        f"{''.join(parts)}</svg>"
    )


def _ticks(first: float, last: float) -> list[float]:
    """Round numbers from `first` to `last`: 1, 2 and 5 of each power of ten, or less of them if they were many."""
    powers = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
    decades = math.log10(last / first)
    digits = [1, 2, 3, 4, 5, 6, 8] if decades < 0.5 else [1, 2, 5] if decades <= 2.4 else [1]
    ticks = [float(f"{digit}e{power}") for power in powers for digit in digits]
    return [tick for tick in ticks if first <= tick <= last] or [first, last]


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
        f'<li><i class="key {name}"></i>{title}: {share(part, total)}{_text(more)}</li>'
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
    cells = "".join(f'<td class="number" data-name="{name}">{_text(span(value))}</td>' for name, value in named)
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
        items.append(f'<article class="trouble{look}"><p>{_who(user, numbers)}</p>{error}{outputs}</article>\n')
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
    return f'<section>\n{_title("receipts", "Receipts", said)}<div class="users">\n{users}</div>\n</section>'


def _receipt(number: int, user: UserReport) -> str:
    receipt = "".join(f"<span>{_text(words)}</span>" for words in receipt_words(user))
    time = "offline" if user.is_offline else span(user.downtime)
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
        f'<td class="number">{_text(span(None if step.ended is None else step.ended - step.began))}</td>'
        f"<td>{_text(step.outcome or 'no end on record')}</td></tr>"
        for step in user.steps
    )
    head = '<tr><th>step</th><th class="number">at</th><th class="number">took</th><th>outcome</th></tr>'
    return "".join(parts) + f'<div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
