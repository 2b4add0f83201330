# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator sees of a transaction."""

from typing import NamedTuple


class TransactionSummary(NamedTuple):
    """A transaction for an operator.

    Attributes:
        state: envelope, held or data.
        sender: with angle brackets.
        recipients: accepted so far, or asked for.
        octets: received of the message.
    """

    state: str
    sender: bytes
    recipients: int
    octets: int
