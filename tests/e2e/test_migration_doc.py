# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/migration.md and migration-by-hand.md are true: their commands are run in front of real servers, in their order,
and print what is shown."""

import imaplib
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from .conftest import PEOPLE, Stack
from .machine import Machine
from .mail import SENDER, Message, submit
from .migration_stand import NO_ACCOUNT, PAGES, MigrationStand, replaced
from .perdition import Perdition
from .postfix import DOMAIN
from .process import wait_until
from .shell_doc import Command, File, Shell, differences, steps
from .slow_relay import SlowRelay
from .stores import PASSWORD, TEST_USERS, Cyrus, Dovecot

ALIKE = {
    r"waited [\d.]+ m?s for \d+ deliver(?:y|ies)|nothing in flight \([\d.]+ m?s\)": "all is quiet",  # some milliseconds
    rf"u\d+@{DOMAIN}|u\d+@example\.org": "alice@example.org",
    # what doveadm 2.3 says and 2.4 does not, and the other way round
    r"\bdoveadm\([^)]*\)(?:<\d+><[\w+/]{22}>)?: Info: ": "doveadm: ",
    r"(?<=: Error: )cmd \w+: ": "",
}


@pytest.fixture(params=["this release", "the other release"])
def page_stack(request: pytest.FixtureRequest, patient_stack: Stack) -> Iterator[Stack]:
    """With the Dovecot of this machine, and with that of the other Debian release: the page is for both languages."""
    if request.param == "this release":
        yield patient_stack
        return
    other: Machine = request.getfixturevalue("other_machine")
    with ExitStack() as cleanup:
        directory = patient_stack.proxy_socket.with_name("page")
        for part in (directory, directory / "cyrus", directory / "dovecot"):
            part.mkdir()
        old, new = Cyrus(directory / "cyrus"), Dovecot(directory / "dovecot", other)
        new.add_users([SENDER, *PEOPLE, *TEST_USERS, *patient_stack.unused])
        new.copy_from(old)
        for store in (old, new):
            cleanup.callback(store.stop)
            store.start()
        old.add_users([SENDER])
        yield replace(patient_stack, old=old, new=new)
        print(f"{new!r}'s log:", *new.log().splitlines()[-60:], sep="\n")


@pytest.fixture
def stand(page_stack: Stack, perdition: Perdition) -> Iterator[MigrationStand]:
    with ExitStack() as cleanup:
        directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="lpm-", dir="/tmp")))
        stand = MigrationStand(page_stack, directory, perdition)
        cleanup.callback(stand.proxy.close)
        yield stand


@pytest.fixture
def slow_stand(patient_stack: Stack, perdition: Perdition) -> Iterator[MigrationStand]:
    """The same with ten seconds between the end of a message and when the old store gets it."""
    with ExitStack() as cleanup:
        slow = patient_stack.proxy_socket.with_name("slow")
        cleanup.enter_context(SlowRelay(slow, patient_stack.old.lmtp_socket, commit_delay=10.0, rate=1e9))
        directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="lpm-", dir="/tmp")))
        stand = MigrationStand(patient_stack, directory, perdition, slow)
        cleanup.callback(stand.proxy.close)
        cleanup.callback(patient_stack.old.ensure_started)
        yield stand


def run(stand: MigrationStand, shell: Shell, command: Command) -> list[str]:
    """What is wrong with the page at this command."""
    output = [stand.there(line) for line in shell.run(stand.here(command.text))]
    wrong = differences(unwrapped(command.output), unwrapped(output), ALIKE)
    if wrong:
        print(f"# {command.text}", *output, sep="\n")
    return wrong


def unwrapped(lines: Sequence[str]) -> list[str]:
    """With what is indented at the end of the line before: where a line is wrapped depends on what doveadm said."""
    return re.sub(r"(?m)(?<=.)\n {4,}", " ", "\n".join(lines)).split("\n") if lines else []


def logged_in_at(perdition: Perdition, user: str) -> str:
    """The server of the user's last login through Perdition: host:port."""
    perdition.login(user, PASSWORD).logout()
    logins = re.findall(rf'Auth: .* authentication_id="{user}" server="([^"]*)"', perdition.log())
    return str(logins[-1])


@pytest.mark.timeout(400)
def test_every_command_prints_what_the_page_shows(
    page_stack: Stack, perdition: Perdition, stand: MigrationStand
) -> None:
    stack = page_stack
    *users, late = stack.users(13)
    stand.fill([*users, late])
    (stand.work / "users").write_text("".join(f"{user}@{DOMAIN}\n" for user in (*users, NO_ACCOUNT)), "ascii")
    perdition.start(stack.old.imap_port)
    old, new = (f"127.0.0.1:{store.imap_port}" for store in stack.stores)
    session = perdition.login("alice", PASSWORD)
    commands = 0

    with stand.shell() as shell:
        for step in steps(PAGES):
            if isinstance(step, File):
                stand.install(step)
                continue
            assert run(stand, shell, step) == []
            commands += 1
            if step.text.startswith("imap-to 127.0.0.1:1 /var/lib/migration/alice"):
                with pytest.raises(imaplib.IMAP4.abort):
                    session.noop()
                session.shutdown()
                with pytest.raises(imaplib.IMAP4.error, match="Could not connect to server"):
                    perdition.login("alice", PASSWORD)
        # beyond the page: who cannot be copied goes back, the rest of the batch is moved, and never a second time
        (stand.work / "last").write_text(f"{late}@{DOMAIN}\n{NO_ACCOUNT}@{DOMAIN}\n", "ascii")
        (stand.work / "by-hand").write_text(f"bob@{DOMAIN}\n", "ascii")
        held_by_bob = stack.new.subjects("bob")
        last = shell.run("migrate-batch last; echo $?")
        again = shell.run("migrate-batch last.moved; echo $?")
        by_hand = shell.run("migrate-batch by-hand; echo $?")
        routes = shell.run(f"lmtp-proxyctl lookup {NO_ACCOUNT}@{DOMAIN} | grep ^backend")

    assert commands > 60
    assert last == ["last: 1 moved, 1 stayed", "0"]
    assert again == [f"{late}@{DOMAIN}", "migrate-batch: last.moved: these were moved before; see last.moved.log", "1"]
    assert by_hand[-1] == "1" and "some were on new" in by_hand[0]
    assert stack.new.subjects("bob") == held_by_bob
    assert [line.split() for line in routes] == [["backend", "old"]]
    assert [logged_in_at(perdition, user) for user in ("alice", "dave")] == [new, old]
    held = {user: sorted(stack.new.subjects(user)) for user in ("alice", "carol", "erin", users[0], late)}
    assert held["alice"] == ["Old mail 1", "Old mail 2", "while you were moving"]
    assert held["carol"] == held["erin"] == held[users[0]] == held[late] == ["Old mail 1", "Old mail 2"]
    assert sorted(stack.old.subjects("dave")) == ["Old mail 1", "Old mail 2", "on the new store", "to be held"]
    assert stack.postfix.lines("status=bounced|suspended") == []


def test_the_page_shows_what_trouble_looks_like(patient_stack: Stack, slow_stand: MigrationStand) -> None:
    stack, stand = patient_stack, slow_stand
    (user,) = stack.users(1)
    stand.install(next(step for step in steps(PAGES) if isinstance(step, File)))
    shown = [
        Command(step.text.replace("alice@example.org", f"{user}@{DOMAIN}"), step.output)
        for step in steps(PAGES, "text")
        if isinstance(step, Command)
    ]
    [split] = [number for number, command in enumerate(shown) if "--timeout" in command.text]
    uncertain, too_short = shown[:split], shown[split:]

    with stand.shell() as shell:
        shell.run(stand.here("lmtp-proxyctl move USER@example.org old").replace("USER", user))
        for commands, kill in ((too_short, False), (uncertain, True)):
            text = f"Message-ID: <4f1c@example.com>\r\nFrom: {user}\r\n\r\nText\r\n".encode("ascii")
            sender = "carol@example.com" if kill else f"bob@{DOMAIN}"
            submit(stack.postfix, [Message("trouble", (user,), text)], sender)
            wait_until(lambda: "final dot" in "".join(shell.run("lmtp-proxyctl inflight")), 30, "a final dot")
            if kill:
                stack.old.kill()
                stand.proxy.wait_log("may be delivered")
            for command in commands:
                assert run(stand, shell, command) == []
            shell.run(f"lmtp-proxyctl move {user}@{DOMAIN} old")
    assert len(uncertain) == 2 and len(too_short) == 3


def test_what_has_taken_a_place_is_not_looked_at_again() -> None:
    """As in a checkout below /root, which means something on the page."""
    meanings = {"/usr/share/x": "/root/checkout/etc", "/root/": "/tmp/d/", "/usr/share/x/y": "/z"}
    assert replaced("/usr/share/x/a /root/b /usr/share/x/y", meanings) == "/root/checkout/etc/a /tmp/d/b /z"
