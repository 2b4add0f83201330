# SPDX-License-Identifier: GPL-3.0-or-later
"""Small inline SVG: curves over the last minutes, bars of parts, a histogram. `markup.STYLE` has their colours.

Pure, as `lmtp-proxyctl migrate report` uses it, too. Everything that comes out is HTML, and everything that goes in is
escaped here.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from lmtp_proxy.text import count, number, share
from lmtp_proxy.web.markup import escape

_WIDTH, _HEIGHT = 240, 40  # of a curve's own coordinates; CSS says how large it is


class Part(NamedTuple):
    """A part of a bar.

    Attributes:
        kind: a class of the style sheet.
    """

    name: str
    size: float
    kind: str


def key(kind: str) -> str:
    """A square in the colour of that kind."""
    return f'<svg class="key" viewBox="0 0 1 1" aria-hidden="true"><rect class="{kind}" width="1" height="1"/></svg>'


def curve(label: str, slots: int, *lines: tuple[str, Sequence[float]], scale: Callable[[float], str]) -> str:
    """Curves on one scale, the newest value at the right.

    Args:
        slots: how many values fill it.
        lines: kind and values of each.
        scale: how the highest value is written.
    """
    top = max((value for _, values in lines for value in values), default=0.0)
    paths = [f'<path class="base" d="M0 {_HEIGHT - 0.5:g}H{_WIDTH}"/>']
    for kind, values in lines:
        if len(values) < 2 or not any(values):
            continue
        step = _WIDTH / (slots - 1)
        first = _WIDTH - step * (len(values) - 1)
        points = [
            f"{first + step * index:.1f} {_HEIGHT - 1 - (_HEIGHT - 4) * value / top:.1f}"
            for index, value in enumerate(values)
        ]
        line = "M" + "L".join(points)
        paths.append(f'<path class="area {kind}" d="{line}L{_WIDTH} {_HEIGHT}L{first:.1f} {_HEIGHT}Z"/>')
        paths.append(f'<path class="line {kind}" d="{line}"/>')
    return (
        f'<figure><svg class="curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}"><title>{escape(label)}</title>{"".join(paths)}</svg>'
        f"<figcaption>max {escape(scale(top))}</figcaption></figure>"
    )


def bar(
    label: str,
    parts: Iterable[Part],
    whole: float,
    *,
    scale: Callable[[float], str] = number,
    ground: bool = True,
    thin: bool = False,
) -> str:
    """One bar of all parts, side by side; what is there can be seen, however little it is.

    Args:
        scale: how a size is written.
        ground: whether the rest of the whole is drawn, too.
    """
    there = [part for part in parts if part.size > 0]
    least = 4.0
    room = 1000.0 - least * len(there)
    rectangles, x = [], 0.0
    for part in there:
        width = least + room * part.size / (whole or 1)
        title = f"{part.name}: {scale(part.size)} ({share(part.size, whole)})"
        rectangles.append(
            f'<rect class="{part.kind}" x="{x:.1f}" y="0" width="{width:.1f}" height="10">'
            f"<title>{escape(title)}</title></rect>"
        )
        x += width
    rest = '<rect class="empty" x="0" y="0" width="1000" height="10"/>' if ground else ""
    return (
        f'<svg class="bar{" thin" if thin else ""}" viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">{rest}{"".join(rectangles)}</svg>'
    )


# --- a histogram -----------------------------------------------------------------------------------------------------

_HIGHEST = 170  # of the highest column
_TOP = 20  # above the columns, for the number of the highest one; a row of names more for each mark
_ROW = 18
_BOTTOM = 24


def histogram(
    label: str,
    bins: Sequence[tuple[float, float, int]],
    marks: Sequence[tuple[str, float]],
    *,
    noun: str,
    edge: Callable[[float], str],
    scale: Callable[[float], str],
) -> str:
    """How many fall into each bin (from, below, how many) on a logarithmic axis; at least one has some.

    All that lies across is in per cent, so that it is as wide as its page and its text stays as large as it is.

    Args:
        marks: names and values, each drawn on a row of its own.
        noun: what is counted.
        edge, scale: how the limit of a bin and a marked value are written.
    """
    first, last = bins[0][0], bins[-1][1]
    low, width = math.log10(first), math.log10(last) - math.log10(first)

    def across(value: float) -> float:
        return min(100.0, max(0.0, 100 * (math.log10(max(value, first)) - low) / width))

    most = max(amount for _, _, amount in bins)
    base = _TOP + _ROW * len(marks) + _HIGHEST
    parts = []
    for begin, end, amount in bins:
        if amount:
            left, right, height = across(begin), across(end), max(2.0, _HIGHEST * amount / most)
            title = f"{count(amount, noun)}: {edge(begin)} to {edge(end)}"
            parts.append(
                f'<rect class="column" x="{left + 0.15:.2f}%" width="{right - left - 0.3:.2f}%"'
                f' y="{base - height:.1f}" height="{height:.1f}" rx="1.5"><title>{escape(title)}</title></rect>'
                f'<text class="count" x="{(left + right) / 2:.2f}%" y="{base - height - 4:.1f}" text-anchor="middle">'
                f"{number(amount)}</text>"
            )
    parts.append(f'<line class="axis" x1="0" x2="100%" y1="{base + 0.5}" y2="{base + 0.5}"/>')
    for tick in _ticks(first, last):
        x = across(tick)
        anchor = "start" if x < 4 else "end" if x > 96 else "middle"
        parts.append(f'<line class="axis" x1="{x:.2f}%" x2="{x:.2f}%" y1="{base}" y2="{base + 5}"/>')
        parts.append(f'<text x="{x:.2f}%" y="{base + 19}" text-anchor="{anchor}">{escape(edge(tick))}</text>')
    for row, (name, value) in enumerate(marks):
        x, y = across(value), 14 + _ROW * row
        side, shift = ("end", -6) if x > 60 else ("start", 6)
        parts.append(f'<line class="mark" x1="{x:.2f}%" x2="{x:.2f}%" y1="{y - 10}" y2="{base}"/>')
        parts.append(
            f'<text class="name" x="{x:.2f}%" dx="{shift}" y="{y}" text-anchor="{side}">{escape(name)}'
            f" {escape(scale(value))}</text>"
        )
    return (
        f'<svg class="chart" height="{base + _BOTTOM}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _ticks(first: float, last: float) -> list[float]:
    """Round numbers from `first` to `last`: 1, 2 and 5 of each power of ten, or less of them if they were many."""
    powers = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
    decades = math.log10(last / first)
    digits = [1, 2, 3, 4, 5, 6, 8] if decades < 0.5 else [1, 2, 5] if decades <= 2.4 else [1]
    ticks = [float(f"{digit}e{power}") for power in powers for digit in digits]
    return [tick for tick in ticks if first <= tick <= last] or [first, last]
