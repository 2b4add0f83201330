# SPDX-License-Identifier: GPL-3.0-or-later
"""A private Perdition: IMAP in on a port of 127.0.0.1, each user's session to the server that a gdbm map names.

The map is opened anew for each login, so whoever replaces the file redirects the next login. Knows nothing about the
stores but their ports.
"""

import imaplib
import subprocess
from collections.abc import Mapping
from pathlib import Path

from .process import Pid, accepts_tcp, end_family, free_port, wait_until
from .requirements import perdition_map, program, run


class Perdition:
    """`map_text` holds lines of user:host:port; `map_file` is what makegdbm makes of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.imap_port = free_port()
        self.map_text = directory / "popmap"
        self.map_file = directory / "popmap.gdbm.db"
        self.pid_file = directory / "pid"
        self._process: subprocess.Popen[bytes] | None = None

    def write_map(self, ports: Mapping[str, int]) -> None:
        """Sends each of these users to a port of 127.0.0.1."""
        self.map_text.write_text("".join(f"{user}:127.0.0.1:{port}\n" for user, port in ports.items()), "ascii")
        makegdbm = program("makegdbm")
        assert makegdbm is not None
        new = self.directory / "popmap.new"
        run(makegdbm, str(new), stdin=self.map_text.read_text("ascii"))
        new.rename(self.map_file)

    def start(self, default_port: int) -> None:
        """Users who are not in the map go to `default_port` of 127.0.0.1."""
        command, library = program("perdition.imap4"), perdition_map()
        assert command is not None and library is not None
        arguments = f"-f /dev/null -P IMAP4 -b 127.0.0.1 -l {self.imap_port} -n -F + --no_daemon".split()
        arguments += ["-M", str(library), "-m", str(self.map_file), "-s", f"127.0.0.1:{default_port}"]
        arguments += ["-u", "nobody", "-g", "nogroup", "--pid_file", str(self.pid_file)]
        arguments += ["-o", "--imap_capability", "IMAP4 IMAP4REV1"]
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                [command, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(lambda: accepts_tcp(self.imap_port), 30, lambda: f"Perdition serving; it said:\n{self.log()}")

    def stop(self) -> None:
        """Ends it with all sessions."""
        if self._process is not None:
            end_family(Pid.of(self._process.pid), 3.0)
            self._process.wait(10)
            self._process = None

    def log(self) -> str:
        return (self.directory / "log").read_text("utf-8", "replace")

    def login(self, user: str, password: str) -> imaplib.IMAP4:
        imap = imaplib.IMAP4("127.0.0.1", self.imap_port, timeout=30)
        try:
            imap.login(user, password)
        except BaseException:
            imap.shutdown()
            raise
        return imap
