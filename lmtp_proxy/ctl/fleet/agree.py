# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether hosts mean the same by a user and a backend, by what `move --dry-run` says on each. It asks nobody."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmtp_proxy.ctl.client import Answer, ControlError
from lmtp_proxy.ctl.move import RESERVED
from lmtp_proxy.ctl.validity import Moment
from lmtp_proxy.text import safe


@dataclass(frozen=True, slots=True)
class Look:
    """What one host says before anything is changed.

    Attributes:
        lines: user -> the backend on their line, None if they are on none.
        places: user -> where their mail goes, None if nowhere.
        keys, backends: see rehearsal.meaning_of.
        clock: of the host, when it had looked.
        at: when that was heard here, by time.monotonic().
    """

    host: str
    lines: Mapping[str, str | None]
    places: Mapping[str, str | None]
    keys: Mapping[str, Any]
    backends: Mapping[str, str | None]
    clock: Moment
    at: float


def look_of(host: str, answer: Answer, users: Sequence[str], at: float) -> Look:
    """Raises ControlError if it is not what was asked for."""
    lines = answer.object("previous").optional_texts()
    overrides = answer.object("overrides")
    meaning, clock = answer.object("meaning"), answer.object("clock")
    if set(lines) != set(users):
        raise ControlError("it answers about other users")
    places = {
        user: overrides.object(user).text("backend") if line is None and user in overrides.document else line
        for user, line in lines.items()
    }
    return Look(
        host,
        lines,
        places,
        meaning.object("keys").document,
        meaning.object("backends").optional_texts(),
        Moment(clock.text("boot"), clock.number("seconds")),
        at,
    )


def differences(looks: Sequence[Look], users: Sequence[str], backend: str) -> list[str]:
    """What is not the same on all, a line each.

    Who is on hold somewhere, or where they are to be, may be what an earlier move has left that did not come to its
    end: only the other places count.
    """
    return [*_keys(looks), *_backends(looks, users, backend), *_places(looks, users, backend)]


def _keys(looks: Sequence[Look]) -> Iterator[str]:
    for key in looks[0].keys:
        yield from _different(f"{key}", {look.host: str(look.keys.get(key)) for look in looks})


def _backends(looks: Sequence[Look], users: Sequence[str], backend: str) -> Iterator[str]:
    names = {backend: None} | {place: None for look in looks for user in users if (place := look.places[user])}
    for name in names:
        if name not in RESERVED:
            addresses = {look.host: look.backends.get(name) or "not there" for look in looks}
            yield from _different(f"backend {name}", addresses)


def _places(looks: Sequence[Look], users: Sequence[str], backend: str) -> Iterator[str]:
    for user in users:
        found = {look.host: look.places[user] or "no backend" for look in looks}
        yield from _different(f"{user}: is on", found, {"hold", backend})


def _different(what: str, values: Mapping[str, str], beside: set[str] | None = None) -> Iterator[str]:
    hosts: dict[str, list[str]] = {}
    for host, value in values.items():
        hosts.setdefault(value, []).append(host)
    if len(set(hosts) - (beside or set())) > 1:
        parts = [f"{value} on {' and '.join(names)}" for value, names in hosts.items()]
        yield safe(f"{what}{'' if what.endswith(' on') else ':'} {', '.join(parts)}")
