# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a run of `lmtp-proxyctl migrate` is, by its own word: numbers, and no user's name.

The proxy makes nothing of it; the status page shows it to whoever has no terminal there.
"""

import time

from lmtp_proxy.control.application import Json
from lmtp_proxy.control.request import HttpProblem, Request, bad

NUMBERS = ("total", "before", "done", "copied", "failed", "attention")
"""Users: of the run, done before it, and what has become of the others so far."""
_LONGEST = 31_536_000.0  # seconds of a run
_SHOWN = 3600.0  # seconds that the end of a run is remembered


class ToldMigration:
    """The last word of the last run."""

    def __init__(self) -> None:
        self._said: Json | None = None
        self._when = 0.0

    def tell(self, request: Request) -> Json:
        """A run says how far it is. Raises HttpProblem."""
        document = request.document("from", "to", "running", "seconds", *NUMBERS)
        numbers = {name: document.count(name) for name in NUMBERS}
        if (missing := next((name for name, value in numbers.items() if value is None), None)) is not None:
            raise _missing(missing)
        self._said = {
            "from": document.text("from"),
            "to": document.text("to"),
            "running": document.flag("running"),
            "seconds": document.seconds("seconds", default=0.0, most=_LONGEST),
            **numbers,
        }
        self._when = time.monotonic()
        return {}

    def told(self) -> Json:
        """`migration`: what was said, and `ago`, in seconds; None if nothing was, or it ended long ago."""
        said, ago = self._said, time.monotonic() - self._when
        if said is None or (not said["running"] and ago > _SHOWN):
            return {"migration": None}
        return {"migration": {**said, "ago": ago}}


def _missing(name: str) -> HttpProblem:
    return bad(f'"{name}" must be a whole number from 0 on')
