# SPDX-License-Identifier: GPL-3.0-or-later
"""Octets as lines: whole, octet by octet, cut at random, with more behind them; what is too long is never kept."""

import random
from collections.abc import Iterator, Sequence

import pytest

from lmtp_proxy.wire.command_lines import MAX_COMMAND, TOO_LONG, CommandLines

FULL = b"x" * (MAX_COMMAND - 2) + b"\r\n"
CASES: list[tuple[bytes, list[bytes], bytes]] = [
    (b"", [], b""),
    (b"NOOP\r\n", [b"NOOP"], b""),
    (b"NOOP\n", [b"NOOP"], b""),
    (b"\r\n", [b""], b""),
    (b"\n\n", [b"", b""], b""),
    (b"a\rb\r\r\n", [b"a\rb\r"], b""),
    (b"a\0b\xff\r\n", [b"a\0b\xff"], b""),
    (b"NOOP\r\nQUIT\r\nrest", [b"NOOP", b"QUIT"], b"rest"),
    (b"half\r", [], b"half\r"),
    (FULL, [FULL[:-2]], b""),
    (b"x" + FULL + b"NOOP\r\n", [TOO_LONG, b"NOOP"], b""),
    (b"x" * (MAX_COMMAND - 1) + b"\n", [b"x" * (MAX_COMMAND - 1)], b""),
    (b"x" * MAX_COMMAND + b"\nNOOP\r\n", [TOO_LONG, b"NOOP"], b""),
    (b"x" * 3 * MAX_COMMAND + b"\r\n" + b"y" * MAX_COMMAND + b"\r\nNOOP\r\n", [TOO_LONG, TOO_LONG, b"NOOP"], b""),
    (b"NOOP\r\n" + b"x" * MAX_COMMAND, [b"NOOP"], b""),  # without an end, and nothing of it is kept
]


def cuts(octets: bytes, seed: int) -> Iterator[Sequence[bytes]]:
    yield [octets]
    yield [octets[at : at + 1] for at in range(len(octets))]
    chance = random.Random(seed)
    for _ in range(20):
        places = sorted(chance.sample(range(len(octets) + 1), min(len(octets), 4)))
        yield [octets[a:b] for a, b in zip([0, *places], [*places, len(octets)], strict=True)]


def read(lines: CommandLines, piece: bytes) -> list[bytes]:
    """As the protocol does it."""
    lines.set(lines.rest + piece)
    found = []
    while (line := lines.next(None)) is not None:
        found.append(line)
        assert len(lines) == len(lines.rest)
    assert len(lines) < MAX_COMMAND
    return found


@pytest.mark.parametrize(("octets", "expected", "rest"), CASES)
def test_lines_are_the_same_at_any_cut(octets: bytes, expected: list[bytes], rest: bytes) -> None:
    for pieces in cuts(octets, 1):
        lines = CommandLines()
        assert [line for piece in pieces for line in read(lines, piece)] == expected
        assert lines.rest == rest and len(lines) == len(rest)


def test_no_real_line_stands_for_one_that_was_too_long() -> None:
    assert b"\n" in TOO_LONG


def test_a_line_that_is_not_wanted_now_stays() -> None:
    lines = CommandLines()
    lines.set(b"RCPT\r\nDATA\r\n")
    assert lines.next(lambda line: line.startswith(b"RCPT")) == b"RCPT"
    assert lines.next(lambda line: line.startswith(b"RCPT")) is None
    assert lines.rest == b"DATA\r\n" and lines.position == 6
    assert lines.next(None) == b"DATA"
    assert lines.octets == b"" and not lines.position


def test_what_was_thrown_away_leaves_the_next_line_whole() -> None:
    lines = CommandLines()
    assert read(lines, b"x" * MAX_COMMAND) == [] and lines.skipping
    assert read(lines, b"y" * MAX_COMMAND) == [] and lines.skipping
    assert read(lines, b"z\r\nNOOP\r\n") == [TOO_LONG, b"NOOP"] and not lines.skipping
