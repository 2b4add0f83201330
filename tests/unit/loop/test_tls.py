# SPDX-License-Identifier: GPL-3.0-or-later
"""A Stream in TLS beside a peer that has each octet of its own in hand: records, ends, what was sent and what was not.

That it is a Stream like any other is test_stream's.
"""

import ssl
import subprocess
import time
from _socket import socket as Socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import gevent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtp_proxy.loop.tls import TlsBroken, TlsStream
from lmtp_proxy.loop.tls_context import WrongKey, client_context
from tests.support.certificates import Authority
from tests.support.patience import SOON
from tests.support.tls_peer import Narrow, Peer, client, connect, soon

DOT = b".\r\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    authority = Authority(tmp_path_factory.mktemp("ca"))
    authority.sign("peer")
    return authority


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def peer(request: pytest.FixtureRequest, authority: Authority) -> Iterator[Peer]:
    peer = connect(authority, latest=request.param)
    yield peer
    peer.close()


# --- what comes ------------------------------------------------------------------------------------------------------


def test_half_a_record_has_not_come_and_the_whole_one_has(peer: Peer) -> None:
    record = peer.record(b"250 ok\r\n")
    peer.put(record[:-1], 1)
    assert not peer.stream.look() and peer.stream.received == b""
    peer.put(record[-1:])
    assert peer.stream.look() and peer.stream.take() == b"250 ok\r\n"


def test_a_wait_is_not_ended_by_what_tells_nothing(authority: Authority) -> None:
    peer = connect(authority)
    began = time.monotonic()
    gevent.spawn_later(0.02, peer.put, peer.record(b"")[:3])
    assert not peer.stream.wait(began + 0.1) and time.monotonic() - began > 0.09
    peer.close()


def test_close_notify_behind_data_is_the_end_after_it(peer: Peer) -> None:
    ends: list[bool] = []
    peer.stream.on_event = lambda: ends.append(peer.stream.ended)
    peer.put(peer.record(b"last ") + peer.record(b"words") + peer.end())
    gevent.sleep(0.02)
    assert peer.stream.ended and peer.stream.error is None and ends == [True]
    assert peer.stream.take() == b"last words"


def test_the_end_without_close_notify_amid_a_record_is_an_end(peer: Peer) -> None:
    peer.put(peer.record(b"whole") + peer.record(b"half")[:-1])
    peer.sock.close()
    gevent.sleep(0.02)
    assert peer.stream.ended and peer.stream.error is None and peer.stream.take() == b"whole"


@pytest.mark.parametrize("octets", [b"250 ok\r\n", b"\x17\x03\x03\x00\x20" + bytes(32), b"\xff" * 20])
def test_what_is_no_tls_ends_it_and_what_came_before_is_there(peer: Peer, octets: bytes) -> None:
    peer.put(peer.record(b"whole") + octets)
    gevent.sleep(0.02)
    stream = peer.stream
    assert stream.ended and isinstance(stream.error, TlsBroken) and stream.take() == b"whole"
    assert str(stream.error).startswith("TLS: ")
    with pytest.raises(OSError):
        stream.send(b"x")


def test_an_alert_is_told(authority: Authority) -> None:
    """As where the server wants a certificate of the client, which TLS 1.3 says behind the handshake only."""
    context = authority.signed["peer"].server(verify_mode=ssl.CERT_REQUIRED)
    context.load_verify_locations(authority.path)
    peer = Peer(context)

    def shake() -> None:
        try:
            peer.shake(soon())
        except ssl.SSLError:
            peer.put(peer._out.read())

    gevent.spawn(shake)
    peer.stream.start_tls(client(authority), "peer", soon())
    assert peer.stream.wait(soon()) and peer.stream.ended
    assert "certificate required" in str(peer.stream.error)
    peer.close()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_wherever_records_begin_and_segments_end_the_octets_are_the_same(
    authority: Authority, data: st.DataObject
) -> None:
    pieces = data.draw(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=8))
    latest = data.draw(st.sampled_from([ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]))
    with closing(connect(authority, latest=latest)) as peer:
        octets = b"".join(map(peer.record, pieces)) + peer.end()
        cuts = sorted(data.draw(st.sets(st.integers(0, len(octets)), max_size=12)))
        received = b""
        for begin, end in zip([0, *cuts], [*cuts, len(octets)], strict=True):
            peer.put(octets[begin:end])
            if data.draw(st.booleans()):
                peer.stream.look()
                received += peer.stream.take()
        gevent.sleep(0.005)
        received += peer.stream.take()
        assert received == b"".join(pieces) and peer.stream.ended and peer.stream.error is None


@pytest.mark.parametrize("command, version", [("R", "-tls1_2"), ("K", "-tls1_3"), ("k", "-tls1_3")])
def test_what_tls_says_by_itself_amid_the_conversation_is_no_octet_of_it(
    authority: Authority, command: str, version: str
) -> None:
    """s_server(1) asks for a renegotiation, which there is none of; or takes a new key and, with K, wants one of us."""
    signed = authority.signed["peer"]
    server = subprocess.Popen(
        ["openssl", "s_server", version, "-accept", "127.0.0.1:0", "-cert", signed.certificate, "-key", signed.key],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
    )  # fmt: skip
    assert server.stdin is not None and server.stdout is not None
    try:
        while b"ACCEPT " not in (line := server.stdout.readline()):
            assert line
        sock = Socket()
        sock.connect(("127.0.0.1", int(line.rpartition(b":")[2])))
        stream = TlsStream(sock)
        stream.start_tls(client(authority), "peer", soon())
        server.stdin.write(command.encode() + b"\n")
        if command == "R":
            assert stream.wait(soon()), "s_server gives up"
            assert stream.ended and stream.received == b"" and not isinstance(stream.error, ssl.SSLError)
        else:
            deadline = soon()
            server.stdin.write(b"250 ok\n")
            while not stream.wait(time.monotonic() + 0.3) and time.monotonic() < deadline:
                server.stdin.write(b"250 ok\n")  # it drops what comes along with its command
            assert set(stream.take().split(b"\n")) == {b"250 ok", b""}
            assert stream.send(b"RSET\r\n") == 6
            while b"RSET" not in (line := server.stdout.readline()):
                assert line
        stream.close()
    finally:
        server.kill()
        server.communicate()


def test_a_peer_that_has_nothing_to_say_and_says_it_without_end(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TLS as much would have filled what is taken in ahead."""
    stream = peer.stream
    monkeypatch.setattr(TlsStream, "_read", lambda stream: b"")  # OpenSSL's own server has two tickets, and no more
    for _ in range(40):
        peer.put(bytes(16384))
        if stream.ended:
            break
        gevent.sleep(0.001)
    assert stream.ended and isinstance(stream.error, TlsBroken)


# --- what goes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [b"", b"the end\r\n", b"x" * 40_000])
def test_whatever_room_there_is_the_dot_is_out_whole_or_not_at_all(authority: Authority, last: bytes) -> None:
    peer = connect(authority)
    of_last = len(peer.record(last)) if last else 0
    of_dot = len(peer.record(DOT))
    total = of_last + of_dot
    peer.close()
    for room in sorted({0, 1, of_last // 2, *(max(0, total - less) for less in range(of_dot + 3)), total}):
        peer = connect(authority)
        kernel = Narrow(peer.stream, room)
        sent = peer.stream.send_apart(last + DOT, len(DOT))
        assert peer.stream.full is (room < total)
        if room < total:
            assert sent <= len(last), "not so much as an octet of it is told as sent"
            # As for a commit point that steps back: what is before the dot goes, and the dot does not.
            peer.stream.keep(memoryview(last)[sent:])
            kernel.room = 10**6
            assert peer.stream.wait_for_room(soon())
            assert peer.heard() == last
            assert peer.stream.send_apart(DOT, len(DOT)) == len(DOT)
            assert peer.heard() == DOT
        else:
            assert sent == len(last + DOT)
            assert peer.heard() == last + DOT
        peer.close()


def test_a_dot_that_was_not_wanted_any_more_was_not_there(authority: Authority) -> None:
    """Closed with the half of its record in the kernel: nobody can read it."""
    peer = connect(authority)
    of_dot = len(peer.record(DOT))
    peer.close()
    peer = connect(authority)
    Narrow(peer.stream, of_dot - 1)
    gevent.sleep(0.01)  # what was not read would make it a reset
    assert peer.stream.send_apart(DOT, len(DOT)) == 0
    peer.stream.close()
    assert peer.heard() == b""
    with pytest.raises(ssl.SSLError):  # no close_notify behind it, either
        peer.tls.unwrap()
    peer.close()


def test_a_long_message_goes_through_a_narrow_kernel_in_order(authority: Authority) -> None:
    peer = connect(authority)
    kernel = Narrow(peer.stream, 0)
    message = bytes(range(256)) * 1000
    sent = peer.stream.send(message)
    peer.stream.keep(memoryview(message)[sent:])
    heard = b""
    for room in [1, 17, 16_000, 500, 70_000, 65_536, 3, 200_000]:
        kernel.room = room
        gevent.sleep(0.01)
        heard += peer.heard()
        assert message.startswith(heard) and len(peer.stream._pending) <= 1
    assert heard == message and not peer.stream.full
    peer.close()


def test_other_octets_than_those_that_were_encrypted_are_refused(authority: Authority) -> None:
    peer = connect(authority)
    kernel = Narrow(peer.stream, 3)
    assert peer.stream.send(b"one") == 0
    kernel.room = 1000
    with pytest.raises(TlsBroken):
        peer.stream.send(b"two")
    peer.close()


def test_the_end_is_told_to_the_peer(peer: Peer) -> None:
    gevent.sleep(0.01)  # what was not read would make it a reset
    peer.stream.send(b"x")
    peer.stream.close()
    peer.take_in()
    assert peer.tls.read(10) == b"x" and peer.tls.read(10) == b""


# --- the handshake ---------------------------------------------------------------------------------------------------


def failing(authority: Authority, act: Callable[[Peer], object], seconds: float = SOON) -> OSError:
    peer = Peer(authority.signed["peer"].server())
    acting = gevent.spawn(act, peer)
    with pytest.raises(OSError) as failed:
        peer.stream.start_tls(client(authority), "peer", time.monotonic() + seconds)
    acting.kill()
    peer.close()
    return failed.value


def test_silence_amid_the_handshake_ends_at_the_deadline(authority: Authority) -> None:
    began = time.monotonic()
    assert isinstance(failing(authority, lambda peer: None, 0.1), TimeoutError)
    assert time.monotonic() - began < SOON


def test_a_trickle_ends_at_the_deadline(authority: Authority) -> None:
    def drip(peer: Peer) -> None:
        while True:
            gevent.sleep(0.01)
            peer.sock.send(next(octets))

    octets = iter(b"%c" % octet for octet in b"\x16\x03\x03\x40\x00" + bytes(10_000))
    assert isinstance(failing(authority, drip, 0.2), TimeoutError)


def test_octet_by_octet_it_is_a_handshake(authority: Authority) -> None:
    peer = Peer(authority.signed["peer"].server())

    def shake() -> None:
        put = peer.put
        peer.put = lambda octets, size=1: put(octets, 1)  # type: ignore[method-assign]
        peer.shake(soon())

    gevent.spawn(shake)
    peer.stream.start_tls(client(authority), "peer", soon())
    assert peer.stream.tls is not None and peer.stream.tls.version() == "TLSv1.3"
    peer.close()


@pytest.mark.parametrize("after", [0, 1, 5, 100, 600])
def test_a_peer_that_vanishes_amid_it(authority: Authority, after: int) -> None:
    def vanish(peer: Peer) -> None:
        gevent.sleep(0.02)
        peer.take_in()
        with pytest.raises(ssl.SSLWantReadError):
            peer.tls.do_handshake()
        peer.sock.send(peer._out.read()[:after])
        peer.sock.close()

    error = failing(authority, vanish)
    assert isinstance(error, ConnectionError) and not isinstance(error, ssl.SSLError)


def test_plain_text_is_no_handshake(authority: Authority) -> None:
    error = failing(authority, lambda peer: peer.sock.send(b"220 ready\r\n"))
    assert isinstance(error, ssl.SSLError) and "wrong version number" in str(error)


def test_a_session_is_resumed_and_not_with_another_peer(authority: Authority) -> None:
    context, server = client(authority), authority.signed["peer"].server()
    sessions: list[ssl.SSLSession | None] = []
    for expected in (False, True):
        peer = Peer(server)
        shaking = gevent.spawn(peer.shake, soon())
        peer.stream.start_tls(context, "peer", soon(), sessions[-1] if sessions else None)
        shaking.join(SOON)
        peer.put(peer.record(b"x"))
        assert peer.stream.wait(soon())
        assert peer.stream.tls is not None and peer.stream.tls.session_reused is expected
        sessions.append(peer.stream.tls.session)
        peer.close()


# --- the context -----------------------------------------------------------------------------------------------------


def test_a_certificate_and_its_key_are_taken_from_memory_and_what_is_wrong_is_said(authority: Authority) -> None:
    ours, other = authority.sign("ours", client=True), authority.sign("other", client=True)
    ca, certificate, key = (Path(path).read_bytes() for path in (authority.path, ours.certificate, ours.key))

    def context(ca: bytes | None, certificate: bytes, key: bytes) -> ssl.SSLContext:
        return client_context(verify=True, name=True, ca=ca, certificate=certificate, key=key)

    assert context(ca, certificate, key).minimum_version == ssl.TLSVersion.TLSv1_2
    assert context(ca, certificate + key, certificate + key).check_hostname
    with pytest.raises(ValueError, match="holds no certificate"):
        context(b"", certificate, key)
    with pytest.raises(ValueError, match="holds no certificate"):
        context(None, key, key)
    with pytest.raises(WrongKey, match="is not the key of tls_cert"):
        context(None, certificate, Path(other.key).read_bytes())
    with pytest.raises(WrongKey, match="holds no private key"):
        context(None, certificate, certificate)
