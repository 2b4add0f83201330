# SPDX-License-Identifier: GPL-3.0-or-later
"""What one node has applied, what it still waits for, and what it may therefore say of itself. Pure: no I/O, no time.

The order that makes an answer true is held here, whoever calls:

    news are read in one snapshot of the database, the tag of the node's own gen among them
    they are written to the log on the disk, with fsync     `logged`
    every process of the node serves by them                `applied`
    only then it is looked at what is in flight             `waits`
    only then the node says so, with what it waits for      `report`

Turned round, each two of them leave a gap through which mail reaches a store after somebody was told that none can;
`tests/property/test_table_model.py` shows each gap.
"""

import enum
from collections.abc import Hashable, Iterable
from typing import NamedTuple

from lmtp_proxy.table.history import DoubtRow, News, Position
from lmtp_proxy.table.schema import LAYOUT
from lmtp_proxy.table.waiting import written

MOST = 10_000
"""Changes that are applied one by one; of a node that is further behind the whole table is read."""


class NewsStep(enum.Enum):
    """What to do about some news."""

    NOTHING = "nothing: there are none"
    APPLY = "apply the changes"
    BEHIND = "read the whole table: the changes are too many, or not kept any more"
    OTHER_HISTORY = "read the whole table: it is another history, such as that of a backup"
    NEWER = "keep the table: the schema is one of a newer lmtp-proxy"


class Acknowledgement(NamedTuple):
    """What a node may say of itself now.

    Attributes:
        seen: served by every process, and on the disk.
        waiting: the text for its row.
        doubts: to be written with it.
    """

    seen: Position
    waiting: str
    doubts: tuple[DoubtRow, ...]


def step_of(news: News, here: Position | None) -> NewsStep:
    """What to do about news, by whoever serves by `here`."""
    head = news.head
    if head.layout > LAYOUT:
        return NewsStep.NEWER
    if here is None or here.gen < head.floor:  # of the latter it cannot be told any more whose history it is
        return NewsStep.BEHIND
    if news.own_tag != here.tag:
        return NewsStep.OTHER_HISTORY
    if news.more or len(news.changes) > MOST:
        return NewsStep.BEHIND
    return NewsStep.APPLY if news.changes else NewsStep.NOTHING


class Node:
    """One node in one run of it.

    Args:
        name, epoch: of its row.
        position: of the snapshot that it serves by, with what its log adds; None before there is one.
    """

    def __init__(self, name: str, epoch: int, position: Position | None) -> None:
        self.name = name
        self.epoch = epoch
        self._logged = position
        self._applied = position
        self._waits: dict[tuple[int, int], set[Hashable]] = {}
        self._doubts: list[DoubtRow] = []
        self._said: Acknowledgement | None = None

    def __repr__(self) -> str:
        return f"<Node {self.name} at {self._applied}, waits for {written(self._waits) or 'nothing'}>"

    @property
    def position(self) -> Position | None:
        """Of what it serves by."""
        return self._applied

    def step(self, news: News) -> NewsStep:
        """What to do about `news`, which were asked for with the gen of `position`, 0 if there is none."""
        return step_of(news, self._applied)

    def logged(self, position: Position) -> None:
        """The log, or a snapshot, has all up to here on the disk."""
        self._logged = position

    def applied(self, position: Position) -> None:
        """Every process of the node serves by all up to here. Call `waits` next, and `report` after that."""
        self._applied = position

    def waits(self, first: int, last: int, flights: Iterable[Hashable]) -> None:
        """These deliveries, which are past their commit check, may go to a store that the gens took from somebody.

        To be looked for after `applied`: what enters later goes by the new table.
        """
        if these := set(flights):
            self._waits.setdefault((first, last), set()).update(these)

    def ended(self, flight: Hashable, doubts: Iterable[tuple[str, int, str]] = ()) -> bool:
        """A delivery is over. Returns whether there is something to say.

        Args:
            doubts: address, time and detail, where its outcome is unknown.
        """
        gens = [span for span, flights in self._waits.items() if flight in flights]
        gen = max((last for _, last in gens), default=0)
        self._doubts += [DoubtRow(self.name, self.epoch, gen, address, when, text) for address, when, text in doubts]
        for span in gens:
            self._waits[span].discard(flight)
            if not self._waits[span]:
                del self._waits[span]
        return bool(gens or self._doubts)

    def report(self) -> Acknowledgement | None:
        """What it may say now; None where that is what it has said, or nothing yet."""
        if self._applied is None or self._logged != self._applied:
            return None
        report = Acknowledgement(self._applied, written(self._waits), tuple(self._doubts))
        return None if report == self._said else report

    def said(self, report: Acknowledgement) -> None:
        """It is in the database."""
        self._said = report._replace(doubts=())
        del self._doubts[: len(report.doubts)]
