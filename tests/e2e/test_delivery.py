# SPDX-License-Identifier: GPL-3.0-or-later
"""Mail by real Postfix through the proxy into real Cyrus and Dovecot, read back by IMAP: all of it, once, unchanged."""

import random
import re
import smtplib
import threading

import pytest

from tests.support.proxy import ProxyProcess

from .conftest import Stack, Start
from .mail import (
    Message,
    awkward_body,
    check_copies,
    large_body,
    message,
    read_back,
    submit,
    submit_at_once,
    submit_locally,
)
from .postfix import DOMAIN
from .process import wait_until

SEED = 20240101


class Mover:
    """Moves random users to the other store, one reload after the other, until told to stop."""

    def __init__(self, proxy: ProxyProcess, users: list[str], rng: random.Random) -> None:
        self.moved: set[str] = set()
        self.reloads = 0
        self._proxy = proxy
        self._users = users
        self._rng = rng
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Mover":
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._stop.wait(0.3):
                self._move_some()
        except BaseException as failure:
            self._failure = failure

    def _move_some(self) -> None:
        routes = self._proxy.config["users"]
        for user in self._rng.sample(self._users, 3):
            routes[user] = "new" if routes[user] == "old" else "old"
            self.moved.add(user)
        line = self._proxy.reload()
        assert "active" in line, line
        self.reloads += 1


@pytest.mark.timeout(300)
def test_500_messages_arrive_once_and_unchanged_while_users_move(stack: Stack, start_proxy: Start) -> None:
    rng = random.Random(SEED)
    users = stack.users(16)
    proxy = start_proxy(stack.config({user: ("old", "new")[index % 2] for index, user in enumerate(users)}))
    messages = [
        message(f"bulk-{number}", rng.sample(users, rng.randint(1, 5)), awkward_body(rng)) for number in range(499)
    ]
    messages.insert(250, message("bulk-large", users[:4], large_body(rng, 20_000_000)))

    with Mover(proxy, users, random.Random(SEED)) as mover:
        queue_ids = submit_at_once(stack.postfix, messages, sessions=20)
        stack.postfix.wait_removed(queue_ids.values(), 100)

    found = read_back(stack.stores, users)
    check_copies(messages, found)
    assert len(found) == sum(len(item.recipients) for item in messages)
    assert mover.reloads >= 5
    places = {(copy.user, copy.store) for copies in found.values() for copy in copies}
    assert any({(user, store.name) for store in stack.stores} <= places for user in mover.moved), "no move was seen"
    attempts = stack.postfix.attempts(queue_ids.values())
    assert {attempt.status for attempt in attempts} <= {"sent", "deferred"}
    # a user who moved under way: the only reason to defer anything
    assert {a.text for a in attempts if a.status == "deferred" and "451 4.2.1" not in a.text} == set()
    assert stack.postfix.lines(r"suspended|lost connection with") == []
    assert len(re.findall(r"status=sent", proxy.log())) == len(found)


def test_eight_bit_mail_passes(stack: Stack, start_proxy: Start) -> None:
    users = stack.users(2)
    start_proxy(stack.config({users[0]: "old", users[1]: "new"}))
    with smtplib.LMTP(str(stack.proxy_socket)) as client:
        client.ehlo()
        assert client.has_extn("8bitmime") and client.has_extn("pipelining") and client.has_extn("enhancedstatuscodes")
        assert client.has_extn("smtputf8") and not client.has_extn("dsn")
    item = message("eight-bit", users, "Grüße aus Köln 漢字 🙂\r\n".encode() + bytes(range(0x80, 0x100)) + b"\r\n")

    queue_ids = submit(stack.postfix, [item])

    stack.postfix.wait_removed(queue_ids.values(), 20)
    check_copies([item], read_back(stack.stores, users))
    attempts = stack.postfix.attempts(queue_ids.values())
    assert [attempt.status for attempt in attempts] == ["sent", "sent"], attempts


def test_postfix_logs_the_reply_of_each_store(stack: Stack, start_proxy: Start) -> None:
    users = stack.users(2)
    start_proxy(stack.config({users[0]: "old", users[1]: "new"}))

    queue_ids = submit(stack.postfix, [message("text", users)])

    stack.postfix.wait_removed(queue_ids.values(), 20)
    texts = {attempt.to: attempt.text for attempt in stack.postfix.attempts(queue_ids.values())}
    assert "250 2.1.5 Success SESSIONID=<" in texts[f"{users[0]}@{DOMAIN}"]
    assert re.search(rf"250 2\.0\.0 <{users[1]}@\S+> \S+ Saved", texts[f"{users[1]}@{DOMAIN}"])


def test_null_sender_and_detail_reach_the_user(stack: Stack, start_proxy: Start) -> None:
    users = stack.users(2)
    start_proxy(stack.config({users[0]: "old", users[1]: "new"}))
    addressed = message("detail", [f"{user.upper()}+folder" for user in users])

    queue_ids = submit(stack.postfix, [addressed], sender="")

    stack.postfix.wait_removed(queue_ids.values(), 20)
    check_copies([message("detail", users)], read_back(stack.stores, users))


def test_mail_of_senders_that_no_one_can_answer_arrives(stack: Stack, start_proxy: Start) -> None:
    """Cron jobs and scripts send such mail by sendmail(1): a refusal would lose it. Dovecot takes all of these."""
    [user] = stack.users(1)
    proxy = start_proxy(stack.config({user: "new"}))
    senders = ["root@web$1", "a@b+c.example", "user@host#3", "root@", "u@x'", "u@a/b", "x@exa!mple.example",
               "u@a:b", "u@{x}", "u@x%y", '"a b"@x$1', "u@x&y|z`w^v*?"]  # fmt: skip
    items = [message(f"odd-{number}", [user]) for number in range(len(senders))]

    for item, sender in zip(items, senders, strict=True):
        submit_locally(stack.postfix, item, sender)

    wait_until(lambda: len(stack.new.subjects(user)) >= len(items), 20, proxy.log)
    check_copies(items, read_back(stack.stores, [user]))
    for sender in senders:
        assert f"from=<{sender}>, to=<{user}@{DOMAIN}>" in proxy.log()


def test_mail_with_a_utf8_header_reaches_stores_that_know_no_smtputf8(stack: Stack, start_proxy: Start) -> None:
    """Postfix bounces it (5.6.7) where SMTPUTF8 is not offered, though every store takes it. Cyrus and Dovecot both
    refuse the parameter, for good. Whose address needs it is answered alone."""
    users = stack.users(2)
    start_proxy(stack.config({users[0]: "old", users[1]: "new", "jürgen": "old", "用户": "new"}))
    sent = {
        ident: message(ident, recipients).content.replace(f"Subject: {ident}".encode(), "Subject: Grüße, 漢字".encode())
        for ident, recipients in (("plain", users), ("mixed", [*users, "jürgen", "用户"]))
    }

    queue_ids = submit(
        stack.postfix,
        [Message("plain", tuple(users), sent["plain"]), Message("mixed", (*users, "jürgen", "用户"), sent["mixed"])],
        options=("BODY=8BITMIME", "SMTPUTF8"),
    )

    stack.postfix.wait_removed(queue_ids.values(), 20)
    found = read_back(stack.stores, users)
    for ident, content in sent.items():
        [in_cyrus], [in_dovecot] = (found[ident, user] for user in users)
        assert in_cyrus.content == re.sub(rb"[\x80-\xff]", b"X", content)  # its own doing, see munge8bit
        assert in_dovecot.content == content
    attempts = {attempt.to: (attempt.status, attempt.dsn) for attempt in stack.postfix.attempts([queue_ids["mixed"]])}
    assert {user: attempts[f"{user}@{DOMAIN}"] for user in ("jürgen", "用户")} == {
        "jürgen": ("bounced", "5.6.7"), "用户": ("bounced", "5.6.7")
    }  # fmt: skip
    assert [status for status, _ in attempts.values()].count("sent") == 2
