# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the mail of a recipient goes: what is remembered, for how long, and how it looks in the log."""

from lmtp_proxy.backends.pool import BackendPool
from lmtp_proxy.config.values import Backend, UnixAddress
from lmtp_proxy.generations.destination import Destination, Destinations
from lmtp_proxy.routing.keys import KeyRules
from lmtp_proxy.routing.routing import Routing
from lmtp_proxy.routing.static_table import StaticTable
from lmtp_proxy.routing.table import Table, TableUnavailable
from lmtp_proxy.wire.envelope import Recipient

ALICE = Recipient(b"<alice@example.org>", "alice", "example.org")
POOLS = {name: BackendPool(Backend(name, UnixAddress(f"/{name}")), "proxy") for name in ("old", "new", "o\nd")}


def destinations(table: Table, fallback: str | None = "new") -> Destinations:
    return Destinations(7, Routing(table, KeyRules(), fallback), POOLS)


def test_a_destination_has_all_that_is_the_same_for_each_message() -> None:
    alice = destinations(StaticTable({"alice@example.org": "old"})).of(ALICE)
    assert (alice.recipient, alice.generation, alice.pool) == (ALICE, 7, POOLS["old"])
    assert alice.route.backend == "old" and alice.command == b"RCPT TO:<alice@example.org>\r\n"
    assert (alice.path, alice.via) == ("<alice@example.org>", "backend=old[/old]")
    assert alice.to == "<alice@example.org>, backend=old[/old]"


def test_a_plain_path_says_all_that_a_recipient_does() -> None:
    by_path, by_recipient = (destinations(StaticTable({"alice@example.org": "old"})) for _ in range(2))
    one, other = by_path[ALICE.path], by_recipient.of(ALICE)
    assert all(getattr(one, name) == getattr(other, name) for name in Destination.__slots__)


def test_who_goes_nowhere_has_no_backend() -> None:
    alice = destinations(StaticTable({"alice@example.org": "reject"})).of(ALICE)
    assert alice.pool is None and alice.route.refusal is not None and alice.via == "backend=-"


def test_nothing_of_it_ends_a_line_of_the_log() -> None:
    odd = Recipient(b'<"a\nb"@\xc3\xa4\xff>', "a\nb", "x")
    assert destinations(StaticTable({}), "o\nd").of(odd).to == r'<"a\nb"@ä\xff>, backend=o\nd[/o\nd]'


def test_what_one_client_says_of_a_recipient_is_not_said_of_the_next() -> None:
    some = destinations(StaticTable({"alice@example.org": "old"}))
    said = ALICE._replace(orcpt=b"rfc822;a@b")
    for recipient in (said, ALICE, said):
        assert some.of(recipient).recipient == recipient
    assert some[ALICE.path].recipient == ALICE and some.of(ALICE) is some[ALICE.path]
    assert some.of(said).command == some.of(ALICE).command


def test_one_is_remembered_for_as_long_as_its_table_cannot_change() -> None:
    class Changing:
        has_domains = True
        constant = False

        def __init__(self) -> None:
            self.backend = "old"

        def lookup(self, key: str) -> str | None:
            return self.backend

        def __len__(self) -> int:
            return 1

    table = Changing()
    changing = destinations(table)
    assert changing.of(ALICE).route.backend == "old"
    table.backend = "new"
    assert changing.of(ALICE).route.backend == "new" and len(changing) == 0
    constant = destinations(StaticTable({"alice@example.org": "old"}))
    assert constant.of(ALICE) is constant.of(ALICE) is constant[ALICE.path]
    for number in range(10_000):  # they are not kept for ever
        assert constant.of(Recipient(b"<%d@x>" % number, str(number), "x")).route.backend == "new"
    assert 0 < len(constant) <= 4096
    assert constant.of(ALICE).route.backend == "old"


def test_what_a_replaced_table_cannot_say_is_not_remembered() -> None:
    class Replaced(StaticTable):
        def lookup(self, key: str) -> str | None:
            raise TableUnavailable("users: another table has taken its place")

    replaced = destinations(Replaced())
    assert replaced.of(ALICE).route.trouble is not None and len(replaced) == 0


def test_an_address_as_long_as_a_command_line_is_not_remembered() -> None:
    known = destinations(StaticTable({}))
    long = "u" * 2000
    assert known.of(Recipient(b"<%s@x>" % long.encode(), long, "x")).route.backend == "new" and len(known) == 0
