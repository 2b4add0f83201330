# SPDX-License-Identifier: GPL-3.0-or-later
"""One process's part of a limit that is a promise about the whole proxy."""

from typing import NamedTuple


class Share(NamedTuple):
    """One part of several.

    Attributes:
        number: which, from 0 on.
        of: how many there are.
    """

    number: int = 0
    of: int = 1

    def part(self, total: int) -> int:
        """All parts together are `total`, unless that is less than one for each."""
        return max(1, (total + self.of - 1 - self.number) // self.of)


WHOLE = Share()
"""That of a process which is alone."""
