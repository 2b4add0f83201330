# SPDX-License-Identifier: GPL-3.0-or-later
"""users_edit: every way in which a `users:` section can be written, octet for octet."""

import time

import pytest
import yaml

from lmtp_proxy.config import users_edit, yaml_text
from lmtp_proxy.config.users_edit import EditError, edit_file, edit_users
from lmtp_proxy.routing.keys import KeyRules

RULES = KeyRules()
TOP = "config:\n  socket: /s  # mail\n"


def edited(text: str, **changes: str) -> str:
    return edit_users(text, changes, RULES).text


@pytest.mark.parametrize(
    "before, after",
    [
        ("users:\n  a: old\n  b: old\n", "users:\n  a: new\n  b: old\n"),
        ("users:\n  a:   old   # why\n  # b: old\n", "users:\n  a:   new   # why\n  # b: old\n"),
        ("users:\n  'A' : 'old'\n", "users:\n  'A' : 'new'\n"),
        ('users:\n    "a": "old"# no', 'users:\n    "a": "new"# no'),
        ("users:\n  a:\n    old\nbackends:\n  x: y\n", "users:\n  a:\n    new\nbackends:\n  x: y\n"),
        ("users:\n  a: 'o\n    ld'\n", "users:\n  a: 'new'\n"),
        ("users:\n  ? a\n  : old\n  ? b\n  : old\n", "users:\n  ? a\n  : new\n  ? b\n  : old\n"),
        ("users: {a: old,b: old}\n", "users: {a: new,b: old}\n"),
        ("users: {b: old, a: 'old', }\n", "users: {b: old, a: 'new', }\n"),
        ("users:\n  b: &x old\n  a: *x\n  c: *x\n", "users:\n  b: &x old\n  a: new\n  c: *x\n"),
        ("users:\n  &k a: old\n", "users:\n  &k a: new\n"),
        ("users:\n  a: &x old\n  b: old\n", "users:\n  a: new\n  b: old\n"),
        ("x: &x {b: old}\nusers:\n  <<: *x\n  a: old\n", "x: &x {b: old}\nusers:\n  <<: *x\n  a: new\n"),
        ("x: &x {a: hold}\nusers: {a: old, <<: *x}\n", "x: &x {a: hold}\nusers: {a: new, <<: *x}\n"),
        ("x: &x {y: &y hold}\nusers:\n  a: old\n  b: *y\n", "x: &x {y: &y hold}\nusers:\n  a: new\n  b: *y\n"),
        ("users: &u\n  a: old\n", "users: &u\n  a: new\n"),
        ("users:\n  a: old\n  A: old\n", "users:\n  a: new\n  A: new\n"),
        ("users:\n  \U0001f600: old\n  a: old # \U0001f600\n", "users:\n  \U0001f600: old\n  a: new # \U0001f600\n"),
        ("x: [a, {b: [c]}]\nusers:\n  a: old", "x: [a, {b: [c]}]\nusers:\n  a: new"),
        ('"users":\n  a: old\n...\n# a: old\n', '"users":\n  a: new\n...\n# a: old\n'),
    ],
)
@pytest.mark.parametrize("style", ["lf", "crlf", "bom"])
def test_a_value_is_replaced_and_nothing_else(before: str, after: str, style: str) -> None:
    before, after = TOP + before, TOP + after
    if style == "crlf":
        before, after = before.replace("\n", "\r\n"), after.replace("\n", "\r\n")
    if style == "bom":
        before, after = "\ufeff" + before, "\ufeff" + after
    result = edit_users(before, {"a": "new"}, RULES)
    assert result.text == after
    assert result.previous == {"a": "o ld" if "o\n" in before or "o\r\n" in before else "old"}
    again = edit_users(after, {"a": "new"}, RULES)
    assert again.text == after and again.previous == {"a": "new"}


@pytest.mark.parametrize(
    "before, after",
    [
        ("users:\n  b: old\n", "users:\n  b: old\n  a: new\n"),
        ("users:\n  b: old", "users:\n  b: old\n  a: new"),
        ("users:\n   b: old # b\n", "users:\n   b: old # b\n   a: new\n"),
        ("users:\n b:\n   old\n", "users:\n b:\n   old\n a: new\n"),
        # Comments at once below the last entry belong to it, those of the next section do not.
        (
            "users:\n  b: old\n  # b stays\n\n# Stores\nq: r\n",
            "users:\n  b: old\n  # b stays\n  a: new\n\n# Stores\nq: r\n",
        ),
        ("users:\n  b: old\n# Stores\nq: r\n", "users:\n  b: old\n  a: new\n# Stores\nq: r\n"),
        ("users:\n  b: old\n\n  # c: old\n", "users:\n  b: old\n  a: new\n\n  # c: old\n"),
        ("users:\n  b: old\n  # the end", "users:\n  b: old\n  # the end\n  a: new"),
        ("users:\n  b: |-\n    old\n\n\n# end\n", "users:\n  b: |-\n    old\n  a: new\n\n\n# end\n"),
        ("users:\n  ? b\n  : old\n...\n", "users:\n  ? b\n  : old\n  a: new\n...\n"),
        ("? users\n: b: old\n  c: old\nq: r\n", "? users\n: b: old\n  c: old\n  a: new\nq: r\n"),
        ("users: &u\n    b: old\n", "users: &u\n    b: old\n    a: new\n"),
        ("x: &x {b: old}\nusers:\n  <<: *x\n", "x: &x {b: old}\nusers:\n  <<: *x\n  a: new\n"),
        (
            "users:\n  <<: [{b: old},\n    {c: old}]\nq: r\n",
            "users:\n  <<: [{b: old},\n    {c: old}]\n  a: new\nq: r\n",
        ),
        ("users: {<<: {b: old}}\n", "users: {<<: {b: old}, a: new}\n"),
        ("x: &x old\nusers:\n  b: *x\n", "x: &x old\nusers:\n  b: *x\n  a: new\n"),
        ("users:\n", "users:\n  a: new\n"),
        ("users:", "users:\n  a: new"),
        ("users: # nobody\n  # yet\n\nq: r\n", "users: # nobody\n  # yet\n  a: new\n\nq: r\n"),
        ("users: {}\n", "users:\n  a: new\n"),
        ("users:  { }  # nobody\nq: r\n", "users:  # nobody\n  a: new\nq: r\n"),
        ("users: { # nobody\n  }\n", "users: { # nobody\n  a: new}\n"),
        ("users: {b: old}\n", "users: {b: old, a: new}\n"),
        ("users: {b: old, }\n", "users: {b: old, a: new, }\n"),
        ('users: {"b":"old"}\n', 'users: {"b":"old", "a": "new"}\n'),
        ("users: {\n  b: old,  # b, c\n}\n", "users: {\n  b: old,  # b, c\n  a: new,\n}\n"),
        ("users: {\n  b: old  # b, c\n }\n", "users: {\n  b: old,  # b, c\n  a: new\n }\n"),
        ("users: {\n  b: old\n  , }\n", "users: {\n  b: old\n  , a: new, }\n"),
        ("users: {\n  b: old}\n", "users: {\n  b: old, a: new}\n"),
        ("q: r\n", "q: r\nusers:\n  a: new\n"),
        ("q: r\n# end", "q: r\n# end\nusers:\n  a: new"),
        ("q: r\n...\n# end\n", "q: r\nusers:\n  a: new\n...\n# end\n"),
    ],
)
@pytest.mark.parametrize("crlf", [False, True])
def test_a_user_is_added_at_the_end_of_the_section(before: str, after: str, crlf: bool) -> None:
    before, after = TOP + before, TOP + after
    if crlf:
        before, after = before.replace("\n", "\r\n"), after.replace("\n", "\r\n")
    result = edit_users(before, {"a": "new"}, RULES)
    assert result.text == after
    assert result.previous == {"a": None}
    assert edited(after, a="new") == after


BEGIN, END = "# BEGIN ANSIBLE MANAGED BLOCK", "# END ANSIBLE MANAGED BLOCK"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"users:\n  {BEGIN}\n  b: old\n  {END}\n", f"users:\n  {BEGIN}\n  b: old\n  {END}\n  a: new\n"),
        (f"users:\n{BEGIN}\n  b: old\n{END}\nq: r\n", f"users:\n{BEGIN}\n  b: old\n{END}\n  a: new\nq: r\n"),
        (f"users:\n{BEGIN}\n  b: old\n{END}", f"users:\n{BEGIN}\n  b: old\n{END}\n  a: new"),
        (f"users:\n{BEGIN}\n{END}\n", f"users:\n  a: new\n{BEGIN}\n{END}\n"),
        (f"users:\n{BEGIN}\n  # none\n\n{END}\nq: r\n", f"users:\n  a: new\n{BEGIN}\n  # none\n\n{END}\nq: r\n"),
        (f"{BEGIN}\nusers:\n  b: old\n{END}\nq: r\n", f"{BEGIN}\nusers:\n  b: old\n{END}\n  a: new\nq: r\n"),
        (f"{BEGIN}\nusers: {{}}\n{END}\nq: r\n", f"{BEGIN}\nusers:\n{END}\n  a: new\nq: r\n"),
        (
            "users:\n  # BEGIN the BLOCK 1\n  b: old\n\n  # c\n  # END the BLOCK 1\n"
            "  # BEGIN BLOCK 2\n  # END BLOCK 2\n",
            "users:\n  # BEGIN the BLOCK 1\n  b: old\n\n  # c\n  # END the BLOCK 1\n  a: new\n"
            "  # BEGIN BLOCK 2\n  # END BLOCK 2\n",
        ),
        (
            f"users:\n  {BEGIN}\n  b: old\n  {END}\n  c: old\n",
            f"users:\n  {BEGIN}\n  b: old\n  {END}\n  c: old\n  a: new\n",
        ),
        (f"users:\n  b: old\nq: r # BEGIN BLOCK\n{END}\n", f"users:\n  b: old\n  a: new\nq: r # BEGIN BLOCK\n{END}\n"),
        (f"users:\n  b: old\n\n{END}\n", f"users:\n  b: old\n  a: new\n\n{END}\n"),
        (f"users:\n{BEGIN}\n  b: old\n", f"users:\n{BEGIN}\n  b: old\n  a: new\n"),
        (f"{BEGIN}\nq: r\n{END}\n", f"{BEGIN}\nq: r\n{END}\nusers:\n  a: new\n"),
    ],
)
@pytest.mark.parametrize("crlf", [False, True])
def test_a_new_line_stands_below_a_block_that_another_tool_writes(before: str, after: str, crlf: bool) -> None:
    """Ansible's blockinfile writes all between its two comments anew, and what was added there is gone."""
    before, after = TOP + before, TOP + after
    if crlf:
        before, after = before.replace("\n", "\r\n"), after.replace("\n", "\r\n")
    assert edited(before, a="new") == after
    data = edit_file(before.encode(), {"a": "new"}, RULES).data
    assert data.decode() == after


@pytest.mark.parametrize(
    "text",
    [
        f"{BEGIN}\nusers:\n  b: old\nq: r\n{END}\n",
        f"{BEGIN}\nusers: {{b: old}}\n{END}\n",
        f"users: {{\n{BEGIN}\n  b: old\n{END}\n}}\n",
    ],
)
def test_where_there_is_no_place_outside_the_block_nothing_is_added(text: str) -> None:
    with pytest.raises(EditError) as caught:
        edited(TOP + text, a="new")
    begin = (TOP + text)[: (TOP + text).index(BEGIN)].count("\n") + 1
    assert str(caught.value).startswith(
        "users: a new user would stand in a block that another tool writes (# BEGIN ANS"
    )
    assert caught.value.line == begin
    assert edited(TOP + text, b="new") == (TOP + text).replace("b: old", "b: new"), (
        "an entry is changed where it stands"
    )


def test_a_block_that_begins_far_above_is_seen() -> None:
    many = "".join(f"  user{number:05}: old\n" for number in range(3000))
    text = f"{TOP}users:\n  first: old\n{many}  {BEGIN}\n{many.replace('user', 'x')}  {END}\nq: r\n"
    after = text.replace(f"{END}\n", f"{END}\n  a: new\n")
    assert edit_file(text.encode(), {"a": "new"}, RULES).data.decode() == after
    without = text.replace(f"  {BEGIN}\n", "")
    assert edit_file(without.encode(), {"a": "new"}, RULES).data.decode() == without.replace(
        f"  {END}\n", f"  {END}\n  a: new\n"
    ), "it follows the last user at once, and belongs to it"


def test_indentation_is_that_of_the_other_sections_where_there_are_no_entries() -> None:
    assert edited("config:\n    socket: /s\n", a="new") == "config:\n    socket: /s\nusers:\n    a: new\n"
    assert edited(" config: {}\n users:\n", a="new") == " config: {}\n users:\n   a: new\n"
    assert edited('{"config": {}, "users": {}}', a="new") == '{"config": {}, "users": {a: new}}'


def test_several_at_once() -> None:
    text = TOP + "users: {a: old, b: old}\n"
    result = edit_users(text, {"c": "new", "b": "new", "d": "hold", "C": "new"}, RULES)
    assert result.text == TOP + "users: {a: old, b: new, c: new, d: hold}\n"
    assert result.previous == {"c": None, "b": "old", "d": None, "C": None}
    assert edit_users(text, {}, RULES).text is text


@pytest.mark.parametrize(
    "name, plain",
    [
        *(
            (name, True)
            for name in ("a", "u001", "alice@example.org", "0123@example.org", "a.b+c=d/e_f-g", "größe", "nope")
        ),
        *(
            (name, False)
            for name in ("no", "Yes", "ON", "off", "true", "n", "Y", "null", "~", "0123", "1_000", "1:30", "0x1F")
        ),
        *(
            (name, False)
            for name in ("1e3", "-1", ".5", ".inf", "@example.net", "*a", "&a", "!a", "%a", "`a", "#a", "a#b")
        ),
        *(
            (name, False)
            for name in ("a: b", "a:", "- a", "-", "?", "<<", "=", "a b", " a", "a ", "a,b", "[a]", "{a}", "'a", '"a')
        ),
        *(
            (name, False)
            for name in ("back\\slash", "2001-12-14", "it's", "a\u00a0b", "tab\t", "\x7f", "\U000e0001", "|", ">")
        ),
    ],
)
def test_what_needs_quotes_gets_them(name: str, plain: bool) -> None:
    """As a key and as a value, new or in the place of another one, and any reader of YAML 1.1 takes it for text."""
    for text in (TOP, TOP + "users: {b: old}", TOP + "users:\n  b: old\n"):
        for changes in ({name: "new"}, {"a": name}, {name: name}, {"b": name}):
            result = edit_users(text, changes, KeyRules(case_sensitive=True)).text
            tree = yaml.safe_load(result)["users"]
            for key, value in changes.items():
                assert tree[key] == value
                if value == name and key == "a":
                    assert result.rstrip("\n}").endswith(f"a: {name}") is plain
    for quote in "'\"":
        result = edit_users(f"{TOP}users:\n  b: {quote}old{quote}\n", {"b": name}, RULES).text
        assert yaml.safe_load(result)["users"]["b"] == name
        assert result.endswith(f"{quote}\n") or not name.isprintable()


def test_the_key_rules_say_who_is_meant() -> None:
    text = TOP + "users:\n  Alice@Example.ORG: old\n  bob: old\n"
    assert "Alice@Example.ORG: new" in edit_users(text, {"alice@example.org": "new"}, RULES).text
    sensitive = edit_users(text, {"alice@example.org": "new"}, KeyRules(case_sensitive=True)).text
    assert sensitive == text + "  alice@example.org: new\n"
    ignoring = KeyRules(ignore_domain=True)
    assert edit_users(text, {"ALICE": "new", "bob@x": "new"}, ignoring).text == text.replace("old", "new")
    assert edit_users(text, {"Carol@x": "new"}, ignoring).text == text + "  Carol: new\n"
    assert edit_users(text, {"c@d@x": "new"}, ignoring).text == text + "  c@d@x: new\n"


@pytest.mark.parametrize(
    "text, error, line",
    [
        (
            "users:\n  a: &x old\n  b: *x\n",
            "users.a has an anchor (&x), whose aliases (line 5) would follow: take it out, or",
            4,
        ),
        (
            "x: &x\n  a: old\nusers:\n  <<: *x\n  b: old\n",
            "users.a comes by << or an alias: write a line of its own, or make the change by hand",
            4,
        ),
        (
            "users:\n  <<: {b: old,\n    A: old}\n",
            "users.A comes by << or an alias: write a line of its own, or make the change by hand",
            5,
        ),
        (
            "x: &x {A: old}\nusers:\n  <<: *x\n  a: old\n",
            "users.A comes by << or an alias: write a line of its own, or make the change by hand",
            3,
        ),
        (
            "x: &x {a: old}\nusers: *x\n",
            "users.a comes by << or an alias: write a line of its own, or make the change by hand",
            3,
        ),
        (
            "x: &x {b: old}\nusers: *x\n",
            "users is an alias or has an anchor: take it out, or make the change by hand",
            4,
        ),
        (
            "users: &u\n  a: old\nx: *u\n",
            "the way in which users is written cannot be changed safely: make the change by hand",
            3,
        ),
        (
            "users: &u\n  b: old\nx: {<<: *u}\n",
            "the way in which users is written cannot be changed safely: make the change by hand",
            3,
        ),
        ("users:\n  <<:\n    - {b: old}\n", "users.<< is no single value: make the change by hand", 4),
        ("users:\n  a: !!str old\n", "users.a has a YAML tag: take it out, or make the change by hand", 4),
        ("users:\n  a: |-\n    old\n", "users.a is written as a block (|): write it on one line, or", 4),
        ("users:\n  a:\n  b: old\n", "users.a has no value: write one, or make the change by hand", 4),
        ("users:\n  b: old\n  a: [old]\n", "users.a is no single value: make the change by hand", 5),
        ("users:\n  b: {c: d}\n", "users.b is no single value: make the change by hand", 4),
        ("users: [a]\n", "users must be a mapping: lines of `key: value`, indented", 3),
        ("users: a\n", "users must be a mapping: lines of `key: value`, indented", 3),
        ("users: &x\n", "users is an alias or has an anchor: take it out, or make the change by hand", 3),
        ("n: &x\nusers: *x\n", "users is an alias or has an anchor: take it out, or make the change by hand", 4),
        (
            "users:\n  ? b\n  :\n  c: *x\n",
            "users.c: is an alias of nothing: a value that begins with * must be in quotes",
            6,
        ),
        ("users:\n  b: old\n  b: old\n", "users.b: is given twice, first on line 4", 5),
        ("? users\n", "the way in which users is written cannot be changed safely: make the change by hand", 3),
        ("users:\n  b: |+\n    old\n\n\n", "the way in which users is written cannot be changed safely: make", 3),
        ("users: {b: old\n", "YAML error: ", 4),
        ("users:\n  b: old\r  c: old\n", "holds the control character U+000D", 4),
    ],
)
def test_what_cannot_be_done_safely_is_refused_in_one_line(text: str, error: str, line: int) -> None:
    with pytest.raises(EditError) as caught:
        edit_users(TOP + text, {"a": "new"}, RULES)
    assert str(caught.value).startswith(error)
    assert caught.value.line == line
    assert str(caught.value).isprintable()


def test_a_file_of_the_form_of_json_without_users_is_refused() -> None:
    for text in ('{"config": {}}', "{config: {}, users: }"):
        with pytest.raises(EditError, match=r"write `users: \{\}` by hand first"):
            edit_users(text, {"a": "new"}, RULES)


def test_changes_that_cannot_be_made() -> None:
    with pytest.raises(EditError, match=r"^a and A are the same user, who cannot be on new and on old$"):
        edit_users(TOP, {"a": "new", "A": "old"}, RULES)
    for changes in ({"\udcff": "new"}, {"a": "\udcff"}):
        with pytest.raises(EditError, match=r"^\\udcff is not UTF-8 text$"):
            edit_users(TOP, changes, RULES)


def test_what_is_anchored_stays_when_it_need_not_change() -> None:
    text = TOP + "users:\n  a: &x new\n  b: *x\n  c: !!str new\n"
    assert edited(text, a="new", b="new", c="new") == text


def test_the_result_is_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong in the splicing, no text comes out that says something else."""
    text = TOP + "users:\n  a: old\n  b: old\n  c: ''\nq: [1, {x: y}]\n"
    for wrong in (
        text,
        text.replace("a: old", "a: new").replace("b: old", "b: new"),
        text.replace("a: old", "a: new").replace("/s", "/t"),
        text.replace("a: old", "a: new").replace("x: y", "x: z"),
        text.replace("a: old", "a: new").replace("[1, ", "["),
        text.replace("a: old", "a: new").replace("''", ""),
        text.replace("a: old", "a: new") + "r: s\n",
        text.replace("a: old\n  b: old", "b: old\n  a: new"),
        text.replace("a: old", "a: new\n  d: new"),
        text.replace("a: old", "a: new\n  a: new"),
        text.replace("a: old", "a: [new]"),
        TOP + "q: [1, {x: y}]\n",
        "",
        "[",
    ):
        monkeypatch.setattr(users_edit, "_spliced", lambda body, splices, wrong=wrong: wrong)
        with pytest.raises(EditError, match="cannot be changed safely"):
            edit_users(text, {"a": "new"}, RULES)
    monkeypatch.setattr(users_edit, "_spliced", lambda body, splices: text.replace("a: old", "a: new"))
    assert edited(text, a="new") == text.replace("a: old", "a: new")


def test_the_parser_in_python_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\ufeff" + (TOP + "users: # \U0001f600\n  b: 'old' # x\n  ? a\n  : old\n  # y\nq: {r: s}\n").replace(
        "\n", "\r\n"
    )
    result = edit_users(text, {"a": "new", "b": "it's", "c": "new"}, RULES)
    monkeypatch.setattr(users_edit, "_LOADER", yaml.SafeLoader)
    monkeypatch.setattr(yaml_text, "_LOADER", yaml.SafeLoader)
    assert edit_users(text, {"a": "new", "b": "it's", "c": "new"}, RULES) == result
    assert "'it''s' # x" in result.text and "  # y\r\n  c: new\r\nq:" in result.text


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("anna@bücher.test", "anna@xn--bcher-kva.test"),
        ("anna@xn--bcher-kva.test", "Anna@BÜCHER.test."),
        ("anna@x.test.", "anna@X.test"),
        ("anna@x.test", "anna@x.test."),
        ("rene\u0301@x.test", "rené@x.test"),
    ],
)
def test_a_user_is_found_in_any_spelling(written: str, asked: str) -> None:
    before = [f"  user{number:05}@x.test: old\n" for number in range(3000)]
    text = TOP + "users:\n" + "".join([*before, f"  {written}: old\n", "  zz@x.test: old\n"])
    after = text.replace(f"{written}: old", f"{written}: new")
    edit = edit_file(text.encode(), {asked: "new"}, RULES)
    assert edit.data.decode() == after
    assert edit.previous == {asked: "old"}
    assert edited(text, **{asked: "new"}) == after


@pytest.mark.parametrize(
    ("written", "asked"), [("carol", "Carol@x.test"), ("carol@X.test", "carol"), ("Carol", "carol")]
)
def test_a_name_without_a_domain_is_of_the_default_one(written: str, asked: str) -> None:
    rules = KeyRules(default_domain="x.test")
    others = "".join(f"  user{number:05}@x.test: old\n" for number in range(3000))
    text = f"{TOP}users:\n{others}  {written}: old\n  zz@x.test: old\n"
    edit = edit_file(text.encode(), {asked: "new"}, rules)
    assert edit.data.decode() == text.replace(f"{written}: old", f"{written}: new")
    assert edit.previous == {asked: "old"}
    assert edit_users(text, {asked: "new"}, rules).text == edit.data.decode()


def test_a_new_name_gets_the_default_domain() -> None:
    """So the line still says who is meant when the key is taken out again."""
    rules = KeyRules(default_domain="x.test")
    assert edit_users(TOP, {"carol": "new"}, rules).text == TOP + "users:\n  carol@x.test: new\n"
    without = KeyRules(default_domain="x.test", ignore_domain=True)
    assert edit_users(TOP, {"carol": "new"}, without).text == TOP + "users:\n  carol: new\n"


def test_a_thousand_changes_among_a_hundred_thousand_users_take_some_seconds_at_most() -> None:
    lines = [f"  user{number:06}@example.org: old\n" for number in range(100_000)]
    changes = {f"user{number * 100:06}@example.org": "new" for number in range(500)}
    changes |= {f"other{number}@example.org": "new" for number in range(500)}
    began = time.process_time()
    result = edit_users(TOP + "users:\n" + "".join(lines), changes, RULES).text
    assert time.process_time() - began < 8  # 1.4 on the machine this was written on
    for number in range(500):
        lines[number * 100] = f"  user{number * 100:06}@example.org: new\n"
    assert result == TOP + "users:\n" + "".join(lines) + "".join(f"  other{n}@example.org: new\n" for n in range(500))
