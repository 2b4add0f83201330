# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP/1.1 on the control socket: gevent.pywsgi, made proof against slow, greedy, odd and vanished clients.

A request is read whole, within limits of octets and time, before the application sees it. Whatever a client does costs
it its own connection and leaves nothing behind, neither in the log nor on stderr.
"""

import io
import json
import logging
import re
import socket
import struct
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from gevent.pool import Pool
from gevent.pywsgi import WSGIHandler, WSGIServer

from lmtp_proxy.control.application import path_of
from lmtp_proxy.control.request import GONE, UID, Fairness
from lmtp_proxy.control.state import MAX_CONNECTIONS
from lmtp_proxy.loop.acceptor import PatientAcceptor

_log = logging.getLogger(__name__)

MAX_BODY = 4 * 2**20
"""Octets of a request's body: 100,000 addresses."""

_SECONDS = 10.0  # for each of: waiting for a request, the whole request, the whole answer
_LINGER = 1.0  # seconds in which a refused client may go on sending, so that it comes to read why
_MAX_HEAD = 65536
_BUFFER = 8192  # octets; Python 3.14 would take 128 KiB for each connection, and read beyond _MAX_HEAD at once
_CHUNK_OVERHEAD = 2**20
_DIGITS = re.compile("[0-9]{1,18}")


class _RequestRefused(Exception):
    """The request is answered with an error, and the connection closed. No OSError, which pywsgi has uses for."""

    def __init__(self, status: HTTPStatus, why: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(why)
        self.status = status
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers)

    def to_bytes(self) -> bytes:
        body = json.dumps({"error": str(self)}).encode("ascii") + b"\n"
        head = (
            f"HTTP/1.1 {self.status.value} {self.status.phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n{self._headers}Connection: close\r\n\r\n"
        )
        return head.encode("ascii") + body


class _Octets(io.RawIOBase):
    """What a client sends, until a deadline and up to a number of octets; both are set anew for each part.

    Raises _RequestRefused where one of them is passed.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.fairness = Fairness()
        self._sock = sock
        self._deadline = 0.0
        self._left = 0
        self._too_many = HTTPStatus.BAD_REQUEST

    def allow(self, octets: int, too_many: HTTPStatus) -> None:
        """So many octets more, what is more is answered with `too_many`. The deadline stays."""
        self._left, self._too_many = octets, too_many

    def allow_time(self) -> None:
        """The deadline is `_SECONDS` from now."""
        self._deadline = time.monotonic() + _SECONDS

    def readable(self) -> bool:
        """See io.RawIOBase."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase."""
        # A client that sends without pause would keep all mail waiting while its octets are looked at.
        self.fairness.pause()
        if self._left <= 0:
            raise _RequestRefused(self._too_many, "the request is too large")
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise _RequestRefused(HTTPStatus.REQUEST_TIMEOUT, f"the request took longer than {_SECONDS:g} s")
        self._sock.settimeout(remaining)
        try:
            count = self._sock.recv_into(buffer, min(len(buffer), self._left))
        except TimeoutError:
            raise _RequestRefused(HTTPStatus.REQUEST_TIMEOUT, f"the request took longer than {_SECONDS:g} s") from None
        self._left -= count
        return count


class Handler(WSGIHandler):
    """One connection. Where pywsgi would print a traceback for what its client did, the connection just ends.

    Attributes:
        max_body: octets.
        peer_has_uid: it is a unix socket, so the kernel knows who is there; nobody is -1.
    """

    max_body = MAX_BODY
    peer_has_uid = True

    def __init__(self, sock: Any, address: Any, server: Any) -> None:
        super().__init__(sock, address, server)
        self.rfile.close()  # pywsgi's own, which knows no deadline
        self._octets = _Octets(sock)
        self.rfile = io.BufferedReader(self._octets, _BUFFER)

    def handle(self) -> None:
        """Serve requests until the connection is to be closed."""
        try:
            while self._serve():
                self._octets.fairness.pause()  # the next requests may be there already, so that nothing is waited for
        except OSError:
            pass  # it is gone
        except Exception:  # noqa: BLE001  (what leaves a greenlet is printed to stderr)
            _log.exception("control: internal error")
        finally:
            self.socket.close()
            self.__dict__.clear()

    def _serve(self) -> bool:
        """One request; whether another may follow."""
        try:
            result = self.handle_one_request()
            if isinstance(result, tuple):
                status = HTTPStatus(int(result[0]))
                raise _RequestRefused(status, status.phrase)
        except _RequestRefused as refused:
            self.socket.settimeout(_SECONDS)
            self.socket.sendall(refused.to_bytes())
            self._linger()
            return False
        return bool(result)

    def _linger(self) -> None:
        """Closing while octets of the client are unread would break its connection before it has read the answer."""
        self.socket.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + _LINGER
        while (remaining := deadline - time.monotonic()) > 0:
            self.socket.settimeout(remaining)
            if not self.socket.recv(65536):
                break
            self._octets.fairness.pause()

    # --- the request -------------------------------------------------------------------------------------------------

    def read_requestline(self) -> str:
        """The request line; empty if none came within the time that a connection may be idle."""
        self._octets.allow(_MAX_HEAD, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        self._octets.allow_time()
        try:
            if not self.rfile.peek(1):
                return ""
        except _RequestRefused:
            return ""
        self._octets.allow_time()
        line: str = super().read_requestline()
        return line

    def read_request(self, raw_requestline: str) -> Any:
        """Line and header of a request. Raises what `_handle_client_error` answers."""
        super().read_request(raw_requestline)
        if self.request_version not in ("HTTP/1.0", "HTTP/1.1"):
            raise _RequestRefused(HTTPStatus.BAD_REQUEST, "the request is not HTTP/1.1")
        encodings = self.headers.get_all("transfer-encoding", [])
        lengths = self.headers.get_all("content-length", [])
        # pywsgi takes any other encoding for "no body", and the body for the next request.
        if encodings and (len(encodings) > 1 or encodings[0].lower() != "chunked"):
            raise _RequestRefused(HTTPStatus.NOT_IMPLEMENTED, "the only transfer encoding that is known is chunked")
        if len(lengths) > 1 or not all(map(_DIGITS.fullmatch, lengths)):
            raise _RequestRefused(HTTPStatus.BAD_REQUEST, "Content-Length is no number")
        if lengths and int(lengths[0]) > self.max_body:
            raise self._too_large()
        return True

    def _handle_client_error(self, ex: Exception) -> Any:
        """What `read_request` raised, as an answer. pywsgi would log it, or print a traceback."""
        if isinstance(ex, _RequestRefused | OSError):
            raise ex
        raise _RequestRefused(HTTPStatus.BAD_REQUEST, "the request is not HTTP/1.1") from None

    def get_environ(self) -> dict[str, Any]:
        """The request for the application, its body read to the end."""
        try:
            environ: dict[str, Any] = super().get_environ()
        except ValueError:  # a header line that is none
            raise _RequestRefused(HTTPStatus.BAD_REQUEST, "the request is not HTTP/1.1") from None
        environ["wsgi.input"] = io.BytesIO(self._body())
        environ[UID] = self._uid()
        environ[GONE] = self._gone
        return environ

    def _uid(self) -> int:
        if not self.peer_has_uid:
            return -1
        return int(struct.unpack("3i", self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1])

    def _body(self) -> bytes:
        chunked = bool(self.headers.get("transfer-encoding"))
        # Trailers are no part of what gevent 22.10 reads, so nothing may follow.
        self.close_connection = self.close_connection or chunked
        self._octets.allow(self.max_body + _CHUNK_OVERHEAD, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        pieces: list[bytes] = []
        size = 0
        try:
            source: Any = self.wsgi_input
            while piece := source.read(65536):
                pieces.append(piece)
                size += len(piece)
                if size > self.max_body:
                    raise self._too_large()
        except (ValueError, OSError):  # the latter are pywsgi's for a broken chunk, or for less than was announced
            what = "the body is incomplete, or not in chunks as announced"
            raise _RequestRefused(HTTPStatus.BAD_REQUEST, what) from None
        return b"".join(pieces)

    def _too_large(self) -> _RequestRefused:
        """A method that the resource does not take comes first: with it no body would be right."""
        application: Any = self.server.application
        refusal = application.refusal(self.command, path_of((self.path or "").partition("?")[0]))
        if refusal is not None:
            return _RequestRefused(refusal.status, refusal.why, refusal.headers)
        return _RequestRefused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {self.max_body} octets")

    def _gone(self) -> bool:
        """Linux: writing nothing fails if the peer has closed the socket, and not if it has just ended its stream."""
        try:
            self.socket.send(b"")
        except OSError:
            return True
        return False

    # --- the answer --------------------------------------------------------------------------------------------------

    def finalize_headers(self) -> None:
        """Say so when the connection will be closed."""
        super().finalize_headers()
        headers: Any = self.response_headers
        if self.close_connection and self.request_version != "HTTP/1.0":
            headers.append((b"Connection", b"close"))

    def _sendall(self, data: bytes) -> None:
        self.socket.settimeout(_SECONDS)
        super()._sendall(data)  # type: ignore[misc]  # not in the stubs

    def handle_error(self, t: Any, v: Any, tb: Any) -> None:
        """The application or the way to the client failed; the former answers for its own errors."""
        self.close_connection = True
        if issubclass(t, Exception) and not issubclass(t, OSError):
            _log.error("control: internal error", exc_info=(t, v, tb))
            self._send_error_response_if_possible(500)  # type: ignore[attr-defined]  # not in the stubs


class HttpAcceptor(PatientAcceptor, WSGIServer):
    """Accepts clients; above the limit they wait in the kernel's backlog."""

    cannot_accept = "control: cannot accept a client"


class ControlServer:
    """Serves `application` (WSGI) on `listener`, a gevent socket that is bound to a path and listening.

    Args:
        acceptor: makes what gets connections from it.
        connections: how many at once.
        handler: what one of them is.
    """

    def __init__(
        self,
        listener: socket.socket,
        application: Callable[..., Any],
        acceptor: Callable[..., HttpAcceptor] = HttpAcceptor,
        connections: int = MAX_CONNECTIONS,
        handler: type[Handler] = Handler,
    ) -> None:
        self._connections = Pool(connections)
        self._server = acceptor(
            listener, application, spawn=self._connections, log=None, error_log=None, handler_class=handler
        )

    def __repr__(self) -> str:
        return f"<ControlServer {len(self._connections)} connections>"

    def start(self) -> None:
        """Begin to accept."""
        self._server.start()

    def stop(self) -> None:
        """Accept nobody any more, give requests under way a second to end, and close the rest without an answer."""
        self._server.stop(timeout=1)
