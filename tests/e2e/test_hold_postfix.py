# SPDX-License-Identifier: GPL-3.0-or-later
"""`hold` behind Postfix with Debian's own times: what comes meanwhile waits in its place, nobody else waits at all."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from tests.support.proxy import ProxyProcess

from .conftest import Stack, Start
from .cutover import proxyctl
from .mail import Message, check_copies, message, read_back, submit, submit_at_once
from .postfix import DOMAIN, Attempt


def move(proxy: ProxyProcess, user: str, backend: str) -> None:
    done = proxyctl(proxy, "move", user, backend, "--domain", DOMAIN)
    assert done.returncode == 0, f"move {user} {backend}: exit {done.returncode}\n{done.stdout}{done.stderr}"


class Others:
    """Mail for everybody else, a message every quarter of a second."""

    def __init__(self, stack: Stack, name: str, users: list[str]) -> None:
        self.messages: list[Message] = []
        self.queue_ids: dict[str, str] = {}
        self._stack = stack
        self._name = name
        self._users = users

    @contextmanager
    def running(self) -> Iterator[None]:
        end = Event()

        def run() -> None:
            while not end.wait(0.25):
                item = message(f"{self._name}-other-{len(self.messages)}", self._users)
                self.queue_ids |= submit(self._stack.postfix, [item])
                self.messages.append(item)

        thread = Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()

    def check(self) -> None:
        """Each was delivered at its first attempt within a second."""
        self._stack.postfix.wait_removed(self.queue_ids.values(), 30)
        attempts = self._stack.postfix.attempts(self.queue_ids.values())
        assert len(attempts) == len(self.messages) * len(self._users) > 0
        assert [a for a in attempts if a.status != "sent" or a.delay >= 1.0] == []


def of_user(attempts: list[Attempt], user: str, status: str) -> list[Attempt]:
    return [a for a in attempts if a.to == f"{user}@{DOMAIN}" and a.status == status]


def test_mail_of_an_eight_second_hold_arrives_within_a_second(patient_stack: Stack, start_proxy: Start) -> None:
    stack = patient_stack
    held, *others = stack.users(3)
    proxy = start_proxy(stack.config({held: "old", others[0]: "old", others[1]: "new"}))
    flow = Others(stack, "eight", others)
    messages = [message(f"held-{number}", [held]) for number in range(2)]

    with flow.running():
        move(proxy, held, "hold")
        began = time.monotonic()
        queue_ids = submit_at_once(stack.postfix, messages, sessions=2)
        time.sleep(8.0 - (time.monotonic() - began))
        assert stack.postfix.attempts(queue_ids.values()) == []
        move(proxy, held, "new")
        released = time.monotonic()
        stack.postfix.wait_removed(queue_ids.values(), 30)
        waited = time.monotonic() - released

    print(f"delivered {waited:.2f} s after the release")
    assert waited < 5.0, "a second, and what a busy machine adds; the hold itself would have ended after 30 s"
    flow.check()
    check_copies(messages + flow.messages, read_back(stack.stores, [held, *others]))
    assert read_back([stack.old], [held]) == {}
    assert stack.postfix.lines("status=deferred|suspended") == []
    sent = of_user(stack.postfix.attempts(queue_ids.values()), held, "sent")
    assert [7.5 < a.delay < 14 for a in sent] == [True, True]


def test_ten_messages_for_a_held_user_delay_nobody_else(patient_stack: Stack, start_proxy: Start) -> None:
    stack = patient_stack
    held, *others = stack.users(3)
    proxy = start_proxy(stack.config({held: "hold", others[0]: "old", others[1]: "new"}))
    flow = Others(stack, "ten", others)
    messages = [message(f"ten-{number}", [held]) for number in range(10)]

    with flow.running():
        queue_ids = submit_at_once(stack.postfix, messages, sessions=5)
        time.sleep(3.0)
        deferred = of_user(stack.postfix.attempts(queue_ids.values()), held, "deferred")
        move(proxy, held, "new")
        time.sleep(1.0)
        sent = of_user(stack.postfix.attempts(queue_ids.values()), held, "sent")

    assert len(deferred) == 8 and all("450 4.2.1" in a.text and a.delay < 3.0 for a in deferred), deferred
    assert len(sent) == 2, sent
    flow.check()
    assert stack.postfix.lines("suspended") == []
    stack.postfix.flush()
    stack.postfix.wait_removed(queue_ids.values(), 30)
    check_copies(messages, read_back(stack.stores, [held]))
