# SPDX-License-Identifier: GPL-3.0-or-later
"""The states of one user's migration, as data: what may have happened, what may be undone, what must only go on.

A state is in the journal before the action that it names begins, so it says that the action *may* have happened; what
really did is found out by asking. That is all that a crash leaves behind, so all that is decided after one is decided
here, from the state and the place where the proxy has the user now. It does no I/O and knows no time.
"""

from enum import Enum
from typing import Final

ON_OLD: Final = "on_old"
SYNCING: Final = "syncing"  # the initial sync may have run: a mirror of the old mailbox in the new store
PARKED: Final = "parked"  # the proxy may have the user on `park`
BLOCKED: Final = "blocked"  # `block` may have run
FINAL_SYNC: Final = "final_sync"
MOVED: Final = "moved"  # the proxy may have the user on the new backend, and mail may be there
REDIRECTED: Final = "redirected"  # `redirect` and `unblock` may have run
DONE: Final = "done"
FAILED: Final = "failed"  # on the old backend and not blocked, as before; the next run tries again
NEEDS_ATTENTION: Final = "needs_attention"

COPIED: Final = "copied"
"""No state of the journal, where such a user is on the old backend: how a run ended that did no more."""

PATH: Final = (ON_OLD, SYNCING, PARKED, BLOCKED, FINAL_SYNC, MOVED, REDIRECTED, DONE)
"""The way of a user with whom all goes well."""
STATES: Final = (*PATH, FAILED, NEEDS_ATTENTION)
IN_HAND: Final = frozenset({SYNCING, PARKED, BLOCKED, FINAL_SYNC, MOVED, REDIRECTED})
"""A run is at work on the user, or died while it was."""
ENDS: Final = frozenset({DONE, FAILED, NEEDS_ATTENTION})

MAY_BE_PARKED: Final = frozenset({PARKED, BLOCKED, FINAL_SYNC})
"""Putting back means that the proxy sends the mail to the old backend again."""
MAY_BE_BLOCKED: Final = frozenset({BLOCKED, FINAL_SYNC})
"""Putting back means to unblock."""
MAY_BE_UNDONE: Final = frozenset({ON_OLD, SYNCING, PARKED, BLOCKED, FINAL_SYNC, FAILED})
ONLY_ON: Final = frozenset({MOVED, REDIRECTED})
"""Mail may have reached the new store: never back, and never a mirror sync."""
MIRROR_ALLOWED: Final = frozenset({SYNCING, FINAL_SYNC})
"""The only states in which a mirror sync may run."""


def next_states(state: str) -> frozenset[str]:
    """What may follow in the journal."""
    return _NEXT[state]


_UNDONE = frozenset({ON_OLD, FAILED, NEEDS_ATTENTION})
_NEXT: Final = {
    ON_OLD: frozenset({SYNCING, FAILED, NEEDS_ATTENTION}),
    SYNCING: frozenset({PARKED}) | _UNDONE,
    PARKED: frozenset({BLOCKED}) | _UNDONE,
    BLOCKED: frozenset({FINAL_SYNC}) | _UNDONE,
    FINAL_SYNC: frozenset({MOVED}) | _UNDONE,
    MOVED: frozenset({REDIRECTED, NEEDS_ATTENTION}),
    REDIRECTED: frozenset({DONE, NEEDS_ATTENTION}),
    DONE: frozenset({ON_OLD}),  # reset
    FAILED: frozenset({SYNCING, ON_OLD, NEEDS_ATTENTION, FAILED}),
    # On again, once a human has mended it; or reset.
    NEEDS_ATTENTION: frozenset({MOVED, REDIRECTED, ON_OLD, NEEDS_ATTENTION}),
}


def is_before(state: str, other: str) -> bool:
    """Whether `state` comes earlier on the way. FAILED is where the way begins."""
    return PATH.index(ON_OLD if state == FAILED else state) < PATH.index(other)


class Place(Enum):
    """Where the proxy has the user now."""

    OLD = "from"
    PARK = "park"
    NEW = "to"
    ELSEWHERE = "elsewhere"


class Way(Enum):
    """How a run takes up a user."""

    BEGIN = "begin"  # initial sync, and all that follows
    AGAIN = "again"  # as a run died: release, then begin
    PARK = "park"  # park and drain again (the dead run may not have got to its end), block, final sync, ...
    PUT_BACK = "put back"  # a run died while it did so
    GO_ON = "go on"  # move to the new backend, redirect, unblock
    ASK = "ask"  # somebody else moved the user meanwhile: only a human knows what was meant
    SKIP_DONE = "skip, done"
    SKIP_ATTENTION = "skip, needs attention"
    SKIP_PLACE = "skip, place"  # is not on the old backend, and we have nothing to do with it


def way(state: str, place: Place, *, undoing: bool = False, stuck: str | None = None) -> Way:
    """How to take up a user who is in `state` and whom the proxy has at `place`.

    undoing: the dead run was putting the user back. stuck: of a user who needs attention: the state before that.

    The reasons, state by state:
    on_old, failed   Nothing of ours is in force. On `from`: begin. Anywhere else, somebody else did it: skip.
    syncing          A sync may have run half. A mirror sync repairs that when it runs again. The user was never parked
                     by us, so on `park` or `to` somebody else did it.
    parked           On `from`: the run died before the move (or somebody put the user back): nothing to undo but what
    blocked          was blocked; so release, and begin again with the initial sync, since mail has come since. On
    final_sync       `park`: go on from parking, which drains again: the dead run may not have waited to the end. Block
                     again: a hook that was killed may have done half. Final sync again: the same. On `to`: the state
                     `moved` is not in the journal, so it was not us: ask.
                     If the run was putting the user back, that is finished, whatever is so.
    moved            On `park`: the move did not happen, or its reload did not: move. On `to`: move again, which changes
    redirected       nothing and drains. On `from` or elsewhere: somebody else took the user away from where mail may
                     have gone: ask.
    """
    if state == DONE:
        return Way.SKIP_DONE
    if state == NEEDS_ATTENTION:
        return way(stuck, place) if stuck in ONLY_ON else Way.SKIP_ATTENTION
    if state in ONLY_ON:
        return Way.GO_ON if place in (Place.PARK, Place.NEW) else Way.ASK
    if state in (ON_OLD, FAILED):
        return Way.BEGIN if place is Place.OLD else Way.SKIP_PLACE
    if place in (Place.NEW, Place.ELSEWHERE) or (state == SYNCING and place is not Place.OLD):
        return Way.ASK
    if undoing:
        return Way.PUT_BACK
    if state == SYNCING:
        return Way.BEGIN
    return Way.PARK if place is Place.PARK else Way.AGAIN
