# SPDX-License-Identifier: GPL-3.0-or-later
"""The commit point: what is in flight at each step, what is recorded at the end; a dot that has to wait for room."""

import time

import pytest

from lmtp_proxy.backends.failure import BackendError, Failure
from lmtp_proxy.config.values import Backend, Config, UnixAddress
from lmtp_proxy.delivery.accounts import Accounts
from lmtp_proxy.delivery.commit import CommitPoint, Message, ProcessParts
from lmtp_proxy.delivery.in_flight import InFlight, Phase
from lmtp_proxy.delivery.uncertain_log import UncertainLog
from lmtp_proxy.generations.generation import Generation, first_generation, next_generation
from lmtp_proxy.routing.static_table import StaticTable
from lmtp_proxy.wire.envelope import Envelope, Recipient
from lmtp_proxy.wire.reply import Reply

OLD, NEW = (Backend(name, UnixAddress(f"/{name}")) for name in ("old", "new"))
ALICE, BOB = Recipient(b"<alice+x@x>", "alice+x", "x"), Recipient(b"<bob@x>", "bob", "x")


def config(**users: str) -> Config:
    mailboxes = {f"{user}@x": backend for user, backend in users.items()}
    return Config("/c", (UnixAddress("/s"),), "proxy", backends={"old": OLD, "new": NEW}, users=StaticTable(mailboxes))


class Proxy:
    """A generation that can be changed, and one delivery to `old`."""

    def __init__(self) -> None:
        self.generation: Generation = first_generation(config(alice="old", bob="old"))
        self.in_flight = InFlight()
        self.uncertain = UncertainLog(lambda: self.generation, self.in_flight)
        self.message = Message("8f3a", Envelope(b"<s@x>"), b"Message-ID: <1@x>\r\n\r\n", 21)
        pool = self.generation.pools["old"]
        cutover = ProcessParts(lambda: self.generation, self.in_flight, self.uncertain)
        accounts = self.accounts = Accounts()
        self.commit = CommitPoint(pool, self.message, cutover, accounts)
        accounts.asked = [self.generation.destinations.of(recipient) for recipient in (ALICE, BOB)]
        assert self.commit.recipients == [ALICE, BOB]
        accounts.take_all()
        self.commit.phase = Phase.DATA

    def reload(self, **users: str) -> None:
        self.generation = next_generation(config(**users), self.generation)

    def waited_for(self, key: str) -> bool:
        return bool(self.in_flight.drain({key}, self.generation.config.key_rules, self.in_flight.last))


@pytest.fixture
def proxy() -> Proxy:
    return Proxy()


def test_it_is_waited_for_from_entering_to_the_end(proxy: Proxy) -> None:
    assert len(proxy.in_flight) == 1 and not proxy.waited_for("alice@x")
    proxy.commit.enter()
    assert all(proxy.waited_for(key) for key in ("alice@x", "alice+x@x", "bob@x", "@x")) and not proxy.waited_for("@y")
    proxy.commit.look()
    assert proxy.waited_for("alice@x")
    proxy.accounts.replies = [Reply(250, (b"2.0.0 ok",))] * 2
    proxy.commit.passed_well()
    assert len(proxy.in_flight) == 0 and proxy.uncertain.recent() == []


@pytest.mark.parametrize(
    ("users", "reason"),
    [
        ({"alice": "new", "bob": "old"}, "alice+x@x now goes to new; nothing was delivered"),
        ({"alice": "old", "bob": "reject"}, "bob@x now goes to no backend; nothing was delivered"),
        ({"alice": "hold", "bob": "old"}, "alice+x@x now goes to hold; nothing was delivered"),
        ({"bob": "old"}, "alice+x@x now goes to no backend; nothing was delivered"),
    ],
)
def test_a_changed_route_ends_it_without_a_record(proxy: Proxy, users: dict[str, str], reason: str) -> None:
    proxy.commit.enter()
    proxy.reload(**users)
    with pytest.raises(BackendError) as caught:
        proxy.commit.look()
    assert (caught.value.failure, caught.value.reason) == (Failure.ROUTE, reason)
    proxy.commit.given_up(caught.value.reason)
    assert len(proxy.in_flight) == 0 and proxy.uncertain.recent() == []


def test_a_reload_that_changes_others_does_not_matter(proxy: Proxy) -> None:
    proxy.reload(alice="old", bob="old", carol="new")
    proxy.commit.enter()
    proxy.commit.look()
    assert proxy.waited_for("bob@x")


def test_after_the_look_those_without_a_reply_are_recorded_once(proxy: Proxy) -> None:
    proxy.commit.enter()
    proxy.commit.look()
    proxy.accounts.replies = [Reply(250, (b"2.0.0 ok",))]
    before = time.time()
    proxy.commit.given_up("gone")
    proxy.commit.given_up("again")
    proxy.commit.passed_well()
    [record] = proxy.uncertain.recent()
    assert before <= record.time <= time.time()
    assert (record.user, record.recipient, record.backend, record.address) == ("bob@x", "bob@x", "old", "/old")
    assert (record.sender, record.message_id, record.size) == ("s@x", "<1@x>", 21)
    assert (record.session, record.reason) == ("8f3a", "gone")
    assert len(proxy.in_flight) == 0
    assert proxy.generation.pools["old"].counts.uncertain == 1
    assert proxy.uncertain.concerning({"@x"}, 0) == [record] == proxy.uncertain.concerning(None, 0)
    assert proxy.uncertain.concerning({"alice@x"}, 0) == [] == proxy.uncertain.concerning({"@x"}, time.time() + 1)


def test_a_step_back_is_not_waited_for_and_leaves_no_record(proxy: Proxy) -> None:
    proxy.commit.enter()
    proxy.commit.look()
    proxy.commit.step_back()
    assert not proxy.waited_for("alice@x") and len(proxy.in_flight) == 1
    proxy.commit.given_up("no room in time")
    assert proxy.uncertain.recent() == [] and len(proxy.in_flight) == 0


@pytest.mark.parametrize(
    ("recipient", "user"),
    [
        (Recipient(b"<alice>", "alice", ""), "alice"),
        (Recipient(b"<alice+x>", "alice+x", ""), "alice"),
        (Recipient(b'<"@odd"@x>', "@odd", "x"), "@odd@x"),
    ],
)
def test_the_user_of_a_record_is_a_mailbox(proxy: Proxy, recipient: Recipient, user: str) -> None:
    proxy.accounts.accepted = [proxy.generation.destinations.of(recipient)]
    proxy.commit.enter()
    proxy.commit.phase = proxy.commit.phase.FINAL_DOT
    proxy.commit.given_up("gone")
    assert [record.user for record in proxy.uncertain.recent()] == [user]


def test_an_operator_can_read_it(proxy: Proxy) -> None:
    proxy.commit.enter()
    assert repr(proxy.commit) == "<CommitPoint 1 to old for <alice+x@x>, <bob@x>: commit>"
