# SPDX-License-Identifier: GPL-3.0-or-later
"""The first half of a delivery: a place, a session, MAIL, RCPT and DATA; asked on a second session where that may help.

Each step sends what it has to send and waits for nothing; what has come is taken in later. It knows nothing of the
message, nor of the other backends.
"""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

from lmtp_proxy.backends.failure import BAD_PARAMETER, BackendError, Failure, Retry, judge
from lmtp_proxy.backends.pool import BackendPool
from lmtp_proxy.delivery.asked_again import may_ask_again, merged, none_was_taken
from lmtp_proxy.delivery.commit import CommitPoint, Message, ProcessParts
from lmtp_proxy.delivery.state import DeliveryState
from lmtp_proxy.generations.destination import Destination
from lmtp_proxy.wire.client import ClientState, Command, KnownReplies
from lmtp_proxy.wire.dot_stuffing import FINAL_DOT
from lmtp_proxy.wire.reply import Reply

if TYPE_CHECKING:
    from lmtp_proxy.backends.session import BackendSession

_log = logging.getLogger(__name__)

# Times `command` for all replies to MAIL and one group of RCPT: with 60 s this ends before Postfix's 300 s.
_ENVELOPE = 4
_EARLY_REPLY = 1.0  # seconds for the rest of a reply that has begun to arrive before its time


_NEW, _RESERVED, _OPEN, _ASKED = DeliveryState.NEW, DeliveryState.RESERVED, DeliveryState.OPEN, DeliveryState.ASKED
_DATA, _DOT, _OVER, _DOUBTED = DeliveryState.DATA, DeliveryState.DOT, DeliveryState.OVER, DeliveryState.DOUBTED
_HEARING, _HEARING_LAST, _PROVING = DeliveryState.HEARING, DeliveryState.HEARING_LAST, DeliveryState.PROVING
_TO_RCPT, _TO_DATA = Command.RCPT, Command.DATA
_NOBODY: Mapping[int, Reply] = {}
_TOO_MUCH = "it said more than was asked for"
_NO_RECIPIENTS = (503, 554)  # to DATA: RFC 2033 section 4.2, RFC 5321 section 3.3
_SAYS_NO_MORE = (Failure.GONE, Failure.CLOSING, Failure.SILENT)
_command, _code = attrgetter("command"), attrgetter("code")


class Asking(ABC):
    """The conversation with one backend in one transaction, up to DATA; and what ends it at any time.

    Attributes:
        state: what it waits for.
        session: None without a session.
        deadline: until when `advance` has to be done (time.monotonic).
        rcpt_replies: to all that were asked for last.
        accepted: the recipients that wait for final replies.
        replies: the final ones, to as many of the first of `accepted` as have one.
        said: how many of these are the backend's, where some are not.
        trouble: why the last replies to be known, if they are ours, are what they are; for the log, escaped.
    """

    __slots__ = (
        *("_asked", "_commit", "_data_follows", "_deferred_all", "_envelope", "_failure", "_judging"),
        *("_late", "_latest", "_refusal", "accepted", "deadline", "pool"),
        *("rcpt_replies", "replies", "said", "session", "state", "trouble"),
    )

    def __init__(self, pool: BackendPool, message: Message, parts: ProcessParts) -> None:
        self.pool = pool
        self.state = _NEW
        self.session: BackendSession | None = None
        self.deadline = 0.0
        self.rcpt_replies: Sequence[Reply] = ()
        self.said = 0
        self.trouble = ""
        self._envelope = message.envelope
        self._asked: Sequence[Destination] = ()  # RCPT is to be sent or was sent, and not all replies are known
        self._latest = math.inf  # for all replies to what was asked
        self._failure: BackendError | None = None
        self._data_follows: bool  # the client has said DATA; for those whom `ask` was for last
        self._judging = False  # all is asked on a second session, and who was told yes by the first has no reply yet
        self._deferred_all: bool | None = None  # None: nobody was refused
        self._late: Mapping[int, Reply] = _NOBODY  # what those of them get who are refused now, by place in `accepted`
        self._refusal: BackendError | None  # where one is doubted
        commit = self._commit = CommitPoint(pool, message, parts)
        self.accepted = commit.accepted
        self.replies = commit.replies

    def __repr__(self) -> str:
        what = f"failed: {self._failure.reason}" if self._failure else self.state.name.lower()
        session = "" if self.session is None else f" {self.session.protocol!r}"
        return f"<{type(self).__name__} to {self.pool} accepted={len(self.accepted)} {what}{session}>"

    @property
    def over(self) -> bool:
        """It was left or abandoned."""
        return self.state is _OVER

    @property
    def wanted(self) -> bool:
        """Some recipient waits for this delivery's final replies, and it has not failed."""
        return bool(self._commit.accepted) and self._failure is None

    @property
    def lacks_session(self) -> bool:
        """It has none, and somebody is asked for, or waits for its final replies."""
        return self.state is _RESERVED or (self.state is _NEW and bool(self._asked or self._commit.accepted))

    @property
    def has_to_ask(self) -> bool:
        """Nobody was asked for yet of those that the place was taken for, or all are to be asked for again."""
        return bool(self._asked) or self._judging

    # --- a session ---------------------------------------------------------------------------------------------------

    def reserve(self, asked: Sequence[Destination], before_wait: Callable[[], None] | None) -> bool:
        """Take a place in the pool, unless that was done, to `ask` for these; whether there is no session yet.

        before_wait: called before a wait for the place; None not to wait: it is NEW still where there is none.
        """
        self._asked = self._commit.asked = asked
        if self.state is _NEW:
            self.take_place(before_wait)
        else:
            self.rcpt_replies = ()
        return self.state is _RESERVED or self.state is _NEW

    def take_place(self, before_wait: Callable[[], None] | None, seconds: float | None = None) -> None:
        """As `reserve`, for those of before. seconds: as BackendPool has it."""
        try:
            session = self.session = self.pool.reserve(before_wait, seconds, again=self._judging)
        except BackendError as error:
            if before_wait is not None:
                self.fail(error)
        else:
            self.state = _RESERVED if session is None else _OPEN

    def give_back(self) -> None:
        """Another store is waited for: the place goes to whoever needs it, unless DATA was sent.

        It is NEW then, and those whom its backend has accepted are asked for again with the next `ask`.
        """
        if self.state is _RESERVED:
            self.state = _NEW
            self.pool.cancel()
        elif self.state is _OPEN and (session := self.session) is not None:
            self.state, self.session = _NEW, None
            self._judging = bool(self.accepted)
            self.rcpt_replies = ()
            self._reset(session)

    def open(self) -> None:
        """Open a session on the place that is reserved."""
        try:
            self.session = self.pool.open()
        except BackendError as error:
            self.fail(error)
        else:
            self.state = _OPEN

    def _replaced(self, session: BackendSession) -> BackendSession:
        """A new one for one that served an earlier transaction, and is dead or not fit for use. Raises BackendError."""
        self.state, self.session = _RESERVED, None
        session = self.session = self.pool.reopen(session)
        self.state = _OPEN
        return session

    # --- the envelope ------------------------------------------------------------------------------------------------

    def ask(self, data_follows: bool) -> None:
        """Send MAIL (once), RCPT of those for whom the place was taken, and DATA if the client has said that already.

        When `advance` is done, all rcpt_replies are known.
        """
        session = self.session
        if session is None:
            self._answer_asked()
            return
        self._data_follows = data_follows
        try:
            if session.stirred():
                if session.protocol.stale:
                    session = self._replaced(session)
                elif not self._quiet(session):
                    return
            self._send_envelope(session, [*self._commit.accepted, *self._asked] if self._judging else self._asked)
        except BackendError as error:
            self._envelope_failed(error)

    def _send_envelope(self, session: BackendSession, asked: Sequence[Destination]) -> None:
        """As much of it as may go out in one write. Raises BackendError."""
        protocol = session.protocol
        if self._envelope.smtputf8:
            asked = [destination for destination in asked if self._may_take(destination)]
        octets = protocol.envelope(self._envelope, [*map(_command, asked)], self._data_follows)
        if octets:
            self.state = _ASKED
            now = time.monotonic()
            pool = self.pool
            self._latest = now + _ENVELOPE * pool.patience
            self.deadline = now + pool.first_look
            session.put(octets)

    def _may_take(self, destination: Destination) -> bool:
        """A backend without SMTPUTF8 takes nothing that needs it (RFC 6531 section 3.5)."""
        session, envelope = self.session, self._envelope
        if not envelope.smtputf8 or session is None or "smtputf8" in session.protocol.offered:
            return True
        return envelope.path.isascii() and destination.recipient.path.isascii()

    def start_data(self) -> None:
        """Send DATA, which did not go with the recipients.

        A refusal is kept for the final replies, because the client has its own 354 coming.
        """
        session = self.session
        if session is None:
            return
        self._data_follows = True
        try:
            if session.stirred() and not self._quiet(session):
                return
            self._say_data(session)
        except BackendError as error:
            self._envelope_failed(error)

    def _say_data(self, session: BackendSession) -> None:
        self.state = _ASKED
        self._latest = math.inf
        self._set_deadline()
        session.put(session.protocol.data())

    def _hear(self, session: BackendSession) -> bool:
        """Take in replies to what was asked; True when none is outstanding. Raises BackendError."""
        protocol = session.protocol
        while protocol.expected:
            replies = session.replies()
            if not replies:
                return self._unheard(session)
            if (
                isinstance(replies, KnownReplies)
                and replies.accepted
                and len(replies) == len(self._asked) + 2
                and not self._judging
            ):
                # To MAIL, to RCPT of all and to DATA, and yes to each, as nearly always: what the long way comes to.
                self.rcpt_replies = replies.accepted
                self.state = _DATA
                self._commit.data_begun()
                if not session.unread():
                    self.accepted += self._asked
                    self._asked = self._commit.asked = ()
                    return True
                break
            self._take(session, replies)
            if self.state is _DOUBTED:
                return self._hear_out(session)
            if protocol.unsent and not protocol.expected:
                # What came before these would answer them.
                if session.stirred() and not self._quiet(session):
                    return False
                session.put(protocol.more())
            self._set_deadline()
        if session.unread() and not self._quiet_behind_replies(session):
            if protocol.state is not ClientState.DATA:
                return False
        elif self.state is _ASKED:
            self.state = _OPEN
        return self._all_answered(session) if self._asked or self._judging else True

    def _all_answered(self, session: BackendSession) -> bool:
        """All replies to what was asked have come; whether nothing follows. Raises BackendError."""
        self._check_deferral(session)
        asked = self._asked
        self._answer_asked()
        if asked or not self._data_follows or self.state is not _OPEN or not self.wanted:
            return True
        self._say_data(session)  # the first session had been asked for it; it could not go along with the recipients
        return False

    def _check_deferral(self, session: BackendSession) -> None:
        """Raises BackendError where all recipients are deferred, and another session may do better."""
        if (self._judging or not self.accepted) and (deferred := none_was_taken(self.rcpt_replies)):
            error = BackendError(Failure.REFUSED, "in reply to all RCPT", deferred)
            if self._may_ask_again(session, error):
                raise error

    def _may_ask_again(self, session: BackendSession, error: BackendError) -> bool:
        return may_ask_again(error, session.protocol, self._commit.phase)

    def _unheard(self, session: BackendSession) -> bool:
        """As `_in_time`. At the first look a kept session may turn out to be dead, long before its time is up."""
        due = self._latest - (_ENVELOPE - 1) * self.pool.patience
        if self.deadline < due < math.inf and time.monotonic() >= self.deadline:
            if session.protocol.stale and session.lost:
                raise BackendError(Failure.SILENT, "what it was sent does not arrive")
            self.deadline = due
            return False
        return self._in_time("no answer in time")

    def _quiet_behind_replies(self, session: BackendSession) -> bool:
        """As `_quiet`; before an octet of the message went out a reply is no verdict on it, but one too many."""
        try:
            return self._quiet(session)
        except BackendError as error:
            raise BackendError(Failure.ODD, error.reason) if error.failure is Failure.REFUSED else error from None

    def _take(self, session: BackendSession, replies: Sequence[Reply]) -> None:
        said = self.rcpt_replies = [*self.rcpt_replies]
        answered = zip(session.protocol.answered, replies, strict=True)
        for command, reply in answered:
            if command is _TO_RCPT:
                said.append(judge(command, reply))
                continue
            try:
                if command is _TO_DATA:
                    self._take_data_reply(session, reply)
                else:
                    parameters = reply.code == BAD_PARAMETER and self._mail_had_parameters(session)
                    judge(command, reply, parameters=parameters)
            except BackendError as error:
                if error.failure is not Failure.REFUSED or self._may_ask_again(session, error):
                    raise
                self._doubt(error, answered)

    def _doubt(self, refusal: BackendError | None, answered: Iterable[tuple[Command, Reply]] = ()) -> None:
        """One reply too many, and the refusal was another recipient's, or of nothing in this transaction.

        So it has to be proved: where it is true, all that went out behind it is refused, too; RSET is not, and a DATA
        behind that is. Raises BackendError. refusal: None where that of all recipients is in doubt. answered: what came
        along, to the rest.
        """
        self.state = _DOUBTED
        self._refusal = refusal
        _check_in_step(answered)

    def _hear_out(self, session: BackendSession) -> bool:
        """Take in all that is to come, up to the replies to RSET and DATA.

        Raises BackendError: the refusal, where it stands.
        """
        protocol, failed = session.protocol, self._refusal
        try:
            if self.state is _DOUBTED:
                self.state = _PROVING
                if not protocol.expected and session.stirred() and not self._quiet_behind_replies(session):
                    raise BackendError(Failure.ODD, _TOO_MUCH)
                self._set_deadline()
                session.put(protocol.take_back())
            while protocol.expected:
                replies = session.replies()
                if not replies:
                    return self._in_time("no answer in time")
                _check_in_step(zip(protocol.answered, replies, strict=True))
            if session.stirred() and not self._quiet_behind_replies(session):
                raise BackendError(Failure.ODD, _TOO_MUCH)
        except BackendError as error:
            if error.failure not in _SAYS_NO_MORE:
                raise
            failed = failed or error  # as some do after a refusal
        if (self._asked or self._judging) and (self._refusal is None or self.rcpt_replies):
            self._answer_asked()  # some are accepted, all the same, where DATA is refused
        if failed is not None:
            raise failed
        protocol.taken_back()
        self.state = _OPEN
        return True

    def _mail_had_parameters(self, session: BackendSession) -> bool:
        mail_command = self._envelope.mail_command
        return mail_command(session.protocol.offered) != mail_command(())

    def _take_data_reply(self, session: BackendSession, reply: Reply) -> None:
        """DATA may have been sent along with recipients, which may all have been refused (RFC 2033 section 4.2).

        Recipients wait for this reply, too: as no other is a 354, it proves that theirs were theirs.
        """
        if (self.accepted and not self._judging) or any(said.positive for said in self.rcpt_replies):
            if reply.code != 354:
                judge(_TO_DATA, reply)
            self.state = _DATA
            self._commit.data_begun()
        elif reply.code == 354:
            self._answer_asked()
            session.put(FINAL_DOT)  # an empty message to nobody, and nobody knows how that is answered
            raise BackendError(Failure.ODD, f"it takes a message without a recipient: {reply}")
        elif not reply.negative:
            judge(_TO_DATA, reply)
        elif reply.code not in _NO_RECIPIENTS:
            self._check_deferral(session)
            self._doubt(None)

    def _answer_asked(self) -> None:
        """All replies to the last `ask` are known; a failure undoes those that accepted."""
        asked = self._asked
        self._asked = self._commit.asked = ()
        if self._failure is not None:
            self.rcpt_replies = [self._failure.reply] * len(asked)
            self.trouble = self._failure.reason
        elif self._judging:
            self._judge_again()
        if self._failure is None and self._envelope.smtputf8:
            said = iter(self.rcpt_replies)
            self.rcpt_replies = [
                next(said) if self._may_take(destination) else Failure.NO_SMTPUTF8.reply for destination in asked
            ]
        replies = self.rcpt_replies
        accepted = asked
        if max(map(_code, replies), default=0) >= 300:
            deferred = not self.accepted and all(reply.code // 100 == 4 for reply in replies)
            self._deferred_all = deferred and self._deferred_all is not False
            accepted = [destination for destination, reply in zip(asked, replies, strict=True) if reply.positive]
            self.pool.counts.count([reply for reply in replies if not reply.positive])
        self.accepted += accepted
        if self._late:
            self._commit.accepted += accepted

    # --- the envelope, on a second session ---------------------------------------------------------------------------

    def _envelope_failed(self, error: BackendError) -> bool:
        """Whether the step is done: on a session that takes the place of a dead or tired one it begins anew."""
        session = self.session
        asks = self._asked or self.accepted
        if session is not None and asks and self._may_ask_again(session, error):
            self._judging = bool(self.accepted)
            self.rcpt_replies = ()
            if error.failure.value.retry is Retry.IF_UNHEARD and (error.failure is Failure.SILENT or session.lost):
                self.pool.condemn(self._latest - _ENVELOPE * self.pool.patience)
            try:
                self._send_envelope(self._replaced(session), [*self._commit.accepted, *self._asked])
                return self.state is not _ASKED and self.advance()
            except BackendError as again:
                error = again
        self.fail(error)
        if self._asked:
            self._answer_asked()
        return True

    def _judge_again(self) -> None:
        """Who was told yes by the first session and is refused by the next one gets that as the final reply."""
        self._judging = False
        commit = self._commit
        again, late = commit.accepted, self._late
        number = sum(map(self._may_take, again))
        said, self.rcpt_replies = iter(self.rcpt_replies[:number]), self.rcpt_replies[number:]
        positions = [position for position in range(len(self.accepted)) if position not in late]
        refused = {}
        for position, destination in zip(positions, again, strict=True):
            reply = next(said) if self._may_take(destination) else Failure.NO_SMTPUTF8.reply
            if not reply.positive:
                refused[position] = reply
        if refused:
            # What these get is known; the commit point is about the others.
            self._late, self.replies = {**late, **refused}, []
            commit.accepted = [each for position, each in zip(positions, again, strict=True) if position not in refused]
            self.pool.counts.count([*refused.values()])

    def _merge_late(self) -> None:
        self.replies[:] = merged(self._commit.replies, self._late, len(self.accepted))

    # --- going on ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def advance(self) -> bool:
        """Take in what has come; True when nothing of the last step is outstanding, also because it failed."""

    def _quiet(self, session: BackendSession, hearing: DeliveryState = _HEARING) -> bool:
        """Whether nothing has come out of turn, up to now; else nothing more may be said on this session.

        Raises BackendError if something has. Where that is no whole reply yet, the answer is False, and the state is
        `hearing`: this is to be asked again until the deadline, which stands.
        """
        if session.check_quiet():
            return True
        now = time.monotonic()
        if self.state is not _HEARING and self.state is not _HEARING_LAST:
            self.deadline = now + _EARLY_REPLY
        elif now >= self.deadline:
            raise BackendError(Failure.SILENT, "no answer in time")
        self.state = hearing
        return False

    def _in_time(self, what: str) -> bool:
        """False: wait on. Raises BackendError when the deadline has passed."""
        if time.monotonic() >= self.deadline:
            raise BackendError(Failure.SILENT, what)
        return False

    def _set_deadline(self) -> None:
        """The next reply is waited for from now on."""
        self.deadline = min(time.monotonic() + self.pool.backend.timeouts.command, self._latest)

    # --- the end -----------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """The one exit for a conversation that ended well: nothing that matters is outstanding."""
        self._commit.passed_well()
        session = self.session
        if session is not None:
            self.session = None
            if self.state is _DOT:
                self.pool.release(session)
            else:  # none of its recipients was accepted
                self._reset(session)
        self.state = _OVER

    def abandon(self, reason: str = "given up") -> None:
        """The one exit for all others, at any time: amid the message the backend sees no final dot."""
        self._commit.given_up(reason)
        state, self.state = self.state, _OVER
        session, self.session = self.session, None
        if state is _RESERVED:
            self.pool.cancel()
        elif session is not None:
            if state is _OPEN and self._failure is None:
                self._reset(session)
            else:
                self.pool.discard(session)

    def _reset(self, session: BackendSession) -> None:
        """A session that deferred everybody may do so for ever: it is not kept."""
        if self._deferred_all and not self.accepted:
            self.pool.leave(session)
        else:
            self.pool.reset(session)

    def fail(self, error: BackendError) -> None:
        """The conversation is over; the first failure is the one that counts."""
        if self._failure is None:
            self._failure = error
            if error.failure.value.alarm:
                _log.error("backend %s: %s", self.pool, error.reason)
        self.abandon(error.reason)


def _check_in_step(answered: Iterable[tuple[Command, Reply]]) -> None:
    """Of what went out behind something that was refused, only RSET is not. Raises BackendError."""
    for command, reply in answered:
        if not (reply.positive if command is Command.RSET else reply.negative):
            raise BackendError(Failure.ODD, f"replies are out of step: to {command.value} it said {reply}")
