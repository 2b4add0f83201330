# SPDX-License-Identifier: GPL-3.0-or-later
"""What a move would do, said by `move --dry-run`: for people, and for whoever compares several hosts.

What it says of a configuration is what has to be the same on all hosts for a user and a backend to be the same there.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lmtp_proxy import __version__
from lmtp_proxy.ctl import output as show
from lmtp_proxy.ctl import validity
from lmtp_proxy.ctl.drain import Outcome

if TYPE_CHECKING:
    from lmtp_proxy.config.file import Change
    from lmtp_proxy.config.values import Config
    from lmtp_proxy.ctl.in_table import TableChange

_FEW = 10  # users who are named one by one


def meaning_of(config: "Config") -> dict[str, object]:
    """`keys`: how names are folded; `backends`: name -> address."""
    keys: dict[str, object] = {
        "ignoreDomain": config.ignore_domain,
        "case_sensitive": config.case_sensitive,
        "recipient_delimiter": config.recipient_delimiter,
        "default_domain": config.default_domain,
    }
    return {"keys": keys, "backends": {name: str(backend.address) for name, backend in config.backends.items()}}


def rehearsed(
    path: str,
    backend: str,
    change: "Change | TableChange",
    overrides: Mapping[str, Mapping[str, str]],
    meaning: Mapping[str, object],
    steps: Mapping[str, str],
) -> Outcome:
    """steps: user -> what would be done, in words."""
    clock = validity.now()
    document: dict[str, object] = {
        "dry_run": True,
        "path": path,
        "backend": backend,
        "previous": dict(change.previous),
        "overrides": dict(overrides),
        "files": list(change.files),
        "meaning": meaning,
        "version": __version__,
        "clock": {"boot": clock.boot, "seconds": round(clock.seconds, 3)},
    }
    lines = [line for user, step in list(steps.items())[:_FEW] for line in show.wrapped(f"{user}: {step}")]
    more = f"and {len(steps) - _FEW:,} more; " if len(steps) > _FEW else ""
    return Outcome(document, [*lines, *show.wrapped(f"{more}nothing was changed: it was only looked at (--dry-run)")])
