# SPDX-License-Identifier: GPL-3.0-or-later
"""What `reject` defers comes at once after the move, from a Postfix with its own times that sends XFORWARD."""

import json
import time
from pathlib import Path
from typing import Any

from tests.support.backend import FakeBackend
from tests.support.proxy import ProxyProcess
from tests.support.script import Pause, Script, say

from .conftest import Stack, Start
from .cutover import proxyctl
from .mail import SENDER, check_copies, message, read_back, submit, submit_locally
from .postfix import DOMAIN
from .process import wait_until

SLOW = 5.0  # seconds that a store takes


def move(proxy: ProxyProcess, user: str, backend: str) -> None:
    done = proxyctl(proxy, "move", user, backend, "--domain", DOMAIN)
    assert done.returncode == 0, f"move {user} {backend}: exit {done.returncode}\n{done.stdout}{done.stderr}"


def requeue(stack: Stack, proxy: ProxyProcess, *arguments: str, status: int = 0) -> dict[str, Any]:
    """What `lmtp-proxyctl requeue` says."""
    command = f"postqueue -c {stack.postfix.directory}/etc"
    done = proxyctl(proxy, "--json", "requeue", "--postqueue", command, *arguments)
    assert done.returncode == status, f"requeue: exit {done.returncode}\n{done.stdout}{done.stderr}"
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def fates(document: dict[str, Any]) -> dict[str, str]:
    return {mail["queue_id"]: mail["fate"] for mail in document["mails"]}


def started(stack: Stack, start_proxy: Start, users: dict[str, str], tmp_path: Path) -> ProxyProcess:
    return start_proxy(stack.config(users, receipts=str(tmp_path / "receipts")))


def test_what_reject_deferred_arrives_within_two_seconds(
    patient_stack: Stack, start_proxy: Start, tmp_path: Path
) -> None:
    stack = patient_stack
    user, other = stack.users(2)
    proxy = started(stack, start_proxy, {user: "old", other: "old"}, tmp_path)
    move(proxy, user, "reject")
    messages = [message(f"requeue-{number}", [user, other]) for number in range(5)]
    queue_ids = submit(stack.postfix, messages)
    wait_until(
        lambda: all(stack.postfix.queues().get(each) == "deferred" for each in queue_ids.values()),
        30,
        lambda: f"all deferred, now {stack.postfix.queues()}",
    )
    for queue_id in queue_ids.values():
        # Lines come in batches of 50 ms: Postfix may know it before the log does.
        line = proxy.wait_log(rf"to=<{user}@.*orig_queue_id={queue_id}, ")
        assert "status=deferred (450 4.2.1" in line

    began = time.monotonic()
    move(proxy, user, "new")
    document = requeue(stack, proxy, user)
    stack.postfix.wait_removed(queue_ids.values(), 30)
    seconds = time.monotonic() - began
    print(f"all 5 there {seconds:.2f} s after the move began, requeue took {document['seconds']} s")
    assert seconds < 10.0, "Postfix itself would try again after 300 s"
    assert fates(document) == dict.fromkeys(queue_ids.values(), "arrived")
    assert requeue(stack, proxy, user)["mails"] == []
    found = read_back(stack.stores, [user, other])
    check_copies(messages, found)
    assert {copy.store for (_, whose), copies in found.items() if whose == user for copy in copies} == {"Dovecot"}


def test_also_what_is_in_the_active_queue_still(patient_stack: Stack, start_proxy: Start, tmp_path: Path) -> None:
    """There `postqueue -i` does nothing for it: one recipient was refused, and the other's store takes its time."""
    stack = patient_stack
    user, slow = stack.users(2)
    with FakeBackend() as backend:
        backend.script = Script(final=(Pause(SLOW), *say("250 2.0.0 stored")))
        config = stack.config({user: "reject", slow: "slow"}, receipts=str(tmp_path / "receipts"))
        config["backends"]["slow"] = backend.config
        proxy = start_proxy(config)
        item = message("active", [user, slow])
        [queue_id] = submit(stack.postfix, [item]).values()
        assert backend.wait_for(lambda: any(seen.dotted for seen in backend.transactions()))
        move(proxy, user, "new")
        assert stack.postfix.queues() == {queue_id: "active"}
        document = requeue(stack, proxy, user)
        arrived = time.monotonic()
        stack.postfix.wait_removed([queue_id], 30)
    assert fates(document) == {queue_id: "arrived"}
    assert 1.0 < document["seconds"] < 20.0, "it was waited for"
    assert time.monotonic() - arrived < 10.0
    [attempt] = [a for a in stack.postfix.attempts([queue_id]) if a.to.startswith(user) and a.status == "sent"]
    print(f"there {attempt.delay:.2f} s after it came")
    assert attempt.delay < SLOW + 15.0
    check_copies([message("active", [user])], read_back([stack.new], [user]))


def test_what_is_refused_again_or_is_there_no_more(patient_stack: Stack, start_proxy: Start, tmp_path: Path) -> None:
    stack = patient_stack
    [user] = stack.users(1)
    proxy = started(stack, start_proxy, {user: "reject"}, tmp_path)
    first, second = submit(stack.postfix, [message("again", [user]), message("gone", [user])]).values()
    wait_until(
        lambda: [stack.postfix.queues().get(each) for each in (first, second)] == ["deferred"] * 2,
        10.0,
        lambda: f"both deferred, now {stack.postfix.queues()}",
    )
    stack.postfix.remove(second)
    assert fates(requeue(stack, proxy, user, status=3)) == {first: "deferred again", second: "not in the queue"}
    commands = requeue(stack, proxy, user, "--print")["commands"]
    config = f"{stack.postfix.directory}/etc"
    # in the order in which they were deferred first, which is not that of their arrival on a busy machine
    assert sorted(commands) == sorted(["postqueue", "-c", config, "-i", each] for each in (first, second))
    stack.postfix.remove(first)


def receipts_of(proxy: ProxyProcess, user: str) -> dict[str, Any]:
    done = proxyctl(proxy, "--json", "receipts", user)
    assert done.returncode == 0, done.stderr
    known: dict[str, Any] = json.loads(done.stdout)["users"][user]
    return known


def wait_deferred(stack: Stack, number: int) -> None:
    wait_until(
        lambda: list(stack.postfix.queues().values()) == ["deferred"] * number,
        30,
        lambda: f"{number} deferred, now {stack.postfix.queues()}",
    )


def test_mail_from_sendmail_has_no_id_and_is_found_by_its_recipient(
    patient_stack: Stack, start_proxy: Start, tmp_path: Path
) -> None:
    """Of mail from cron and webmail Postfix says `XFORWARD SOURCE=LOCAL` and no more."""
    stack = patient_stack
    user, other = stack.users(2)
    proxy = started(stack, start_proxy, {user: "reject", other: "reject"}, tmp_path)
    item = message("local", [f"{user.upper()}+cron", other])
    submit_locally(stack.postfix, item, SENDER)
    wait_deferred(stack, 1)
    [queue_id] = stack.postfix.queues()
    [row] = receipts_of(proxy, user)["unnamed"]
    assert (row["forwarded"], row["count"]) == (True, 1) and row["why"].startswith("450 4.2.1")
    assert receipts_of(proxy, user)["deferred"] == []

    move(proxy, user, "new")
    document = requeue(stack, proxy, user)
    assert fates(document) == {queue_id: "not in the queue"}, "as far as this user is concerned"
    assert document["seconds"] < 10.0
    assert requeue(stack, proxy, user)["mails"] == [], "the queue is looked at, and has nothing any more"
    check_copies([message("local", [user])], read_back([stack.new], [user]))
    assert stack.postfix.queues() == {queue_id: "deferred"}, "the other one waits"
    assert fates(requeue(stack, proxy, other, status=3)) == {queue_id: "deferred again"}
    stack.postfix.remove(queue_id)


def test_a_postfix_that_says_no_ids(stack: Stack, start_proxy: Start, tmp_path: Path) -> None:
    """As it is by default. What waits is not "nothing", and what is in this queue is tried again all the same."""
    [user] = stack.users(1)
    proxy = started(stack, start_proxy, {user: "reject"}, tmp_path)
    item = message("silent", [user])
    [queue_id] = submit(stack.postfix, [item]).values()
    wait_deferred(stack, 1)
    [row] = receipts_of(proxy, user)["unnamed"]
    assert row["forwarded"] is False and row["count"] >= 1
    done = proxyctl(proxy, "requeue", "--postqueue", f"postqueue -c {stack.postfix.directory}/etc", user)
    assert done.returncode == 3 and "lmtp_send_xforward_command = yes" in done.stderr, done.stderr
    assert f"{user}: waiting, id unknown (" in done.stdout
    move(proxy, user, "new")
    document = requeue(stack, proxy, user, status=3)  # a client somewhere else may have more
    assert {mail["queue_id"] for mail in document["mails"]} <= {queue_id}
    stack.postfix.wait_removed([queue_id], 30)
    check_copies([item], read_back([stack.new], [user]))
