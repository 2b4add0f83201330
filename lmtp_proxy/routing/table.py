# SPDX-License-Identifier: GPL-3.0-or-later
"""Where it is written down which backend holds a key: the interface; one driver a module.

A look-up has three outcomes: a backend name, None for "not in the table", or TableUnavailable. "Cannot say" is never
"not found": the first defers mail, the second may send it to the fallback. What a name such as `reject` means is not
decided here.
"""

from typing import Protocol


class TableUnavailable(Exception):
    """The table cannot answer now. The message says which table and why."""


class Table(Protocol):
    """A mapping from key (see keys.KeyRules) to backend name."""

    @property
    def has_domains(self) -> bool:
        """Whether there are keys with a domain: then a name without one is not just anybody's."""

    @property
    def constant(self) -> bool:
        """Whether it answers the same within a generation, save where it cannot answer."""

    def lookup(self, key: str) -> str | None:
        """The backend's name, None if the table does not hold `key`; raises TableUnavailable."""

    def __len__(self) -> int:
        """How many keys there are."""
