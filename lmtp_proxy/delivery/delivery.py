# SPDX-License-Identifier: GPL-3.0-or-later
"""One backend's share of a transaction: its recipients, from MAIL to their final replies.

Each step sends what it has to send and waits for nothing; `advance` then takes in what has come, as often as it is
called, until the step is done. So one greenlet serves all backends of a transaction at once. A failure touches only
these recipients: it is kept, and answers each of them when its turn comes. A Delivery sends nothing to the client and
does not know the other backends; what is said to its own, and in which order, the connection's ClientProtocol knows.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

from lmtp_proxy.backends.failure import BAD_PARAMETER, BackendError, Failure, Retry, judge
from lmtp_proxy.backends.pool import BackendPool
from lmtp_proxy.delivery.accounts import Accounts
from lmtp_proxy.delivery.asked_again import may_ask_again, none_was_taken
from lmtp_proxy.delivery.commit import CommitPoint, Message, ProcessParts
from lmtp_proxy.delivery.in_flight import Phase
from lmtp_proxy.delivery.proof import Proof, check_in_step
from lmtp_proxy.delivery.state import AWAITS_SESSION, DeliveryState
from lmtp_proxy.generations.destination import Destination
from lmtp_proxy.wire.client import ClientState, Command, KnownReplies
from lmtp_proxy.wire.dot_stuffing import FINAL_DOT
from lmtp_proxy.wire.reply import Reply, worst_code

if TYPE_CHECKING:
    from lmtp_proxy.backends.session import BackendSession

_log = logging.getLogger(__name__)

_NO_RECIPIENTS = (503, 554)  # to DATA: RFC 2033 section 4.2, RFC 5321 section 3.3

_NEW, _RESERVED, _ANEW, _OPEN = DeliveryState.NEW, DeliveryState.RESERVED, DeliveryState.ANEW, DeliveryState.OPEN
_ASKED = DeliveryState.ASKED
_DOUBTED, _PROVING, _OVER = DeliveryState.DOUBTED, DeliveryState.PROVING, DeliveryState.OVER
_DATA, _NO_ROOM, _DOT = DeliveryState.DATA, DeliveryState.NO_ROOM, DeliveryState.DOT
_HEARING, _HEARING_LAST = DeliveryState.HEARING, DeliveryState.HEARING_LAST
_TO_RCPT, _TO_DATA, _TO_DOT = Command.RCPT, Command.DATA, Command.FINAL_DOT
_IN_ENVELOPE, _IN_DATA = Phase.ENVELOPE, Phase.DATA
_command = attrgetter("command")


class Delivery:
    """The conversation with one backend in one transaction.

    Attributes:
        accounts: its recipients, and what each of them gets.
        commit: its commit point, which also has their places at mailboxes.
        state: what it waits for.
        session: None without a session.
        rcpt_replies: to all that were asked for last.
        trouble: why the last replies to be known, if they are ours, are what they are; for the log, escaped.
    """

    __slots__ = (
        *("_envelope", "_failure", "_proof", "_up_to", "_who"),
        *("accounts", "commit", "pool", "rcpt_replies", "session", "state", "trouble"),
    )

    def __init__(self, pool: BackendPool, message: Message, parts: ProcessParts) -> None:
        self.pool = pool
        self.state = _NEW
        self.session: BackendSession | None = None
        self.rcpt_replies: Sequence[Reply] = ()
        self.trouble = ""
        self._envelope, self._who = message.envelope, message.who
        accounts = self.accounts = Accounts()
        self.commit = CommitPoint(pool, message, parts, accounts)
        self._up_to: Command  # the last command that the client has said, as far as it is for those asked for last
        self._failure: BackendError | None = None
        self._proof: Proof  # where a refusal is in doubt

    def __repr__(self) -> str:
        what = f"failed: {self._failure.reason}" if self._failure else self.state.name.lower()
        session = "" if self.session is None else f" {self.session.protocol!r}"
        return f"<{type(self).__name__} to {self.pool} {self.accounts} {what}{session}>"

    @property
    def over(self) -> bool:
        """It was left or abandoned."""
        return self.state is _OVER

    @property
    def wanted(self) -> bool:
        """Some recipient waits for the backend's final replies, and it has not failed."""
        return bool(self.accounts.accepted) and self._failure is None

    @property
    def lacks_session(self) -> bool:
        """It has none, and somebody is asked for, or waits for its final replies."""
        state, accounts = self.state, self.accounts
        return state in AWAITS_SESSION or (state is _NEW and bool(accounts.asked or accounts.accepted))

    # --- a session ---------------------------------------------------------------------------------------------------

    def reserve(self, asked: Sequence[Destination], before_wait: Callable[[], None] | None) -> bool:
        """Take a place in the pool, unless that was done, to `ask` for these; whether there is no session yet.

        before_wait: called before a wait for the place; None not to wait: it is NEW still where there is none.
        """
        accounts = self.accounts
        accounts.asked = asked if accounts.again is None else accounts.promised_and(asked)
        if self.state is _NEW:
            self.take_place(before_wait)
        else:
            self.rcpt_replies = ()
        return self.session is None and self.state is not _OVER

    def take_place(
        self, before_wait: Callable[[], None] | None, seconds: float | None = None, *, again: bool = False
    ) -> None:
        """As `reserve`, for those of before. seconds, again: as BackendPool has them."""
        try:
            again = again or self.accounts.again is not None
            session = self.session = self.pool.reserve(before_wait, seconds, again=again, who=self._who)
        except BackendError as error:
            if before_wait is not None:
                self.fail(error)
        else:
            self.state = _RESERVED if session is None else _OPEN

    def give_back(self) -> None:
        """Another store is waited for: the place goes to whoever needs it, unless DATA was sent.

        It is NEW then, and those whom its backend has accepted are asked for again with the next `ask`.
        """
        if self.state in AWAITS_SESSION:
            self.state = _NEW
            self.pool.cancel()
        elif self.state is _OPEN and (session := self.session) is not None:
            self.state, self.session = _NEW, None
            self.accounts.ask_again()
            self.commit.asked_at = math.inf
            self.rcpt_replies = ()
            self._reset(session)

    def open(self) -> None:
        """Open a session on the place that is reserved."""
        try:
            self.session = self.pool.open(fresh=self.state is _ANEW, who=self._who)
        except BackendError as error:
            self.fail(error)
        else:
            self.state = _OPEN

    def _replace(self, session: BackendSession) -> None:
        """It served an earlier transaction, and is dead or not fit for use: a new one is to be opened in its place.

        Nobody waits for that here: others need not be kept waiting meanwhile.
        """
        self.state, self.session = _ANEW, None
        session.close()

    # --- the envelope ------------------------------------------------------------------------------------------------

    def ask(self, data_follows: bool) -> None:
        """Send MAIL (once), RCPT of those for whom the place was taken, and DATA if the client has said that already.

        When `advance` is done, all rcpt_replies are known; or it is ANEW, and there are none.
        """
        session = self.session
        if session is None:
            self._answer_asked()
            return
        self._up_to = _TO_DATA if data_follows else _TO_RCPT
        try:
            if session.stirred():
                if session.protocol.stale:
                    self._replace(session)
                    return
                if not self._quiet(session):
                    return
            self._send_envelope(session)
        except BackendError as error:
            self._envelope_failed(error)

    def _send_envelope(self, session: BackendSession) -> None:
        """As much of it as may go out in one write. Raises BackendError."""
        protocol, asked = session.protocol, self.accounts.asked
        if self._envelope.smtputf8:
            asked = [destination for destination in asked if self._may_take(destination)]
        octets = protocol.envelope(self._envelope, [*map(_command, asked)], self._up_to is _TO_DATA)
        if octets:
            self.state = _ASKED
            session.deadline.envelope()
            self.commit.asked_at = session.deadline.asked_at
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
        self._up_to = _TO_DATA
        try:
            if session.stirred() and not self._quiet(session):
                return
            self._say_data(session)
        except BackendError as error:
            self._envelope_failed(error)

    def _say_data(self, session: BackendSession) -> None:
        self.state = _ASKED
        session.deadline.data()
        session.put(session.protocol.data())

    def _hear(self, session: BackendSession) -> bool:
        """Take in replies to what was asked; True when none is outstanding. Raises BackendError."""
        protocol, accounts = session.protocol, self.accounts
        while protocol.expected:
            replies = session.replies()
            if not replies:
                return self._unheard(session)
            if (
                isinstance(replies, KnownReplies)
                and replies.accepted
                and len(replies) == len(accounts.asked) + 2
                and accounts.again is None
            ):
                # To MAIL, to RCPT of all and to DATA, and yes to each, as nearly always: what the long way comes to.
                self.rcpt_replies = replies.accepted
                self.state = _DATA
                self.commit.phase = _IN_DATA
                if not session.unread():
                    accounts.take_all()
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
            session.deadline.next_reply()
        if session.unread() and not self._quiet_behind_replies(session):
            if protocol.state is not ClientState.DATA:
                return False
        elif self.state is _ASKED:
            self.state = _OPEN
        return self._all_answered(session) if accounts.asked else True

    def _all_answered(self, session: BackendSession) -> bool:
        """All replies to what was asked have come; whether nothing follows. Raises BackendError."""
        self._check_deferral(session)
        self._answer_asked()
        if self.rcpt_replies or self._up_to is not _TO_DATA or self.state is not _OPEN or not self.wanted:
            return True
        # All were asked for again when the first session had been told DATA; here it could not go along with them.
        self._say_data(session)
        return False

    def _check_deferral(self, session: BackendSession) -> None:
        """Raises BackendError where all recipients are deferred, and another session may do better."""
        if not self.accounts.accepted and (deferred := none_was_taken(self.rcpt_replies)):
            error = BackendError(Failure.REFUSED, "in reply to all RCPT", deferred)
            if self._may_ask_again(session, error):
                raise error

    def _may_ask_again(self, session: BackendSession, error: BackendError) -> bool:
        return may_ask_again(error, session.protocol, self.commit.phase)

    def _unheard(self, session: BackendSession) -> bool:
        """As `wait_on`. At the first look a kept session may turn out to be dead, long before its time is up."""
        if not session.deadline.is_first_look():
            return session.deadline.wait_on("no answer in time")
        if session.protocol.stale and session.lost:
            raise BackendError(Failure.SILENT, "what it was sent does not arrive")
        return False

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
                self._begin_doubt(error, answered)

    def _begin_doubt(self, refusal: BackendError | None, answered: Iterable[tuple[Command, Reply]] = ()) -> None:
        """refusal: see Proof. answered: what came along with it, to the rest. Raises BackendError."""
        self.state = _DOUBTED
        self._proof = Proof(refusal)
        check_in_step(answered)

    def _hear_out(self, session: BackendSession) -> bool:
        """Take in all that is to come, up to the replies to RSET and DATA.

        Raises BackendError: the refusal, where it stands.
        """
        proof = self._proof
        failed = proof.refusal
        try:
            if self.state is _DOUBTED:
                proof.begin(session)
                self.state = _PROVING
                session.deadline.next_reply()
            if not proof.heard(session):
                return session.deadline.wait_on("no answer in time")
        except BackendError as error:
            failed = proof.ended_by(error)
        if self.accounts.asked and (proof.refusal is None or self.rcpt_replies):
            self._answer_asked()  # some are accepted, all the same, where DATA is refused
        if failed is not None:
            raise failed
        session.protocol.taken_back()
        self.state = _OPEN
        return True

    def _mail_had_parameters(self, session: BackendSession) -> bool:
        mail_command = self._envelope.mail_command
        return mail_command(session.protocol.offered) != mail_command(())

    def _take_data_reply(self, session: BackendSession, reply: Reply) -> None:
        """DATA may have been sent along with recipients, which may all have been refused (RFC 2033 section 4.2).

        Recipients wait for this reply, too: as no other is a 354, it proves that theirs were theirs.
        """
        if self.accounts.accepted or any(said.positive for said in self.rcpt_replies):
            if reply.code != 354:
                judge(_TO_DATA, reply)
            self.state = _DATA
            self.commit.phase = _IN_DATA
        elif reply.code == 354:
            self._answer_asked()
            session.put(FINAL_DOT)  # an empty message to nobody, and nobody knows how that is answered
            raise BackendError(Failure.ODD, f"it takes a message without a recipient: {reply}")
        elif not reply.negative:
            judge(_TO_DATA, reply)
        elif reply.code not in _NO_RECIPIENTS:
            self._check_deferral(session)
            self._begin_doubt(None)

    def _answer_asked(self) -> None:
        """All replies to the last `ask` are known; a failure undoes those that accepted."""
        accounts, failure, replies = self.accounts, self._failure, self.rcpt_replies
        if failure is not None:
            replies = self.rcpt_replies = accounts.fail(failure.reply)
            self.trouble = failure.reason
        else:
            if self._envelope.smtputf8:
                said = iter(replies)
                replies = [next(said) if self._may_take(each) else Failure.NO_SMTPUTF8.reply for each in accounts.asked]
            self.rcpt_replies = accounts.take(replies)
        self.pool.counts.count([reply for reply in replies if not reply.positive])

    # --- the envelope, on a second session ---------------------------------------------------------------------------

    def _envelope_failed(self, error: BackendError) -> None:
        """The step is done, unless a session is to take the place of a dead or tired one: there it begins anew."""
        session, accounts = self.session, self.accounts
        asks = accounts.asked or accounts.accepted
        if session is not None and asks and self._may_ask_again(session, error):
            accounts.ask_again()
            self.rcpt_replies = ()
            if error.failure.value.retry is Retry.IF_UNHEARD and (error.failure is Failure.SILENT or session.lost):
                self.pool.condemn(session.deadline.asked_at)
            self._replace(session)
            return
        self.fail(error)
        if accounts.asked:
            self._answer_asked()

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
            self.commit.sent(len(octets))
        except BackendError as error:
            self._fail_amid_data(error)
        else:
            if session.stream and session.stream.full:
                session.deadline.write(dot)

    def finish(self, last: bytes, dot: float) -> None:
        """Pass the commit point, and send the last piece of the message with the final dot.

        When `advance` is done, each accepted recipient has its final reply. dot: when the client can have sent its
        final dot at the earliest (time.monotonic); `final_reply` counts from there, because its own patience does.
        """
        if not self.accounts.accepted:
            if self.accounts.told_yes and not self.over:  # it has refused all of them, asked again
                self.leave()
            return
        if self.state is _HEARING:
            self.state = _HEARING_LAST
            return
        session = self.session
        try:
            if session is None or self.state is not _DATA:
                raise self._failure or BackendError(Failure.INTERNAL, "no session to commit")
            due = session.deadline.due = dot + self.pool.backend.timeouts.final_reply
            if time.monotonic() > due:
                raise BackendError(Failure.SILENT, "it took too long over the message; nothing was delivered")
            self._send_final_dot(session, last)
        except BackendError as error:
            self._fail_at_the_end(error)

    def _send_final_dot(self, session: BackendSession, last: bytes) -> None:
        """The dot goes out right after the look; where there is no room for any of it, not before another one."""
        self._pass_commit_point(session)
        if self.state is _HEARING_LAST:
            return
        commit = self.commit
        octets = last + FINAL_DOT
        sent = session.send_now(octets)
        if sent > len(last):
            self.state = _DOT
            session.protocol.dot_begun(len(self.accounts.accepted))
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
        commit = self.commit
        commit.enter()
        if not session.stirred() or self._quiet(session, _HEARING_LAST):
            commit.look()

    def _go_on(self, session: BackendSession) -> bool:
        """What was written goes out, then the final dot if it is due; True when nothing waits. Raises BackendError."""
        due = self.state is _NO_ROOM
        if session.stream is not None and session.stream.full:
            if session.unread() and not self._quiet(session, _HEARING_LAST if due else _HEARING):
                return not due
            return session.deadline.wait_on("write: timed out")
        if due:
            self._send_final_dot(session, b"")
        return not due

    def _hear_final(self, session: BackendSession) -> bool:
        """Take in final replies; True when all are there. Raises BackendError."""
        accounts = self.accounts
        while len(accounts.replies) < len(accounts.accepted):
            replies = session.replies()
            if not replies:
                self.commit.some_answered()
                return session.deadline.wait_on("no answer in time")
            if (isinstance(replies, KnownReplies) and replies.positive) or worst_code(replies) < 300:
                accounts.replies = [*accounts.replies, *replies] if accounts.replies else replies
                self.pool.counts.sent += len(replies)
            else:
                known = accounts.replies = [*accounts.replies]  # one that is odd ends it, and those before it stand
                for reply in replies:
                    known.append(judge(_TO_DOT, reply))
                    self.pool.counts.count((reply,))
        if session.stream is not None and session.stream.full:
            return session.deadline.wait_on("write: timed out")
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
            if self.accounts.asked or self.commit.phase is _IN_ENVELOPE:
                self._envelope_failed(error)
            elif self.state is _DOT or self.state is _NO_ROOM or self.state is _HEARING_LAST:
                self._fail_at_the_end(error)
            else:
                self._fail_amid_data(error)
        return True

    def _quiet(self, session: BackendSession, hearing: DeliveryState = _HEARING) -> bool:
        """Whether nothing has come out of turn, up to now; else nothing more may be said on this session.

        Raises BackendError if something has. Where that is no whole reply yet, the answer is False, and the state is
        `hearing`: this is to be asked again until the deadline, which stands.
        """
        if session.check_quiet():
            return True
        if self.state is not _HEARING and self.state is not _HEARING_LAST:
            session.deadline.early_reply()
        self.state = hearing
        return session.deadline.wait_on("no answer in time")

    # --- the end -----------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """The one exit for a conversation that ended well: nothing that matters is outstanding."""
        self.commit.passed_well()
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
        self.commit.given_up(reason)
        state, self.state = self.state, _OVER
        session, self.session = self.session, None
        if state in AWAITS_SESSION:
            self.pool.cancel()
        elif session is not None:
            if state is _OPEN and self._failure is None:
                self._reset(session)
            else:
                self.pool.discard(session)

    def _reset(self, session: BackendSession) -> None:
        """A session that deferred everybody may do so for ever: it is not kept."""
        if self.accounts.deferred_all:
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
            self.commit.step_back()
        self.fail(error)
        if maybe_delivered:
            self.commit.ended_by(error)
        if unsaid := self.accounts.answer_rest(error.reply):
            self.pool.counts.count([error.reply] * unsaid)
            self.trouble = f"{error.reason}; may be delivered" if maybe_delivered else error.reason
