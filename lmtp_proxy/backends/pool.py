# SPDX-License-Identifier: GPL-3.0-or-later
"""The connections to one backend: how many at once, which are kept for the next transaction, whether it can be reached.

`reserve` a place, which may bring a kept session with it, else `open` one; give both back with `release` (it ended
well), `reset` (a transaction is open, but its message was never begun) or `discard` (any doubt). Who waits for a
greeting gets what is released meanwhile: a store with fewer processes than we have places greets nobody while we keep
them busy. It speaks no LMTP but RSET and QUIT, and knows no recipients.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import gevent
from gevent.event import AsyncResult

from lmtp_proxy.backends.counts import Counts
from lmtp_proxy.backends.failure import BackendError, BackOff, Failure
from lmtp_proxy.backends.greets import REMEMBERED, Greets
from lmtp_proxy.backends.introductions import Introductions, Who, introduced
from lmtp_proxy.backends.mailboxes import Mailboxes
from lmtp_proxy.backends.new_session import new_session
from lmtp_proxy.backends.per_recipient import PerRecipient
from lmtp_proxy.backends.tls_peer import TlsPeer
from lmtp_proxy.backends.uses import uses
from lmtp_proxy.config.values import Backend
from lmtp_proxy.wire.client import Command

if TYPE_CHECKING:
    from lmtp_proxy.backends.session import BackendSession
    from lmtp_proxy.loop.resolve import SocketAddress
    from lmtp_proxy.wire.xforward import Said

_log = logging.getLogger(__name__)
# Seconds after an attempt to connect that nobody answered, in which nobody else tries. Long enough that
# a dead backend costs one wait at a time and not one per mail; short against the 300 s that Postfix waits after a 451.
BACK_OFF = 1.0
# Seconds without a greeting after which a kept connection is given up for it: far more than a store with room takes.
_MAKE_ROOM = 1.0
_LEAVING = (Command.OTHER,)  # QUIT: no other command of its own is said on a session that has been opened
_HAS_NO_ROOM = (Failure.SILENT, Failure.CLOSING)  # as a store says it that serves others
# Seconds between two attempts at a backend that is being restarted.
_RESTARTING = 0.2


# A session, or why there is none. As a value: for an exception that is handed over gevent 22.10 imports what it keeps a
# traceback with, which fails where no file can be opened.
_Opening: TypeAlias = "AsyncResult[BackendSession | Exception]"


class BackendPool:
    """The connections to one backend.

    Attributes:
        backend: which; its `max_connections` are those of this process.
        hostname: what we call ourselves in LHLO.
        counts, mailboxes: may be those of an earlier pool; whoever makes a pool configures the mailboxes, whose limit
            has to do with those of all processes.
        down: the last attempt to open a session failed, and nothing has gone well since.
        trouble: why, escaped.
        most_recipients: in one transaction: the least of what is configured, what the last session said, and what
            `per_recipient` has found out.
        splits: whether that is a limit.
        per_recipient: once it has given too few final replies.
        name, address: of the backend, for people.
        tls: what is known of it; None where it is talked to without.
    """

    def __init__(
        self, backend: Backend, hostname: str, counts: Counts | None = None, mailboxes: Mailboxes | None = None
    ) -> None:
        self.backend = backend
        self.hostname = hostname
        self.counts = counts or Counts()
        self.mailboxes = mailboxes or Mailboxes(backend.name)
        self.down = False
        self.trouble = ""
        self.name = f"{backend.name}[{backend.address}]"
        self.address = str(backend.address)
        self.per_recipient: PerRecipient | None = None
        self.tls = None if backend.tls == "no" else TlsPeer()
        self._introductions = Introductions(self.name) if backend.xclient else None
        self._rcpt_max = math.inf  # of the last session
        self.most_recipients: float = backend.recipients_per_transaction or math.inf
        self.splits = self.most_recipients < math.inf
        self._keeps = backend.idle_timeout > 0
        self._taken = 0  # places, those of kept sessions included
        self._kept: list[BackendSession] = []  # the last one that was released at the end
        self._queue: deque[AsyncResult[BackendSession | None]] = deque()
        self._opening: deque[_Opening] = deque()  # who would take another session as well
        self._sessions: list[BackendSession] = []  # all that were opened and, at the last opening, not closed
        self._greets = Greets(self.name, backend.max_connections)
        self._timer: Any = None  # for the first kept session to expire
        self._retired = False
        self._first: SocketAddress | None = None  # of the addresses of its name: it worked
        self._last: SocketAddress | None = None  # it did not
        self._failure: BackendError | None = None  # of an attempt that nobody answered
        self._retry_at = 0.0
        times = backend.timeouts
        self._slow = min(BACK_OFF, times.connect, times.greeting, times.command)  # an attempt that ends at a deadline
        self._heard = -math.inf  # when a session was opened or a transaction ended well
        self._probing = False

    def __repr__(self) -> str:
        state = "retired" if self._retired else "down" if self.down else "up"
        return f"<BackendPool {self} {state} busy={self.busy}/{self.backend.max_connections} idle={self.idle}>"

    def __str__(self) -> str:
        return self.name

    @property
    def busy(self) -> int:
        """Places taken now, but for those of kept sessions."""
        return self._taken - len(self._kept)

    @property
    def idle(self) -> int:
        """Sessions that are kept for the next transaction."""
        return len(self._kept)

    @property
    def waiting(self) -> int:
        """Transactions that wait for a place."""
        return len(self._queue)

    @property
    def uses(self) -> dict[str, int]:
        """What the places in use wait for, in words, and how many do; the most first. For an operator."""
        return uses([each.protocol for each in self._serving() if not each.kept_until], self.busy)

    # --- places ------------------------------------------------------------------------------------------------------

    def reserve(
        self,
        before_wait: Callable[[], None] | None,
        seconds: float | None = None,
        *,
        again: bool = False,
        who: Who | None = None,
    ) -> BackendSession | None:
        """Take a place; with a session that was used before, if one is kept, else it has to be opened.

        If there is no place, wait for one, first come first served. Raises BackendError.

        Args:
            before_wait: called before a wait, and without one nobody waits.
            seconds: for how long, as long as a connect may take if None.
            again: the transaction has given one back, in the midst, so that nobody waited for it in vain: it is next.
            who: the message comes from.
        """
        if self._introductions is not None and who is not None:
            return self._reserve_for(who(), before_wait, seconds, again=again)
        if not self._queue:
            if self._kept:
                session = self._kept.pop()
                session.kept_until = 0.0
                return session
            if self._taken < self._greets.most or self._taken < self._greets.now():
                self._taken += 1
                return None
        if before_wait is None:
            raise self._busy()
        before_wait()
        turn: AsyncResult[BackendSession | None] = AsyncResult()
        if again:
            self._queue.appendleft(turn)
        else:
            self.counts.waits += 1
            self._queue.append(turn)
        try:
            return turn.get(timeout=self.backend.timeouts.connect if seconds is None else seconds)
        except BaseException as error:
            if turn.ready():  # the place came at the same moment
                self._give_place(turn.value)
            else:
                self._queue.remove(turn)
            if not isinstance(error, gevent.Timeout):
                raise
        raise self._busy()

    def _reserve_for(
        self, said: Said, before_wait: Callable[[], None] | None, seconds: float | None, *, again: bool
    ) -> BackendSession | None:
        """As `reserve`; with it comes only a session that was told the same."""
        if not self._queue:
            if (session := introduced(self._kept, said)) is not None:
                return self._unkeep(session)
            if self._taken < self._greets.most:
                self._taken += 1
                return None
        session = self.reserve(before_wait, seconds, again=again)
        if session is not None and session.introduced != said:
            session.close()
            return None
        return session

    def _busy(self) -> BackendError:
        uses = ", ".join(f"{number} for {what}" for what, number in self.uses.items())
        return BackendError(
            Failure.BUSY, f"all {self._greets.most} connections ({self._greets}) are in use: they wait, {uses}"
        )

    def cancel(self) -> None:
        """Give back a place on which no session was opened."""
        self._give_place(None)

    def _give_place(self, session: BackendSession | None) -> None:
        """Whoever waits longest gets the place, with its session; else the session is kept, or the place is free."""
        if session is not None and self._opening:
            self._opening.popleft().set(session)
        elif self._queue and (session is not None or self._taken <= self._greets.most):
            self._queue.popleft().set(session)
        elif session is not None:
            self._keep(session, time.monotonic())
        else:
            self._taken -= 1

    # --- opening -----------------------------------------------------------------------------------------------------

    def open(self, *, fresh: bool = False, whatever: bool = False, who: Who | None = None) -> BackendSession:
        """A session, ready for MAIL, on a place reserved before. Raises BackendError; the place stays reserved.

        It is new, or one that became free before the new one was there; in case of `fresh` always new.

        After one that nobody answered, one attempt is made at a time, and none for some time after it; `whatever`
        happened before, for an operator who asks. Where the store is told who the message comes from, it is new.
        """
        if self._introductions is not None and who is not None:
            session = self.open(fresh=True, whatever=whatever)
            self._introductions.introduce(session, who())
            return session
        if self._failure and not whatever and (self._probing or time.monotonic() < self._retry_at):
            why = f"{self._failure.reason} (it is tried again soon)"
            raise BackendError(self._failure.failure, why)
        turn: _Opening = AsyncResult()
        opener = gevent.spawn(self._open, turn)
        if not fresh:
            self._opening.append(turn)
        try:
            while fresh and not turn.ready():
                turn.wait(_MAKE_ROOM)
                if self._kept and not turn.ready():
                    self.leave(self._unkeep(self._kept[0]))
            return _outcome(turn, None)
        except BackendError as error:
            if fresh or error.failure is not Failure.CLOSING or not self._serving():
                raise
            return self._released_instead(error)
        except BaseException:
            # Whoever waited is gone, but its place stays reserved.
            if not turn.ready():
                opener.kill(block=False)
                turn.rawlink(_close_unclaimed)  # it may come before that
            else:
                _close_unclaimed(turn)
            raise
        finally:
            self._opens_no_more(turn)

    def _released_instead(self, error: BackendError) -> BackendSession:
        """The store sent one away and serves others: the next of these, if one comes; the place goes back with it.

        Then it only had no room. That is learned from what they do, not from when it was heard of last: a proxy that is
        slow itself has not heard of anybody for a while.
        """
        turn: _Opening = AsyncResult()
        if self._kept:  # since then
            turn.set(self._unkeep(self._kept[-1]))
        else:
            self._opening.appendleft(turn)  # it has waited since before its attempt
        try:
            session = self._next_released(turn)
        except gevent.Timeout:
            if any(not each.protocol.expected for each in self._serving()):  # it is their clients who take long
                self._greets_no_more()
            else:
                self._is_down(error)
            raise error from None
        except BaseException:
            if (unclaimed := _unclaimed(turn)) is not None:
                self._close(unclaimed)
            raise
        finally:
            self._opens_no_more(turn)
        self._greets_no_more()
        self._give_place(None)
        return session

    def _next_released(self, turn: _Opening) -> BackendSession:
        """What comes while the store serves anybody, as long as a connect may take. Raises gevent.Timeout."""
        deadline = time.monotonic() + self.backend.timeouts.connect
        while True:
            try:
                return _outcome(turn, min(_MAKE_ROOM, max(0.0, deadline - time.monotonic())))
            except gevent.Timeout:
                if time.monotonic() >= deadline or not self._serving():
                    raise

    def _open(self, turn: _Opening) -> None:
        """Open a session for whoever waits for `turn`; if that one has got another by now, for the next."""
        try:
            session = self._opened()
        except Exception as error:  # noqa: BLE001  (raised where it is waited for)
            if turn.ready():
                self._give_place(None)
            else:
                self._opens_no_more(turn)
                turn.set(error)
        else:
            if turn.ready():
                self.release(session)
            else:
                self._opens_no_more(turn)
                turn.set(session)

    def _opens_no_more(self, turn: _Opening) -> None:
        if turn in self._opening:
            self._opening.remove(turn)

    def _opened(self) -> BackendSession:
        probing = self._probing = self._failure is not None
        began = time.monotonic()
        try:
            session = self._started()
        finally:
            if probing:
                self._probing = False
        self._sessions = [*(each for each in self._sessions if each.stream is not None), session]
        self._first = session.peer
        if self._last == session.peer:
            self._last = None
        self.counts.connections += 1
        self._heard = time.monotonic()
        self.counts.connect.observe(self._heard - began)
        self._failure = None
        self._rcpt_max = session.protocol.rcpt_max
        self._limit_recipients()
        if self.down:
            self._is_up()
        if session.stream:
            session.stream.on_event = partial(self._stirred, session)
        return session

    def _started(self) -> BackendSession:
        """A new session; a backend that is being restarted is asked for one until it is back. Raises BackendError."""
        while True:
            session = new_session(self.backend, self.hostname, self.tls)
            began = time.monotonic()
            try:
                session.start(self._first, self._last)
            except BackendError as error:
                if session.peer is not None:  # it took the connection, and nothing else: try the others before
                    self._first, self._last = None, session.peer
                now = time.monotonic()
                refused = error.failure is Failure.CONNECT and now - began < self._slow
                if not refused or now + _RESTARTING - self._heard >= self.backend.restart_grace:
                    self._failed(error, began)
                    raise
                gevent.sleep(_RESTARTING)
            else:
                return session

    def _failed(self, error: BackendError, began: float) -> None:
        self.counts.failures += 1
        # A backend that answers others meanwhile is not dead, only full, perhaps. One that refuses, answers something
        # else, or closes, keeps nobody waiting.
        now = time.monotonic()
        lasted = now - began
        answers = now - self._heard < max(BACK_OFF, lasted)
        if error.failure in _HAS_NO_ROOM and self._serving():
            if error.failure is Failure.CLOSING:
                return  # that may be for want of room: those that it serves will show
            if answers:
                self._greets_no_more()
                return
        back_off = error.failure.value.back_off
        waits = back_off is BackOff.IF_SLOW and lasted >= self._slow
        self._failure = error if waits and not answers else None
        self._retry_at = now + BACK_OFF
        if not (answers and self._taken > 1):
            self._is_down(error)
        else:
            self.trouble = error.reason

    def _greets_no_more(self) -> None:
        """Than those that it serves, of which one mailbox is not to take the last."""
        greets = self._greets
        greets.learn(len(self._serving()))
        self.mailboxes.narrow(greets.most, self.backend.max_connections, REMEMBERED)

    def _is_down(self, error: BackendError) -> None:
        self.trouble = error.reason
        if not self.down:
            self.down = True
            _log.warning("backend %s is down: %s", self, error.reason)

    def _serving(self) -> list[BackendSession]:
        """The connections that the store serves, but for those that take their leave."""
        return [each for each in self._sessions if each.stream is not None and each.protocol.expected[:1] != _LEAVING]

    def _is_up(self) -> None:
        self.down = False
        self.trouble = ""
        _log.warning("backend %s is up again", self)

    def condemn(self, since: float) -> None:
        """A kept session was dead, and nobody had said so: those that were kept before it are, too.

        since: it was heard of before (time.monotonic).
        """
        self._condemn([session for session in self._kept if session.kept_until - self.backend.idle_timeout < since])

    def _condemn(self, sessions: Sequence[BackendSession]) -> None:
        _log.warning("backend %s: a kept connection has died without a word; so may %d others", self, len(sessions))
        for session in sessions:
            self._close(self._unkeep(session))

    # --- how many recipients in a transaction ------------------------------------------------------------------------

    def sends(self, of: int) -> None:
        """See PerRecipient. Not needed before there is one."""
        if self.per_recipient is not None:
            self.per_recipient.sends(of)
            self._limit_recipients()

    def gave(self, replies: int, of: int) -> None:
        """See PerRecipient. Not needed for as many replies as recipients before there is one."""
        if self.per_recipient is None:
            self.per_recipient = PerRecipient(self.name)
        self.per_recipient.gave(replies, of)
        self._limit_recipients()

    def _limit_recipients(self) -> None:
        found = math.inf if self.per_recipient is None else self.per_recipient.limit
        self.most_recipients = min(self.backend.recipients_per_transaction or math.inf, self._rcpt_max, found)
        self.splits = self.most_recipients < math.inf

    # --- giving back -------------------------------------------------------------------------------------------------

    def release(self, session: BackendSession) -> None:
        """The transaction ended well, and every reply was read: keep the session, or take leave of the backend.

        The client is not kept waiting for that. A place is free once the backend has closed: until then its process
        counts against the limit it has itself.
        """
        now = self._heard = time.monotonic()
        if self.down:
            self._is_up()
        if session.unread():
            self.discard(session)
        elif self._retired or not self._keeps or session.protocol.transactions >= session.most_messages:
            self.leave(session)
        elif self._queue or self._opening:
            self._give_place(session)
        else:  # as `_keep` does it
            self._kept.append(session)
            session.kept_until = now + self.backend.idle_timeout
            if self._timer is None:
                self._set_timer(self.backend.idle_timeout)

    def reset(self, session: BackendSession) -> None:
        """A transaction is open on the backend, whose message was never begun: RSET, and then as `release`."""
        if self._retired or not self._keeps:
            self.leave(session)
        else:
            gevent.spawn(self._reset, session)

    def leave(self, session: BackendSession) -> gevent.Greenlet[..., None]:
        """The session ended well, and is not wanted any more. Returns the greenlet that says QUIT."""
        return gevent.spawn(self._take_leave, session)

    def discard(self, session: BackendSession) -> None:
        """The conversation failed or must not go on: close at once, amid the message if need be."""
        self._close(session)

    def _close(self, session: BackendSession) -> None:
        session.close()
        self._give_place(None)

    def _reset(self, session: BackendSession) -> None:
        deadline = time.monotonic() + self.backend.timeouts.command
        try:
            well = session.check_quiet()
            if well:
                session.write(session.protocol.command(Command.RSET, b"RSET"), deadline)
                well = session.read_reply(deadline).positive
        except BackendError:
            well = False
        if well:
            self.release(session)
        else:
            self.discard(session)

    def _take_leave(self, session: BackendSession) -> None:
        try:
            session.quit()
        finally:
            self._give_place(None)

    # --- keeping -----------------------------------------------------------------------------------------------------

    def _keep(self, session: BackendSession, now: float) -> None:
        self._kept.append(session)
        session.kept_until = now + self.backend.idle_timeout
        if self._timer is None:
            self._set_timer(self.backend.idle_timeout)

    def _unkeep(self, session: BackendSession) -> BackendSession:
        self._kept.remove(session)
        session.kept_until = 0.0
        return session

    def _stirred(self, session: BackendSession) -> None:
        """Runs in the hub: something came while nobody waited for it; a kept session has nothing to say."""
        if session.kept_until:
            if session.lost:
                self._condemn(self._kept[: self._kept.index(session)])
            self._close(self._unkeep(session))

    def _set_timer(self, seconds: float) -> None:
        self._timer = gevent.get_hub().loop.timer(seconds)
        self._timer.start(self._expire)

    def _expire(self) -> None:
        """Runs in the hub. The oldest stand at the front."""
        self._timer.close()
        self._timer = None
        now = time.monotonic()
        while self._kept and self._kept[0].kept_until <= now:
            self.leave(self._unkeep(self._kept[0]))
        if self._kept:
            self._set_timer(self._kept[0].kept_until - now)

    def retire(self) -> list[gevent.Greenlet[..., None]]:
        """Keep no session any more: those that are kept go now, busy ones when they are given back.

        Returns the greenlets that say QUIT.
        """
        self._retired = True
        return [self.leave(self._unkeep(session)) for session in tuple(self._kept)]


def _outcome(turn: _Opening, timeout: float | None) -> BackendSession:
    """What comes for whoever waits. Raises what came in its place, and gevent.Timeout."""
    outcome = turn.get(timeout=timeout)
    if isinstance(outcome, Exception):
        raise outcome
    assert outcome is not None
    return outcome


def _unclaimed(turn: _Opening) -> BackendSession | None:
    """What came for somebody who does not wait any more."""
    return None if isinstance(turn.value, Exception) else turn.value


def _close_unclaimed(turn: _Opening) -> None:
    if (session := _unclaimed(turn)) is not None:
        session.close()
