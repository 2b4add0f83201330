# SPDX-License-Identifier: GPL-3.0-or-later
"""The forms under which a mailbox is looked up, and under which a table stores it."""

import pytest

from lmtp_proxy.routing.keys import KeyRules

DEFAULT = KeyRules()
WITHOUT_DOMAIN = KeyRules(ignore_domain=True)
EXACT = KeyRules(case_sensitive=True, recipient_delimiter="")


@pytest.mark.parametrize(
    "rules, local_part, domain, forms",
    [
        (DEFAULT, "alice", "example.test", ("alice@example.test", "@example.test")),
        (DEFAULT, "ALICE", "Example.TEST", ("alice@example.test", "@example.test")),
        (
            DEFAULT, "Alice+Lists", "example.test",
            ("alice+lists@example.test", "alice@example.test", "@example.test"),
        ),
        (DEFAULT, "u001", "", ("u001",)),
        (DEFAULT, "U001+x", "", ("u001+x", "u001")),
        (DEFAULT, "alice+a+b", "x", ("alice+a+b@x", "alice@x", "@x")),  # the detail starts at the first delimiter
        (DEFAULT, "alice+", "x", ("alice+@x", "alice@x", "@x")),
        (DEFAULT, "+alice", "x", ("+alice@x", "@x")),  # a mailbox has a name
        (DEFAULT, "+", "x", ("+@x", "@x")),
        (DEFAULT, "alice-x", "x", ("alice-x@x", "@x")),
        (DEFAULT, "quoted user", "full.test", ("quoted user@full.test", "@full.test")),
        (DEFAULT, "JÜRGEN", "BÜCHER.test", ("jürgen@bücher.test", "@bücher.test")),
        (DEFAULT, "a", "[192.0.2.1]", ("a@[192.0.2.1]", "@[192.0.2.1]")),
        (WITHOUT_DOMAIN, "Alice", "example.test", ("alice",)),
        (WITHOUT_DOMAIN, "Alice+x", "example.test", ("alice+x", "alice")),
        (WITHOUT_DOMAIN, "alice", "", ("alice",)),
        (KeyRules(recipient_delimiter=""), "Alice+x", "x", ("alice+x@x", "@x")),
        (KeyRules(recipient_delimiter="-"), "alice-x+y", "x", ("alice-x+y@x", "alice@x", "@x")),
        (KeyRules(recipient_delimiter="+-"), "alice-x+y", "x", ("alice-x+y@x", "alice@x", "@x")),
        (KeyRules(recipient_delimiter="-+"), "alice+x-y", "x", ("alice+x-y@x", "alice@x", "@x")),
        (KeyRules(case_sensitive=True), "Alice+X", "x", ("Alice+X@x", "Alice@x", "@x")),
        (EXACT, "Alice+X", "x", ("Alice+X@x", "@x")),
    ],
)  # fmt: skip
def test_forms_in_the_order_of_the_look_up(
    rules: KeyRules, local_part: str, domain: str, forms: tuple[str, ...]
) -> None:
    assert rules.forms(local_part, domain) == forms


@pytest.mark.parametrize(
    "rules, text, key",
    [
        (DEFAULT, "Alice@Example.TEST", "alice@example.test"),
        (DEFAULT, "U001", "u001"),
        (DEFAULT, "@Example.test", "@example.test"),
        (DEFAULT, "alice+Lists@x", "alice+lists@x"),  # such an entry is for that detail alone
        (DEFAULT, "a@b@x", "a@b@x"),
        (WITHOUT_DOMAIN, "Alice@Example.TEST", "alice"),
        (WITHOUT_DOMAIN, "Alice", "alice"),
        (WITHOUT_DOMAIN, "a@b@x", "a@b"),
        (WITHOUT_DOMAIN, "@example.test", ""),
        (EXACT, "Alice@x", "Alice@x"),
        (EXACT, "Alice", "Alice"),
        (KeyRules(case_sensitive=True, ignore_domain=True), "Alice@x", "Alice"),
    ],
)
def test_key_under_which_a_table_stores_an_entry(rules: KeyRules, text: str, key: str) -> None:
    assert rules.table_key(text) == key


@pytest.mark.parametrize("rules", [DEFAULT, WITHOUT_DOMAIN, EXACT, KeyRules(recipient_delimiter="+-")])
@pytest.mark.parametrize("local_part", ["alice", "Alice", "alice+x", "+alice", "a-b", "JÜRGEN", "quoted user", "ΑΣ"])
@pytest.mark.parametrize("domain", ["example.test", "Example.TEST", ""])
def test_an_address_written_in_a_table_is_found_by_its_first_form(
    rules: KeyRules, local_part: str, domain: str
) -> None:
    written = f"{local_part}@{domain}" if domain else local_part
    assert rules.table_key(written) == rules.forms(local_part, domain)[0]
    assert rules.table_key(rules.table_key(written)) == rules.table_key(written)


def test_the_letters_of_a_domain_never_matter() -> None:
    rules = KeyRules(case_sensitive=True)
    assert rules.forms("Alice+x", "EXAMPLE.test") == ("Alice+x@example.test", "Alice@example.test", "@example.test")
    assert rules.table_key("Alice@Example.TEST") == "Alice@example.test"
    assert rules.table_key("@Example.TEST") == "@example.test"


@pytest.mark.parametrize(
    ("rules", "address", "mailboxes"),
    [
        (KeyRules(), "alice+x@example.test", ("alice+x@example.test", "alice@example.test")),
        (KeyRules(), "alice@example.test", ("alice@example.test",)),
        (KeyRules(), "@x@example.test", ("@x@example.test",)),
        (KeyRules(), "@x+y", ("@x+y", "@x")),
        (KeyRules(ignore_domain=True), "alice+x@example.test", ("alice+x", "alice")),
    ],
)
def test_mailboxes_are_the_forms_without_that_of_the_domain(
    rules: KeyRules, address: str, mailboxes: tuple[str, ...]
) -> None:
    local_part, _, domain = address.rpartition("@") if "@" in address[1:] else (address, "", "")
    assert rules.mailboxes(rules.forms(local_part, domain), domain) == mailboxes
