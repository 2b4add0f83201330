# SPDX-License-Identifier: GPL-3.0-or-later
"""Real Cyrus over TCP, where it wants authentication, by each mechanism that it offers."""

import pytest

from .conftest import Stack, Start
from .mail import check_copies, message, read_back, submit
from .process import wait_until
from .stores import MECHANISMS, PASSWORD

WRONG = "not-the-password"


def old_by_tcp(stack: Stack, mechanism: str, password: str | None) -> dict[str, object]:
    """The backend `old`, reached on the TCP port that offers `mechanism` alone; with None nobody authenticates."""
    account = {} if password is None else {"user": stack.old.lmtp_user, "password": password}
    return {"host": "127.0.0.1", "port": stack.old.lmtp_ports[mechanism], **account}


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_delivers_after_authentication(stack: Stack, start_proxy: Start, mechanism: str) -> None:
    users = stack.users(3)
    config = stack.config({users[0]: "old", users[1]: "old", users[2]: "new"})
    config["backends"]["old"] = old_by_tcp(stack, mechanism, PASSWORD)
    start_proxy(config)
    messages = [message(f"auth-{mechanism}-{number}", users, b"8 bit: \xe9\r\n.\r\n..\r\n") for number in range(5)]

    queue_ids = submit(stack.postfix, messages)

    stack.postfix.wait_removed(queue_ids.values(), 20)
    check_copies(messages, read_back(stack.stores, users))
    attempts = stack.postfix.attempts(queue_ids.values())
    assert {attempt.status for attempt in attempts} == {"sent"}, attempts


@pytest.mark.parametrize("password", [WRONG, None], ids=["wrong", "none"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "CRAM-MD5"])
def test_without_the_right_password_mail_waits(
    stack: Stack, start_proxy: Start, mechanism: str, password: str | None
) -> None:
    users = stack.users(2)
    config = stack.config({users[0]: "old", users[1]: "new"})
    config["backends"]["old"] = old_by_tcp(stack, mechanism, password)
    proxy = start_proxy(config)
    item = message("unauthenticated", users)

    queue_ids = submit(stack.postfix, [item])

    wait_until(lambda: len(stack.postfix.attempts(queue_ids.values())) >= 2, 30, stack.postfix.log)
    first = {attempt.to.partition("@")[0]: attempt for attempt in stack.postfix.attempts(queue_ids.values())[:2]}
    assert (first[users[0]].status, first[users[1]].status) == ("deferred", "sent")
    assert "451 4.7.0" in first[users[0]].text
    assert len(read_back(stack.stores, users)) == 1
    alarms = [line for line in proxy.log().splitlines() if "old" in line and "authenti" in line.lower()]
    assert alarms, proxy.log()
    assert WRONG not in proxy.log()

    proxy.config["backends"]["old"] = old_by_tcp(stack, mechanism, PASSWORD)
    assert "active" in proxy.reload()
    stack.postfix.wait_removed(queue_ids.values(), 20)
    check_copies([item], read_back(stack.stores, users))
    assert "bounced" not in {attempt.status for attempt in stack.postfix.attempts(queue_ids.values())}
