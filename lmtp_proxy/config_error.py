# SPDX-License-Identifier: GPL-3.0-or-later
"""That a configuration cannot be used, and how foreign text stands in the lines that say so.

Apart from all that reads a configuration, so that a process which only serves by one has none of that in its memory.
"""


class ConfigError(Exception):
    """The configuration cannot be used. errors: `FILE:LINE: key: what is wrong` each, in the order of the file."""

    def __init__(self, errors: tuple[str, ...]) -> None:
        super().__init__(errors)
        self.errors = errors

    def __str__(self) -> str:
        return "\n".join(self.errors)


def shown(text: str, limit: int = 100) -> str:
    """`text` on one printable line, for messages: what is not printable is escaped, what is too long is cut."""
    if not text.isprintable():
        text = text[: limit + 1].encode("unicode_escape").decode("ascii")
    return text if len(text) <= limit else text[:limit] + "..."
