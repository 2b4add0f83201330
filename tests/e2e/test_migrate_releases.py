# SPDX-License-Identifier: GPL-3.0-or-later
"""Fifty users move from the stores of Debian 12 to those of Debian 13, by the plans and configuration files as shipped.

One of the two releases is this machine's, the other one's stores run in a root of their own; Postfix and the proxy are
this machine's. So on Debian 13 this is the move that most sites make: the new machine stands, and the old store is
where it was. Mail flows all the time, and the run is killed several times amid.
"""

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from .conftest import Stack
from .flow import Flow
from .machine import HERE, Machine
from .mail import check_copies
from .migrate_stand import MigrateStand, credentials
from .perdition import Perdition
from .process import wait_until
from .requirements import program, run
from .stores import TEST_USERS, Cyrus, Dovecot, Store
from .test_migrate import LARGE, NOISE, RATE, found_where_they_are, stand_for

KILLS = 5


@pytest.fixture
def releases(other_machine: Machine) -> dict[str, Machine]:
    """By name."""
    return {machine.release: machine for machine in (HERE, other_machine)}


Make = Callable[[Path, Machine], Store]


def without_prefix(directory: Path, machine: Machine) -> Dovecot:
    """As Dovecot is by default: folders beside INBOX."""
    return Dovecot(directory, machine, prefix="")


MOVES: dict[str, tuple[Make, Make]] = {
    "cyrus-to-dovecot": (Cyrus, Dovecot),
    "dovecot-to-dovecot": (without_prefix, without_prefix),
    "cyrus-to-cyrus": (Cyrus, Cyrus),
}
"""By the plan's name: what makes the old store, of Debian 12, and the new one, of Debian 13."""


def end(store: Store) -> None:
    store.stop()
    print(f"{store!r}'s log:", *store.log().splitlines()[-60:], sep="\n")


@contextmanager
def stores(plan: str, releases: dict[str, Machine], directory: Path, users: Sequence[str]) -> Iterator[list[Store]]:
    """The old one and the new one, running, with an empty mailbox for each user."""
    with ExitStack() as cleanup:
        found = []
        for name, make, release in zip(("old", "new"), MOVES[plan], ("bookworm", "trixie"), strict=True):
            base = directory / name
            base.mkdir()
            store = make(base, releases[release])
            cleanup.callback(end, store)
            if isinstance(store, Dovecot):
                store.add_users([*users, *TEST_USERS])
                store.start()
                # a first mail makes the mailbox, and two first mails at once get in each other's way
                assert [store.messages(user) for user in users] == [[]] * len(users)
            else:
                store.start()
                store.add_users([*users, *TEST_USERS])
            found.append(store)
        old, new = found
        if isinstance(new, Dovecot):
            new.copy_from(old)
        else:
            for store in found:
                assert isinstance(store, Cyrus)
                for user in users:
                    store.set_password(user)
        yield found


def killed_again_and_again(stand: MigrateStand, rng: random.Random) -> Counter[str]:
    """The states that users were in when their run was killed, KILLS times."""
    found = Counter[str]()
    for _ in range(KILLS):
        process = stand.begin_proven()
        time.sleep(rng.uniform(0.3, 1.9))
        assert process.poll() is None, f"it was over before it could be killed:\n{stand.log()[-6000:]}"
        process.kill()
        process.wait()
        found.update(user.state for user in stand.report().under_way)
    return found


@pytest.mark.timeout(400)
@pytest.mark.parametrize("plan", MOVES)
def test_fifty_users_move_to_another_release(
    patient_stack: Stack, perdition: Perdition, releases: dict[str, Machine], plan: str
) -> None:
    stack = patient_stack
    users = [f"m{number:02}" for number in range(50)]
    directory = stack.proxy_socket.with_name(plan)
    directory.mkdir()
    began = time.monotonic()
    with (
        stores(plan, releases, directory, users) as (old, new),
        stand_for(stack, perdition, users, f"{plan}.yml", old=old, new=new) as stand,
        credentials(stand, users),
    ):
        flow = Flow(stack.postfix, plan, users, rate=RATE, large_every=25, large_size=LARGE)
        with flow.running():
            time.sleep(1)
            killed = killed_again_and_again(stand, random.Random(plan))
            status = stand.run()
            time.sleep(1)
        assert status == 0, stand.log()[-6000:]
        # nobody flushes the queue, and Postfix tries what was deferred again after 300 s: it was requeued
        wait_until(lambda: stack.postfix.queue_length() == 0, 60, stack.postfix.log)
        check(stand, flow, f"{old!r} -> {new!r}", killed)
    print(f"{time.monotonic() - began:.0f} s in all")


def check(stand: MigrateStand, flow: Flow, title: str, killed: Counter[str]) -> None:
    """Everything is counted before anything is asserted, so that the printed line is whole."""
    users, postfix = flow.users, stand.stack.postfix
    report = stand.report()
    found, left = found_where_they_are(stand, users, [])
    sent = {(item.ident, user) for item in flow.messages for user in item.recipients}
    lost = sent - found.keys()
    twice = {key for key, copies in found.items() if len(copies) > 1}
    bounced = postfix.lines("status=bounced")
    deferred = [each.text for each in postfix.attempts(flow.queue_ids.values()) if each.status == "deferred"]
    others = [text for text in deferred if not re.search(r"said: 45[01] 4\.2\.1 ", text)]
    verified = [user.user for user in report.users if any((s.step, s.outcome) == ("verify", "ok") for s in user.steps)]
    rate = len(flow.messages) / flow.seconds
    print(
        f"{title}, Postfix {run(str(program('postconf')), '-h', 'mail_version').strip()}: {len(users)} users,"
        f" {len(flow.messages):,} messages for {len(sent):,} mailboxes at {rate:.1f}/s,"
        f" killed {KILLS} times with users in {dict(killed)}\n"
        f"{len(lost)} lost, {len(left)} left in the old store, {len(twice)} twice, {len(bounced)} bounced,"
        f" {len(others)} deferred but for parked users ({len(deferred)} of theirs);"
        f" verified message by message: {len(verified)} users"
    )
    assert report.counts == {"done": len(users)}
    assert {user: stand.server_of(user) for user in users} == dict.fromkeys(users, "new")
    assert sorted(verified) == sorted(users)
    assert (lost, left, twice, bounced, others) == (set(), [], set(), [], [])
    assert postfix.lines("suspended|lost connection with") == []
    check_copies(flow.messages, found)
    stand.check_folders(users)
    assert rate >= 15 / NOISE
    assert sum(len(item.content) >= LARGE for item in flow.messages) >= 5
    assert killed, "nobody was in hand: nothing was tested"


@pytest.mark.parametrize("plan", [plan for plan in MOVES if plan.endswith("-dovecot")])
def test_nobody_is_moved_whose_mail_was_not_copied(
    patient_stack: Stack, perdition: Perdition, releases: dict[str, Machine], plan: str
) -> None:
    """What 2.4 said of 2.3's options: nothing, and it compared the new store with itself."""
    users = ["m00", "m01"]
    directory = patient_stack.proxy_socket.with_name(f"no-{plan}")
    directory.mkdir()
    with (
        stores(plan, releases, directory, users) as (old, new),
        stand_for(patient_stack, perdition, users, f"{plan}.yml", old=old, new=new) as stand,
    ):
        assert isinstance(new, Dovecot)
        backup = f'[doveadm, -c, {new.migration_conf}, backup, -R, -u, "{{user}}", "imapc:"]'
        stand.change_plan(backup, '["true", "{user}"]')
        assert stand.run() == 2, stand.log()
        report = stand.report()
        assert report.counts == {"failed": len(users)}
        for user in report.users:
            assert user.error is not None and user.error.startswith("verify: ")
            assert "INBOX: 3 only in the old store" in (user.failures[-1].output or ""), user.failures
        assert {user: stand.server_of(user) for user in users} == dict.fromkeys(users, "old")
