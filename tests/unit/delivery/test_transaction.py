# SPDX-License-Identifier: GPL-3.0-or-later
"""What only a bug of ours can bring about: a delivery that ends with an unexpected exception."""

import time
from collections.abc import Sequence

import pytest

from lmtp_proxy.backends.introductions import Who
from lmtp_proxy.backends.pool import BackendPool
from lmtp_proxy.backends.session import BackendSession
from lmtp_proxy.config.values import Backend, Config, UnixAddress
from lmtp_proxy.delivery.client import Client
from lmtp_proxy.delivery.commit import ProcessParts
from lmtp_proxy.delivery.in_flight import InFlight
from lmtp_proxy.delivery.parking import Parking
from lmtp_proxy.delivery.transaction import Transaction
from lmtp_proxy.delivery.uncertain_log import UncertainLog
from lmtp_proxy.generations.generation import Generation
from lmtp_proxy.routing.routing import Routing
from lmtp_proxy.routing.static_table import StaticTable
from lmtp_proxy.wire import reply as say
from lmtp_proxy.wire.client import Command
from lmtp_proxy.wire.envelope import Envelope, Recipient
from lmtp_proxy.wire.reply import Reply

OK, GO_ON = Reply(250, (b"2.0.0 ok",)), Reply(354, (b"go on",))


class Session(BackendSession):
    """Says yes to everything, and lets DATA pass; the last reply of `broken` is an exception that nobody expects."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend, "proxy")
        self.protocol.receive_verbatim(b"220 ready\r\n")
        self.protocol.offers({"pipelining"})
        self.dotted = False

    def send_now(self, octets: bytes) -> int:
        self.dotted = self.dotted or octets.endswith(b".\r\n")
        return len(octets)

    def put(self, octets: bytes) -> None:
        self.send_now(octets)

    def stirred(self) -> bool:
        return False

    def unread(self) -> bool:
        return False

    def replies(self) -> Sequence[Reply]:
        if self.dotted and self.backend.name == "broken":
            raise ZeroDivisionError
        says = [GO_ON if command is Command.DATA else OK for command in self.protocol.expected]
        return self.protocol.receive(b"".join(map(Reply.to_bytes, says)))


class Pool(BackendPool):
    def open(self, *, fresh: bool = False, whatever: bool = False, who: Who | None = None) -> BackendSession:
        return Session(self.backend)

    def release(self, session: BackendSession) -> None:
        self.cancel()

    discard = release


def test_a_bug_in_one_delivery_leaves_the_replies_of_the_others() -> None:
    pools = {name: Pool(Backend(name, UnixAddress(f"/{name}")), "proxy") for name in ("broken", "good")}
    table = StaticTable({"a@x": "broken", "b@x": "good"})
    config = Config("/c", (UnixAddress("/s"),), "proxy")
    generation = Generation(1, config, Routing(table, config.key_rules, None), pools)
    in_flight = InFlight()
    uncertain = UncertainLog(lambda: generation, in_flight)
    answers: list[Reply] = []
    client = Client("8f3a", lambda *replies: answers.extend(replies), lambda: None)
    transaction = Transaction(
        client, Envelope(b"<s@x>"), ProcessParts(lambda: generation, in_flight, uncertain), Parking()
    )
    transaction.add([Recipient(f"<{name}@x>".encode(), name, "x") for name in ("a", "b", "a")])
    transaction.answer_recipients(data_follows=False)
    assert answers == [OK] * 3
    for pool in pools.values():
        assert pool.busy == 1
    transaction.await_data(transaction.start_data())
    with pytest.raises(ZeroDivisionError):
        transaction.finish(b"x\r\n", 10, None, time.monotonic())
    assert answers[3:] == [say.INTERNAL_ERROR, OK, say.INTERNAL_ERROR]
    assert [pool.busy for pool in pools.values()] == [0, 0] and len(in_flight) == 0
    # Nobody knows what became of the two whose dot was sent.
    assert [record.recipient for record in uncertain.recent()] == ["a@x", "a@x"]
