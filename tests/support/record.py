"""What a scripted backend saw and answered: the witness against which the proxy's replies are checked.

Plain data, filled by `backend.py`; positions are those of the RCPT commands in a transaction.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

END_OF_DATA = b"\r\n.\r\n"


MAX_REPLY_LINE = 4096  # no longer line of a backend may reach a client, so it counts as no reply
_REPLY = re.compile(rb"([2-5][0-9][0-9])(?:-[^\r\n\0]*\r?\n\1)*(?: [^\r\n\0]*)?\r?\n")


def code_of(answer: bytes | None) -> int:
    """The code of the whole reply that `answer` begins with, 0 when there is none."""
    match = _REPLY.match(answer or b"")
    if match is None or any(len(line) + 1 > MAX_REPLY_LINE for line in match.group(0).split(b"\n")):
        return 0
    return int(match.group(1))


def is_verdict(answer: bytes | None) -> bool:
    """True when `answer` is exactly one whole reply that can stand after the dot, good or bad."""
    code = code_of(answer)
    return code // 100 in (2, 4, 5) and code != 421 and _REPLY.fullmatch(answer or b"") is not None


def is_positive(answer: bytes | None) -> bool:
    """True when `answer` is exactly one whole 2xx reply."""
    return is_verdict(answer) and code_of(answer) // 100 == 2


class BodyReader:
    """Message data up to CRLF.CRLF: size, digest and, when kept, the raw bytes (stuffing included, the dot not)."""

    def __init__(self, keep: bool) -> None:
        self.size = 0
        self.finished = False
        self._keep = keep
        self._kept = bytearray()
        self._digest = hashlib.sha256()
        self._window = b"\r\n"  # the data starts as if after a line end
        self._virtual = 2

    def feed(self, chunk: bytes) -> bytes | None:
        """Takes a chunk; returns what follows the final dot, or None while the data goes on."""
        window = self._window + chunk
        end = window.find(END_OF_DATA)
        if end < 0:
            cut = max(0, len(window) - len(END_OF_DATA) + 1)
            self._take(window[:cut])
            self._window = window[cut:]
            return None
        self._take(window[: end + 2])
        self._window = b""
        self.finished = True
        return window[end + len(END_OF_DATA) :]

    def flush(self) -> None:
        """The stream ended: what was held back as a possible end is data after all."""
        self._take(self._window)
        self._window = b""

    def _take(self, piece: bytes) -> None:
        dropped = min(self._virtual, len(piece))
        self._virtual -= dropped
        piece = piece[dropped:]
        self.size += len(piece)
        self._digest.update(piece)
        if self._keep:
            self._kept += piece

    @property
    def bytes(self) -> bytes:
        return bytes(self._kept)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


@dataclass(slots=True)
class SeenRecipient:
    """One RCPT: the command line, the path between < and >, what was answered to it and after the dot."""

    line: bytes
    path: str
    answer: bytes = b""
    final: bytes | None = None
    final_at: float | None = None

    @property
    def accepted(self) -> bool:
        return code_of(self.answer) // 100 == 2

    @property
    def delivered(self) -> bool:
        return is_positive(self.final)


@dataclass(slots=True)
class SeenTransaction:
    """One MAIL and what followed. `dot_at` is the time (monotonic) of the final dot, None when none came."""

    line: bytes
    sender: str
    answer: bytes = b""
    recipients: list[SeenRecipient] = field(default_factory=list)
    data_answer: bytes | None = None
    body: BodyReader | None = None
    early: list[bytes] = field(default_factory=list)  # what was said before the end of the data
    dot_at: float | None = None
    reset: bool = False  # by the backend, on TCP: the peer may never have seen what was said before

    @property
    def dotted(self) -> bool:
        return self.dot_at is not None or (self.body is not None and self.body.finished)

    @property
    def accepted(self) -> list[SeenRecipient]:
        return [recipient for recipient in self.recipients if recipient.accepted]


@dataclass(slots=True)
class SeenConnection:
    """One connection of the proxy. `ended` is when the peer closed, None while it is open."""

    index: int
    opened: float
    commands: list[bytes] = field(default_factory=list)
    pipelined: list[bytes] = field(default_factory=list)  # commands behind which more bytes had already come
    early: list[bytes] = field(default_factory=list)  # commands that were followed by bytes before their answer
    transactions: list[SeenTransaction] = field(default_factory=list)
    ended: float | None = None
    was_reset: bool = False
    auth_lines: list[bytes] = field(default_factory=list)
    done: bool = False
