# SPDX-License-Identifier: GPL-3.0-or-later
"""The state machine as data: no way back after `moved`, no mirror sync there, and an answer for whatever is found."""

from __future__ import annotations

import itertools

import pytest

from lmtp_proxy.ctl.migrate import states
from lmtp_proxy.ctl.migrate.states import Place, Way, way


def reachable(begin: str) -> set[str]:
    found, new = set(), {begin}
    while new:
        found |= new
        new = {after for state in new for after in states.next_states(state)} - found
    return found


def test_the_path_is_a_path() -> None:
    for before, after in itertools.pairwise(states.PATH):
        assert after in states.next_states(before)
    assert {state for state in states.STATES if states.next_states(state)} == set(states.STATES)


@pytest.mark.parametrize("state", sorted(states.ONLY_ON))
def test_from_moved_on_there_is_no_way_back_but_through_a_human(state: str) -> None:
    assert states.next_states(state) <= {states.REDIRECTED, states.DONE, states.NEEDS_ATTENTION}
    assert state not in states.MAY_BE_UNDONE and state not in states.MIRROR_ALLOWED


def test_a_mirror_sync_comes_only_before_moved() -> None:
    assert all(states.is_before(state, states.MOVED) for state in states.MIRROR_ALLOWED)


def test_every_state_leads_to_an_end() -> None:
    assert all(reachable(state) & states.ENDS for state in states.STATES)


def test_moved_is_entered_after_the_final_sync_alone_or_again() -> None:
    before = {state for state in states.STATES if states.MOVED in states.next_states(state)}
    assert before == {states.FINAL_SYNC, states.NEEDS_ATTENTION}


@pytest.mark.parametrize(
    "state, place, expected",
    [
        (states.ON_OLD, Place.OLD, Way.BEGIN),
        (states.FAILED, Place.OLD, Way.BEGIN),
        (states.ON_OLD, Place.NEW, Way.SKIP_PLACE),
        (states.ON_OLD, Place.PARK, Way.SKIP_PLACE),
        (states.SYNCING, Place.OLD, Way.BEGIN),
        (states.SYNCING, Place.PARK, Way.ASK),
        (states.PARKED, Place.PARK, Way.PARK),
        (states.FINAL_SYNC, Place.PARK, Way.PARK),
        (states.FINAL_SYNC, Place.OLD, Way.AGAIN),
        (states.FINAL_SYNC, Place.NEW, Way.ASK),
        (states.MOVED, Place.PARK, Way.GO_ON),
        (states.MOVED, Place.NEW, Way.GO_ON),
        (states.MOVED, Place.OLD, Way.ASK),
        (states.REDIRECTED, Place.NEW, Way.GO_ON),
        (states.DONE, Place.OLD, Way.SKIP_DONE),
    ],
)
def test_how_a_user_is_taken_up(state: str, place: Place, expected: Way) -> None:
    assert way(state, place) is expected


@pytest.mark.parametrize("state", sorted(states.MAY_BE_PARKED))
def test_putting_back_is_finished_first(state: str) -> None:
    for place in (Place.OLD, Place.PARK):
        assert way(state, place, undoing=True) is Way.PUT_BACK
    assert way(state, Place.NEW, undoing=True) is Way.ASK


def test_who_needs_attention_goes_on_only_where_that_is_the_only_way() -> None:
    for stuck in (*states.PATH, None):
        found = {way(states.NEEDS_ATTENTION, place, stuck=stuck) for place in Place}
        assert found == ({Way.GO_ON, Way.ASK} if stuck in states.ONLY_ON else {Way.SKIP_ATTENTION})
