# SPDX-License-Identifier: GPL-3.0-or-later
"""What a backend says to MAIL, RCPT and DATA: the same whether its replies are known, new, or come in pieces."""

import socket
import time
from _socket import socket as Socket
from collections.abc import Iterator, Sequence

import pytest

from lmtp_proxy.backends.session import BackendSession
from lmtp_proxy.config.values import Backend, Config, UnixAddress
from lmtp_proxy.delivery.commit import Message, ProcessParts
from lmtp_proxy.delivery.delivery import Delivery
from lmtp_proxy.delivery.in_flight import InFlight, Phase
from lmtp_proxy.delivery.state import DeliveryState
from lmtp_proxy.delivery.uncertain_log import UncertainLog
from lmtp_proxy.generations.generation import first_generation
from lmtp_proxy.loop.stream import Stream
from lmtp_proxy.routing.static_table import StaticTable
from lmtp_proxy.wire import reply as say
from lmtp_proxy.wire.client import KNOWN, _once
from lmtp_proxy.wire.envelope import Envelope, Recipient

OLD = Backend("old", UnixAddress("/old"))
ALICE, BOB = Recipient(b"<alice@x>", "alice", "x"), Recipient(b"<bob@x>", "bob", "x")
UTF8 = Recipient("<\N{LATIN SMALL LETTER A WITH DIAERESIS}@x>".encode(), "\N{LATIN SMALL LETTER A WITH DIAERESIS}", "x")
YES, NO, DATA = b"250 2.1.5 yes\r\n", b"550 5.1.1 no\r\n", b"354 go ahead\r\n"


class Site:
    """A kept connection to a backend, and a delivery that has been asked for some recipients."""

    def __init__(self, *recipients: Recipient, envelope: Envelope | None = None) -> None:
        users = StaticTable({"alice@x": "old", "bob@x": "old", "\N{LATIN SMALL LETTER A WITH DIAERESIS}@x": "old"})
        generation = first_generation(Config("/c", (UnixAddress("/s"),), "proxy", backends={"old": OLD}, users=users))
        ours, self.theirs = socket.socketpair()
        session = BackendSession(OLD, "proxy")
        session.stream = self.stream = Stream(Socket(fileno=ours.detach()))
        # As one is that served another message before.
        session.protocol.receive_verbatim(b"220 ready\r\n")
        session.protocol.offers({"pipelining"})
        session.protocol.transactions = 1
        self.pool = generation.pools["old"]
        self.pool._taken = 1
        self.pool._kept.append(session)
        self.in_flight = InFlight()
        cutover = ProcessParts(lambda: generation, self.in_flight, UncertainLog(lambda: generation, self.in_flight))
        self.delivery = Delivery(self.pool, Message("8f3a", envelope or Envelope(b"<s@x>")), cutover)
        assert not self.delivery.reserve([generation.destinations.of(each) for each in recipients], lambda: None)
        self.delivery.ask(data_follows=True)

    def hear(self, *pieces: bytes) -> bool:
        done = False
        for piece in pieces:
            if self.delivery.session is None:
                return True
            self.theirs.send(piece)
            self.stream.wait(time.monotonic() + 20)
            done = self.delivery.advance()
        return done

    @property
    def outcome(self) -> tuple[object, ...]:
        delivery = self.delivery
        flights = [(flight.phase, flight.recipients) for flight in self.in_flight]
        return (
            list(delivery.rcpt_replies), [each.recipient for each in delivery.accounts.accepted], delivery.state,
            flights, delivery.trouble, delivery.session is None, self.pool.counts.deferred, self.pool.counts.bounced,
        )  # fmt: skip

    def close(self) -> None:
        self.delivery.abandon()
        self.stream.close()
        self.theirs.close()


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    before = dict(KNOWN), set(_once)
    for kept in (KNOWN, _once):
        kept.clear()
    yield
    for kept in (KNOWN, _once):
        kept.clear()
    KNOWN.update(before[0])
    _once.update(before[1])


def outcomes(octets: bytes, *recipients: Recipient, behind: Sequence[bytes] = ()) -> list[tuple[object, ...]]:
    """Of replies that are new, come again, are known by then, and that come one octet after the other.

    behind: what comes only then.
    """
    found = []
    for pieces in ((octets,), (octets,), (octets,), tuple(octets[at : at + 1] for at in range(len(octets)))):
        site = Site(*recipients)
        pieces += (*behind,)
        assert site.hear(*pieces)
        found.append(site.outcome)
        site.close()
    assert len(KNOWN) > 0
    return found


@pytest.mark.parametrize("recipients", [(ALICE,), (ALICE, BOB), (BOB, ALICE, BOB)])
def test_yes_to_all(recipients: tuple[Recipient, ...]) -> None:
    octets = YES + YES * len(recipients) + DATA
    first, *others = outcomes(octets, *recipients)
    assert others == [first, first, first] and octets in KNOWN
    replies, accepted, state, flights, *_ = first
    assert [str(reply) for reply in replies] == ["250 2.1.5 yes"] * len(recipients)  # type: ignore[attr-defined]
    assert (accepted, state, flights) == (list(recipients), DeliveryState.DATA, [(Phase.DATA, list(recipients))])


@pytest.mark.parametrize(
    "octets",
    [
        YES + YES + NO + DATA,
        YES + NO + YES + DATA,
        YES + NO + NO + b"503 5.5.1 nobody\r\n",
        YES + NO + NO + DATA,
        YES + YES + YES + b"250 2.0.0 no 354\r\n",
        YES + YES + b"354 too early\r\n" + DATA,
        b"451 4.3.0 not now\r\n" + YES + YES + DATA,
        b"354 go ahead\r\n" + YES + YES + DATA,
    ],
)
def test_anything_else(octets: bytes) -> None:
    first, *others = outcomes(octets, ALICE, BOB)
    assert others == [first, first, first]


@pytest.mark.parametrize("rset", [YES + NO, NO, DATA, YES + YES, YES + DATA])
@pytest.mark.parametrize(
    "octets",
    [YES + NO + NO + NO, YES + YES + YES + b"552 5.3.4 full\r\n", b"550 5.7.1 not you\r\n" + NO + NO + NO],
)
def test_a_refusal_stands_if_rset_is_accepted_and_data_is_not(octets: bytes, rset: bytes) -> None:
    """Else one came too many: they are told nothing of what was said."""
    first, *others = outcomes(octets, ALICE, BOB, behind=(rset,))
    assert others == [first, first, first]
    replies = first[0]
    assert isinstance(replies, list)
    assert (replies == [say.BACKEND_ODD] * 2) is (rset != YES + NO)


def test_half_a_reply_behind_the_354_takes_nobody_away() -> None:
    """What it is about is heard amid the message; that the recipients were accepted stands."""
    site = Site(ALICE, BOB)
    site.hear(YES * 3 + DATA + b"4")
    assert site.delivery.advance()
    assert [each.recipient for each in site.delivery.accounts.accepted] == [ALICE, BOB]
    assert len(site.delivery.rcpt_replies) == 2
    site.close()


def test_who_needs_smtputf8_is_answered_in_his_place() -> None:
    site = Site(ALICE, UTF8, BOB, envelope=Envelope(b"<s@x>", smtputf8=True))
    assert site.theirs.recv(1000) == b"MAIL FROM:<s@x>\r\nRCPT TO:<alice@x>\r\nRCPT TO:<bob@x>\r\nDATA\r\n"
    assert site.hear(YES * 3 + DATA)
    yes = site.delivery.rcpt_replies[0]
    assert list(site.delivery.rcpt_replies) == [yes, say.NO_SMTPUTF8, yes] and yes.positive
    assert [each.recipient for each in site.delivery.accounts.accepted] == [ALICE, BOB]
    assert site.pool.counts.bounced == 1
    site.close()
