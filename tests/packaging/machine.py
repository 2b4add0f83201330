# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine on which the package is installed and purged: for one test of one run at a time, and left as it was.

A run that is killed leaves the package behind. So it leaves a mark before it installs anything, and who finds the mark
purges what is there. Without the mark an lmtp-proxy on this machine is somebody's, and stays.
"""

import fcntl
import os
import pwd
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.process import wait_until

LOCK = Path("/run/lock/lmtp-proxy-packaging")
MARK = Path("/var/lib/lmtp-proxy-packaging")
"""Not below /run: it is to be found after a restart of the machine, too."""

SCRIPT = Path("/etc/init.d/lmtp-proxy")
_PLACES = ("/etc/lmtp-proxy.yml", str(SCRIPT), "/var/lib/lmtp-proxy")
_DPKG = {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}


@contextmanager
def machine_of_our_own() -> Iterator[str | None]:
    """The right to install lmtp-proxy here, once no other run has it; why there is none, if somebody uses it.

    What a dead run has left is purged first. At the end nothing of the package may be there.
    """
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if MARK.exists():
            purge()
        elif (reason := in_use()) is not None:
            yield reason
            return
        _leave_mark()
        yield None
        if in_use() is None:  # else the next run tries
            MARK.unlink()


def in_use() -> str | None:
    """Which trace of lmtp-proxy there is on this machine, in one line; None if none."""
    for path in _PLACES:
        if os.path.lexists(path):
            return f"lmtp-proxy is in use on this machine ({path}), and this test would purge it"
    try:
        pwd.getpwnam("lmtp-proxy")
    except KeyError:
        return None
    return "there is a user lmtp-proxy on this machine, and this test would remove it"


def purge() -> None:
    """Stop it and purge it, whatever state it is in. AssertionError if something is left."""
    # dpkg may have been killed amid its work, or be at it still, for a run that was killed.
    _dpkg("--configure", "-a")
    if SCRIPT.exists():
        subprocess.run([SCRIPT, "stop"], env=_DPKG, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    said = _dpkg("--purge", "--force-remove-reinstreq", "lmtp-proxy")
    assert (left := in_use()) is None, f"{left}: it was left by a run that was killed, and is not purged: {said}"


def _dpkg(*words: str) -> str:
    """What it said, after it had the lock."""
    said = ""

    def ran() -> bool:
        nonlocal said
        done = subprocess.run(["dpkg", *words], env=_DPKG, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        said = done.stdout + done.stderr
        return done.returncode == 0 or "lock" not in said

    wait_until(ran, 180, lambda: f"dpkg's lock: {said}")
    return said


def _leave_mark() -> None:
    with MARK.open("w") as mark:
        mark.write("A test of lmtp-proxy installs and purges the package here; the next run purges what is left.\n")
        mark.flush()
        os.fsync(mark.fileno())
    handle = os.open(MARK.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
