# SPDX-License-Identifier: GPL-3.0-or-later
"""Values: where a table stands in its history, what has changed in it, what a node says of itself.

A *gen* is the number of a change; each commit that changes routes has its own, in the order of the commits. Numbers
alone do not tell two histories apart, as after a restore they are used again, so each gen has a random *tag*.
"""

from collections.abc import Sequence
from typing import NamedTuple

from lmtp_proxy.table.waiting import NOTHING, Waiting


class Position(NamedTuple):
    """A point in the history of a table.

    Attributes:
        gen: counts from 0, which is the empty table.
        tag: of the change that made it: of another history, another one.
    """

    gen: int
    tag: int


class Head(NamedTuple):
    """The row of `fleet`.

    Attributes:
        gen, tag: the last change.
        floor: changes below this gen are no longer kept; its own row is.
        routes: how many rows `route` has.
        layout: number of the schema.
    """

    gen: int
    tag: int
    floor: int
    routes: int
    layout: int

    @property
    def position(self) -> Position:
        return Position(self.gen, self.tag)


class RouteChange(NamedTuple):
    """What one gen has done to one address.

    Attributes:
        backend: where it is now; None where it has none, or no row any more.
        moving: somebody is about to move it, or has not finished.
    """

    gen: int
    address: str
    backend: str | None
    moving: bool


class News(NamedTuple):
    """What one look at the database found, all in one snapshot of it.

    Attributes:
        own_tag: that of the gen which was asked about; None if no such gen is kept.
        changes: later ones in their order; the first of them, where `more` is set.
        tags: of the gen of each change.
        more: there are more than were asked for.
    """

    head: Head
    own_tag: int | None
    changes: Sequence[RouteChange] = ()
    more: bool = False


class RouteRow(NamedTuple):
    """A row of `route`.

    Attributes:
        address: as it is written there.
        backend: None is as if there were no row.
        moving: see RouteChange.
    """

    address: str
    backend: str | None
    moving: bool


class NodeRow(NamedTuple):
    """What a node has said of itself last.

    Attributes:
        name: of the node, the same for ever.
        epoch: of its present run; a random number, 0 before the first.
        state: one of ABSENT, SERVING, STOPPED, FENCED.
        version: of lmtp-proxy.
        meaning: a digest of what decides how it understands a row.
        seen: applied by every process of it and on its disk; None if nothing ever was.
        waiting: gens with deliveries to a former store that have no final reply.
        refused: address -> why it cannot serve this row.
        renewed: rises each time it writes.
        unclean: it did not end well, and what it left may still be under way.
    """

    name: str
    epoch: int
    state: str
    version: str
    meaning: str
    seen: Position | None
    waiting: Waiting = NOTHING
    refused: dict[str, str] = {}  # noqa: RUF012  (never changed)
    renewed: int = 0
    unclean: bool = False


ABSENT, SERVING, STOPPED, FENCED = "absent", "serving", "stopped", "fenced"


class DoubtRow(NamedTuple):
    """A delivery whose outcome is unknown.

    Attributes:
        gen: the change that waited for it; 0 if none did when that was known.
        address: the key of its user.
        when: in seconds since the epoch.
        detail: as JSON.
    """

    node: str
    epoch: int
    gen: int
    address: str
    when: int
    detail: str
