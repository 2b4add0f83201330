# SPDX-License-Identifier: GPL-3.0-or-later
"""One backend's share of a transaction: its recipients, from MAIL to their final replies.

Each step sends what it has to send and waits for nothing; `advance` then takes in what has come, as often as it is
called, until the step is done. So one greenlet serves all backends of a transaction at once. A failure touches only
these recipients: it is kept, and answers each of them when its turn comes. A Delivery sends nothing to the client and
does not know the other backends.
"""

from __future__ import annotations

import time
from operator import attrgetter
from typing import TYPE_CHECKING

from lmtp_proxy.backends.failure import BackendError, Failure, Phase, judge
from lmtp_proxy.delivery.asking import Asking
from lmtp_proxy.wire.dot_stuffing import FINAL_DOT
from lmtp_proxy.wire.plain_replies import KnownReplies

if TYPE_CHECKING:
    from lmtp_proxy.backends.session import BackendSession

_FINAL_DOT = Phase.FINAL_DOT
_code = attrgetter("code")


class Delivery(Asking):
    """The conversation with one backend in one transaction.

    deadline: until when `advance` has to be done (time.monotonic). said: how many of the final replies are the
    backend's, where some are not.
    """

    said = 0

    @property
    def over(self) -> bool:
        """It was left or abandoned."""
        return self._commit.ended

    @property
    def wanted(self) -> bool:
        """Some recipient waits for this delivery's final replies, and it has not failed."""
        return bool(self.accepted) and self._failure is None

    # --- data --------------------------------------------------------------------------------------------------------

    def write(self, octets: bytes, dot: float) -> None:
        """Send a piece of the message, after `advance` has told that the last one went out. dot: see `finish`."""
        session = self.session
        if session is None:
            return
        try:
            if (session.unread() or self.hears_until) and not self.quiet(session, in_data=True):
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
        if not self.accepted:
            return
        self._finishing = True
        self.deadline = dot + self.pool.backend.timeouts.final_reply
        session = self.session
        try:
            if self._failure or session is None:
                raise self._failure or BackendError(Failure.INTERNAL, "no session to commit")
            if time.monotonic() > self.deadline:
                raise BackendError(Failure.SILENT, "it took too long over the message; nothing was delivered")
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
        commit = self._commit
        octets = last + FINAL_DOT
        sent = session.send_now(octets)
        if sent == len(octets):
            commit.sent(len(last))
            self._dot_begun = self.just_asked = True
            return
        commit.sent(min(sent, len(last)))
        if sent > len(last):
            self._dot_begun = True
            session.keep(octets[sent:])
        else:
            self._dot_waits = True
            self._commit.step_back()
            session.keep(memoryview(last)[sent:])

    def _pass_commit_point(self, session: BackendSession) -> None:
        """The last look before the final dot; it waits for nothing."""
        commit = self._commit
        commit.enter()
        if not session.check_quiet(self.in_data) or self.quiet(session, self.in_data):
            commit.look()

    def leave(self) -> None:
        """The one exit for a conversation that ended well: nothing that matters is outstanding."""
        self._commit.passed_well()
        if not self._dot_begun:  # none of its recipients was accepted
            self._part(self.pool.reset)
            return
        session = self.session
        if session is not None:
            self.session = None
            self.pool.release(session)

    # --- going on ----------------------------------------------------------------------------------------------------

    def advance(self) -> bool:
        """Take in what has come; True when nothing of the last step is outstanding, also because it failed."""
        session = self.session
        if session is None:
            return True
        try:
            if self.hears_until:
                # Amid the message the other backends do not wait for what this one has to say.
                done = self.quiet(session, self.in_data) or (self.in_data and not self._finishing)
                if done and self._asked:
                    self.answer_asked()
                return done
            if self.in_data:
                return self._advance_in_data(session)
            return self.advance_commands(session)
        except BackendError as error:
            if self._asked:
                return self.envelope_failed(error)
            fail = self._fail_at_the_end if self._finishing else self._fail_in_data if self.in_data else self.fail
            fail(error)
        return True

    def _advance_in_data(self, session: BackendSession) -> bool:
        accepted, final = self.accepted, self.replies
        while True:
            while self._dot_begun and len(final) < len(accepted):
                replies = session.next_replies(len(accepted) - len(final))
                if not replies:
                    return self.in_time("no answer in time")
                if (isinstance(replies, KnownReplies) and replies.positive) or max(map(_code, replies)) < 300:
                    final += replies
                    self.pool.counts.sent += len(replies)
                    continue
                for reply in replies:
                    final.append(judge(_FINAL_DOT, reply))
                    self.pool.counts.count((reply,))
            stream = session.stream
            if stream is not None and stream.full:
                if session.unread() and not self.quiet(session, in_data=True):
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

    # --- failure -----------------------------------------------------------------------------------------------------

    def _fail_in_data(self, error: BackendError) -> None:
        """A backend that gives up amid the message may have said why before it closed the connection."""
        if self.session is not None and error.failure is Failure.GONE:
            try:
                self.session.check_quiet(in_data=True)
            except BackendError as said:
                error = said
        self.fail(error)

    def _fail_at_the_end(self, error: BackendError) -> None:
        maybe_delivered = self._dot_begun
        if not self._dot_begun:
            self._commit.step_back()
        self.fail(error)
        self.said = len(self.replies)
        if unsaid := len(self.accepted) - self.said:
            self.replies += [error.reply] * unsaid
            self.pool.counts.count([error.reply] * unsaid)
            self.trouble = f"{error.reason}; may be delivered" if maybe_delivered else error.reason
