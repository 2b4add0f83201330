# SPDX-License-Identifier: GPL-3.0-or-later
"""What gevent's servers do when there is no file or memory left for a client: wait, and say so in one line.

It knows neither what is served nor who the clients are.
"""

import errno
import logging
from typing import Any

import gevent
from gevent.baseserver import BaseServer

_log = logging.getLogger(__name__)
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_ACCEPT_PAUSE = 1.0  # seconds


class PatientAcceptor(BaseServer):  # type: ignore[type-arg]  # generic in the stubs only
    """For gevent's servers, which would write a traceback each time there is no file or memory left for a client.

    Here it is one line and a pause; clients wait in the backlog meanwhile. cannot_accept: how the line begins.
    """

    cannot_accept = "cannot accept a client"

    def do_read(self) -> Any:
        try:
            return super().do_read()
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            _log.warning("%s: %s; clients wait, next try in %g s", self.cannot_accept, error.strerror, _ACCEPT_PAUSE)
            self.stop_accepting()
            gevent.spawn_later(_ACCEPT_PAUSE, self._go_on)
            return None

    def _go_on(self) -> None:
        if self.started:
            self.start_accepting()
