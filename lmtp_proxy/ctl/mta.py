# SPDX-License-Identifier: GPL-3.0-or-later
"""The MTA in front of the proxy, by its own commands: one mail tried again, the whole queue listed.

They are run as argument lists, never by a shell. What cannot be done is an answer, no exception. How the listings look
was seen at Postfix 3.7, Exim 4.96, Sendmail 8.17 and OpenSMTPD 6.8.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where these programs are, and where cron and other users than root do not look."""
POSTFIX, EXIM, SENDMAIL, OPENSMTPD = "postfix", "exim", "sendmail", "opensmtpd"
OWN = "own"
"""A command of the site, for one user at a time."""
DEFERRED: Final = "deferred"

_RUN = 30.0  # seconds for one run
_OF_A_RUN = {EXIM: 600.0, SENDMAIL: 600.0, OWN: 600.0}  # these wait for the store, which may take its time
_OUTPUT = 2000  # characters of what it says
_PLACE = re.compile(r"\{\{|\}\}|\{(user|address)\}")
_EXIM = re.compile(r" *[0-9]+[mhd] +\S+ ([0-9A-Za-z]+-[0-9A-Za-z]+-[0-9A-Za-z]+) <")
_SENDMAIL = re.compile(r"([0-9A-Za-z]{12,})([*X-]?) +\S")


@dataclass(frozen=True, slots=True)
class QueueRun:
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
        queue: DEFERRED, or Postfix's `active`, `incoming`, `hold` or `maildrop`; the others' `active`.
        recipients: those that it waits for, as the envelope has them, each with why; "" if it was not tried.
    """

    queue: str
    recipients: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Mta:
    """Which MTA it is, and how its program is called.

    Attributes:
        name: POSTFIX, EXIM, SENDMAIL, OPENSMTPD or OWN.
        command: the program and its options; of OWN the whole command, with {user} and {address} in it.
        domain: of OWN, what makes an address of a bare user.
    """

    name: str = POSTFIX
    command: tuple[str, ...] = ("postqueue",)
    domain: str | None = None

    @property
    def names_mails(self) -> bool:
        """It can say by XFORWARD which mail it is. If not, a mail is found in its queue by its recipient."""
        return self.name == POSTFIX

    @property
    def failed(self) -> str:
        """What is said of a mail for which its command failed."""
        return f"{'the command' if self.name == OWN else PROGRAMS[self.name][0]} failed"

    @property
    def is_there(self) -> bool:
        """Its program can be run."""
        return shutil.which(_found(self.command)[0]) is not None

    def attempt(self, queue_id: str) -> tuple[str, ...]:
        """What is run for one mail; of OWN, for one user."""
        if self.name == OWN:
            address = f"{queue_id}@{self.domain}" if self.domain and "@" not in queue_id else queue_id
            values = {"user": queue_id, "address": address}
            return tuple(_PLACE.sub(lambda at: values[at[1]] if at[1] else at[0][0], each) for each in self.command)
        of_id = f"-qI{queue_id}" if self.name == SENDMAIL else queue_id
        return (*self.command, *_ATTEMPT[self.name], of_id)

    @property
    def listing(self) -> tuple[str, ...]:
        """What lists its queue; empty for OWN."""
        return () if self.name == OWN else (*self.command, *_LISTING[self.name])

    def run(self, command: tuple[str, ...]) -> QueueRun:
        """One run."""
        most = _OF_A_RUN.get(self.name, _RUN)
        try:
            done = subprocess.run(
                _found(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                timeout=most,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return QueueRun(command, None, f"it did not end within {most:.0f} s")
        except (OSError, ValueError) as error:
            return QueueRun(command, None, f"cannot be run: {getattr(error, 'strerror', None) or error}")
        output = done.stdout[:_OUTPUT].decode("utf-8", "backslashreplace").strip()
        return QueueRun(command, done.returncode, output)

    def listed(self) -> dict[str, Queued] | None:
        """All that is in the queue, by queue id; None if that cannot be told, as before Postfix 3.1, and of OWN."""
        if self.name == OWN:
            return None
        try:
            done = subprocess.run(
                _found(self.listing), stdin=subprocess.DEVNULL, capture_output=True, timeout=_RUN, check=True
            )
            return dict(_READ[self.name](done.stdout.decode("utf-8", "surrogateescape")))
        except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError, AttributeError):
            return None


PROGRAMS: Final = {
    POSTFIX: ("postqueue",),
    EXIM: ("exim4",),
    SENDMAIL: ("sendmail",),
    OPENSMTPD: ("smtpctl",),
}
"""How each is called where nobody says it."""
_ATTEMPT: Final = {POSTFIX: ("-i",), EXIM: ("-M",), SENDMAIL: (), OPENSMTPD: ("schedule",)}
_LISTING: Final = {POSTFIX: ("-j",), EXIM: ("-bp",), SENDMAIL: ("-bp",), OPENSMTPD: ("show", "queue")}


def mta_called(name: str, command: tuple[str, ...] | None = None) -> Mta:
    """The MTA with this name, called as usual or by `command`. Raises ValueError for a name that is none."""
    if name not in PROGRAMS:
        raise ValueError(f"must be {', '.join(PROGRAMS)} or an argument list, not {name!r}")
    return Mta(name, command or PROGRAMS[name])


# --- listings --------------------------------------------------------------------------------------------------------


def _postfix(text: str) -> Iterator[tuple[str, Queued]]:
    """An object a line."""
    for line in text.splitlines():
        entry = json.loads(line)
        recipients = entry.get("recipients", ())
        if not isinstance(recipients, list | tuple):
            raise TypeError
        waiting = tuple((each["address"], each.get("delay_reason", "")) for each in recipients)
        yield entry["queue_id"], Queued(str(entry["queue_name"]), waiting)


def _exim(text: str) -> Iterator[tuple[str, Queued]]:
    """A line for each mail, and one for each recipient: with a D in front if it is done."""
    queue_id, waiting = "", list[tuple[str, str]]()
    for line in text.splitlines():
        if line.startswith(" " * 7):
            if line.startswith(" " * 10):
                waiting.append((line[10:], ""))
        elif line.strip():
            if queue_id:
                yield queue_id, Queued(DEFERRED, tuple(waiting))
            head = _EXIM.match(line)
            queue_id, waiting = head[1] if head is not None else "", []
    if queue_id:
        yield queue_id, Queued(DEFERRED, tuple(waiting))


def _sendmail(text: str) -> Iterator[tuple[str, Queued]]:
    """A line for each mail, why in parentheses, and its recipients behind tabs."""
    queue_id, queue, why, waiting = "", DEFERRED, "", list[tuple[str, str]]()
    for line in text.splitlines():
        if (head := _SENDMAIL.match(line)) is not None:
            if queue_id:
                yield queue_id, Queued(queue, tuple(waiting))
            queue_id, queue, why, waiting = head[1], "active" if head[2] == "*" else DEFERRED, "", []
        elif line.startswith("\t\t\t") and queue_id:
            waiting.append((line.strip().removeprefix("<").removesuffix(">"), why))
        elif line.strip().startswith("(") and line.startswith(" "):
            why = line.strip()[1:].removesuffix(")")
    if queue_id:
        yield queue_id, Queued(queue, tuple(waiting))
    if "Total requests:" not in text:
        raise ValueError("no list")


def _opensmtpd(text: str) -> Iterator[tuple[str, Queued]]:
    """An envelope a line, of one recipient each: id, family, mda or mta, ..., the sixth its recipient, the last why."""
    for line in text.splitlines():
        parts = line.split("|", 13)
        if len(parts) < 12:
            raise ValueError(line)
        why = parts[13].strip('"').removeprefix("mail.lmtp: LMTP server error: ") if len(parts) == 14 else ""
        yield parts[0], Queued("active" if parts[11] == "inflight" else DEFERRED, ((parts[5], why),))


_READ: Final[dict[str, Callable[[str], Iterator[tuple[str, Queued]]]]] = {
    POSTFIX: _postfix,
    EXIM: _exim,
    SENDMAIL: _sendmail,
    OPENSMTPD: _opensmtpd,
}


def _found(command: tuple[str, ...]) -> tuple[str, ...]:
    """The same, with the path of its program where that is in SBIN alone."""
    path = os.pathsep.join(filter(None, [os.environ.get("PATH"), SBIN]))
    return (shutil.which(command[0], path=path) or command[0], *command[1:])
