# SPDX-License-Identifier: GPL-3.0-or-later
"""What a dead run has left running: found by what a command cannot shed, ended, and proved to have ended.

A keeper that outlives its run ends all by itself, and leaves its word in the lock of the step. Where it was killed,
too, there are its command's process, by pid and start, with its session; whoever holds the lock; whoever has the mark
in the environment; and what came from any of these. What is found and cannot be told from somebody else's is left
alone, and the user's migration does not go on.
"""

import fcntl
import os
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

from lmtp_proxy.ctl.migrate import keeper
from lmtp_proxy.ctl.migrate.hooks import MARK, STEP, Begun
from lmtp_proxy.ctl.migrate.keeper import Process

_MODE = 0o600
_LOOK = 0.05
_MOMENT = 1.0
_PATIENCE = keeper.GRACE + keeper.KILL + 2.0  # seconds for a keeper to end all


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A command of which nobody knows that all has ended.

    Attributes:
        boot: see `boot`.
        mirror: it deletes in the new store.
    """

    step: int
    user: str
    name: str
    boot: str
    begun: Begun
    mirror: bool


def boot() -> str:
    """Names this start of the machine, or of the container: of another one nothing runs here."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            name = file.read().strip()
    except OSError:
        name = ""
    first = keeper.process(1)
    return f"{name} {first.start if first else 0}"


def lock_path(journal: str, step: int) -> str:
    return f"{journal}.step{step}"


def take_lock(journal: str, step: int) -> int:
    """A descriptor that the command of the step is to inherit. Raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    handle = os.open(lock_path(journal, step), flags, _MODE)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(handle)
        raise
    return handle


def forget_lock(journal: str, step: int) -> None:
    with suppress(OSError):
        os.unlink(lock_path(journal, step))


def settle(
    left: Unsettled, journal: str, told: Callable[[int], None] = lambda pid: None, *, looked: bool = False
) -> str | None:
    """Ends what is left of a command. Returns why that is not proved: what a human has to look for.

    told: is called with each process that is ended. looked: a human has, and what is in doubt is nothing of ours.
    """
    if left.boot != boot():
        return None
    _wait_for_keeper(left, told)
    if _came_to_its_end(journal, left.step):
        return None
    began = time.monotonic()
    asked: set[int] = set()
    sessions: set[int] = set()
    while found := _certain(left, journal, sessions):
        late = time.monotonic() - began
        for each in found:
            if each.pid not in asked:
                asked.add(each.pid)
                told(each.pid)
                keeper.send(signal.SIGTERM, each)
                keeper.send(signal.SIGCONT, each)
            elif late > keeper.GRACE:
                keeper.send(signal.SIGKILL, each)
        if late > _PATIENCE:
            return f"{_pids(found)} of its {left.name} cannot be ended: kill -KILL, or wait for it"
        time.sleep(_LOOK)
    if not looked and (found := _doubtful(left)):
        return f"{_pids(found)} may be of its {left.name}, and may be another's: end it if it is"
    if _is_held(journal, left.step):
        return f"{lock_path(journal, left.step)} is held by a process that cannot be seen from here: end it"
    if left.mirror and not looked:
        what = f"of its {left.name} nobody knows whether all has ended, as its keeper was killed, too"
        return f"{what}: see that nothing of it runs"
    return None


def _pids(found: Collection[Process]) -> str:
    return f"process {' '.join(str(each.pid) for each in found)}"


def _is(pid: int, start: int) -> Process | None:
    """The process, if it lives and is still this one."""
    found = keeper.process(pid)
    return found if found is not None and found.alive and found.start == start else None


def _wait_for_keeper(left: Unsettled, told: Callable[[int], None]) -> None:
    latest = time.monotonic() + _PATIENCE
    begun = left.begun
    said = False
    while (found := _is(begun.keeper, begun.keeper_start)) is not None and time.monotonic() < latest:
        keeper.send(signal.SIGCONT, found)
        if not said and _is(begun.pid, begun.start) is not None:
            told(begun.pid)
        said = True
        time.sleep(_LOOK)


def _came_to_its_end(journal: str, step: int) -> bool:
    try:
        with open(lock_path(journal, step), "rb") as file:
            return file.read(len(keeper.ENDED)) == keeper.ENDED
    except OSError:
        return False


def _certain(left: Unsettled, journal: str, sessions: set[int]) -> list[Process]:
    """Who is of the command, for sure.

    sessions: those that were found to be its own. Who was forked while they were ended outlives the first of them.
    """
    begun = left.begun
    everybody = [each for each in keeper.processes() if each.alive and each.pid != os.getpid()]
    identity = _identity(lock_path(journal, left.step))
    marks = {f"{MARK}={journal}".encode("utf-8", "surrogateescape"), f"{STEP}={left.step}".encode()}
    first = {
        each.pid
        for each in everybody
        if (each.pid, each.start) in ((begun.pid, begun.start), (begun.keeper, begun.keeper_start))
        or (identity is not None and _holds(each.pid, identity))
        or marks <= _environment(each.pid)
    }
    # A session bears the number of the process that began it: as long as that one is there, nobody else's does.
    sessions.update(each.session for each in everybody if each.pid in first)
    if (leader := keeper.process(begun.pid)) is not None and leader.start == begun.start:  # a zombie, perhaps
        sessions.add(begun.pid)
    sessions -= {os.getsid(0)}
    mine = {each.pid for each in everybody if each.pid in first or each.session in sessions}
    mine |= {each.pid for each in keeper.below(mine, everybody)}
    return [each for each in everybody if each.pid in mine]


def _doubtful(left: Unsettled) -> list[Process]:
    """Who is in a session or group of that number, whose first process is gone: it may have been given out again."""
    number = left.begun.pid
    leader = keeper.process(number)
    if leader is not None:  # another one, or it would have been found: so none of ours is left in that session
        return []
    return [each for each in keeper.processes() if each.alive and number in (each.session, each.group)]


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _holds(pid: int, identity: tuple[int, int]) -> bool:
    """Whether the process has the lock by a descriptor that it was given; who only reads the file has not."""
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                status = os.stat(f"/proc/{pid}/fd/{name}")
                if (status.st_dev, status.st_ino) == identity:
                    with open(f"/proc/{pid}/fdinfo/{name}", "rb") as file:
                        if b"FLOCK" in file.read():
                            return True
    return False


def _is_held(journal: str, step: int) -> bool:
    """Now and for a moment: a process that is just being started has what its parent has."""
    latest = time.monotonic() + _MOMENT
    while _held(journal, step):
        if time.monotonic() > latest:
            return True
        time.sleep(_LOOK)
    return False


def _held(journal: str, step: int) -> bool:
    try:
        handle = os.open(lock_path(journal, step), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def _environment(pid: int) -> set[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return set(file.read().split(b"\0"))
    except OSError:
        return set()
