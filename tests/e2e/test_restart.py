# SPDX-License-Identifier: GPL-3.0-or-later
"""Restarts behind Postfix, the listening socket passed from one process to the next: nothing is deferred."""

import grp
import os
import pwd
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.passed import PassedSocketProxy, listening_unix

from .conftest import Stack
from .cutover import deliver_the_rest
from .flow import Flow
from .mail import check_copies, read_back
from .process import wait_until

RESTARTS = 10
MESSAGES_A_SECOND = 20


@pytest.fixture(params=[1, 2], ids=["one process", "two workers"])
def proxy(request: pytest.FixtureRequest, patient_stack: Stack) -> Iterator[tuple[PassedSocketProxy, list[str]]]:
    """A proxy on the socket that Postfix knows, and the users it serves: some in each store."""
    users = patient_stack.users(6)
    routes = {user: "old" if number % 2 else "new" for number, user in enumerate(users)}
    config = patient_stack.config(routes, workers=request.param)
    path = patient_stack.proxy_socket
    path.unlink(missing_ok=True)
    with listening_unix(str(path)) as listener:
        os.chown(path, pwd.getpwnam("postfix").pw_uid, grp.getgrnam("postfix").gr_gid)
        proxy = PassedSocketProxy(config, listener)
        with proxy:
            yield proxy, users
            print("The proxy's log:", *proxy.log().splitlines()[-200:], sep="\n")
    path.unlink(missing_ok=True)


@pytest.mark.timeout(300)
def test_ten_restarts_under_load(patient_stack: Stack, proxy: tuple[PassedSocketProxy, list[str]]) -> None:
    stack, (process, users) = patient_stack, proxy
    flow = Flow(stack.postfix, "restart", users, rate=MESSAGES_A_SECOND, large_every=40, large_size=2**20)
    away = []
    pids = {process.pid}
    with flow.running():
        for _ in range(RESTARTS):
            time.sleep(1.0)
            begun = time.monotonic()
            assert process.stop(30) == 0
            process.start()
            away.append(time.monotonic() - begun)
            pids.add(process.pid)
        time.sleep(1.0)
    assert len(pids) == RESTARTS + 1
    stack.postfix.wait_removed(flow.queue_ids.values(), 30)

    attempts = stack.postfix.attempts(flow.queue_ids.values())
    slowest = max(attempt.delay for attempt in attempts)
    print(
        f"{len(flow.messages)} messages in {flow.seconds:.1f} s, {RESTARTS} restarts of {min(away):.2f} to "
        f"{max(away):.2f} s; slowest delivery {slowest:.2f} s"
    )
    assert [attempt for attempt in attempts if attempt.status != "sent"] == []
    assert stack.postfix.lines("status=deferred|suspended|/lmtp.*(refused|lost connection)") == []
    assert process.log().count("stopping: no new clients") == RESTARTS
    assert len(flow.messages) > 10 * RESTARTS
    check_copies(flow.messages, read_back(stack.stores, users))


def test_without_it_the_same_restart_defers(patient_stack: Stack, proxy: tuple[PassedSocketProxy, list[str]]) -> None:
    """That the test above could fail: with no socket to wait at, Postfix defers."""
    stack, (process, users) = patient_stack, proxy
    flow = Flow(stack.postfix, "refused", users, rate=MESSAGES_A_SECOND, large_every=1000, large_size=2**20)
    away = Path(f"{stack.proxy_socket}.away")
    with flow.running():
        wait_until(lambda: flow.queue_ids, 30, "a first message")
        stack.proxy_socket.rename(away)  # first, so that nobody is at it when the proxy goes
        assert process.stop(30) == 0
        wait_until(lambda: stack.postfix.lines("status=deferred"), 30, "Postfix defers")
        away.rename(stack.proxy_socket)
        process.start()
    deliver_the_rest(stack)  # one flush may come before the last is deferred
    check_copies(flow.messages, read_back(stack.stores, users))
