# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs between two configurations, for somebody who is about to put the second in the place of the first.

It compares values and knows nothing of files, generations or what a difference will do.
"""

import dataclasses
from typing import Any

from lmtp_proxy.config_values import Config

_SHOWN = 20  # users of one group; the count is exact
_SECTIONS = frozenset({"path", "backends", "users"})
_IN_THE_FILE = {"ignore_domain": "ignoreDomain"}  # where a key is not called as the attribute is


def difference(old: Config, new: Config) -> dict[str, Any]:
    """As JSON values.

    users: how many `new` has. added, removed, moved: groups of users by where they were and are to be (`from`, `to`),
    each with its count and some of its users. backends: name and change of each that differs. config: the keys that do.
    """
    groups: dict[tuple[str | None, str | None], list[str]] = {}
    counts: dict[tuple[str | None, str | None], int] = {}

    def note(before: str | None, after: str | None, user: str) -> None:
        group = (before, after)
        counts[group] = counts.get(group, 0) + 1
        if counts[group] <= _SHOWN:
            groups.setdefault(group, []).append(user)

    for user, name in new.users.items():
        if (was := old.users.get(user)) != name:
            note(was, name, user)
    for user, name in old.users.items():
        if user not in new.users:
            note(name, None, user)

    answer: dict[str, Any] = {"users": len(new.users), "added": [], "removed": [], "moved": []}
    for group in sorted(groups, key=lambda group: (group[0] or "", group[1] or "")):
        before, after = group
        change = "added" if before is None else "removed" if after is None else "moved"
        ends = {name: end for name, end in (("from", before), ("to", after)) if end is not None}
        answer[change].append({**ends, "count": counts[group], "users": groups[group]})
    answer["backends"] = _backends(old, new)
    names = [item.name for item in dataclasses.fields(Config) if item.compare and item.name not in _SECTIONS]
    changed = [name for name in names if getattr(old, name) != getattr(new, name)]
    answer["config"] = [f"config.{_IN_THE_FILE.get(name, name)}" for name in changed]
    return answer


def _backends(old: Config, new: Config) -> list[dict[str, str]]:
    changes = []
    for name in sorted({*old.backends, *new.backends}):
        before, after = old.backends.get(name), new.backends.get(name)
        if before != after:
            change = "added" if before is None else "removed" if after is None else "changed"
            changes.append({"name": name, "change": change})
    return changes
