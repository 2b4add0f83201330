# SPDX-License-Identifier: GPL-3.0-or-later
"""A delivery to a backend that has no room for the final dot: nothing is sent without another look at the route.

In TLS, too, where half a record with the dot may be in the kernel already.
"""

import socket
import ssl
import time
from _socket import socket as Socket
from collections.abc import Iterator

import pytest

from lmtp_proxy.backends.failure import Failure
from lmtp_proxy.backends.session import BackendSession
from lmtp_proxy.backends.tls_peer import TlsPeer
from lmtp_proxy.backends.tls_session import TlsSession
from lmtp_proxy.config.values import Backend, Config, Timeouts, UnixAddress
from lmtp_proxy.delivery.commit import Message, ProcessParts
from lmtp_proxy.delivery.delivery import Delivery
from lmtp_proxy.delivery.in_flight import InFlight
from lmtp_proxy.delivery.state import DeliveryState
from lmtp_proxy.delivery.uncertain_log import UncertainLog
from lmtp_proxy.generations.generation import Generation, first_generation, next_generation
from lmtp_proxy.loop.stream import Stream
from lmtp_proxy.routing.static_table import StaticTable
from lmtp_proxy.wire.client import ClientState
from lmtp_proxy.wire.envelope import Envelope, Recipient
from tests.support.certificates import Authority
from tests.support.tls_peer import Narrow, connect

OLD, NEW = (Backend(name, UnixAddress(f"/{name}"), timeouts=Timeouts(final_reply=2)) for name in ("old", "new"))
ALICE = Recipient(b"<alice@x>", "alice", "x")
BODY = b"Subject: x\r\n\r\n"


def config(backend: str) -> Config:
    users = StaticTable({"alice@x": backend})
    return Config("/c", (UnixAddress("/s"),), "proxy", backends={"old": OLD, "new": NEW}, users=users)


class Site:
    """A delivery to `old` in the middle of its data, on a connection whose buffers are full."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.generation: Generation = first_generation(config("old"))
        self.in_flight = InFlight()
        cutover = ProcessParts(
            lambda: self.generation, self.in_flight, UncertainLog(lambda: self.generation, self.in_flight)
        )
        pool = self.generation.pools["old"]
        self.delivery = Delivery(pool, Message("8f3a", Envelope(b"<s@x>")), cutover)
        session = BackendSession(OLD, "proxy")
        session.stream = Stream(Socket(fileno=ours.detach()))
        self.stream = session.stream
        self.delivery.session = session
        self.delivery.state = DeliveryState.DATA
        session.protocol.state = ClientState.DATA
        session.protocol.expected = ()
        self.delivery.accounts.accepted = [self.generation.destinations.of(ALICE)]
        pool._taken = 1

    def fill(self) -> None:
        while not self.stream.full:
            self.stream.send(b"x" * 4096)

    def moved(self) -> None:
        self.generation = next_generation(config("new"), self.generation)

    def read(self) -> bytes:
        """All that has come."""
        octets = b""
        try:
            while more := self.theirs.recv(65536, socket.MSG_DONTWAIT):
                octets += more
        except (BlockingIOError, ConnectionResetError):
            pass
        return octets

    def say(self, octets: bytes) -> None:
        self.theirs.send(octets)

    @property
    def waited_for(self) -> bool:
        rules = self.generation.config.key_rules
        return bool(self.in_flight.drain({"alice@x"}, rules, self.in_flight.last))

    def room(self) -> bytes:
        """Read, and let the loop notice."""
        octets = self.read()
        self.stream.wait(time.monotonic() + 20)
        return octets


class SecureSite(Site):
    """The same in TLS: what is in the kernel's way is that it takes nothing, until something is read."""

    def __init__(self, authority: Authority) -> None:
        super().__init__()
        self.stream.close()
        self.theirs.close()
        self.peer = connect(authority)
        self.theirs = self.peer.sock
        self.stream = self.peer.stream
        session = TlsSession(OLD, "proxy", TlsPeer())
        session.stream = self.peer.stream
        session.protocol.state = ClientState.DATA
        session.protocol.expected = ()
        self.delivery.session = session
        self.kernel = Narrow(self.peer.stream, 10**6)

    def fill(self) -> None:
        self.kernel.room = 0

    def read(self) -> bytes:
        self.kernel.room = 10**6
        try:
            return self.peer.heard()
        except ssl.SSLError:
            return b""

    def say(self, octets: bytes) -> None:
        self.peer.put(self.peer.record(octets))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    authority = Authority(tmp_path_factory.mktemp("ca"))
    authority.sign("peer")
    return authority


@pytest.fixture(params=["plain", "tls", "tls, half a record"])
def site(request: pytest.FixtureRequest, authority: Authority) -> Iterator[Site]:
    site = Site() if request.param == "plain" else SecureSite(authority)
    if isinstance(site, SecureSite) and request.param != "tls":
        site.fill = lambda: setattr(site.kernel, "room", 10)  # type: ignore[method-assign]
    yield site
    site.delivery.abandon()
    site.stream.close()
    site.theirs.close()
    assert len(site.in_flight) == 0


@pytest.mark.parametrize("last", [b"", BODY])
def test_a_dot_without_room_is_stepped_back_from_and_looked_at_again(site: Site, last: bytes) -> None:
    site.fill()
    # `finish` is never called while the stream is full; a socket that has just become so comes to the same.
    site.stream.full = False
    site.delivery.finish(last, time.monotonic())
    assert not site.delivery.advance()
    received = site.read()
    while not site.waited_for:
        received += site.room()
        assert not site.delivery.advance()
    received += site.read()
    assert received.endswith(last + b".\r\n") and received.count(b".") == 1
    site.say(b"250 2.0.0 stored\r\n")
    while not site.delivery.advance():
        site.stream.wait(time.monotonic() + 20)
    assert [reply.positive for reply in site.delivery.accounts.final] == [True]


@pytest.mark.parametrize("last", [b"", BODY])
def test_a_route_that_changed_while_there_was_no_room_sends_no_dot(site: Site, last: bytes) -> None:
    site.fill()
    site.stream.full = False
    site.delivery.finish(last, time.monotonic())
    assert not site.delivery.advance()
    site.moved()
    while not site.delivery.advance():
        assert b"." not in site.room()
    assert site.delivery.accounts.final == [Failure.ROUTE.reply]
    assert "may be delivered" not in site.delivery.trouble
    assert b"." not in site.read()  # the end, without a dot


def test_no_room_until_the_deadline(site: Site) -> None:
    site.fill()
    site.stream.full = False
    site.delivery.finish(b"", time.monotonic() - 1.9)
    session = site.delivery.session
    assert session is not None
    while not site.delivery.advance():
        site.stream.wait(session.deadline.due)
    assert site.delivery.accounts.final == [Failure.SILENT.reply]
    assert "may be delivered" not in site.delivery.trouble


@pytest.mark.parametrize("site", ["plain"], indirect=True)
def test_a_part_of_the_dot_that_went_out_is_waited_for_and_uncertain(site: Site) -> None:
    """The rest goes out without another look: what has begun cannot be taken back."""
    site.fill()
    site.stream.full = False
    sent: list[int] = []

    def one_octet(octets: bytes, flags: int = 0) -> int:
        sent.append(len(octets))
        return 1

    site.stream._send = one_octet  # type: ignore[assignment]
    site.delivery.finish(b"", time.monotonic())
    assert site.waited_for and sent == [3]
    site.moved()
    assert not site.delivery.advance() and site.waited_for
    site.theirs.close()
    while not site.delivery.advance():
        site.stream.wait(time.monotonic() + 20)
    assert site.delivery.accounts.final == [Failure.SILENT.reply]
    assert "may be delivered" in site.delivery.trouble
