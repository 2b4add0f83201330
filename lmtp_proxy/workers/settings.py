# SPDX-License-Identifier: GPL-3.0-or-later
"""What a worker is told on its command line when the supervisor starts it.

Values only: neither how a process is started nor what it does with them.
"""

import json
from dataclasses import asdict, dataclass

from lmtp_proxy.generations.share import Share


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """config: path of the configuration file. listener, channel, places: descriptors, see WorkerProcess.

    number, workers: as in Share. max_clients: of the whole proxy, as it was at the start, because a restarted worker is
    to share it with those that are older. version: of the supervisor.
    """

    config: str
    listener: int
    channel: int
    places: int
    number: int
    workers: int
    max_clients: int
    daemonised: bool
    version: str

    @property
    def share(self) -> Share:
        """What the worker may have of each limit."""
        return Share(self.number, self.workers)

    def to_text(self) -> str:
        """For a command line."""
        return json.dumps(asdict(self))


def worker_settings(text: str) -> WorkerSettings:
    """What `to_text` made."""
    return WorkerSettings(**json.loads(text))
