# SPDX-License-Identifier: GPL-3.0-or-later
"""Reloads and drains as an operator thinks of them: who moves users reloads and then drains, which is one thing.

JSON values in, JSON values out.
"""

from lmtp_proxy.control.application import Json


def paired(history: list[Json]) -> list[Json]:
    """The same, with each drain below `drain` of the reload that moved just its users, where there is one.

    Args:
        history: the newest first; of users the first ones are named, and how many they are.
    """
    rows: list[Json] = []
    drains: list[tuple[Json, Json]] = []  # those that still look for their reload, and their rows
    for event in history:
        if event["kind"] == "drain":
            drains.append((event, event))
        elif event["ok"]:
            mine = next((drain for drain, _ in drains if _is_of(drain, event)), None)
            if mine is not None:
                drains = [pair for pair in drains if pair[0] is not mine]
                rows = [row for row in rows if row is not mine]
                event = {**event, "drain": mine}
            else:
                event = dict(event)
        rows.append(event)
    return rows


def _is_of(drain: Json, reload: Json) -> bool:
    moved = reload["moved"]
    if not moved or drain["count"] != sum(group["count"] for group in moved):
        return False
    named = {user for group in moved for user in group["users"]}
    return drain["count"] > len(drain["users"]) or set(drain["users"]) <= named
