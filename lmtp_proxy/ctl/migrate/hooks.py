# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs one command to its end, or to its time: no input, a bounded part of its output, under a keeper of its own.

Whatever it started ends with it when it is ended from here, or when we die. It does not know what the command is for.
"""

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from lmtp_proxy.ctl.migrate import keeper

MARK = "LMTP_PROXY_MIGRATE_JOURNAL"
"""In the environment of each command: the journal of its runner."""
STEP = "LMTP_PROXY_MIGRATE_STEP"
"""The number of the step there."""
OK = "ok"
KILLED = "killed"
LEFT_BEHIND = "ended, and left processes behind, which were ended: it must wait for all that it starts"
_KEEPER_LOST = "its keeper was killed"
_MOST = 16384  # octets of output that are kept: the first and the last half
_LATE = keeper.GRACE + keeper.KILL + 5.0  # seconds for a keeper to say that all has ended


@dataclass(frozen=True, slots=True)
class Begun:
    """What is about to run: its process, which leads a session and a group of that number, and its keeper's.

    Attributes:
        pid: of the process.
        start: when it began, in ticks since the machine was started.
        keeper: the pid of who waits for it.
        keeper_start: likewise.
    """

    pid: int
    start: int
    keeper: int
    keeper_start: int


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended.

    Attributes:
        outcome: `ok`, `exit 1`, `timeout after 30 s`, `killed`, `ended by signal 9`, `cannot be run: ...`.
        status: exit status if it has one.
        left: why something of it may still run, None if nothing can.
    """

    outcome: str
    output: str
    seconds: float
    status: int | None = None
    left: str | None = None

    @property
    def ok(self) -> bool:
        return self.outcome == OK


class Cancel:
    """Set once, by a signal handler perhaps; whoever waits for a command sees it at once."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def set(self) -> None:
        with suppress(OSError):
            os.write(self._writing, b"x")

    def is_set(self) -> bool:
        return bool(select.select([self._reading], [], [], 0)[0])

    def fileno(self) -> int:
        return self._reading

    def close(self) -> None:
        os.close(self._reading)
        os.close(self._writing)


def run(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    timeout: float,
    cancel: Cancel | None = None,
    *,
    whole: bool = False,
    lock: int = -1,
    told: bytes = b"",
    begun: Callable[[Begun], None] = lambda begun: None,
) -> Ran:
    """Runs the command. environment: in addition to our own. cancel: ends it when it is set.

    whole: nothing that came from it may go on when it has ended. lock: a descriptor that it inherits. told: what it
    reads. begun: is called before the command begins; what it raises comes out here, and nothing is run.
    """
    began = time.monotonic()
    ours, theirs = socket.socketpair()
    how = "all" if whole else "command"
    given = _file_of(told)
    program = [sys.executable, "-IS", keeper.__file__, str(theirs.fileno()), str(lock), how, *arguments]
    with ours:
        try:
            with theirs:
                process = subprocess.Popen(
                    program,
                    stdin=subprocess.DEVNULL if given < 0 else given,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **environment},
                    pass_fds=[each for each in (theirs.fileno(), lock) if each >= 0],
                    start_new_session=True,
                )
        except (OSError, ValueError) as error:
            what = f"cannot be run: {getattr(error, 'strerror', None) or error}: {arguments[0]}"
            return Ran(what, "", time.monotonic() - began)
        finally:
            if given >= 0:
                os.close(given)
        assert process.stdout is not None
        with process.stdout:
            output = _Output(process.stdout.fileno())
            kept = _Kept(ours, output, began + timeout, cancel)
            try:
                ended_by, report = kept.run(process.pid, begun)
            finally:
                ours.close()  # so it ends all, if it has not yet
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_LATE)
            output.read()
    seconds = time.monotonic() - began
    return _ran(ended_by, report, output.text(), seconds, timeout, arguments[0])


def _file_of(octets: bytes) -> int:
    """A descriptor from which a command reads them, whenever it does; -1 if there are none."""
    if not octets:
        return -1
    handle = os.memfd_create("told", os.MFD_CLOEXEC)
    with open(handle, "wb", closefd=False) as file:
        file.write(octets)
    os.lseek(handle, 0, os.SEEK_SET)
    return handle


def _ran(ended_by: str | None, report: Sequence[str], output: str, seconds: float, timeout: float, name: str) -> Ran:
    if report[:1] == ["error"]:
        return Ran(f"cannot be run: {os.strerror(int(report[1]))}: {name}", output, seconds)
    outcome = {None: OK, KILLED: KILLED}.get(ended_by, f"timeout after {timeout:g} s")
    if report[:1] != ["ended"]:
        return Ran(outcome if ended_by else _KEEPER_LOST, output, seconds, left=_KEEPER_LOST)
    if pids := report[3:]:
        left = f"cannot be ended: process {' '.join(pids)}"
        return Ran(f"{outcome}; {left}", output, seconds, left=left)
    if ended_by is not None:
        return Ran(outcome, output, seconds)
    if report[2] == "1":
        return Ran(LEFT_BEHIND, output, seconds)
    status = int(report[1])
    if status < 0:
        return Ran(f"ended by signal {-status}", output, seconds)
    return Ran(f"exit {status}" if status else OK, output, seconds, status)


class _Kept:
    """What the keeper says, while the output is read."""

    def __init__(self, leash: socket.socket, output: "_Output", latest: float, cancel: Cancel | None) -> None:
        self._leash = leash
        self._output = output
        self._latest = latest
        self._cancel = cancel
        self._said = b""
        self._poll = select.poll()
        self._poll.register(leash, select.POLLIN)
        self._poll.register(output.handle, select.POLLIN)
        if cancel is not None:
            self._poll.register(cancel.fileno(), select.POLLIN)

    def run(self, pid: int, begun: Callable[[Begun], None]) -> tuple[str | None, list[str]]:
        """Why it had to be ended, None if it had not; and the keeper's last word, empty if it died."""
        ready = self._word()
        if ready[:1] == ["ready"]:
            own = keeper.process(pid)
            begun(Begun(int(ready[1]), int(ready[2]), pid, own.start if own else 0))
            self._tell(b"g")
        ended_by, report = self._until(self._latest, self._cancel)
        if ended_by is None:
            return None, report
        self._tell(b"e")
        if self._cancel is not None:
            with suppress(KeyError):
                self._poll.unregister(self._cancel.fileno())
        return ended_by, self._until(time.monotonic() + _LATE, None)[1]

    def _tell(self, order: bytes) -> None:
        with suppress(OSError):
            self._leash.sendall(order)

    def _word(self) -> list[str]:
        """The next line, whatever that takes; empty if the keeper died."""
        return self._until(time.monotonic() + _LATE, None)[1]

    def _until(self, latest: float, cancel: Cancel | None) -> tuple[str | None, list[str]]:
        while True:
            line, end, rest = self._said.partition(b"\n")
            if end:
                self._said = rest
                return None, line.decode("ascii", "replace").split(" ")
            left = latest - time.monotonic()
            if left <= 0:
                return "timeout", []
            ready = {handle for handle, _ in self._poll.poll(min(left, 3600) * 1000 + 1)}
            if self._output.handle in ready and not self._output.read():
                self._poll.unregister(self._output.handle)  # closed; the process may live on
            if self._leash.fileno() in ready:
                try:
                    data = self._leash.recv(4096)
                except OSError:
                    data = b""
                if not data:
                    return None, []
                self._said += data
            elif cancel is not None and cancel.fileno() in ready:
                return KILLED, []


class _Output:
    """What a pipe gave: the first and the last octets of it."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self._first = b""
        self._last = b""
        self._left_out = 0
        os.set_blocking(handle, False)

    def read(self) -> bool:
        """All that is there; False at its end. Never more than a moment, however fast the other side writes."""
        for _ in range(64):
            try:
                data = os.read(self.handle, 65536)
            except BlockingIOError:
                return True
            if not data:
                return False
            room = _MOST // 2 - len(self._first)
            self._first += data[:room]
            self._last += data[room:]
            if (over := len(self._last) - _MOST // 2) > 0:
                self._left_out += over
                self._last = self._last[over:]
        return True

    def text(self) -> str:
        middle = b"\n[... %d octets ...]\n" % self._left_out if self._left_out else b""
        return (self._first + middle + self._last).decode("utf-8", "backslashreplace").replace("\0", "\\0")
