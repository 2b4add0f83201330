# SPDX-License-Identifier: GPL-3.0-or-later
"""A client's session as an operator sees it: a value, taken at one moment.

It knows neither where it is shown nor how it comes about.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SessionState:
    """A session for an operator.

    seconds: since it connected. state: idle, envelope, held, data or final dot. sender: escaped, without angle
    brackets; None outside of a transaction, and so are recipients and octets (received of the message) 0.
    """

    name: str
    peer: str
    seconds: float
    state: str
    sender: str | None
    recipients: int
    octets: int
