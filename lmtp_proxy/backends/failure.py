# SPDX-License-Identifier: GPL-3.0-or-later
"""What a failure means for the recipients: one table by kind, and which reply of a backend is which kind.

Everything else raises or carries a kind. Apart from the conversation itself, which needs smtplib: with the package
email and OpenSSL that is 6 MB, for which a process waits until it has mail.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from lmtp_proxy.routing.routing import NoRoute
from lmtp_proxy.text import MAX_TEXT, shown
from lmtp_proxy.wire import reply as say
from lmtp_proxy.wire.client import Command, Fault, RemoteProtocolError
from lmtp_proxy.wire.reply import Reply


class Retry(enum.Enum):
    """Whether all is asked again, once, on a new connection. Never after an octet of the message."""

    NEVER = enum.auto()
    IF_UNHEARD = enum.auto()
    """On a connection that served an earlier transaction, and has said nothing in this one: it was dead before."""
    IF_USED = enum.auto()
    """On a connection that served an earlier transaction, if it is a 4xx: its backend may only want a new one."""


class BackOff(enum.Enum):
    """Whether a backend to which no session could be opened is left alone for a while."""

    NEVER = enum.auto()
    IF_SLOW = enum.auto()
    """Where the attempt took long, and the next one may again. To ask one that refuses at once costs nothing."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one kind of failure means.

    Attributes:
        what: in words.
        reply: to its recipients; None where it is the backend's own, verbatim.
        counter: what its recipients are counted as: by this attribute of the backend's Counts, or of the Tallies where
            no backend is asked; "" where the reply is the backend's own, and its code says.
        alarm: somebody has to mend something, waiting will not help: an error in the log.
        retry: whether all is asked again.
        back_off: whether it is left alone for a while.
    """

    what: str
    reply: Reply | None
    counter: str = "deferred"
    alarm: bool = False
    retry: Retry = Retry.NEVER
    back_off: BackOff = BackOff.NEVER


class Failure(enum.Enum):
    """Every way in which mail for a recipient can fail, as far as the message itself is not to blame."""

    # No backend is asked.
    UNKNOWN = Meaning("not in the table, and no fallback", say.UNKNOWN_USER, "unknown")
    PARKED = Meaning("on reject, or on hold for too long or with too many", say.MAILBOX_PARKED, "parked")
    LOOKUP = Meaning("the table cannot be asked", say.LOOKUP_FAILED, "lookup")
    # There is no session.
    BUSY = Meaning("no place in time", say.BACKEND_BUSY)
    TOO_MANY = Meaning(
        "more recipients than it takes in a transaction, and no place for another", say.TOO_MANY_RECIPIENTS
    )
    TOO_MANY_OF_ONE = Meaning("more recipients of one mailbox than max_per_user", say.TOO_MANY_RECIPIENTS)
    MAILBOX_BUSY = Meaning("max_per_user recipients of the mailbox, and no reply for them in time", say.MAILBOX_BUSY)
    CONNECT = Meaning("no connection", say.CONNECT_FAILED, back_off=BackOff.IF_SLOW)
    AUTH = Meaning("it refuses our authentication, or wants one", say.BACKEND_AUTH, alarm=True)
    TLS = Meaning("no TLS, or not with the store that it should be", say.BACKEND_TLS, alarm=True)
    MISUNDERSTOOD = Meaning("it does not take a command or parameter of ours", say.BACKEND_MISUNDERSTANDS, alarm=True)
    # Whenever it is talked to.
    SILENT = Meaning(
        "no answer in time, or nothing taken in time",
        say.BACKEND_SILENT,
        retry=Retry.IF_UNHEARD,
        back_off=BackOff.IF_SLOW,
    )
    GONE = Meaning(
        "the connection is closed or broken",
        say.BACKEND_SILENT,
        retry=Retry.IF_UNHEARD,
        back_off=BackOff.IF_SLOW,
    )
    CLOSING = Meaning("it said 421", say.BACKEND_CLOSING, retry=Retry.IF_USED)
    ODD = Meaning("what it said is no reply, or no possible one, or one too many", say.BACKEND_ODD)
    REFUSED = Meaning("4xx or 5xx to MAIL or DATA, 4xx to all RCPT, or amid the message", None, "", retry=Retry.IF_USED)
    BROKEN_OFF = Meaning("any other reply amid the message", say.BACKEND_SILENT)
    NO_SMTPUTF8 = Meaning("an internationalized address that it cannot take", say.NO_SMTPUTF8, "bounced")
    # Of ours, at the commit point or at any time.
    ROUTE = Meaning("the user was moved while the message came in", say.ROUTE_CHANGED)
    INTERNAL = Meaning("an error of the proxy itself", say.INTERNAL_ERROR)

    @property
    def reply(self) -> Reply:
        """To the recipients, where the backend has not said anything that they could get."""
        return self.value.reply or say.INTERNAL_ERROR


WITHOUT_ROUTE: Mapping[NoRoute, Failure] = {
    NoRoute.UNKNOWN: Failure.UNKNOWN,
    NoRoute.BARE: Failure.UNKNOWN,
    NoRoute.REJECTED: Failure.PARKED,
    NoRoute.HELD: Failure.PARKED,
    NoRoute.UNAVAILABLE: Failure.LOOKUP,
}
"""Of a recipient whom no backend is asked for."""


class BackendError(Exception):
    """A conversation failed.

    Attributes:
        failure: in which way.
        reply: what its recipients get.
        reason: for the log, escaped there.
    """

    def __init__(self, failure: Failure, reason: str, said: Reply | None = None) -> None:
        """said: the backend's own reply, where the recipients get that."""
        super().__init__(reason)
        self.failure = failure
        self.reply = said or failure.reply
        self.reason = shown(reason, MAX_TEXT)


_OF_FAULT: Mapping[Fault, Failure] = {
    Fault.NO_REPLY: Failure.ODD,
    Fault.TOO_LONG: Failure.ODD,
    Fault.CLOSING: Failure.CLOSING,
    Fault.UNASKED: Failure.ODD,
    Fault.EARLY: Failure.BROKEN_OFF,
    Fault.ENDED: Failure.GONE,
}


# 5xx about our conversation, not about the mail: passed on, they would bounce all mail of that backend for a mistake of
# ours or of an administrator (RFC 5321 section 4.2.4; RFC 4954 section 6: 530 may answer any command).
_ABOUT_US: Mapping[int, Failure] = {
    **dict.fromkeys((500, 502, 503, 504), Failure.MISUNDERSTOOD),
    **dict.fromkeys((530, 534, 535, 538), Failure.AUTH),
}


def of_fault(error: RemoteProtocolError) -> BackendError:
    """What it means that the conversation cannot go on."""
    reply = error.reply
    if error.fault is Fault.EARLY and reply is not None and reply.negative:
        # The backend's early verdict on the message; anywhere else nobody knows what an unasked reply answers.
        failure = _ABOUT_US.get(reply.code, Failure.REFUSED)
        return BackendError(failure, str(error), reply if failure is Failure.REFUSED else None)
    return BackendError(_OF_FAULT[error.fault], str(error))


def of_lhlo(code: int, text: str) -> BackendError:
    """What a reply to LHLO that is no 250 means."""
    hint = "; is it an SMTP server?" if code in _UNKNOWN_COMMAND else ""
    return BackendError(_ABOUT_US.get(code, Failure.ODD), f"LHLO: {code} {text}{hint}")


_UNKNOWN_COMMAND = (500, 502)  # RFC 5321 section 4.2.4


# What a reply means, by command and code or class; None: the conversation goes on.
_OF_CODE: Mapping[Command, Mapping[int, Failure | None]] = {
    Command.MAIL: {430: Failure.AUTH, **_ABOUT_US},  # as Cyrus says it
    Command.RCPT: _ABOUT_US,
    Command.DATA: {354: None, **_ABOUT_US},
    Command.FINAL_DOT: {},
}
_OF_CLASS: Mapping[Command, Mapping[int, Failure | None]] = {
    Command.MAIL: {2: None, 3: Failure.ODD, 4: Failure.REFUSED, 5: Failure.REFUSED},
    Command.RCPT: {2: None, 3: Failure.ODD, 4: None, 5: None},  # 4 and 5 answer this one recipient, verbatim
    Command.DATA: {2: Failure.ODD, 3: Failure.ODD, 4: Failure.REFUSED, 5: Failure.REFUSED},
    Command.FINAL_DOT: {2: None, 3: Failure.ODD, 4: None, 5: None},
}
_OVER_USER_LIMIT = b"Too many concurrent deliveries"  # `451 4.3.0 <u> ... for user`, as Dovecot 2.4 says it
BAD_PARAMETER = 555  # RFC 5321 section 4.1.1.11


def judge(command: Command, reply: Reply, *, parameters: bool = False) -> Reply:
    """The reply, where the conversation goes on; else raises BackendError with what its recipients get.

    parameters: the command had some, beside the path.
    """
    code = reply.code
    failure = _OF_CODE[command].get(code, _OF_CLASS[command][code // 100])
    if code == BAD_PARAMETER and parameters:
        failure = Failure.MISUNDERSTOOD
    if failure is None or (code == 504 and command is Command.RCPT and _is_about_address(reply)):
        return reply
    if failure is Failure.REFUSED:
        raise BackendError(failure, f"in reply to {command.value}", reply)
    raise BackendError(failure, f"{_JUDGED[failure]} {command.value}: {reply}")


def is_over_user_limit(reply: Reply) -> bool:
    """The store has as many deliveries for this user as it takes at a time."""
    return reply.code == 451 and _OVER_USER_LIMIT in reply.text


def _is_about_address(reply: Reply) -> bool:
    """As Postfix has it for a recipient without a domain: `504 5.5.2 <u>: need fully-qualified address`."""
    enhanced = reply.enhanced or ""
    return enhanced == "5.5.2" or enhanced.startswith("5.1.")


_JUDGED: Mapping[Failure, str] = {
    Failure.AUTH: "it wants authentication, in reply to",
    Failure.MISUNDERSTOOD: "it does not take what we say, in reply to",
    Failure.ODD: "impossible reply to",
}
