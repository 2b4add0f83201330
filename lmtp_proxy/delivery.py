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
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from lmtp_proxy import reply as say
from lmtp_proxy.backend_error import BackendError
from lmtp_proxy.commands import Commands
from lmtp_proxy.commit import CommitPoint, Cutover, Message, Position
from lmtp_proxy.dot_stuffing import FINAL_DOT
from lmtp_proxy.failure import Phase, judge
from lmtp_proxy.place import Place
from lmtp_proxy.pool import BackendPool
from lmtp_proxy.reply import Reply
from lmtp_proxy.stream import Stream

if TYPE_CHECKING:
    from lmtp_proxy.backend import BackendSession

_log = logging.getLogger(__name__)
_DATA, _FINAL_DOT = Phase.DATA, Phase.FINAL_DOT


class Delivery:
    """The conversation with one backend in one transaction.

    deadline: until when `advance` has to be done (time.monotonic). in_data: the backend takes the message. over: it was
    left or abandoned. before_wait: called before a wait that is not the caller's own.
    """

    def __init__(self, pool: BackendPool, message: Message, cutover: Cutover, before_wait: Callable[[], None]) -> None:
        self.pool = pool
        self.deadline = 0.0
        self._envelope = message.envelope
        self._commit = CommitPoint(pool, message, cutover)
        self._accepted = self._commit.accepted
        self._timeouts = pool.backend.timeouts
        self._place = Place(pool, before_wait)
        self.in_data = self.over = self._some_accepted = self._counted = False
        self._new: list[Position] = []  # RCPT not sent yet
        self._asked: list[Position] = []  # RCPT sent with the last `ask`
        self._commands = Commands(pool.backend.timeouts.command)
        self._unanswered: deque[Position] = deque()  # after the final dot
        self._dot_waits = False  # there was no room for any of it
        self._dot_begun = False
        self._failure: BackendError | None = None

    def __repr__(self) -> str:
        state = f"failed: {self._failure.reason}" if self._failure else repr(self._commands)
        return f"<Delivery to {self.pool} accepted={len(self._accepted)} {state}>"

    @property
    def wanted(self) -> bool:
        """Some recipient waits for this delivery's final replies, and it has not failed."""
        return bool(self._accepted) and self._failure is None

    @property
    def stream(self) -> Stream | None:
        """What to wait for until `advance` can go on."""
        session = self._place.session
        return None if session is None else session.stream

    # --- envelope ----------------------------------------------------------------------------------------------------

    def add(self, position: Position) -> None:
        """A recipient to be asked for with the next `ask`."""
        position.asked = True
        self._new.append(position)
        self._commit.add(position.recipient)

    def reserve(self) -> None:
        """Take a place in the pool, unless that was done."""
        try:
            if self._failure is None:
                self._place.reserve()
        except BackendError as error:
            self._fail(error)

    @property
    def unopened(self) -> bool:
        """A place is reserved, and `open` has to be called."""
        return self._place.reserved

    def open(self) -> None:
        """Open a session on the place."""
        try:
            self._place.open()
        except BackendError as error:
            self._fail(error)

    def ask(self, *, data_follows: bool) -> None:
        """Send MAIL (once), RCPT of the new recipients, and DATA if the client has said that already.

        When `advance` is done, each of them has its rcpt_reply.
        """
        self._asked, self._new = self._new, []
        if self._place.session is None:
            self._answer_asked()
            return
        try:
            session = self._place.quiet()
            self._commands.ask(session, self._envelope, self._asked, data_follows=data_follows)
        except BackendError as error:
            self._envelope_failed(error)

    def _answer_asked(self) -> None:
        """All replies to the last `ask` are known; a failure undoes those that accepted."""
        for position in self._asked:
            if self._failure is not None:
                position.rcpt_reply = self._failure.reply
                position.trouble = self._failure.reason
            reply = position.rcpt_reply = position.rcpt_reply or say.INTERNAL_ERROR
            if reply.positive:
                self._accepted.append(position)
            else:
                self.pool.counts.reply(reply)
        self._asked = []
        self._commit.recipients_known()

    # --- data --------------------------------------------------------------------------------------------------------

    def start_data(self) -> None:
        """Send DATA, unless it went with the recipients.

        A refusal is kept for the final replies, because the client has its own 354 coming.
        """
        session = self._place.session
        try:
            if session is not None and not self._commands.data_sent:
                session.check_quiet()
                self._commands.data(session)
        except BackendError as error:
            self._fail(error)

    def write(self, octets: bytes, dot: float) -> None:
        """Send a piece of the message, after `advance` has told that the last one went out. dot: see `finish`."""
        session = self._place.session
        if session is None:
            return
        try:
            if session.unread:
                session.check_quiet(in_data=True)
            session.put(octets)
            self._commit.sent(len(octets))
        except BackendError as error:
            self._fail_in_data(error)
        else:
            if session.stream and session.stream.full:
                self.deadline = min(time.monotonic() + self._timeouts.data_write, dot + self._timeouts.final_reply)

    # --- the end -----------------------------------------------------------------------------------------------------

    def finish(self, last: bytes, dot: float) -> None:
        """Pass the commit point, and send the last piece of the message with the final dot.

        When `advance` is done, each accepted recipient has its final_reply. dot: when the client can have sent its
        final dot at the earliest (time.monotonic); `final_reply` counts from there, because its own patience does.
        """
        self.deadline = dot + self._timeouts.final_reply
        try:
            if self._failure or self._place.session is None:
                raise self._failure or BackendError(say.INTERNAL_ERROR, "no session to commit")
            if time.monotonic() > self.deadline:
                raise BackendError(say.BACKEND_SILENT, "it took too long over the message; nothing was delivered")
            self._send_final_dot(self._place.session, last)
        except BackendError as error:
            self._fail_at_the_end(error)

    def _send_final_dot(self, session: BackendSession, last: bytes) -> None:
        """The dot goes out right after the look; where there is no room for any of it, not before another one."""
        self._pass_commit_point(session)
        octets = last + FINAL_DOT
        sent = session.send_now(octets)
        self._commit.sent(min(sent, len(last)))
        self._dot_waits = sent <= len(last)
        if self._dot_waits:
            self._commit.step_back()
            session.keep(memoryview(last)[sent:])
            return
        self._dot_begun = True
        self._unanswered.extend(self._accepted)
        if sent < len(octets):
            session.keep(octets[sent:])

    def _pass_commit_point(self, session: BackendSession) -> None:
        """The last look before the final dot; it waits for nothing, unless the backend is saying something."""
        self._commit.enter()
        session.check_quiet(in_data=True)
        self._commit.look()

    def leave(self) -> None:
        """The one exit for a conversation that ended well: nothing that matters is outstanding."""
        self._commit.passed_well()
        if self._dot_begun:
            self._count_final()
            self._part(self.pool.release)
        else:  # none of its recipients was accepted
            self._part(self.pool.reset)

    def abandon(self, reason: str = "given up") -> None:
        """The one exit for all others, at any time: amid the message the backend sees no final dot."""
        self._commit.given_up(reason)
        in_doubt = self._failure or self.in_data or self._commands.data_sent or self._commands.outstanding
        self._part(self.pool.discard if in_doubt else self.pool.reset)

    def _part(self, how: Callable[[BackendSession], None]) -> None:
        self.over = True
        self._commands.clear()
        self._unanswered.clear()
        self._dot_waits = False
        self._place.give_back(how)

    def _count_final(self) -> None:
        if not self._counted:
            self._counted = True
            for position in self._accepted:
                self.pool.counts.reply(position.final_reply or say.INTERNAL_ERROR)

    # --- going on ----------------------------------------------------------------------------------------------------

    def advance(self) -> bool:
        """Take in what has come; True when nothing of the last step is outstanding, also because it failed."""
        session = self._place.session
        if session is None:
            return True
        try:
            if self.in_data:
                return self._advance_in_data(session)
            return self._advance_commands(session)
        except BackendError as error:
            if self._asked:
                return self._envelope_failed(error)
            if self._dot_begun or self._dot_waits:
                self._fail_at_the_end(error)
            elif self.in_data:
                self._fail_in_data(error)
            else:
                self._fail(error)
        return True

    def _advance_commands(self, session: BackendSession) -> bool:
        commands = self._commands
        while commands.outstanding:
            answers = commands.answers(session)
            self.deadline = commands.deadline
            if not answers:
                return self._in_time("no answer in time")
            self._place.unheard = False
            for phase, position, reply in answers:
                if phase is _DATA:
                    self._take_data_reply(reply)
                elif position is None:
                    judge(phase, reply)
                else:
                    position.rcpt_reply = judge(phase, reply)
                    self._some_accepted = self._some_accepted or reply.positive
        if session.unread:
            session.check_quiet(in_data=self.in_data)
        if self._asked:
            self._answer_asked()
        return True

    def _advance_in_data(self, session: BackendSession) -> bool:
        while True:
            while self._unanswered:
                replies = session.next_replies(len(self._unanswered))
                if not replies:
                    return self._in_time("no answer in time")
                for reply in replies:
                    self._unanswered.popleft().final_reply = judge(_FINAL_DOT, reply)
            if session.stream is not None and session.stream.full:
                if session.unread:
                    session.check_quiet(in_data=True)
                return self._in_time("write: timed out")
            if not self._dot_waits:
                break
            self._send_final_dot(session, b"")
        if self._dot_begun:
            self.leave()
        return True

    def _in_time(self, what: str) -> bool:
        """False: wait on. Raises BackendError when the deadline has passed."""
        if time.monotonic() >= self.deadline:
            raise BackendError(say.BACKEND_SILENT, what)
        return False

    def _take_data_reply(self, reply: Reply) -> None:
        """DATA may have been sent along with recipients, which may all have been refused (RFC 2033 section 4.2).

        Recipients wait for this reply, too: as no other is a 354, it proves that theirs were theirs.
        """
        if self._some_accepted:
            if reply.negative and self._asked:
                self._answer_asked()  # accepted, all the same
            judge(_DATA, reply)
            self.in_data = True
            self._commit.data_begun()
        elif reply.negative:
            self._commands.data_sent = False
        elif self._place.session is not None:
            self._answer_asked()
            self._place.session.put(FINAL_DOT)  # an empty message to nobody, and nobody knows how that is answered
            raise BackendError(say.BACKEND_ODD, f"it takes a message without a recipient: {reply}")

    # --- failure -----------------------------------------------------------------------------------------------------

    def _envelope_failed(self, error: BackendError) -> bool:
        """Whether the step is done: on a session that takes the place of a dead one it begins anew."""
        commands = self._commands
        try:
            if self._place.replaces(error) and self._place.session is not None:
                data_follows = commands.data_sent
                commands.clear()
                commands.ask(self._place.session, self._envelope, self._asked, data_follows=data_follows)
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
        if self._place.session is not None and isinstance(error.__cause__, OSError):
            try:
                self._place.session.check_quiet(in_data=True)
            except BackendError as said:
                if said.reply is not say.BACKEND_SILENT:
                    error = said
        self._fail(error)

    def _fail_at_the_end(self, error: BackendError) -> None:
        error.maybe_delivered = self._dot_begun
        if not self._dot_begun:
            self._commit.step_back()
        self._fail(error)
        for position in self._accepted:
            if position.final_reply is None:
                position.final_reply = error.reply
                position.trouble = f"{error.reason}; may be delivered" if error.maybe_delivered else error.reason
        self._count_final()
