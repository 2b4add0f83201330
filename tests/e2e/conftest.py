# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures: the three servers, started once for all end-to-end tests, and the proxy, started anew for each."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support.proxy import ProxyProcess
from tests.support.roots import CannotBeMade

from .machine import Machine, other_release
from .mail import SENDER
from .perdition import Perdition
from .postfix import Postfix
from .requirements import missing_for_migration, missing_for_servers
from .stores import TEST_USERS, Cyrus, Dovecot

PEOPLE = ("alice", "bob", "carol", "dave", "erin", "frank", "grace")
"""Users with an account in Dovecot and nothing else, for the one test that names them."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Postfix in front, `old` and `new` behind; between them there is room for a proxy at `proxy_socket`.

    Only mail for straight-old.test and straight-new.test goes to the stores without it.
    """

    postfix: Postfix
    old: Cyrus
    new: Dovecot
    proxy_socket: Path
    unused: list[str]

    @property
    def control_socket(self) -> Path:
        """Where a proxy that is started with `config` can be asked and told."""
        return self.proxy_socket.with_name("control")

    @property
    def stores(self) -> tuple[Cyrus, Dovecot]:
        return self.old, self.new

    def users(self, count: int) -> list[str]:
        """So many users that no other test has, with an empty mailbox in both stores."""
        taken = [self.unused.pop(0) for _ in range(count)]
        self.old.add_users(taken)
        for user in taken:
            # A first mail makes the mailbox in Dovecot, and two first mails at once get in each other's way.
            assert self.new.messages(user) == []
        return taken

    def config(self, users: Mapping[str, str], **extra: object) -> dict[str, dict[str, object]]:
        """A configuration for the proxy between Postfix and the stores, for `users` by local part.

        `extra` goes into its section `config`.
        """
        return {
            "config": {
                "socket": str(self.proxy_socket),
                "owner": "postfix",
                "permissions": "0600",
                "ignoreDomain": True,  # as both stores do
                "control": {"socket": str(self.control_socket)},
                **extra,
            },
            "backends": {"old": {"socket": str(self.old.lmtp_socket)}, "new": {"socket": str(self.new.lmtp_socket)}},
            "users": {SENDER: "old", **users},
        }


@pytest.fixture(scope="session")
def servers() -> Iterator[Stack]:
    reason = missing_for_servers()
    if reason is not None:
        pytest.skip(reason)
    # three different users must get through to it, and its path must be short enough for unix sockets
    directory = Path(tempfile.mkdtemp(prefix="lpe-", dir="/tmp"))
    directory.chmod(0o755)
    with ExitStack() as cleanup:
        cleanup.callback(os.umask, os.umask(0o022))
        cleanup.callback(shutil.rmtree, directory, ignore_errors=True)
        for name in ("cyrus", "dovecot", "postfix"):
            (directory / name).mkdir()
        proxy_socket = directory / "proxy"
        old, new = Cyrus(directory / "cyrus"), Dovecot(directory / "dovecot")
        unused = [f"u{number:03}" for number in range(500)]
        straight = {"straight-old.test": old.lmtp_socket, "straight-new.test": new.lmtp_socket}
        stack = Stack(Postfix(directory / "postfix", proxy_socket, straight), old, new, proxy_socket, unused)
        new.add_users([SENDER, *PEOPLE, *TEST_USERS, *unused])
        new.copy_from(old)
        for server in (old, new, stack.postfix):
            cleanup.callback(server.stop)
            server.start()
        old.add_users([SENDER])
        yield stack


@pytest.fixture
def stack(servers: Stack) -> Iterator[Stack]:
    """The servers, all running and with an empty queue, whatever the test before did to them."""
    servers.postfix.begin_log()
    yield servers
    for server in (servers.postfix, servers.new):
        print(f"{server.name}'s log:", *server.log().splitlines()[-100:], sep="\n")  # shown when the test failed
    servers.new.ensure_started()
    if servers.postfix.queue_length() > 0:
        servers.postfix.wipe()


@pytest.fixture(scope="session")
def patient_postfix(servers: Stack) -> Iterator[Postfix]:
    """A second Postfix before the same proxy, with Debian's own times: what it defers waits for minutes."""
    directory = servers.proxy_socket.with_name("patient")
    directory.mkdir()
    postfix = Postfix(directory, servers.proxy_socket, {}, patient=True)
    try:
        postfix.start()
        yield postfix
    finally:
        postfix.stop()


@pytest.fixture
def patient_stack(stack: Stack, patient_postfix: Postfix) -> Iterator[Stack]:
    """The same stores with the patient Postfix in front."""
    patient_postfix.begin_log()
    yield replace(stack, postfix=patient_postfix)
    print("The patient Postfix's log:", *patient_postfix.log().splitlines()[-100:], sep="\n")
    if patient_postfix.queue_length() > 0:
        patient_postfix.wipe()


@pytest.fixture
def perdition(patient_stack: Stack) -> Iterator[Perdition]:
    reason = missing_for_migration()
    if reason is not None:
        pytest.skip(reason)
    directory = patient_stack.proxy_socket.with_name("perdition")
    directory.mkdir()
    server = Perdition(directory)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def other_machine() -> Machine:
    """The stores of the other Debian release."""
    try:
        return other_release()
    except CannotBeMade as error:
        pytest.skip(str(error))
    except AssertionError as error:
        pytest.skip(f"the stores of another Debian release cannot be had: {error}")


Start = Callable[[Mapping[str, Mapping[str, object]]], ProxyProcess]


@pytest.fixture
def start_proxy() -> Iterator[Start]:
    """Starts the real proxy with a configuration; at the end of the test it is stopped and its log looked at."""
    with ExitStack() as proxies:

        def start(config: Mapping[str, Mapping[str, object]]) -> ProxyProcess:
            proxy = proxies.enter_context(ProxyProcess(config))
            proxies.callback(lambda: print("The proxy's log:", *proxy.log().splitlines()[-100:], sep="\n"))
            return proxy

        yield start
