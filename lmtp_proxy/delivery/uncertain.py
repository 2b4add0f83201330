# SPDX-License-Identifier: GPL-3.0-or-later
"""A delivery whose outcome is unknown: the final dot was sent, the reply never came. As a record, and as a JSON line.

The client was told 451 and sends the message again, so the recipient may get it twice; and the backend may still be
about to store it. Only the backend can tell. An operator finds the message again by its Message-ID, the only header
that is looked for.
"""

import json
import re
import time
from dataclasses import dataclass, fields
from typing import Any

from lmtp_proxy.text import ISO_FORMAT, iso_time

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


MAX_LINE = 65536
"""Octets of one line of the log that are read; what is written stays far below."""


@dataclass(frozen=True, slots=True)
class Uncertain:
    """One recipient of one message.

    All foreign text is escaped.

    Attributes:
        time: seconds since the epoch.
        user: the key of its mailbox.
        size: octets of the message.
        keys: all of its keys, which are not written.
    """

    time: float
    user: str
    recipient: str
    backend: str
    address: str
    sender: str
    message_id: str | None
    size: int
    session: str
    reason: str
    keys: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """As JSON values; the time as ISO 8601 in UTC."""
        values: dict[str, object] = {field.name: getattr(self, field.name) for field in fields(self)}
        del values["keys"]
        return {**values, "time": iso_time(self.time)}

    def to_line(self) -> bytes:
        """As one line of a log, with its line end."""
        return json.dumps(self.to_json()).encode("ascii") + b"\n"


_TEXTS = ("user", "recipient", "backend", "address", "sender", "session", "reason")


def from_json(values: Any) -> Uncertain:
    """The record that `to_json` made. Raises ValueError for anything else."""
    try:
        texts = {name: values[name] for name in _TEXTS}
        seconds, _, fraction = str(values["time"]).removesuffix("Z").partition(".")
        message_id, size = values["message_id"], values["size"]
        when = _timegm(seconds) + float(f"0.{fraction or 0}")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError("is no record of an uncertain delivery") from error
    wrong = [name for name, text in texts.items() if not isinstance(text, str)]
    if wrong or not isinstance(size, int) or not isinstance(message_id, str | None):
        raise ValueError("is no record of an uncertain delivery")
    return Uncertain(time=when, message_id=message_id, size=size, **texts)


def read_log(path: str) -> tuple[list[Uncertain], int]:
    """The records in the file at `path`, the oldest first, and the number of lines that are none. Raises OSError."""
    records: list[Uncertain] = []
    bad = 0
    with open(path, "rb") as file:
        while line := file.readline(MAX_LINE):
            try:
                records.append(from_json(json.loads(line)))
            except (ValueError, RecursionError):  # a crash amid a line leaves a part of it
                bad += 1
    return records, bad


def _timegm(text: str) -> float:
    import calendar  # with what it needs in its turn half a megabyte, and a process that serves reads no records

    return float(calendar.timegm(time.strptime(text, ISO_FORMAT)))
