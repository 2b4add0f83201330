# SPDX-License-Identifier: GPL-3.0-or-later
"""What a worker is told on its command line when the supervisor starts it."""

import json
from collections.abc import Sequence
from typing import NamedTuple

from lmtp_proxy.generations.share import Share


class WorkerSettings(NamedTuple):
    """What one worker is told.

    Attributes:
        config: path of the configuration file.
        listeners: descriptors of the sockets where clients connect.
        addresses: of these, for people.
        channel: descriptor of its end of a WorkerChannel.
        places: descriptor of the file in which sessions of all workers hold places to wait, see SharedPlaces.
        number: as in Share.
        workers: how many there are.
        max_clients: of the whole proxy, as it was at the start: a restarted worker shares it with those that are older.
        daemonised: the proxy is in the background.
        version: of the supervisor.
    """

    config: str
    listeners: Sequence[int]
    addresses: Sequence[str]
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
        return json.dumps(self._asdict())


def worker_settings(text: str) -> WorkerSettings:
    """What `to_text` made."""
    return WorkerSettings(**json.loads(text))
