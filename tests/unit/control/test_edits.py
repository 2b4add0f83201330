# SPDX-License-Identifier: GPL-3.0-or-later
"""A state of the files is known while it is in force or comes of it by edits that were announced."""

import time

import pytest

from lmtp_proxy.control import edits as control_edits
from lmtp_proxy.control.edits import Edits


def test_moves_one_after_the_other_and_several_before_one_reload() -> None:
    edits = Edits()
    assert edits.follows("a", "b", "a")
    assert edits.follows("b", "c", "a") and edits.follows("c", "d", "a")
    assert edits.follows("d", "e", "d")
    assert not edits.follows("b", "x", "e"), "that was in force once: somebody has put it back by hand"


def test_an_edit_by_hand_is_not_known_until_somebody_answers_for_it() -> None:
    edits = Edits()
    assert not edits.follows("hand", "b", "a")
    assert not edits.follows("b", "c", "a"), "that edit was not made"
    assert edits.follows("hand", "b", "a", accept=True)
    assert edits.follows("b", "c", "a")
    assert not edits.follows("hand", "d", "a"), "it was named to one who asked, and not loaded yet"


def test_where_nothing_is_edited_and_what_is_put_back() -> None:
    edits = Edits()
    assert edits.follows("a", "a", "a") and edits.follows("a", "b", "a")
    assert edits.follows("a", "c", "a"), "undone, as its reload was refused"


def test_nobody_knows_what_is_in_force() -> None:
    edits = Edits()
    assert not edits.follows("a", "b", None)
    assert edits.follows("a", "b", None, accept=True) and edits.follows("b", "c", None)


def test_what_is_old_or_one_of_very_many_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    edits = Edits()
    assert edits.follows("a", "b", "a")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 601)
    assert not edits.follows("b", "c", "a")
    monkeypatch.setattr(control_edits, "_MOST", 3)
    edits = Edits()
    for before, after in ("ab", "bc", "cd", "de"):
        assert edits.follows(before, after, "a")
    assert not edits.follows("b", "x", "a") and edits.follows("e", "f", "a")
