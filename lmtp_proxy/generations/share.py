# SPDX-License-Identifier: GPL-3.0-or-later
"""One process's part of a limit that is a promise about the whole proxy.

Arithmetic alone: it does not know what is limited, nor that there are processes.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Share:
    """number: which part, from 0 on. of: how many parts there are."""

    number: int = 0
    of: int = 1

    def part(self, total: int) -> int:
        """All parts together are `total`, unless that is less than one for each."""
        return max(1, (total + self.of - 1 - self.number) // self.of)


WHOLE = Share()
"""That of a process which is alone."""
