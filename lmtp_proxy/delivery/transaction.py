# SPDX-License-Identifier: GPL-3.0-or-later
"""One message: fan-out to the backends of its recipients, and replies to the client in RCPT order.

Every accepted recipient gets exactly one final reply, by position, as soon as it and all before it are known. What a
backend's failure means is settled in its Delivery; what the client's failure means, in `abort`. It touches no socket.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, compress, repeat
from operator import attrgetter
from typing import TypeAlias

from lmtp_proxy.backends.failure import Failure, is_over_user_limit
from lmtp_proxy.backends.pool import BackendPool
from lmtp_proxy.delivery import admission
from lmtp_proxy.delivery.client import Client
from lmtp_proxy.delivery.commit import Message, ProcessParts
from lmtp_proxy.delivery.delivery import Delivery
from lmtp_proxy.delivery.fan_out import (
    Share,
    by_pool,
    gather,
    in_order,
    is_too_much,
    open_all,
    wait_for_all,
    wait_for_one,
)
from lmtp_proxy.delivery.log import log_aborted, log_recipients, unheard
from lmtp_proxy.delivery.parking import Parking
from lmtp_proxy.delivery.state import DeliveryState
from lmtp_proxy.delivery.summary import TransactionSummary
from lmtp_proxy.delivery.unrouted import failure_of, note_unrouted
from lmtp_proxy.generations.destination import Destination
from lmtp_proxy.generations.generation import Generation
from lmtp_proxy.text import MAX_TEXT, shown
from lmtp_proxy.wire.envelope import Envelope, Recipient
from lmtp_proxy.wire.reply import Reply, worst_code

Groups: TypeAlias = Mapping[BackendPool, Sequence[Destination]]

_NOBODY: frozenset[Destination] = frozenset()
# What those get who are turned away before their backend is asked.
_TURNED_AWAY: dict[Share, Iterator[Reply]] = {
    failure: repeat(failure.reply) for failure in (Failure.TOO_MANY, Failure.TOO_MANY_OF_ONE, Failure.MAILBOX_BUSY)
}


class Transaction:
    """From MAIL to the last reply. Ended by exactly one of `finish` and `abort`.

    Attributes:
        new: recipients who wait for `answer_recipients`.
    """

    def __init__(self, client: Client, envelope: Envelope, parts: ProcessParts, parking: Parking) -> None:
        self._client = client
        self._envelope = envelope
        self._message = Message(client.name, envelope, who=client.said)
        self._parts = parts
        self._parking = parking
        self._began = time.monotonic()
        self._asking = self._some_refused = False
        self._step = "envelope"
        self.new: list[Destination] = []
        self._refused = _NOBODY  # those without a backend: counted and noted
        self._accepted: list[Destination] = []
        self._answered = 0  # of the accepted ones, after the final dot
        self._deliveries: dict[Share, Delivery] = {}
        self._shares: list[Share] = []  # of the accepted ones; empty while each belongs to that of its pool
        self._new_shares: Sequence[Share] = ()  # of the new ones, likewise
        self._entered: Sequence[Destination] = ()  # of the new ones: have a place at their mailbox, for a delivery

    def __repr__(self) -> str:
        return f"<Transaction {self._client.name} accepted={len(self._accepted)} {list(self._deliveries.values())}>"

    @property
    def summary(self) -> TransactionSummary:
        """How far it is."""
        recipients = len(self._accepted) + len(self.new)
        return TransactionSummary(self._step, self._envelope.path, recipients, self._message.size)

    @property
    def is_waited_for(self) -> bool:
        """Others wait for a place at a backend where this one has one."""
        return any(not delivery.over and delivery.pool.waiting for delivery in self._deliveries.values())

    @property
    def is_declined(self) -> bool:
        """None of its recipients was accepted, so that no message is to come."""
        return self._some_refused and not self._accepted and not self.new

    # --- envelope ----------------------------------------------------------------------------------------------------

    def add(self, recipients: Iterable[Recipient], plain: Sequence[bytes] = ()) -> Generation:
        """These wait for `answer_recipients`; the generation that they are routed in.

        plain: or those with these paths, as an EnvelopeCommand has them.
        """
        generation, message = self._parts.current(), self._message
        number = generation.number
        if not (self._accepted or self.new):
            message.generation = number
        elif message.generation != number:
            message.generation = 0
        if plain:
            new, destinations = self.new, generation.destinations
            for path in plain:
                new.append(destinations[path])
        else:
            self.new += map(generation.destinations.of, recipients)
        return generation

    def answer_recipients(self, *, data_follows: bool) -> None:
        """Bring all recipients added since the last call to their backends, all backends at once, and answer them.

        data_follows: the client has said DATA behind them, so the backends can be told, too.
        """
        new = self.new
        groups, without = by_pool(new)
        if without:
            groups, without = self._park_held(groups, without)
            new = self.new
        first = new[0]
        pool = first.pool
        if (
            pool.mailboxes.enter(first.mailbox)
            if len(new) == 1 and pool is not None
            else admission.enter_mailboxes(groups)
        ):
            self._entered = new
        else:
            groups, without = self._hold_back(groups)
        self._asking = True
        replies = self._ask(groups, without, data_follows)
        if worst_code(replies) >= 300:
            self._answer_some_refused(self._asked_again(replies, data_follows))
            return
        new = self.new
        if len(replies) != len(new):
            raise RuntimeError(f"{len(replies)} replies for {len(new)} recipients")
        self.new = []  # not before: a client that vanishes until here leaves a log line for each
        self._asking = False
        self._client.answer(*replies)
        if self._shares or self._new_shares:
            self._accept(new, self._new_shares)
        else:
            self._accepted += new

    def _answer_some_refused(self, replies: Sequence[Reply]) -> None:
        new, self.new = self.new, []
        self._asking = False
        self._some_refused = True
        self._client.answer(*replies)
        self._settle(new, replies)

    def _park_held(
        self, groups: Groups, without: Sequence[Destination], before: frozenset[Destination] = _NOBODY
    ) -> tuple[Groups, Sequence[Destination]]:
        """As `by_pool` has the new ones, once the routes of those on hold have changed or their time is up.

        before: those whose time was up already.
        """
        self._refuse([each for each in without if not each.route.held and each not in before])
        held = [destination.route.held and destination not in before for destination in self.new]
        if not any(held):
            return groups, without
        self._park(before)
        self._refuse([each for each, was in zip(self.new, held, strict=True) if was and each.pool is None])
        return by_pool(self.new)

    # --- places at mailboxes -----------------------------------------------------------------------------------------

    def _hold_back(self, groups: Groups) -> tuple[Groups, Sequence[Destination]]:
        """As `by_pool` has those who get a place at their mailbox, maybe after a wait; the others are turned away."""
        began = time.monotonic()
        held = [*chain.from_iterable(each.commit.held for each in self._deliveries.values())]
        stays = partial(admission.is_still_there, self._parts.current)
        owed = partial(admission.is_owed, self._parts.in_flight)
        turned_away: Mapping[int, Failure] = {}
        while groups:
            number = min(destination.generation for group in groups.values() for destination in group)
            entered = self._entered = []
            turned_away = admission.admit(self.new, entered, held, began, self._give_places_back, stays, owed)
            if self._parts.current().number == number:
                break
            before, self.new = self.new, admission.routed_anew(self._parts.current(), self.new)
            self._message.generation = 0  # of which these are is not known for all
            if all(map(admission.is_same_mailbox, before, self.new)):
                break
            self._entered = ()
            admission.leave_mailboxes(entered)
            turned_away = {}
            groups, _ = self._park_held(*by_pool(self.new), self._refused)
        if turned_away:
            self._new_shares = [turned_away.get(number, each.pool) for number, each in enumerate(self.new)]
        groups, without = by_pool([each for number, each in enumerate(self.new) if number not in turned_away])
        self._entered = [*chain.from_iterable(groups.values())]  # as they are routed now
        return groups, without

    def _give_places_back(self) -> None:
        """Of backends, before a wait that is not for them: who is waited for may wait for these."""
        for delivery in self._deliveries.values():
            delivery.give_back()
        self._client.flush()

    def _ask(self, groups: Groups, without: Sequence[Destination], data_follows: bool) -> Sequence[Reply]:
        """All backends at once, each for its group. The replies, in the order of the new recipients."""
        if len(groups) == 1 and not without and not self._new_shares:  # as most messages have it
            [(pool, asked)] = groups.items()
            flush = self._client.flush
            delivery = self._delivery(pool)
            if len(self._deliveries) == 1:
                if delivery.reserve(asked, flush):
                    flush()
                    delivery.open()
                if not pool.splits or len(asked) + len(delivery.accounts.told_yes) <= pool.most_recipients:
                    delivery.commit.hold(asked)
                    self._entered = ()
                    delivery.ask(data_follows)
                    wait_for_one(delivery, None if data_follows else flush, None)
                    if not delivery.rcpt_replies:
                        self._ask_anew(groups, {pool: _UNKNOWN}, data_follows=data_follows)
                    return delivery.rcpt_replies
        said = _TURNED_AWAY.copy()
        said[None] = iter([failure_of(destination).reply for destination in without])
        self._ask_all(groups, said, data_follows=data_follows)
        for share, delivery in self._deliveries.items():
            if said.get(share, _UNKNOWN) is _UNKNOWN:
                said[share] = iter(delivery.rcpt_replies)
        return in_order(self._new_shares or map(_pool, self.new), said)

    def _asked_again(self, replies: Sequence[Reply], data_follows: bool) -> Sequence[Reply]:
        """As `_ask` has them, from the only backend; where it need not be the last word, those of a second time.

        A store that has too many of a mailbox is asked again when that mailbox has moved. Who waited in vain for one
        from which they were moved meanwhile, is asked for where they are now.
        """
        new, deliveries = self.new, [*self._deliveries.values()]
        pool = new[0].pool if new else None
        if len(deliveries) != 1 or pool is None or self._new_shares or any(each.pool is not pool for each in new):
            return replies
        [delivery] = deliveries
        if delivery.state is _OPEN and all(map(is_over_user_limit, replies)):
            delivery.commit.let_go_refused(new)
        elif delivery.over and replies[0].code < 500 and not delivery.accounts.told_yes:
            self.new = admission.routed_anew(self._parts.current(), new)
            if all(each.pool is pool for each in self.new):
                return replies
            self._message.generation = 0  # of which these are is not known for all
            del self._deliveries[pool]
        else:
            return replies
        pool.counts.deferred -= len(new)  # nobody has been told so
        groups, without = self._hold_back(self._park_held(*by_pool(self.new))[0])
        return self._ask(groups, without, data_follows)

    def _answer_first(self, groups: Groups, said: dict[Share, Iterator[Reply]]) -> None:
        """A store is waited for: whoever stands before its first recipient is asked for without it, and answered.

        said: to whom was asked for already, from the first who has not been answered.
        """
        asked: dict[Share, Delivery] = {}
        shares = self._new_shares or [*map(_pool, self.new)]
        for share in shares:
            if said[share] is _UNKNOWN and share not in asked:
                delivery = self._deliveries[share]
                if delivery.lacks_session or is_too_much(delivery, groups):
                    break
                delivery.commit.hold([each for each in self._entered if each.pool is delivery.pool])
                self._entered = [each for each in self._entered if each.pool is not delivery.pool]
                delivery.ask(data_follows=False)
                asked[share] = delivery
        if asked:
            self._await([*asked.values()])
            said.update((share, iter(each.rcpt_replies)) for share, each in asked.items() if not each.lacks_session)
        if replies := in_order(shares, said):
            answered = len(replies)
            new, self.new = self.new[:answered], self.new[answered:]
            self._new_shares, later = self._new_shares[:answered], self._new_shares[answered:]
            self._client.answer(*replies)
            self._settle(new, replies)
            self._new_shares = later

    def _accept(self, new: Sequence[Destination], shares: Sequence[Share]) -> None:
        if shares and not self._shares:
            self._shares = [*map(_pool, self._accepted)]
        if shares or self._shares:
            self._shares += shares or map(_pool, new)
        self._accepted += new
        self._new_shares = ()

    def _settle(self, new: Sequence[Destination], replies: Sequence[Reply]) -> None:
        """Keep those that were accepted; note and log the others."""
        shares = self._new_shares or [*map(_pool, new)]
        why: dict[Share, Iterator[str]] = {share: repeat(each.trouble) for share, each in self._deliveries.items()}
        why.update((share, repeat(share.value.what)) for share in shares if isinstance(share, Failure))
        why[None] = iter([shown(each.route.reason, MAX_TEXT) for each in new if each.pool is None])
        answered = list(zip(new, replies, in_order(shares, why), strict=True))
        accepted = [reply.code < 300 for reply in replies]
        self._accept([*compress(new, accepted)], [*compress(self._new_shares, accepted)])
        for destination, reply, share in zip(new, replies, shares, strict=True):
            pool = destination.pool
            if pool is not None and isinstance(share, Failure):
                pool.counts.deferred += 1
                pool.counts.mailbox_busy += share is Failure.MAILBOX_BUSY
            elif pool is not None and reply.negative:
                commit = self._deliveries[share].commit
                if is_over_user_limit(reply):
                    pool.mailboxes.learn(destination.mailbox, commit.asked_at)
                commit.let_go((destination,))
        if all(accepted):
            return
        destinations, replies, troubles = zip(*[each for each in answered if each[1].code >= 300], strict=True)
        self._note_refused(destinations, replies, troubles)
        log_recipients(self._message, destinations, replies, troubles, time.monotonic() - self._began)

    def _delivery(self, pool: BackendPool) -> Delivery:
        delivery = self._deliveries.get(pool)
        if delivery is None:
            delivery = self._deliveries[pool] = Delivery(pool, self._message, self._parts)
        return delivery

    def _ask_all(self, groups: Groups, said: dict[Share, Iterator[Reply]], *, data_follows: bool) -> None:
        """All backends at once, each for its group. said: see `_answer_first`."""
        deliveries = [*map(self._delivery, groups)]
        lacking = len(self._deliveries) > len(deliveries)  # others may have given theirs back
        for delivery in deliveries:
            if delivery.reserve(groups[delivery.pool], None):
                lacking = True
        if lacking:
            said.update(dict.fromkeys(groups, _UNKNOWN))
            deliveries = self._gather(groups, said)
        for delivery in deliveries:
            if delivery.pool.splits and is_too_much(delivery, groups):
                deliveries = self._spread(groups, said)
                break
        if lacking or self._new_shares:
            self._hand_over()
        else:
            self._entered = ()
            for delivery in deliveries:
                delivery.commit.hold(groups[delivery.pool])
        for delivery in deliveries:
            delivery.ask(data_follows)
        # Whoever has said DATA already can do nothing with the reply to MAIL; it goes out with the others.
        self._await(deliveries, flush=not data_follows)
        if lacking or not all(map(_rcpt_replies, deliveries)):
            self._ask_anew(groups, said, data_follows=data_follows)

    def _ask_anew(self, groups: Groups, said: dict[Share, Iterator[Reply]], *, data_follows: bool) -> None:
        """Those whose session was dead or not fit for use, once they have another one. Nobody else waits for it."""
        while any(delivery.state is _ANEW for delivery in self._deliveries.values()):
            for share, delivery in self._deliveries.items():
                if said.get(share, _UNKNOWN) is _UNKNOWN:
                    said[share] = _UNKNOWN if delivery.lacks_session else iter(delivery.rcpt_replies)
            deliveries = self._gather(groups, said)
            for delivery in deliveries:
                delivery.ask(data_follows)
            self._await(deliveries, flush=not data_follows)

    def _hand_over(self) -> None:
        """Places at mailboxes are the deliveries' from now on; those of who was asked for before are already."""
        shares: dict[Share, list[Destination]] = {}
        entered = {each.pool for each in self._entered}
        for each, share in zip(self.new, self._new_shares or map(_pool, self.new), strict=True):
            if each.pool is not None and each.pool in entered:
                shares.setdefault(share, []).append(each)
        self._entered = ()
        for share, those in shares.items():
            if not isinstance(share, Failure):
                self._deliveries[share].commit.hold(those)
            elif share is Failure.TOO_MANY:
                admission.leave_mailboxes(those)

    def _gather(self, groups: Groups, said: dict[Share, Iterator[Reply]]) -> list[Delivery]:
        """A session for each that needs one. All those to `ask`."""
        # One after the other in an order that all transactions share, as far as nobody has to give anything back.
        everybody = sorted(self._deliveries.values(), key=attrgetter("pool.backend.name"))
        gather(everybody, self._client.flush, partial(self._answer_first, groups, said))
        return [delivery for delivery in everybody if delivery.accounts.asked]

    def _spread(self, groups: Groups, said: Mapping[Share, Iterator[Reply]]) -> list[Delivery]:
        """Several deliveries for those of whom a backend does not take as many in one. All those to `ask`.

        They run at once. No further place is waited for: two messages that wait for each other's would both fail.
        """
        asked_first = {pool for pool in groups if said.get(pool, _UNKNOWN) is not _UNKNOWN}
        shares_of: dict[BackendPool | None, Iterator[Share]] = {
            pool: repeat(pool) if pool in asked_first else self._room(pool) for pool in groups
        }
        shares_of[None] = repeat(None)
        before = self._new_shares or repeat(None)
        shares = self._new_shares = [
            share if isinstance(share, Failure) else next(shares_of[each.pool])
            for each, share in zip(self.new, before, strict=False)
        ]
        for share, delivery in self._deliveries.items():
            if delivery.pool in groups and delivery.pool not in asked_first and delivery.state is not _NEW:
                delivery.reserve([each for each, its in zip(self.new, shares, strict=True) if its is share], None)
        asked = [delivery for delivery in self._deliveries.values() if delivery.accounts.asked]
        open_all([delivery for delivery in asked if delivery.state is _RESERVED])
        return asked

    def _room(self, pool: BackendPool) -> Iterator[Share]:
        """A share for each further recipient of this backend."""
        for share, delivery in [*self._deliveries.items()]:
            if delivery.pool is pool:
                room = pool.most_recipients - len(delivery.accounts.told_yes)
                if delivery.over or delivery.state is _NEW:
                    room = math.inf if delivery.over and share is pool else 0  # then all get what that one says
                while room > 0:
                    yield share
                    room -= 1
        while True:
            delivery = Delivery(pool, self._message, self._parts)
            delivery.reserve((), None)
            if delivery.state is _NEW:
                delivery.leave()
                yield from repeat(Failure.TOO_MANY)
            self._deliveries[delivery] = delivery
            for _ in range(int(pool.most_recipients)):
                yield delivery

    def _refuse(self, destinations: Sequence[Destination]) -> None:
        note_unrouted(self._parts, self._client, self._envelope.queue_id, destinations)
        self._refused |= {*destinations}

    def _park(self, before: frozenset[Destination]) -> None:
        """Wait until the route of no new recipient but those is on hold any more, or the time is up."""
        config = self._parts.current().config
        deadline = time.monotonic() + config.hold_timeout
        with self._parking.place(config.hold_limit) as granted:
            if granted:
                self._step = "held"
                self._give_places_back()
            while granted and any(each.route.held and each not in before for each in self.new):
                self._client.flush()
                if not self._parking.wait_for_change(deadline):
                    break
                parked, self.new = self.new, []
                for destination in parked:
                    if destination.route.held and destination not in before:
                        self.add([destination.recipient])
                    else:
                        self.new.append(destination)
                self._message.generation = 0  # not even `add` knows those who were not held
        self._step = "envelope"

    # --- data --------------------------------------------------------------------------------------------------------

    def start_data(self) -> list[Delivery]:
        """DATA to every backend with an accepted recipient; those that were not told before, for `await_data`."""
        self._step = "data"
        asked: list[Delivery] = []
        for delivery in self._deliveries.values():
            if delivery.state is not _OPEN and delivery.state is not _NEW:
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
        while anew := [delivery for delivery in asked if delivery.state is _ANEW]:
            self._client.flush()
            open_all(anew)
            for delivery in anew:
                delivery.ask(data_follows=True)
            self._await(anew)

    def write(self, octets: bytes, dot: float) -> None:
        """A piece of the message to every backend that still takes it; returns when all have taken it or failed.

        dot: when the client can have sent its final dot at the earliest (time.monotonic).
        """
        message = self._message
        message.size += len(octets)
        message.keep_head(octets)
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
        message = self._message
        message.size = size
        if message.head:
            message.keep_head(last)
        else:
            message.head = last  # all of it: nothing is to be copied, and it goes when the message does
        try:
            if refusal is None:
                deliveries = [*self._deliveries.values()]
                for delivery in deliveries:
                    delivery.finish(last, dot)
                if len(deliveries) == 1:
                    wait_for_one(delivery, self._client.flush, self._answer_known)
                else:
                    wait_for_all(deliveries, self._client.flush, self._answer_known)
        finally:
            self._answer_known()
            if self._answered < len(self._accepted):
                # The message is refused, or an error of ours ended one delivery: what other backends have said stands.
                self._close()
                for delivery in self._deliveries.values():
                    if refusal is None:
                        delivery.accounts.answer_rest(Failure.INTERNAL.reply)
                    else:
                        delivery.accounts.refuse(refusal)
                self._answer_known()

    def abort(self, why: str) -> None:
        """Nothing more comes from the client, or nothing can be done for it: the backends see no final dot."""
        self._close()
        admission.leave_mailboxes(self._entered)
        given_up = self._accepted[self._answered :]
        asked = len(given_up) + (len(self.new) if self._asking else 0)
        given_up += self.new
        for number, destination in enumerate(given_up):
            if destination not in self._refused:
                self._parts.receipts.refused(destination, None, self._envelope.queue_id, why)
            if number < asked and destination.pool is not None:
                destination.pool.counts.aborted += 1
        log_aborted(self._message, given_up, asked, why, time.monotonic() - self._began)
        self._accepted, self.new, self._shares, self._answered = [], [], [], 0

    def _answer_known(self) -> None:
        """Answer those whose reply is known, in RCPT order, up to the first whose reply is not."""
        accepted, answered, deliveries = self._accepted, self._answered, self._deliveries.values()
        replies: Sequence[Reply]
        if len(deliveries) == 1:
            (delivery,) = deliveries
            replies = delivery.accounts.final
        elif not answered and accepted and not self._deliveries[(self._shares or [accepted[0].pool])[0]].accounts.final:
            return
        else:
            shares: Iterable[Share] = self._shares or map(_pool, accepted)
            replies = in_order(shares, {share: iter(each.accounts.final) for share, each in self._deliveries.items()})
        known = len(replies)
        if known == answered:
            return
        if answered or known < len(accepted):
            accepted, replies = accepted[answered:known], replies[answered:]
        self._answered = known
        self._client.answer(*replies)
        troubles: Sequence[str] = ()
        if worst_code(replies) >= 300:
            why: dict[Share, Iterator[str]] = {
                share: chain(repeat("", each.accounts.said), repeat(each.trouble))
                for share, each in self._deliveries.items()
            }
            troubles = in_order((self._shares or [*map(_pool, self._accepted)])[:known], why)[answered:]
            self._note_refused(accepted, replies, troubles)
        stream = self._client.stream
        if stream is not None and stream.ended and self._client.is_gone():
            troubles = unheard(accepted, replies, troubles)
        log_recipients(self._message, accepted, replies, troubles, time.monotonic() - self._began)

    def _note_refused(
        self, destinations: Sequence[Destination], replies: Sequence[Reply], troubles: Sequence[str]
    ) -> None:
        receipts, queue_id = self._parts.receipts, self._envelope.queue_id
        for destination, reply, why in zip(destinations, replies, troubles, strict=True):
            if reply.code >= 300 and destination not in self._refused:
                receipts.refused(destination, reply, queue_id, why)

    # --- all backends at once ----------------------------------------------------------------------------------------

    def _wanted(self) -> list[Delivery]:
        return [delivery for delivery in self._deliveries.values() if delivery.wanted]

    def _await(self, deliveries: list[Delivery], *, flush: bool = True) -> None:
        """Wait until each has done its step. flush: before each wait the client gets what is known."""
        wait_for_all(deliveries, self._client.flush if flush else None, None)

    def _close(self) -> None:
        for delivery in self._deliveries.values():
            if not delivery.over:
                delivery.abandon()


_NEW, _RESERVED, _ANEW, _OPEN = DeliveryState.NEW, DeliveryState.RESERVED, DeliveryState.ANEW, DeliveryState.OPEN
_UNKNOWN: Iterator[Reply] = iter(())  # of those who were not asked for yet
_pool = attrgetter("pool")
_rcpt_replies = attrgetter("rcpt_replies")
