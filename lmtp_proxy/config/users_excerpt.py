# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes users in a configuration of any size, in a time that hardly grows with it.

Of a `users:` section of plain lines, only those that concern the change are given to users_edit, with all that stands
around the section: it reads, changes and proves an excerpt as it would the whole, and the octets that it replaced are
replaced in the file. Any other file goes through it whole. It knows nothing of files either.
"""

import re
from bisect import bisect_right
from collections.abc import Mapping, Set
from itertools import accumulate
from typing import NamedTuple

from lmtp_proxy.config.flat_users import Chunk, Doubt, FlatUsers
from lmtp_proxy.config.users_edit import edit_users
from lmtp_proxy.config.yaml_text import parse
from lmtp_proxy.routing.keys import KeyRules

_BOM = b"\xef\xbb\xbf"
_FEW = 16  # keys that are looked for in each chunk before its entries are read one by one


class FileEdit(NamedTuple):
    """data: the whole new content. previous: as for users_edit.Edit."""

    data: bytes
    previous: dict[str, str | None]


def edit_file(data: bytes, changes: Mapping[str, str], rules: KeyRules) -> FileEdit:
    """As edit_users. Raises EditError, and UnicodeDecodeError if it is not UTF-8 text."""
    try:
        users = FlatUsers(data)
        users.check(parse(users.rest))
        pieces = _pieces(users, {rules.table_key(user) for user in changes}, rules)
    except Doubt:
        pieces = [(0, len(data))]
    bom = len(_BOM) if data.startswith(_BOM) else 0
    pieces[0] = (bom, pieces[0][1])
    starts = list(accumulate((end - start for start, end in pieces), initial=0))  # of each piece in the excerpt
    excerpt = b"".join(data[start:end] for start, end in pieces).decode()
    edit = edit_users(excerpt, changes, rules)
    result, done, octets, position = [], 0, 0, 0
    for first, last, new in edit.splices:
        # Pieces are whole lines, and the last one goes from an entry to the end of the file: none is torn by a splice.
        octets += len(excerpt[position:first].encode())
        piece = bisect_right(starts, octets, hi=len(pieces)) - 1
        start = pieces[piece][0] + octets - starts[piece]
        result += [data[done:start], new.encode()]
        replaced = len(excerpt[first:last].encode())
        done, octets, position = start + replaced, octets + replaced, last
    return FileEdit(b"".join([*result, data[done:]]), edit.previous)


def _pieces(users: FlatUsers, wanted: Set[str], rules: KeyRules) -> list[tuple[int, int]]:
    """Start and end of what an edit has to see, in order. Raises Doubt.

    That is all up to the first entry, the entries with one of the keys, and all from the last entry on.
    """
    entries: list[tuple[int, int]] = []
    last = (0, 0)
    for chunk in users.chunks():
        if chunk.plain and not _may_hold(chunk, wanted):
            last = (users.data.rfind(b"\n", chunk.start, chunk.end - 1) + 1 or chunk.start, chunk.end)
            continue
        ends = [found.end() for found in re.finditer(b"\n|\\Z", users.data[chunk.start : chunk.end])]
        for entry in users.entries(chunk):
            number = entry.line - chunk.line
            last = (chunk.start + (ends[number - 1] if number else 0), chunk.start + ends[number])
            if rules.table_key(entry.key) in wanted:
                entries.append(last)
    between = [piece for piece in entries if users.first_end <= piece[0] < last[0]]
    if last[1] <= users.first_end:
        return [(0, len(users.data))]
    return [(0, users.first_end), *between, (last[0], len(users.data))]


def _may_hold(chunk: Chunk, wanted: Set[str]) -> bool:
    """False only if no entry has one of the keys."""
    if len(wanted) > _FEW or not chunk.text.isascii():  # what is lower case depends on the neighbours, elsewhere
        return True
    folded = chunk.text.lower()
    return any(key.lower() in folded for key in wanted)
