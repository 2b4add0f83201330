"""A client of the control socket: whole requests with http.client, and a bare connection for those who misbehave."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple

from tests.support.proxy import ProxyProcess


class Answer(NamedTuple):
    """Status code, header (names in lower case) and body, which must be JSON unless it is empty."""

    code: int
    header: dict[str, str]
    document: Any


class ControlConnection(http.client.HTTPConnection):
    """A connection to the socket at `path`; one request after the other may go over it."""

    def __init__(self, path: str, timeout: float = 20.0) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = bare_connection(self._path, self.timeout or 20.0)

    def ask(
        self, method: str, resource: str, document: object = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request and its answer."""
        body = document if document is None or isinstance(document, bytes) else json.dumps(document).encode()
        self.request(method, resource, body=body, headers=dict(headers or {}))
        return read_answer(self.getresponse())


def bare_connection(path: str, timeout: float = 20.0) -> socket.socket:
    """A connected socket, to write whatever one likes."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(timeout)
    try:
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def read_answer(response: http.client.HTTPResponse) -> Answer:
    """The whole answer; closes nothing."""
    octets = response.read()
    header = {name.lower(): value for name, value in response.getheaders()}
    if octets:
        assert header["content-type"] == "application/json", header
    return Answer(response.status, header, json.loads(octets) if octets else None)


def answer_on(sock: socket.socket) -> Answer:
    """The next answer on a bare connection. Raises http.client.HTTPException where none comes."""
    response = http.client.HTTPResponse(sock)
    response.begin()
    return read_answer(response)


def add_control(proxy: ProxyProcess, **settings: object) -> str:
    """Puts a control socket into the configuration of a proxy that was not started yet; returns its path."""
    path = f"{proxy.directory}/ctl"
    proxy.config["config"]["control"] = {"socket": path, **settings}
    proxy.write_config()
    return path


class Control:
    """The control socket of `proxy`, with a connection of its own for each request."""

    def __init__(self, proxy: ProxyProcess) -> None:
        self.path = f"{proxy.directory}/ctl"

    def ask(self, method: str, resource: str, document: object = None, *, timeout: float = 100.0) -> Answer:
        """One request and its answer, whatever it is."""
        connection = ControlConnection(self.path, timeout)
        try:
            return connection.ask(method, resource, document, {"Connection": "close"})
        finally:
            connection.close()

    def get(self, resource: str) -> Any:
        """The document of an answer that must be 200."""
        answer = self.ask("GET", resource)
        assert answer.code == 200, answer
        return answer.document

    def post(self, resource: str, document: object = None, *, timeout: float = 100.0) -> Any:
        """The document of an answer that must be 200."""
        answer = self.ask("POST", resource, document, timeout=timeout)
        assert answer.code == 200, answer
        return answer.document
