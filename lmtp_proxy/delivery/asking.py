# SPDX-License-Identifier: GPL-3.0-or-later
"""One backend is asked for recipients: MAIL, RCPT and DATA, what it says to these, and how the conversation ends.

The reply to RCPT is the recipient's own. A failure answers all that were asked for, and is kept. Nothing is known here
of the message behind the 354, nor of other backends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lmtp_proxy.backends.failure import BackendError, Failure, Phase, judge
from lmtp_proxy.backends.pool import BackendPool
from lmtp_proxy.delivery.commands import Commands, may_take
from lmtp_proxy.delivery.commit import CommitPoint, Message, ProcessParts
from lmtp_proxy.generations.destination import Destination
from lmtp_proxy.wire.dot_stuffing import FINAL_DOT
from lmtp_proxy.wire.plain_replies import KnownReplies
from lmtp_proxy.wire.reply import Reply

if TYPE_CHECKING:
    from lmtp_proxy.backends.session import BackendSession

_log = logging.getLogger(__name__)

_MAIL, _RCPT, _DATA = Phase.MAIL, Phase.RCPT, Phase.DATA


class Asking(Commands):
    """The conversation with one backend in one transaction, up to the message.

    rcpt_replies: to all that were asked for last. accepted: the recipients that wait for final replies; replies: these,
    to as many of the first of them as have one. trouble: why the last replies to be known, if they are ours, are what
    they are; for the log, escaped. in_data: the backend takes the message.
    """

    # Here, and in the classes that this is made of: what nearly all deliveries leave as it is takes no time for each.
    trouble = ""
    rcpt_replies: Sequence[Reply] = ()
    in_data = _finishing = _dot_begun = False
    _dot_waits = False  # there was no room for any of it
    _asked: Sequence[Destination] = ()  # RCPT is to be sent or was sent, and not all replies are known
    _failure: BackendError | None = None

    def __init__(self, pool: BackendPool, message: Message, parts: ProcessParts) -> None:
        self.pool = pool
        self._envelope = message.envelope
        commit = self._commit = CommitPoint(pool, message, parts)
        self.accepted = commit.accepted
        self.replies = commit.replies

    def __repr__(self) -> str:
        state = f"failed: {self._failure.reason}" if self._failure else f"unsent={len(self._unsent)} "
        return f"<Delivery to {self.pool} accepted={len(self.accepted)} {state}expected={len(self.expected)}>"

    # --- to the backend ----------------------------------------------------------------------------------------------

    def reserve(self, asked: Sequence[Destination], before_wait: Callable[[], None]) -> bool:
        """Take a place in the pool, unless that was done, to `ask` for these; whether a session has to be opened.

        before_wait: called before a wait for the place.
        """
        self._asked = self._commit.asked = asked
        self.rcpt_replies = ()
        if self.session is None and self._failure is None:
            try:
                self.reserve_place(before_wait)
            except BackendError as error:
                self.fail(error)
        return self.reserved

    def open(self) -> None:
        """Open a session on the place that is `reserved`."""
        try:
            self.open_session()
        except BackendError as error:
            self.fail(error)

    def ask(self, data_follows: bool) -> None:
        """Send MAIL (once), RCPT of those for whom the place was taken, and DATA if the client has said that already.

        When `advance` is done, all rcpt_replies are known.
        """
        session = self.session
        if session is None:
            self.answer_asked()
            return
        try:
            # One that was used before may have died, or said something that the loop has not seen yet.
            if self.unheard and (session.stream is None or session.stream.look()):
                session = self.replace_session(session)
            if self.unheard or self.quiet(session):
                self.send_envelope(session, self._envelope, self._asked, data_follows)
        except BackendError as error:
            self.envelope_failed(error)

    def answer_asked(self) -> None:
        """All replies to the last `ask` are known; a failure undoes those that accepted."""
        asked = self._asked
        self._asked = self._commit.asked = ()
        replies: Sequence[Reply]
        if (failure := self._failure) is not None:
            replies = [failure.reply] * len(asked)
            self.trouble = failure.reason
        else:
            said = iter(self.rcpt_replies)
            replies = [
                next(said, Failure.INTERNAL.reply)
                if may_take(self.session, self._envelope, destination)
                else Failure.NO_SMTPUTF8.reply
                for destination in asked
            ]
        self.rcpt_replies = replies
        self.accepted += [destination for destination, reply in zip(asked, replies, strict=True) if reply.code < 300]
        self.pool.counts.count([reply for reply in replies if reply.code >= 300])

    def start_data(self) -> None:
        """Send DATA, unless it went with the recipients.

        A refusal is kept for the final replies, because the client has its own 354 coming.
        """
        session = self.session
        try:
            if session is not None and not self.data_sent and self.quiet(session):
                self.send_data(session)
        except BackendError as error:
            self.fail(error)

    # --- from the backend --------------------------------------------------------------------------------------------

    def advance_commands(self, session: BackendSession) -> bool:
        """Take in what has come; True when nothing of what was asked is outstanding. Raises BackendError."""
        while self.expected or self._unsent:
            if not self.expected:
                if not self.quiet(session):  # what came before these would answer them
                    return False
                self.send_more(session)
            expected = self.expected
            replies = session.next_replies(len(expected))
            if not replies:
                return self.in_time("no answer in time")
            self.unheard = False
            if (
                isinstance(replies, KnownReplies)
                and replies.accepted
                and len(replies) == len(expected) == len(self._asked) + 2
            ):  # MAIL, RCPT of all and DATA, and yes to each, as nearly always: what `_take` would do
                self.rcpt_replies = replies.accepted
                self.expected = ()
                self.in_data = True
                self._commit.data_begun()
                if not session.unread():
                    self.accepted += self._asked
                    self._asked = self._commit.asked = ()
                    return True
            else:
                self._take(replies)
        if session.unread() and not self.quiet(session, self.in_data):
            return False
        if self._asked:
            self.answer_asked()
        return True

    def _take(self, replies: Sequence[Reply]) -> None:
        said = list(self.rcpt_replies)
        self.rcpt_replies = said
        for command, reply in zip(self.answered(replies), replies, strict=True):
            if isinstance(command, Destination):
                said.append(judge(_RCPT, reply))
            elif command is _DATA:
                self._take_data_reply(reply)
            elif reply.code >= 300:
                judge(command, reply)

    def _take_data_reply(self, reply: Reply) -> None:
        """DATA may have been sent along with recipients, which may all have been refused (RFC 2033 section 4.2).

        Recipients wait for this reply, too: as no other is a 354, it proves that theirs were theirs.
        """
        if self.accepted or any(said.positive for said in self.rcpt_replies):
            if reply.code != 354:
                if reply.negative and self._asked:
                    self.answer_asked()  # accepted, all the same
                judge(_DATA, reply)
            self.in_data = True
            self._commit.data_begun()
        elif reply.negative:
            self.data_sent = False
        elif self.session is not None:
            self.answer_asked()
            self.session.put(FINAL_DOT)  # an empty message to nobody, and nobody knows how that is answered
            raise BackendError(Failure.ODD, f"it takes a message without a recipient: {reply}")

    def envelope_failed(self, error: BackendError) -> bool:
        """Whether the step is done: on a session that takes the place of a dead one it begins anew."""
        try:
            if (session := self.replaced_session(error)) is not None:
                data_follows = self.data_sent
                self.clear()
                self.send_envelope(session, self._envelope, self._asked, data_follows)
                return False
        except BackendError as again:
            error = again
        self.fail(error)
        self.answer_asked()
        return True

    # --- the end -----------------------------------------------------------------------------------------------------

    def fail(self, error: BackendError) -> None:
        """The conversation is over; the first failure is the one that counts."""
        if error.failure.value.alarm and self._failure is None:
            _log.error("backend %s: %s", self.pool, error.reason)
        self._failure = self._failure or error
        self.abandon(error.reason)

    def abandon(self, reason: str = "given up") -> None:
        """The one exit for all others, at any time: amid the message the backend sees no final dot."""
        self._commit.given_up(reason)
        in_doubt = self._failure or self.in_data or self.data_sent or self.outstanding or self.hears_until
        self._part(self.pool.discard if in_doubt else self.pool.reset)

    def _part(self, how: Callable[[BackendSession], None]) -> None:
        self.just_asked = False
        if self.outstanding:
            self.clear()
        self.mail_sent = self.data_sent = False
        self.hears_until = 0.0
        self.give_back(how)
