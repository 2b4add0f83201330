# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP over the control socket, from the outside: one connection, one request, one JSON answer.

It says in one line what went wrong, and tells an answer that refuses from no answer at all. It knows the shape of
HTTP and JSON, not the meaning of any resource. http.client would do, but takes longer to import than a whole request.
"""

import errno
import grp
import json
import os
import pwd
import re
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

MAX_HEAD = 65536
MAX_BODY = 64 * 2**20  # octets: a drain of 100,000 users answers with about 5 MB
_CONNECT = 10.0  # seconds; no answer within means that the process hangs, as its listener is served by a greenlet
_TICK = 1.0

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: [^\r\n]*)?")
_Value = TypeVar("_Value", str, int, float, bool, list[Any], dict[str, Any])


class ControlError(Exception):
    """One line for the operator: what, where, and what to do about it.

    Attributes:
        status: for the shell.
    """

    status = 1


class Unreachable(ControlError):
    """There was no answer. sent: the request may have been received, and acted upon."""

    def __init__(self, text: str, *, sent: bool) -> None:
        super().__init__(text)
        self.sent = sent


class Refusal(ControlError):
    """An answer other than 200.

    Args:
        code: of HTTP.
        answer: what it said, at least `error`.
    """

    def __init__(self, text: str, code: int, answer: "Answer") -> None:
        super().__init__(text)
        self.code = code
        self.answer = answer


class Answer:
    """A JSON object whose values are asked for by name and type. Each getter raises ControlError if it is not so."""

    def __init__(self, document: Mapping[str, Any], source: str) -> None:
        self.document = document
        self._source = source

    def text(self, name: str) -> str:
        return self._value(name, str)

    def integer(self, name: str) -> int:
        return self._value(name, int)

    def number(self, name: str) -> float:
        value = self.document.get(name)
        return float(value) if isinstance(value, int) else self._value(name, float)

    def value(self, name: str) -> Any:
        """Whatever stands there but null, to be handed back as it is."""
        if self.has_null(name):
            raise self._odd(name)
        return self.document[name]

    def flag(self, name: str) -> bool:
        return self._value(name, bool)

    def texts(self, name: str) -> list[str]:
        return [self._checked(name, value, str) for value in self._value(name, list)]

    def objects(self, name: str) -> list["Answer"]:
        return [Answer(self._checked(name, value, dict), self._source) for value in self._value(name, list)]

    def object(self, name: str) -> "Answer":
        return Answer(self._value(name, dict), self._source)

    def optional_text(self, name: str) -> str | None:
        return None if self.has_null(name) else self.text(name)

    def optional_texts(self) -> dict[str, str | None]:
        """All of this object, which maps names to text or null."""
        return {name: self.optional_text(name) for name in self.document}

    def integers(self) -> dict[str, int]:
        """All of this object, which maps names to whole numbers."""
        return {name: self.integer(name) for name in self.document}

    def has_null(self, name: str) -> bool:
        """Whether null stands there; nothing at all is an error."""
        if name not in self.document:
            raise self._odd(name)
        return self.document[name] is None

    def _value(self, name: str, kind: type[_Value]) -> _Value:
        return self._checked(name, self.document.get(name), kind)

    def _checked(self, name: str, value: Any, kind: type[_Value]) -> _Value:
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self._odd(name)
        return value

    def _odd(self, name: str) -> ControlError:
        return ControlError(f"{self._source}: the answer has no usable `{name}`; is lmtp-proxy of the same version?")


class ControlClient:
    """Speaks to the proxy whose control socket is at `path`."""

    def __init__(self, path: str) -> None:
        self.path = path

    def get(self, resource: str, *, timeout: float = 30.0) -> Answer:
        """GET; `timeout` in seconds is for the whole answer. Raises ControlError."""
        return self._request("GET", resource, None, timeout, None)

    def post(
        self,
        resource: str,
        document: Mapping[str, object],
        *,
        timeout: float,
        tick: Callable[[float], None] | None = None,
    ) -> Answer:
        """POST; `tick` is called about each second with the seconds waited so far. Raises ControlError."""
        return self._request("POST", resource, json.dumps(document).encode("ascii"), timeout, tick)

    def _request(
        self, method: str, resource: str, body: bytes | None, timeout: float, tick: Callable[[float], None] | None
    ) -> Answer:
        head = f"{method} {resource} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        with self._connect() as connection:
            incoming = _Incoming(connection, timeout, tick)
            try:
                try:
                    connection.settimeout(timeout)
                    connection.sendall(head.encode("ascii") + b"\r\n" + (body or b""))
                except (BrokenPipeError, ConnectionResetError):
                    pass  # refused before it was read to its end; the answer may say why
                code, text = incoming.response()
            except TimeoutError:
                what = f"{self.path}: no answer to {method} {resource.partition('?')[0]} within {timeout:.0f} s"
                raise Unreachable(f"{what}; does lmtp-proxy hang?", sent=True) from None
            except OSError as error:
                what = f"{self.path}: the connection broke without an answer ({error.strerror or error})"
                raise Unreachable(f"{what}; did lmtp-proxy end? See its log", sent=True) from None
            except ValueError as error:
                raise ControlError(f"{self.path}: {error}; is this the control socket of lmtp-proxy?") from None
        return self._answer(code, text)

    def _answer(self, code: int, text: bytes) -> Answer:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict) or (code != 200 and not isinstance(document.get("error"), str)):
            what = f"{self.path}: an answer (HTTP {code}) that is no JSON object"
            raise ControlError(f"{what}; is this the control socket of lmtp-proxy?")
        answer = Answer(document, self.path)
        if code != 200:
            raise Refusal(document["error"], code, answer)
        return answer

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            latest = time.monotonic() + _CONNECT
            connection.settimeout(_CONNECT)
            while True:
                try:
                    connection.connect(self.path)
                    return connection
                except BlockingIOError:  # its backlog is full, and a unix socket does not wait for a place by itself
                    if time.monotonic() > latest:
                        raise
                    time.sleep(0.02)
        except BaseException as error:
            connection.close()
            if isinstance(error, OSError):
                raise self._not_connected(error) from None
            if isinstance(error, ValueError):  # a NUL in the name
                raise ControlError("there can be no socket of this name; see --socket") from None
            raise

    def _not_connected(self, error: OSError) -> ControlError:
        if isinstance(error, PermissionError):
            return ControlError(f"{self.path}: permission denied: run as {_who_may(self.path)}")
        if isinstance(error, BlockingIOError | TimeoutError):
            return Unreachable(f"{self.path}: no connection within {_CONNECT:.0f} s; does lmtp-proxy hang?", sent=False)
        if isinstance(error, FileNotFoundError):
            return Unreachable(f"{self.path}: there is no such socket; is lmtp-proxy running?", sent=False)
        if isinstance(error, ConnectionRefusedError) and _is_socket(self.path):
            return Unreachable(f"{self.path}: nobody listens there; is lmtp-proxy running?", sent=False)
        if error.errno in (errno.ECONNREFUSED, errno.ENOTDIR, errno.EPROTOTYPE):
            return ControlError(f"{self.path}: is not a control socket; see config.control.socket, or --socket")
        return ControlError(f"{self.path}: cannot connect: {error.strerror or error}; see --socket")


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return True


def _who_may(path: str) -> str:
    """Who may write to the socket, as far as we can see."""
    try:
        status = os.stat(path)
    except OSError:  # we may not even look into its directory
        return "root"
    who = ["root"]
    if status.st_uid != 0 and status.st_mode & stat.S_IWUSR:
        try:
            who.append(pwd.getpwuid(status.st_uid).pw_name)
        except KeyError:
            who.append(f"user {status.st_uid}")
    if status.st_mode & stat.S_IWGRP:
        try:
            who.append(f"as a member of {grp.getgrgid(status.st_gid).gr_name}")
        except KeyError:
            who.append(f"as a member of group {status.st_gid}")
    return " or ".join(who)


class _Incoming:
    """The octets of one response. Raises TimeoutError, OSError, and ValueError with what is odd about them."""

    def __init__(self, connection: socket.socket, timeout: float, tick: Callable[[float], None] | None) -> None:
        self._connection = connection
        self._began = time.monotonic()
        self._timeout = timeout
        self._tick = tick
        self._buffer = bytearray()

    def response(self) -> tuple[int, bytes]:
        """The status code and the body (RFC 9112 section 6)."""
        while True:
            lines = self._head()
            match = _STATUS_LINE.fullmatch(lines[0])
            if match is None:
                raise ValueError("an answer that is not HTTP")
            code = int(match[1])
            if code >= 200:
                break
        fields = dict(self._fields(lines[1:]))
        if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
            return code, b"".join(self._chunks())
        if (length := fields.get(b"content-length")) is not None:
            if not length.isdigit() or len(length) > 12 or int(length) > MAX_BODY:
                raise ValueError("an answer that is too long")
            return code, self._exactly(int(length))
        while self._more():
            self._check(len(self._buffer), MAX_BODY)
        return code, bytes(self._buffer)

    def _head(self) -> list[bytes]:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            self._check(len(self._buffer), MAX_HEAD)
            if not b"HTTP/1.".startswith(self._buffer[:7]):
                raise ValueError("an answer that is not HTTP")
            self._must_have_more()
        head = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        return head.split(b"\r\n")

    @staticmethod
    def _fields(lines: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
        for line in lines:
            name, _, value = line.partition(b":")
            yield name.lower(), value.strip()

    def _chunks(self) -> Iterator[bytes]:
        total = 0
        while True:
            size = self._line().partition(b";")[0].strip()
            if not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", size):
                raise ValueError("an answer with a broken chunk")
            if int(size, 16) == 0:
                return
            total += int(size, 16)
            self._check(total, MAX_BODY)
            yield self._exactly(int(size, 16))
            if self._line():
                raise ValueError("an answer with a broken chunk")

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            self._check(len(self._buffer), MAX_HEAD)
            self._must_have_more()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _exactly(self, octets: int) -> bytes:
        while len(self._buffer) < octets:
            self._must_have_more()
        data = bytes(self._buffer[:octets])
        del self._buffer[:octets]
        return data

    @staticmethod
    def _check(octets: int, most: int) -> None:
        if octets > most:
            raise ValueError("an answer that is too long")

    def _must_have_more(self) -> None:
        if not self._more():
            raise ConnectionResetError("it was closed")

    def _more(self) -> bool:
        """Waits for something; False at the end of the stream."""
        while True:
            waited = time.monotonic() - self._began
            if waited >= self._timeout:
                raise TimeoutError
            self._connection.settimeout(min(_TICK, self._timeout - waited))
            try:
                data = self._connection.recv(65536)
            except TimeoutError:
                if self._tick is not None:
                    self._tick(time.monotonic() - self._began)
                continue
            self._buffer += data
            return bool(data)
