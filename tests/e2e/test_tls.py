# SPDX-License-Identifier: GPL-3.0-or-later
"""Real stores across TLS: Cyrus with `allowplaintext: no`, STARTTLS and PLAIN; Dovecot with STARTTLS, and implicit."""

from pathlib import Path

import pytest

from .conftest import Stack, Start
from .mail import check_copies, message, read_back, submit
from .process import wait_until
from .stores import PASSWORD


def secure(stack: Stack, tls: str = "starttls") -> dict[str, dict[str, object]]:
    """Both backends. tls: Dovecot's."""
    port = stack.new.lmtp_port if tls == "starttls" else stack.new.lmtps_port
    cyrus = {"host": "127.0.0.1", "port": stack.old.lmtp_tls_port, "user": stack.old.lmtp_user, "password": PASSWORD}
    return {
        "old": {**cyrus, "tls": "starttls", "tls_ca": stack.old.authority.path},
        "new": {"host": "127.0.0.1", "port": port, "tls": tls, "tls_ca": stack.new.authority.path},
    }


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_delivers(stack: Stack, start_proxy: Start, tls: str) -> None:
    users = stack.users(3)
    config = stack.config({users[0]: "old", users[1]: "old", users[2]: "new"})
    config["backends"] = dict(secure(stack, tls))
    start_proxy(config)
    long = b"8 bit: \xe9\r\n.\r\n..\r\n" + b"x" * 70 + b"\r\n"
    messages = [message(f"tls-{tls}-{number}", users, long * (1 + 3000 * (number == 2))) for number in range(5)]

    queue_ids = submit(stack.postfix, messages)

    stack.postfix.wait_removed(queue_ids.values(), 40)
    check_copies(messages, read_back(stack.stores, users))
    attempts = stack.postfix.attempts(queue_ids.values())
    assert {attempt.status for attempt in attempts} == {"sent"}, attempts


@pytest.mark.parametrize("wrong", ["ca", "tls"])
def test_without_it_mail_waits(stack: Stack, start_proxy: Start, tmp_path: Path, wrong: str) -> None:
    """The other store's CA; or none, where Cyrus takes no password and so no mail."""
    users = stack.users(2)
    config = stack.config({users[0]: "old", users[1]: "new"})
    config["backends"] = dict(secure(stack))
    old = dict(secure(stack)["old"])
    if wrong == "ca":
        old["tls_ca"] = stack.new.authority.path
    else:
        del old["tls"], old["tls_ca"]
    config["backends"]["old"] = old
    proxy = start_proxy(config)
    item = message(f"not-secure-{wrong}", users)

    queue_ids = submit(stack.postfix, [item])

    wait_until(lambda: len(stack.postfix.attempts(queue_ids.values())) >= 2, 30, stack.postfix.log)
    first = {attempt.to.partition("@")[0]: attempt for attempt in stack.postfix.attempts(queue_ids.values())[:2]}
    assert (first[users[0]].status, first[users[1]].status) == ("deferred", "sent")
    assert "451 4.7.0" in first[users[0]].text
    assert PASSWORD not in proxy.log()

    proxy.config["backends"] = dict(secure(stack))
    assert "active" in proxy.reload()
    stack.postfix.wait_removed(queue_ids.values(), 20)
    check_copies([item], read_back(stack.stores, users))
