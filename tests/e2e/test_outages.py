# SPDX-License-Identifier: GPL-3.0-or-later
"""A store or the proxy itself goes away under load and comes back: nothing is lost, nothing bounces."""

import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.support.proxy import ProxyProcess

from .conftest import Stack, Start
from .mail import Message, check_copies, message, read_back, submit
from .postfix import Attempt
from .process import family, wait_until

IMPATIENT = {"connect": 1, "greeting": 1, "command": 1, "data_write": 1, "final_reply": 2}
"""Seconds that the proxy gives a store, so that a frozen one does not make the test wait."""


class Load:
    """Messages to the same users, one after the other in each of three SMTP sessions, for as long as wanted."""

    def __init__(self, stack: Stack, name: str, users: Sequence[str]) -> None:
        self.messages: list[Message] = []
        self.queue_ids: dict[str, str] = {}
        self._stack = stack
        self._name = name
        self._users = users
        self._end = threading.Event()
        self._failures: list[BaseException] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._run, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._end.set()
            for thread in threads:
                thread.join()
        assert self._failures == []

    def _run(self, number: int) -> None:
        try:
            count = 0
            while not self._end.wait(0.02):
                item = message(f"{self._name}-{number}-{count}", self._users, b".dot\r\n\xe9\r\n" * 500)
                self.queue_ids |= submit(self._stack.postfix, [item])
                self.messages.append(item)
                count += 1
        except BaseException as failure:
            self._failures.append(failure)

    def wait_more(self, count: int, timeout: float = 20.0) -> None:
        """Returns when `count` more messages were submitted."""
        goal = len(self.messages) + count
        wait_until(lambda: len(self.messages) >= goal or self._failures, timeout, f"{count} more messages")

    def attempts(self) -> list[Attempt]:
        return self._stack.postfix.attempts(list(self.queue_ids.values()))

    def wait_sent(self, users: Sequence[str], timeout: float) -> None:
        """Returns when each message has been delivered to each of these users."""
        goal = len(self.messages) * len(users)

        def sent() -> int:
            return sum(a.status == "sent" and a.to.partition("@")[0] in users for a in self.attempts())

        wait_until(lambda: sent() >= goal, timeout, lambda: f"{goal} delivered, only {sent()}")


def uncertain(proxy: ProxyProcess) -> Counter[str]:
    """How often the proxy logged for a user that a delivery's outcome is unknown."""
    return Counter(re.findall(r"to=<(\w[^@>]*)@[^\n]*may be delivered", proxy.log()))


@pytest.mark.parametrize("how", ["killed", "stopped", "frozen"])
def test_dovecot_goes_away_and_comes_back(stack: Stack, start_proxy: Start, how: str) -> None:
    users = stack.users(4)
    old, new = users[:2], users[2:]
    routes = dict.fromkeys(old, "old") | dict.fromkeys(new, "new")
    config = stack.config(routes, timeouts=IMPATIENT if how == "frozen" else {})
    # Each message is for both stores, and more than half of Postfix' 20 connections may wait for the one that is frozen
    # longer than this `connect`: no mailbox of the others is to be full meanwhile.
    if how == "frozen":
        store = config["backends"]["old"]
        assert isinstance(store, dict)
        store["max_per_user"] = 20
    proxy = start_proxy(config)
    load = Load(stack, how, users)

    with load.running():
        load.wait_more(20)
        frozen = family(stack.new.master) if how == "frozen" else []
        if how == "killed":
            stack.new.kill()
        elif how == "stopped":
            stack.new.stop()
        for pid in frozen:
            pid.signal(signal.SIGSTOP)
        load.wait_more(20)
    load.wait_sent(old, 20)
    waiting = {a.to.partition("@")[0] for a in load.attempts() if a.status == "deferred"}
    for pid in frozen:
        pid.signal(signal.SIGCONT)
    stack.new.ensure_started()
    stack.postfix.wait_removed(load.queue_ids.values(), 30)

    assert waiting == set(new)
    assert "bounced" not in {a.status for a in load.attempts()}
    check_copies(load.messages, read_back(stack.stores, users), may_be_twice=uncertain(proxy))
    assert stack.postfix.lines("suspended|lost connection with") == []


def test_proxy_restarts_under_load(stack: Stack, start_proxy: Start) -> None:
    users = stack.users(4)
    proxy = start_proxy(stack.config(dict(zip(users, ("old", "old", "new", "new"), strict=True))))
    load = Load(stack, "restart", users)

    with load.running():
        for _ in range(3):
            load.wait_more(15)
            assert proxy.stop() == 0
            load.wait_more(3)
            proxy.start()
        load.wait_more(15)
    stack.postfix.wait_removed(load.queue_ids.values(), 30)

    assert {a.status for a in load.attempts()} <= {"sent", "deferred"}
    check_copies(load.messages, read_back(stack.stores, users), may_be_twice=uncertain(proxy))
    assert uncertain(proxy) == Counter()


def test_proxy_crashes_under_load(stack: Stack, start_proxy: Start) -> None:
    users = stack.users(2)
    proxy = start_proxy(stack.config(dict(zip(users, ("old", "new"), strict=True))))
    load = Load(stack, "crash", users)

    with load.running():
        for _ in range(2):
            load.wait_more(15)
            proxy.signal(signal.SIGKILL)
            proxy.wait()
            proxy.start()
        load.wait_more(15)
    stack.postfix.wait_removed(load.queue_ids.values(), 30)

    assert {a.status for a in load.attempts()} <= {"sent", "deferred"}
    # nobody is left to say which deliveries were past the dot: at most Postfix's 20 at a time, at both crashes
    check_copies(load.messages, read_back(stack.stores, users), may_be_twice=dict.fromkeys(users, 2 * 20))
