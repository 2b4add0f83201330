# SPDX-License-Identifier: GPL-3.0-or-later
"""Unknown, rejected and held users behind real Postfix: what happens to them, and that nobody else waits for them."""

import smtplib
import time
from collections.abc import Mapping

from .conftest import Stack, Start
from .mail import SENDER, check_copies, message, read_back, submit
from .postfix import DOMAIN, Attempt
from .process import wait_until


def by_user(attempts: list[Attempt]) -> dict[str, Attempt]:
    """The last attempt for each user."""
    return {attempt.to.partition("@")[0]: attempt for attempt in attempts}


def first_attempts(stack: Stack, queue_ids: Mapping[str, str]) -> list[Attempt]:
    """The first attempt of each message for each user."""
    first: dict[tuple[str, str], Attempt] = {}
    for attempt in stack.postfix.attempts(queue_ids.values()):
        first.setdefault((attempt.queue_id, attempt.to), attempt)
    return list(first.values())


def test_only_the_unknown_user_bounces(stack: Stack, start_proxy: Start) -> None:
    users = stack.users(2)
    routes = {users[0]: "old", users[1]: "new", "nobody-old": "old", "nobody-new": "new"}
    start_proxy(stack.config(routes))

    queue_ids = submit(stack.postfix, [message("unknown", list(routes))])

    stack.postfix.wait_removed(queue_ids.values(), 30)
    attempts = by_user(stack.postfix.attempts(queue_ids.values()))
    assert {user: attempt.status for user, attempt in attempts.items()} == {
        users[0]: "sent",
        users[1]: "sent",
        "nobody-old": "bounced",
        "nobody-new": "bounced",
    }
    # the stores' own words, all lines of them
    assert (attempts["nobody-old"].dsn, attempts["nobody-new"].dsn) == ("5.1.1", "5.1.1")
    assert "550-Mailbox unknown.  Either there is no mailbox" in attempts["nobody-old"].text
    assert "550 5.1.1 User unknown (in reply to RCPT TO" in attempts["nobody-old"].text
    assert "550 5.1.1 <nobody-new@example.test> User doesn't exist: nobody-new" in attempts["nobody-new"].text
    check_copies([message("unknown", users)], read_back(stack.stores, users))
    wait_until(lambda: any(b"User unknown" in text for text in stack.old.messages(SENDER)), 30, "notice to the sender")


def test_a_user_not_in_the_table_waits(stack: Stack, start_proxy: Start) -> None:
    users = listed, unlisted = stack.users(2)
    proxy = start_proxy(stack.config({listed: "old"}))

    queue_ids = submit(stack.postfix, [message("unlisted", users)])

    wait_until(lambda: len(stack.postfix.attempts(queue_ids.values())) >= 2, 30, stack.postfix.log)
    attempts = by_user(stack.postfix.attempts(queue_ids.values()))
    assert attempts[listed].status == "sent"
    assert (attempts[unlisted].status, attempts[unlisted].dsn) == ("deferred", "4.1.1")
    assert "450 4.1.1" in attempts[unlisted].text
    proxy.route(unlisted, "new")
    stack.postfix.wait_removed(queue_ids.values(), 30)
    check_copies([message("unlisted", users)], read_back(stack.stores, users))


def test_a_rejected_user_waits_alone_and_gets_all_mail_after_the_move(stack: Stack, start_proxy: Start) -> None:
    users = moving, staying_old, staying_new = stack.users(3)
    proxy = start_proxy(stack.config({moving: "reject", staying_old: "old", staying_new: "new"}))
    messages = [message(f"reject-{number}", users) for number in range(5)]

    queue_ids = submit(stack.postfix, messages)

    wait_until(lambda: len(first_attempts(stack, queue_ids)) == 15, 30, stack.postfix.log)
    for attempt in first_attempts(stack, queue_ids):
        if attempt.to.startswith(f"{moving}@"):
            assert attempt.status == "deferred" and "450 4.2.1" in attempt.text, attempt
        else:
            assert attempt.status == "sent" and attempt.delay < 20, attempt
    assert read_back(stack.stores, [moving]) == {}

    proxy.route(moving, "new")
    stack.postfix.wait_removed(queue_ids.values(), 30)
    check_copies(messages, read_back(stack.stores, users))
    assert read_back([stack.old], [moving]) == {}
    assert stack.postfix.lines("suspended") == []


def test_a_held_message_goes_to_the_new_store_within_a_second_of_the_reload(stack: Stack, start_proxy: Start) -> None:
    users = held_user, free_user = stack.users(2)
    proxy = start_proxy(stack.config({held_user: "hold", free_user: "old"}))
    held, free = message("held", [held_user]), message("free", [free_user])

    queue_ids = submit(stack.postfix, [held, free])

    stack.postfix.wait_removed([queue_ids["free"]], 30)
    time.sleep(1.0)  # long enough for any reply but one that is held
    assert stack.postfix.attempts([queue_ids["held"]]) == []
    proxy.config["users"][held_user] = "new"
    proxy.write_config()
    start = time.monotonic()
    proxy.signal_reload()
    proxy.wait_log(rf"to=<{held_user}@.*status=sent")
    assert time.monotonic() - start < 5.0, "a second, and what a busy machine adds; the hold ends after 30 s"
    stack.postfix.wait_removed(queue_ids.values(), 30)
    assert [attempt.status for attempt in stack.postfix.attempts(queue_ids.values())] == ["sent", "sent"]
    check_copies([held, free], read_back(stack.stores, users))
    assert read_back([stack.old], [held_user]) == {}


def test_a_message_under_way_does_not_reach_the_store_that_its_user_has_left(stack: Stack, start_proxy: Start) -> None:
    users = moving, staying = stack.users(2)
    proxy = start_proxy(stack.config({moving: "old", staying: "new"}))
    content = message("under-way", users).content
    with smtplib.LMTP(str(stack.proxy_socket)) as client:
        client.ehlo()
        client.mail(f"{SENDER}@{DOMAIN}")
        assert [client.rcpt(f"{user}@{DOMAIN}")[0] for user in users] == [250, 250]
        client.putcmd("DATA")
        assert client.getreply()[0] == 354
        client.send(content[:-10])
        proxy.route(moving, "new")
        client.send(content[-10:] + b".\r\n")

        (first, first_text), (second, _) = client.getreply(), client.getreply()
    assert (first, second) == (451, 250) and first_text.startswith(b"4.2.1"), first_text
    found = read_back(stack.stores, users)
    assert {(copy.user, copy.store) for copies in found.values() for copy in copies} == {(staying, "Dovecot")}
