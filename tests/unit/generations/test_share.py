# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits that several processes share."""

import pytest

from lmtp_proxy.generations.share import WHOLE, Share


@pytest.mark.parametrize("of", [1, 2, 3, 7, 64])
def test_all_parts_are_the_whole_and_hardly_differ(of: int) -> None:
    for total in (of, of + 1, 3 * of - 1, 1000):
        parts = [Share(number, of).part(total) for number in range(of)]
        assert sum(parts) == total
        assert max(parts) - min(parts) <= 1


def test_each_has_one_at_least() -> None:
    assert [Share(number, 4).part(2) for number in range(4)] == [1, 1, 1, 1]


def test_who_is_alone_has_all() -> None:
    assert WHOLE.part(17) == 17
