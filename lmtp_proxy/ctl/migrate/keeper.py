# SPDX-License-Identifier: GPL-3.0-or-later
"""Stands between a run and one command of the site's: whatever that starts stays below it, and ends when it has to.

Run as a program of its own (`python -IS keeper.py LEASH LOCK all|command PROGRAM ...`). It adopts what its command's
processes leave behind (PR_SET_CHILD_SUBREAPER), so a new session, a second fork, closed descriptors, another
environment or title lead nowhere: as long as something lives that came from the command, the keeper has a child. It is
told what to do over a socket, the leash; when that breaks the run is dead, and all is ended at once. A keeper that came
to its end has written so into the lock, which its command inherits.

Over the leash it says `ready PID START`, and then `error ERRNO` or `ended STATUS LEFT [PID...]`: LEFT is 1 if the
command had ended and something had to be ended after it; the PIDs are those that could not be ended. It is told `g` to
begin, and `e` to end all.
"""

import ctypes
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass

ENDED = b"ended\n"
"""In the lock of a keeper that came to its end."""
GRACE = 5.0  # seconds between SIGTERM and SIGKILL
KILL = 10.0  # seconds in which a killed process ends, unless it hangs in the kernel
_LEAVE = 2.0  # seconds for what ends with the command, a moment later
_LOOK = 0.02
_PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 15, 36
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)  # meant for the run, which says what is to be
_OF_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)  # which Python ignores, and no command should


@dataclass(frozen=True, slots=True)
class Process:
    """As in /proc/PID/stat. start: in ticks since the machine began; with the pid it names one process for good."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    start: int

    @property
    def alive(self) -> bool:
        return self.state not in "ZX"


def process(pid: int) -> Process | None:
    """None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return Process(pid, fields[0].decode(), int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))
    except (OSError, ValueError, IndexError):
        return None


def processes() -> Iterator[Process]:
    for name in os.listdir("/proc"):
        if name.isdigit() and (found := process(int(name))) is not None:
            yield found


def below(pids: Collection[int], everybody: Collection[Process]) -> list[Process]:
    """What came from `pids`, those not included."""
    children: dict[int, list[Process]] = {}
    for each in everybody:
        children.setdefault(each.parent, []).append(each)
    found: list[Process] = []
    parents = list(pids)
    while parents:
        mine = children.pop(parents.pop(), [])
        found += mine
        parents += [each.pid for each in mine]
    return found


def send(number: int, to: Process) -> None:
    """To this process, and never to another that has got its number since."""
    with suppress(OSError):
        handle = os.pidfd_open(to.pid)
        try:
            now = process(to.pid)
            if now is not None and now.start == to.start:
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)


class Keeper:
    def __init__(self, leash: socket.socket, lock: int, *, whole: bool) -> None:
        self._leash = leash
        self._lock = lock
        self._whole = whole
        self._pid = 0
        self._status: int | None = None
        self._wake, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writing)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        self._before = {number: signal.signal(number, signal.SIG_IGN) for number in _IGNORED}

    def keep(self, command: list[str]) -> int:
        gate, error = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if not self._pid:
            self._become(command, gate[0], gate[1], error[1])
        os.close(gate[0])
        os.close(error[1])
        mine = process(self._pid)
        self._say(f"ready {self._pid} {mine.start if mine else 0}")
        go = self._heard()
        if go == "g":
            os.write(gate[1], b"g")
        os.close(gate[1])
        if number := os.read(error[0], 16):
            self._ended()
            self._say(f"error {number.decode()}")
            return 0
        os.close(error[0])
        return self._watch(None if go == "g" else "e")

    def _become(self, command: list[str], gate: int, gate_end: int, error: int) -> None:
        """In the child: what is to be run, once its name is in the journal."""
        try:
            os.setsid()  # a group of its own, and no terminal whose Ctrl-C or end would reach it
            os.close(gate_end)
            if not os.read(gate, 1):
                os._exit(0)
            signal.set_wakeup_fd(-1)
            for number, handler in self._before.items():
                signal.signal(number, signal.SIG_IGN if handler == signal.SIG_IGN else signal.SIG_DFL)
            for number in (signal.SIGCHLD, *_OF_PYTHON):
                signal.signal(number, signal.SIG_DFL)
            os.execvp(command[0], command)  # noqa: S606  (an argument list, never by a shell)
        except OSError as failed:
            os.write(error, str(failed.errno).encode())
        finally:
            os._exit(127)

    def _watch(self, told: str | None) -> int:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(self._leash, select.POLLIN)
        left = False
        latest: float | None = None
        while told is None:
            some = self._reap()
            if self._status is not None:
                if not some or not self._whole:
                    break
                latest = latest or time.monotonic() + _LEAVE
                if time.monotonic() > latest:
                    left = True
                    break
            ready = {handle for handle, _ in poll.poll(None if latest is None else 1000 * _LOOK)}
            if self._wake in ready:
                with suppress(BlockingIOError):
                    os.read(self._wake, 4096)
            if self._leash.fileno() in ready:
                told = self._heard()
        stuck = self._end() if told is not None or left else []
        report = " ".join(["ended", str(self._status), str(int(left)), *(str(each.pid) for each in stuck)])
        if not stuck:
            self._ended()
        self._say(report)
        return 0

    def _heard(self) -> str:
        """`e` too where nobody holds the other end any more."""
        with suppress(OSError):
            if data := self._leash.recv(1):
                return data.decode("ascii", "replace")
        return "e"

    def _say(self, text: str) -> bool:
        try:
            self._leash.sendall(text.encode("ascii") + b"\n")
        except OSError:
            return False
        return True

    def _ended(self) -> None:
        if self._lock >= 0:
            with suppress(OSError):
                os.pwrite(self._lock, ENDED, 0)

    def _reap(self) -> bool:
        """Whether there is still something: the kernel's word, in which nothing can be missed."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if not pid:
                return True
            if pid == self._pid and self._status is None:
                self._status = os.waitstatus_to_exitcode(status)

    def _end(self) -> list[Process]:
        """SIGTERM to all, and SIGKILL to what is left. Returns what does not end."""
        began = time.monotonic()
        asked: set[tuple[int, int]] = set()
        while self._reap():
            found = [each for each in below([os.getpid()], list(processes())) if each.alive]
            late = time.monotonic() - began
            for each in found:
                if late > GRACE:
                    send(signal.SIGKILL, each)
                elif (each.pid, each.start) not in asked:
                    asked.add((each.pid, each.start))
                    send(signal.SIGTERM, each)
                    send(signal.SIGCONT, each)
            if late > GRACE + KILL:
                return found
            time.sleep(_LOOK)
        return []


def main(arguments: list[str]) -> int:
    leash, lock, how, *command = arguments
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")
    libc.prctl(_PR_SET_NAME, b"migrate-keeper", 0, 0, 0)
    connection = socket.socket(fileno=int(leash))
    connection.set_inheritable(False)
    return Keeper(connection, int(lock), whole=how == "all").keep(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
