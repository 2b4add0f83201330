# SPDX-License-Identifier: GPL-3.0-or-later
"""One command on each of several hosts, at once: what each says, or why it says nothing.

The answer is one line of JSON whose status is the exit status; anything else is no answer, a banner before it, too. A
host that writes nothing for its patience is given up, and so is one that does not end. Users go by the standard input,
as a remote shell reads arguments.
"""

import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from lmtp_proxy.ctl.arguments import WRONG_ARGUMENTS
from lmtp_proxy.ctl.client import Answer
from lmtp_proxy.ctl.drain import DONE, REFUSED, UNCERTAIN, UNPROVEN, Failed, Progress
from lmtp_proxy.ctl.fleet.file import Fleet, Host
from lmtp_proxy.ctl.fleet.interrupts import Interrupts
from lmtp_proxy.ctl.names import quoted
from lmtp_proxy.text import safe, shown, span

_MAX_ANSWER = 64 * 2**20  # octets
_MAX_ERRORS = 16384
_STATUSES = (DONE, REFUSED, UNCERTAIN, UNPROVEN, WRONG_ARGUMENTS)
_PLAIN = re.compile(r"[A-Za-z0-9@%+=:,./_-]+")  # what no shell takes for anything else
_LATER = 60  # seconds after which a command ends by itself whose starter has died
_TIMEOUT = "timeout"  # of coreutils, wherever it is
_KILLED = 5.0  # seconds for a process to end that was killed


@dataclass(frozen=True, slots=True)
class Said:
    """What a host said.

    Attributes:
        answer: its JSON object, None if there is none that can be trusted.
        status: its exit status if there is one.
        trouble: why there is no answer, in words.
        at: when it came, by time.monotonic().
    """

    host: str
    answer: Answer | None
    status: int = -1
    trouble: str = ""
    at: float = 0.0

    @property
    def done(self) -> bool:
        return self.answer is not None and self.status in (DONE, UNCERTAIN)

    @property
    def refused(self) -> bool:
        """It has said itself that nothing was changed."""
        return self.answer is not None and self.status in (REFUSED, WRONG_ARGUMENTS)

    @property
    def text(self) -> str:
        """Why it is not done."""
        if self.answer is None:
            return self.trouble
        error = self.answer.document.get("error")
        if not isinstance(error, str):
            error = "not all is quiet" if self.status == UNPROVEN else f"exit status {self.status}"
        return f"{error}; is its lmtp-proxyctl of this version?" if self.status == WRONG_ARGUMENTS else error

    @property
    def details(self) -> list[str]:
        """More lines about it, each with the host before it."""
        errors = self.answer.document.get("errors") if self.answer is not None else None
        lines = [line for line in errors if isinstance(line, str)] if isinstance(errors, list) else []
        return [f"{self.host}: {line}" for line in [*lines, *([self.text] if not self.done else [])]]


def listed(users: Sequence[str]) -> bytes:
    """As `--file -` reads them. Raises Failed if one cannot be said so."""
    lines = []
    for user in users:
        if any(character.isspace() for character in user):
            raise Failed(WRONG_ARGUMENTS, f'"{shown(user)}" has a blank, and cannot go by a list; nothing was changed')
        # A word with # in front is a comment, and a domain is nobody who could be quoted.
        line = user if user.startswith("@") else quoted(user)
        local_part, at, domain = line.rpartition("@") if "@" in line else (line, "", "")
        lines.append(f'"{local_part}"{at}{domain}' if line.startswith("#") else line)
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")


class Errands:
    """One for each of some hosts, all begun by the constructor.

    Attributes:
        said: of those that are at an end.
    """

    def __init__(
        self,
        fleet: Fleet,
        orders: Mapping[str, tuple[Sequence[str], bytes]],
        timeout: float,
        *,
        locked: bool = False,
        patience: float = 0.0,
    ) -> None:
        """orders: host -> words behind its command, and its standard input. timeout: seconds for each.

        locked: what is started keeps the lock of the fleet's file. patience: at least so many seconds.
        """
        self.said: dict[str, Said] = {}
        self._timeout = timeout
        self._patience = max(patience, fleet.patience)
        self._running: dict[str, _Errand] = {}
        for host in fleet.hosts:
            if host.name not in orders:
                continue
            words, told = orders[host.name]
            if unfit := [word for word in words if not _PLAIN.fullmatch(word)]:
                self.said[host.name] = Said(host.name, None, trouble=f"cannot be asked: a shell may read {unfit[0]!r}")
                continue
            try:
                self._running[host.name] = _Errand(host, words, told, timeout, fleet.handle if locked else -1)
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or error
                self.said[host.name] = Said(host.name, None, trouble=f"{host.command[0]} cannot be run: {why}")

    def wait(self, interrupts: Interrupts, progress: Progress, doing: str, most: float = float("inf")) -> bool:
        """Until each is at an end; False if an interrupt came first, or `most` seconds are over.

        doing: what they are to do.
        """
        end = time.monotonic() + most
        poll = select.poll()
        poll.register(interrupts, select.POLLIN)
        owners: dict[int, _Errand] = {}
        for errand in self._running.values():
            for handle in errand.handles:
                poll.register(handle, select.POLLIN)
                owners[handle] = errand
        while self._running:
            now = time.monotonic()
            if now > end:
                return False
            latest = min(end, *(errand.latest(self._patience) for errand in self._running.values()))
            ready = {handle for handle, _ in poll.poll(max(0.0, min(1.0, latest - now)) * 1000 + 1)}
            for handle in ready - {interrupts.fileno()}:
                if handle in owners and not owners[handle].read(handle):
                    poll.unregister(handle)
                    del owners[handle]
            for name, errand in list(self._running.items()):
                self._look_at(name, errand)
                if name not in self._running:
                    for handle in [handle for handle, owner in owners.items() if owner is errand]:
                        poll.unregister(handle)
                        del owners[handle]
                    errand.close()
            if interrupts.fileno() in ready:
                interrupts.seen()
                return not self._running
            if self._running:
                words = self._waiting()
                progress.waiting(f"{words} to {doing}", re.sub(r"[0-9.]+", "", words))  # they count seconds
        return True

    def give_up(self, why: str) -> None:
        """Those that have not ended are killed; what they have set going on their hosts may go on."""
        for name, errand in self._running.items():
            errand.kill()
            errand.close()
            self.said[name] = Said(name, None, trouble=why)
        self._running.clear()

    def leave(self, why: str) -> None:
        """Those that have not ended go on by themselves."""
        for name, errand in self._running.items():
            errand.close()
            self.said[name] = Said(name, None, trouble=why)
        self._running.clear()

    def _look_at(self, name: str, errand: "_Errand") -> None:
        if errand.ended:
            self.said[name] = errand.answer()
        elif errand.too_much:
            self.said[name] = Said(name, None, trouble="its answer does not end")
        elif (now := time.monotonic()) > errand.latest(self._patience):
            for_all = now > errand.began + self._timeout
            what = "no answer" if for_all or not errand.spoke else "not a word more"
            waited = self._timeout if for_all else self._patience
            self.said[name] = Said(name, None, trouble=f"{what} for {span(waited)}{errand.last_words}")
        else:
            return
        if not errand.ended:
            errand.kill()
        del self._running[name]

    def _waiting(self) -> str:
        return ", ".join(f"{name}{errand.last_words}" for name, errand in self._running.items())


class _Errand:
    """One command that runs."""

    def __init__(self, host: Host, words: Sequence[str], told: bytes, timeout: float, lock: int) -> None:
        self._host = host
        self._out = bytearray()
        self._err = bytearray()
        self.began = self._heard = time.monotonic()
        given = os.memfd_create("users", os.MFD_CLOEXEC)  # so nobody has to write while they read
        try:
            with open(given, "wb", closefd=False) as file:
                file.write(told)
            os.lseek(given, 0, os.SEEK_SET)
            # By coreutils' timeout, which ends it if we have died, and keeps the lock that ssh would close.
            self._process = subprocess.Popen(
                [_TIMEOUT, "-s", "KILL", str(int(timeout) + _LATER), *host.command, *words],
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[lock] if lock >= 0 else [],
                start_new_session=True,
            )
        finally:
            os.close(given)
        self._pipes = [pipe for pipe in (self._process.stdout, self._process.stderr) if pipe is not None]
        self._stdout, self._stderr = (pipe.fileno() for pipe in self._pipes)
        for handle in (self._stdout, self._stderr):
            os.set_blocking(handle, False)
        # Its end, and not that of its output: a child of ssh that stays (ControlPersist) keeps that open.
        self._pidfd = os.pidfd_open(self._process.pid)
        self._deadline = self.began + timeout

    @property
    def handles(self) -> tuple[int, int, int]:
        return (self._stdout, self._stderr, self._pidfd)

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def too_much(self) -> bool:
        return len(self._out) > _MAX_ANSWER

    @property
    def spoke(self) -> bool:
        return bool(self._out or self._err)

    @property
    def last_words(self) -> str:
        """` (its last line on stderr)`, or nothing."""
        text = self._err.decode("utf-8", "replace").rstrip()
        # Lines of progress are wrapped; the last one begins at the left.
        paragraph = re.split(r"\n(?! )", text)[-1]
        line = " ".join(paragraph.split()).removeprefix("lmtp-proxyctl: ")
        return f" ({shown(line, 300)})" if line else ""

    def latest(self, patience: float) -> float:
        return min(self._deadline, self._heard + patience)

    def read(self, handle: int) -> bool:
        """What is there; False at its end."""
        if handle == self._pidfd:
            return not self.ended
        buffer = self._out if handle == self._stdout else self._err
        for _ in range(64):
            try:
                data = os.read(handle, 65536)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._heard = time.monotonic()
            buffer += data
            if buffer is self._err and len(buffer) > 2 * _MAX_ERRORS:
                del buffer[:-_MAX_ERRORS]
            if self.too_much:
                return True
        return True

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILLED)

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        os.close(self._pidfd)

    def answer(self) -> Said:
        self.read(self._stdout)
        self.read(self._stderr)
        status = self._process.returncode
        text = self._out.decode("utf-8", "replace")
        try:
            document = json.loads(text) if text.endswith("\n") and text.count("\n") == 1 else None
        except (ValueError, RecursionError):
            document = None
        name = self._host.name
        if isinstance(document, dict) and document.get("status") == status and status in _STATUSES:
            return Said(name, Answer(document, name), status, at=time.monotonic())
        how = f"ended by signal {-status}" if status < 0 else f"exit status {status}"
        if isinstance(document, dict):
            error = document.get("error")
            why = f"{how}: {safe(error)}" if isinstance(error, str) else f"{how}, but its answer says otherwise"
        elif text.strip():
            first = shown(text.strip().splitlines()[0], 80)
            why = f'no answer that is one line of JSON and nothing else: it said "{first}" ({how})'
        else:
            why = f"no answer: {how}{self.last_words}"
        return Said(name, None, status, why)
