# SPDX-License-Identifier: GPL-3.0-or-later
"""Becomes a daemon, by python-daemon, while the command that was typed waits until clients are served."""

import os
import resource
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from lmtp_proxy.streams import say


def go_to_background(keep: Iterable[Any]) -> int:
    """Go on in the background; returns a descriptor to write to when clients are served.

    The command itself ends only then, so that an init script finds the pid file written and the exit status true.

    Args:
        keep: descriptors, or what has one: all others are closed.
    """
    with _few_descriptors():
        import daemon

        reader, writer = os.pipe()
        if os.fork():
            os.close(writer)
            ready = os.read(reader, 1)
            if not ready:
                say(sys.stderr, ["lmtp-proxy: the daemon ended before it was ready; the syslog may say why"])
            os._exit(0 if ready else 1)
        os.close(reader)
        for number, name in enumerate(("stdin", "stdout", "stderr")):  # as python-daemon wants them
            if getattr(sys, name) is None:
                setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115  (for good)
        daemon.DaemonContext(
            detach_process=True,
            umask=0o077,
            signal_map={},  # ours are installed already
            files_preserve=[*keep, writer],
        ).open()
    return writer


@contextmanager
def _few_descriptors() -> Iterator[None]:
    """What is imported within takes the limit of descriptors for what is in use.

    When python-daemon 2.3.2 (Debian 12) is imported it makes a set of all numbers that a descriptor may have, to close
    them later: 105 MB at a hard limit of 1,048,576. Those above the highest in use need not be closed.
    """
    limit = resource.getrlimit
    few = 8 + max(map(int, os.listdir("/proc/self/fd")))  # two for the pipe

    def getrlimit(which: int) -> tuple[int, int]:
        return (few, few) if which == resource.RLIMIT_NOFILE else limit(which)

    resource.getrlimit = getrlimit
    try:
        yield
    finally:
        resource.getrlimit = limit
