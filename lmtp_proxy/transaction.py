# SPDX-License-Identifier: GPL-3.0-or-later
"""One message: fan-out to the backends of its recipients, and replies to the client in RCPT order.

Every accepted recipient gets exactly one final reply, by position, as soon as it and all before it are known. What a
backend's failure means is settled in its Delivery; what the client's failure means, in `abort`. It touches no socket.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import gevent

from lmtp_proxy import reply as say
from lmtp_proxy.commit import Cutover, Message, Position
from lmtp_proxy.delivery import Delivery
from lmtp_proxy.delivery_log import log_aborted, log_recipient
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

    name: the session's id, for the log. answer: take the next reply that is owed, without I/O. flush: send what was
    taken; called before each wait, and never fails once the message is complete.
    """

    name: str
    answer: Callable[[Reply], None]
    flush: Callable[[], None]


class Summary(NamedTuple):
    """A transaction for an operator. state: envelope, held or data. sender: with angle brackets. octets: received."""

    state: str
    sender: bytes
    recipients: int
    octets: int


class Transaction:
    """From MAIL to the last reply. Ended by exactly one of `finish` and `abort`."""

    def __init__(self, client: Client, envelope: Envelope, cutover: Cutover, parking: Parking) -> None:
        self._client = client
        self._envelope = envelope
        self._message = Message(client.name, envelope)
        self._cutover = cutover
        self._parking = parking
        self._began = time.monotonic()
        self._parked = False
        self._in_data = self._finishing = False
        self._new: list[Position] = []
        self._accepted: list[Position] = []
        self._answered = 0  # of the accepted ones, after the final dot
        self._deliveries: dict[BackendPool, Delivery] = {}

    def __repr__(self) -> str:
        return f"<Transaction {self._client.name} accepted={len(self._accepted)} {list(self._deliveries.values())}>"

    @property
    def summary(self) -> Summary:
        """How far it is."""
        state = "held" if self._parked else "data" if self._in_data else "envelope"
        recipients = len(self._accepted) + len(self._new)
        return Summary(state, self._envelope.path, recipients, self._message.size)

    # --- envelope ----------------------------------------------------------------------------------------------------

    def add(self, recipient: Recipient) -> None:
        """A recipient; it waits for `answer_recipients`."""
        self._new.append(self._routed(recipient))

    def _routed(self, recipient: Recipient) -> Position:
        generation = self._cutover.current()
        route = generation.routing.route(recipient)
        pool = None if route.backend is None else generation.pools[route.backend]
        return Position(recipient, route, generation.number, pool)

    @property
    def waiting(self) -> bool:
        """Some recipients wait for `answer_recipients`."""
        return bool(self._new)

    def answer_recipients(self, *, data_follows: bool) -> None:
        """Bring all recipients added since the last call to their backends, all backends at once, and answer them.

        data_follows: the client has said DATA behind them, so the backends can be told, too.
        """
        self._park()
        concerned: dict[Delivery, None] = {}
        for position in self._new:
            if position.pool is not None:
                delivery = self._delivery(position.pool)
                delivery.add(position)
                concerned[delivery] = None
            else:
                self._count_refused(position)
                position.rcpt_reply = position.route.refusal
                position.trouble = printable((position.route.trouble or "").encode("utf-8", "backslashreplace"))
        # One after the other in an order that all transactions share: two that wait for each other's place would both
        # fail.
        deliveries = sorted(concerned, key=_name)
        for delivery in deliveries:
            delivery.reserve()
        self._open([delivery for delivery in deliveries if delivery.unopened])
        for delivery in deliveries:
            delivery.ask(data_follows=data_follows)
        # Whoever has said DATA already can do nothing with the reply to MAIL; it goes out with the others.
        self._await(deliveries, flush=not data_follows)
        new, self._new = self._new, []  # not before: a client that vanishes until here leaves a log line for each
        for position in new:
            self._answer_rcpt(position)

    def _count_refused(self, position: Position) -> None:
        tallies = self._cutover.tallies
        if position.route.trouble is not None:
            tallies.lookup += 1
        elif position.route.refusal is say.UNKNOWN_USER:
            tallies.unknown += 1
        else:
            tallies.parked += 1

    def _delivery(self, pool: BackendPool) -> Delivery:
        if pool not in self._deliveries:
            self._deliveries[pool] = Delivery(pool, self._message, self._cutover, self._client.flush)
        return self._deliveries[pool]

    def _answer_rcpt(self, position: Position) -> None:
        reply = position.rcpt_reply or say.INTERNAL_ERROR
        self._client.answer(reply)
        if reply.positive:
            self._accepted.append(position)
        else:
            self._cutover.receipts.refused(position, reply, self._envelope.queue_id)
            log_recipient(
                self._client.name, self._envelope, position, reply, size=self._message.size, delay=self._delay()
            )

    def _park(self) -> None:
        """Wait until the route of no new recipient is on hold any more, or the time is up."""
        for position in self._new:
            if position.route.held:
                break
        else:
            return
        config = self._cutover.current().config
        deadline = time.monotonic() + config.hold_timeout
        with self._parking.place(config.hold_limit) as granted:
            self._parked = granted
            while granted and any(position.route.held for position in self._new):
                self._client.flush()
                if not self._parking.wait_for_change(deadline):
                    break
                self._new = [self._routed(p.recipient) if p.route.held else p for p in self._new]
        self._parked = False

    # --- data --------------------------------------------------------------------------------------------------------

    def start_data(self) -> None:
        """DATA to every backend with an accepted recipient."""
        self._in_data = True
        asked = []
        for delivery in self._deliveries.values():
            if not delivery.wanted:
                delivery.leave()
            elif not delivery.in_data:
                delivery.start_data()
                asked.append(delivery)
        if asked:
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
                deliveries = list({self._deliveries[p.pool]: None for p in self._accepted if p.pool is not None})
                for delivery in deliveries:
                    delivery.finish(last, dot)
                self._await(deliveries)
        finally:
            # Also where an error of ours ended one delivery: what the other backends have said stands.
            self._close()
            for position in self._accepted:
                position.final_reply = position.final_reply or refusal or say.INTERNAL_ERROR
            self._answer_known()

    def _count(self, octets: bytes) -> None:
        message = self._message
        message.size += len(octets)
        if len(message.head) < HEAD:
            message.head += octets[: HEAD - len(message.head)]

    def abort(self, why: str) -> None:
        """Nothing more comes from the client, or nothing can be done for it: the backends see no final dot."""
        self._close()
        for position in self._accepted[self._answered :] + self._new:
            self._cutover.receipts.refused(position, None, self._envelope.queue_id, why)
            if position.asked and position.pool is not None:
                position.pool.counts.aborted += 1
            log_aborted(self._client.name, self._envelope, position, why, size=self._message.size, delay=self._delay())
        self._accepted, self._new, self._answered = [], [], 0

    def _answer_known(self) -> None:
        """Answer those whose reply is known, in RCPT order, up to the first whose reply is not."""
        while self._answered < len(self._accepted):
            position = self._accepted[self._answered]
            if position.final_reply is None:
                return
            self._answered += 1
            self._client.answer(position.final_reply)
            if not position.final_reply.positive:
                self._cutover.receipts.refused(position, position.final_reply, self._envelope.queue_id)
            delay = self._delay()
            log_recipient(
                self._client.name, self._envelope, position, position.final_reply, size=self._message.size, delay=delay
            )

    # --- all backends at once ----------------------------------------------------------------------------------------

    def _wanted(self) -> list[Delivery]:
        return [delivery for delivery in self._deliveries.values() if delivery.wanted]

    def _open(self, deliveries: list[Delivery]) -> None:
        """New connections, in a greenlet each if there are several."""
        if not deliveries:
            return
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
        while True:
            pending = []
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
            if flush:
                self._client.flush()
            if len(pending) == 1 and (stream := pending[0].stream) is not None:
                stream.wait(pending[0].deadline)
            else:
                streams = [delivery.stream for delivery in pending if delivery.stream is not None]
                wait_for_any(streams, min(delivery.deadline for delivery in pending))
            deliveries = pending
        if failed is not None:
            raise failed

    def _close(self) -> None:
        for delivery in self._deliveries.values():
            if not delivery.over:
                delivery.abandon()

    def _delay(self) -> float:
        return time.monotonic() - self._began


def _name(delivery: Delivery) -> str:
    return delivery.pool.backend.name
