# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the PROXY header of a connection, and nothing behind it. It knows neither networks nor sessions."""

import time
from _socket import MSG_PEEK
from _socket import socket as Socket

from gevent.socket import wait_read

from lmtp_proxy.wire.proxy_header import MAX_LENGTH, ProxyHeader


class NoHeader(Exception):
    """There is none.

    Attributes:
        why: None where nothing at all was said, as by somebody who only looks whether the port is open.
    """

    def __init__(self, why: str | None) -> None:
        super().__init__(why)
        self.why = why


def read_header(sock: Socket, seconds: float) -> ProxyHeader:
    """The header, waited for as long. Raises NoHeader."""
    sock.setblocking(False)
    header, deadline = ProxyHeader(), time.monotonic() + seconds
    try:
        while not header.complete:
            try:
                ahead = sock.recv(MAX_LENGTH, MSG_PEEK)
            except BlockingIOError:
                wait_read(sock.fileno(), max(0.0, deadline - time.monotonic()), TimeoutError())
                continue
            if not ahead:
                raise NoHeader("it closed amid its PROXY header" if header.begun else None)
            sock.recv(header.feed(ahead))
    except ValueError:
        raise NoHeader("no PROXY header") from None
    except TimeoutError:
        raise NoHeader(f"no PROXY header within {seconds:g} s") from None
    except OSError:
        raise NoHeader("it closed amid its PROXY header" if header.begun else None) from None
    return header
