# SPDX-License-Identifier: GPL-3.0-or-later
"""A real terminal in which a command runs, and what is on its screen: tmux, on a server of its own."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path


class Tmux:
    """A terminal of its own size, on a server of its own."""

    def __init__(self, socket: Path, columns: int, rows: int, command: str) -> None:
        self._socket = socket
        size = ["-x", str(columns), "-y", str(rows)]
        self._run("-f", "/dev/null", "new-session", "-d", *size, command)

    def _run(self, *arguments: str) -> str:
        command = ["tmux", "-S", str(self._socket), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout

    def screen(self) -> list[str]:
        return self._run("capture-pane", "-p").splitlines()

    def shows(self, condition: Callable[[list[str]], bool], timeout: float = 20) -> list[str]:
        """The screen, once `condition` holds for its lines."""
        latest = time.monotonic() + timeout
        while not condition(screen := self.screen()):
            assert time.monotonic() < latest, "\n".join(screen)
            time.sleep(0.1)
        return screen

    def keys(self, *names: str) -> None:
        """As tmux names them: Enter, C-c."""
        self._run("send-keys", *names)

    def close(self) -> None:
        self._run("kill-server")
