# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks for a look at config.table whenever somebody has changed it, and again and again while it cannot be used.

Of one proxy one process does so, the one that has the control socket.
"""

import logging
from typing import TYPE_CHECKING

import gevent

from lmtp_proxy.generations.reloads import Reloads

if TYPE_CHECKING:
    from lmtp_proxy.config.values import Config

_log = logging.getLogger(__name__)
_AGAIN = 5.0  # seconds


def follow(reloads: Reloads, config: "Config") -> "Following | None":
    """Begin, if there is a table."""
    if config.served is not None and config.served.trouble:
        what = "nobody has a route" if config.served.position is None else "mail goes on by the copy of it"
        _log.error("table: %s; %s", config.served.trouble, what)
    return None if config.table is None else Following(reloads, config.table.sqlite)


class Following:
    """Of the database at `path`; from the beginning to `stop`."""

    def __init__(self, reloads: Reloads, path: str) -> None:
        self._reloads = reloads
        self._changed = gevent.get_hub().loop.async_()
        self._changed.start(self._look)
        from lmtp_proxy.table.replica import Watch  # what only a proxy with a table has in its memory

        self._watch = Watch(path, self._changed.send)
        self._watch.start()
        self._job = gevent.spawn(self._again)
        reloads.follows_table = True

    def __repr__(self) -> str:
        return f"<Following {self._watch}>"

    def stop(self) -> None:
        """End."""
        self._watch.stop()
        self._job.kill()
        self._changed.stop()  # the thread may call it still

    def _look(self) -> None:
        self._reloads.request_reload(table_alone=True)

    def _again(self) -> None:
        while True:
            gevent.sleep(_AGAIN)
            if self._reloads.table_refused is not None:
                self._look()
