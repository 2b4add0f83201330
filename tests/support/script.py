"""What a scripted LMTP backend does in each phase, as plain values.

A phase is a tuple of steps (send, pause, close, ...). Nothing here opens a socket: `backend.py` performs the steps.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Send:
    """Writes these bytes as they are, in one write."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Drip:
    """Writes these bytes one by one, `interval` seconds apart."""

    data: bytes
    interval: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Waits `seconds`; ends early when the peer goes away."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Await:
    """Waits until the test sets `event`; ends early when the peer goes away."""

    event: threading.Event


@dataclass(frozen=True, slots=True)
class Flood:
    """Writes `data` again and again until the peer closes or `total` bytes went out."""

    data: bytes
    total: int


@dataclass(frozen=True, slots=True)
class Close:
    """Ends the stream in order (FIN) and reads what still comes, until the peer closes too."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Drops the connection hard: RST on TCP, a close with unread bytes on a unix socket."""


@dataclass(frozen=True, slots=True)
class Hang:
    """Neither reads nor writes any more, until the peer closes."""


@dataclass(frozen=True, slots=True)
class Stall:
    """Neither reads nor writes for `seconds`, whatever the peer does, and then reads what had come."""

    seconds: float


Step = Send | Drip | Pause | Await | Flood | Close | Reset | Hang | Stall
Steps = tuple[Step, ...]

FULL_OFFER = ("PIPELINING", "ENHANCEDSTATUSCODES", "8BITMIME", "SIZE", "SMTPUTF8")


def say(*lines: str | bytes) -> Steps:
    """One write with each line ended by CRLF: say("250 2.1.5 ok"), say("550-two", "550 5.1.1 lines")."""
    raw = (line.encode() if isinstance(line, str) else line for line in lines)
    return (Send(b"".join(line + b"\r\n" for line in raw)),)


def raw(data: bytes) -> Steps:
    """One write of exactly these bytes."""
    return (Send(data),)


@dataclass(frozen=True, slots=True)
class BodyTrigger:
    """Performs `steps` once `after` bytes of the message data were read, then goes on reading."""

    after: int
    steps: Steps


_GREETING = say("220 fake LMTP ready")
_MAIL = say("250 2.1.0 sender ok")
_RCPT = say("250 2.1.5 recipient ok")
_DATA = say("354 go ahead")
_FINAL = say("250 2.0.0 stored")
_RSET = say("250 2.0.0 reset")
_QUIT = (*say("221 2.0.0 bye"), Close())
_OTHER = say("500 5.5.2 what")


@dataclass(frozen=True, slots=True)
class Script:
    """One backend's behaviour. Recipients are named by the text between < and > of their RCPT.

    `mail_again` answers each MAIL of the connection but the first, if it is set; so do `rcpt_again` and `data_again`
    in each transaction but the first. `data_always`: DATA without an
    accepted recipient is answered by `data`, too, and what follows it as commands.
    `final` answers an accepted recipient after the dot; `final_at` overrides it by position among the accepted ones,
    `final_by` by address. `auth` replaces the built-in check of `credentials` (user, password).
    """

    greeting: Steps = _GREETING
    offer: tuple[str, ...] = FULL_OFFER
    lhlo: Steps | None = None
    auth: Steps | None = None
    credentials: tuple[str, str] | None = None
    offer_after_auth: tuple[str, ...] | None = None
    mail: Steps = _MAIL
    mail_again: Steps | None = None
    rcpt: Steps = _RCPT
    rcpt_again: Steps | None = None
    rcpt_by: Mapping[str, Steps] = field(default_factory=dict)
    data: Steps = _DATA
    data_again: Steps | None = None
    data_always: bool = False
    body: BodyTrigger | None = None
    final: Steps = _FINAL
    final_at: Mapping[int, Steps] = field(default_factory=dict)
    final_by: Mapping[str, Steps] = field(default_factory=dict)
    after_finals: Steps = ()
    rset: Steps = _RSET
    quit: Steps = _QUIT
    other: Steps = _OTHER

    def at(self, phase: str, steps: Steps) -> Script:
        """The same with other steps in one phase, given by the field's name."""
        change: dict[str, Any] = {phase: steps}
        return replace(self, **change)


HEALTHY = Script()
