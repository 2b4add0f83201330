# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes that the end-to-end tests start: whole families of them, ports, waiting.

Everything is ended by process id, and only what was started here. A pid is remembered with its start time, so that a
number which the kernel has given to somebody else meanwhile is never signalled. Knows nothing about mail.
"""

import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

POLL = 0.02
"""Seconds between two looks at something that is waited for."""


def wait_until(condition: Callable[[], object], timeout: float, what: str | Callable[[], str]) -> None:
    """Returns once `condition()` is true; after `timeout` seconds AssertionError says `what` did not happen."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout} s: {what if isinstance(what, str) else what()}")
        time.sleep(POLL)


_reserved: list[int] = []  # open descriptors, never closed


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on, and that no other run of these tests will take.

    It lies below the range that the kernel gives to outgoing connections, so that none of those is in the way when a
    server comes back. (Cyrus does not share a port with old connections.) The reservation is an abstract unix socket:
    it ends with this process, however that ends.
    """
    while True:
        port = random.randrange(20000, 32768)
        reservation = socket.socket(socket.AF_UNIX)
        try:
            reservation.bind(f"\0lmtp-proxy-e2e-port-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            reservation.close()
            continue
        _reserved.append(reservation.detach())
        return port


def accepts_tcp(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def accepts_unix(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


@dataclass(frozen=True, slots=True)
class Pid:
    """One process for good: its number and the time it was started, in clock ticks since boot."""

    number: int
    started: int

    @classmethod
    def of(cls, number: int) -> "Pid":
        """Who has this number now; nobody, when nobody has."""
        stat = _stat(number)
        return cls(number, -1 if stat is None else stat[2])

    def alive(self) -> bool:
        stat = _stat(self.number)
        return stat is not None and stat[2] == self.started and stat[0] not in "ZX"

    def signal(self, number: int) -> None:
        if self.alive():
            try:
                os.kill(self.number, number)
            except ProcessLookupError:
                pass


def _stat(pid: int) -> tuple[str, int, int] | None:
    """(state letter, parent's pid, start time) of a process, None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before may hold anything, spaces and brackets too
    return fields[0], int(fields[1]), int(fields[19])


def _all_processes() -> Iterator[tuple[int, int]]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            stat = _stat(int(entry))
            if stat is not None:
                yield int(entry), stat[1]


def family(root: Pid) -> list[Pid]:
    """The process `root` and all that descend from it now, parents first. Empty when it is gone."""
    if not root.alive():
        return []
    children: dict[int, list[int]] = {}
    for child, parent in _all_processes():
        children.setdefault(parent, []).append(child)
    found: list[Pid] = []
    pending = [root.number]
    while pending:
        number = pending.pop(0)
        pid = Pid.of(number)
        if pid.alive():
            found.append(pid)
        pending += children.get(number, [])
    return found


def end_family(root: Pid, timeout: float = 10.0) -> None:
    """SIGTERM to `root`, as its own stop command does; what is left of its family after `timeout` is killed."""
    members = family(root)
    if not members:
        return
    members[0].signal(signal.SIGTERM)
    try:
        wait_until(lambda: not any(pid.alive() for pid in members), timeout, "")
    except AssertionError:
        kill_all(members)


def kill_family(root: Pid) -> None:
    """SIGKILL to `root` and all its descendants: a crash of the whole server."""
    kill_all(family(root))


def kill_all(members: list[Pid]) -> None:
    """SIGKILL to each, parents first so that nobody is started again; returns when all are gone."""
    for pid in members:
        pid.signal(signal.SIGKILL)
    wait_until(lambda: not any(pid.alive() for pid in members), 30, f"end of {members} after SIGKILL")
