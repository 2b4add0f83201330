# SPDX-License-Identifier: GPL-3.0-or-later
"""The earliest moment of the client's final dot is never later than the dot."""

import random

from lmtp_proxy.clients.watch import DotClock

MIB = 1 << 20


def test_what_lies_in_the_buffers_may_be_the_dot() -> None:
    clock = DotClock(0.0)
    for second in range(1, 8 * 16):  # almost 8 MiB that were there at once, taken in 64 KiB a second
        clock.received(65536, float(second))
    assert clock.earliest == 0.0


def test_a_long_message_that_never_lets_up_moves_it_on() -> None:
    clock = DotClock(0.0)
    for second in range(1, 1001):
        clock.received(MIB, float(second))
    assert 1000 - 10 <= clock.earliest <= 1000 - 8


def test_a_sender_of_single_octets_costs_no_memory() -> None:
    clock = DotClock(3.0)
    for second in range(4, 60_000):
        clock.received(1, float(second))
    assert clock.earliest == 3.0


def test_it_is_never_after_the_dot() -> None:
    """A client that is at most 8 MiB ahead, and a reader of any speed."""
    dice = random.Random(7)
    for _ in range(200):
        size = dice.randrange(1, 40 * MIB)
        now, read, clock = 0.0, 0, DotClock(0.0)
        dot_sent = 0.0 if size <= 8 * MIB else None
        while read < size:
            now += dice.choice((0.0, 0.1, 30.0))
            octets = min(size - read, dice.randrange(1, 65537) if dice.random() < 0.1 else 65536)
            read += octets
            clock.received(octets, now)
            if dot_sent is None and read + 8 * MIB >= size:
                dot_sent = now
            assert dot_sent is None or clock.earliest <= dot_sent
