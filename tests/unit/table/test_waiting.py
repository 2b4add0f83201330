# SPDX-License-Identifier: GPL-3.0-or-later
"""Gens that are waited for, as text: never fewer than were meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_proxy.table.waiting import NOTHING, Waiting, read, written

SPANS = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 5)).map(lambda pair: (pair[0], sum(pair))), max_size=12)


@pytest.mark.parametrize(
    "spans, text",
    [
        ([], ""),
        ([(5, 5)], "5"),
        ([(7, 9), (5, 5)], "5 7-9"),
        ([(5, 6), (7, 7), (6, 6)], "5-7"),
        ([(1, 9), (2, 3), (11, 11)], "1-9 11"),
    ],
)
def test_written(spans: list[tuple[int, int]], text: str) -> None:
    assert written(spans) == text


def test_what_has_no_room_stands_for_all_above_it() -> None:
    text = written([(number, number) for number in range(10, 1000, 2)], longest=20)
    assert text == "10 12 14 16 18 20+"
    assert len(text) <= 20
    waiting = read(text)
    assert waiting == Waiting(((10, 10), (12, 12), (14, 14), (16, 16), (18, 18)), 20)
    assert waiting.concerns(10**9, 10**9) and waiting.concerns(20, 20) and not waiting.concerns(19, 19)


@given(SPANS, st.integers(8, 60))
def test_each_gen_that_was_meant_is_read_again_and_only_a_cut_adds_others(
    spans: list[tuple[int, int]], longest: int
) -> None:
    text = written(spans, longest)
    waiting = read(text)
    meant = {gen for first, last in spans for gen in range(first, last + 1)}
    assert len(text) <= longest
    assert bool(waiting) == bool(meant)
    for first in range(70):
        for last in range(first, min(70, first + 4)):
            concerned = not meant.isdisjoint(range(first, last + 1))
            if waiting.above is None or last < waiting.above:
                assert waiting.concerns(first, last) == concerned
            else:
                assert waiting.concerns(first, last)


@pytest.mark.parametrize("text", ["x", "5,6", "+", "5+ 6", "5-", "-5", " 5", "٥"])
def test_what_nobody_wrote_is_no_list(text: str) -> None:
    with pytest.raises(ValueError, match="no list of gens"):
        read(text)


def test_nothing() -> None:
    assert read("") == NOTHING
    assert not NOTHING
    assert not NOTHING.concerns(0, 10**9)
