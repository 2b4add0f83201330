# SPDX-License-Identifier: GPL-3.0-or-later
"""Postfix's command postqueue: one mail tried again, the whole queue listed.

It is run as an argument list, never by a shell. What it cannot do is an answer, no exception.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

POSTQUEUE = ("postqueue",)
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where postqueue is, and where cron and other users than root do not look."""

_RUN = 30.0  # seconds for one run
_OUTPUT = 2000  # characters of what it says


@dataclass(frozen=True, slots=True)
class PostqueueRun:
    """One command.

    Attributes:
        status: exit status, None where it could not be run or did not end.
        output: what it said, cut.
    """

    command: tuple[str, ...]
    status: int | None
    output: str

    @property
    def ok(self) -> bool:
        return self.status == 0


@dataclass(frozen=True, slots=True)
class Queued:
    """One mail in the queue.

    Attributes:
        queue: `deferred`, `active`, `incoming`, `hold` or `maildrop`.
        recipients: those that it waits for, as the envelope has them, each with why; "" if it was not tried.
    """

    queue: str
    recipients: tuple[tuple[str, str], ...]


def command_for(queue_id: str, command: Sequence[str] = POSTQUEUE) -> tuple[str, ...]:
    """What is run for one mail. command: how postqueue is called."""
    return (*command, "-i", queue_id)


def run(command: tuple[str, ...]) -> PostqueueRun:
    """One run."""
    try:
        done = subprocess.run(
            _found(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_RUN
        )
    except subprocess.TimeoutExpired:
        return PostqueueRun(command, None, f"it did not end within {_RUN:.0f} s")
    except (OSError, ValueError) as error:
        return PostqueueRun(command, None, f"cannot be run: {getattr(error, 'strerror', None) or error}")
    return PostqueueRun(command, done.returncode, done.stdout[:_OUTPUT].decode("utf-8", "backslashreplace").strip())


def listed(command: Sequence[str]) -> dict[str, Queued] | None:
    """All that is in the queue, by queue id, from `postqueue -j`; None if that cannot tell (before Postfix 3.1)."""
    try:
        listing = (*_found(command), "-j")
        done = subprocess.run(listing, stdin=subprocess.DEVNULL, capture_output=True, timeout=_RUN, check=True)
        return {each["queue_id"]: _queued(each) for each in map(json.loads, done.stdout.splitlines())}
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _queued(entry: dict[str, object]) -> Queued:
    recipients = entry.get("recipients", ())
    if not isinstance(recipients, list | tuple):
        raise TypeError
    return Queued(
        str(entry["queue_name"]), tuple((each["address"], each.get("delay_reason", "")) for each in recipients)
    )


def _found(command: Sequence[str]) -> tuple[str, ...]:
    """The same, with the path of its program where that is in SBIN alone."""
    path = os.pathsep.join(filter(None, [os.environ.get("PATH"), SBIN]))
    return (shutil.which(command[0], path=path) or command[0], *command[1:])
