# SPDX-License-Identifier: GPL-3.0-or-later
"""One message: fan-out to the backends of its recipients, and replies to the client in RCPT order.

Every accepted recipient gets exactly one final reply, by position, as soon as it and all before it are known. What a
backend's failure means is settled in its Delivery; what the client's failure means, in `abort`. It touches no socket.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

import gevent

from lmtp_proxy import reply as say
from lmtp_proxy.commit import Cutover, Message, Position
from lmtp_proxy.delivery import Delivery
from lmtp_proxy.delivery_log import log_aborted, log_recipients
from lmtp_proxy.envelope import Envelope, Recipient
from lmtp_proxy.log import printable
from lmtp_proxy.message_id import HEAD
from lmtp_proxy.parking import Parking
from lmtp_proxy.pool import BackendPool
from lmtp_proxy.reply import Reply
from lmtp_proxy.stream import wait_for_any


@dataclass(frozen=True, slots=True)
class Client:
    """What a transaction may do to its client.

    name: the session's id, for the log. answer: take the next replies that are owed, without I/O. flush: send what was
    taken; called before each wait, and never fails once the message is complete.
    """

    name: str
    answer: Callable[..., None]
    flush: Callable[[], None]


class Summary(NamedTuple):
    """A transaction for an operator. state: envelope, held or data. sender: with angle brackets. octets: received."""

    state: str
    sender: bytes
    recipients: int
    octets: int


class Transaction:
    """From MAIL to the last reply. Ended by exactly one of `finish` and `abort`.

    new: recipients who wait for `answer_recipients`.
    """

    def __init__(self, client: Client, envelope: Envelope, cutover: Cutover, parking: Parking) -> None:
        self._client = client
        self._envelope = envelope
        self._message = Message(client.name, envelope)
        self._cutover = cutover
        self._parking = parking
        self._began = time.monotonic()
        self._held = False  # the route of some new recipient is on hold
        self._parked = False
        self._in_data = self._finishing = False
        self.new: list[Position] = []
        self._accepted: list[Position] = []
        self._answered = 0  # of the accepted ones, after the final dot
        self._deliveries: dict[BackendPool, Delivery] = {}

    def __repr__(self) -> str:
        return f"<Transaction {self._client.name} accepted={len(self._accepted)} {list(self._deliveries.values())}>"

    @property
    def summary(self) -> Summary:
        """How far it is."""
        state = "held" if self._parked else "data" if self._in_data else "envelope"
        recipients = len(self._accepted) + len(self.new)
        return Summary(state, self._envelope.path, recipients, self._message.size)

    # --- envelope ----------------------------------------------------------------------------------------------------

    def add(self, recipients: Iterable[Recipient]) -> None:
        """These wait for `answer_recipients`."""
        generation = self._cutover.current()
        route_of, pools = generation.routing.route, generation.pools
        for recipient in recipients:
            route = route_of(recipient)
            pool = None if route.backend is None else pools[route.backend]
            self.new.append(Position(recipient, route, generation.number, pool))
            if route.held:
                self._held = True

    def answer_recipients(self, *, data_follows: bool) -> None:
        """Bring all recipients added since the last call to their backends, all backends at once, and answer them.

        data_follows: the client has said DATA behind them, so the backends can be told, too.
        """
        if self._held:
            self._park()
        deliveries: list[Delivery] = []
        for position in self.new:
            if (pool := position.pool) is not None:
                position.asked = True
                delivery = self._deliveries.get(pool) or self._begun(pool)
                if not delivery.new:
                    deliveries.append(delivery)
                delivery.new.append(position)
            else:
                self._count_refused(position)
                position.rcpt_reply = position.route.refusal
                position.trouble = printable((position.route.trouble or "").encode("utf-8", "backslashreplace"))
        # One after the other in an order that all transactions share: two that wait for each other's place would both
        # fail.
        if len(deliveries) > 1:
            deliveries.sort(key=_name)
        unopened = False
        for delivery in deliveries:
            delivery.reserve()
            unopened = unopened or delivery.reserved
        if unopened:
            self._open([delivery for delivery in deliveries if delivery.reserved])
        for delivery in deliveries:
            delivery.ask(data_follows=data_follows)
        # Whoever has said DATA already can do nothing with the reply to MAIL; it goes out with the others.
        self._await(deliveries, flush=not data_follows)
        new, self.new = self.new, []  # not before: a client that vanishes until here leaves a log line for each
        replies = [position.rcpt_reply or say.INTERNAL_ERROR for position in new]
        self._client.answer(*replies)
        for reply in replies:
            if reply.code >= 300:
                answered = list(zip(new, replies, strict=True))
                self._accepted += [position for position, reply in answered if reply.code < 300]
                self._log([(position, reply) for position, reply in answered if reply.code >= 300])
                break
        else:
            self._accepted += new

    def _count_refused(self, position: Position) -> None:
        tallies = self._cutover.tallies
        if position.route.trouble is not None:
            tallies.lookup += 1
        elif position.route.refusal is say.UNKNOWN_USER:
            tallies.unknown += 1
        else:
            tallies.parked += 1

    def _begun(self, pool: BackendPool) -> Delivery:
        delivery = self._deliveries[pool] = Delivery(pool, self._message, self._cutover, self._client.flush)
        return delivery

    def _park(self) -> None:
        """Wait until the route of no new recipient is on hold any more, or the time is up."""
        config = self._cutover.current().config
        deadline = time.monotonic() + config.hold_timeout
        with self._parking.place(config.hold_limit) as granted:
            self._parked = granted
            while granted and any(position.route.held for position in self.new):
                self._client.flush()
                if not self._parking.wait_for_change(deadline):
                    break
                before, self.new = self.new, []
                for position in before:
                    if position.route.held:
                        self.add([position.recipient])
                    else:
                        self.new.append(position)
        self._parked = self._held = False

    # --- data --------------------------------------------------------------------------------------------------------

    def start_data(self) -> list[Delivery]:
        """DATA to every backend with an accepted recipient; those that were not told before, for `await_data`."""
        self._in_data = True
        asked: list[Delivery] = []
        for delivery in self._deliveries.values():
            if delivery.in_data:
                continue
            if delivery.wanted:
                delivery.start_data()
                asked.append(delivery)
            else:
                delivery.leave()
        return asked

    def await_data(self, asked: list[Delivery]) -> None:
        """Wait until each takes the message, or has failed."""
        self._await(asked)

    def write(self, octets: bytes, dot: float) -> None:
        """A piece of the message to every backend that still takes it; returns when all have taken it or failed.

        dot: when the client can have sent its final dot at the earliest (time.monotonic).
        """
        self._count(octets)
        wanted = self._wanted()
        for delivery in wanted:
            delivery.write(octets, dot)
        self._await(wanted)

    def finish(self, last: bytes, size: int, refusal: Reply | None, dot: float) -> None:
        """The client's final dot came. Give every accepted recipient its final reply.

        last: the last piece of the message. size: octets of the message (RFC 1870). refusal: the reply to all, where
        the message must not be delivered. dot: as for `write`; one for all backends, because the client waits for the
        last reply, however many there are.
        """
        self._count(last)
        self._message.size = size
        self._finishing = True
        try:
            if refusal is None:
                deliveries = [delivery for delivery in self._deliveries.values() if delivery.accepted]
                for delivery in deliveries:
                    delivery.finish(last, dot)
                self._await(deliveries)
        finally:
            # Also where an error of ours ended one delivery: what the other backends have said stands.
            self._close()
            if self._answered < len(self._accepted):
                for position in self._accepted:
                    position.final_reply = position.final_reply or refusal or say.INTERNAL_ERROR
                self._answer_known()

    def _count(self, octets: bytes) -> None:
        message = self._message
        message.size += len(octets)
        if not message.head:
            message.head = octets[:HEAD]
        elif len(message.head) < HEAD:
            message.head += octets[: HEAD - len(message.head)]

    def abort(self, why: str) -> None:
        """Nothing more comes from the client, or nothing can be done for it: the backends see no final dot."""
        self._close()
        given_up = self._accepted[self._answered :] + self.new
        for position in given_up:
            self._cutover.receipts.refused(position, None, self._envelope.queue_id, why)
            if position.asked and position.pool is not None:
                position.pool.counts.aborted += 1
        log_aborted(self._message, given_up, why, time.monotonic() - self._began)
        self._accepted, self.new, self._answered = [], [], 0

    def _answer_known(self) -> None:
        """Answer those whose reply is known, in RCPT order, up to the first whose reply is not."""
        known: list[tuple[Position, Reply]] = []
        for position in self._accepted[self._answered :] if self._answered else self._accepted:
            reply = position.final_reply
            if reply is None:
                break
            known.append((position, reply))
        if known:
            self._answered += len(known)
            self._client.answer(*[reply for _, reply in known])
            self._log(known)

    def _log(self, answered: Sequence[tuple[Position, Reply]]) -> None:
        for position, reply in answered:
            if reply.code >= 300:
                self._cutover.receipts.refused(position, reply, self._envelope.queue_id)
        log_recipients(self._message, answered, time.monotonic() - self._began)

    # --- all backends at once ----------------------------------------------------------------------------------------

    def _wanted(self) -> list[Delivery]:
        return [delivery for delivery in self._deliveries.values() if delivery.wanted]

    def _open(self, deliveries: list[Delivery]) -> None:
        """New connections, in a greenlet each if there are several."""
        self._client.flush()
        if len(deliveries) == 1:
            deliveries[0].open()
            return
        greenlets = [gevent.spawn(delivery.open) for delivery in deliveries]
        try:
            gevent.joinall(greenlets)
        except BaseException:
            gevent.killall(greenlets)
            raise
        for greenlet in greenlets:
            greenlet.get()

    def _await(self, deliveries: list[Delivery], *, flush: bool = True) -> None:
        """Wait until each has done its step, all under their own deadlines.

        flush: before each wait the client gets what is known. An error of ours in one of them is raised when the others
        are done.
        """
        failed: Exception | None = None
        if deliveries and all(map(_just_asked, deliveries)):
            self._wait(deliveries, flush=flush)  # no answer can have come yet
        while True:
            pending: list[Delivery] = []
            for delivery in deliveries:
                try:
                    if not delivery.advance():
                        pending.append(delivery)
                except Exception as error:  # noqa: BLE001  (raised again below)
                    failed = error
                    delivery.abandon("internal error")
            if self._finishing:
                self._answer_known()
            if not pending:
                break
            self._wait(pending, flush=flush)
            deliveries = pending
        if failed is not None:
            raise failed

    def _wait(self, pending: list[Delivery], *, flush: bool) -> None:
        """Until the first of them can go on, or is too late."""
        if flush:
            self._client.flush()
        if len(pending) == 1:
            delivery = pending[0]
            delivery.just_asked = False
            if (stream := delivery.stream) is not None:
                stream.wait(delivery.deadline)
            return
        for delivery in pending:
            delivery.just_asked = False
        if streams := [stream for delivery in pending if (stream := delivery.stream) is not None]:
            wait_for_any(streams, min([delivery.deadline for delivery in pending]))

    def _close(self) -> None:
        for delivery in self._deliveries.values():
            if not delivery.over:
                delivery.abandon()


_just_asked = attrgetter("just_asked")


def _name(delivery: Delivery) -> str:
    return delivery.pool.backend.name
