# SPDX-License-Identifier: GPL-3.0-or-later
"""What is to be remembered of mailboxes, added up until it is written: who got mail from which backend, what waits.

Values only: no file, no clock. Times are in seconds since the epoch. A mailbox that gets ten messages is one row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

MAX_ROWS = 100_000
"""Rows of each kind that are kept for a file which cannot be written: about 40 MB."""

Json: TypeAlias = dict[str, Any]

SILENT, UNNAMED = "", "-"
"""In place of a queue id: the client says none at all, or has none for this message. Neither can be one."""


class ReceiptsError(Exception):
    """What is wrong with the file of receipts, in one line.

    Attributes:
        bug: a mistake of ours, whose traceback the log is to have; None where the file or the disk is to blame.
    """

    bug: Exception | None = None


@dataclass(slots=True)
class Delivered:
    """The deliveries for one mailbox to one backend.

    Attributes:
        first, last: when they ended.
        count: those with a final 2xx.
        uncertain: those without a reply after the final dot.
    """

    first: float
    last: float
    count: int = 0
    uncertain: int = 0


@dataclass(slots=True)
class Deferred:
    """One message of the client's queue for one mailbox, or all of them that have no queue id.

    Attributes:
        first, last: when it was deferred.
        count: how often.
        why: the last time.
    """

    first: float
    last: float
    count: int
    why: str


@dataclass(slots=True)
class Batch:
    """What has happened since the file was written.

    Attributes:
        delivered: by mailbox and backend.
        deferred: by mailbox and queue id, SILENT or UNNAMED; None for what waits no more.
        lost: since when rows were dropped, because there were too many; None if none was.
    """

    delivered: dict[tuple[str, str], Delivered] = field(default_factory=dict)
    deferred: dict[tuple[str, str], Deferred | None] = field(default_factory=dict)
    lost: float | None = None

    def __bool__(self) -> bool:
        return bool(self.delivered or self.deferred or self.lost is not None)

    def deliver(
        self, mailboxes: Sequence[str], backend: str, when: float, queue_id: str | None, *, uncertain: bool = False
    ) -> None:
        """A message came to its end at the backend.

        Args:
            queue_id: the client's; see Envelope.
            uncertain: nobody knows whether the backend has it, so it still waits in the queue.
        """
        for mailbox in mailboxes:
            row = self.delivered.get((mailbox, backend))
            if row is None:
                row = self.delivered[mailbox, backend] = Delivered(when, when)
            row.last = max(row.last, when)
            if uncertain:
                row.uncertain += 1
            else:
                row.count += 1
        if queue_id and not uncertain:
            self.settle(mailboxes, queue_id)

    def defer(self, mailboxes: Sequence[str], queue_id: str | None, when: float, why: str) -> None:
        """A message stays in the client's queue.

        Without an id of its own nothing tells when it leaves, nor whether it is the same one that comes again.
        """
        name = UNNAMED if queue_id is None else queue_id or SILENT
        for mailbox in mailboxes:
            row = self.deferred.get((mailbox, name))
            if row is None:
                self.deferred[mailbox, name] = Deferred(when, when, 1, why)
            else:
                row.last, row.why = when, why
                row.count += 1

    def settle(self, mailboxes: Sequence[str], queue_id: str) -> None:
        """A message is in the client's queue no more, as far as these mailboxes are concerned."""
        for mailbox in mailboxes:
            self.deferred[mailbox, queue_id] = None

    def limit(self, now: float) -> None:
        """Drop everything if it is too much, and keep in mind since when."""
        if len(self.delivered) <= MAX_ROWS and len(self.deferred) <= MAX_ROWS:
            return
        oldest = min((row.first for row in self.delivered.values()), default=now)
        self.drop(min([oldest, *(row.first for row in self.deferred.values() if row is not None)]))

    def drop(self, since: float) -> None:
        """Nothing is known from `since` on."""
        self.lost = since if self.lost is None else min(self.lost, since)
        self.delivered.clear()
        self.deferred.clear()
