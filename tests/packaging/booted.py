# SPDX-License-Identifier: GPL-3.0-or-later
"""A Debian of this machine's release, booted in a container of its own: for what only a running systemd can show.

The root is made once, by tests/e2e/install.sh; what a test writes there goes to memory and is gone with the container.
It has a network of its own, in which it is alone.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tests.conftest import CANNOT
from tests.e2e.requirements import INSTALL, UNPACKED, program

ROOT = UNPACKED / "booted"
_CANNOT_MAKE = UNPACKED / "booted.cannot"
_ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}


_RUNLEVEL = r"""
rm -f /sbin/runlevel
printf '#!/bin/sh\necho N 2\n' >/sbin/runlevel
chmod 755 /sbin/runlevel
"""
"""As where init is sysvinit: invoke-rc.d asks it."""


def missing_for_booting() -> str | None:
    """Why no systemd can be booted here, in one line; None when it can."""
    if os.geteuid() != 0:
        return "a container is booted by root: run the tests as root"
    if _CANNOT_MAKE.exists():
        return f"{CANNOT}make a root with debootstrap: {_CANNOT_MAKE.read_text('utf-8', 'replace').strip()}"
    absent = [name for name in ("systemd-nspawn", "nsenter") if program(name) is None]
    if not (ROOT / "usr/lib/systemd/systemd").exists():
        absent.append(str(ROOT))
    if absent:
        return f"not installed: {', '.join(absent)}; to install: {INSTALL}"
    return _cannot_enter()


@cache
def _cannot_enter() -> str | None:
    """Why nothing runs in a container here: a machine that is one itself may not be allowed to."""
    with tempfile.TemporaryDirectory() as files:
        words = [*_container(Path(files), "--pipe"), "true"]
        done = subprocess.run(
            words, env=_ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
        )
    return f"{CANNOT}run systemd-nspawn: {done.stderr.strip()[-500:]}" if done.returncode else None


class CannotBoot(Exception):
    """The text is what systemd-nspawn said."""


class Booted:
    """Use `booted`.

    Args:
        leader: pid of its systemd.
    """

    def __init__(self, leader: int) -> None:
        self.leader = leader

    def run(self, *words: str, statuses: Sequence[int] = (0,), timeout: float = 120) -> str:
        """What a command says in there; AssertionError for another exit status."""
        # --root: where the tests run in a root of their own, the namespace alone would lead to the machine's
        enter = ["nsenter", "--all", "--root", "--target", str(self.leader)]
        done = subprocess.run(
            [*enter, *words],
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        said = done.stdout + done.stderr
        assert done.returncode in statuses, f"{' '.join(words)}: exit {done.returncode}\n{said}"
        return said

    def shell(self, script: str, *, statuses: Sequence[int] = (0,), timeout: float = 120) -> str:
        """The same of a script."""
        return self.run("sh", "-c", script, statuses=statuses, timeout=timeout)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "-P", name, unit).strip()

    def journal(self) -> str:
        """All that the units of the package have logged."""
        return self.run("journalctl", "--no-pager", "-o", "short-monotonic", "-u", "lmtp-proxy.*")


def in_root(files: Path, script: str) -> str:
    """What a script says in a machine on which no systemd runs, to its end. AssertionError if it fails."""
    done = subprocess.run(
        [*_container(files, "--pipe"), "sh", "-exc", _RUNLEVEL + script],
        env=_ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def _container(files: Path, *more: str) -> list[str]:
    words = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network", "--hostname=booted"]
    words += [f"--machine=lmtp-proxy-{os.getpid()}", f"--directory={ROOT}", "--volatile=overlay"]
    return [*words, f"--bind-ro={files}:/mnt", *more]


@contextmanager
def booted(files: Path) -> Iterator[Booted]:
    """A machine that is up. Raises CannotBoot.

    Args:
        files: a directory, there below /mnt.
    """
    log = files / "boot.log"
    with log.open("wb") as out:
        container = subprocess.Popen(
            _container(files, "--boot"), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        machine = _up(container, log)
        yield machine
    finally:
        container.terminate()
        try:
            container.wait(30)
        except subprocess.TimeoutExpired:
            container.kill()  # which ends all that is in it
            container.wait()


def _up(container: "subprocess.Popen[bytes]", log: Path) -> Booted:
    def leader() -> int | None:
        children = Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()
        for child in map(int, children):
            if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                return child
        return None

    deadline = time.monotonic() + 120
    while container.poll() is None and time.monotonic() < deadline:
        if (found := leader()) is not None:
            machine = Booted(found)
            if machine.run("systemctl", "is-system-running", statuses=range(256)).strip() in ("running", "degraded"):
                return machine
        time.sleep(0.1)
    raise CannotBoot(f"{CANNOT}boot a container: {log.read_text('utf-8', 'replace')[-2000:]}")


def files_for(package: Path, *more: Path) -> Path:
    """A directory with these packages, under their names."""
    directory = package.parent / "files"
    directory.mkdir(exist_ok=True)
    for each in (package, *more):
        shutil.copy2(each, directory)
    return directory
