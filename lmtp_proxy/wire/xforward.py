# SPDX-License-Identifier: GPL-3.0-or-later
"""XFORWARD (Postfix' XFORWARD_README): what an MTA says of a message before its MAIL.

Only IDENT is of use here, the id under which the message is in the client's queue. The others are looked at for their
syntax and forgotten. It knows no connection, and not when in a session the command may come.
"""

import re

from lmtp_proxy.wire import reply
from lmtp_proxy.wire.reply import Reply
from lmtp_proxy.wire.xtext import XTEXT, decoded

NAMES = ("NAME", "ADDR", "PORT", "PROTO", "HELO", "IDENT", "SOURCE")
"""The attributes that are offered; Postfix sends no others."""

_KNOWN = frozenset(name.encode("ascii") for name in NAMES)
_VALUE = re.compile(XTEXT)
_LONGEST = 255  # characters of a value, as XFORWARD_README has it
# Postfix' own ids, the short and the long ones; [UNAVAILABLE] is none. It becomes an argument of a command, so it never
# begins with a dash.
_QUEUE_ID = re.compile(rb"[A-Za-z0-9]{1,64}")


class Forwarded:
    """What one client has said of its next message, or of the one in hand.

    Args:
        trusted: it may say so.

    Attributes:
        offered: the attributes that LHLO tells it of.
        queue_id: "" if it said nothing, None if it did and has none, as Postfix of mail from sendmail(1); whoever
            ends the transaction forgets it.
    """

    __slots__ = ("offered", "queue_id")

    def __init__(self, trusted: bool) -> None:
        self.offered = NAMES if trusted else ()
        self.queue_id: str | None = ""

    def take(self, arguments: bytes, out_of_turn: Reply | None) -> Reply:
        """The command's reply. out_of_turn: that to a client which may say it, but not now."""
        if not self.offered:
            return reply.BAD_COMMAND
        if out_of_turn is not None:
            return out_of_turn
        words = [word for word in arguments.split(b" ") if word]
        said = self.queue_id
        for word in words:
            name, _, value = word.partition(b"=")
            if name.upper() not in _KNOWN or not 0 < len(value) <= _LONGEST or not _VALUE.fullmatch(value):
                return reply.BAD_XFORWARD
            if name.upper() == b"IDENT":
                said = _queue_id(decoded(value))
        if not words:
            return reply.BAD_XFORWARD
        self.queue_id = said or None
        return reply.OK


NOBODY = Forwarded(False)
"""All clients who are not trusted: nothing is taken from them, so nothing stays here."""


def _queue_id(text: bytes) -> str:
    """Empty where there is none. Another MTA's id of some other form is no mistake, and not worth a refusal."""
    return text.decode("ascii") if _QUEUE_ID.fullmatch(text) else ""
