# SPDX-License-Identifier: GPL-3.0-or-later
"""That a configuration cannot be used.

Apart from all that reads a configuration, so that a process which only serves by one has none of that in its memory.
"""


class ConfigError(Exception):
    """The configuration cannot be used. errors: `FILE:LINE: key: what is wrong` each, in the order of the file."""

    def __init__(self, errors: tuple[str, ...]) -> None:
        super().__init__(errors)
        self.errors = errors

    def __str__(self) -> str:
        return "\n".join(self.errors)
