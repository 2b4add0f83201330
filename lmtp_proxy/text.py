# SPDX-License-Identifier: GPL-3.0-or-later
"""The one way in which foreign text and times are written, wherever they are read: log, answers, messages, pages.

It does not know who wrote the text nor who will read it.
"""

import time

MAX_TEXT = 600
"""Octets of one piece of foreign text in the log: a syslog line should stay below 1 KiB or two."""
ISO_FORMAT = "%Y-%m-%dT%H:%M:%S"


def printable(octets: bytes) -> str:
    """Text from a client or backend as it may stand in a log: one line, no controls, not too long.

    What is not valid UTF-8 or not printable becomes an escape, and so does a backslash, so that it can be told apart.
    """
    if len(octets) <= MAX_TEXT and octets.isascii():
        text = octets.decode("ascii")
        if text.isprintable() and "\\" not in text:
            return text
    text = octets[:MAX_TEXT].replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return text if len(octets) <= MAX_TEXT else text + "..."


def shown(text: str, limit: int = 100) -> str:
    """`text` on one printable line, for messages: what is not printable is escaped, what is too long is cut."""
    if not text.isprintable():
        text = text[: limit + 1].encode("unicode_escape").decode("ascii")
    return text if len(text) <= limit else text[:limit] + "..."


def iso_time(when: float) -> str:
    """2026-11-23T23:09:23.123Z, of seconds since the epoch."""
    whole, milliseconds = divmod(int(when * 1000), 1000)
    return f"{time.strftime(ISO_FORMAT, time.gmtime(whole))}.{milliseconds:03d}Z"
