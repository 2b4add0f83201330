# SPDX-License-Identifier: GPL-3.0-or-later
"""A report as one HTML page that needs nothing but itself: no script, no font, no picture from anywhere.

Everything that comes from the journal is foreign text (user names, the output of hooks): it is escaped, always. Values
in, text out. The page is light and dark, narrow and wide, and can be printed.
"""

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
from lmtp_proxy.text import count, number, share, span
from lmtp_proxy.web.graphics import Part, bar, histogram, key
from lmtp_proxy.web.markup import LIGHT, document, escape, escape_lines

_STYLE = """
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 68rem; background: var(--card); font-size: 16px;
  line-height: 1.5;
}
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; text-wrap: balance; }
h2 { font-size: 1.2rem; margin: 3rem 0 .75rem; padding-top: .25rem; }
h2 small { font-size: .9rem; font-weight: normal; color: var(--soft); margin-left: .4em; }
p { margin: .5rem 0; max-width: 48rem; }
a { color: inherit; text-decoration-color: var(--soft); text-underline-offset: .15em; }
code, pre { font: .85rem/1.45 ui-monospace, "DejaVu Sans Mono", "Noto Sans Mono", Menlo, Consolas, monospace; }
.muted, .receipt, p.axis { color: var(--soft); }
.user { font-weight: 600; overflow-wrap: anywhere; }
nav { margin: 1rem 0 0; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; font-size: .95rem; }

.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: 1px; margin: 1rem 0;
  background: var(--rule); border: 1px solid var(--rule); border-radius: .5rem; overflow: hidden; }
.figures div { background: var(--card); padding: .7rem .9rem; }
.figures dt { color: var(--soft); font-size: .85rem; }
.figures dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.25rem; margin: 1rem 0; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; overflow-wrap: anywhere; }

svg.chart { display: block; width: 100%; overflow: visible; margin: .5rem 0 0; }
svg.chart text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
svg.chart .column { fill: var(--k1); }
svg.chart .axis { stroke: var(--rule); }
svg.chart .mark { stroke: var(--text); stroke-dasharray: 3 3; opacity: .7; }
p.axis { font-size: .85rem; margin: 0 0 1.25rem; }
svg.chart .name { fill: var(--text); }

.scroll { overflow-x: auto; }
table { font-size: .92rem; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: .85rem; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.bars { width: 34%; min-width: 7rem; padding-top: .6rem; }
td.bars svg.bar { height: .7rem; }

.verdict { padding: .8rem 1rem; margin: 1.25rem 0; font-size: 1.1rem; }
.trouble { border: 1px solid var(--rule); border-left: .3rem solid var(--warn); border-radius: .35rem;
  padding: .7rem 1rem; margin: .75rem 0; }
.trouble.bad { border-left-color: var(--bad); }
.trouble p { overflow-wrap: anywhere; max-width: none; }
.trouble .step { margin: .75rem 0 .25rem; font-size: .92rem; color: var(--soft); }
pre { background: var(--page); border-radius: .35rem; padding: .6rem .8rem; margin: .25rem 0 0;
  white-space: pre-wrap;
  overflow-wrap: anywhere; max-height: 24rem; overflow-y: auto; }

.users { border-top: 1px solid var(--rule); }
.users details { border-bottom: 1px solid var(--rule); content-visibility: auto; contain-intrinsic-size: auto 4rem; }
.users summary { padding: .5rem 0; cursor: pointer; display: grid; grid-template-columns: 1fr auto 6rem;
  gap: 0 1rem; align-items: baseline; }
.users summary::-webkit-details-marker { display: none; }
.users summary:hover .user { text-decoration: underline; text-decoration-color: var(--soft);
  text-underline-offset: .2em; }
.users summary .time { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.users .receipt { grid-column: 1 / -1; font-size: .88rem; font-variant-numeric: tabular-nums; }
.users .receipt span { white-space: nowrap; }
.users .receipt span + span::before { content: " \\00b7  "; }
.users .body { padding: .25rem 0 1rem 1rem; }
.users .body table { max-width: 40rem; }
.users .ids { overflow-wrap: anywhere; }
:target { outline: 2px solid var(--k1); outline-offset: .3rem; border-radius: .2rem; }
:focus-visible { outline: 2px solid var(--k1); outline-offset: .1rem; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }

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
  .users summary .pill { justify-self: start; }
  .users .receipt span { white-space: normal; }
  table.narrow thead { display: none; }
  table.narrow tr { display: grid; grid-template-columns: 1fr 1fr; padding: .4rem 0;
    border-bottom: 1px solid var(--rule); }
  table.narrow td { border: 0; padding: 0; text-align: left; }
  table.narrow td.wide { grid-column: 1 / -1; width: auto; }
  table.narrow td.bars { padding: .2rem 0 .3rem; }
  table.narrow td[data-name]::before { content: attr(data-name) " "; color: var(--soft); }
}
@media print {
  :root { color-scheme: light; PRINTED }
  body { max-width: none; padding: 0; font-size: 10pt; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  nav { display: none; }
  h2 { break-after: avoid; margin-top: 1.5rem; }
  pre { max-height: none; overflow: visible; border: 1px solid var(--rule); }
  tr, .trouble, .users details, .figures, svg.chart { break-inside: avoid; }
  td.bars { width: 20%; }
  .users details { content-visibility: visible; }
  .users summary { padding: .2rem 0; }
}
""".replace("PRINTED", f"{LIGHT}--page: #f3f3f3; --goodbg: #fff; --warnbg: #fff; --badbg: #fff;")


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
    made = f"Made {moment(now)} by lmtp-proxyctl migrate report, lmtp-proxy {__version__}"
    parts.append(f"<footer>{escape(made)}, from the journal of the migration.</footer>")
    title = f"Migration {route(report)}: {verdict(report)}"
    return document(title, _STYLE, "\n" + "\n".join(parts) + "\n")


def _title(name: str, title: str, more: str) -> str:
    return f'<h2 id="{name}">{title} <small>{escape(more)}</small></h2>\n'


def _link(user: UserReport, numbers: dict[str, int]) -> str:
    return f'<a class="user" href="#u{numbers[user.user]}">{escape(user.user)}</a>'


def _who(user: UserReport, numbers: dict[str, int]) -> str:
    return f"{_link(user, numbers)} {_badge(user)}{_offline_now(user)}"


def _badge(user: UserReport) -> str:
    return f'<span class="pill {_BADGES.get(user.state, "warn")}">{escape(state_word(user.state))}</span>'


# --- the sections ----------------------------------------------------------------------------------------------------


def _head(report: Report) -> str:
    stuck = report.in_state(NEEDS_ATTENTION) or (report.under_way and not report.running)
    look = " bad" if stuck else " warn" if report.in_state(FAILED) else ""
    facts = []
    if report.runs:
        last = report.runs[-1]
        facts += [("plan", f"<code>{escape(last.plan_path)}</code>"), ("parked on", escape(last.park))]
    facts.append(("runs", _runs(report)))
    facts.append(("mail while parked", escape(mail_words(report))))
    rows = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts)
    links = [("left", "Left to do")] if _left_to_do(report) else []
    links += [("downtime", "Downtime")]
    links += [("slowest", "Slowest users")] if report.slowest else []
    links += [("failures", "Failures")] if _troubled(report) else []
    links += [("receipts", "Receipts")] if report.users else []
    nav = "".join(f'<a href="#{name}">{title}</a>' for name, title in links)
    title = (
        f"Migration from {escape(report.runs[-1].old)} to {escape(report.runs[-1].new)}" if report.runs else "Migration"
    )
    return (
        f'<header>\n<h1>{title}</h1>\n<div class="verdict note{look}">{escape(verdict(report))}</div>\n'
        f'<dl class="facts">{rows}</dl>\n<nav>{nav}</nav>\n</header>'
    )


_DIED = "A run died at this point: run the same command again."
_UNCERTAIN = (
    "Uncertain deliveries: a store was given the whole message and did not answer. Postfix tries it again, so it may be"
    " there twice:"
)


def _runs(report: Report) -> str:
    lines = [f'{escape(when)} <span class="muted">{escape(how)}</span>' for when, how in run_words(report)]
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
        f"<p>{escape(what)}</p></div>\n"
        for user, what in left
    )
    return f"<section>\n{_title('left', 'Left to do', count(len(left), 'case'))}{items}</section>"


def _offline_now(user: UserReport) -> str:
    if not user.is_offline or user.offline is None:
        return ""
    return f' <span class="pill bad">offline since {escape(moment(user.offline.began))}</span>'


def _downtime(report: Report) -> str:
    opening = (
        '<section>\n<h2 id="downtime">Downtime <small>from the begin of block to the end of unblock</small></h2>\n'
    )
    downtime = report.downtime
    if downtime is None:
        return f"{opening}<p>Nobody has been moved yet.</p>\n</section>"
    values = (
        ("users", number(downtime.count)),
        ("median", span(downtime.median)),
        ("90 % within", span(downtime.p90)),
        ("99 % within", span(downtime.p99)),
        ("longest", span(downtime.most)),
    )
    figures = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in values)
    chart = f"{_histogram(downtime)}\n{_AXIS}"
    return f'{opening}<dl class="figures">{figures}</dl>\n{chart}{_shares(report, downtime)}</section>'


def _histogram(downtime: Distribution) -> str:
    """Users by how long they were offline, with median, 90 % and 99 % marked."""
    said = f"{count(downtime.count, 'user')}: median {span(downtime.median)}, longest {span(downtime.most)}"
    marks = (("99 %", downtime.p99), ("90 %", downtime.p90), ("median", downtime.median))
    label = f"Histogram of downtimes of {said}"
    return histogram(label, downtime.bins, marks, noun="user", edge=edges, scale=span)


def _shares(report: Report, downtime: Distribution) -> str:
    total = downtime.total
    parts = [
        Part("final sync", report.final_sync, "k1"),
        Part("block, verify, redirect, unblock", report.hooks, "k3"),
        Part("lmtp-proxy and the runner", report.ours, "k4"),
    ]
    if report.alone:
        parts.append(Part("no run at work, as one had died", report.alone, "bad"))
    more = {"k4": f", median {span(report.ours_median or 0.0)} a user"}
    legend = "".join(
        f"<li>{key(part.kind)}{part.name}: {escape(share(part.size, total) + more.get(part.kind, ''))}</li>"
        for part in parts
    )
    label = "Who took that time, of all users together:"
    return f'<p>{label}</p>\n{bar(label, parts, total, scale=span)}\n<ul class="legend">{legend}</ul>\n'


def _slowest(report: Report, numbers: dict[str, int]) -> str:
    users = report.slowest[:_SLOWEST]
    most = users[0].downtime or 1.0
    rows = "".join(_slow_row(user, user.offline, most, numbers) for user in users if user.offline)
    heads = "".join(f'<th class="number">{name}</th>' for name in ("offline", "final sync", "hooks", "lmtp-proxy"))
    title = _title("slowest", "Slowest users", f"{len(users)} of {len(report.slowest):,}")
    return (
        f'<section>\n{title}<div class="scroll"><table class="narrow">'
        f"<thead><tr><th>user</th><th></th>{heads}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n</section>"
    )


def _slow_row(user: UserReport, offline: Offline, most: float, numbers: dict[str, int]) -> str:
    parts = [
        Part("final sync", offline.final_sync, "k1"),
        Part("hooks", offline.hooks, "k3"),
        Part("lmtp-proxy", offline.ours or 0.0, "k4"),
        Part("no run at work", offline.alone, "bad"),
    ]
    picture = bar(f"{user.user}: {span(offline.seconds)}", parts, most, scale=span, ground=False)
    values = (offline.seconds, *(part.size for part in parts[:3]))
    named = zip(("offline", "sync", "hooks", "rest"), values, strict=True)
    cells = "".join(f'<td class="number" data-name="{name}">{escape(span(value))}</td>' for name, value in named)
    return f'<tr><td class="wide">{_link(user, numbers)}</td><td class="bars wide">{picture}</td>{cells}</tr>\n'


def _troubled(report: Report) -> list[UserReport]:
    """Who needs attention first, then who failed, then those who failed once and got there in the end."""
    later = [user for user in report.in_state(DONE) if user.failures]
    return report.in_state(NEEDS_ATTENTION) + report.in_state(FAILED) + later


def _failures(users: list[UserReport], numbers: dict[str, int]) -> str:
    items = []
    for user in users:
        outputs = "".join(map(_output, user.failures))
        error = f"<p>{escape(user.error)}</p>" if user.error else ""
        look = " bad" if user.state == NEEDS_ATTENTION else ""
        items.append(f'<article class="trouble{look}"><p>{_who(user, numbers)}</p>{error}{outputs}</article>\n')
    return f"<section>\n{_title('failures', 'Failures', count(len(users), 'user'))}{''.join(items)}</section>"


def _output(step: Step) -> str:
    taken = f" after {span(step.ended - step.began)}" if step.ended is not None else ""
    again = f", attempt {step.attempt}" if step.attempt > 1 else ""
    head = f"{step_word(step.step)}{again}: {step.outcome}{taken}, {moment(step.began)}"
    text = escape_lines(step.output or "")
    return f'<p class="step">{escape(head)}</p>' + (
        f"<pre>{text}</pre>" if text else "<p class=muted>It said nothing.</p>"
    )


# --- receipts --------------------------------------------------------------------------------------------------------


def _receipts(report: Report) -> str:
    said = f"{count(len(report.users), 'user')}; each opens to its steps"
    users = "".join(_receipt(number, user) for number, user in enumerate(report.users))
    return f'<section>\n{_title("receipts", "Receipts", said)}<div class="users">\n{users}</div>\n</section>'


def _receipt(number: int, user: UserReport) -> str:
    receipt = "".join(f"<span>{escape(words)}</span>" for words in receipt_words(user))
    time = "offline" if user.is_offline else span(user.downtime)
    return (
        f'<details id="u{number}"><summary><span class="user">{escape(user.user)}</span>{_badge(user)}'
        f'<span class="time">{escape(time)}</span><span class="receipt">{receipt}</span></summary>\n'
        f'<div class="body">{_body(user)}</div></details>\n'
    )


def _body(user: UserReport) -> str:
    parts = [f"<p>{escape(user.error)}</p>"] if user.error else []
    named = (("deferred", user.deferred), ("requeued", user.requeued), ("uncertain", user.uncertain))
    parts += [
        f'<p class="ids"><span class="muted">{name}:</span> <code>{escape(" ".join(ids))}</code></p>'
        for name, ids in named
        if ids
    ]
    rows = "".join(
        f"<tr><td>{escape(step_word(step.step))}{f' ({step.attempt})' if step.attempt > 1 else ''}</td>"
        f'<td class="number">{escape(clock(step.began, user.since))}</td>'
        f'<td class="number">{escape(span(None if step.ended is None else step.ended - step.began))}</td>'
        f"<td>{escape(step.outcome or 'no end on record')}</td></tr>"
        for step in user.steps
    )
    head = '<tr><th>step</th><th class="number">at</th><th class="number">took</th><th>outcome</th></tr>'
    return "".join(parts) + f'<div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
