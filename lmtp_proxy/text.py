# SPDX-License-Identifier: GPL-3.0-or-later
"""The one way in which foreign text, numbers and times are written: in log, answers, messages and pages.

Plain text comes out. Where it goes into HTML, `web/markup.py` does the rest.
"""

import re
import time

MAX_TEXT = 600
"""Octets of one piece of foreign text in the log: a syslog line should stay below 1 KiB or two."""
ISO_FORMAT = "%Y-%m-%dT%H:%M:%S"
_NUMBERS = re.compile(r"([0-9]{1,18})")


def printable(octets: bytes) -> str:
    """Text from a client or backend as it may stand in a log: one line, no controls, not too long.

    What is not valid UTF-8 or not printable becomes an escape, and so does a backslash, so that it can be told apart.
    """
    if len(octets) <= MAX_TEXT and octets.isascii():
        text = octets.decode("ascii")
        if text.isprintable() and "\\" not in text:
            return text
    text = safe(octets[:MAX_TEXT].replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace"))
    return text if len(octets) <= MAX_TEXT else text + "..."


def safe(text: str) -> str:
    """`text` on one line, without anything that moves the cursor: what is not printable becomes an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shown(text: str, limit: int = 100) -> str:
    """As `safe`, for messages and answers: what is longer than `limit` characters is cut."""
    text = safe(text[: limit + 1])
    return text if len(text) <= limit else text[:limit] + "..."


def in_words(error: BaseException) -> str:
    """What went wrong, for people: `Connection refused`, without the `[Errno 111]` that Python puts in front."""
    return (isinstance(error, OSError) and error.errno is not None and error.strerror) or str(error)


def number(value: float) -> str:
    """`1,234,567`"""
    return f"{value:,.0f}"


def count(amount: int, noun: str, plural: str = "") -> str:
    """`1 delivery`, `1,000 deliveries`.

    Args:
        plural: if it is not the noun with an s.
    """
    return f"{amount:,} {noun if amount == 1 else plural or noun + 's'}"


def natural(text: str) -> list[tuple[str, int]]:
    """To sort by, as people do: u2 before u10."""
    parts = _NUMBERS.split(text)
    return [(words, int(digits or 0)) for words, digits in zip(parts[::2], [*parts[1::2], ""], strict=True)]


def share(part: float, whole: float) -> str:
    """Of the whole, in per cent: `12 %`. Never 0 or 100 unless it is exactly that; `-` of nothing."""
    if not whole:
        return "-"
    percent = 100 * part / whole
    if 0 < percent < 0.1 or 99.9 < percent < 100:
        return "< 0.1 %" if percent < 1 else "> 99.9 %"
    return f"{percent:.0f} %" if percent in (0, 100) or percent >= 10 else f"{percent:.1f} %"


def octets(value: float) -> str:
    """A size: `850 B`, `12.3 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB" if value < 99.5 else f"{number(value)} TB"


def span(seconds: float | None) -> str:
    """A duration: `0.4 ms`, `350 ms`, `4.9 s`, `12 min`, `3 h 5 min`, `12 d 3 h`; `-` of one that is not known."""
    if seconds is None:
        return "-"
    if seconds < 0.9995:
        return f"{seconds * 1000:.{1 if seconds < 0.0095 else 0}f} ms"
    if seconds < 119.5:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def iso_time(when: float) -> str:
    """`2026-11-23T23:09:23.123Z`, of seconds since the epoch."""
    whole, milliseconds = divmod(int(when * 1000), 1000)
    return f"{time.strftime(ISO_FORMAT, time.gmtime(whole))}.{milliseconds:03d}Z"


def zoned_time(when: float) -> str:
    """`2026-11-24 00:09:23 +0100` on this machine's clock, of seconds since the epoch.

    With the distance from UTC for those who may read it elsewhere, or on the night of the change.
    """
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(when))
