# SPDX-License-Identifier: GPL-3.0-or-later
"""The Message-ID in the beginning of a message, so that an operator finds it again. It parses no other header."""

import re

HEAD = 8192
"""Octets of a message in which it is looked for."""

# RFC 5322 section 3.6.4; the value may stand on a folded line. An empty line ends the header.
_FIELD = re.compile(rb"(?:\A|\n)message-id[ \t]*:(?:[ \t]|\r?\n[ \t])*([^\s]{1,998})", re.IGNORECASE)
_END = re.compile(rb"(?:\A|\n)\r?\n")


def message_id(head: bytes) -> bytes | None:
    """The Message-ID in `head`, the first octets of a message on the wire; None if there is none in them."""
    end = _END.search(head)
    found = _FIELD.search(head, 0, end.start() + 1 if end else len(head))
    return found[1] if found else None
