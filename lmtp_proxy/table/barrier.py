# SPDX-License-Identifier: GPL-3.0-or-later
"""What a mover may conclude from the rows of all nodes. Pure.

Whoever moves users commits the change first and lists the nodes afterwards: a node whose row is not there yet reads a
snapshot with the change in it. Nothing here depends on a clock. "Cannot tell" is never "quiet".
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from lmtp_proxy.routing.keys import FoldingError, KeyRules
from lmtp_proxy.table.history import SERVING, DoubtRow, NodeRow, Position


class Goal(NamedTuple):
    """What is waited for.

    Attributes:
        position: of the table after the change. A node must have applied all up to here.
        users: whose mail it is about.
    """

    position: Position
    users: "Users"


class Users:
    """Some keys of the table, and all whose mail may go where theirs does."""

    def __init__(self, keys: Collection[str], rules: KeyRules) -> None:
        self.keys = frozenset(keys)
        self._rules = rules
        self._around = frozenset(form for key in self.keys for form in self._forms(key))

    def __repr__(self) -> str:
        return f"<Users {len(self.keys)}>"

    def may_be(self, key: str) -> bool:
        """Whether a change of `key` may be one of where their mail goes."""
        return key in self._around or not self.keys.isdisjoint(self._forms(key))

    def _forms(self, key: str) -> tuple[str, ...]:
        local_part, at, domain = key.rpartition("@") if "@" in key else (key, "", "")
        if at and not local_part:
            return (key,)
        try:
            return (key, *self._rules.forms(local_part, domain))
        except FoldingError:
            return (key,)


class Verdict(NamedTuple):
    """How it is with a goal; each of the groups maps a node's name to one line about it.

    Attributes:
        silent: they have not acknowledged it: not applied, or not running.
        waiting: they have, and deliveries to the former store have no final reply yet.
        refused: they cannot serve it.
        uncertain: what they know of is done, and there is something that they do not know of.
        doubts: deliveries whose outcome is unknown.
    """

    silent: Mapping[str, str]
    waiting: Mapping[str, str]
    refused: Mapping[str, str]
    uncertain: Mapping[str, str]
    doubts: Sequence[DoubtRow]

    @property
    def acknowledged(self) -> bool:
        """Every node has applied it, and can serve it."""
        return not self.silent and not self.refused

    @property
    def done(self) -> bool:
        """There is nothing to wait for any more."""
        return self.acknowledged and not self.waiting

    @property
    def quiet(self) -> bool:
        """Nothing can reach the former store any more."""
        return self.done and not self.uncertain and not self.doubts


def judge(
    goal: Goal,
    listed: Mapping[str, int],
    rows: Sequence[NodeRow],
    is_known: Callable[[Position], bool],
    is_about: Callable[[tuple[int, int]], bool],
    doubts: Sequence[DoubtRow],
) -> Verdict:
    """The verdict on `goal`.

    Args:
        listed: name -> epoch, as they were when the nodes were listed first after the commit.
        rows: as they are now.
        is_known: whether this position is one of the history that the database has now.
        is_about: whether one of these gens, the first and the last of them, may have been about the goal's users. Not
            its own alone: a delivery to the store before the last one may be under way still, and a change that
            changes nothing, as another one was made before, has no gen of its own.
        doubts: about the goal's users, as they are now; to be read after the rows.
    """
    silent, waiting, refused, uncertain = {}, {}, {}, {}
    for name in listed.keys() - {row.name for row in rows}:
        uncertain[name] = f"node {name} was taken out of the table meanwhile"
    for row in rows:
        wrong = [f"{address}: {why}" for address, why in row.refused.items() if goal.users.may_be(address)]
        if row.state != SERVING or row.seen is None:
            silent[row.name] = f"node {row.name} is {row.state if row.state != SERVING else 'about to join'}"
        elif row.seen.gen < goal.position.gen:
            behind = goal.position.gen - row.seen.gen
            silent[row.name] = f"node {row.name} is {behind} changes behind"
        elif not is_known(row.seen):
            silent[row.name] = f"node {row.name} has another history of the table"
        elif wrong:
            refused[row.name] = f"node {row.name} refuses {'; '.join(wrong)}"
        elif _waits(row, goal.position.gen, is_about):
            waiting[row.name] = f"node {row.name} waits for deliveries to the former store"
        if row.unclean:
            uncertain[row.name] = f"node {row.name} did not end well, and what it left may still be under way"
        elif listed.get(row.name, row.epoch) != row.epoch:
            uncertain[row.name] = f"node {row.name} was started again meanwhile"
    return Verdict(silent, waiting, refused, uncertain, doubts)


def _waits(row: NodeRow, last: int, is_about: Callable[[tuple[int, int]], bool]) -> bool:
    """Whether the node waits for a gen up to `last` that may be about the users. Later ones took from other stores."""
    above = row.waiting.above
    return (above is not None and above <= last) or any(
        span[0] <= last and is_about(span) for span in row.waiting.ranges
    )
