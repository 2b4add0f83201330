# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan for imapsync as it is shipped, with administrators' logins, to Dovecot 2.3 and 2.4: users who move while
mail flows and runs are killed, and what imapsync makes of mail that is not as most is.
"""

import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from lmtp_proxy.ctl.migrate.journal_file import JournalError

from .conftest import Stack
from .cutover import deliver_the_rest
from .flow import Flow
from .imapsync import Site, imapsync, mailbox, make_site, watched
from .machine import HERE, Machine
from .mail import SENDER
from .migrate_stand import MigrateStand
from .perdition import Perdition
from .stores import PASSWORD, TEST_USERS, Cyrus, Dovecot
from .test_migrate import LARGE, check, show, stand_for

FLOW_USERS = [f"f{number:02}" for number in range(12)]
ODD_USERS = [f"o{number:02}" for number in range(12)]
"""Each for one test."""
KILLED_IN = ("syncing", "blocked", "final_sync", "done")
"""A run is killed as soon as a user is there."""


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def site(request: pytest.FixtureRequest, servers: Stack) -> Iterator[Site]:
    """Cyrus of Debian 12, and Dovecot of 12 or 13; both know the users."""
    program = imapsync()
    machines: dict[str, Machine] = {HERE.release: HERE}
    if {"bookworm", request.param} - machines.keys():
        other: Machine = request.getfixturevalue("other_machine")
        machines[other.release] = other
    directory = servers.proxy_socket.with_name(f"imapsync-{request.param}")
    with ExitStack() as cleanup:
        for path in (directory, directory / "old", directory / "new"):
            path.mkdir()
        cleanup.callback(shutil.rmtree, directory)
        old = Cyrus(directory / "old", machines["bookworm"])
        new = Dovecot(directory / "new", machines[request.param])
        users = [SENDER, *TEST_USERS, *FLOW_USERS, *ODD_USERS]
        new.add_users(users)
        made = make_site(program, directory, old, new)
        for store in (old, new):
            cleanup.callback(store.stop)
            store.start()
        old.add_users(users)
        # a first mail makes the mailbox, and two first mails at once get in each other's way
        assert [new.messages(user) for user in users] == [[]] * len(users)
        made.unused.extend(ODD_USERS)
        print(f"{program}: {old!r} -> {new!r}")
        yield made


@pytest.mark.timeout(400)
def test_users_move_while_mail_flows_and_runs_are_killed(
    patient_stack: Stack, perdition: Perdition, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", site.environment["SSL_CERT_FILE"])
    users = FLOW_USERS
    with (
        stand_for(patient_stack, perdition, users, "imapsync.yml", old=site.old, new=site.new) as stand,
        watched() as seen,
    ):
        ready(stand, site)
        flow = Flow(patient_stack.postfix, "imapsync", users, rate=10, large_every=60, large_size=LARGE)
        killed = Counter[str]()
        with flow.running():
            time.sleep(1)
            for state in KILLED_IN:
                process = stand.begin()
                while state not in states(stand):
                    assert process.poll() is None, f"over before anybody was {state}:\n{stand.log()[-6000:]}"
                    time.sleep(0.02)
                process.kill()
                process.wait()
                killed.update(user.state for user in stand.report().under_way)
            status = stand.run()
            time.sleep(0.5)
        show(stand, flow)
        print(f"{site.old!r} -> {site.new!r}: {len(KILLED_IN)} times killed, with users in {dict(killed)}")
        assert status == 0, stand.log()[-6000:]
        deliver_the_rest(patient_stack)
        check(stand, flow, users, [])
        report = stand.report()
        assert report.counts == {"done": len(users)}
        verified = {
            user.user for user in report.users for step in user.steps if (step.step, step.outcome) == ("verify", "ok")
        }
        assert verified == {*users}
        assert killed["syncing"] and killed["final_sync"] + killed["blocked"], "nobody was in hand: nothing was tested"
        # the passwords are nowhere where others look, nor in what is kept of the output
        assert len([line for line in seen.processes if b"\0--passfile1\0" in line]) >= len(users)
        for line, environment in seen.processes.items():
            assert PASSWORD.encode() not in re.split(rb"[\0=]", line + environment)
        assert PASSWORD.encode() not in stand.journal.read_bytes()


def states(stand: MigrateStand) -> set[str]:
    """Those that users are in."""
    with suppress(JournalError):  # it is not made yet
        return {user.state for user in stand.report().users}
    return set()


def ready(stand: MigrateStand, site: Site) -> None:
    """The stand's plan is for this site."""
    (stand.directory / "bin" / "imapsync").symlink_to(site.program)
    (stand.directory / "same-mail.conf").symlink_to(site.directory / "same-mail.conf")
    stand.plan.write_text(site.here(stand.plan.read_text("utf-8")), "utf-8")


# --- mail that is not as most is -------------------------------------------------------------------------------------

ARRIVED = '"05-Mar-2011 04:05:06 +0200"'
MAILS = (
    (r"\Seen", "Message-ID: <plain@x>\nReceived: from a by b; Sat, 5 Mar 2011 04:05:06 +0200\n\nplain\n"),
    (r"\Flagged \Answered \Draft $Forwarded NonJunk Ma&APY-", "Message-ID: <keywords@x>\n\nkeywords\n"),
    (r"\Deleted", "Message-ID: <deleted@x>\n\nmarked, and not expunged\n"),
    ("", "From: a@x\nSubject: no id\n\nneither Message-ID nor Received\n"),
    ("", "From: a@x\nSubject: no id\n\nand another one with this header\n"),
    (r"\Seen", "Message-ID: <twice@x>\n\ntwice\n"),
    (r"\Flagged", "Message-ID: <twice@x>\n\ntwice\n"),
    (r"\Draft", "Message-ID: <draft@x>\n\nfirst draft\n"),
    ("", "Message-ID: <gone@x>\n\nwill be deleted\n"),
    ("", "Message-ID: <eight@x>\nSubject: \u00fcml\u00e4ut\n\n\u00fc\x01\x1b[31m\n.\nFrom me\n" + "long" * 2000 + "\n"),
    ("", "Message-ID:\n <folded\n @x>\n\nfolded\n"),
)  # fmt: skip
FOLDERS = ("INBOX.Sent", "INBOX.Sent Items", "INBOX.Entw&APw-rfe", "INBOX.a &- b", "INBOX.Sent.2020", "INBOX.Empty")


def fill(site: Site, user: str) -> None:
    with site.old.imap(user) as imap:
        for flags, text in MAILS:
            assert imap.append("INBOX", f"({flags})", ARRIVED, text.replace("\n", "\r\n").encode())[0] == "OK"
        for folder in FOLDERS:
            assert imap.create(f'"{folder}"')[0] == "OK"
            if folder != "INBOX.Empty":
                text = f"Message-ID: <{folder.replace(' ', '_')}@x>\r\n\r\nx\r\n"
                assert imap.append(f'"{folder}"', r"(\Seen)", ARRIVED, text.encode("ascii"))[0] == "OK"


def change(site: Site, user: str) -> None:
    """What a user does between two syncs."""
    with site.old.imap(user) as imap:
        imap.select("INBOX")
        imap.store("1", "-FLAGS", r"(\Seen)")
        imap.store("2", "-FLAGS", "(NonJunk)")
        imap.store("2", "+FLAGS", "(later)")
        imap.store("7", "+FLAGS", r"(\Answered)")
        imap.store("8:9", "+FLAGS", r"(\Deleted)")
        imap.uid("EXPUNGE", "8:9")
        imap.append("INBOX", r"(\Draft)", ARRIVED, b"Message-ID: <draft@x>\r\n\r\nthe last draft\r\n")
        assert imap.rename("INBOX.Sent.2020", "INBOX.Sent.2021")[0] == "OK"
        assert imap.delete("INBOX.Empty")[0] == "OK"


def test_odd_mail_is_copied_and_all_that_users_change(site: Site) -> None:
    user = site.unused.pop()
    fill(site, user)
    site.sync(user)
    assert mailbox(site.new, user) == mailbox(site.old, user)
    change(site, user)
    assert site.same_mail(user).returncode == 1
    site.sync(user)
    assert mailbox(site.new, user) == mailbox(site.old, user)
    done = site.same_mail(user)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout == "6 folders, 15 messages, the same in both stores\n"


@pytest.mark.parametrize(
    "without, said",
    [
        ("--useheader ALL", "INBOX: 2 only in the old store: (no Message-ID) (62 octets"),
        ("--syncduplicates", "INBOX: 1 only in the old store: <twice@x>"),
        ("--noskipsize", "INBOX: 1 only in the old store: <draft@x>"),
        ("--delete2", "only in the new store: <draft@x>"),
        ("--delete2folders", "INBOX.Sent.2020: only in the new store, with 1 message"),
    ],
)
def test_what_imapsync_leaves_out_by_itself_is_seen(site: Site, without: str, said: str) -> None:
    """Which it does not tell by its exit status, nor by the errors that it counts."""
    user = site.unused.pop()
    fill(site, user)
    site.sync(user, without)
    change(site, user)
    assert "\nDetected 0 errors\n" in site.sync(user, without)
    done = site.same_mail(user)
    assert (done.returncode, done.stderr) == (1, ""), done
    assert said in done.stdout


def test_what_no_option_helps_against_is_seen(site: Site) -> None:
    user, other = site.unused.pop(), site.unused.pop()
    with site.old.imap(user) as imap:
        imap.create("INBOX.INBOX")
        imap.append("INBOX.INBOX", "", ARRIVED, b"Message-ID: <inner@x>\r\n\r\nx\r\n")
    with site.old.imap(other) as imap:
        imap.append("INBOX", "", '"31-Dec-2037 00:00:00 +0000"', b"Message-ID: <future@x>\r\n\r\nx\r\n")
    for each in (user, other):
        assert "\nDetected 0 errors\n" in site.sync(each)
    inner, future = site.same_mail(user), site.same_mail(other)
    assert inner.returncode == 1 and "INBOX.INBOX: only in the old store, with 1 message" in inner.stdout
    assert future.returncode == 1
    assert "only in the old store: <future@x> (29 octets, arrived 2037-12-31 00:00:00 UTC)" in future.stdout
    # renamed there, it is copied
    with site.old.imap(user) as imap:
        imap.rename("INBOX.INBOX", "INBOX.Inner")
    site.sync(user)
    assert site.same_mail(user).returncode == 0
    assert mailbox(site.new, user) == mailbox(site.old, user)


def test_a_server_that_another_authority_vouches_for_gets_no_password(site: Site) -> None:
    """By itself imapsync takes any certificate."""
    user = site.unused.pop()
    (site.directory / "ca.pem").rename(site.directory / "real.pem")
    try:
        shutil.copyfile(site.directory / "other.pem", site.directory / "ca.pem")
        with pytest.raises(AssertionError, match=r"exit 12\b") as refused:
            site.sync(user)
        assert "certificate verify failed" in str(refused.value)
        assert site.same_mail(user).returncode == 2
        unchecked = site.sync(user, "--sslargs1 --sslargs2 SSL_verify_mode=1")
        assert "Exiting with return value 0 " in unchecked
    finally:
        (site.directory / "real.pem").rename(site.directory / "ca.pem")
