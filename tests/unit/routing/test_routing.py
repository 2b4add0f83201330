# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes: the first hit wins, reserved names, the fallback, and a table that cannot answer."""

import sys

import pytest

from lmtp_proxy.routing.keys import KeyRules
from lmtp_proxy.routing.routing import NoRoute, Routing
from lmtp_proxy.routing.static_table import StaticTable
from lmtp_proxy.routing.table import TableUnavailable
from lmtp_proxy.wire.envelope import Recipient, parse_rcpt

USERS = {
    "alice@example.test": "new",
    "alice+special@example.test": "third",
    "bob@example.test": "reject",
    "carol@example.test": "hold",
    "bob@other.test": "old",
    "@other.test": "domain-wide",
    "@parked.test": "reject",
    "u001": "old",
}


class BrokenTable:
    """A table that cannot say anything about `broken`, and knows nobody else."""

    def __init__(self, broken: str) -> None:
        self.broken = broken
        self.has_domains = True
        self.constant = False
        self.asked: list[str] = []

    def __len__(self) -> int:
        return 0

    def lookup(self, key: str) -> str | None:
        self.asked.append(key)
        if key == self.broken:
            raise TableUnavailable("ldap://directory: timed out")
        return None


def recipient(path: str) -> Recipient:
    parsed = parse_rcpt(b"TO:" + path.encode(), smtputf8=True)
    assert isinstance(parsed, Recipient)
    return parsed


def routing(fallback: str | None = None, *, rules: KeyRules | None = None) -> Routing:
    return Routing(StaticTable(USERS), rules or KeyRules(), fallback)


@pytest.mark.parametrize(
    "path, backend",
    [
        ("<alice@example.test>", "new"),
        ("<ALICE@Example.Test>", "new"),
        ('<"alice"@example.test>', "new"),
        ("<@relay.test:alice@example.test>", "new"),
        ("<alice+lists@example.test>", "new"),
        ("<alice+special@example.test>", "third"),
        ("<bob@other.test>", "old"),
        ("<bob+x@other.test>", "old"),
        ("<anybody@other.test>", "domain-wide"),
        ("<u001>", "old"),
        ("<u001+x>", "old"),
    ],
)
@pytest.mark.parametrize("fallback", [None, "fallback", "reject", "hold"])
def test_the_most_specific_entry_wins(path: str, backend: str, fallback: str | None) -> None:
    route = routing(fallback).route(recipient(path))
    assert (route.backend, route.refusal, route.held, route.trouble) == (backend, None, False, None)


@pytest.mark.parametrize(
    "path, fallback, held",
    [
        ("<bob@example.test>", None, False),
        ("<bob@example.test>", "old", False),  # parked is parked, whatever the fallback
        ("<bob+x@example.test>", "old", False),
        ("<anybody@parked.test>", "old", False),
        ("<carol@example.test>", None, True),
        ("<carol@example.test>", "old", True),
        ("<stranger@example.test>", "reject", False),
        ("<stranger@example.test>", "hold", True),
    ],
)
def test_reject_and_hold(path: str, fallback: str | None, held: bool) -> None:
    route = routing(fallback).route(recipient(path))
    assert route.backend is None
    assert route.held is held
    assert route.trouble is None
    assert route.refusal is (NoRoute.HELD if held else NoRoute.REJECTED)


def test_a_stranger_goes_to_the_fallback() -> None:
    route = routing("old").route(recipient("<stranger@example.test>"))
    assert (route.backend, route.refusal, route.held) == ("old", None, False)


def test_a_stranger_without_a_fallback_is_deferred() -> None:
    route = routing().route(recipient("<stranger@example.test>"))
    assert (route.backend, route.held) == (None, False)
    assert route.refusal is NoRoute.UNKNOWN


def test_without_domains_an_entry_for_a_domain_is_not_asked() -> None:
    without = routing(rules=KeyRules(ignore_domain=True))
    assert without.route(recipient("<U001@any.test>")).backend == "old"
    assert without.route(recipient("<U001+x@any.test>")).backend == "old"
    assert without.route(recipient("<anybody@other.test>")).backend is None


def test_keys_are_all_forms_the_most_specific_first() -> None:
    expected = ("alice+special@example.test", "alice@example.test", "@example.test")
    assert routing().route(recipient("<Alice+Special@example.test>")).keys == expected
    assert routing().route(recipient("<bob+x@example.test>")).keys[1] == "bob@example.test"
    assert routing().route(recipient("<stranger>")).keys == ("stranger",)
    assert Routing(BrokenTable("x"), KeyRules(), None).route(recipient("<x>")).keys == ("x",)


@pytest.mark.parametrize("broken", ["dave+x@example.test", "dave@example.test", "@example.test"])
@pytest.mark.parametrize("fallback", [None, "old", "reject", "hold"])
def test_a_table_that_cannot_answer_defers_and_never_falls_back(broken: str, fallback: str | None) -> None:
    table = BrokenTable(broken)
    route = Routing(table, KeyRules(), fallback).route(recipient("<dave+x@example.test>"))
    assert (route.backend, route.held) == (None, False)
    assert route.refusal is NoRoute.UNAVAILABLE
    assert route.trouble == "ldap://directory: timed out"
    assert table.asked[-1] == broken  # nothing less specific is asked once an answer is missing


@pytest.mark.parametrize(
    "keys, fallback, found",
    [
        (["alice+special@example.test", "alice@example.test"], "old", ("alice+special@example.test", "third")),
        (["alice+x@example.test", "alice@example.test"], None, ("alice@example.test", "new")),
        (["bob@example.test", "@example.test"], "old", ("bob@example.test", "reject")),
        (["x@parked.test", "@parked.test"], None, ("@parked.test", "reject")),
        (["stranger@example.test"], "old", (None, "old")),
        (["stranger@example.test"], None, (None, None)),
        ([], "hold", (None, "hold")),
    ],
)
def test_find_tells_which_key_it_was(keys: list[str], fallback: str | None, found: tuple[str | None, str]) -> None:
    assert routing(fallback).find(keys, "example.test") == found


def test_find_raises_what_the_table_raises() -> None:
    with pytest.raises(TableUnavailable, match="timed out"):
        Routing(BrokenTable("b"), KeyRules(), "old").find(["a", "b"], "x")


class ChangingTable(dict[str, str]):
    has_domains = True
    constant = False

    def lookup(self, key: str) -> str | None:
        return self.get(key)


def test_a_route_is_looked_up_each_time() -> None:
    users = ChangingTable({"alice@example.test": "old"})
    routes = Routing(users, KeyRules(), None)
    assert routes.route(recipient("<alice@example.test>")).backend == "old"
    users["alice@example.test"] = "new"
    assert routes.route(recipient("<alice@example.test>")).backend == "new"


def test_repr_says_how_large_the_table_is_and_what_the_fallback_is() -> None:
    text = repr(routing("old"))
    assert f"{len(USERS)} keys" in text
    assert "fallback=old" in text


# --- the names under which mail is remembered ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "mailboxes"),
    [
        ("<Alice@Example.Test>", ("alice@example.test",)),
        ("<alice+lists@example.test>", ("alice@example.test",)),
        # a store that drops the detail puts it in alice's mailbox all the same
        ("<alice+special@example.test>", ("alice+special@example.test", "alice@example.test")),
        ("<bob+x@example.test>", ("bob@example.test",)),
        ("<carol@example.test>", ("carol@example.test",)),
        ("<zoe+x@other.test>", ("zoe@other.test",)),
        ("<zoe+x@unknown.test>", ("zoe@unknown.test",)),
        ("<u001+x>", ("u001",)),
    ],
)
def test_mailboxes_of_a_route(path: str, mailboxes: tuple[str, ...]) -> None:
    assert routing("old").route(recipient(path)).mailboxes == mailboxes
    assert routing(None).route(recipient(path)).mailboxes == mailboxes


def test_mailboxes_while_the_table_cannot_answer() -> None:
    route = Routing(BrokenTable("alice@example.test"), KeyRules(), None).route(recipient("<alice+x@example.test>"))
    assert route.trouble is not None and route.mailboxes == ("alice@example.test",)


@pytest.mark.parametrize(
    ("user", "mailbox"),
    [
        ("Alice@Example.Test", "alice@example.test"),
        ("alice+special@example.test", "alice+special@example.test"),
        ("alice+lists@example.test", "alice@example.test"),
        ("zoe+x@other.test", "zoe@other.test"),
        ("zoe+x@unknown.test", "zoe@unknown.test"),
        ("U001", "u001"),
        ("u002+x", "u002"),
        ("@other.test", "@other.test"),
    ],
)
def test_the_mailbox_of_a_user_who_is_asked_for(user: str, mailbox: str) -> None:
    assert routing("old").mailbox(user) == mailbox


def test_the_mailbox_of_a_user_while_the_domain_is_ignored() -> None:
    ignoring = Routing(StaticTable({"alice": "new"}), KeyRules(ignore_domain=True), None)
    assert ignoring.mailbox("alice") == ignoring.mailbox("alice+x@anywhere") == "alice"
    assert ignoring.route(recipient("<Alice+x@anywhere>")).mailboxes == ("alice",)


def test_an_address_whose_key_nobody_can_tell_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "idna", None)
    route = routing("fallback").route(recipient("<alice@xn--bcher-kva.test>"))
    assert (route.backend, route.refusal) == (None, NoRoute.UNAVAILABLE)
    assert "python3-idna" in (route.trouble or "")
    assert route.keys == route.mailboxes == ("alice@xn--bcher-kva.test",)


DOMAINS = {"carol@example.test": "reject", "postmaster": "old"}


@pytest.mark.parametrize(
    ("path", "users", "rules", "backend"),
    [
        ("<carol>", DOMAINS, KeyRules(), None),
        ("<CAROL+x>", DOMAINS, KeyRules(), None),
        ('<"carol">', DOMAINS, KeyRules(), None),
        ('<"@other">', DOMAINS, KeyRules(), None),
        ("<@relay.test:carol>", DOMAINS, KeyRules(), None),
        ("<x>", {"@example.test": "old"}, KeyRules(), None),
        ("<Postmaster+x>", DOMAINS, KeyRules(), "old"),
        ("<carol>", {"bob": "old"}, KeyRules(), "fallback"),
        ("<carol>", {}, KeyRules(), "fallback"),
        ("<carol>", DOMAINS, KeyRules(ignore_domain=True), "fallback"),
        ("<dave>", {"carol@example.test": "reject"}, KeyRules(default_domain="example.test"), "fallback"),
        ("<dave@example.test>", DOMAINS, KeyRules(), "fallback"),
    ],
)
def test_a_name_without_a_domain_does_not_slip_past_the_table(
    path: str, users: dict[str, str], rules: KeyRules, backend: str | None
) -> None:
    routing = Routing(StaticTable(users), rules, "fallback")
    asked = recipient(path)
    route = routing.route(asked)
    assert route.backend == backend == routing.find(route.keys, asked.domain)[1]
    assert route.refusal is (NoRoute.BARE if backend is None else None)
    assert ("default_domain" in route.reason) is (backend is None) and not route.held


def test_with_a_default_domain_a_name_is_looked_up_in_it() -> None:
    table = StaticTable({"carol@example.test": "reject", "@example.test": "all"})
    routing = Routing(table, KeyRules(default_domain="Example.TEST."), "fallback")
    carol = routing.route(recipient("<Carol+x>"))
    assert carol.keys == ("carol+x@example.test", "carol@example.test", "@example.test")
    assert carol.refusal is NoRoute.REJECTED and carol.mailboxes == ("carol@example.test",)
    assert routing.route(recipient("<dave>")).backend == "all"
    assert routing.mailbox("carol") == "carol@example.test"
