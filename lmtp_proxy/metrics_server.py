# SPDX-License-Identifier: GPL-3.0-or-later
"""What `config.metrics` serves: /metrics, /status and the status page, to anybody who can connect, and to read only.

So nothing here names a person: no sender, recipient, user or Message-ID, no line of the configuration, no text that
came with mail. Those are for the control socket. Whatever a client does here costs it its own connection.
"""

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import gevent

from lmtp_proxy.control_application import Json, JsonApplication, Text
from lmtp_proxy.control_request import Problem, Request
from lmtp_proxy.control_server import Acceptor, ControlServer, Handler
from lmtp_proxy.figures import Figures
from lmtp_proxy.page_frame import HEADERS, framed
from lmtp_proxy.samples import Samples
from lmtp_proxy.status_page import Shown, page, page_of_problem

CONNECTIONS = 16
"""Clients at once; a scraper needs one, and a browser two."""

_OF_UNCERTAIN = ("time", "backend", "size", "session")
_OF_FLIGHT = ("number", "session", "backend", "count", "phase", "seconds", "octets", "worker")
_PLACE = re.compile(r"(.*?:[0-9]+): ")


class MetricsApplication(JsonApplication):
    """control: the application of the control socket, whose resources are asked. hostname: the proxy's."""

    def __init__(self, control: JsonApplication, samples: Samples, hostname: str) -> None:
        self._control = control
        self._samples = samples
        self._hostname = hostname
        super().__init__(
            {
                "/": {"GET": self._page},
                "/status": {"GET": self._status},
                "/metrics": {"GET": lambda request: control.answer("/metrics", request)},
            }
        )

    def _status(self, request: Request) -> Json:
        status = self._control.get("/status", request)
        return {**status, "reload": _without_names(status["reload"])}

    def _page(self, request: Request) -> Text:
        try:
            content, status = page(self._shown(request)), HTTPStatus.OK
        except Problem as problem:
            content, status = page_of_problem(self._hostname, str(problem)), problem.status
        return Text("text/html; charset=utf-8", framed(*content).encode("utf-8"), HEADERS, status)

    def _shown(self, request: Request) -> Shown:
        control = self._control
        return Shown(
            hostname=self._hostname,
            status=self._status(request),
            figures=control.get("/figures", request),
            flights=_parts(control.get("/inflight", request)["in_flight"], _OF_FLIGHT),
            uncertain=_parts(control.get("/uncertain", request)["uncertain"], _OF_UNCERTAIN),
            history=[_without_names(event) or {} for event in control.get("/history", request)["history"]],
            samples=self._samples,
        )


class _Handler(Handler):
    """Nobody has anything to send."""

    max_body = 0
    peer_has_uid = False


class _Acceptor(Acceptor):
    cannot_accept = "metrics: cannot accept a client"


class _MetricsServer(ControlServer):
    """With the samples that it shows."""

    def __init__(self, listener: Any, application: MetricsApplication, samples: Samples) -> None:
        super().__init__(listener, application, _Acceptor, CONNECTIONS, _Handler)
        self._samples = samples
        self._sampling: gevent.Greenlet[..., None] | None = None

    def start(self) -> None:
        super().start()
        self._sampling = gevent.spawn(self._samples.run)

    def stop(self) -> None:
        super().stop()
        if self._sampling is not None:
            self._sampling.kill()


def metrics_server(
    listener: Any, control: JsonApplication, collect: Callable[[], Figures | None], hostname: str
) -> ControlServer:
    """The server on `listener`, a gevent socket of TCP. control, hostname: see MetricsApplication; collect: Samples."""
    samples = Samples(collect)
    return _MetricsServer(listener, MetricsApplication(control, samples, hostname), samples)


def _parts(items: list[Json], keys: tuple[str, ...]) -> list[Json]:
    return [{key: item[key] for key in keys if key in item} for item in items]


def _without_names(event: Json | None) -> Json | None:
    """A reload or drain; of errors only how many and where the first one is, of users only how many."""
    if event is None:
        return None
    told = {**event}
    if "errors" in told:
        errors = told["errors"]
        place = _PLACE.match(errors[0]) if errors else None
        told["errors"] = [f"{len(errors)} error{'' if len(errors) == 1 else 's'}" + (f" ({place[1]})" if place else "")]
    told.pop("users", None)
    if "moved" in told:
        told["moved"] = _parts(told["moved"], ("from", "to", "count"))
    return told
