# SPDX-License-Identifier: GPL-3.0-or-later
"""One request on the control socket, looked at strictly: the argument of a query, a JSON object with known keys.

Whatever is wrong with it is an HttpProblem, which is the answer.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

import gevent
from gevent.lock import BoundedSemaphore

from lmtp_proxy.config.values import how_many
from lmtp_proxy.text import MAX_TEXT, count, printable, shown
from lmtp_proxy.wire import reply
from lmtp_proxy.wire.envelope import Recipient, parse_rcpt

_log = logging.getLogger(__name__)

UID = "lmtp_proxy.uid"
"""Key of the environment, beside those of PEP 3333: the user id of the client."""
GONE = "lmtp_proxy.gone"
"""Key of the environment: a callable that says whether the client has closed the connection. It does not wait."""

MAX_USERS = 200_000
DRAIN_TIMEOUT = 60.0
DRAIN_LONGEST = 600.0
UNSETTLED = 2**53 - 1
"""For `until` of a drain: nothing was settled, so all that is in flight then is to be waited for."""
_SLICE = 1000  # of a long list that are looked at between two looks at the clock
_AT_ONE_GO = 0.005  # seconds; mail waits for so long
_MAX_PATH = 1024  # octets of an address; RFC 5321 section 4.5.3.1.3 has 256
_LOGGED = 200  # characters of a line in the log
_NAMED = 3  # users in a line in the log
_SHORT = 65536  # octets of a body that is parsed at once; the oddest JSON of this size takes some milliseconds
_REST = 1.0  # after a longer one, as a part of the time that it took
_LONG_ONE = BoundedSemaphore(1)


class HttpProblem(Exception):
    """Ends a request with an error.

    Args:
        status: of HTTP.
        why: for people; `error` of the answer.
        more: other keys of the answer.
    """

    def __init__(self, status: HTTPStatus, why: str, **more: object) -> None:
        super().__init__(why)
        self.status = status
        self.more = more


class Request(NamedTuple):
    """What somebody asks.

    Attributes:
        query: as it stood in the request line.
        body: None if none was announced.
        uid: the user id of the client.
        gone: whether the client has closed the connection; does not wait.
        accept: which formats it takes, as HTTP has it.
    """

    query: str
    body: bytes | None
    uid: int
    gone: Callable[[], bool]
    accept: str = ""

    def argument(self, name: str) -> bytes:
        """The one argument of the query. A `+` is a plus, as it is in addresses, not a space as in forms."""
        key, equals, value = self.query.partition("=")
        if key != name or not equals or "&" in value:
            raise bad(f"the query must be ?{name}=...")
        from urllib.parse import unquote_to_bytes  # half a megabyte

        return unquote_to_bytes(value.encode("latin-1"))

    def document(self, *known: str, long: bool = False) -> "RequestDocument":
        """The body, a JSON object with no keys but `known`.

        Args:
            long: it may hold lists of users.
        """
        if self.body is None:
            raise HttpProblem(HTTPStatus.LENGTH_REQUIRED, "a body is needed, with Content-Length or chunked")
        if len(self.body) <= _SHORT:
            values = _parsed(self.body)
        elif not long:
            raise HttpProblem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {_SHORT} octets")
        else:
            # Nothing else runs while JSON is parsed; odd JSON takes half a second. So one at a time, and then a rest.
            with _LONG_ONE:
                began = time.monotonic()
                try:
                    values = _parsed(self.body)
                finally:
                    gevent.sleep(_REST * (time.monotonic() - began))
        if not isinstance(values, dict):
            raise bad("the body must be a JSON object")
        for key in values:
            if key not in known:
                raise bad(f'unknown key "{shown(key)}"; known: {", ".join(known) or "none"}')
        return RequestDocument(values)

    def log(self, what: str, users: Sequence[str] = ()) -> None:
        """Who does what, to whom."""
        more = f" and {len(users) - _NAMED} more" if len(users) > _NAMED else ""
        named = shown(" ".join([what, ", ".join(users[:_NAMED])]).rstrip(), _LOGGED)
        _log.info("control: %s%s by uid %d", named, more, self.uid)


class RequestDocument:
    """A JSON object. Each method raises HttpProblem if the value under `key` is missing or none of its kind."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def text(self, key: str) -> str:
        """Text that is not empty."""
        value = self.values.get(key)
        if not isinstance(value, str) or not value:
            raise bad(f'"{key}" must be text')
        return value

    def texts(self, key: str, *, least: int) -> list[str]:
        """A list of that many texts, up to MAX_USERS, none of them empty."""
        value = self.values.get(key)
        if not isinstance(value, list) or not least <= len(value) <= MAX_USERS:
            raise bad(f'"{key}" must be a list of {least} to {MAX_USERS} texts')
        for piece in slices(value):
            if not all(isinstance(text, str) and text for text in piece):
                raise bad(f'"{key}" must be a list of texts, none of them empty')
        return value

    def seconds(self, key: str, *, default: float, most: float) -> float:
        """A number from 0 to `most`."""
        value = self.values.get(key, default)
        if type(value) not in (int, float) or not math.isfinite(value) or not 0 <= value <= most:
            raise bad(f'"{key}" must be a number of seconds from 0 to {most:g}')
        return float(value)

    def count(self, key: str) -> int | None:
        """A whole number from 0 on, or None if there is none."""
        if key not in self.values:
            return None
        value = self.values[key]
        if type(value) is not int or value < 0:
            raise bad(f'"{key}" must be a whole number from 0 on')
        return value

    def flag(self, key: str) -> bool:
        """True or false; false if there is none."""
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            raise bad(f'"{key}" must be true or false')
        return value

    def users_to_drain(self) -> list[str] | None:
        """The users that a drain names, None for all."""
        everybody = "all" in self.values
        if everybody is ("users" in self.values) or self.values.get("all", True) is not True:
            raise bad('either "users" or "all": true is needed')
        return None if everybody else self.texts("users", least=1)


def refused_reload(errors: Sequence[str], **more: object) -> HttpProblem:
    """Nothing was changed."""
    why = f"refused: {count(how_many(errors), 'error')}; nothing was changed"
    return HttpProblem(HTTPStatus.CONFLICT, why, errors=list(errors), **more)


def bad(why: str) -> HttpProblem:
    """The client's mistake."""
    return HttpProblem(HTTPStatus.BAD_REQUEST, why)


class Fairness:
    """Lets others run in the midst of long work, so that mail does not wait for 100,000 users."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def pause(self) -> None:
        """Wait a moment, if the last one is long ago.

        By a timer, because of sleep(0) gevent does up to 50 before it asks the kernel for what has come.
        """
        if time.monotonic() - self._since > _AT_ONE_GO:
            gevent.sleep(0.001)
            self._since = time.monotonic()


def slices(items: list[Any]) -> Iterator[list[Any]]:
    """Pieces of a long list; between them others may run."""
    fairness = Fairness()
    for start in range(0, len(items), _SLICE):
        yield items[start : start + _SLICE]
        fairness.pause()


def parse_address(text: bytes, *, smtputf8: bool) -> Recipient:
    """`alice@example.org`, `<alice@example.org>` or a bare name, with the syntax of RCPT. Raises HttpProblem."""
    path = text if text.startswith(b"<") and text.endswith(b">") else b"<" + text + b">"
    parsed = parse_rcpt(b"TO:" + path, smtputf8=smtputf8) if len(path) <= _MAX_PATH else reply.BAD_RECIPIENT
    if isinstance(parsed, Recipient) and parsed.path == path:  # without parameters
        return parsed
    raise bad(f'"{printable(text[:_MAX_PATH])}" is no address that RCPT would take')


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise bad(f"the body is not JSON: {shown(str(error), MAX_TEXT)}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("a key stands there twice")
    return document
