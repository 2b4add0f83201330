# SPDX-License-Identifier: GPL-3.0-or-later
"""The forms under which a mailbox is looked up, and under which a table stores it."""

import subprocess
import sys
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lmtp_proxy.routing.keys import FoldingError, KeyRules

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
        (KeyRules(default_domain="X"), "Alice+X", "", ("alice+x@x", "alice@x", "@x")),
        (KeyRules(default_domain="x"), "Alice", "y", ("alice@y", "@y")),
        (KeyRules(default_domain="x", ignore_domain=True), "Alice", "", ("alice",)),
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
        (KeyRules(default_domain="xn--bcher-kva.test."), "Alice", "alice@bücher.test"),
        (KeyRules(default_domain="x"), "alice@y", "alice@y"),
        (KeyRules(default_domain="x"), "@y", "@y"),
        (KeyRules(default_domain="x", ignore_domain=True), "alice", "alice"),
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
        (KeyRules(default_domain="x"), "alice+x", ("alice+x@x", "alice@x")),
        (KeyRules(default_domain="x", ignore_domain=True), "alice+x", ("alice+x", "alice")),
    ],
)
def test_mailboxes_are_the_forms_without_that_of_the_domain(
    rules: KeyRules, address: str, mailboxes: tuple[str, ...]
) -> None:
    local_part, _, domain = address.rpartition("@") if "@" in address[1:] else (address, "", "")
    assert rules.mailboxes(rules.forms(local_part, domain), domain) == mailboxes


# --- one mailbox, several spellings ---


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize(
    "one, other",
    [
        ("anna@bücher.example", "anna@xn--bcher-kva.example"),
        ("anna@bücher.example", "Anna@XN--BCHER-KVA.example"),
        ("anna@bücher.example", "anna@" + nfd("BÜCHER.example")),
        ("anna@www.bücher.example", "anna@WWW.xn--bcher-KVA.example."),
        ("anna@bücher.中国", "anna@xn--bcher-kva.xn--fiqs8s"),
        ("anna@straße.example", "anna@xn--strae-oqa.example"),
        ("anna@βόλος.example", "anna@xn--nxasmm1c.example"),
        ("anna@ΒΌΛΟΣ.example", "anna@xn--nxasmq6b.example"),  # as UTS 46 has it: no letter depends on its neighbours
        ("anna@\u13a0\u13b6.example", "anna@xn--58d8b.example"),  # Cherokee: U-labels are of capitals
        ("rené@x.example", nfd("rené@x.example")),
        ("RENÉ@x.example", nfd("rené@x.example")),
        ("ΑΣ@x.example", "ασ@x.example"),
        ("ΑΣ+a@x.example", "ασ+a@x.example"),
        ("alice@x.example", "alice@x.example."),
        ("@bücher.example", "@xn--bcher-kva.example."),
        ("a@xn--n3h.example", "a@XN--N3H.example."),  # IDNA 2008 has no snowman: it stays what it is
    ],
)
def test_two_spellings_are_one_key(one: str, other: str) -> None:
    rules = KeyRules()
    assert rules.table_key(one) == rules.table_key(other)
    for written in (one, other):
        local_part, _, domain = written.rpartition("@")
        key = rules.table_key(written)
        assert key in rules.forms(local_part or "somebody", domain)
        assert rules.table_key(key) == key


@pytest.mark.parametrize(
    "one, other",
    [
        ("a@straße.example", "a@strasse.example"),
        ("a@☃.example", "a@xn--n3h.example"),
        ("a@abc.example", "a@xn--abc-.example"),  # a label of ASCII has no A-label
        ("a@ｂücher.example", "a@bücher.example"),  # a wide letter is mapped by IDNA 2003 and UTS 46, not here
        ("a@bücher。example", "a@bücher.example"),
        ("a@x.example..", "a@x.example"),
        ("ﬁ@x.example", "fi@x.example"),
        ("straße@x.example", "strasse@x.example"),
        ("xn--bcher-kva@x.example", "bücher@x.example"),  # a local part has no A-labels
        ("xn--bcher-kva", "bücher"),
        ("alice.", "alice"),
        ("a@βόλος.example", "a@βόλοσ.example"),
        ("a@[xn--bcher-kva]", "a@[bücher]"),
    ],
)
def test_nothing_else_is_mapped(one: str, other: str) -> None:
    rules = KeyRules()
    assert rules.table_key(one) != rules.table_key(other)
    for written in (one, other):
        local_part, _, domain = written.rpartition("@") if "@" in written else (written, "", "")
        assert rules.table_key(written) == rules.forms(local_part, domain)[0]


@pytest.mark.parametrize(
    "domain",
    [
        *("xn--", "xn--.example", "xn--a.example", "xn--a-.example", "xn--0.example", "xn--99999999.example"),
        *("xn--" + "9" * 60 + ".example", "xn--" + "a" * 250, "xn--zc.xn--.xn--0", "xn--bcher-kva9.example"),
        *("xn--xn---epa.example", ".xn--a", "xn--\x7f", "xn--ü.example", "xn--ab-yka\udcc3"),
        "xn--b\u0301",
    ],
)
def test_what_only_looks_like_an_a_label_is_kept(domain: str) -> None:
    assert KeyRules().table_key(f"a@{domain}") == f"a@{domain}"


def test_the_detail_is_cut_off_whatever_the_spelling() -> None:
    forms = KeyRules().forms(nfd("René+x"), "xn--bcher-kva.example.")
    assert forms == ("rené+x@bücher.example", "rené@bücher.example", "@bücher.example")
    assert KeyRules(case_sensitive=True).forms(nfd("René"), "X.")[0] == "René@x"
    assert KeyRules(ignore_domain=True).forms(nfd("René"), "xn--0.") == ("rené",)


@example("", "9..")
@given(st.text(max_size=8), st.text(alphabet="xn-.aüßΣéI\u0307\u0301KÅ9", max_size=12))
def test_folding_is_the_same_for_what_is_equivalent_and_changes_nothing_twice(local_part: str, domain: str) -> None:
    rules = KeyRules()
    for text in (f"{local_part}@{domain}", f"{domain}@{local_part}", local_part, domain):
        key = rules.table_key(text)
        assert rules.table_key(nfd(text)) == key == rules.table_key(key)
        assert unicodedata.is_normalized("NFC", key)


def test_addresses_as_most_are_need_neither_library_nor_tables() -> None:
    code = (
        "import sys\n"
        "from lmtp_proxy.routing.keys import KeyRules\n"
        "rules = KeyRules()\n"
        "rules.table_key('Alice+x@Example.test.'), rules.forms('Alice', 'Xn-a.test')\n"
        "assert 'idna' not in sys.modules and 'unicodedata' not in sys.modules\n"
        "rules.table_key('rené@bücher.example')\n"
        "assert 'idna' not in sys.modules\n"
        "assert rules.table_key('a@xn--bcher-kva.example') == 'a@bücher.example' and 'idna' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_library_nothing_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "idna", None)
    with pytest.raises(FoldingError, match="python3-idna"):
        KeyRules().table_key("a@xn--bcher-kva.example")
    with pytest.raises(FoldingError, match="python3-idna"):
        KeyRules().forms("a", "xn--bcher-kva.example")
    assert KeyRules().table_key("a@bücher.example") == "a@bücher.example"


def test_a_key_as_it_begins_where_its_domain_is_left_out() -> None:
    rules = KeyRules(default_domain="Example.test")
    keys = ["carol@example.test", "carol@other.test", "@example.test"]
    assert [rules.bare_key(key) for key in keys] == ["carol", "carol@other.test", "@example.test"]
    assert KeyRules().bare_key("carol@example.test") == "carol@example.test"
    assert KeyRules(ignore_domain=True, default_domain="x").bare_key("carol") == "carol"
