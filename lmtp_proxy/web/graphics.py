# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers as an operator reads them, and small inline SVG: curves over the last minutes, bars of parts.

Everything that comes out is HTML, and everything that goes in is escaped here. It knows nothing of mail.
"""

from collections.abc import Callable, Iterable, Sequence
from html import escape as _escape
from typing import NamedTuple

_WIDTH, _HEIGHT = 240, 40  # of a curve's own coordinates; CSS says how large it is


class Part(NamedTuple):
    """A part of a bar. kind: a class of the style sheet."""

    name: str
    size: int
    kind: str


def escape(text: object) -> str:
    """As it may stand in text and in an attribute."""
    return _escape(str(text), quote=True)


def number(value: float) -> str:
    """1 234 567"""
    return f"{value:,.0f}".replace(",", "\u202f")


def rate(value: float) -> str:
    """Per second, with as many digits as are of use."""
    return "0" if value < 0.005 else f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 100 else number(value)


def octets(value: float) -> str:
    """12.3 MB"""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB" if value < 99.5 else f"{number(value)} TB"


def duration(seconds: float | None) -> str:
    """3 d 4 h, 12 min, 4.2 s, 350 ms"""
    if seconds is None:
        return "\u2013"
    if seconds < 0.0095:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 119.5:
        return f"{minutes:.0f} min"
    hours, days = int(minutes // 60), int(minutes // 1440)
    return f"{hours} h {int(minutes % 60)} min" if hours < 48 else f"{days} d {hours % 24} h"


def share(count: int, whole: int) -> str:
    """Of the whole, in per cent; never 0 or 100 unless it is exactly that."""
    if not whole:
        return "0\u202f%"
    part = 100 * count / whole
    if 0 < part < 0.1 or 99.9 < part < 100:
        return "<\u202f0.1\u202f%" if part < 1 else ">\u202f99.9\u202f%"
    return f"{part:.0f}\u202f%" if part in (0, 100) or part >= 10 else f"{part:.1f}\u202f%"


def curve(label: str, slots: int, *lines: tuple[str, Sequence[float]], scale: Callable[[float], str] = rate) -> str:
    """Curves on one scale, the newest value at the right. slots: how many values fill it. lines: kind and values.

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


def bar(label: str, parts: Iterable[Part], whole: int) -> str:
    """One bar of all parts, side by side; what is there can be seen, however little it is."""
    shown = [part for part in parts if part.size > 0]
    least = 4.0
    room = 1000.0 - least * len(shown)
    rectangles, x = [], 0.0
    for part in shown:
        width = least + room * part.size / max(whole, 1)
        title = f"{part.name}: {number(part.size)} ({share(part.size, whole)})"
        rectangles.append(
            f'<rect class="{part.kind}" x="{x:.1f}" y="0" width="{width:.1f}" height="10">'
            f"<title>{escape(title)}</title></rect>"
        )
        x += width
    return (
        f'<svg class="bar" viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f'<rect class="empty" x="0" y="0" width="1000" height="10"/>{"".join(rectangles)}</svg>'
    )
