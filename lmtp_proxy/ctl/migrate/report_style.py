# SPDX-License-Identifier: GPL-3.0-or-later
"""How the page of a report looks: light and dark, narrow and wide, on paper. Nothing but CSS."""

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
