# SPDX-License-Identifier: GPL-3.0-or-later
"""Replies of the form that nearly all have, as many of them as stand in a row: octets in, replies out.

One line, with an enhanced code unless it is a 354, and no 421. Whatever looks otherwise is left to the reader of all
replies in `backend`; where both could read one, they agree. It knows no sockets and not what a reply answers.
"""

import re

from lmtp_proxy.wire.reply import Reply, reply_from_wire

_PLAIN_REPLY = re.compile(
    rb"(?!421)([2-5][0-9][0-9]) ((?:(?<=354 )|[245]\.[0-9]{1,3}\.[0-9]{1,3}(?=[ \r]))[^\r\n\0]{0,2000})\r\n"
)
_MOST = 256
_LONGEST = 512  # octets


class KnownReplies(tuple[Reply, ...]):
    """Replies in a row, whose meaning is known, too.

    positive: all are 2xx. accepted: where the first is to MAIL and the last to DATA, those to recipients, if all say
    yes; else none.
    """

    positive = False
    accepted: tuple[Reply, ...] = ()


KNOWN: dict[bytes, KnownReplies] = {}
"""Octets that were nothing but whole plain replies, and these: backends say the same again and again, and a reply is a
value. So most replies are not even looked at: as few as 2.5 us for all that answers an envelope become 0.1. About
200 KB when it is full. What comes once is not among them: the final replies of real stores have an id each."""
_once: set[bytes] = set()  # those that have come once


def plain_replies(octets: bytes, start: int, most: int) -> tuple[list[Reply], int]:
    """The plain replies that begin at `start`, at most so many, and where they end."""
    at = start
    replies: list[Reply] = []
    while len(replies) < most and (match := _PLAIN_REPLY.match(octets, at)):
        wire, code, text = match.group(0, 1, 2)
        at = match.end()
        replies.append(reply_from_wire(int(code), (text,), wire))
    if replies and start == 0 and at == len(octets) <= _LONGEST:
        if octets not in _once:
            if len(_once) >= _MOST:
                _once.clear()
            _once.add(octets)
            return replies, at
        if len(KNOWN) >= _MOST:
            KNOWN.clear()
        known = KNOWN[octets] = KnownReplies(replies)
        yes = [reply.positive for reply in replies]
        known.positive = all(yes)
        if all(yes[:-1]) and replies[-1].code == 354:
            known.accepted = known[1:-1]
    return replies, at
