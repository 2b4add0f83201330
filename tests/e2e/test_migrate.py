# SPDX-License-Identifier: GPL-3.0-or-later
"""`lmtp-proxyctl migrate` with real servers: all users moved by one command while mail flows, and whatever happens.

Nothing lost, nothing left in the old store, nothing twice, nothing bounced; and the price of it, by user.
"""

import grp
import imaplib
import os
import pwd
import random
import re
import socket
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from lmtp_proxy.ctl.migrate import keeper
from lmtp_proxy.ctl.migrate.report_text import report_lines
from tests.support.passed import PassedSocketProxy, listening_unix

from .conftest import Stack
from .cutover import deliver_the_rest
from .flow import Flow
from .mail import Found, check_copies, read_back
from .migrate_stand import MigrateStand, credentials
from .perdition import Perdition
from .process import wait_until
from .requirements import DOVEADM
from .slow_relay import SlowRelay
from .stores import PASSWORD, TEST_USERS, Cyrus, Store

LARGE = 8 * 2**20
RATE = 18
OURS = 0.150
"""Seconds of a user's downtime, in the middle, that are neither the final sync nor another hook of the plan."""
_TUID = re.compile(rb"X-TUID: .{12}\r\n")
"""What mbsync adds to the header of each message that it copies."""
NOISE = 5
"""How many times slower than promised a busy machine may be."""


@contextmanager
def stand_for(
    stack: Stack,
    perdition: Perdition,
    users: Sequence[str],
    plan: str,
    *,
    old: Store | None = None,
    new: Store | None = None,
) -> Iterator[MigrateStand]:
    """Everything running, a slow old store, the users on it with some mail, the proxy on a socket that outlives it.

    old, new: in place of those of the stack; the users have an empty mailbox in both.
    """
    old, new = old or stack.old, new or stack.new
    with ExitStack() as cleanup:
        slow = stack.proxy_socket.with_name("slow")
        cleanup.enter_context(SlowRelay(slow, old.lmtp_socket, commit_delay=0.3, rate=8e6))
        directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="lpr-", dir="/tmp")))
        config = stack.config(dict.fromkeys(users, "old"), receipts=str(directory / "receipts.db"))
        config["backends"] = {"old": {"socket": str(slow)}, "new": {"socket": str(new.lmtp_socket)}}
        path = stack.proxy_socket
        path.unlink(missing_ok=True)
        cleanup.callback(path.unlink, missing_ok=True)
        listener = cleanup.enter_context(listening_unix(str(path)))
        os.chown(path, pwd.getpwnam("postfix").pw_uid, grp.getgrnam("postfix").gr_gid)
        proxy = cleanup.enter_context(PassedSocketProxy(config, listener))
        cleanup.callback(lambda: print("The proxy's log:", *proxy.log().splitlines()[-60:], sep="\n"))
        stand = MigrateStand(stack, directory, perdition, proxy, plan, old, new)
        stand.fill(users)
        perdition.start(old.imap_port)
        cleanup.callback(lambda: print("The runs' log:", *stand.log().splitlines()[-200:], sep="\n"))
        yield stand


def found_where_they_are(
    stand: MigrateStand, moved: Sequence[str], stayed: Sequence[str]
) -> tuple[dict[tuple[str, str], list[Found]], list[tuple[str, str]]]:
    """Each user's mail in the store that is theirs now, and what of it a moved user has in the old one alone."""
    found = {
        key: [replace(copy, content=_TUID.sub(b"", copy.content, 1)) for copy in copies]
        for key, copies in (read_back([stand.new], moved) | read_back([stand.old], stayed)).items()
    }
    return found, [key for key in read_back([stand.old], moved) if key not in found]


def check(stand: MigrateStand, flow: Flow, moved: Sequence[str], stayed: Sequence[str]) -> None:
    stack = stand.stack
    assert {user: stand.server_of(user) for user in moved} == dict.fromkeys(moved, "new")
    stand.check_folders(moved)
    # all mail is there once, unchanged, where its user is now; old mail has no place among it
    found, left = found_where_they_are(stand, moved, stayed)
    check_copies(flow.messages, found)
    assert {user for (_, user), copies in found.items() if len(copies) > 1} == set()
    # a moved user's old mailbox has nothing that the final sync had not brought, and stayers have nothing elsewhere
    assert left == []
    assert read_back([stand.new], stayed) == {}
    attempts = stack.postfix.attempts(flow.queue_ids.values())
    assert {attempt.status for attempt in attempts} <= {"sent", "deferred"}
    assert stack.postfix.lines("status=bounced") == []


def show(stand: MigrateStand, flow: Flow) -> None:
    report = stand.report()
    large = sum(len(item.content) >= LARGE for item in flow.messages)
    deferred = sum(a.status == "deferred" for a in stand.stack.postfix.attempts(flow.queue_ids.values()))
    rate = len(flow.messages) / flow.seconds
    print(f"{len(flow.messages)} messages, {large} of {LARGE} octets, {rate:.1f}/s, {deferred} deliveries deferred")
    print(*report_lines(report), sep="\n")


@pytest.mark.timeout(400)
def test_fifty_users_move_with_one_command(patient_stack: Stack, perdition: Perdition) -> None:
    stack = patient_stack
    users = stack.users(50)
    with stand_for(stack, perdition, users, "cyrus-to-dovecot.yml") as stand:
        flow = Flow(stack.postfix, "migrate", users, rate=RATE, large_every=25, large_size=LARGE)
        with flow.running():
            time.sleep(1)
            status = stand.run()
            time.sleep(1)
        show(stand, flow)
        assert status == 0, stand.log()[-6000:]
        # nobody flushes the queue, and Postfix tries what was deferred again after 300 s: it was requeued
        wait_until(lambda: stack.postfix.queue_length() == 0, 30, stack.postfix.log)
        report = stand.report()
        assert report.counts == {"done": 50}
        check(stand, flow, users, [])
        offline = [user.offline for user in report.users if user.offline]
        assert len(offline) == 50
        ours = statistics.median(each.ours or 0.0 for each in offline)
        print(f"beside the hooks, of each user's downtime: median {ours * 1000:.0f} ms")
        assert ours <= OURS * NOISE
        assert len(flow.messages) / flow.seconds >= 15 / NOISE
        assert sum(len(item.content) >= LARGE for item in flow.messages) >= 5
        page = stand.directory / "report.html"
        stand.tell("--journal", str(stand.journal), "--html", str(page), "report")
        assert page.read_text("utf-8").count("<details ") == 50


@pytest.mark.timeout(400)
def test_ten_times_killed_and_resumed_while_syncs_fail_and_the_proxy_restarts(
    patient_stack: Stack, perdition: Perdition
) -> None:
    stack = patient_stack
    users = stack.users(50)
    failing = users[6::7]
    rng = random.Random(6)
    with stand_for(stack, perdition, users, "cyrus-to-dovecot.yml") as stand:
        doveadm = stand.directory / "bin/doveadm"
        # and takes a while, or it is over before it could be killed ten times
        list_of_failing = stand.directory / "failing"
        list_of_failing.write_text("".join(f"{user}\n" for user in failing), "ascii")
        fails = f"""case "$3" in backup) sleep 0.5; grep -q -x -F -e "$6" {list_of_failing} && exit 75 ;; esac"""
        doveadm.write_text(doveadm.read_text("ascii").replace("exec", f"{fails}\nexec", 1), "ascii")
        flow = Flow(stack.postfix, "killed", users, rate=RATE, large_every=25, large_size=LARGE)
        kills, parked = 0, Counter[str]()
        with flow.running():
            for number in range(10):
                process = stand.begin_proven()
                until = time.monotonic() + rng.uniform(0.3, 1.9)
                if number == 5:  # the runner waits for it, or asks it in vain
                    time.sleep(0.5)
                    assert stand.proxy.stop(30) == 0
                    stand.proxy.start()
                while process.poll() is None and time.monotonic() < until:
                    time.sleep(0.01)
                kills += process.poll() is None
                process.kill()
                process.wait()
                parked.update(user.state for user in stand.report().under_way)
            status = stand.run()
            time.sleep(0.5)
        show(stand, flow)
        print(f"{kills} times killed, with users in {dict(parked)}")
        deliver_the_rest(stack)
        assert status == 2, stand.log()[-6000:]
        report = stand.report()
        assert report.counts == {"done": len(users) - len(failing), "failed": len(failing)}
        assert sorted(user.user for user in report.in_state("failed")) == failing
        assert {user: stand.server_of(user) for user in failing} == dict.fromkeys(failing, "old")
        check(stand, flow, [user for user in users if user not in failing], failing)
        assert kills >= 8, "it was over before it could be killed"
        assert parked, "nobody was in hand: nothing was tested"


def test_a_doveadm_whose_run_was_killed_does_not_outlive_it(patient_stack: Stack, perdition: Perdition) -> None:
    """It executes itself anew through doveconf, with an environment that has nothing of ours."""
    stack = patient_stack
    users = stack.users(1)
    with (
        stand_for(stack, perdition, users, "cyrus-to-dovecot.yml") as stand,
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):
        doveadm, first = stand.directory / "bin/doveadm", stand.directory / "first"
        waits = f"exec {DOVEADM} -o imapc_port={silent.getsockname()[1]}"
        script = f'case "$3" in backup) [ -e {first} ] || {{ echo $$ >{first}; {waits} "$@"; }} ;; esac\nexec'
        doveadm.write_text(doveadm.read_text("ascii").replace("exec", script, 1), "ascii")
        process = stand.begin()
        connection, _ = silent.accept()  # from here on it waits for a greeting
        with connection:
            pid = int(first.read_text("ascii"))
            assert Path(f"/proc/{pid}/comm").read_text("ascii") == "doveadm\n"
            assert b"LMTP_PROXY" not in Path(f"/proc/{pid}/environ").read_bytes(), "or this shows nothing"
            process.kill()
            process.wait()
            assert stand.run() == 0, stand.log()[-6000:]
            found = keeper.process(pid)
            assert found is None or not found.alive
        assert stand.report().counts == {"done": 1}
        stand.check_folders(users)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077], ids="{:03o}".format)
def test_perdition_reads_its_map_whatever_the_umask(patient_stack: Stack, perdition: Perdition, umask: int) -> None:
    """Else nobody is blocked, and who was moved goes to where all go that are in no map."""
    stack = patient_stack
    users = stack.users(2)
    for user in users:
        stack.old.set_password(user)
    with stand_for(stack, perdition, users, "cyrus-to-dovecot.yml") as stand:
        servers = [f"{name}=127.0.0.1:{port}" for name, port in (("old", stack.old.imap_port), ("new", 1))]
        stand.script("perdition-map", "block", users[0], umask=umask)
        with pytest.raises(imaplib.IMAP4.error, match="Could not connect to server"):
            perdition.login(users[0], PASSWORD)
        perdition.login(users[1], PASSWORD).logout()
        stand.script("perdition-map", "old", *servers, users[0], umask=umask)
        perdition.login(users[0], PASSWORD).logout()
        perdition.map_file.chmod(0o600)
        stand.script("perdition-map", "old", *servers, users[0], umask=umask, status=1)


def test_from_cyrus_to_cyrus_with_mbsync(patient_stack: Stack, perdition: Perdition) -> None:
    stack = patient_stack
    users = stack.users(4)
    with ExitStack() as cleanup:
        directory = stack.proxy_socket.with_name("cyrus2")
        directory.mkdir()
        new = Cyrus(directory)
        for user in users:
            new.set_password(user)
            stack.old.set_password(user)
        cleanup.callback(new.stop)
        new.start()
        new.add_users([*users, *TEST_USERS])
        with stand_for(stack, perdition, users, "cyrus-to-cyrus.yml", new=new) as stand, credentials(stand, users):
            flow = Flow(stack.postfix, "mbsync", users, rate=8, large_every=1000, large_size=LARGE)
            with flow.running():
                time.sleep(1)
                status = stand.run()
                time.sleep(0.5)
            show(stand, flow)
            assert status == 0, stand.log()[-6000:]
            deliver_the_rest(stack)
            check(stand, flow, users, [])
            assert perdition.login(users[0], PASSWORD).logout()[0] == "BYE"
            # what verify finds when it is not so
            with new.imap(users[0]) as imap:
                imap.append("INBOX.Sent", "", "", b"Message-ID: <extra@x>\r\nSubject: x\r\n\r\nx\r\n")
            same = [str(stand.directory / "same-mail.conf"), users[0]]
            assert "INBOX.Sent: 1 only in the new store: <extra@x>" in stand.script("same-mail", *same, status=1)
