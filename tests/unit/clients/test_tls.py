# SPDX-License-Identifier: GPL-3.0-or-later
"""TLS with a client: where the handshake runs, who is let in, and what can be seen of a client that is ahead."""

from __future__ import annotations

import ssl
import threading
import time
from _socket import socket as Socket
from pathlib import Path
from socket import socketpair

import gevent
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmtp_proxy.clients.tls import ClientTls, SpokenTls
from lmtp_proxy.clients.watch import ClientGone, ClientWatch
from lmtp_proxy.config.values import ListenerTls, PemFile
from lmtp_proxy.counts import Tallies
from lmtp_proxy.loop.stream import AHEAD
from lmtp_proxy.loop.tls import TlsStream
from tests.support.certificates import Authority, Signed
from tests.support.patience import SOON


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("ca"))
    made.sign("proxy")
    made.sign("mx1.test", client=True)
    return made


class Client:
    """In a thread of its own."""

    def __init__(self, authority: Authority, certificate: Signed | None = None) -> None:
        ours, self.sock = socketpair()
        self.server = Socket(ours.family, ours.type, ours.proto, ours.detach())
        self.sock.settimeout(SOON)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(authority.path)
        if certificate is not None:
            context.load_cert_chain(certificate.certificate, certificate.key)
        self.tls: ssl.SSLSocket | None = None
        self._context = context
        self._thread = threading.Thread(target=self._shake)
        self._thread.start()

    def _shake(self) -> None:
        self.tls = self._context.wrap_socket(self.sock, server_hostname="proxy")

    def shaken(self) -> ssl.SSLSocket:
        self._thread.join(SOON)
        assert self.tls is not None
        return self.tls


def pem(path: str) -> PemFile:
    return PemFile(path, Path(path).read_bytes())


def keys(authority: Authority, **more: object) -> ListenerTls:
    ours = authority.signed["proxy"]
    return ListenerTls(pem(ours.certificate), pem(ours.key), **more)  # type: ignore[arg-type]


def shake(tls: ClientTls, client: Client) -> tuple[SpokenTls, TlsStream]:
    stream = tls.stream(client.server)
    spoken = tls.shake_hands(stream, "s", "p", SOON)
    client.shaken()
    return spoken, stream


def test_each_step_is_done_in_a_thread(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub goes on meanwhile, however long it takes."""
    threads = []
    real = ssl.SSLObject.do_handshake

    def slowly(self: ssl.SSLObject) -> None:
        if self.server_side:
            threads.append(threading.get_ident())
            time.sleep(0.2)
        real(self)

    monkeypatch.setattr(ssl.SSLObject, "do_handshake", slowly)
    turns = 0

    def others() -> None:
        nonlocal turns
        while True:
            gevent.sleep(0.001)
            turns += 1

    going = gevent.spawn(others)
    tallies = Tallies()
    client = Client(authority)
    spoken, stream = shake(ClientTls(keys(authority), tallies), client)
    going.kill()
    stream.close()
    client.shaken().close()
    assert threads and threading.get_ident() not in threads
    assert turns > 20 and tallies.in_tls == 1 and str(spoken) == f"{spoken.version}, {spoken.cipher}"


@pytest.mark.parametrize(
    "entry, allowed",
    [("mx1.test", True), ("MX1.test", True), ("CN=mx1.test", True), ("CN=mx1.test, O=x", False), ("mx", False)],
)
def test_who_is_allowed(authority: Authority, entry: str, allowed: bool) -> None:
    tls = ClientTls(keys(authority, ca=pem(authority.path), allow_subjects=("other", entry)), Tallies())
    client = Client(authority, authority.signed["mx1.test"])
    spoken, stream = shake(tls, client)
    stream.close()
    client.shaken().close()
    assert (spoken.allowed, spoken.subject) == (allowed, "CN=mx1.test")


def test_a_name_that_looks_like_a_whole_subject_is_none(authority: Authority) -> None:
    """A CA that lets its clients choose their common name is not made to say more than it has."""
    subject = "CN=mx1, O=Example"
    tls = ClientTls(keys(authority, ca=pem(authority.path), allow_subjects=(subject,)), Tallies())

    class Shown:
        def __init__(self, *parts: tuple[str, str]) -> None:
            self.parts = parts

        def getpeercert(self) -> dict[str, object]:
            return {"subject": tuple((part,) for part in self.parts)}

    assert tls._is_allowed(subject, Shown(("commonName", "mx1"), ("organizationName", "Example")))  # type: ignore[arg-type]
    assert not tls._is_allowed(subject, Shown(("commonName", "mx1, O=Example")))  # type: ignore[arg-type]


@pytest.mark.parametrize("ends", [b"\r\n.\r\nQUIT\r\n", b"and no end"])
def test_what_is_ahead_of_a_paused_client_is_looked_at(authority: Authority, ends: bytes) -> None:
    """It has closed, and its end stands behind more than is taken in."""
    client = Client(authority)
    _, stream = shake(ClientTls(keys(authority), Tallies()), client)
    watch = ClientWatch(stream, lambda octets: octets.endswith(ends) and ends.startswith(b"\r\n.\r\n"))
    tls = client.shaken()
    try:
        tls.settimeout(0.2)
        sent = b""
        piece = b"x" * 16000
        while len(sent) < AHEAD + 32000:
            tls.sendall(piece)
            sent += piece
            gevent.sleep(0.001)
        until = time.monotonic() + SOON
        while not stream.paused and time.monotonic() < until:
            gevent.sleep(0.001)
        assert stream.paused
        tls.sendall(ends)
        tls.shutdown(2)
        if ends.startswith(b"\r\n"):
            watch.begin()
        else:
            with pytest.raises(ClientGone):
                watch.begin()
        watch.waiting = None
        assert stream.take() == sent + ends
    finally:
        stream.close()
        tls.close()


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(1, 3000), max_size=8),
    st.lists(st.integers(1, 4000), max_size=12),
    st.sampled_from([ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]),
)
def test_cut_into_any_records_and_any_segments_it_is_the_same(
    authority: Authority, records: list[int], segments: list[int], latest: ssl.TLSVersion
) -> None:
    """Handshake included. records, segments: octets of each but the last one."""
    ours, sock = socketpair()
    sock.setblocking(False)
    tls = ClientTls(keys(authority), Tallies())
    stream = tls.stream(Socket(ours.family, ours.type, ours.proto, ours.detach()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority.path)
    context.maximum_version = latest
    heard, says = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(heard, says, server_hostname="proxy")
    sizes = [*segments]

    def put(octets: bytes) -> None:
        while octets:
            size = sizes.pop(0) if sizes else len(octets)
            sock.sendall(octets[:size])
            octets = octets[size:]
            gevent.sleep(0)

    serving = gevent.spawn(tls.shake_hands, stream, "s", "p", SOON)
    until = time.monotonic() + SOON
    try:
        while time.monotonic() < until:
            try:
                client.do_handshake()
                put(says.read())
                break
            except ssl.SSLWantReadError:
                put(says.read())
            while time.monotonic() < until:
                try:
                    heard.write(sock.recv(65536))
                    break
                except BlockingIOError:
                    gevent.sleep(0.001)
        assert serving.get(timeout=SOON).version == {ssl.TLSVersion.TLSv1_2: "TLSv1.2"}.get(latest, "TLSv1.3")
        said = bytes(range(256)) * 30
        at = 0
        for size in (*records, len(said)):
            if at < len(said):
                client.write(said[at : at + size])
                at += size
        put(says.read())
        got = b""
        while len(got) < len(said):
            octets = stream.receive(time.monotonic() + SOON)
            assert octets
            got += octets
        assert got == said
    finally:
        stream.close()
        sock.close()
