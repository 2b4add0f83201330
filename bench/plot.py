# SPDX-License-Identifier: GPL-3.0-or-later
"""CPU time per message by program and workload as an SVG: a panel for each workload, each with a scale of its own.

The picture has a background and colours of its own for light and for dark, so that it can be read on either page.
"""

from collections.abc import Sequence
from xml.sax.saxutils import escape

from bench.results import OURS, TWO_WORKERS, UNLOGGED, Results
from bench.rounds import Summary, summaries
from bench.workloads import WORKLOADS, Workload

WIDTH, LEFT, BAR, GAP, PANEL_GAP, MARGIN = 760, 200, 18, 6, 26, 16
_VALUE = 150  # room right of the longest bar for its figure
STYLE = """\
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-weight: 600 }
  .ground { fill: #ffffff }
  .bar { fill: #8c959f }
  .ours { fill: #0969da }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .ground { fill: #0d1117 }
    .bar { fill: #6e7681 }
    .ours { fill: #4493f8 }
  }
"""


def plot(results: Results) -> str:
    """The whole picture. Programs without CPU time of their own are left out."""
    found = summaries(results.runs)
    drawn: list[str] = []
    y = MARGIN + 12
    for workload in WORKLOADS:
        rows = [row for (letter, name), row in found.items()
                if letter == workload.letter and row.cpu_us is not None and name != UNLOGGED]  # fmt: skip
        if rows:
            drawn += _panel(workload, rows, y)
            y += 14 + len(rows) * (BAR + GAP) + PANEL_GAP
    height = y - PANEL_GAP + MARGIN
    title = "CPU time per message: lmtp-proxy and its peers"
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        f' role="img" aria-label="{title}">',
        f"<title>{title}</title>", f"<style>\n{STYLE}</style>",
        f'<rect class="ground" width="{WIDTH}" height="{height}" rx="8"/>', *drawn, "</svg>", "",
    ])  # fmt: skip


def _panel(workload: Workload, rows: Sequence[Summary], y: int) -> list[str]:
    longest = max(row.cpu_us or 0.0 for row in rows) or 1.0
    room = WIDTH - LEFT - _VALUE
    lines = [f'<text class="title" x="{MARGIN}" y="{y}">{workload.letter}: {escape(workload.title)}</text>']
    for number, row in enumerate(rows):
        top = y + 14 + number * (BAR + GAP)
        cost = row.cpu_us or 0.0
        length = max(1.0, cost / longest * room)
        kind = "ours" if row.program in (OURS, TWO_WORKERS) else "bar"
        base = top + BAR - 5
        lines += [
            f'<text x="{LEFT - 8}" y="{base}" text-anchor="end">{escape(row.program)}</text>',
            f'<rect class="{kind}" x="{LEFT}" y="{top}" width="{length:.1f}" height="{BAR}" rx="2"/>',
            f'<text x="{LEFT + length + 6:.1f}" y="{base}">{_time(cost, in_ms=longest >= 10_000)}</text>',
        ]
    return lines


def _time(microseconds: float, *, in_ms: bool) -> str:
    return f"{microseconds / 1000:.1f} ms" if in_ms else f"{microseconds:,.0f} µs"
