# SPDX-License-Identifier: GPL-3.0-or-later
"""When a second session is asked: nothing of the message was sent, and a new session may do better."""

import pytest

from lmtp_proxy.backends.failure import BackendError, Failure
from lmtp_proxy.delivery.asked_again import may_ask_again, none_was_taken
from lmtp_proxy.delivery.in_flight import Phase
from lmtp_proxy.wire.client import ClientProtocol, Command
from lmtp_proxy.wire.reply import Reply

YES, LATER, NO = Reply(250, (b"2.1.5 yes",)), Reply(452, (b"4.4.5 enough",)), Reply(550, (b"5.1.1 no",))

BUSY = Reply(451, (b"4.3.0 <u> Too many concurrent deliveries for user",))  # it is not about the session


def connection(transactions: int, *said: bytes) -> ClientProtocol:
    """In a transaction, with these replies to MAIL and what follows."""
    protocol = ClientProtocol()
    protocol.receive_verbatim(b"220 ready\r\n")
    protocol.offers({"pipelining"})
    protocol.transactions = transactions - 1
    protocol.command(Command.MAIL, b"MAIL FROM:<>")
    protocol.command(Command.RCPT, b"RCPT TO:<a@x>")
    for octets in said:
        protocol.receive(octets)
    return protocol


@pytest.mark.parametrize("phase", [Phase.ENVELOPE, Phase.DATA])
@pytest.mark.parametrize("transactions", [1, 2])
@pytest.mark.parametrize("reply", [LATER, NO])
def test_what_a_used_connection_defers(transactions: int, reply: Reply, phase: Phase) -> None:
    error = BackendError(Failure.REFUSED, "in reply to MAIL", reply)
    again = transactions == 2 and reply is LATER and phase is Phase.ENVELOPE
    assert may_ask_again(error, connection(transactions, b"250 2.1.0 ok\r\n"), phase) is again


@pytest.mark.parametrize("said", [(), (b"250 2.1.0 ok\r\n",)])
@pytest.mark.parametrize("transactions", [1, 2])
@pytest.mark.parametrize("failure", [Failure.GONE, Failure.SILENT])
def test_a_connection_that_was_dead_before_it_was_used(
    failure: Failure, transactions: int, said: tuple[bytes, ...]
) -> None:
    error = BackendError(failure, "it closed the connection")
    assert may_ask_again(error, connection(transactions, *said), Phase.ENVELOPE) is (transactions == 2 and not said)


@pytest.mark.parametrize("failure", [Failure.ODD, Failure.MISUNDERSTOOD, Failure.AUTH, Failure.INTERNAL])
def test_what_another_connection_would_say_as_well(failure: Failure) -> None:
    assert not may_ask_again(BackendError(failure, "x"), connection(2), Phase.ENVELOPE)


@pytest.mark.parametrize(
    ("replies", "found"),
    [([], None), ([LATER], LATER), ([NO], None), ([NO, LATER], LATER), ([LATER, YES], None), ([YES], None),
     ([BUSY, NO], None), ([BUSY, LATER], LATER)],
)  # fmt: skip
def test_nobody_was_taken_and_somebody_deferred(replies: list[Reply], found: Reply | None) -> None:
    assert none_was_taken(replies) is found
