# SPDX-License-Identifier: GPL-3.0-or-later
"""Has Postfix try again, at once, the mail that was deferred for some users: `postqueue -i` for exactly these ids.

The ids come from the proxy's receipts. A mail that was refused a moment ago is still in Postfix' active queue, where
`postqueue -i` does nothing for it, and a moment later waits for minutes: so the proxy is asked again, and the command
run again, until it has seen each mail once more or the time is up. It changes nothing in the proxy.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lmtp_proxy.ctl.client import Answer, ControlClient

POSTQUEUE = ("postqueue",)
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where postqueue is, and where cron and other users than root do not look."""
WAIT = 10.0
"""Seconds for all that was asked for to come again."""

ARRIVED = "arrived"  # delivered, or refused for good: either way the sender knows
AGAIN = "deferred again"
GONE = "not in the queue"
ON_HOLD = "on hold in the queue"
WAITING = "not tried yet"
FAILED = "postqueue failed"

_AT_ONCE = 1000  # users in one question, as many as are taken
_ASK = 60.0  # seconds for the proxy's answer
_RUN = 30.0  # seconds for one run of postqueue
_OUTPUT = 2000  # characters of what it says
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_LOOK_AFTER = 1.0  # seconds until the queue itself is looked at, which takes Postfix some time if it is long
_MISSED = 2  # looks: a mail that goes from one queue to another may be missed by one


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


@dataclass(slots=True)
class Mail:
    """One mail that was deferred for one user.

    Attributes:
        why: of the last time.
        last: then, in seconds since the epoch.
        fate: ARRIVED, AGAIN, GONE, ON_HOLD, WAITING or FAILED.
    """

    user: str
    queue_id: str
    why: str
    last: float
    fate: str = WAITING

    @property
    def settled(self) -> bool:
        """It waits for nothing any more, as far as Postfix and the proxy know."""
        return self.fate in (ARRIVED, GONE)


@dataclass(frozen=True, slots=True)
class RequeueOutcome:
    """What was done.

    Attributes:
        mails: the oldest first within each user.
        runs: the last one for each queue id.
    """

    mails: Sequence[Mail]
    runs: Mapping[str, PostqueueRun]
    seconds: float

    def ids(self, user: str) -> list[str]:
        """The queue ids that were deferred for `user`."""
        return [mail.queue_id for mail in self.mails if mail.user == user]

    @property
    def done(self) -> bool:
        """Nothing waits any more."""
        return all(mail.settled for mail in self.mails)

    @property
    def failed(self) -> list[PostqueueRun]:
        """The runs that did not go well."""
        return [run for run in self.runs.values() if not run.ok]


def deferred(client: ControlClient, users: Sequence[str]) -> list[Mail]:
    """What is deferred for `users`, written as in `users:`. Raises ControlError."""
    return _known(client, users)[0]


def _known(client: ControlClient, users: Sequence[str]) -> tuple[list[Mail], int]:
    """What is deferred for them, and how many deliveries are under way that will be."""
    mails: list[Mail] = []
    cut_off = 0
    for answer in ask(client, users):
        cut_off += answer.integer("cut_off")
        for user, known in answer.object("users").document.items():
            rows = Answer(known, client.path).objects("deferred")
            mails += [Mail(user, row.text("queue_id"), row.text("why"), row.number("last")) for row in rows]
    return mails, cut_off


def ask(client: ControlClient, users: Sequence[str]) -> Iterator[Answer]:
    """What is known of `users`, in one or more answers. Raises ControlError; Refusal 409 without `config.receipts`."""
    names = list(dict.fromkeys(users))
    for start in range(0, max(len(names), 1), _AT_ONCE):
        yield client.post("/receipts", {"users": names[start : start + _AT_ONCE]}, timeout=_ASK)


def command_for(queue_id: str, command: Sequence[str] = POSTQUEUE) -> tuple[str, ...]:
    """What is run for one mail. command: how postqueue is called."""
    return (*command, "-i", queue_id)


def requeue(
    client: ControlClient,
    users: Sequence[str],
    command: Sequence[str] = POSTQUEUE,
    *,
    wait: float = WAIT,
    waiting: Callable[[int], None] = lambda _: None,
) -> RequeueOutcome:
    """Runs `command` with `-i ID` for each mail that is deferred for `users`, again until the proxy has seen it.

    Mail that is still coming in for the backend from which they were moved is waited for: it will be deferred, too.
    command: postqueue and its options as an argument list, as `("postqueue", "-c", "/etc/postfix-in")`. wait: seconds
    at most. waiting: called now and then with the number of mails that are waited for. Raises ControlError: of the
    first question, nothing was done; of a later one, the commands were run.
    """
    began = time.monotonic()
    work = _Work(tuple(command))
    mails, cut_off = _known(client, users)
    work.learn(mails)
    pause = _FIRST_PAUSE
    while work.run() or cut_off:
        if time.monotonic() - began >= wait:
            break
        waiting(len(work.open) + cut_off)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
        mails, cut_off = _known(client, users)
        work.learn(mails)
        if work.open and time.monotonic() - began >= _LOOK_AFTER:
            work.look()
    return RequeueOutcome(list(work.mails.values()), work.runs, time.monotonic() - began)


@dataclass(slots=True)
class _Work:
    command: tuple[str, ...]
    mails: dict[tuple[str, str], Mail] = field(default_factory=dict)
    runs: dict[str, PostqueueRun] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)

    @property
    def open(self) -> list[Mail]:
        """Those that may still be tried."""
        return [mail for mail in self.mails.values() if mail.fate == WAITING]

    def learn(self, found: Sequence[Mail]) -> None:
        """What the proxy says now. What it does not list any more has arrived."""
        now = {(mail.user, mail.queue_id): mail for mail in found}
        for name, mail in self.mails.items():
            seen = now.pop(name, None)
            if seen is None:
                mail.fate = ARRIVED
            elif seen.last > mail.last:
                mail.fate, mail.why, mail.last = AGAIN, seen.why, seen.last
        self.mails.update(now)

    def run(self) -> bool:
        """Once for each mail that is not settled; False if there is none (any more)."""
        for queue_id in dict.fromkeys(mail.queue_id for mail in self.open):
            run = _run(command_for(queue_id, self.command))
            self.runs[queue_id] = run
            if not run.ok:
                self._settle({queue_id}, FAILED)
                if run.status is None:  # nor will it for the others
                    self._settle({mail.queue_id for mail in self.open}, FAILED)
                    break
        return bool(self.open)

    def look(self) -> None:
        """What has left the queue, by whatever hand, or is on hold there, is not waited for."""
        wanted = {mail.queue_id for mail in self.open}
        queues = _queues(self.command, wanted)
        if queues is None:
            return
        for queue_id in wanted - queues.keys():
            self.missed[queue_id] = self.missed.get(queue_id, 0) + 1
        self._settle({queue_id for queue_id in wanted if self.missed.get(queue_id, 0) >= _MISSED}, GONE)
        self._settle({queue_id for queue_id, queue in queues.items() if queue == "hold"}, ON_HOLD)

    def _settle(self, queue_ids: Collection[str], fate: str) -> None:
        for mail in self.open:
            if mail.queue_id in queue_ids:
                mail.fate = fate


def _queues(command: Sequence[str], wanted: Collection[str]) -> dict[str, str] | None:
    """The queue that each of `wanted` is in, by `postqueue -j`; None if that cannot tell (before Postfix 3.1)."""
    try:
        listing = (*_found(command), "-j")
        done = subprocess.run(listing, stdin=subprocess.DEVNULL, capture_output=True, timeout=_RUN, check=True)
        listed = [json.loads(line) for line in done.stdout.splitlines()]
        return {each["queue_id"]: each["queue_name"] for each in listed if each["queue_id"] in wanted}
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return None


def _found(command: Sequence[str]) -> tuple[str, ...]:
    """The same, with the path of its program where that is in SBIN alone."""
    path = os.pathsep.join(filter(None, [os.environ.get("PATH"), SBIN]))
    return (shutil.which(command[0], path=path) or command[0], *command[1:])


def _run(command: tuple[str, ...]) -> PostqueueRun:
    """One run, as an argument list, never by a shell."""
    try:
        done = subprocess.run(
            _found(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_RUN
        )
    except subprocess.TimeoutExpired:
        return PostqueueRun(command, None, f"it did not end within {_RUN:.0f} s")
    except (OSError, ValueError) as error:
        return PostqueueRun(command, None, f"cannot be run: {getattr(error, 'strerror', None) or error}")
    return PostqueueRun(command, done.returncode, done.stdout[:_OUTPUT].decode("utf-8", "backslashreplace").strip())
