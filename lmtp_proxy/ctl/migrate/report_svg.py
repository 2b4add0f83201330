# SPDX-License-Identifier: GPL-3.0-or-later
"""The distribution of downtimes as SVG to be put into a page.

All that lies across is in per cent, so that the chart is as wide as the page and its text stays as large as it is.
"""

import math
from html import escape

from lmtp_proxy.ctl.migrate.report import Distribution
from lmtp_proxy.ctl.migrate.report_words import edges
from lmtp_proxy.ctl.output import count, span

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
