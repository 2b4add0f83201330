# SPDX-License-Identifier: GPL-3.0-or-later
"""The file that names the hosts of a fleet, and how each is reached. It is YAML:

    hosts:
      mx1: [lmtp-proxyctl]
      mx2: [ssh, -oBatchMode=yes, mx2.example.org, lmtp-proxyctl]

What it says is run, so it must be written by nobody but its reader or root.
"""

import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lmtp_proxy.config.types import Section
from lmtp_proxy.config.yaml_text import Problem, Scalar, Sequence, parse
from lmtp_proxy.ctl.drain import REFUSED, Failed, Progress
from lmtp_proxy.ctl.fleet.interrupts import INTERRUPTED, Interrupts
from lmtp_proxy.text import shown

_KEYS = ("hosts", "patience")
_PATIENCE = 30.0
_LEAST, _MOST = 2.0, 3600.0  # seconds; whoever works on an order says so each second
_MAX = 2**20  # octets
_POLL = 0.05


@dataclass(frozen=True, slots=True)
class Host:
    """name: what the site calls it. command: what runs lmtp-proxyctl there; its arguments are put behind."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fleet:
    """patience: seconds in which a host says something."""

    path: str
    hosts: tuple[Host, ...]
    patience: float
    handle: int


@contextmanager
def the_fleet(path: str) -> Iterator[Fleet]:
    """What the file at `path` says; its handle is closed at the end. Raises Failed with all that is wrong."""
    try:
        # To open a pipe would wait for its writer.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _refusal(path, f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise _refusal(path, "cannot be read: there can be no file of this name") from None
    try:
        _check_writers(path, os.fstat(handle))
        yield _parsed(path, handle)
    finally:
        os.close(handle)


def _refusal(path: str, what: str) -> Failed:
    return Failed(REFUSED, f"{shown(path, 4096)}: {what}; nothing was changed")


def _check_writers(path: str, status: os.stat_result) -> None:
    """Whoever can write the file, or put another in its place, runs commands as us."""
    if not stat.S_ISREG(status.st_mode):
        raise _refusal(path, "cannot be read: it is no regular file")
    me = os.geteuid()
    if status.st_uid not in (0, me):
        raise _refusal(path, f"belongs to user {status.st_uid}, and its commands would run as you: chown it")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _refusal(path, f"others may write it (mode {stat.S_IMODE(status.st_mode):04o}): chmod go-w")
    directory = os.path.dirname(os.path.realpath(path))
    above = os.stat(directory)
    if above.st_uid not in (0, me) or (
        above.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not above.st_mode & stat.S_ISVTX
    ):
        raise _refusal(path, f"others may put another file in its place: see who may write {shown(directory, 4096)}")


def _parsed(path: str, handle: int) -> Fleet:
    with open(handle, "rb", closefd=False) as file:
        data = file.read(_MAX + 1)
    if len(data) > _MAX:
        raise _refusal(path, f"is larger than {_MAX} octets")
    try:
        document = parse(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise _refusal(path, "is not UTF-8 text") from None
    problems: list[Problem] = []
    hosts: list[Host] = []
    patience = _PATIENCE
    if document.root is not None:
        top = Section(document.root, "", _KEYS, problems)
        patience = top.value("patience", _seconds, _PATIENCE)
        hosts = list(_hosts(top))
    found = sorted([*document.problems, *problems], key=lambda problem: problem.line)
    if not hosts and not found:
        found.append(Problem(0, "hosts", "names no host: a line for each, as `mx1: [ssh, mx1, lmtp-proxyctl]`"))
    if found:
        raise Failed(REFUSED, "nothing was changed", [_line(path, problem) for problem in found])
    return Fleet(path, tuple(hosts), patience, handle)


def _line(path: str, problem: Problem) -> str:
    place = f"{shown(path, 4096)}:{problem.line}" if problem.line else shown(path, 4096)
    text = "is empty: name the hosts below `hosts:`" if problem.text.startswith("is empty:") else problem.text
    return f"{place}: {problem.key}: {text}" if problem.key else f"{place}: {text}"


def _hosts(top: Section) -> Iterator[Host]:
    section = top.section("hosts", None)
    if section is None:
        return
    for name in section.entries:
        if command := _command(section, name):
            yield Host(name, command)


def _command(section: Section, name: str) -> tuple[str, ...]:
    node = section.node(name)
    if node is None:
        return ()
    if not name or not name.isprintable():
        section.fail(name, "must be a name that can be printed")
        return ()
    if not isinstance(node, Sequence) or not node.items or not all(isinstance(item, Scalar) for item in node.items):
        section.fail(name, "must be an argument list, as [ssh, mx1, lmtp-proxyctl], or [lmtp-proxyctl] for this host")
        return ()
    words = tuple(item.text for item in node.items if isinstance(item, Scalar))
    if "\0" in "".join(words) or not words[0]:
        section.fail(name, "names no program")
    elif shutil.which(words[0]) is None:
        section.fail(name, f"there is no program {shown(words[0])}, or it may not be run")
    return words


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not _LEAST <= value <= _MOST:
        raise ValueError(f"must be seconds, {_LEAST:g} to {_MOST:g}")
    return value


@contextmanager
def locked(fleet: Fleet, timeout: float, progress: Progress, interrupts: Interrupts) -> Iterator[None]:
    """One that changes hosts at a time, until the fleet's handle is closed by all who have it.

    What it starts inherits it: when this process has died, the next one waits for that. Raises Failed.
    """
    latest = time.monotonic() + timeout
    doing = f"the lock of {shown(fleet.path, 4096)}: another lmtp-proxyctl is at work, or what a dead one has begun"
    while True:
        try:
            fcntl.flock(fleet.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= latest:
                raise Failed(REFUSED, f"{doing}, still after {timeout:g} s; nothing was changed") from None
        if interrupts.count:
            raise Failed(INTERRUPTED, f"nothing was changed; interrupted while waiting for {doing}")
        progress.waiting(doing)
        time.sleep(_POLL)
    progress.step(progress.state)
    yield  # and it is not given up here, which would take it from those who have inherited it
