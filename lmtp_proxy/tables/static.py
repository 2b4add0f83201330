# SPDX-License-Identifier: GPL-3.0-or-later
"""The `users:` section of the configuration as a table. In memory, so it is never unavailable."""

from collections.abc import Mapping


class StaticTable:
    """A Table over a mapping of folded keys, as Config.users holds them."""

    def __init__(self, users: Mapping[str, str]) -> None:
        self._users = users

    def __repr__(self) -> str:
        return f"<StaticTable {len(self)} keys>"

    def __len__(self) -> int:
        return len(self._users)

    def lookup(self, key: str) -> str | None:
        """See Table.lookup."""
        return self._users.get(key)
