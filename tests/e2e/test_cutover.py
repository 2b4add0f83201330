# SPDX-License-Identifier: GPL-3.0-or-later
"""Users leave real Cyrus for real Dovecot while mail flows: nothing stays behind, nothing is lost, nothing comes twice.

The counter-proof is here too: with a signal and a pause-free final sync, mail does stay behind in the same setting.
"""

import re
import statistics
import time
from collections import Counter

import pytest

from .conftest import Stack, Start
from .cutover import Cutover, deliver_the_rest, post
from .flow import Flow
from .mail import check_copies, read_back
from .slow_relay import SlowRelay

LARGE = 8 * 2**20
NOISE = 5
"""How many times slower than promised a busy machine may be."""


def check_migration(stack: Stack, flow: Flow, cutover: Cutover) -> None:
    """All that was submitted is there once, unchanged, where its user is now; no mail was lost sight of on the way."""
    moved = list(cutover.taken)
    stayed = [user for user in flow.users if user not in cutover.taken]
    assert cutover.came_later() == Counter()
    found = read_back([stack.new], moved) | read_back(stack.stores, stayed)
    check_copies(flow.messages, found)
    attempts = stack.postfix.attempts(flow.queue_ids.values())
    assert {attempt.status for attempt in attempts} <= {"sent", "deferred"}
    # what the proxy says of a user who is being moved, and nothing else
    assert {
        a.text for a in attempts if a.status == "deferred" and not re.search(r"said: 45[01] 4\.2\.1 ", a.text)
    } == set()
    assert stack.postfix.lines(r"suspended|lost connection with|status=bounced") == []


@pytest.mark.timeout(300)
def test_twenty_users_move_under_a_steady_flow(patient_stack: Stack, start_proxy: Start) -> None:
    stack = patient_stack
    users = stack.users(24)
    moving, stay_old, stay_new = users[:20], users[20:22], users[22:]
    proxy = start_proxy(stack.config(dict.fromkeys(moving + stay_old, "old") | dict.fromkeys(stay_new, "new")))
    flow = Flow(stack.postfix, "steady", users, rate=25, large_every=20, large_size=LARGE)
    cutover = Cutover(stack, proxy)

    with flow.running():
        time.sleep(1)
        cutover.copy(moving)
        for number, user in enumerate(moving):
            cutover.move(user, "hold" if number % 4 == 3 else "reject")
        time.sleep(1)
    deliver_the_rest(stack)

    rate = len(flow.messages) / flow.seconds
    large = sum(len(item.content) >= LARGE for item in flow.messages)
    deferred = sum(a.status == "deferred" for a in stack.postfix.attempts(flow.queue_ids.values()))
    print(
        f"{len(flow.messages)} messages ({large} of {LARGE} octets) at {rate:.1f}/s, {deferred} deliveries deferred;"
        f" the proxy's part of a user's move: median {statistics.median(cutover.seconds.values()):.3f} s,"
        f" longest {max(cutover.seconds.values()):.3f} s"
    )
    check_migration(stack, flow, cutover)
    assert rate >= 15 / NOISE
    assert large >= 5
    assert deferred > 0, "no mail met a user under way: nothing was tested"


def slow_migration(stack: Stack, start_proxy: Start, *, naive: bool) -> tuple[Flow, Cutover]:
    """Ten users move while a slow disk is in the old store's way."""
    users = stack.users(10)
    relay = SlowRelay(stack.proxy_socket.with_name("slow"), stack.old.lmtp_socket, commit_delay=0.6, rate=2e6)
    config = stack.config(dict.fromkeys(users, "old"))
    config["backends"]["old"] = {"socket": str(relay.path)}
    with relay:
        proxy = start_proxy(config)
        name = "naive" if naive else "waiting"
        flow = Flow(stack.postfix, name, users, rate=20, large_every=4, large_size=1_500_000)
        cutover = Cutover(stack, proxy, naive=naive)
        with flow.running():
            time.sleep(1)
            cutover.copy(users)
            for user in users:
                cutover.move(user, "reject")
            time.sleep(1)
        deliver_the_rest(stack)
    return flow, cutover


@pytest.mark.timeout(400)
def test_a_slow_store_keeps_no_mail_of_a_moved_user(patient_stack: Stack, start_proxy: Start) -> None:
    flow, cutover = slow_migration(patient_stack, start_proxy, naive=False)

    check_migration(patient_stack, flow, cutover)
    assert max(cutover.seconds.values()) > 0.6, "nobody had anything in flight: nothing was tested"


@pytest.mark.timeout(400)
def test_without_waiting_mail_stays_behind(patient_stack: Stack, start_proxy: Start) -> None:
    """The reason why `move` waits: the same, but for a reload that is only waited for itself."""
    flow, cutover = slow_migration(patient_stack, start_proxy, naive=True)

    behind = cutover.came_later()
    print(f"without waiting: {len(behind)} acknowledged deliveries of {len(flow.messages)} messages stayed behind")
    assert behind
    lost = {key for key in behind if not read_back([patient_stack.new], [key.split("/")[0]]).get(_id_and_user(key))}
    assert lost == set(behind), "it did reach the new store"


def _id_and_user(key: str) -> tuple[str, str]:
    user, _, ident = key.partition("/")
    return ident, user


def test_what_the_proxy_adds_to_a_move(patient_stack: Stack, start_proxy: Start) -> None:
    stack = patient_stack
    users = stack.users(20)
    proxy = start_proxy(stack.config(dict.fromkeys(users, "old")))
    cutover = Cutover(stack, proxy)
    acknowledged, command = [], []

    for user in users:
        proxy.config["users"][user] = "reject"
        began = time.perf_counter()
        proxy.write_config()
        post(stack.control_socket, "/reload", {})
        answer = post(stack.control_socket, "/drain", {"users": [user]})
        acknowledged.append(time.perf_counter() - began)
        assert answer["done"] is True and answer["routes"] == {user: "reject"}, answer
    for user in users:
        began = time.perf_counter()
        cutover.route(user, "new")
        command.append(time.perf_counter() - began)

    first, second = statistics.median(acknowledged), statistics.median(command)
    print(f"nothing in flight: from edit to acknowledgement {first * 1000:.1f} ms, the command {second * 1000:.1f} ms")
    assert first < NOISE * 0.050
    assert second < NOISE * 0.250
