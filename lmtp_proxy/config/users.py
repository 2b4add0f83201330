# SPDX-License-Identifier: GPL-3.0-or-later
"""The `users:` section of the configuration: who is on which backend, under the keys of a table.

It knows the names of the backends, and nothing else of the configuration.
"""

import re
from array import array
from collections import Counter
from collections.abc import Callable, Set
from functools import partial

from lmtp_proxy.config.flat_users import Doubt, FlatUsers
from lmtp_proxy.config.types import Section
from lmtp_proxy.config.yaml_text import Scalar
from lmtp_proxy.routing.keys import KeyRules
from lmtp_proxy.routing.static_table import SameKey, Shape, StaticTable, write_table
from lmtp_proxy.text import shown

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def read_users(
    store: int | None, flat: FlatUsers | None, section: Section | None, names: Set[str] | None, rules: KeyRules
) -> tuple[StaticTable, Counter[str]]:
    """The table of all users, and how many are on each name.

    store: descriptor of the file in which the table is to be, None for memory. flat: where the users are; else they are
    in the section, and what is wrong with them is noted there. names: None if the backends cannot be told. Raises Doubt
    if anything is wrong with those of `flat`.
    """
    write = partial(_write_flat, flat) if flat else partial(_write, section)
    if store is None:
        pieces: list[bytes] = []
        shape, counts = write(names, rules, pieces.append)
        return StaticTable.of_octets(b"".join(pieces), shape), counts
    with open(store, "wb", closefd=False) as file:
        file.seek(0)
        file.truncate()
        shape, counts = write(names, rules, file.write)
    return StaticTable.of_file(store, shape), counts


def _write(
    section: Section | None, names: Set[str] | None, rules: KeyRules, write: Callable[[bytes], object]
) -> tuple[Shape, Counter[str]]:
    if section is None:
        return write_table([], array("I"), (), write), Counter()
    seen: dict[str, tuple[str, Scalar]] = {}
    for user, node in section.entries.items():
        if not isinstance(node, Scalar):
            section.fail(user, "must be the name of a backend, reject or hold")
            continue
        if node.missing:
            section.fail(user, "has no value: write the name of a backend, reject or hold")
        elif names is not None and node.text not in names:
            section.fail(user, undefined(section, node.text, names))
        key = rules.table_key(user)
        if problem := _problem(user, key, rules):
            section.fail(user, problem)
            continue
        first_user, first = seen.setdefault(key, (user, node))
        if first.text != node.text:
            section.fail(
                user,
                f"is the same user as {shown(first_user)} on line {first.line}, who is on {shown(first.text)}: "
                "take one of the two out",
            )
    # A name that no backend has may be anything, and not to be written as UTF-8.
    known = {key: node for key, (_, node) in seen.items() if names is not None and node.text in names}
    lines = array("I", (node.line for node in known.values()))
    counts = Counter(node.text for node in known.values())
    return write_table([f"{key}\t{node.text}".encode() for key, node in known.items()], lines, counts, write), counts


def _write_flat(
    users: FlatUsers, names: Set[str] | None, rules: KeyRules, write: Callable[[bytes], object]
) -> tuple[Shape, Counter[str]]:
    records: list[bytes] = []
    lines = array("I")
    counts: Counter[str] = Counter()
    for chunk in users.chunks():
        if chunk.plain:
            words = chunk.text.split()  # the keys with their colons, and the names
            if chunk.text == chunk.text.lower() and not rules.ignore_domain:  # they are folded as they are
                records += chunk.text.replace(" ", "").replace(":", "\t").encode().split(b"\n")[:-1]
            else:
                pairs = zip(words[::2], words[1::2], strict=True)
                records += [f"{rules.table_key(key[:-1])}\t{name}".encode() for key, name in pairs]
            lines.extend(range(chunk.line, chunk.line + len(words) // 2))
            counts.update(words[1::2])
            continue
        for user, name, line in users.entries(chunk):
            key = rules.table_key(user)
            if _problem(user, key, rules):
                raise Doubt
            records.append(f"{key}\t{name}".encode())
            lines.append(line)
            counts[name] += 1
    if names is None or not counts.keys() <= names:
        raise Doubt
    try:
        return write_table(records, lines, counts, write), counts
    except SameKey:
        raise Doubt from None


def _problem(user: str, key: str, rules: KeyRules) -> str | None:
    """Why `user` can never be found by any recipient, None if it can."""
    if not user:
        return "a user cannot be empty"
    if user == "@":
        return "has no domain: write @example.org for all of a domain, fallback_backend for all the rest"
    if not key:
        return "can never match while ignoreDomain is true: take it out, or use fallback_backend"
    if user.startswith("*"):
        return "* is no wildcard: write @example.org (in quotes) for all of a domain, fallback_backend for all the rest"
    if re.match('"[^@]*"(@|$)', user):
        return "is looked up without its quotes: write it without them"
    if not user.isprintable() and _CONTROL.search(user):
        return "holds a control character, which no address can"
    return None


def undefined(section: Section, name: str, names: Set[str]) -> str:
    """What is wrong with `name`, which is none of `names`, the backends and the reserved words."""
    near = section.nearest(name, names)
    hint = f"did you mean {shown(near)}?" if near else "define it under backends"
    return f'there is no backend "{shown(name)}": {hint}'
