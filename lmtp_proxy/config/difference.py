# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs between two configurations, for somebody who is about to put the second in the place of the first.

It compares values and knows nothing of files, generations or what a difference will do.
"""

import dataclasses
from collections import Counter
from collections.abc import Collection
from typing import Any, TypedDict

from lmtp_proxy.config.values import NAMES_IN_THE_FILE, Config
from lmtp_proxy.routing.static_table import StaticTable, changes
from lmtp_proxy.text import count, shown

_NAMED = 3  # of those whom a reload would remove
_SHOWN = 20  # users of one group; the count is exact
_SECTIONS = frozenset({"path", "backends", "users"})


class UserChanges(TypedDict):
    """Who is elsewhere in the newer of two tables.

    Each group has `from`, `to` or both, its `count`, and some of its users, `users`, in the order of the file.

    Attributes:
        users: how many the newer one has.
        added: groups of users by where they are to be.
        removed: by where they were.
        moved: by both.
    """

    users: int
    added: list[dict[str, Any]]
    removed: list[dict[str, Any]]
    moved: list[dict[str, Any]]


def compare_users(old: StaticTable, new: StaticTable) -> UserChanges:
    """What differs between two tables."""
    groups: dict[tuple[str | None, str | None], list[tuple[int, str]]] = {}
    counts: Counter[tuple[str | None, str | None]] = Counter()
    for key, before, after, line in changes(old, new):
        group = (before, after)
        counts[group] += 1
        first = groups.setdefault(group, [])
        first.append((line, key))
        if len(first) >= 2 * _SHOWN:
            first.sort()
            del first[_SHOWN:]

    answer: UserChanges = {"users": len(new), "added": [], "removed": [], "moved": []}
    for group in sorted(groups, key=lambda group: (group[0] or "", group[1] or "")):
        ends = {name: end for name, end in zip(("from", "to"), group, strict=True) if end is not None}
        users = [user for _, user in sorted(groups[group])[:_SHOWN]]
        kind = answer["added"] if group[0] is None else answer["removed"] if group[1] is None else answer["moved"]
        kind.append({**ends, "count": counts[group], "users": users})
    return answer


def who_moved(users: UserChanges) -> list[str]:
    """`alice@example.org: old -> reject` for each of the first users, the moved ones first, and how many more."""
    named = []
    total = 0
    for group in (*users["moved"], *users["removed"], *users["added"]):
        before, after = shown(group.get("from", "")), shown(group.get("to", ""))
        alone = f"removed from {before}" if before else f"added on {after}"
        what = f"{before} -> {after}" if before and after else alone
        named += [f"{shown(user)}: {what}" for user in group["users"]]
        total += group["count"]
    named = named[:_SHOWN]
    return named if len(named) == total else [*named, f"and {total - len(named):,} more"]


def without(users: UserChanges, old: StaticTable, new: StaticTable, keys: Collection[str]) -> UserChanges:
    """The changes but for those of `keys`, table keys. Raises TableUnavailable."""
    apart = Counter((old.get(key), new.get(key)) for key in set(keys))

    def rest(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found = []
        for group in groups:
            number = group["count"] - apart[group.get("from"), group.get("to")]
            if number:
                found.append({**group, "count": number, "users": [key for key in group["users"] if key not in keys]})
        return found

    return {
        "users": users["users"],
        "added": rest(users["added"]),
        "removed": rest(users["removed"]),
        "moved": rest(users["moved"]),
    }


def too_many_removed(old: Config, users: UserChanges) -> str | None:
    """Why the newer table is not to take the place of the old one unless somebody insists; None if it may.

    A file that was cut off at the end of a line is a good file with fewer users, whose mail would go elsewhere.
    """
    removed = sum(group["count"] for group in users["removed"])
    allowed = old.max_removed.of(len(old.users))
    if removed <= allowed:
        return None
    named = [shown(user) for group in users["removed"] for user in group["users"]][:_NAMED]
    return (
        f"{shown(_place(old, users), 4096)}: users: would remove {removed} of {count(len(old.users), 'user')} "
        f"({', '.join(named)}, ...), more than config.max_removed allows ({old.max_removed}, which is {allowed}): was "
        "the file cut off? `lmtp-proxyctl reload --force`, or a restart, puts it in force all the same"
    )


def _place(old: Config, users: UserChanges) -> str:
    """The file in which those stood who are removed, the configuration if it was not one."""
    try:
        places = {old.place(user)[0] for group in users["removed"] for user in group["users"]}
    except ValueError:  # another table has taken its place
        return old.path
    return places.pop() if len(places) == 1 else old.path


def difference(old: Config, new: Config, users: UserChanges) -> dict[str, Any]:
    """As JSON values: `users`, backends: name and change of each that differs, config: the keys that do, notes: of the
    newer one, and why a reload would refuse it."""
    answer: dict[str, Any] = {**users, "backends": _backends(old, new)}
    names = [item.name for item in dataclasses.fields(Config) if item.compare and item.name not in _SECTIONS]
    changed = [name for name in names if getattr(old, name) != getattr(new, name)]
    answer["config"] = [f"config.{NAMES_IN_THE_FILE.get(name, name)}" for name in changed]
    removed = too_many_removed(old, users)
    answer["notes"] = [*new.notes, *([removed] if removed else [])]
    return answer


def _backends(old: Config, new: Config) -> list[dict[str, str]]:
    changes = []
    for name in sorted({*old.backends, *new.backends}):
        before, after = old.backends.get(name), new.backends.get(name)
        if before != after:
            change = "added" if before is None else "removed" if after is None else "changed"
            changes.append({"name": name, "change": change})
    return changes
