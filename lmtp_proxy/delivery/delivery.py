# SPDX-License-Identifier: GPL-3.0-or-later
"""One backend's share of a transaction: its recipients, from MAIL to their final replies.

Each step sends what it has to send and waits for nothing; `advance` then takes in what has come, as often as it is
called, until the step is done. So one greenlet serves all backends of a transaction at once. A failure touches only
these recipients: it is kept, and answers each of them when its turn comes. A Delivery sends nothing to the client and
does not know the other backends; what is said to its own, and in which order, the connection's ClientProtocol knows.
"""

from __future__ import annotations

import time
from operator import attrgetter
from typing import TYPE_CHECKING

from lmtp_proxy.backends.failure import BackendError, Failure, judge
from lmtp_proxy.delivery.asking import Asking
from lmtp_proxy.delivery.in_flight import Phase
from lmtp_proxy.delivery.state import DeliveryState
from lmtp_proxy.wire.client import ClientState, Command, KnownReplies
from lmtp_proxy.wire.dot_stuffing import FINAL_DOT

if TYPE_CHECKING:
    from lmtp_proxy.backends.session import BackendSession

_OPEN, _ASKED, _PROVING = DeliveryState.OPEN, DeliveryState.ASKED, DeliveryState.PROVING
_DOUBTED = DeliveryState.DOUBTED
_DATA, _NO_ROOM, _DOT = DeliveryState.DATA, DeliveryState.NO_ROOM, DeliveryState.DOT
_HEARING, _HEARING_LAST = DeliveryState.HEARING, DeliveryState.HEARING_LAST
_TO_DOT = Command.FINAL_DOT
_code = attrgetter("code")


class Delivery(Asking):
    """The whole conversation with one backend in one transaction."""

    __slots__ = ()

    # --- the message -------------------------------------------------------------------------------------------------

    def write(self, octets: bytes, dot: float) -> None:
        """Send a piece of the message, after `advance` has told that the last one went out. dot: see `finish`."""
        session = self.session
        if session is None or self.state is not _DATA:
            return
        try:
            if session.unread() and not self._quiet(session):
                return
            session.put(octets)
            self._commit.sent(len(octets))
        except BackendError as error:
            self._fail_amid_data(error)
        else:
            if session.stream and session.stream.full:
                times = self.pool.backend.timeouts
                self.deadline = min(time.monotonic() + times.data_write, dot + times.final_reply)

    def finish(self, last: bytes, dot: float) -> None:
        """Pass the commit point, and send the last piece of the message with the final dot.

        When `advance` is done, each accepted recipient has its final reply. dot: when the client can have sent its
        final dot at the earliest (time.monotonic); `final_reply` counts from there, because its own patience does.
        """
        if not self.accepted:
            return
        if self._late and not self._commit.accepted:
            self._merge_late()
            if not self.over:
                self.leave()
            return
        if self.state is _HEARING:
            self.state = _HEARING_LAST
            return
        session = self.session
        deadline = self.deadline = dot + self.pool.backend.timeouts.final_reply
        try:
            if session is None or self.state is not _DATA:
                raise self._failure or BackendError(Failure.INTERNAL, "no session to commit")
            if time.monotonic() > deadline:
                raise BackendError(Failure.SILENT, "it took too long over the message; nothing was delivered")
            self._send_final_dot(session, last)
        except BackendError as error:
            self._fail_at_the_end(error)

    def _send_final_dot(self, session: BackendSession, last: bytes) -> None:
        """The dot goes out right after the look; where there is no room for any of it, not before another one."""
        self._pass_commit_point(session)
        if self.state is _HEARING_LAST:
            return
        commit = self._commit
        octets = last + FINAL_DOT
        sent = session.send_now(octets)
        if sent > len(last):
            self.state = _DOT
            session.protocol.dot_begun(len(commit.accepted))
            commit.sent(len(last))
            if sent < len(octets):
                session.keep(octets[sent:])
        else:
            self.state = _NO_ROOM
            commit.sent(sent)
            commit.step_back()
            session.keep(memoryview(last)[sent:])

    def _pass_commit_point(self, session: BackendSession) -> None:
        """The last look before the final dot; it waits for nothing. Raises BackendError."""
        commit = self._commit
        commit.enter()
        if not session.stirred() or self._quiet(session, _HEARING_LAST):
            commit.look()

    def _go_on(self, session: BackendSession) -> bool:
        """What was written goes out, then the final dot if it is due; True when nothing waits. Raises BackendError."""
        due = self.state is _NO_ROOM
        if session.stream is not None and session.stream.full:
            if session.unread() and not self._quiet(session, _HEARING_LAST if due else _HEARING):
                return not due
            return self._in_time("write: timed out")
        if due:
            self._send_final_dot(session, b"")
        return not due

    def _hear_final(self, session: BackendSession) -> bool:
        """Take in final replies; True when all are there. Raises BackendError."""
        accepted, final = self._commit.accepted, self._commit.replies
        while len(final) < len(accepted):
            replies = session.replies()
            if not replies:
                if self._late:
                    self._merge_late()
                return self._in_time("no answer in time")
            if (isinstance(replies, KnownReplies) and replies.positive) or max(map(_code, replies)) < 300:
                final += replies
                self.pool.counts.sent += len(replies)
            else:
                for reply in replies:
                    final.append(judge(_TO_DOT, reply))
                    self.pool.counts.count((reply,))
        if session.stream is not None and session.stream.full:
            return self._in_time("write: timed out")
        if self._late:
            self._merge_late()
        self.leave()
        return True

    # --- going on ----------------------------------------------------------------------------------------------------

    def advance(self) -> bool:
        """Take in what has come; True when nothing of the last step is outstanding, also because it failed."""
        session, state = self.session, self.state
        if session is None:
            return True
        try:
            if state is _ASKED or state is _OPEN:
                return self._hear(session)
            if state is _DOT:
                return self._hear_final(session)
            if state is _DATA or state is _NO_ROOM:
                return self._go_on(session)
            if state is _DOUBTED or state is _PROVING:
                return self._hear_out(session)
            self._quiet(session, state)  # it is not, and never will be
            # Amid the message the other backends do not wait for what this one has to say.
            return state is _HEARING and session.protocol.state is ClientState.DATA
        except BackendError as error:
            if self._asked or self._commit.phase is Phase.ENVELOPE:
                return self._envelope_failed(error)
            if self.state is _DOT or self.state is _NO_ROOM or self.state is _HEARING_LAST:
                self._fail_at_the_end(error)
            else:
                self._fail_amid_data(error)
        return True

    def _fail_amid_data(self, error: BackendError) -> None:
        """A backend that gives up amid the message may have said why before it closed the connection."""
        if self.session is not None and error.failure is Failure.GONE:
            try:
                self.session.check_quiet()
            except BackendError as said:
                error = said
        self.fail(error)

    def _fail_at_the_end(self, error: BackendError) -> None:
        maybe_delivered = self.state is _DOT
        if not maybe_delivered and not self.over:
            self._commit.step_back()
        self.fail(error)
        if self._late:
            self._merge_late()
        self.said = said = len(self.replies)
        if len(self.accepted) > said:
            late = self._late
            unsaid = len(self._commit.accepted) - len(self._commit.replies)  # before these are among them
            self.replies += [late.get(position, error.reply) for position in range(said, len(self.accepted))]
            self.pool.counts.count([error.reply] * unsaid)
            self.trouble = f"{error.reason}; may be delivered" if maybe_delivered else error.reason
