# SPDX-License-Identifier: GPL-3.0-or-later
"""What a failed conversation with a backend, or a reply of its, means for the recipients: decided in one place.

The table says for each phase and class of reply whether the conversation goes on, whether the reply is a recipient's
answer, or how the conversation fails. Silence, closed connections and 421 fail on their own (see BackendError). Apart
from the conversation itself, which needs smtplib: with the package email and OpenSSL that is 6 MB, for which a process
waits until it has mail.
"""

import enum

from lmtp_proxy.text import MAX_TEXT, shown
from lmtp_proxy.wire import reply as say
from lmtp_proxy.wire.reply import Reply


class BackendError(Exception):
    """A conversation failed.

    reply: what its recipients get. reason: for the log, escaped there. maybe_delivered: the final dot was sent, so the
    message may have been stored. alarm: somebody has to mend the configuration; waiting will not help.
    """

    def __init__(self, reply: Reply, reason: str, *, maybe_delivered: bool = False, alarm: bool = False) -> None:
        super().__init__(reason)
        self.reply = reply
        self.reason = shown(reason, MAX_TEXT)
        self.maybe_delivered = maybe_delivered
        self.alarm = alarm


class Phase(enum.Enum):
    """The command that a reply answers."""

    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    FINAL_DOT = "the final dot"


class _Meaning(enum.Enum):
    GO_ON = enum.auto()
    ANSWER = enum.auto()  # of this recipient, verbatim
    REFUSED = enum.auto()  # all recipients, verbatim
    ODD = enum.auto()  # impossible here: nobody knows what it answers


_TABLE: dict[Phase, dict[int, _Meaning]] = {
    Phase.MAIL: {2: _Meaning.GO_ON, 3: _Meaning.ODD, 4: _Meaning.REFUSED, 5: _Meaning.REFUSED},
    Phase.RCPT: {2: _Meaning.ANSWER, 3: _Meaning.ODD, 4: _Meaning.ANSWER, 5: _Meaning.ANSWER},
    Phase.DATA: {2: _Meaning.ODD, 3: _Meaning.GO_ON, 4: _Meaning.REFUSED, 5: _Meaning.REFUSED},
    Phase.FINAL_DOT: {2: _Meaning.ANSWER, 3: _Meaning.ODD, 4: _Meaning.ANSWER, 5: _Meaning.ANSWER},
}

_DATA = Phase.DATA

# Replies to MAIL that say "authenticate first": a 5xx of these would bounce mail for a mistake in our configuration.
# Cyrus says 430; the others are RFC 4954 section 6.
_WANTS_AUTH = frozenset({430, 530, 534, 535, 538})


def judge(phase: Phase, reply: Reply) -> Reply:
    """The reply, where the conversation goes on; else raises BackendError with what its recipients get."""
    if reply.code < 300 and phase is not _DATA:
        return reply
    if phase is Phase.MAIL and reply.code in _WANTS_AUTH:
        raise BackendError(say.BACKEND_AUTH, f"it wants authentication: {reply}", alarm=True)
    meaning = _TABLE[phase][reply.code // 100]
    if meaning is _Meaning.ODD or (phase is Phase.DATA and reply.code // 100 == 3 and reply.code != 354):
        raise BackendError(say.BACKEND_ODD, f"impossible reply to {phase.value}: {reply}")
    if meaning is _Meaning.REFUSED:
        raise BackendError(reply, f"in reply to {phase.value}")
    return reply
