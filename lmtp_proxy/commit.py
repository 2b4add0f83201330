# SPDX-License-Identifier: GPL-3.0-or-later
"""The commit point of one delivery: enter, look the routes up again, and know afterwards what became of the message.

Here it is decided whether a final dot may still go to this backend, and here a delivery whose reply never came turns
into records. It does not talk to the backend and does not know the other deliveries of the transaction.
"""

import time
from dataclasses import dataclass, field

from lmtp_proxy import reply as say
from lmtp_proxy.backend_error import BackendError
from lmtp_proxy.envelope import Envelope, Recipient
from lmtp_proxy.generation import CurrentGeneration
from lmtp_proxy.in_flight import InFlight, Phase
from lmtp_proxy.log import printable
from lmtp_proxy.message_id import message_id
from lmtp_proxy.metrics import Tallies
from lmtp_proxy.pool import BackendPool
from lmtp_proxy.receipts import Receipts
from lmtp_proxy.reply import Reply
from lmtp_proxy.routing import Route
from lmtp_proxy.uncertain import Uncertain
from lmtp_proxy.uncertain_log import UncertainLog


@dataclass(slots=True)
class Message:
    """What all deliveries of a transaction share. head: its first octets. size: what has come of it so far."""

    session: str
    envelope: Envelope
    head: bytes = b""
    size: int = 0


@dataclass(slots=True, eq=False)
class Position:
    """One accepted or pending RCPT of a transaction; the same address twice is two of them.

    generation: the number of the generation that `route` is of. pool: of that generation, None where there is no
    backend. asked: the backend was, or will be at once. rcpt_reply, final_reply: None until known. trouble: why, where
    the reply alone does not tell; for the log, escaped.
    """

    recipient: Recipient
    route: Route
    generation: int
    pool: BackendPool | None
    asked: bool = False
    rcpt_reply: Reply | None = None
    final_reply: Reply | None = None
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Cutover:
    """What makes sure that no mail reaches a backend any more after it was taken from the user; and what is counted."""

    current: CurrentGeneration
    in_flight: InFlight
    uncertain: UncertainLog
    receipts: Receipts = field(default_factory=Receipts)
    tallies: Tallies = field(default_factory=Tallies)


class CommitPoint:
    """Of the delivery of `message` to the backend of `pool`. The first of `passed_well` and `given_up` ends it.

    accepted: the recipients that the delivery is for; the caller adds to them.
    """

    def __init__(self, pool: BackendPool, message: Message, cutover: Cutover) -> None:
        self.accepted: list[Position] = []
        self._backend = pool.backend
        self._counts = pool.counts
        self._message = message
        self._cutover = cutover
        self._ended = False
        self._dot_at = 0.0  # time.monotonic
        self._flight = cutover.in_flight.begin(
            message.session, pool.backend.name, pool.address, message.envelope.path
        )

    def __repr__(self) -> str:
        return f"<CommitPoint of {self._flight!r}>"

    # --- what an operator sees of it ---------------------------------------------------------------------------------

    def add(self, recipient: Recipient) -> None:
        """A recipient that the backend is to be asked for."""
        self._flight.recipients.append(recipient)

    def recipients_known(self) -> None:
        """The backend has answered for all that were added; the accepted ones are in `accepted`."""
        self._flight.recipients = [position.recipient for position in self.accepted]

    def data_begun(self) -> None:
        """The backend takes the message."""
        self._flight.phase = Phase.DATA

    def sent(self, octets: int) -> None:
        """So much more of the message is on its way to the backend."""
        self._flight.octets += octets
        self._counts.octets += octets

    # --- the point itself --------------------------------------------------------------------------------------------

    def enter(self) -> None:
        """To be called before `look`, never after: who changes a route finds us in flight, or we find the change."""
        generation = self._cutover.current()
        rules = generation.routing.rules
        keys: set[str] = set()
        for position in self.accepted:
            recipient = position.recipient
            same = position.generation == generation.number
            keys.update(position.route.keys if same else rules.forms(recipient.local_part, recipient.domain))
        self._cutover.in_flight.enter(self._flight, keys, rules)

    def look(self) -> None:
        """Raise BackendError unless every recipient's mail still goes to this backend, at this address.

        After this the dot goes out at once, or `step_back` is called.
        """
        generation = self._cutover.current()
        for position in self.accepted:
            if position.generation == generation.number:
                continue
            route = generation.routing.route(position.recipient)
            if route.trouble is not None:
                raise BackendError(say.LOOKUP_FAILED, f"{route.keys[0]}: {route.trouble}")
            if (
                route.backend != self._backend.name
                or generation.pools[route.backend].backend.address != self._backend.address
            ):
                now = route.backend or ("hold" if route.held else "no backend")
                raise BackendError(say.ROUTE_CHANGED, f"{route.keys[0]} now goes to {now}; nothing was delivered")
        self._flight.phase = Phase.FINAL_DOT
        self._dot_at = time.monotonic()

    def step_back(self) -> None:
        """No octet of the dot went out, and none will before the next `enter`."""
        self._cutover.in_flight.step_back(self._flight)

    # --- the end -----------------------------------------------------------------------------------------------------

    def passed_well(self) -> None:
        """Every recipient has its final reply, or none is wanted."""
        if not self._ended:
            self._ended = True
            if self._flight.phase is Phase.FINAL_DOT:
                self._counts.replies.observe(time.monotonic() - self._dot_at)
                # Before it leaves: who drains and then asks finds it there.
                queue_id = self._message.envelope.queue_id
                self._cutover.receipts.delivered(self.accepted, self._backend.name, queue_id)
            self._cutover.in_flight.leave(self._flight)

    def given_up(self, reason: str) -> None:
        """The conversation is over; what the backend did with a message whose dot went out, nobody knows."""
        unknown = [position for position in self.accepted if position.final_reply is None]
        if self._ended or self._flight.phase is not Phase.FINAL_DOT or not unknown:
            self.passed_well()
            return
        self._ended = True
        self._counts.uncertain += len(unknown)
        receipts, queue_id = self._cutover.receipts, self._message.envelope.queue_id
        known = [position for position in self.accepted if position.final_reply is not None]
        receipts.delivered(known, self._backend.name, queue_id)
        receipts.uncertain(unknown, self._backend.name, queue_id)
        self._cutover.uncertain.record(self._flight, [self._record(position, reason) for position in unknown])

    def _record(self, position: Position, reason: str) -> Uncertain:
        message = self._message
        identity = message_id(message.head)
        keys = position.route.keys
        return Uncertain(
            time=time.time(),
            # The last form is that of the domain, where there is one; a local part may begin with @ only in quotes.
            user=keys[-1] if len(keys) == 1 or not keys[-1].startswith("@") else keys[-2],
            recipient=printable(position.recipient.path[1:-1]),
            backend=self._backend.name,
            address=self._flight.address,
            sender=printable(message.envelope.path[1:-1]),
            message_id=None if identity is None else printable(identity),
            size=message.size,
            session=message.session,
            reason=reason,
            keys=keys,
        )
