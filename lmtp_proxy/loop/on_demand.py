# SPDX-License-Identifier: GPL-3.0-or-later
"""A server until its first client comes: only then HTTP is loaded, and all that answers, which takes 1 to 9 MB.

It knows neither requests nor answers.
"""

import logging
import socket
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Protocol

import gevent
import gevent.socket

from lmtp_proxy.loop.late_import import late_import

_log = logging.getLogger(__name__)
_PAUSE = 1.0  # seconds
_REST = 0.001  # seconds

CONTROL = (
    *("gevent.threadpool", "urllib.parse", "email.message", "gevent.pywsgi"),
    *("lmtp_proxy.control.server", "lmtp_proxy.control.resources"),
)
"""For `modules` of OnDemand: 3 to 7 ms each, all at once 33. The thread is for a reload, which may be asked for."""
METRICS = (*CONTROL, "lmtp_proxy.web.server")


class Server(Protocol):
    """What accepts clients."""

    def start(self) -> None: ...
    def stop(self) -> None: ...


class OnDemand:
    """Accepts clients on `listener`, a gevent socket, bound and listening, by the server that `make` makes of it.

    name: for the log. modules: imported when a client is there; mail goes on between them. make: called then; it may
    import, too.
    """

    def __init__(
        self, name: str, listener: socket.socket, modules: Sequence[str], make: Callable[[socket.socket], Server]
    ) -> None:
        self._name = name
        self._listener = listener
        self._modules = [*modules]
        self._make = make
        self._server: Server | None = None
        self._waiting: Any = None

    def __repr__(self) -> str:
        return f"<OnDemand {self._name}: {self._server or 'not asked yet'}>"

    def start(self) -> None:
        """Begin to accept."""
        self._waiting = gevent.spawn(self._begin)

    def _begin(self) -> None:
        gevent.socket.wait_read(self._listener.fileno())
        while self._server is None:
            try:
                while self._modules:
                    with late_import():
                        import_module(self._modules[0])
                    del self._modules[0]
                    gevent.sleep(_REST)
                with late_import():
                    self._server = self._make(self._listener)
            except (ImportError, OSError) as error:  # the former while the program is replaced on the disk
                _log.warning(
                    "%s: cannot accept a client: %s; clients wait, next try in %g s", self._name, error, _PAUSE
                )
                gevent.sleep(_PAUSE)
        self._server.start()

    def stop(self) -> None:
        """Accept nobody any more, give requests under way a second to end, and close the rest without an answer."""
        if self._waiting is not None:
            self._waiting.kill()
        if self._server is None:
            self._listener.close()
        else:
            self._server.stop()
