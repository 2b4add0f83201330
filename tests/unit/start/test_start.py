# SPDX-License-Identifier: GPL-3.0-or-later
"""What the command hands over to the process that is to serve."""

from __future__ import annotations

import socket
from collections.abc import Callable
from signal import SIGHUP, SIGINT, SIGTERM, SIGUSR1

import pytest

from lmtp_proxy.config.values import Config, UnixAddress
from lmtp_proxy.start.ready import Notifier
from lmtp_proxy.start.signals import handle_signals
from lmtp_proxy.start.sockets import Listener
from lmtp_proxy.start.start import Start


def start(received: list[int], control: Listener | None = None, *, after_crash: bool = False) -> Start:
    with socket.socket() as unused:
        mail = [Listener(unused, after_crash=after_crash)]
    return Start(
        Config("/c.yml", (UnixAddress("/s"),), "h"), 0, mail, control, None, False, received, lambda: None,
        Notifier("", 0),
    )  # fmt: skip


@pytest.mark.parametrize(
    "received, called",
    [
        ([], []),
        ([SIGUSR1], ["reload"]),
        ([SIGHUP], ["reload"]),
        ([SIGTERM], ["stop"]),
        ([SIGUSR1, SIGINT, SIGUSR1], ["reload", "stop", "reload"]),
    ],
)
def test_no_signal_is_lost_between_two_handlers(received: list[int], called: list[str]) -> None:
    handlers: dict[int, Callable[[], None]] = {}
    heard: list[str] = []

    def handle(number: int, call: Callable[[], None]) -> None:
        assert not heard, "a signal that came before may be overtaken by one that comes now"
        handlers[number] = call

    handle_signals(received, handle, lambda: heard.append("reload"), lambda: heard.append("stop"))
    assert heard == called
    heard.clear()
    for number in (SIGUSR1, SIGHUP, SIGTERM, SIGINT):
        handlers[number]()
    assert heard == ["reload", "reload", "stop", "stop"]


def test_a_crash_is_seen_by_any_of_the_sockets() -> None:
    assert not start([]).after_crash
    assert start([], after_crash=True).after_crash
    with socket.socket() as unused:
        control = Listener(unused, after_crash=True)
    assert start([], control).after_crash


def test_a_control_socket_that_is_not_there_need_not_go() -> None:
    start([]).remove_control()
