# SPDX-License-Identifier: GPL-3.0-or-later
"""What both sides rely on in a Stream, over unix and TCP sockets and in TLS: what has come, room, waits, deadlines, the
end."""

import math
import socket
import ssl
import struct
import sys
import threading
import time
from _socket import MSG_MORE
from _socket import socket as Socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from lmtp_proxy.loop.stream import AHEAD, BULK, Stream, wait_for_any
from lmtp_proxy.loop.tls import TlsStream
from lmtp_proxy.loop.tls_context import client_context
from tests.support.certificates import Authority
from tests.support.patience import SOON

Pair = tuple[Stream, socket.socket]


class Secure(ssl.SSLSocket):
    """One that blocks as any other socket does."""

    def recv(self, *arguments: Any) -> Any:
        return self._unblocked(super().recv, *arguments)

    def send(self, *arguments: Any) -> Any:
        return self._unblocked(super().send, *arguments)

    def _unblocked(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            raise BlockingIOError from error


def secure_pair(authority: Authority) -> tuple[TlsStream, Secure]:
    """After the handshake, over TCP."""
    plain, peer = connected_sockets()
    server = (authority.signed.get("peer") or authority.sign("peer")).server(sslsocket_class=Secure)
    theirs = server.wrap_socket(peer, server_side=True, do_handshake_on_connect=False)
    stream = TlsStream(plain)
    context = client_context(verify=True, name=True, ca=Path(authority.path).read_bytes(), certificate=None, key=None)
    shaking = threading.Thread(target=theirs.do_handshake)
    shaking.start()
    stream.start_tls(context, "peer", soon())
    shaking.join()
    assert isinstance(theirs, Secure)
    return stream, theirs


def connected_sockets() -> tuple[Socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs = listener.accept()[0]
    theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what TLS says by itself holds nothing up
    theirs.settimeout(5)
    return Socket(fileno=ours.detach()), theirs


def pair(kind: str) -> Pair:
    if kind == "tcp":
        plain, peer = connected_sockets()
        return Stream(plain), peer
    ours, theirs = socket.socketpair()
    theirs.settimeout(5)
    return Stream(Socket(fileno=ours.detach())), theirs


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(params=["unix", "tcp", "tls"])
def connected(request: pytest.FixtureRequest, authority: Authority) -> Iterator[Pair]:
    stream, peer = secure_pair(authority) if request.param == "tls" else pair(request.param)
    yield stream, peer
    stream.close()
    peer.close()


def soon(seconds: float = 2 * SOON) -> float:
    return time.monotonic() + seconds


def later(call: Callable[[], object], seconds: float = 0.02) -> None:
    gevent.spawn_later(seconds, call)


def test_what_comes_is_taken_once_and_in_order(connected: Pair) -> None:
    stream, peer = connected
    assert stream.take() == b"" and not stream.look()
    peer.sendall(b"one")
    assert stream.look() and stream.received == b"one"  # without the loop
    peer.sendall(b"two")
    deadline = soon()
    while stream.received != b"onetwo" and time.monotonic() < deadline:  # by the loop
        gevent.sleep(0.001)
    assert stream.take() == b"onetwo" and stream.take() == b""


def test_a_wait_ends_when_something_comes(connected: Pair) -> None:
    stream, peer = connected
    later(lambda: peer.sendall(b"x"))
    began = time.monotonic()
    assert stream.wait(soon())
    assert stream.take() == b"x" and time.monotonic() - began < SOON


def test_what_was_not_taken_need_not_be_waited_for(connected: Pair) -> None:
    stream, peer = connected
    peer.sendall(b"x")
    gevent.sleep(0.02)
    began = time.monotonic()
    assert stream.wait(soon()) and wait_for_any([stream], soon())
    assert time.monotonic() - began < SOON


def test_a_wait_ends_at_its_deadline_whatever_others_wait_for(connected: Pair) -> None:
    stream, _ = connected
    other, their = pair("unix")
    lengths: list[float] = []

    def wait(which: Stream, seconds: float) -> None:
        began = time.monotonic()
        assert not which.wait(began + seconds)
        lengths.append(time.monotonic() - began)

    # The later deadline is known first; an earlier one that is over leaves the others alone.
    waits = [gevent.spawn(wait, stream, 1.0), gevent.spawn(wait, other, 0.1)]
    gevent.joinall(waits, raise_error=True, timeout=SOON)
    assert 0.09 < lengths[0] < 0.99 < lengths[1] < SOON
    began = time.monotonic()
    assert not stream.wait(began - 1)
    assert time.monotonic() - began < SOON
    other.close()
    their.close()


def test_the_first_of_several_ends_the_wait_and_the_others_can_be_waited_for_again(connected: Pair) -> None:
    stream, peer = connected
    other, their = pair("unix")
    later(lambda: their.sendall(b"x"))
    assert wait_for_any([stream, other], soon())
    assert (stream.received, other.take()) == (b"", b"x")
    assert not wait_for_any([stream, other], soon(0.05))
    later(lambda: peer.sendall(b"y"))
    assert stream.wait(soon()) and stream.take() == b"y"
    other.close()
    their.close()


@pytest.mark.parametrize("how", ["close", "half"])
def test_the_end_is_noticed_while_nobody_reads_and_what_came_before_it_is_there(connected: Pair, how: str) -> None:
    stream, peer = connected
    events: list[bool] = []
    stream.on_event = lambda: events.append(stream.ended)
    peer.sendall(b"last words")
    if how == "close":
        peer.close()
    else:
        peer.shutdown(socket.SHUT_WR)
    gevent.sleep(0.05)
    assert stream.ended and stream.error is None and events[-1] is True
    assert stream.take() == b"last words"
    assert stream.wait(soon())  # at once


def test_a_reset_is_an_end_with_an_error() -> None:
    stream, peer = pair("tcp")
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    assert stream.wait(soon())
    assert stream.ended and isinstance(stream.error, ConnectionResetError)
    stream.close()


def test_what_nobody_takes_waits_in_the_kernel(connected: Pair) -> None:
    stream, peer = connected
    peer.setblocking(False)
    sent = 0
    last = time.monotonic()
    while time.monotonic() - last < 0.2:
        try:
            sent += peer.send(b"x" * 65536)
            last = time.monotonic()
        except BlockingIOError:
            pass
        gevent.sleep(0.001)
    assert stream.paused and AHEAD <= len(stream.received) < 2 * AHEAD
    assert stream.ahead(100) is None
    whole = stream.ahead(1 << 30)
    assert whole is not None and whole.startswith(stream.received) and len(whole) > AHEAD
    got = len(stream.take())
    while got < sent:
        assert stream.wait(soon())
        got += len(stream.take())
    assert got == sent and not stream.paused


def test_who_waits_for_much_gets_it_in_larger_pieces() -> None:
    stream, peer = pair("tcp")
    peer.setblocking(False)
    pieces: list[int] = []

    def flood() -> None:
        while len(pieces) < 50:
            try:
                peer.send(b"x" * BULK)
            except BlockingIOError:
                pass
            gevent.sleep(0)

    flooding = gevent.spawn(flood)
    while len(pieces) < 50:
        assert stream.wait(soon())
        pieces.append(len(stream.take()))
    flooding.join(5)
    assert pieces[0] <= AHEAD < max(pieces) <= BULK
    while stream.wait(soon(0.1)):
        stream.take()
    peer.send(b"x")
    assert stream.wait(soon()) and stream.take() == b"x"
    peer.setblocking(True)
    gevent.spawn(peer.sendall, b"y" * AHEAD)
    assert stream.wait(soon()) and len(stream.take()) <= AHEAD
    stream.close()
    peer.close()


def test_what_went_out_is_not_held_any_longer(connected: Pair) -> None:
    stream, peer = connected
    message = bytes(10_000_000)
    references = sys.getrefcount(message)
    sent = stream.send(message)
    stream.keep(memoryview(message)[sent:])
    peer.setblocking(False)

    def read() -> None:
        while stream.full:
            try:
                peer.recv(1 << 20)
            except BlockingIOError:
                pass
            gevent.sleep(0)

    reading = gevent.spawn(read)
    assert stream.wait_for_room(soon(10))
    reading.join(5)
    assert sys.getrefcount(message) == references


def test_a_flood_while_room_is_waited_for_is_bounded_too(connected: Pair) -> None:
    stream, peer = connected
    while not stream.full:
        stream.send(b"y" * 65536)
    peer.setblocking(False)

    def flood() -> None:
        for _ in range(2000):
            try:
                peer.send(b"x" * 65536)
            except BlockingIOError:
                pass
            gevent.sleep(0)

    flooding = gevent.spawn(flood)
    assert not stream.wait_for_room(soon(0.3))
    assert len(stream.received) < 2 * AHEAD
    flooding.kill()


def test_what_found_no_room_goes_out_when_there_is_some(connected: Pair) -> None:
    stream, peer = connected
    message = bytes(range(256)) * 40_000
    sent = stream.send(message)
    assert 0 < sent < len(message)
    stream.keep(message[sent:])
    assert not stream.wait_for_room(soon(0.05))
    received = b""

    def read() -> None:
        nonlocal received
        peer.setblocking(False)
        while len(received) < len(message):
            try:
                received += peer.recv(1 << 20)
            except BlockingIOError:
                gevent.sleep(0.001)

    reading = gevent.spawn(read)
    assert stream.wait_for_room(soon(10))
    reading.join(5)
    assert received == message
    assert stream.send(b"more") == 4


def test_a_peer_that_goes_while_room_is_waited_for(connected: Pair) -> None:
    stream, peer = connected
    while not stream.full:
        stream.send(b"y" * 65536)
    stream.keep(b"y" * 65536)
    later(peer.close)
    with pytest.raises(OSError):
        stream.wait_for_room(soon())
    assert stream.ended


def test_the_last_octets_arrive_whatever_the_peer_has_said_meanwhile() -> None:
    """They wait for the end of the stream to go along, and closing with unread octets throws away what waits."""
    stream, peer = pair("tcp")
    peer.sendall(b"more")
    assert stream.send(b"bye", MSG_MORE) == 3
    peer.settimeout(0.05)
    with pytest.raises(TimeoutError):
        peer.recv(10)
    peer.settimeout(5)
    stream.finish()
    stream.close()
    assert peer.recv(10) == b"bye"
    peer.close()


def test_a_closed_stream_is_at_its_end_and_may_be_closed_again(connected: Pair) -> None:
    stream, peer = connected
    stream.finish()
    assert peer.recv(10) == b""
    stream.close()
    stream.close()
    assert stream.ended and stream.fileno() == -1 and stream.take() == b""
    assert "ended" in repr(stream)
    with pytest.raises(OSError):
        stream.send(b"x")


def test_a_thousand_waits_cost_one_timer() -> None:
    stream, peer = pair("unix")
    deadlines = stream._deadlines
    deadlines.due = math.inf
    due = set()
    for _ in range(1000):
        later(lambda: peer.send(b"x"), 0)
        assert stream.wait(soon(60))
        stream.take()
        due.add(deadlines.due)
    assert len(due) == 1 and not any(each._waiter for each in deadlines.streams)
    stream.close()
    peer.close()


def test_what_the_peers_host_has_not_acknowledged_is_known(connected: Pair) -> None:
    """Of TCP: a unix socket has no host between. What is not read, but was taken, is delivered."""
    stream, peer = connected
    assert not stream.undelivered()
    stream.send(b"x")
    time.sleep(0.05)
    assert not stream.undelivered()
    tcp = peer.family == socket.AF_INET
    while not stream.full:
        stream.send(b"x" * 65536)
    assert stream.undelivered() is tcp
