# SPDX-License-Identifier: GPL-3.0-or-later
"""The `users:` section of the configuration: who is on which backend, under the keys of a table.

It knows the names of the backends, and nothing else of the configuration.
"""

import re
from array import array

from lmtp_proxy.config_keys import Section
from lmtp_proxy.keys import KeyRules
from lmtp_proxy.yaml_text import Scalar, shown

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def read_users(section: Section | None, names: set[str] | None, rules: KeyRules) -> "tuple[dict[str, str], array[int]]":
    """Key as the table stores it -> backend name, reject or hold; and the line of each.

    names: None if the backends cannot be told.
    """
    if section is None:
        return {}, array("I")
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
    return {key: node.text for key, (_, node) in seen.items()}, array("I", (node.line for _, node in seen.values()))


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


def undefined(section: Section, name: str, names: set[str]) -> str:
    """What is wrong with `name`, which is none of `names`, the backends and the reserved words."""
    near = section.nearest(name, names)
    hint = f"did you mean {shown(near)}?" if near else "define it under backends"
    return f'there is no backend "{shown(name)}": {hint}'
