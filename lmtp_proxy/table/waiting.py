# SPDX-License-Identifier: GPL-3.0-or-later
"""The gens that a node waits for, as the text in its row: `5 7-9 12+`.

The text has a longest length. Where the list does not fit, its lowest gen that is left out stands for all above it
(`12+`): then a mover waits for more than it has to, never for less.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

LONGEST = 2000
"""Characters; the column takes them in every database."""
_TEXT = re.compile(r"(?:[0-9]+(?:-[0-9]+)?(?: [0-9]+(?:-[0-9]+)?)*)?(?: ?[0-9]+\+)?", re.ASCII)


def _first(span: tuple[int, int]) -> int:
    return span[0]


class Waiting(NamedTuple):
    """Some gens.

    Attributes:
        ranges: first and last of each, ascending.
        above: from this one on all of them; None for none.
    """

    ranges: tuple[tuple[int, int], ...] = ()
    above: int | None = None

    def concerns(self, first: int, last: int) -> bool:
        """Whether a gen from first to last is among them."""
        if self.above is not None and last >= self.above:
            return True
        place = bisect_right(self.ranges, last, key=_first) - 1  # the last range that begins there or before
        return place >= 0 and self.ranges[place][1] >= first

    def __bool__(self) -> bool:
        return bool(self.ranges) or self.above is not None


NOTHING = Waiting()


def written(spans: Iterable[tuple[int, int]], longest: int = LONGEST) -> str:
    """The text for these, first and last gen of each."""
    pieces: list[str] = []
    length = 0
    for first, last in _joined(spans):
        piece = str(first) if first == last else f"{first}-{last}"
        # There must be room for what stands for the rest.
        if length + len(piece) + 1 + len(str(first)) + 2 > longest:
            pieces.append(f"{first}+")
            break
        pieces.append(piece)
        length += len(piece) + 1
    return " ".join(pieces)


def read(text: str) -> Waiting:
    """What `written` made. Raises ValueError."""
    if not _TEXT.fullmatch(text):
        raise ValueError(f"no list of gens: {text[:100]!r}")
    words = text.split()
    above = int(words.pop()[:-1]) if words and words[-1].endswith("+") else None
    pairs = (word.partition("-") for word in words)
    return Waiting(tuple((int(first), int(last or first)) for first, _, last in pairs), above)


def _joined(spans: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """The same gens, ascending, in as few spans as can be."""
    begun: tuple[int, int] | None = None
    for first, last in sorted(spans):
        if begun is None:
            begun = first, last
        elif first <= begun[1] + 1:
            begun = begun[0], max(begun[1], last)
        else:
            yield begun
            begun = first, last
    if begun is not None:
        yield begun
