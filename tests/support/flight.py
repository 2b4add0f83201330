# SPDX-License-Identifier: GPL-3.0-or-later
"""A flight that says what it is told to: without a message, a pool and a commit point."""

import time

from lmtp_proxy.delivery.in_flight import Phase
from lmtp_proxy.wire.envelope import Recipient


class SomeFlight:
    """To `old`."""

    session, backend, address, sender = "8f3a", "old", "/run/old", b"<s@x>"

    def __init__(self, *recipients: Recipient) -> None:
        self.phase = Phase.ENVELOPE
        self.number = 0
        self.octets = 0
        self.began = time.monotonic()
        self._recipients = recipients

    @property
    def recipients(self) -> tuple[Recipient, ...]:
        return self._recipients
