# SPDX-License-Identifier: GPL-3.0-or-later
"""Which sections are plain lines, and what is read of them. That YAML reads the same is a property test."""

from itertools import pairwise

import pytest

from lmtp_proxy.config.users import Doubt, FlatUsers, UserEntry
from lmtp_proxy.config.yaml_text import parse

TOP = "config:\n  socket: /s\n"


def read(text: str | bytes) -> list[UserEntry]:
    data = text.encode() if isinstance(text, str) else text
    users = FlatUsers(data)
    users.check(parse(users.rest))
    return [entry for chunk in users.chunks() for entry in users.entries(chunk)]


@pytest.mark.parametrize(
    ("lines", "entries"),
    [
        ("  a@x: old\n  b: new", [("a@x", "old", 4), ("b", "new", 5)]),
        ("  a:    old   \n\n    # b: c\n#\n  b: new # why\n", [("a", "old", 4), ("b", "new", 8)]),
        ("  '@x': \"old\"\n  \"b: c\" : 'a # b'\n", [("@x", "old", 4), ("b: c", "a # b", 5)]),
        (" '': \"\"\n", [("", "", 4)]),
        ("    größe@ÄÖ.test: old\n", [("größe@ÄÖ.test", "old", 4)]),
        ("  no: 0123\n  ~: =\n  o'brien@x: a!b\n", [("no", "0123", 4), ("~", "=", 5), ("o'brien@x", "a!b", 6)]),
        ("  a: old\r\n\r\n  b: new\r\n", [("a", "old", 4), ("b", "new", 6)]),
    ],
)
@pytest.mark.parametrize("more", ["", "backends: {}\n"])
def test_what_is_understood(lines: str, entries: list[tuple[str, str, int]], more: str) -> None:
    assert read(f"{TOP}users:  # all\n{lines}" + (f"\n{more}" if more else "")) == entries


@pytest.mark.parametrize(
    "lines",
    [
        *(
            "",
            "  # none\n",
            "  # none",
            "a: b\n",
            "  a:\n",
            "  a: b\n   c: d\n",
            "  a: b\n c: d\n",
            "  a: {}\n",
            "  a: b c\n",
        ),
        *("  a: 'it''s'\n", '  a: "\\x41"\n', "  a:b\n", "  a:b: c\n", "  a: b:\n", "  a: b#c\n", "  a: b\t\n"),
        *("  *a: b\n", "  &a b: c\n", "  !a b: c\n", "  a: *b\n", "  - a\n", "  ? a\n", "  @x: b\n", "  a: |\n"),
        *("  a: b\n\t\n", "  a: b\n  # \x07\n", "  a: b\x85", "  a: b\n  c\u2028: d\n", "  a: b\rc: d\n"),
        *(f"  {'a' * 402}: b\n", f"  '{'a' * 401}': b\n", f"  a{' ' * 17}: b\n", f"{' ' * 65}a: b\n"),
        *("  a: b\n---\nusers:\n  c: d\n", "  a: b\nusers: {}\n", "  a: b\n}\n"),
    ],
)
def test_doubt(lines: str) -> None:
    with pytest.raises(Doubt):
        read(f"{TOP}users:\n{lines}")


@pytest.mark.parametrize(
    "text",
    [
        *("", TOP, "users: {}\n", "users :\n  a: b\n", " users:\n  a: b\n", '"users":\n  a: b\n', "users:#\n  a: b\n"),
        'config: "\nusers:\n  a: b\n"\n',
        "{\nusers:\n  a: b\n}\n",
        "config: [\nusers:\n  a: b\n",
        "config: {}\nconfig: {}\nusers:\n  a: b\n",
    ],
)
def test_no_such_section(text: str) -> None:
    with pytest.raises(Doubt):
        read(text)


@pytest.mark.parametrize("place", [b"\xff", b"users:\n  \xff: b\n", b"users:\n  a: b\n  \xff: c\n"])
def test_no_utf8(place: bytes) -> None:
    with pytest.raises(Doubt):
        read(TOP.encode() + place + b"users:\n  a: b\n" * (b"users" not in place))


def test_the_rest_keeps_its_lines_and_the_first_entry() -> None:
    users = FlatUsers(b"config: x\nusers:\n#\n  a: b\n  c: d\n\n  # e\nlast: x\n")
    assert users.rest == "config: x\nusers:\n#\n  a: b\n\n\n\nlast: x\n"


def test_a_long_section_comes_in_chunks_that_know_their_lines() -> None:
    lines = "".join(f"  user{number}: old\n" for number in range(5000))
    users = FlatUsers(f"{TOP}users:\n{lines}  # odd\n  'last': new\n".encode())
    chunks = list(users.chunks())
    assert len(chunks) > 3
    assert [chunk.plain for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[0].line == 4 and chunks[0].start == len(TOP) + 7
    for chunk, following in pairwise(chunks):
        assert following.line == chunk.line + chunk.text.count("\n")
        assert following.start == chunk.end
    assert list(users.entries(chunks[-1]))[-1] == ("last", "new", 5005)
