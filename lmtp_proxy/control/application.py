# SPDX-License-Identifier: GPL-3.0-or-later
"""A WSGI application: a table of resources, answers in JSON or other text, and what becomes of odd requests."""

import json
import logging
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple, TypeAlias

from lmtp_proxy.control.request import GONE, UID, HttpProblem, Request
from lmtp_proxy.loop.late import Unavailable
from lmtp_proxy.text import MAX_TEXT, shown

_log = logging.getLogger(__name__)

Json: TypeAlias = dict[str, Any]


class Text(NamedTuple):
    """An answer that is not JSON.

    Attributes:
        content_type: of HTTP.
        octets: its body.
        headers: beside those that each answer has.
        status: of HTTP.
    """

    content_type: str
    octets: bytes
    headers: tuple[tuple[str, str], ...] = ()
    status: HTTPStatus = HTTPStatus.OK


Resources: TypeAlias = Mapping[str, Mapping[str, Callable[[Request], Json | Text]]]
"""Path -> method -> what answers; it may raise HttpProblem."""


class NotTaken(NamedTuple):
    """Of a request by its first line alone.

    Attributes:
        status: of HTTP.
        why: for people.
        allowed: methods that the resource takes; empty where there is no such resource.
    """

    status: HTTPStatus
    why: str
    allowed: str = ""

    @property
    def headers(self) -> list[tuple[str, str]]:
        return [("Allow", self.allowed)] if self.allowed else []


_ORIGIN = re.compile("(?i)https?://[^/]*")


def path_of(target: str) -> str:
    """The path of what a request asks for, which may be a whole URL (RFC 9112, section 3.2.2), without its query."""
    match = _ORIGIN.match(target)
    return target if match is None else target[match.end() :] or "/"


class JsonApplication:
    """See PEP 3333. The environment must also have UID and GONE."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def answer(self, path: str, request: Request) -> Json | Text:
        """What a GET of `path` answers to `request`. Raises HttpProblem."""
        return self._resources[path]["GET"](request)

    def get(self, path: str, request: Request) -> Json:
        """What a GET of `path`, which answers in JSON, answers to `request`. Raises HttpProblem."""
        answer = self.answer(path, request)
        assert not isinstance(answer, Text)
        return answer

    def refusal(self, method: str, path: str) -> NotTaken | None:
        """Why nothing answers, whatever the body is."""
        if (handlers := self._resources.get(path)) is None:
            return NotTaken(HTTPStatus.NOT_FOUND, f"there is no {shown(path)}")
        if ("GET" if method == "HEAD" else method) in handlers:
            return None
        allowed = ", ".join([*handlers, *(["HEAD"] if "GET" in handlers else [])])
        return NotTaken(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes {allowed} only", allowed)

    def __call__(self, environ: Json, start_response: Callable[[str, list[tuple[str, str]]], object]) -> list[bytes]:
        """Answer one request."""
        method, path = environ["REQUEST_METHOD"], path_of(environ["PATH_INFO"])
        what = f"{shown(method, 20)} {shown(path)}"
        has_body = "CONTENT_LENGTH" in environ or "HTTP_TRANSFER_ENCODING" in environ
        body = environ["wsgi.input"].read() if has_body else None
        accept = environ.get("HTTP_ACCEPT", "")
        request = Request(environ["QUERY_STRING"], body, environ[UID], environ[GONE], accept)
        headers = [("Cache-Control", "no-store")]
        status = HTTPStatus.OK
        answer: Json | Text = {}
        try:
            if (refusal := self.refusal(method, path)) is not None:
                headers += refusal.headers
                raise HttpProblem(refusal.status, refusal.why)
            answer = self._resources[path]["GET" if method == "HEAD" else method](request)
        except HttpProblem as problem:
            status, answer = problem.status, {"error": str(problem), **problem.more}
            if method == "POST":
                _log.info("control: %s by uid %d: %s", what, request.uid, shown(str(problem), 200))
        except Unavailable as error:
            status, answer = HTTPStatus.SERVICE_UNAVAILABLE, {"error": str(error)}
        except Exception as error:  # noqa: BLE001  (a bug met by one request is not the end of the control socket)
            _log.exception("control: %s failed by an internal error", what)
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            answer = {"error": f"internal error: {shown(repr(error), MAX_TEXT)}"}
        if not isinstance(answer, Text):
            answer = Text("application/json", json.dumps(answer).encode("ascii") + b"\n", status=status)
        status, octets = answer.status, answer.octets
        headers += [("Content-Type", answer.content_type), *answer.headers]
        start_response(f"{status.value} {status.phrase}", [*headers, ("Content-Length", str(len(octets)))])
        return [] if method == "HEAD" else [octets]
