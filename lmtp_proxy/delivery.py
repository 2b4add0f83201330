# SPDX-License-Identifier: GPL-3.0-or-later
"""One backend's share of a transaction: its recipients, from MAIL to their final replies.

Each step sends what it has to send and waits for nothing; `advance` then takes in what has come, as often as it is
called, until the step is done. So one greenlet serves all backends of a transaction at once. A failure touches only
these recipients: it is kept, and answers each of them when its turn comes. A Delivery sends nothing to the client and
does not know the other backends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from lmtp_proxy import reply as say
from lmtp_proxy.backend_error import BackendError
from lmtp_proxy.commands import Commands
from lmtp_proxy.commit import CommitPoint, Cutover, Message, Position
from lmtp_proxy.dot_stuffing import FINAL_DOT
from lmtp_proxy.failure import Phase, judge
from lmtp_proxy.pool import BackendPool
from lmtp_proxy.reply import Reply

if TYPE_CHECKING:
    from lmtp_proxy.backend import BackendSession

_log = logging.getLogger(__name__)

_RCPT, _DATA, _FINAL_DOT = Phase.RCPT, Phase.DATA, Phase.FINAL_DOT


class Delivery(Commands):
    """The conversation with one backend in one transaction.

    deadline: until when `advance` has to be done (time.monotonic). new: recipients for the next `ask`; the caller adds
    to them. accepted: those that wait for final replies. in_data: the backend takes the message. over: it was left or
    abandoned. before_wait: called before a wait that is not the caller's own.
    """

    def __init__(self, pool: BackendPool, message: Message, cutover: Cutover, before_wait: Callable[[], None]) -> None:
        super().__init__(pool, before_wait)
        self.new: list[Position] = []
        self.in_data = self.over = self._some_accepted = self._some_refused = False
        self._envelope = message.envelope
        commit = self._commit = CommitPoint(pool, message, cutover)
        self.accepted = commit.accepted
        self._asked: list[Position] = []  # RCPT sent with the last `ask`
        self._final_replies = 0  # that have come
        self._finishing = self._dot_begun = False
        self._dot_waits = False  # there was no room for any of it
        self._failure: BackendError | None = None

    def __repr__(self) -> str:
        state = f"failed: {self._failure.reason}" if self._failure else f"unsent={len(self._unsent)} "
        return f"<Delivery to {self.pool} accepted={len(self.accepted)} {state}expected={len(self.expected)}>"

    @property
    def wanted(self) -> bool:
        """Some recipient waits for this delivery's final replies, and it has not failed."""
        return bool(self.accepted) and self._failure is None

    # --- envelope ----------------------------------------------------------------------------------------------------

    def reserve(self) -> None:
        """Take a place in the pool, unless that was done."""
        self._commit.asked(self.new)
        try:
            if self._failure is None:
                self.reserve_place()
        except BackendError as error:
            self._fail(error)

    def open(self) -> None:
        """Open a session on the place that is `reserved`."""
        try:
            self.open_session()
        except BackendError as error:
            self._fail(error)

    def ask(self, *, data_follows: bool) -> None:
        """Send MAIL (once), RCPT of the new recipients, and DATA if the client has said that already.

        When `advance` is done, each of them has its rcpt_reply.
        """
        asked, self.new = self.new, []
        self._asked = asked
        self._some_refused = self._envelope.smtputf8  # some of them, perhaps, without a word from the backend
        session = self.session
        if session is None:
            self._answer_asked()
            return
        try:
            # One that was used before may have died, or said something that the loop has not seen yet.
            if self.unheard and (session.stream is None or session.stream.look()):
                session = self.replace_session(session)
            if self.unheard or self.quiet(session):
                self.send_envelope(session, self._envelope, asked, data_follows=data_follows)
        except BackendError as error:
            self._envelope_failed(error)

    def _answer_asked(self) -> None:
        """All replies to the last `ask` are known; a failure undoes those that accepted."""
        asked, self._asked = self._asked, []
        failure = self._failure
        if failure is None and not self._some_refused:
            self.accepted += asked
            return
        for position in asked:
            if failure is not None:
                position.rcpt_reply = failure.reply
                position.trouble = failure.reason
            reply = position.rcpt_reply = position.rcpt_reply or say.INTERNAL_ERROR
            if reply.code < 300:
                self.accepted.append(position)
            else:
                self.pool.counts.count((reply,))
        self._commit.recipients_known()

    def start_data(self) -> None:
        """Send DATA, unless it went with the recipients.

        A refusal is kept for the final replies, because the client has its own 354 coming.
        """
        session = self.session
        try:
            if session is not None and not self.data_sent and self.quiet(session):
                self.send_data(session)
        except BackendError as error:
            self._fail(error)

    def write(self, octets: bytes, dot: float) -> None:
        """Send a piece of the message, after `advance` has told that the last one went out. dot: see `finish`."""
        session = self.session
        if session is None:
            return
        try:
            if (session.unread or self.hears_until) and not self.quiet(session, in_data=True):
                return
            session.put(octets)
            self._commit.sent(len(octets))
        except BackendError as error:
            self._fail_in_data(error)
        else:
            if session.stream and session.stream.full:
                times = self.pool.backend.timeouts
                self.deadline = min(time.monotonic() + times.data_write, dot + times.final_reply)

    def finish(self, last: bytes, dot: float) -> None:
        """Pass the commit point, and send the last piece of the message with the final dot.

        When `advance` is done, each accepted recipient has its final_reply. dot: when the client can have sent its
        final dot at the earliest (time.monotonic); `final_reply` counts from there, because its own patience does.
        """
        self._finishing = True
        self.deadline = dot + self.pool.backend.timeouts.final_reply
        session = self.session
        try:
            if self._failure or session is None:
                raise self._failure or BackendError(say.INTERNAL_ERROR, "no session to commit")
            if time.monotonic() > self.deadline:
                raise BackendError(say.BACKEND_SILENT, "it took too long over the message; nothing was delivered")
            if self.hears_until:
                self.deadline = self.hears_until
            else:
                self._send_final_dot(session, last)
        except BackendError as error:
            self._fail_at_the_end(error)

    def _send_final_dot(self, session: BackendSession, last: bytes) -> None:
        """The dot goes out right after the look; where there is no room for any of it, not before another one."""
        self._dot_waits = False
        self._pass_commit_point(session)
        if self.hears_until:
            return
        octets = last + FINAL_DOT
        sent = session.send_now(octets)
        if sent == len(octets):
            self._commit.sent(len(last))
            self._dot_begun = self.just_asked = True
            return
        self._commit.sent(min(sent, len(last)))
        if sent > len(last):
            self._dot_begun = True
            session.keep(octets[sent:])
        else:
            self._dot_waits = True
            self._commit.step_back()
            session.keep(memoryview(last)[sent:])

    def _pass_commit_point(self, session: BackendSession) -> None:
        """The last look before the final dot; it waits for nothing."""
        self._commit.enter()
        if self.quiet(session, in_data=True):
            self._commit.look()

    def leave(self) -> None:
        """The one exit for a conversation that ended well: nothing that matters is outstanding."""
        self._commit.passed_well()
        if self._dot_begun:
            self._commit.count_final_replies()
            self._part(self.pool.release)
        else:  # none of its recipients was accepted
            self._part(self.pool.reset)

    def abandon(self, reason: str = "given up") -> None:
        """The one exit for all others, at any time: amid the message the backend sees no final dot."""
        self._commit.given_up(reason)
        in_doubt = self._failure or self.in_data or self.data_sent or self.outstanding or self.hears_until
        self._part(self.pool.discard if in_doubt else self.pool.reset)

    def _part(self, how: Callable[[BackendSession], None]) -> None:
        self.over = True
        self.just_asked = False
        if self.outstanding:
            self.clear()
        self.mail_sent = self.data_sent = False
        self.hears_until = 0.0
        self._dot_waits = False
        self.give_back(how)

    # --- going on ----------------------------------------------------------------------------------------------------

    def advance(self) -> bool:
        """Take in what has come; True when nothing of the last step is outstanding, also because it failed."""
        session = self.session
        if session is None:
            return True
        try:
            if self.hears_until:
                # Amid the message the other backends do not wait for what this one has to say.
                return self.quiet(session, in_data=self.in_data) or (self.in_data and not self._finishing)
            if self.in_data:
                return self._advance_in_data(session)
            return self._advance_commands(session)
        except BackendError as error:
            if self._asked:
                return self._envelope_failed(error)
            fail = self._fail_at_the_end if self._finishing else self._fail_in_data if self.in_data else self._fail
            fail(error)
        return True

    def _advance_commands(self, session: BackendSession) -> bool:
        expected = self.expected
        while expected or self._unsent:
            if not expected:
                if not self.quiet(session):  # what came before these would answer them
                    return False
                self.send_more(session)
            answers = self.answers(session)
            if not answers:
                return self.in_time("no answer in time")
            self.unheard = False
            for command, reply in answers:
                if isinstance(command, Position):
                    if reply.code < 300:
                        self._some_accepted = True
                    else:
                        judge(_RCPT, reply)
                        self._some_refused = True
                    command.rcpt_reply = reply
                elif command is _DATA:
                    self._take_data_reply(reply)
                elif reply.code >= 300:
                    judge(command, reply)
        if session.unread and not self.quiet(session, in_data=self.in_data):
            return False
        if self._asked:
            self._answer_asked()
        return True

    def _advance_in_data(self, session: BackendSession) -> bool:
        accepted = self.accepted
        while True:
            while self._dot_begun and self._final_replies < len(accepted):
                replies = session.next_replies(len(accepted) - self._final_replies)
                if not replies:
                    return self.in_time("no answer in time")
                answered = accepted[self._final_replies : self._final_replies + len(replies)]
                for position, reply in zip(answered, replies, strict=True):
                    if reply.code >= 300:
                        judge(_FINAL_DOT, reply)
                    position.final_reply = reply
                self._final_replies += len(replies)
            stream = session.stream
            if stream is not None and stream.full:
                if session.unread and not self.quiet(session, in_data=True):
                    return not self._finishing
                return self.in_time("write: timed out")
            if not self._dot_waits:
                break
            self._send_final_dot(session, b"")
            if self.hears_until:
                return False
        if self._dot_begun:
            self.leave()
        return True

    def _take_data_reply(self, reply: Reply) -> None:
        """DATA may have been sent along with recipients, which may all have been refused (RFC 2033 section 4.2).

        Recipients wait for this reply, too: as no other is a 354, it proves that theirs were theirs.
        """
        if self._some_accepted:
            if reply.code != 354:
                if reply.negative and self._asked:
                    self._answer_asked()  # accepted, all the same
                judge(_DATA, reply)
            self.in_data = True
            self._commit.data_begun()
        elif reply.negative:
            self.data_sent = False
        elif self.session is not None:
            self._answer_asked()
            self.session.put(FINAL_DOT)  # an empty message to nobody, and nobody knows how that is answered
            raise BackendError(say.BACKEND_ODD, f"it takes a message without a recipient: {reply}")

    # --- failure -----------------------------------------------------------------------------------------------------

    def _envelope_failed(self, error: BackendError) -> bool:
        """Whether the step is done: on a session that takes the place of a dead one it begins anew."""
        try:
            if (session := self.replaced_session(error)) is not None:
                data_follows = self.data_sent
                self.clear()
                self.send_envelope(session, self._envelope, self._asked, data_follows=data_follows)
                return False
        except BackendError as again:
            error = again
        self._fail(error)
        self._answer_asked()
        return True

    def _fail(self, error: BackendError) -> None:
        if error.alarm and self._failure is None:
            _log.error("backend %s: %s", self.pool, error.reason)
        self._failure = self._failure or error
        self.abandon(error.reason)

    def _fail_in_data(self, error: BackendError) -> None:
        """A backend that gives up amid the message may have said why before it closed the connection."""
        if self.session is not None and isinstance(error.__cause__, OSError):
            try:
                self.session.check_quiet(in_data=True)
            except BackendError as said:
                if said.reply is not say.BACKEND_SILENT:
                    error = said
        self._fail(error)

    def _fail_at_the_end(self, error: BackendError) -> None:
        error.maybe_delivered = self._dot_begun
        if not self._dot_begun:
            self._commit.step_back()
        self._fail(error)
        for position in self.accepted:
            if position.final_reply is None:
                position.final_reply = error.reply
                position.trouble = f"{error.reason}; may be delivered" if error.maybe_delivered else error.reason
        self._commit.count_final_replies()
