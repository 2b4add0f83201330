# SPDX-License-Identifier: GPL-3.0-or-later
"""A flight that says what it is told to: without a message, a pool and a commit point."""

from lmtp_proxy.delivery.in_flight import Flight
from lmtp_proxy.wire.envelope import Recipient


class SomeFlight(Flight):
    """To `old`."""

    session, backend, address, sender = "8f3a", "old", "/run/old", b"<s@x>"

    def __init__(self, *recipients: Recipient) -> None:
        super().__init__()
        self._recipients = recipients

    @property
    def recipients(self) -> tuple[Recipient, ...]:
        return self._recipients
