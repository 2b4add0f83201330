# SPDX-License-Identifier: GPL-3.0-or-later
"""A private Dovecot without mailboxes: an LMTP proxy that hands all it takes on to one TCP address.

It looks users up without their domain, in lower case, and so tells the next server of each by another name than it
was given, with the former one as ORCPT.
"""

import subprocess
from pathlib import Path

from .machine import HERE
from .process import Pid, accepts_unix, end_family, free_port, wait_until
from .requirements import DOVECOT

_IN_2_3 = """\
auth_username_format = %Ln
passdb {{
  driver = static
  args = proxy=y host={host} port={port} nopassword=y
}}
userdb {{
  driver = static
  args = uid=nobody gid=nogroup home={home}
}}
"""
_IN_2_4 = """\
dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
auth_username_format = %{{user | username | lower}}
passdb static {{
  fields {{
    proxy = yes
    host = {host}
    port = {port}
    nopassword = yes
  }}
}}
userdb static {{
  fields {{
    uid = nobody
    gid = nogroup
    home = {home}
  }}
}}
"""


class DovecotProxy:
    """Takes LMTP at `socket`. nexthop: an address and port. Its directory's path must be short."""

    name = "Dovecot as a proxy"

    def __init__(self, directory: Path, nexthop: tuple[str, int]) -> None:
        self.directory = directory
        self.socket = directory / "lmtp"
        self._process: subprocess.Popen[bytes] | None = None
        language = _IN_2_4 if HERE.dovecot_version >= (2, 4) else _IN_2_3
        host, port = nexthop
        (directory / "dovecot.conf").write_text(
            language.format(host=host, port=port, home=directory)
            + f"""\
protocols = lmtp
listen = 127.0.0.1
base_dir = {directory}/run
state_dir = {directory}/state
log_path = {directory}/log
ssl = no
lmtp_proxy = yes
service lmtp {{
  unix_listener {self.socket} {{
    mode = 0666
  }}
  inet_listener lmtp {{
    port = {free_port()}
  }}
}}
""",
            "utf-8",
        )

    def start(self) -> None:
        with open(self.directory / "out", "ab") as output:
            self._process = subprocess.Popen(
                [str(DOVECOT), "-F", "-c", f"{self.directory}/dovecot.conf"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        wait_until(lambda: accepts_unix(self.socket), 20.0, lambda: f"{self.name} serving; it said:\n{self.log()}")

    def stop(self) -> None:
        if self._process is not None:
            end_family(Pid.of(self._process.pid), 3.0)
            self._process.wait(10)
            self._process = None

    def log(self) -> str:
        """What it wrote to its log and its output."""
        files = [self.directory / "out", self.directory / "log"]
        return "".join(file.read_text("utf-8", "replace") for file in files if file.exists())
