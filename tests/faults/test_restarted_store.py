"""A store that is being restarted, one that never comes back, and one that is no LMTP server at all."""

from __future__ import annotations

import os
import threading
import time

import pytest

from tests.support.backend import FakeBackend
from tests.support.client import Outcome
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import Script, say

TIMEOUTS = {"connect": 10, "greeting": 10, "command": 10}


def codes(outcome: Outcome) -> list[int]:
    return [outcome.verdict(position).code for position in range(len(outcome.recipients))]


def deliver(proxy: ProxyProcess, *recipients: str) -> tuple[list[int], float]:
    with proxy.client() as client:
        began = time.monotonic()
        outcome = client.deliver("s@x", list(recipients or ["u@a"]))
        lasted = time.monotonic() - began
        client.quit()
    return codes(outcome), lasted


def config(backend: FakeBackend, grace: float | None, **more: FakeBackend) -> dict[str, dict[str, object]]:
    made = config_of({"a": backend, **more}, timeouts=TIMEOUTS)
    if grace is not None:
        made["backends"]["a"] = {**backend.config, "restart_grace": grace}
    return made


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_mail_that_meets_a_restart_waits_for_its_end(transport: str) -> None:
    # The grace is so long that a busy machine does not make the store's last reply too old.
    with FakeBackend(transport=transport) as backend, ProxyProcess(config(backend, 20), workers=1) as proxy:
        assert deliver(proxy)[0] == [250]
        assert backend.wait_closed(1)
        backend.stop()
        address = ("127.0.0.1", backend.port) if transport == "tcp" else ("127.0.0.1", 0)
        told: list[list[int]] = []
        waiting = [threading.Thread(target=lambda: told.append(deliver(proxy)[0])) for _ in range(5)]
        for each in waiting:
            each.start()
        time.sleep(0.5)
        assert told == []
        with FakeBackend(transport=transport, address=address) as again:
            if transport == "unix":
                os.makedirs(backend.directory)
                os.rename(again.path, backend.path)
            for each in waiting:
                each.join(20)
            assert told == [[250]] * 5 and len(again.connections) == 5
        assert " is down: " not in proxy.log()


def test_one_that_does_not_come_back_defers_when_its_grace_is_over() -> None:
    with FakeBackend() as backend, ProxyProcess(config(backend, None), workers=1) as proxy:
        assert deliver(proxy)[0] == [250]
        backend.stop()
        told, lasted = deliver(proxy)
        assert told == [451] and 2 < lasted < 6
        assert proxy.log().count(" is down: ") == 1
        told, lasted = deliver(proxy)  # at once from then on
        assert told == [451] and lasted < 1.5


def test_one_that_has_never_answered_is_not_waited_for() -> None:
    with FakeBackend(peer="absent") as backend, ProxyProcess(config(backend, 30), workers=1) as proxy:
        told, lasted = deliver(proxy)
        assert told == [451] and lasted < 15


def test_zero_waits_for_none() -> None:
    with FakeBackend() as backend, ProxyProcess(config(backend, 0), workers=1) as proxy:
        assert deliver(proxy)[0] == [250]
        backend.stop()
        told, lasted = deliver(proxy)
        assert told == [451] and lasted < 1.5


@pytest.mark.parametrize(
    "lhlo",
    [
        say("500 5.5.1 Command unrecognized: LHLO"),  # Sendmail
        say("502 5.5.2 Error: command not recognized"),  # Postfix
        say("500 unrecognized command"),  # Exim
        say("502 unimplemented (#5.5.1)"),  # qmail
        say("500 5.5.1 Invalid command: Command unrecognized"),  # OpenSMTPD
        say("500-what is", "500 LHLO"),
    ],
    ids=str,
)
def test_a_server_that_does_not_know_lhlo_may_be_one_of_smtp(lhlo: tuple[object, ...]) -> None:
    with (
        FakeBackend(Script(lhlo=lhlo)) as backend,  # type: ignore[arg-type]
        ProxyProcess(config(backend, None), workers=1) as proxy,
    ):
        assert deliver(proxy)[0] == [451]
        assert "; is it an SMTP server?" in proxy.log()


@pytest.mark.parametrize("lhlo", [say("421 4.3.2 closing"), say("550 5.7.1 go away"), say("501 5.5.4 bad name")])
def test_one_that_has_another_reason_is_not_asked(lhlo: tuple[object, ...]) -> None:
    with (
        FakeBackend(Script(lhlo=lhlo)) as backend,  # type: ignore[arg-type]
        ProxyProcess(config(backend, None), workers=1) as proxy,
    ):
        assert deliver(proxy)[0] == [451]
        assert "is it an SMTP server?" not in proxy.log()
