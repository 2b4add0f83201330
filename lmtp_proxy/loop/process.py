# SPDX-License-Identifier: GPL-3.0-or-later
"""What a process does first on its loop, whatever it serves: its sockets become gevent's, files may be opened."""

import resource
import socket
from collections.abc import Callable

import gevent
import gevent.socket
import setproctitle

NAME = "lmtp-proxy"
"""At most 15 octets: more the kernel does not keep."""


def cooperative(listener: socket.socket) -> socket.socket:
    """The socket as one of gevent's: it was made before gevent was there. The one that is given is used up."""
    own = gevent.socket.socket(listener.family, listener.type, listener.proto, fileno=listener.detach())
    own.setblocking(False)
    return own


def every(seconds: float, call: Callable[[], None]) -> "gevent.Greenlet[..., None] | None":
    """Call it now and each so many seconds, which must not wait; never if that is 0. The caller ends it."""

    def run() -> None:
        while True:
            call()
            gevent.sleep(seconds)

    return gevent.spawn(run) if seconds else None


def show_title(text: str) -> None:
    """What ps shows. The thread keeps a name by which `pgrep -x`, `pidof` and the journal find it."""
    setproctitle.setproctitle(text)
    setproctitle.setthreadtitle(NAME)


def allow_open_files(wanted: int) -> int:
    """Raise our limit of open files to `wanted`, the usual 1024 are soon used up; returns how many of them there are.

    That is less than `wanted` where the hard limit is.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed
