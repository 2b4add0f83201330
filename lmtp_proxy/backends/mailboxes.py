# SPDX-License-Identifier: GPL-3.0-or-later
"""How many recipients of one mailbox a backend has at a time; further ones wait in order, while that mailbox moves.

A store locks a mailbox while it is synced or repaired, and says nothing meanwhile: its deliveries must not take all
connections. Dovecot 2.4 takes 10 at a time for one user and refuses others (`lmtp_user_concurrency_limit`). What counts
is a place at the mailbox, from RCPT to the final reply. It waits, but does no other I/O.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol
from weakref import WeakValueDictionary

from gevent.event import Event

from lmtp_proxy.backends.mailbox import Mailbox

_log = logging.getLogger(__name__)
# Seconds since a reply for a mailbox in which it is worth waiting for the next one. Long against what a store needs to
# file a message, short against a lock that is held by a sync.
_MOVES = 2.0
# Seconds in which a limit is obeyed that the store has taught. Each lesson costs a message Postfix' 300 s.
_REMEMBERED_LESSON = 300.0
# Seconds after which whoever waits out of order looks whether others wait for what they have.
_LOOKS = 0.2


class HasMailbox(Protocol):
    """Who has a place."""

    @property
    def mailbox(self) -> Mailbox:
        """Where."""


class Mailboxes:
    """The places at the mailboxes of one backend.

    Attributes:
        limit: places at each mailbox, now.
    """

    def __init__(self, name: str) -> None:
        """name: of the backend, for people."""
        self._name = name
        self._most: float = math.inf  # as configured
        self._at_once: float = math.inf  # with those who wait
        self._lesson: float = math.inf  # what the store said
        self._lesson_began, self._lesson_ends = 0.0, math.inf
        self._limit_before: float = math.inf  # that lesson, which all refusals of the same burst are one of
        self._refused: dict[Mailbox, int] = {}  # in it
        self._room = 1.0  # for this part of `_most` it has connections
        self._room_ends = math.inf
        self.limit: float = math.inf
        # Whoever may take a place, has one or waits for one has the mailbox, too: what is not here has no place taken.
        self._mailboxes: WeakValueDictionary[str, Mailbox] = WeakValueDictionary()
        self._queues: dict[Mailbox, deque[_Turn]] = {}
        self._under_way: dict[
            Mailbox, int
        ] = {}  # when the store had too many: no more while anybody waits who was refused
        # When the last reply came for a mailbox that was full since it was empty last, or when it became full.
        self._heard: dict[Mailbox, float] = {}

    def __repr__(self) -> str:
        waiting = sum(map(len, self._queues.values()))
        taken = sum(mailbox.taken for mailbox in self._mailboxes.values())
        return f"<Mailboxes of {self._name} taken={taken} limit={self.limit:g} waiting={waiting}>"

    def at(self, name: str) -> Mailbox:
        """The mailbox of this name, the same for all who ask as long as anybody refers to it."""
        mailbox = self._mailboxes.get(name)
        if mailbox is None:
            mailbox = self._mailboxes[name] = Mailbox(name)
        return mailbox

    # --- the limit ---------------------------------------------------------------------------------------------------

    def configure(self, most: int, whole: int | None = None) -> None:
        """So many at each mailbox, from now on.

        whole: in all processes together, if there are several; as many may be here and wait as if this one were alone:
        the kernel spreads clients unevenly.
        """
        if most != self._most:
            self._room = 1.0
        self._most = most
        self._at_once = 2 * (whole or most)
        self._set_limit()

    def learn(self, mailbox: Mailbox, asked_at: float) -> None:
        """The store refused a recipient, who has a place, because it has too many of this mailbox.

        asked_at: when RCPT was sent (time.monotonic).
        """
        now = time.monotonic()
        if self._lesson == math.inf:
            _log.warning(
                "backend %s takes fewer recipients of one user at a time than max_per_user=%g: for %g s it is given "
                "fewer; set max_per_user to its limit (of Dovecot 2.4: lmtp_user_concurrency_limit)",
                self._name,
                self._most,
                _REMEMBERED_LESSON,
            )
        if asked_at >= self._lesson_began:
            self._lesson_began, self._limit_before, self._refused = now, self.limit, {}
        before = self._refused.get(mailbox, 0)
        self._refused[mailbox] = before + 1
        # How many it had then nobody knows: those that it took may be over by now. If all places were taken at a time
        # since the mailbox was empty, it may have been so many. And it may have others from elsewhere: one lesson does
        # not say all.
        had = self._limit_before if mailbox in self._heard else mailbox.taken + before
        self._lesson = min(self.limit, max(1, had - before - 1, self._limit_before // 2))
        self._lesson_ends = now + _REMEMBERED_LESSON
        self._set_limit()

    def leave_crowded(self, mailbox: Mailbox) -> None:
        """As `leave`, for one whom the store refused; they wait for a place, with which they may ask it again.

        Each is handed on only in place of another that was under way.
        """
        mailbox.taken -= 1
        others = max(1, mailbox.taken)
        self._under_way[mailbox] = min(others, self._under_way.get(mailbox, others))

    def narrow(self, connections: int, of: int, seconds: float) -> None:
        """For so long the store has so many connections, of those that were configured: no mailbox takes the last."""
        self._room = connections / of
        self._room_ends = time.monotonic() + seconds
        self._set_limit()

    def _forget_lesson(self) -> bool:
        """Whether there was one, or a lack of connections, and its time is up."""
        now = time.monotonic()
        if now < min(self._lesson_ends, self._room_ends):
            return False
        if now >= self._lesson_ends:
            self._lesson, self._lesson_ends = math.inf, math.inf
        if now >= self._room_ends:
            self._room, self._room_ends = 1.0, math.inf
        self._set_limit()
        return True

    def _set_limit(self) -> None:
        most = self._most if self._room == 1 else max(1, int(self._most * self._room))
        self.limit = min(most, self._lesson)
        for mailbox in tuple(self._queues):
            self._hand_on(mailbox)

    # --- places ------------------------------------------------------------------------------------------------------

    def enter(self, mailbox: Mailbox) -> bool:
        """Take a place at this mailbox, if one is free: who waits for one is before."""
        number = mailbox.taken + 1
        if number >= self.limit:
            return self._enter_last(mailbox, number)
        mailbox.taken = number
        return True

    def enter_all(self, recipients: Sequence[HasMailbox]) -> bool:
        """A place for each of these, or none at all."""
        limit = self.limit
        for entered, recipient in enumerate(recipients):
            mailbox = recipient.mailbox
            number = mailbox.taken + 1
            if number < limit:
                mailbox.taken = number
            elif not self._enter_last(mailbox, number):
                self.leave(recipients[:entered], replied=False)
                return False
        return True

    def _enter_last(self, mailbox: Mailbox, number: int) -> bool:
        if number > self.limit:
            return self._forget_lesson() and self.enter(mailbox)
        mailbox.taken = number
        self._heard.setdefault(mailbox, time.monotonic())
        return True

    def leave(self, recipients: Iterable[HasMailbox], replied: bool) -> None:
        """Give back the place of each of these. replied: the store has answered for them."""
        heard = self._heard
        for recipient in recipients:
            mailbox = recipient.mailbox
            mailbox.taken -= 1
            if heard and mailbox in heard:
                if replied:
                    heard[mailbox] = time.monotonic()
                self._hand_on(mailbox)

    def _hand_on(self, mailbox: Mailbox) -> None:
        """What is free goes to whoever has waited longest, one after the other."""
        queue = self._queues.get(mailbox)
        limit = min(self.limit, self._under_way.get(mailbox, self.limit))
        while queue:
            turn = queue[0]
            number = min(turn.wanted - turn.granted, limit - mailbox.taken)
            if number <= 0:
                return
            mailbox.taken += int(number)
            turn.granted += int(number)
            if turn.granted < turn.wanted:
                return
            queue.popleft()
            turn.event.set()
        self._queues.pop(mailbox, None)
        self._under_way.pop(mailbox, None)
        if not mailbox.taken:
            self._heard.pop(mailbox, None)

    # --- waiting -----------------------------------------------------------------------------------------------------

    def wait(
        self,
        mailbox: Mailbox,
        wanted: int,
        until: float,
        before_wait: Callable[[], None],
        stays: Callable[[], bool],
        owes: Callable[[float], bool],
        yields: Callable[[], bool] | None = None,
    ) -> int:
        """Take so many places at a mailbox; wait for them while it moves. How many there were, the first come first.

        No more than `limit` can be wanted, and as many wait as may be delivered; after a lesson the more.

        Args:
            until: time.monotonic.
            before_wait: called before that.
            stays: asked each time that routes have changed, whether it still goes on.
            owes: asked when there was no reply for a while, whether the store owes one for this mailbox since this
                time; else it is not the mailbox that stands still, but a client or another store.
            yields: asked before and while it waits out of order, whether it must not: others wait for what it has.
        """
        now = time.monotonic()
        self._forget_lesson()
        queue = self._queues.setdefault(mailbox, deque())
        if sum(turn.wanted for turn in queue) + wanted > self._at_once - self.limit:
            until = now
            if queue:
                return 0
        turn = _Turn(wanted)
        queue.append(turn)
        self._heard.setdefault(mailbox, now)
        try:
            self._hand_on(mailbox)
            if turn.granted < wanted and self._patience(mailbox, until, owes) > 0 and not (yields and yields()):
                before_wait()
            while turn.granted < wanted:
                turn.event.clear()
                left = self._patience(mailbox, until, owes)
                if left <= 0 or (yields is not None and yields()):
                    break
                woken = turn.event.wait(left if yields is None else min(left, _LOOKS))
                if woken and turn.granted < wanted and not stays():
                    break
        except BaseException:
            self._give_up(mailbox, turn)
            if turn.granted:
                mailbox.taken -= turn.granted
                self._hand_on(mailbox)
            raise
        self._give_up(mailbox, turn)
        return turn.granted

    def _patience(self, mailbox: Mailbox, until: float, owes: Callable[[float], bool]) -> float:
        """Seconds in which something may come; not more than 0 if it stands still, or the time is up."""
        now = time.monotonic()
        if now < until and now >= self._heard[mailbox] + _MOVES and not owes(now - _MOVES):
            self._heard[mailbox] = now
        return min(until, self._heard[mailbox] + _MOVES) - now

    def _give_up(self, mailbox: Mailbox, turn: "_Turn") -> None:
        """It waits no more, and the next one is the first."""
        queue = self._queues.get(mailbox)
        if queue is not None and turn in queue:
            queue.remove(turn)
            self._hand_on(mailbox)

    def waiting(self, mailbox: Mailbox) -> int:
        """How many transactions wait for places at this mailbox."""
        return len(self._queues.get(mailbox, ()))

    def routes_changed(self) -> None:
        """Who waits is to look whether the mailbox is still here."""
        for queue in self._queues.values():
            for turn in queue:
                turn.event.set()


class _Turn:
    """Of one who waits for places."""

    __slots__ = ("event", "granted", "wanted")

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.granted = 0
        self.event = Event()
