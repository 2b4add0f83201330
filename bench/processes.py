# SPDX-License-Identifier: GPL-3.0-or-later
"""A private directory and the processes started in it, all of which end when it is left, also by Ctrl-C.

What is started knows nothing of the terminal, so that Ctrl-C reaches this program alone, which ends the others by their
process id. Knows nothing of mail.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

PATIENCE = 10.0  # seconds from SIGTERM to SIGKILL
POLL = 0.01


class BenchError(Exception):
    """One line for whoever runs the bench: what went wrong, and where."""


class Stage:
    """A directory below /tmp (the path of a unix socket is short), and what was started in it."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="lpb-", dir="/tmp"))
        self.directory.chmod(0o755)  # Dovecot's processes run as users of their own
        self._started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "Stage":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._started):
            end(process)
        shutil.rmtree(self.directory, ignore_errors=True)

    def path(self, name: str) -> Path:
        return self.directory / name

    def write(self, name: str, text: str) -> Path:
        """A file in the directory, replaced as a whole."""
        path = self.path(name)
        new = path.with_suffix(".new")
        new.write_text(text, "utf-8")
        new.rename(path)
        return path

    def start(self, command: Sequence[str | Path], *, talks: bool = False) -> subprocess.Popen[str]:
        """Start a program; it ends with the stage at the latest. talks: its standard input and output are pipes.

        What it says otherwise goes to the file NAME.log, which `said` returns.
        """
        with self._log(command).open("ab") as log:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else log,
                stderr=log,
                text=True,
                cwd=self.directory,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def said(self, command: Sequence[str | Path]) -> str:
        """The end of what a program wrote, in one line."""
        return " / ".join(self._log(command).read_text("utf-8", "replace").split("\n")[-4:]).strip(" /")[-600:]

    def _log(self, command: Sequence[str | Path]) -> Path:
        return self.path(f"{Path(command[0]).name}.log")


def end(process: subprocess.Popen[str]) -> None:
    """SIGTERM; what is left of it and its children after PATIENCE is killed."""
    members = family(process.pid) if process.poll() is None else []
    if members:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pass
    for pid in members:
        if (pid == process.pid and process.poll() is None) or (pid != process.pid and _descends(pid, process.pid)):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def family(root: int) -> list[int]:
    """A process and all that descend from it now, parents first."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := stat_of(int(entry))):
            children.setdefault(int(stat[1]), []).append(int(entry))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def stat_of(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat behind the name (state, parent, group, session, ...); None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def _descends(pid: int, session: int) -> bool:
    """Whether it still is what was started: each program leads a session of its own."""
    stat = stat_of(pid)
    return stat is not None and int(stat[3]) == session


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Return once it is true; BenchError when it is not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"{what}: not within {seconds:g} s")
        time.sleep(POLL)
