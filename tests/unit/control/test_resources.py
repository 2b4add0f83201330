# SPDX-License-Identifier: GPL-3.0-or-later
"""The control application by itself: what no client can bring about, and that answers have a limit."""

import io
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from lmtp_proxy.clients.session import SessionState
from lmtp_proxy.config.values import Config, UnixAddress
from lmtp_proxy.control.request import GONE, MAX_USERS, UID
from lmtp_proxy.control.resources import Application
from lmtp_proxy.control.state import ControlState
from lmtp_proxy.delivery.in_flight import InFlight
from lmtp_proxy.delivery.parking import Parking
from lmtp_proxy.delivery.uncertain_log import UncertainLog
from lmtp_proxy.generations.manager import ConfigManager
from lmtp_proxy.wire.envelope import Recipient
from tests.support.flight import SomeFlight


def application(sessions: Callable[[], list[SessionState]], in_flight: InFlight) -> Application:
    manager = ConfigManager(Config("/c.yml", (UnixAddress("/s"),), "mx"), lambda: None)
    uncertain = UncertainLog(manager.current, in_flight)
    return Application(ControlState(manager, in_flight, Parking(), uncertain, sessions, lambda: False, ("/s",)))


def get(app: Application, path: str, **environment: object) -> tuple[str, Any]:
    status: list[str] = []
    environ: dict[str, object] = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "wsgi.input": io.BytesIO(),
        UID: 0,
        GONE: lambda: False,
        **environment,
    }
    octets = b"".join(app(environ, lambda line, _: status.append(line)))
    return status[0], json.loads(octets)


def test_a_bug_is_a_500_and_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> list[SessionState]:
        raise RuntimeError("a bug\nin two lines")

    with caplog.at_level(logging.ERROR, "lmtp_proxy"):
        status, answer = get(application(broken, InFlight()), "/sessions")
    assert status == "500 Internal Server Error"
    assert answer == {"error": r"internal error: RuntimeError('a bug\nin two lines')"}
    assert caplog.records[0].exc_info is not None


def test_answers_have_a_limit() -> None:
    in_flight = InFlight()
    recipient = Recipient(b"<u@x>", "u", "x")
    for _ in range(1500):
        in_flight.begin(SomeFlight(*[recipient] * 1000))
    state = SessionState("1", "unix", 1.0, "idle", None, 0, 0)
    app = application(lambda: [state] * 1500, in_flight)
    assert len(get(app, "/sessions")[1]["sessions"]) == 1000
    flights = get(app, "/inflight")[1]["in_flight"]
    assert len(flights) == 1000
    assert (len(flights[0]["recipients"]), flights[0]["count"]) == (20, 1000)
    status = cast(dict[str, Any], get(app, "/status")[1])
    assert (status["sessions"], status["in_flight"]["envelope"]) == (1500, 1500)
    assert MAX_USERS >= 100_000


def post(app: Application, path: str, body: bytes, uid: int = 0) -> tuple[str, Any]:
    stream = io.BytesIO(body)
    length = {"CONTENT_LENGTH": str(len(body)), "wsgi.input": stream}
    return get(app, path, **{"REQUEST_METHOD": "POST", UID: uid, **length})


def test_errors_of_any_file_are_told_to_those_alone_who_could_read_it(tmp_path: Path) -> None:
    """They quote it: else who may connect reads with the proxy's rights."""
    secret = tmp_path / "secret"
    secret.write_text("password: hush\n")
    app = application(list, InFlight())
    body = json.dumps({"path": str(secret)}).encode()
    stranger = os.geteuid() + 1
    status, answer = post(app, "/check", body, uid=stranger)
    assert status.startswith("403 ") and "hush" not in json.dumps(answer), answer
    assert post(app, "/check", body)[0].startswith("200 ")
    assert post(app, "/check", b'{"path": "/c.yml"}', uid=stranger)[0].startswith("200 ")  # the proxy's own


@pytest.mark.parametrize(("resource", "status"), [("/drain", "200 "), ("/edit", "413 "), ("/reload", "413 ")])
def test_only_lists_of_users_may_be_long(resource: str, status: str) -> None:
    body = b'{"users": ["a"], "path": "/x"'.ljust(70_000) + b"}"
    if resource == "/drain":
        body = body.replace(b', "path": "/x"', b"")
    assert post(application(list, InFlight()), resource, body)[0].startswith(status)
