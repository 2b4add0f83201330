# SPDX-License-Identifier: GPL-3.0-or-later
"""The control socket until its first client comes: only then HTTP is loaded, which takes 1 to 6 MB.

It knows neither requests nor answers.
"""

import logging
import socket
from collections.abc import Callable
from typing import Any

import gevent
import gevent.socket

from lmtp_proxy.late_import import late_import

_log = logging.getLogger(__name__)
_PAUSE = 1.0  # seconds


class ControlOnDemand:
    """Serves `application` (WSGI) on `listener`, a gevent socket that is bound to a path and listening."""

    def __init__(self, listener: socket.socket, application: Callable[..., Any]) -> None:
        self._listener = listener
        self._application = application
        self._server: Any = None
        self._waiting: Any = None

    def __repr__(self) -> str:
        return f"<ControlOnDemand {self._server or 'not asked yet'}>"

    def start(self) -> None:
        """Begin to accept."""
        self._waiting = gevent.spawn(self._begin)

    def _begin(self) -> None:
        gevent.socket.wait_read(self._listener.fileno())
        while self._server is None:
            try:
                with late_import():
                    from lmtp_proxy.control_server import ControlServer
            except (ImportError, OSError) as error:  # the former while the program is replaced on the disk
                _log.warning("control: cannot accept a client: %s; clients wait, next try in %g s", error, _PAUSE)
                gevent.sleep(_PAUSE)
            else:
                self._server = ControlServer(self._listener, self._application)
        self._server.start()

    def stop(self) -> None:
        """Accept nobody any more, give requests under way a second to end, and close the rest without an answer."""
        self._waiting.kill()
        if self._server is None:
            self._listener.close()
        else:
            self._server.stop()
