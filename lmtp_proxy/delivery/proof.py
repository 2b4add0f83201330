# SPDX-License-Identifier: GPL-3.0-or-later
"""A refusal that may be another's: with one reply too many, all that come after it are shifted by one.

So it is proved before anybody is told of it. Nothing is known here of recipients.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lmtp_proxy.backends.failure import BackendError, Failure
from lmtp_proxy.wire.client import Command
from lmtp_proxy.wire.reply import Reply

if TYPE_CHECKING:
    from lmtp_proxy.backends.session import BackendSession

_SAYS_NO_MORE = (Failure.GONE, Failure.CLOSING, Failure.SILENT)


class Proof:
    """Whether a session whose reply to MAIL, to DATA or to all RCPT is a refusal is in step.

    If it is, all that went out behind what it refused is refused, too; RSET is not, and a DATA behind that is.

    Attributes:
        refusal: what is in doubt; None where that is the refusal of all recipients, each with a reply of its own.
    """

    __slots__ = ("refusal",)

    def __init__(self, refusal: BackendError | None) -> None:
        self.refusal = refusal

    def begin(self, session: BackendSession) -> None:
        """Send RSET and DATA. Raises BackendError, also where the session is seen to be out of step."""
        if not session.protocol.expected:
            _check_quiet(session)
        session.put(session.protocol.take_back())

    def heard(self, session: BackendSession) -> bool:
        """Take in what has come; True when all is there, and in step. Raises BackendError as `begin`."""
        protocol = session.protocol
        while protocol.expected:
            replies = session.replies()
            if not replies:
                return False
            check_in_step(zip(protocol.answered, replies, strict=True))
        _check_quiet(session)
        return True

    def ended_by(self, error: BackendError) -> BackendError:
        """What has failed, where the proof has: a session that says no more, as some do after a refusal, meant it.

        Raises `error` itself where the session is out of step.
        """
        if error.failure not in _SAYS_NO_MORE:
            raise error
        return self.refusal or error


def check_in_step(answered: Iterable[tuple[Command, Reply]]) -> None:
    """Of what went out behind something that was refused, only RSET is not. Raises BackendError."""
    for command, reply in answered:
        if not (reply.positive if command is Command.RSET else reply.negative):
            raise BackendError(Failure.ODD, f"replies are out of step: to {command.value} it said {reply}")


def _check_quiet(session: BackendSession) -> None:
    if not session.check_quiet():
        raise BackendError(Failure.ODD, "it said more than was asked for")
