# SPDX-License-Identifier: GPL-3.0-or-later
"""What is counted of one backend."""

from collections.abc import Sequence
from dataclasses import dataclass

from lmtp_proxy.counts import CONNECT_BOUNDS, REPLY_BOUNDS, Family, Histogram, counter
from lmtp_proxy.wire.reply import Reply

_RECIPIENTS = Family(
    "recipients",
    "Recipients by their last reply; aborted: the client went without a final dot, so there was none.",
    label="outcome",
)


@dataclass(slots=True)
class Counts:
    """What became of one backend's connections and recipients since the start of the process; see each family."""

    connections: int = counter(Family("backend_connections_opened", "Connections that came to serve."), in_status=True)
    failures: int = counter(
        Family("backend_connection_failures", "Attempts to connect that failed, up to LHLO and AUTH."), in_status=True
    )
    sent: int = counter(_RECIPIENTS, in_status=True)
    deferred: int = counter(_RECIPIENTS, in_status=True)
    bounced: int = counter(_RECIPIENTS, in_status=True)
    aborted: int = counter(_RECIPIENTS, in_status=True)
    uncertain: int = counter(
        Family("backend_uncertain_recipients", "Of the deferred recipients, those whose message may be stored."),
        in_status=True,
    )
    unheard: int = counter(
        Family("backend_unheard_recipients", "Delivered, but the client had gone before the reply: a copy may follow.")
    )
    octets: int = counter(
        Family("backend_sent_message_bytes", "Octets of messages that were sent to the backend."), in_status=True
    )
    held_back: int = counter(
        Family("backend_held_back_recipients", "Recipients that had to wait: as many of their mailbox were under way.")
    )
    mailbox_busy: int = counter(
        Family(
            "backend_mailbox_busy_recipients",
            "Of the deferred recipients, those of whose mailbox too many were under way, or waiting.",
        )
    )
    waits: int = counter(Family("backend_pool_waits", "Transactions that had to wait for a free connection."))
    connect: Histogram = counter(
        Family("backend_connect_seconds", "From connecting to a session that takes mail.", bounds=CONNECT_BOUNDS)
    )
    replies: Histogram = counter(
        Family("backend_reply_seconds", "From the final dot to the last reply to it.", bounds=REPLY_BOUNDS)
    )

    def count(self, replies: Sequence[Reply]) -> None:
        """So many recipients have got their last reply."""
        for reply in replies:
            if reply.code < 300:
                self.sent += 1
            elif reply.code < 500:
                self.deferred += 1
            else:
                self.bounced += 1
