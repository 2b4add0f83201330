# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs one command to its end, or to its time: own process group, no input, a bounded part of its output.

Whatever it started ends with it when it is ended from here, and what a dead runner has left behind is found by a mark
in its environment, and ended before anything else is done. It does not know what the command is for.
"""

import itertools
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "LMTP_PROXY_MIGRATE_JOURNAL"
"""In the environment of each command: the journal of its runner."""
COMMAND = "LMTP_PROXY_MIGRATE_COMMAND"
"""The process id of its runner, and a number: 4711.3"""
_number = itertools.count(1)
OK = "ok"
KILLED = "killed"
LEFT_BEHIND = "ended, and left processes behind, which were ended: it must wait for all that it starts"
_MOST = 16384  # octets of output that are kept: the first and the last half
_LEAVE = 2.0  # seconds for what ends with the command, a moment later
_GRACE = 5.0  # seconds between SIGTERM and SIGKILL
_KILL = 10.0  # seconds in which a killed process ends, unless it hangs in the kernel


@dataclass(frozen=True, slots=True)
class Ran:
    """outcome: `ok`, `exit 1`, `timeout after 30 s`, `killed`, `ended by signal 9`, `cannot be run: ...`.

    status: exit status if it has one.
    """

    outcome: str
    output: str
    seconds: float
    status: int | None = None

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
    mark: str,
    cancel: Cancel | None = None,
    *,
    whole: bool = False,
) -> Ran:
    """Runs the command. environment: in addition to our own. mark: the journal. cancel: ends it when it is set.

    whole: nothing of its process group may go on when it has ended.
    """
    began = time.monotonic()
    own_mark = f"{os.getpid()}.{next(_number)}"
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, MARK: mark, COMMAND: own_mark},
            start_new_session=True,  # a group of its own, and no terminal whose Ctrl-C or end would reach it
        )
    except (OSError, ValueError) as error:
        what = f"cannot be run: {getattr(error, 'strerror', None) or error}: {arguments[0]}"
        return Ran(what, "", time.monotonic() - began)
    assert process.stdout is not None
    output = _Output(process.stdout.fileno())
    ended_by, left_behind = None, False
    try:
        if (ended_by := _wait(process.pid, output, began + timeout, cancel)) is not None:
            _end(process, output)
            own = f"{COMMAND}={own_mark}".encode()
            _end_marked(lambda found: own in found)  # what has left the group
        output.read()
        if whole and ended_by is None and _goes_on(process):
            _end(process, output)
            left_behind = True
    finally:
        if process.poll() is None:
            _kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    seconds = time.monotonic() - began
    if ended_by is not None:
        outcome = KILLED if ended_by == KILLED else f"timeout after {timeout:g} s"
        return Ran(outcome, output.text(), seconds)
    if left_behind:
        return Ran(LEFT_BEHIND, output.text(), seconds)
    if process.returncode < 0:
        return Ran(f"ended by signal {-process.returncode}", output.text(), seconds)
    outcome = f"exit {process.returncode}" if process.returncode else OK
    return Ran(outcome, output.text(), seconds, process.returncode)


def _wait(pid: int, output: "_Output", latest: float, cancel: Cancel | None) -> str | None:
    """Until the process ends: None; or else why it has to be ended."""
    ended = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(output.handle, select.POLLIN)
        if cancel is not None:
            poll.register(cancel.fileno(), select.POLLIN)
        while True:
            left = latest - time.monotonic()
            if left <= 0:
                return "timeout"
            ready = {handle for handle, _ in poll.poll(min(left, 3600) * 1000 + 1)}
            if output.handle in ready and not output.read():
                poll.unregister(output.handle)  # closed; the process may live on
            if ended in ready:
                return None
            if cancel is not None and cancel.fileno() in ready:
                return KILLED
    finally:
        os.close(ended)


def _end(process: "subprocess.Popen[bytes]", output: "_Output") -> None:
    """SIGTERM to its group, and SIGKILL to what is left: the leader may end well before what it started."""
    _kill(process.pid, signal.SIGTERM)
    latest = time.monotonic() + _GRACE
    while time.monotonic() < latest:
        output.read()
        # The leader is reaped last: as long as it is a zombie its number is its group's alone.
        if not _group_lives(process.pid):
            return
        time.sleep(0.02)
    _kill(process.pid, signal.SIGKILL)


def _goes_on(process: "subprocess.Popen[bytes]") -> bool:
    """Whether something of the group of a command that has ended stays."""
    process.wait()  # and as long as there is something of the group, nobody else gets its number
    latest = time.monotonic() + _LEAVE
    while True:
        try:
            os.killpg(process.pid, 0)
        except PermissionError:
            pass
        except ProcessLookupError:
            return False
        if time.monotonic() > latest:
            return _group_lives(process.pid)  # and is no zombie that nobody waits for
        time.sleep(0.02)


def _kill(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _group_lives(group: int) -> bool:
    return any(found.group == group and found.state not in "ZX" for found in _processes())


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


# --- what a dead runner left -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    state: str
    group: int
    session: int


def _processes() -> Iterator[_Process]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                fields = Path(f"/proc/{name}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
                yield _Process(int(name), fields[0], int(fields[2]), int(fields[3]))


def end_left_over(mark: str, runners: Collection[int], told: Callable[[int], None] = lambda pid: None) -> list[int]:
    """Ends what commands of dead runners with the journal `mark` still run, with all of their sessions.

    runners: their process ids. What the commands of others have left, a server that they started anew perhaps, was
    meant to stay. told: called with each process. Returns those that are still there.
    """
    wanted = f"{MARK}={mark}".encode("utf-8", "surrogateescape")
    begun_by = tuple(f"{COMMAND}={pid}.".encode() for pid in runners)
    return _end_marked(lambda found: wanted in found and any(entry.startswith(begun_by) for entry in found), told)


def _end_marked(marked: Callable[[Sequence[bytes]], bool], told: Callable[[int], None] = lambda pid: None) -> list[int]:
    """marked: whether a process with this environment is meant."""
    latest = time.monotonic() + _KILL
    number = signal.SIGTERM
    half = time.monotonic() + _GRACE
    known: set[int] = set()
    while found := _left_over(marked):
        for process in found:
            if process.pid not in known:
                known.add(process.pid)
                told(process.pid)
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, number)
        if time.monotonic() > latest:
            return [process.pid for process in found]
        if time.monotonic() > half:
            number = signal.SIGKILL
        time.sleep(0.05)
    return []


def _left_over(is_marked: Callable[[Sequence[bytes]], bool]) -> list[_Process]:
    alive = [process for process in _processes() if process.state not in "ZX" and process.pid != os.getpid()]
    marked = {process.pid for process in alive if is_marked(_environment(process.pid))}
    sessions = {process.session for process in alive if process.pid in marked} - {os.getsid(0)}
    return [process for process in alive if process.pid in marked or process.session in sessions]


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
