# SPDX-License-Identifier: GPL-3.0-or-later
"""One backend's share of a transaction: its recipients, from MAIL to their final replies.

A failure touches only these recipients: it is kept, and answers each of them when its turn comes. A Delivery sends
nothing to the client and does not know the other backends; each method may run in a greenlet of its own.
"""

import logging
import time
from collections.abc import Callable

from lmtp_proxy import reply as say
from lmtp_proxy.backend import BackendError, BackendSession
from lmtp_proxy.commit import CommitPoint, Cutover, Message, Position
from lmtp_proxy.failure import Phase, judge
from lmtp_proxy.pool import BackendPool
from lmtp_proxy.reply import Reply

_log = logging.getLogger(__name__)

# Times `command` for all replies to MAIL and one group of RCPT: with 60 s this ends before Postfix's 300 s.
_ENVELOPE = 4
# Commands in one write. Neither side may fill the other's socket buffers while it reads nothing (RFC 2920 section 3.1);
# 16 KiB of commands and 100 replies stay below the smallest of them.
_BATCH_OCTETS = 16384
_BATCH_COMMANDS = 100


class Delivery:
    """The conversation with one backend in one transaction."""

    def __init__(self, pool: BackendPool, message: Message, cutover: Cutover) -> None:
        self.pool = pool
        self.before_wait: Callable[[], None] | None = None
        self._envelope = message.envelope
        self._commit = CommitPoint(pool, message, cutover)
        self._accepted = self._commit.accepted
        self._timeouts = pool.backend.timeouts
        self._reserved = False
        self._session: BackendSession | None = None
        self._mail_sent = False
        self._new: list[Position] = []  # RCPT not sent yet
        self._unsent = b""  # of the piece of message in hand
        self._failure: BackendError | None = None

    def __repr__(self) -> str:
        state = f"failed: {self._failure.reason}" if self._failure else "open" if self._session else "closed"
        return f"<Delivery to {self.pool} accepted={len(self._accepted)} {state}>"

    @property
    def wanted(self) -> bool:
        """Some recipient waits for this delivery's final replies, and it has not failed."""
        return bool(self._accepted) and self._failure is None

    @property
    def stalled(self) -> bool:
        """The backend has not taken all of the last `write_now` yet."""
        return bool(self._unsent)

    # --- envelope ----------------------------------------------------------------------------------------------------

    def add(self, position: Position) -> None:
        """A recipient to be sent with the next `send_envelope`."""
        position.asked = True
        self._new.append(position)
        self._commit.add(position.recipient)

    def reserve(self, before_wait: Callable[[], None]) -> None:
        """Take a place in the pool, unless that was done; `before_wait` is called if there is none at once."""
        if self._reserved or self._failure:
            return
        try:
            self.pool.reserve(before_wait)
            self._reserved = True
        except BackendError as error:
            self._fail(error)

    def send_envelope(self) -> None:
        """MAIL (once) and RCPT of the new recipients; sets the rcpt_reply of each."""
        new, self._new = self._new, []
        try:
            replies = self._converse(new)
        except BackendError as error:
            self._fail(error)
            replies = [error.reply] * len(new)
            for position in new:
                position.trouble = error.reason
        for position, reply in zip(new, replies, strict=True):
            position.rcpt_reply = reply
            if reply.positive:
                self._accepted.append(position)
            else:
                self.pool.counts.reply(reply)
        self._commit.recipients_known()

    def _converse(self, positions: list[Position]) -> list[Reply]:
        session = self._ready_session()
        refused = self._cannot_take(session, positions)
        wanted = [position for position in positions if position not in refused]
        commands = [position.recipient.rcpt_command() for position in wanted]
        if commands and not self._mail_sent:
            commands.insert(0, self._envelope.mail_command(session.offered))
        replies: list[Reply] = []
        latest = self._until(_ENVELOPE * self._timeouts.command)
        for batch in _batches(commands, pipelining="pipelining" in session.offered):
            session.write(b"".join(command + b"\r\n" for command in batch), self._until(self._timeouts.data_write))
            for _ in batch:
                reply = session.read_reply(min(latest, self._until(self._timeouts.command)))
                if self._mail_sent:
                    replies.append(judge(Phase.RCPT, reply))
                else:
                    judge(Phase.MAIL, reply)
                    self._mail_sent = True
        if session.unread:
            raise BackendError(say.BACKEND_ODD, "more replies than commands")
        answers = iter(replies)
        return [say.NO_SMTPUTF8 if position in refused else next(answers) for position in positions]

    def _ready_session(self) -> BackendSession:
        if self._failure:
            raise self._failure
        if self._session is None:
            self._about_to_wait()
            self._session = self.pool.open()
            self._session.before_wait = self._about_to_wait
        else:
            self._session.check_quiet()
        return self._session

    def _about_to_wait(self) -> None:
        # Looked up at each call: it is another one when several deliveries run at once.
        if self.before_wait:
            self.before_wait()

    def _cannot_take(self, session: BackendSession, positions: list[Position]) -> set[Position]:
        """The recipients that need SMTPUTF8 on a backend that does not offer it (RFC 6531 section 3.5)."""
        if not self._envelope.smtputf8 or "smtputf8" in session.offered:
            return set()
        sender = self._envelope.path.isascii()
        return {position for position in positions if not (sender and position.recipient.path.isascii())}

    # --- data --------------------------------------------------------------------------------------------------------

    def start_data(self) -> None:
        """DATA. A refusal is kept for the final replies, because the client has its own 354 coming."""
        try:
            session = self._ready_session()
            session.write(b"DATA\r\n", self._until(self._timeouts.command))
            judge(Phase.DATA, session.read_reply(self._until(self._timeouts.command)))
            self._commit.data_begun()
        except BackendError as error:
            self._fail(error)

    def write_now(self, octets: bytes) -> None:
        """Send of the message what goes out without waiting; see `stalled`."""
        if self._session is None:
            return
        try:
            self._session.check_quiet(in_data=True)
            self._unsent = self._session.write_now(octets)
            self._commit.sent(len(octets))
        except BackendError as error:
            self._fail_in_data(error)

    def write_rest(self, dot: float) -> None:
        """Send what `write_now` left. dot: when the client can have sent its final dot, see `finish`."""
        rest, self._unsent = self._unsent, b""
        if self._session is None:
            return
        try:
            deadline = min(self._until(self._timeouts.data_write), dot + self._timeouts.final_reply)
            self._session.write(rest, deadline)
        except BackendError as error:
            self._fail_in_data(error)

    # --- the end -----------------------------------------------------------------------------------------------------

    def finish(self, dot: float, settled: Callable[[], None]) -> None:
        """Pass the commit point, send the final dot, read the final replies.

        dot: when the client can have sent its final dot at the earliest (time.monotonic); `final_reply` counts from
        there, because the client's own patience does. Calls `settled` each time another recipient has its final_reply;
        at the end all of them have.
        """
        deadline = dot + self._timeouts.final_reply
        try:
            session = self._ready_to_commit(deadline)
            session.write_final_dot(deadline, lambda: self._pass_commit_point(session), self._commit.step_back)
            self._read_final_replies(session, deadline, settled)
            self.leave()
        except BackendError as error:
            if not error.maybe_delivered:
                self._commit.step_back()
            self._fail(error)
            for position in self._accepted:
                if position.final_reply is None:
                    position.final_reply = error.reply
                    position.trouble = f"{error.reason}; may be delivered" if error.maybe_delivered else error.reason
            settled()
        for position in self._accepted:
            self.pool.counts.reply(position.final_reply or say.INTERNAL_ERROR)

    def _ready_to_commit(self, deadline: float) -> BackendSession:
        if self._failure or self._session is None:
            raise self._failure or BackendError(say.INTERNAL_ERROR, "no session to commit")
        if time.monotonic() > deadline:
            raise BackendError(say.BACKEND_SILENT, "it took too long over the message; nothing was delivered")
        return self._session

    def _pass_commit_point(self, session: BackendSession) -> None:
        """The last look before the final dot; it waits for nothing, unless the backend is saying something."""
        self._commit.enter()
        session.check_quiet(in_data=True)
        self._commit.look()

    def _read_final_replies(self, session: BackendSession, deadline: float, settled: Callable[[], None]) -> None:
        try:
            for position in self._accepted:
                position.final_reply = judge(Phase.FINAL_DOT, session.read_reply(deadline))
                settled()
        except BackendError as error:
            error.maybe_delivered = True
            raise

    def leave(self) -> None:
        """The one exit for a conversation that ended well: nothing that matters is outstanding."""
        self._commit.passed_well()
        self._close(self.pool.release)

    def abandon(self, reason: str = "given up") -> None:
        """The one exit for all others, at any time: amid the message the backend sees no final dot."""
        self._commit.given_up(reason)
        self._close(self.pool.discard)

    # --- failure -----------------------------------------------------------------------------------------------------

    def _close(self, give_back: Callable[[BackendSession], None]) -> None:
        session, self._session = self._session, None
        reserved, self._reserved = self._reserved, False
        self._unsent = b""
        if session is not None:
            give_back(session)
        elif reserved:
            self.pool.cancel()

    def _fail(self, error: BackendError) -> None:
        if error.alarm and self._failure is None:
            _log.error("backend %s: %s", self.pool, error.reason)
        self._failure = self._failure or error
        self.abandon(error.reason)

    def _fail_in_data(self, error: BackendError) -> None:
        """A backend that gives up amid the message may have said why before it closed the connection."""
        if self._session is not None and error.reply is say.BACKEND_SILENT:
            try:
                self._session.check_quiet(in_data=True)
            except BackendError as said:
                if said.reply is not say.BACKEND_SILENT:
                    error = said
        self._fail(error)

    @staticmethod
    def _until(seconds: float) -> float:
        return time.monotonic() + seconds


def _batches(commands: list[bytes], *, pipelining: bool) -> list[list[bytes]]:
    """The commands in groups, each of which goes out in one write; one by one without PIPELINING."""
    batches: list[list[bytes]] = []
    octets = 0
    for command in commands:
        full = octets + len(command) > _BATCH_OCTETS or (batches and len(batches[-1]) >= _BATCH_COMMANDS)
        if not batches or not pipelining or full:
            batches.append([])
            octets = 0
        batches[-1].append(command)
        octets += len(command) + 2
    return batches
