# SPDX-License-Identifier: GPL-3.0-or-later
"""The commit point of one delivery: enter, look the routes up again, and know afterwards what became of the message.

Here it is decided whether a final dot may still go to this backend, and here a delivery whose reply never came turns
into records. It does not talk to the backend and does not know the other deliveries of the transaction.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from lmtp_proxy.backends.failure import BackendError, Failure
from lmtp_proxy.backends.introductions import Who
from lmtp_proxy.backends.mailbox import Mailbox
from lmtp_proxy.backends.pool import BackendPool
from lmtp_proxy.counts import Tallies
from lmtp_proxy.delivery.accounts import Accounts
from lmtp_proxy.delivery.bare_names import BareNames
from lmtp_proxy.delivery.in_flight import InFlight, Phase
from lmtp_proxy.delivery.uncertain import HEAD, Uncertain, message_id
from lmtp_proxy.delivery.uncertain_log import UncertainLog
from lmtp_proxy.generations.destination import Destination
from lmtp_proxy.generations.generation import CurrentGeneration, Generation
from lmtp_proxy.receipts.receipts import Receipts
from lmtp_proxy.text import printable
from lmtp_proxy.wire.envelope import Envelope, Recipient

_ENVELOPE, _FINAL_DOT = Phase.ENVELOPE, Phase.FINAL_DOT


class Message:
    """What all deliveries of a transaction share.

    Attributes:
        session: the name of the client's.
        generation: the number of the one that all its recipients were routed in, 0 while there are none and where those
            are several.
        head: its first octets.
        size: what has come of it so far.
        who: it comes from, for stores that are told; None if nobody knows.
    """

    __slots__ = ("envelope", "generation", "head", "session", "size", "who")

    def __init__(
        self, session: str, envelope: Envelope, head: bytes = b"", size: int = 0, who: Who | None = None
    ) -> None:
        self.session = session
        self.envelope = envelope
        self.generation = 0
        self.head = head
        self.size = size
        self.who = who

    def keep_head(self, octets: bytes) -> None:
        """Of its next octets those that belong to the first."""
        if (missing := HEAD - len(self.head)) > 0:
            self.head += octets[:missing]


@dataclass(frozen=True, slots=True)
class ProcessParts:
    """The parts of the process that every delivery uses.

    Attributes:
        current: where mail goes now.
        in_flight: what a drain waits for; with `current`, what makes sure that no mail reaches a backend any more after
            it was taken from the user.
        uncertain: where deliveries are remembered whose outcome is unknown.
        receipts: what each mailbox got, and what waits for it.
        tallies: what is counted.
    """

    current: CurrentGeneration
    in_flight: InFlight
    uncertain: UncertainLog
    receipts: Receipts = field(default_factory=Receipts)
    tallies: Tallies = field(default_factory=Tallies)
    bare: BareNames = field(default_factory=BareNames)


class CommitPoint:
    """Of the delivery of `message` to the backend of `pool`. The first of `passed_well` and `given_up` ends it.

    It is what a drain waits for: see Flight.

    Attributes:
        phase: how far the message is.
        number: of its last entering; see Flight.
        octets: of the message, sent so far.
        began: time.monotonic.
        asked_at: when the envelope, later the final dot went out (time.monotonic); math.inf while neither has.
        held: those who have a place at their mailbox.
        ended: it did.
    """

    __slots__ = (
        *("_accounts", "_answered", "_message", "_parts", "_pool"),
        *("asked_at", "began", "ended", "held", "number", "octets", "phase"),
    )

    def __init__(self, pool: BackendPool, message: Message, parts: ProcessParts, accounts: Accounts) -> None:
        self.phase = _ENVELOPE
        self.number = 0
        self.octets = 0
        self.began = time.monotonic()
        self.asked_at = math.inf
        self._accounts = accounts
        self.held: Sequence[Destination] = ()
        self.ended = False
        self._answered = 0  # of the accepted ones, with their places given back
        self._pool = pool
        self._message = message
        self._parts = parts
        parts.in_flight.begin(self)

    def __repr__(self) -> str:
        names = ", ".join(recipient.path.decode("utf-8", "backslashreplace") for recipient in self.recipients)
        return f"<CommitPoint {self.number} to {self.backend} for {names}: {self.phase.value}>"

    # --- what an operator sees of it ---------------------------------------------------------------------------------

    @property
    def session(self) -> str:
        """See Flight."""
        return self._message.session

    @property
    def backend(self) -> str:
        """See Flight."""
        return self._pool.backend.name

    @property
    def address(self) -> str:
        """See Flight."""
        return self._pool.address

    @property
    def sender(self) -> bytes:
        """See Flight."""
        return self._message.envelope.path

    @property
    def recipients(self) -> list[Recipient]:
        """See Flight."""
        accounts = self._accounts
        return [destination.recipient for destination in (*accounts.accepted, *accounts.asked)]

    def sent(self, octets: int) -> None:
        """So much more of the message is on its way to the backend."""
        self.octets += octets
        self._pool.counts.octets += octets

    # --- places at mailboxes -----------------------------------------------------------------------------------------

    def hold(self, destinations: Sequence[Destination]) -> None:
        """The places at the mailboxes of these go back with their replies, or when this ends."""
        if self.ended:
            self._pool.mailboxes.leave(destinations, replied=False)
        else:
            self.held = [*self.held, *destinations] if self.held else destinations

    def let_go(self, destinations: Sequence[Destination]) -> None:
        """The backend has given these their last reply."""
        if self.held and destinations:
            held = [*self.held]
            for destination in destinations:
                held.remove(destination)
            self.held = held
            self._pool.mailboxes.leave(destinations, replied=True)

    def let_go_refused(self, destinations: Sequence[Destination]) -> None:
        """The backend has too many for their mailboxes; they are to ask it again, with another place."""
        mailboxes = self._pool.mailboxes
        held = [*self.held]
        for destination in destinations:
            mailboxes.learn(destination.mailbox, self.asked_at)
            held.remove(destination)
            mailboxes.leave_crowded(destination.mailbox)
        self.held = held

    def some_answered(self) -> None:
        """Some have their final reply, others wait for theirs."""
        answered = len(self._accounts.replies)
        if answered > self._answered:
            self.let_go(self._accounts.accepted[self._answered : answered])
            self._answered = answered

    def owes(self, pool: BackendPool, mailbox: Mailbox, since: float) -> bool:
        """Whether the backend has had RCPT or the final dot since this time, and has not answered for this mailbox."""
        if self.asked_at > since or self._pool.mailboxes is not pool.mailboxes:
            return False
        unanswered = self.held if self.phase is _FINAL_DOT else self._accounts.asked
        return any(destination.mailbox is mailbox for destination in unanswered)

    # --- the point itself --------------------------------------------------------------------------------------------

    def enter(self) -> None:
        """To be called before `look`, never after: who changes a route finds us in flight, or we find the change."""
        self._parts.in_flight.enter(self)

    def look(self) -> None:
        """Raise BackendError unless every recipient's mail still goes to this backend, at this address.

        After this the dot goes out at once, or `step_back` is called.
        """
        generation = self._parts.current()
        if generation.number != self._message.generation:
            self._look_again(generation)
        self.phase = _FINAL_DOT
        self.asked_at = time.monotonic()
        if self._pool.per_recipient is not None:
            self._pool.sends(len(self._accounts.accepted))

    def _look_again(self, generation: Generation) -> None:
        number, backend = generation.number, self._pool.backend
        for destination in self._accounts.accepted:
            if destination.generation == number:
                continue
            route = generation.routing.route(destination.recipient)
            if route.trouble is not None:
                raise BackendError(Failure.LOOKUP, f"{route.keys[0]}: {route.trouble}")
            if route.backend != backend.name or generation.pools[route.backend].backend.address != backend.address:
                now = route.backend or ("hold" if route.held else "no backend")
                raise BackendError(Failure.ROUTE, f"{route.keys[0]} now goes to {now}; nothing was delivered")

    def step_back(self) -> None:
        """No octet of the dot went out, and none will before the next `enter`."""
        self._parts.in_flight.step_back(self)

    # --- the end -----------------------------------------------------------------------------------------------------

    def passed_well(self) -> None:
        """Every recipient has its final reply, or none is wanted."""
        if not self.ended:
            self.ended = True
            parts = self._parts
            if held := self.held:
                self.held = ()
                self._pool.mailboxes.leave(held, self.phase is _FINAL_DOT)
            if self.phase is _FINAL_DOT:
                pool = self._pool
                pool.counts.replies.observe(time.monotonic() - self.asked_at)
                if pool.per_recipient is not None:
                    pool.gave(len(self._accounts.replies), len(self._accounts.accepted))
                if parts.receipts.path is not None:
                    # Before it leaves: who drains and then asks finds it there.
                    self._note_delivered()
            parts.in_flight.leave(self)

    def given_up(self, reason: str) -> None:
        """The conversation is over; what the backend did with a message whose dot went out, nobody knows."""
        unknown = self._accounts.accepted[len(self._accounts.replies) :]
        if self.ended or self.phase is not _FINAL_DOT or not unknown:
            self.passed_well()
            return
        self.ended = True
        self._pool.mailboxes.leave(self.held, replied=False)
        self.held = ()
        self._pool.counts.uncertain += len(unknown)
        self._note_delivered()
        receipts, queue_id = self._parts.receipts, self._message.envelope.queue_id
        receipts.uncertain(unknown, self.backend, queue_id)
        self._parts.uncertain.record(self, [self._record(destination, reason) for destination in unknown])

    def ended_by(self, error: BackendError) -> None:
        """The dot went out, and no more replies come. Where the backend said nothing for so long that it can have
        nothing more to say (it may close at last), it may be one that gives too few."""
        quiet = time.monotonic() - self.asked_at >= self._pool.backend.timeouts.command
        if error.failure is Failure.SILENT or (error.failure is Failure.GONE and quiet):
            self._pool.gave(len(self._accounts.replies), len(self._accounts.accepted))

    def _note_delivered(self) -> None:
        # What a failure says to the others of `accepted` comes to `replies` later, and is not the backend's.
        accounts, queue_id = self._accounts, self._message.envelope.queue_id
        self._parts.receipts.delivered(accounts.accepted, tuple(accounts.replies), self.backend, queue_id)

    def _record(self, destination: Destination, reason: str) -> Uncertain:
        message = self._message
        identity = message_id(message.head)
        keys = destination.route.keys
        return Uncertain(
            time=time.time(),
            # The last form is that of the domain, where there is one; a local part may begin with @ only in quotes.
            user=keys[-1] if len(keys) == 1 or not keys[-1].startswith("@") else keys[-2],
            recipient=printable(destination.recipient.path[1:-1]),
            backend=self.backend,
            address=self.address,
            sender=printable(message.envelope.path[1:-1]),
            message_id=None if identity is None else printable(identity),
            size=message.size,
            session=message.session,
            reason=reason,
            keys=keys,
        )
