# SPDX-License-Identifier: GPL-3.0-or-later
"""XFORWARD (Postfix' XFORWARD_README): what an MTA says of a message before its MAIL.

IDENT is the id under which the message is in the client's queue. ADDR, PORT, HELO, PROTO and LOGIN are for stores that
are told of the client (XCLIENT). The others are looked at for their syntax and forgotten. It knows no connection, and
not when in a session the command may come.
"""

import re
from typing import TypeAlias

from lmtp_proxy.wire import reply
from lmtp_proxy.wire.reply import Reply
from lmtp_proxy.wire.xtext import XTEXT, decoded

NAMES = ("NAME", "ADDR", "PORT", "PROTO", "HELO", "IDENT", "SOURCE")
"""The attributes that are offered; Postfix sends no others."""

Said: TypeAlias = tuple[tuple[str, bytes], ...]
"""Attributes of a client, each with its value as xtext, in the order of their names."""

_KNOWN = frozenset(name.encode("ascii") for name in (*NAMES, "LOGIN"))
# What a store is told must be of a form that it takes: one that refuses XCLIENT gets no mail.
_OF_CLIENT = {
    b"ADDR": re.compile(rb"(?:[0-9]{1,3}\.){3}[0-9]{1,3}|IPV6:[0-9A-F:.]{2,45}", re.IGNORECASE),
    b"HELO": re.compile(rb"[A-Z0-9](?:[A-Z0-9-]*[A-Z0-9])?(?:\.[A-Z0-9](?:[A-Z0-9-]*[A-Z0-9])?)*", re.IGNORECASE),
    b"LOGIN": re.compile(rb"[!-~]+"),
    b"PORT": re.compile(rb"[1-9][0-9]{0,4}"),
    b"PROTO": re.compile(rb"E?SMTP|LMTP"),
}
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

    __slots__ = ("_client", "offered", "queue_id")

    def __init__(self, trusted: bool) -> None:
        self.offered = NAMES if trusted else ()
        self.queue_id: str | None = ""
        self._client: dict[bytes, bytes] = {}  # of this message, or of an earlier one while nothing was said of this

    @property
    def client(self) -> Said:
        """What it has said of whom it has the message from, as far as that can be passed on."""
        if self.queue_id == "":
            return ()
        return tuple((name.decode("ascii"), value) for name, value in sorted(self._client.items()))

    def take(self, arguments: bytes, out_of_turn: Reply | None) -> Reply:
        """The command's reply. out_of_turn: that to a client which may say it, but not now."""
        if not self.offered:
            return reply.BAD_COMMAND
        if out_of_turn is not None:
            return out_of_turn
        words = [word for word in arguments.split(b" ") if word]
        said = self.queue_id
        client = {} if said == "" else {**self._client}
        for word in words:
            name, _, value = word.partition(b"=")
            if name.upper() not in _KNOWN or not 0 < len(value) <= _LONGEST or not _VALUE.fullmatch(value):
                return reply.BAD_XFORWARD
            if name.upper() == b"IDENT":
                said = _queue_id(decoded(value))
            elif (form := _OF_CLIENT.get(name.upper())) is not None:
                client.pop(name.upper(), None)
                if form.fullmatch(value) and _is_possible(name.upper(), value):
                    client[name.upper()] = value
        if not words:
            return reply.BAD_XFORWARD
        self.queue_id = said or None
        self._client = client
        return reply.OK


NOBODY = Forwarded(False)
"""All clients who are not trusted: nothing is taken from them, so nothing stays here."""


def _is_possible(name: bytes, value: bytes) -> bool:
    """Of an attribute that has the form of one."""
    if name == b"PORT":
        return int(value) < 2**16
    if name == b"ADDR":
        from ipaddress import IPv4Address, IPv6Address  # 0.2 MB, which who has no such client does without

        text = value.decode("ascii")
        try:
            IPv6Address(text[5:]) if text[4:5] == ":" else IPv4Address(text)
        except ValueError:
            return False
    return value.upper() != b"[UNAVAILABLE]"


def _queue_id(text: bytes) -> str:
    """Empty where there is none. Another MTA's id of some other form is no mistake, and not worth a refusal."""
    return text.decode("ascii") if _QUEUE_ID.fullmatch(text) else ""
