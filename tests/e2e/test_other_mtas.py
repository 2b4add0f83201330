# SPDX-License-Identifier: GPL-3.0-or-later
"""Exim, Sendmail and OpenSMTPD in front of the proxy, as they are: whatever happens, each recipient gets one copy.

The stores are scripted. What each MTA makes of a reply is its own business; what it was told and what the stores have
is ours.
"""

import json
import re
import shutil
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.backend import FakeBackend
from tests.support.control import ControlConnection
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import HEALTHY, Pause, Script, say

from .cutover import proxyctl
from .exim import Exim
from .mta import SENDER, Mta
from .opensmtpd import OpenSmtpd
from .process import wait_until
from .requirements import missing_for_other_mtas
from .sendmail import Sendmail

pytestmark = pytest.mark.timeout(120)
MTAS = (Exim, Sendmail, OpenSmtpd)
StartMta = Callable[[ProxyProcess], Mta]


@pytest.fixture(params=MTAS, ids=lambda kind: kind.name)
def start_mta(request: pytest.FixtureRequest) -> Iterator[StartMta]:
    """Starts one of them, private, in front of a proxy."""
    if reason := missing_for_other_mtas():
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(prefix="lpm-", dir="/tmp"))
    directory.chmod(0o755)
    with ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, directory, ignore_errors=True)

        def start(proxy: ProxyProcess) -> Mta:
            address = proxy.address
            mta: Mta = request.param(directory, Path(address) if isinstance(address, str) else address)
            cleanup.callback(lambda: print(f"{mta.name}'s log:", mta.log()[-30000:], sep="\n"))
            cleanup.callback(mta.stop)
            mta.start()
            return mta

        yield start


class Site:
    """Two stores, `old` and `new`, and a proxy with these users, by local part; the sender of all mail is on `old`."""

    def __init__(self, cleanup: ExitStack, users: dict[str, str], script: Script = HEALTHY) -> None:
        self.old = cleanup.enter_context(FakeBackend(script))
        self.new = cleanup.enter_context(FakeBackend())
        config = config_of({"old": self.old, "new": self.new}, {"sender": "old", **users}, ignoreDomain=True)
        directory = Path(tempfile.mkdtemp(prefix="lpc-", dir="/tmp"))
        cleanup.callback(shutil.rmtree, directory)
        self.control_socket = str(directory / "control")
        config["config"] |= {"permissions": "0666", "control": {"socket": self.control_socket}}
        config["config"]["receipts"] = str(directory / "receipts")
        self.proxy = cleanup.enter_context(ProxyProcess(config))

    def held(self) -> bool:
        connection = ControlConnection(self.control_socket)
        try:
            sessions = connection.ask("GET", "/sessions").document["sessions"]
        finally:
            connection.close()
        return any(session["state"] == "held" for session in sessions)


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as cleanup:
        yield cleanup


def copies(store: FakeBackend) -> Counter[tuple[str, str]]:
    """How often the store said 2xx after the data, by subject and local part. A bounce has the subject "bounce"."""
    found: Counter[tuple[str, str]] = Counter()
    for transaction in store.transactions():
        for recipient in transaction.recipients:
            if recipient.delivered:
                assert transaction.body is not None
                match = re.search(rb"(?m)^Subject: ([\w-]+)\r?$", transaction.body.bytes)
                subject = match[1].decode() if match and transaction.sender else "bounce"
                found[subject, recipient.path.partition("@")[0]] += 1
    return found


def run_until_empty(mta: Mta, what: Callable[[], str]) -> None:
    """Queue runs until nothing is left: an MTA may take a breath between two tries of a message."""

    def empty() -> bool:
        if mta.queue_length() == 0:
            return True
        mta.run_queue()
        return mta.queue_length() == 0

    wait_until(empty, 40.0, lambda: f"the queue of {mta.name} is not empty:\n{mta.log()}\n{what()}")


def test_a_mixed_message(start_mta: StartMta, cleanup: ExitStack) -> None:
    """250, 450 and 550 to RCPT, 250, 451 and 554 after the data, all in one message."""
    script = Script(
        rcpt_by={
            "carol@example.test": say("450 4.2.1 over quota"), "dave@example.test": say("550 5.1.1 no such user"),
        },
        final_by={
            "erin@example.test": say("451 4.2.0 mailbox is locked"), "frank@example.test": say("554 5.6.0 no spam"),
        },
    )  # fmt: skip
    people = ["alice", "bob", "carol", "dave", "erin", "frank"]
    site = Site(cleanup, dict.fromkeys(people, "old"), script)
    mta = start_mta(site.proxy)

    mta.submit("mixed", [f"{user}@example.test" for user in people])
    mta.run_queue()

    def asked() -> set[str]:
        return {each.path for transaction in site.old.transactions() for each in transaction.recipients if each.answer}

    wait_until(lambda: len(asked() - {SENDER}) == len(people) and sum(copies(site.old).values()) >= 2, 20.0, mta.log)
    assert {user: copies(site.old)["mixed", user] for user in people} == {
        "alice": 1, "bob": 1, "carol": 0, "dave": 0, "erin": 0, "frank": 0
    }  # fmt: skip
    site.old.script = Script()
    run_until_empty(mta, site.proxy.log)

    expected = {("mixed", user): 1 for user in people if not (mta.returns_5xx and user in ("dave", "frank"))}
    found = copies(site.old)
    bounces = found.pop(("bounce", "sender"), 0)
    assert found == expected
    assert (bounces > 0) is mta.returns_5xx
    sent = sum(expected.values()) + bounces
    wait_until(lambda: site.proxy.log().count("status=sent") == sent, 5.0, site.proxy.log)


def test_a_user_who_is_parked_and_then_moved(start_mta: StartMta, cleanup: ExitStack) -> None:
    site = Site(cleanup, {"parked": "reject", "other": "old", "held": "hold"})
    mta = start_mta(site.proxy)

    mta.submit("parked", ["parked@example.test", "other@example.test"])
    mta.run_queue()
    wait_until(lambda: copies(site.old)["parked", "other"] and "450 4.2.1" in site.proxy.log(), 20.0, mta.log)
    assert mta.queue_length() == 1
    site.proxy.route("parked", "new")
    run_until_empty(mta, site.proxy.log)

    # Who is on hold is waited for, and nothing is deferred.
    mta.submit("held", ["held@example.test", "other@example.test"])
    delivering = threading.Thread(target=mta.run_queue)
    delivering.start()
    wait_until(site.held, 20.0, lambda: f"{mta.log()}\n{site.proxy.log()}")
    site.proxy.route("held", "new")
    delivering.join()
    run_until_empty(mta, site.proxy.log)

    assert copies(site.old) == {("parked", "other"): 1, ("held", "other"): 1}
    assert copies(site.new) == {("parked", "parked"): 1, ("held", "held"): 1}
    assert "to=<held@example.test>, backend=-" not in site.proxy.log()


def test_requeue_after_a_move(start_mta: StartMta, cleanup: ExitStack) -> None:
    """What `reject` deferred comes at once, and nothing else is tried; the queue itself says that none waits."""
    site = Site(cleanup, {"parked": "reject", "other": "old", "waits": "reject"})
    mta = start_mta(site.proxy)

    def requeue(*arguments: str) -> subprocess.CompletedProcess[str]:
        options = ("--mta", mta.key, "--command", str(mta.script()))
        done = proxyctl(site.proxy, "--json", "requeue", *options, *arguments)
        assert done.stdout, done.stderr
        return done

    mta.submit("one", ["Parked+detail@example.test", "other@example.test"])
    mta.submit("two", ["parked@example.test"])
    mta.submit("rest", ["waits@example.test"])
    mta.run_queue()
    wait_until(lambda: site.proxy.log().count("450 4.2.1") >= 3, 20.0, mta.log)
    wait_until(lambda: mta.queue_length() == 3, 20.0, mta.log)  # with OpenSMTPD it delivers at once

    done = requeue("parked")
    assert done.returncode == 3, f"{done.stdout}{done.stderr}"
    assert {mail["fate"] for mail in json.loads(done.stdout)["mails"]} == {"deferred again"}, done.stdout
    tried = site.proxy.log().count("to=<waits@")

    moved = proxyctl(site.proxy, "move", "--no-preflight", "parked", "new")
    assert moved.returncode == 0, moved.stderr
    done = requeue("parked")
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{mta.log()}"
    fates = [(mail["fate"], mail["found"]) for mail in json.loads(done.stdout)["mails"]]
    assert fates == [("not in the queue", True)] * 2, done.stdout
    found = {(subject, to.lower()): number for (subject, to), number in copies(site.new).items()}
    assert found == {("one", "parked+detail"): 1, ("two", "parked"): 1}
    assert site.proxy.log().count("to=<waits@") == tried and mta.queue_length() == 1
    again = json.loads(requeue("parked").stdout)
    assert (again["mails"], again["runs"], again["listed"]) == ([], [], True)


def test_mail_waits_while_its_host_is_not_allowed(start_mta: StartMta, cleanup: ExitStack) -> None:
    """Exim over TCP and Sendmail would bounce it at once on a 5xx in place of the greeting."""
    store = cleanup.enter_context(FakeBackend())
    config = config_of({"old": store}, {}, fallback_backend="old", allow=["192.0.2.0/24"])
    proxy = cleanup.enter_context(ProxyProcess(config, tcp=True))
    mta = start_mta(proxy)

    mta.submit("waits", ["alice@example.test", "bob@example.test"])
    mta.run_queue()
    proxy.wait_log("not in config.allow", timeout=20.0)
    mta.run_queue()
    assert mta.queue_length() > 0 and not store.transactions(), mta.log()
    proxy.config["config"]["allow"] = ["127.0.0.0/8"]
    assert "active" in proxy.reload()
    run_until_empty(mta, proxy.log)

    assert copies(store) == {("waits", "alice"): 1, ("waits", "bob"): 1}


def test_a_restart_of_the_proxy(start_mta: StartMta, cleanup: ExitStack) -> None:
    """In the midst of a queue run, away for a while, and then back: what was in doubt is tried again, and arrives."""
    people = ["alice", "bob", "carol"]
    subjects = [f"restart-{number}" for number in range(8)]
    slow = Script(final=(Pause(0.1), *say("250 2.0.0 stored")))
    site = Site(cleanup, {"alice": "old", "bob": "old", "carol": "new"}, slow)
    mta = start_mta(site.proxy)
    for subject in subjects:
        mta.submit(subject, [f"{user}@example.test" for user in people])

    delivering = threading.Thread(target=mta.run_queue)
    delivering.start()
    wait_until(lambda: copies(site.old), 20.0, mta.log)
    assert site.proxy.stop(30.0) == 0
    delivering.join()
    mta.run_queue()  # nobody is there
    site.proxy.start()
    run_until_empty(mta, site.proxy.log)

    found = copies(site.old) + copies(site.new)
    assert found == {(subject, user): 1 for subject in subjects for user in people}
    assert "may be delivered" not in site.proxy.log()
