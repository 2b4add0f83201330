# SPDX-License-Identifier: GPL-3.0-or-later
"""What `config.metrics` serves: /metrics, /status, /healthz, /readyz and the status page.

To anybody who can connect, and to read only.

So nothing here names a person: no sender, recipient, user or Message-ID, no line of the configuration, no text that
came with mail. Those are for the control socket. Whatever a client does here costs it its own connection, and all who
ask at the same time get one answer, with a rest after it: so many clients cost hardly more than one.
"""

import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any, Generic, TypeVar

import gevent
from gevent.event import AsyncResult
from gevent.lock import BoundedSemaphore

from lmtp_proxy.control.application import Json, JsonApplication, Text
from lmtp_proxy.control.request import HttpProblem, Request
from lmtp_proxy.control.server import ControlServer, Handler, HttpAcceptor
from lmtp_proxy.figures.prometheus import OPENMETRICS, PLAIN, in_thread, wants_openmetrics
from lmtp_proxy.figures.samples import Samples
from lmtp_proxy.loop.late import Unavailable
from lmtp_proxy.text import count
from lmtp_proxy.web.frame import HEADERS, framed
from lmtp_proxy.web.history import paired
from lmtp_proxy.web.page import Shown, page, page_of_problem

T = TypeVar("T")

_REST = 3.0  # as a part of the time that an answer took, so at most a quarter of all time is spent on them
_REST_LEAST = 0.05  # seconds: to hand out a short answer takes about as long as to make it
_REST_MOST = 5.0  # seconds: what took longer has waited for somebody; a scraper waits for ten


class SharedAnswer(Generic[T]):
    """One answer for all who ask at the same time.

    Args:
        make: gives the answer of the moment, or raises what all who asked get; may wait.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._next: AsyncResult[T] | None = None
        self._one = BoundedSemaphore(1)

    def __repr__(self) -> str:
        return f"<SharedAnswer {'at rest' if self._next is None else 'asked for'}>"

    def get(self) -> T:
        """An answer that was begun after this call."""
        result = self._next
        if result is None:
            result = self._next = AsyncResult()
            gevent.spawn(self._answer, result)
        return result.get()  # type: ignore[return-value]  # it waits without a limit

    def _answer(self, result: "AsyncResult[T]") -> None:
        with self._one:
            self._next = None  # who comes from now on is not to be told what was before
            began = time.monotonic()
            try:
                result.set(self._make())
            except Exception as error:  # noqa: BLE001  (it is for those who asked)
                result.set_exception(error)
            gevent.sleep(min(max(_REST_LEAST, _REST * (time.monotonic() - began)), _REST_MOST))


CONNECTIONS = 16
"""Clients at once; a scraper needs one, and a browser two."""

_PATIENCE = 0.5  # seconds that a client may take to ask, where all places are taken
_OF_UNCERTAIN = ("time", "backend", "size", "session")
_OF_FLIGHT = ("number", "session", "backend", "count", "phase", "seconds", "octets", "worker")
_SAID = re.compile(r"(?s)(?<![0-9])([2-5][0-9]{2}(?: [245]\.[0-9]{1,3}\.[0-9]{1,3})?)(?![0-9]).*")
_PLACE = re.compile(r"(.*?:[0-9]+): ")


# For load balancers and supervisors, which ask often and read the status alone. Neither depends on a store: with all of
# them down the proxy still says 4xx to each recipient, which nobody else would say better.
_HEALTHY = Text("text/plain; charset=utf-8", b"ok\n")
_STOPPING = Text("text/plain; charset=utf-8", b"stopping\n", status=HTTPStatus.SERVICE_UNAVAILABLE)


class MetricsApplication(JsonApplication):
    """What may be shown to anybody.

    Args:
        control: the application of the control socket, whose resources are asked.
        samples: the last minutes, for the curves.
        hostname: the proxy's.
        stopping: whether the proxy accepts no more.
    """

    def __init__(self, control: JsonApplication, samples: Samples, hostname: str, stopping: Callable[[], bool]) -> None:
        self._control = control
        self._samples = samples
        self._hostname = hostname
        self._stopping = stopping
        pages, statuses = SharedAnswer(self._page), SharedAnswer(self._status)
        plain, open_metrics = (SharedAnswer(partial(self._metrics, accept)) for accept in (PLAIN, OPENMETRICS))
        super().__init__(
            {
                "/": {"GET": lambda _: pages.get()},
                "/status": {"GET": lambda _: statuses.get()},
                "/metrics": {"GET": lambda its: (open_metrics if wants_openmetrics(its.accept) else plain).get()},
                "/healthz": {"GET": lambda _: _HEALTHY},
                "/readyz": {"GET": lambda _: _STOPPING if self._stopping() else _HEALTHY},
            }
        )

    def _metrics(self, accept: str) -> Json | Text:
        return self._control.answer("/metrics", _anybody(accept))

    def _status(self) -> Json:
        status = self._control.get("/status", _anybody())
        backends = [{**each, "trouble": _without_text(each["trouble"])} for each in status["backends"]]
        return {**status, "reload": _without_names(status["reload"]), "backends": backends}

    def _page(self) -> Text:
        try:
            octets, status = in_thread(_written, self._shown()), HTTPStatus.OK
        except (HttpProblem, Unavailable) as problem:
            octets = _octets(page_of_problem(self._hostname, str(problem)))
            status = problem.status if isinstance(problem, HttpProblem) else HTTPStatus.SERVICE_UNAVAILABLE
        return Text("text/html; charset=utf-8", octets, HEADERS, status)

    def _shown(self) -> Shown:
        control, request = self._control, _anybody()
        return Shown(
            hostname=self._hostname,
            status=self._status(),
            figures=control.get("/figures", request),
            flights=_parts(control.get("/inflight", request)["in_flight"], _OF_FLIGHT),
            uncertain=_parts(control.get("/uncertain", request)["uncertain"], _OF_UNCERTAIN),
            history=[_without_names(event) or {} for event in paired(control.get("/history", request)["history"])],
            samples=self._samples,
            migration=control.get("/migration", request)["migration"],
        )


def _anybody(accept: str = "") -> Request:
    """What the control application is asked, for however many clients."""
    return Request("", None, -1, lambda: False, accept)


def _written(shown: Shown) -> bytes:
    return _octets(page(shown))


def _octets(content: tuple[str, str, str]) -> bytes:
    return framed(*content).encode("utf-8")


class _PublicHandler(Handler):
    """Nobody has anything to send. Whoever asks nothing makes room for the next client."""

    max_body = 0
    peer_has_uid = False

    def handle_one_request(self) -> Any:
        """See Handler."""
        acceptor: Any = self.server
        acceptor.waits(self)
        try:
            return super().handle_one_request()
        finally:
            acceptor.waiting.pop(self, None)

    def get_environ(self) -> dict[str, Any]:
        """See Handler. The whole request is there when it returns."""
        environ = super().get_environ()
        acceptor: Any = self.server
        acceptor.waiting.pop(self, None)
        return environ


class _PublicAcceptor(HttpAcceptor):
    """A browser keeps its connection, and others may not mean well: no scraper is to wait for them.

    Attributes:
        waiting: connections on which no whole request has come yet, or none since the last, and since when
            (time.monotonic).
    """

    cannot_accept = "metrics: cannot accept a client"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.waiting: dict[_PublicHandler, float] = {}
        self._making_room = False

    def waits(self, handler: _PublicHandler) -> None:
        """For a request, and as long as there is room."""
        self.waiting[handler] = time.monotonic()
        if not self._making_room and self._is_full():
            self._making_room = True
            gevent.spawn(self._make_room)

    def _make_room(self) -> None:
        try:
            while self._is_full():
                gevent.sleep(_PATIENCE)
                latest = time.monotonic() - _PATIENCE
                for handler in [handler for handler, since in self.waiting.items() if since <= latest]:
                    del self.waiting[handler]
                    with suppress(OSError):
                        handler.socket.shutdown(socket.SHUT_RDWR)
        finally:
            self._making_room = False

    def _is_full(self) -> bool:
        return self.pool is not None and self.pool.free_count() < 1


def metrics_server(
    listener: Any, control: JsonApplication, samples: Samples, hostname: str, stopping: Callable[[], bool]
) -> ControlServer:
    """The server on `listener`, a TCP socket of gevent. The other arguments: see MetricsApplication."""
    application = MetricsApplication(control, samples, hostname, stopping)
    return ControlServer(listener, application, _PublicAcceptor, CONNECTIONS, _PublicHandler)


def _without_text(trouble: str | None) -> str | None:
    """Of what a backend said only the code, as the rest may name somebody."""
    return None if trouble is None else _SAID.sub(r"\1", trouble)


def _parts(items: list[Json], keys: tuple[str, ...]) -> list[Json]:
    return [{key: item[key] for key in keys if key in item} for item in items]


def _without_names(event: Json | None) -> Json | None:
    """A reload or drain: of errors only how many and where the first one is, of users only how many."""
    if event is None:
        return None
    told = {**event}
    if "errors" in told:
        errors = told["errors"]
        place = _PLACE.match(errors[0]) if errors else None
        told["errors"] = [count(len(errors), "error") + (f" ({place[1]})" if place else "")]
    told.pop("users", None)
    if "drain" in told:
        told["drain"] = _without_names(told["drain"])
    if "moved" in told:
        told["moved"] = _parts(told["moved"], ("from", "to", "count"))
    return told
