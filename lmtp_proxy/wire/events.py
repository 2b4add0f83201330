# SPDX-License-Identifier: GPL-3.0-or-later
"""What the protocol tells the session: a client's valid commands, in order, as frozen values.

Values only: neither how they are parsed nor what is done about them. Those with a content are tuples, because several
are made for each message, and a frozen dataclass takes twice as long to make.
"""

import enum
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from lmtp_proxy.wire.envelope import Envelope, Recipient
from lmtp_proxy.wire.reply import Reply


class Wait(enum.Enum):
    """Why there is no event now."""

    NEED_DATA = "more octets from the client"
    PAUSED = "replies that are owed"
    BUSY = "a turn for others: there is more to do"


class MailCommand(NamedTuple):
    """A transaction begins. Already answered."""

    envelope: Envelope


class RcptCommand(NamedTuple):
    """A recipient. Owes one reply."""

    recipient: Recipient


class EnvelopeCommand(NamedTuple):
    """A MailCommand and RcptCommands which came together, with DATA behind them. Owes each recipient a reply.

    paths: of the recipients. Who has not seen one before makes a Recipient of it with `plain_recipient`.
    """

    envelope: Envelope
    paths: list[bytes]


@dataclass(frozen=True, slots=True)
class DataCommand:
    """DATA with at least one accepted recipient. Call `start_data` next."""


class MessageOctets(NamedTuple):
    """A piece of the message as it came, stuffing included, without the final dot."""

    octets: bytes


class EndOfMessage(NamedTuple):
    """The final dot came: one reply is owed per accepted recipient.

    Attributes:
        size: octets of the message (RFC 1870).
        refusal: the reply to all where the message may not be delivered.
        octets: the last piece of the message, as in MessageOctets.
    """

    size: int
    refusal: Reply | None
    octets: bytes = b""


class Mistake(enum.Enum):
    """What was wrong with a command that was refused, as far as it makes a difference to anybody."""

    NO_MAIL = "RCPT or DATA without a MAIL before it"
    NO_RECIPIENTS = "DATA, although every recipient was refused"
    TOO_LONG = "the line was too long to be kept"
    FOREIGN = "before LHLO, and of another protocol"
    OTHER = "anything else"


class RefusedCommand(NamedTuple):
    """A command was malformed, out of order or above a limit. Already answered, and nothing is to be done about it.

    Attributes:
        command: its line; empty where that was too long to be kept.
        reply: the answer.
        envelope: that of the transaction, for RCPT and a line that was too long, or of this MAIL if nothing but its
            size was wrong; else None.
        last: too many errors came in a row, or it is none of LMTP, so the session is closed.
        mistake: what was wrong.
    """

    command: bytes
    reply: Reply
    envelope: Envelope | None
    last: bool = False
    mistake: Mistake = Mistake.OTHER


@dataclass(frozen=True, slots=True)
class TransactionReset:
    """RSET, or LHLO amid a transaction: it is over without a delivery. Already answered."""


@dataclass(frozen=True, slots=True)
class StartTlsCommand:
    """STARTTLS (RFC 3207), or TLS comes first. Call `start_tls` next where the client asked, `tls_started` in TLS."""


@dataclass(frozen=True, slots=True)
class ConnectionClosed:
    """Nothing more will come: QUIT, end of file, or too many errors. Send what is to be sent and close."""


Event: TypeAlias = (
    MailCommand
    | RcptCommand
    | EnvelopeCommand
    | DataCommand
    | MessageOctets
    | EndOfMessage
    | RefusedCommand
    | TransactionReset
    | StartTlsCommand
    | ConnectionClosed
)
