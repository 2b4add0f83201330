"""The real proxy with its listening socket passed to it, as systemd does it: the socket outlives the process."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

from tests.support.proxy import PROGRAM, ProxyProcess

# LISTEN_PID must be the pid of the program itself, which only whoever becomes it can know.
_BECOME = 'LISTEN_PID=$$ LISTEN_FDS="$1" exec "${@:3}" 3<&"$2"'


class PassedSocketProxy(ProxyProcess):
    """Each process gets `listener` as descriptor 3. count: what LISTEN_FDS says."""

    def __init__(
        self,
        config: Mapping[str, Mapping[str, object]],
        listener: socket.socket,
        *,
        count: str = "1",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(config, environment=environment)
        self._listener = listener
        self._count = count

    def spawn(self, arguments: Sequence[str] | None = None) -> subprocess.Popen[bytes]:
        """Starts the program without waiting for anything."""
        handle = str(self._listener.fileno())
        program = [sys.executable, str(PROGRAM), *(arguments if arguments is not None else ("-c", self.config_path))]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                ["/bin/bash", "-c", _BECOME, "bash", self._count, handle, *program],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                cwd=self.directory,
                pass_fds=[self._listener.fileno()],
            )
        return self.process


def listening_unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(128)
    return listener
