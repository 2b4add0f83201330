# SPDX-License-Identifier: GPL-3.0-or-later
"""A session on a real socket, without a server around it."""

import gc
import socket
import weakref
from _socket import socket as Socket
from pathlib import Path

import gevent
import pytest

from lmtp_proxy.clients.session import Session, Shared
from lmtp_proxy.config.read import load_config
from lmtp_proxy.delivery.commit import ProcessParts
from lmtp_proxy.delivery.in_flight import InFlight
from lmtp_proxy.delivery.parking import Parking
from lmtp_proxy.delivery.uncertain_log import UncertainLog
from lmtp_proxy.generations.generation import Generation, first_generation
from lmtp_proxy.loop.stream import Stream

ENVELOPE = b"MAIL FROM:<s@x>\r\nRCPT TO:<u@x>\r\nDATA\r\n"  # nobody is there for u@x


@pytest.fixture
def generation(tmp_path: Path) -> Generation:
    path = tmp_path / "lmtp-proxy.yml"
    text = "config:\n  socket: [127.0.0.1, 2424]\nbackends:\n  a: {host: 127.0.0.1, port: 1}\nusers:\n"
    path.write_text(text, "utf-8")
    return first_generation(load_config(str(path)))


@pytest.mark.parametrize("said", [b"LHLO c\r\nQUIT\r\n", b"LHLO c\r\n" + ENVELOPE + b"QUIT\r\n", b""])
def test_nothing_of_a_session_is_left_to_the_garbage_collector(generation: Generation, said: bytes) -> None:
    """A client with one message would leave dozens of objects each time."""
    in_flight = InFlight()

    def current() -> Generation:
        return generation

    shared = Shared(ProcessParts(current, in_flight, UncertainLog(current, in_flight)), Parking())
    ours, client = socket.socketpair()
    plain = Socket(ours.family, ours.type, ours.proto, ours.detach())
    session = Session(Stream(plain), "unix", shared, generation.config)
    there = weakref.ref(session)
    client.sendall(said)
    client.shutdown(socket.SHUT_WR)
    gc.collect()
    gc.disable()
    try:
        serving = gevent.spawn(session.run)
        del session, plain
        serving.join(5)
        assert serving.dead
        del serving
        gevent.sleep(0)
        assert there() is None
    finally:
        gc.enable()
    client.settimeout(5)
    assert client.recv(4096).startswith(b"220 ")
    client.close()
