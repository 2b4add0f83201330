# SPDX-License-Identifier: GPL-3.0-or-later
"""A `users:` section of plain lines is read without YAML: with the very result that YAML has, or not at all.

Files are drawn that look like such a section and are not quite, and any file is loaded twice, once as YAML alone. Both
must find the same configuration with the same lines, or the same errors. Edits are compared in the same way. The same
holds for a file of users alone.
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from lmtp_proxy.config import read as config_module
from lmtp_proxy.config import sources
from lmtp_proxy.config.read import Config, ConfigError, load_config
from lmtp_proxy.config.users import Doubt, FlatUsers
from lmtp_proxy.config.users_edit import EditError, edit_file, edit_users
from lmtp_proxy.config.yaml_text import parse
from lmtp_proxy.routing.keys import KeyRules

HEADS = [
    "config:\n  socket: /run/x\n",
    "config: {socket: /run/x}  # users:\n",
    "config:\n  socket: /run/x\n  ignoreDomain: true\n",
    "config:\n  socket: /run/x\n  case_sensitive: yes\n",
    "config:\n  socket: /run/x\n  default_domain: Example.org\n",
    "config:\n  socket: /run/x\n  bogus: 1\n",
    "config:\n  socket: '/run/x\n\n  y'\n",
    'config:\n  socket: "/run/x\nusers:\n  a: old\n  "\n',
    "config:\n  socket: |\n    /run/x\nconfig2: &x >\n  a\n",
    "%YAML 1.1\n---\nconfig: {socket: /x}\n",
    "{\nconfig: {socket: /x},\n",
    "- x\n",
    "? config\n: socket: /run/x\n",
    "\ufeffconfig: {socket: /x}\n",
    "&a config: {socket: /x}\n",
    "",
]
BACKENDS = [
    "backends:\n  old: {socket: /o}\n  new: {socket: /n}\n",
    'backends: {old: {socket: /o}, new: {socket: /n}, "a b": {socket: /s}}\n',
    "backends:\n  old: &o {socket: /o}\n  new: *o\n",
    "backends: [\n",
    "",
]
SECTION = [
    *["users:\n"] * 8,
    "users: \n",
    "users:  # of all\n",
    "users:# no comment\n",
    "users: !!map\n",
    "users: &u\n",
    "users: {}\n",
    "users: {\n",
    "users: |\n",
    "users: old\n",
    "users :\n",
    '"users":\n',
    " users:\n",
    "? users\n:\n",
    "users:\nusers:\n",
]
PLAIN = "abzAZ019_.+/=~$-@%'&*!^?|:#,[]{}\"\\<>` \tÄßΣσǅİ½٣\u00a0\u0085\u2028\ufeff\u0301\U0001f600"
WORDS = [
    *["alice@example.org", "bob", "Carol@Example.ORG", "dave+x@y", "no", "0123", "~", "=", "<<", "größe", "ΑΣ", "ας"],
    *["'@x.org'", '"@X.org"', "'it''s'", '"a\\x41"', "''", '""', "'*'", "'\"q\"@x'", '"a: b"', "'a #b'", "' a '"],
    *["@x", "*a", "&a b", "!t x", "- a", "-a", "?x", "? x", "a:b", "a#b", "a #b", "a,b", "[a]", "{a", "|", ">", "%x"],
    *["null", "---", "...", "a" * 401, "a" * 1030, "'" + "b" * 399 + "'", "a b", "o'brien@x", "a\u00a0b", "a\tb", "`"],
    *["a@bücher.test", "a@xn--bcher-kva.test", "A@XN--bcher-KVA.test.", "a@bu\u0308cher.test", "bob.", "dave+x@y."],
]
GOOD = [word for word in WORDS[:15] if word not in ("<<", "ΑΣ", '"@X.org"', "'it''s'")]
VALUES = [
    *[
        "old",
        "new",
        "reject",
        "hold",
        "'old'",
        '"new"',
        "'a b'",
        '"a b"',
        "a b",
        "nobody",
        "Old",
        "",
        "~",
        "old  ",
        "*o",
    ],
    *[
        "old # why",
        "old #",
        "old#x",
        "old\t# x",
        "new:",
        "new: x",
        "[old]",
        "{}",
        "|",
        "'",
        "'old",
        "old'",
        "!!str old",
    ],
]
LINES = [
    "",
    "   ",
    "# c",
    "      # c: d",
    "#",
    " #\u2028",
    "\t",
    "  \t# x",
    "  ? x",
    "  - x",
    "# ä\U0001f600",
    "#\tx",
    "# \x01",
]
TAILS = [
    "",
    "",
    "tail: x\n",
    "...\n",
    "---\nusers:\n  a: old\n",
    "}\n",
    "- x\n",
    "\tx: y\n",
    "# end",
    "users: {}\n",
    "config: {}\n",
]


@st.composite
def entries(draw: st.DrawFn, key: str, odd: bool) -> str:
    if not odd:
        return f"{key}: {draw(st.sampled_from(VALUES[:6]))}{draw(st.sampled_from(['', '', '  # why', '  ']))}"
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return draw(st.text(PLAIN, max_size=12))
    key = draw(st.text(PLAIN, max_size=6)) if kind == 1 else draw(st.sampled_from(WORDS))
    colon = draw(st.sampled_from([": ", ": ", ":", " : ", ":  ", ":\t", " :", ":\n    ", " " * 20 + ": "]))
    return key + colon + (draw(st.text(PLAIN, max_size=6)) if kind == 2 else draw(st.sampled_from(VALUES)))


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A file with a section that is plain, or nearly so."""
    odd = draw(st.integers(0, 3)) == 0
    indentation = draw(st.sampled_from([1, 2, 2, 2, 4, 64, 65] if odd else [1, 2, 4]))
    section = draw(st.sampled_from(SECTION if odd else SECTION[:10]))
    good = st.sampled_from([*GOOD, *(f"{letter}{number}" for letter in "xYz" for number in range(3))])
    for key in draw(st.lists(good, unique=draw(st.integers(0, 7)) > 0, max_size=8)):
        if draw(st.integers(0, 3)) == 0:
            section += draw(st.sampled_from(LINES if draw(st.integers(0, 5)) == 0 else LINES[:5])) + "\n"
        shift = draw(st.sampled_from([0, 0, 0, 1, -1])) if odd else 0
        section += " " * (indentation + shift) + draw(entries(key, odd and draw(st.booleans()))) + "\n"
    # More than one chunk.
    section += "".join(
        f"{' ' * indentation}u{number}@x: old\n" for number in range(draw(st.sampled_from([0, 0, 0, 900])))
    )
    head, backends, tail = HEADS[:4], BACKENDS[:2], TAILS[:3]
    if draw(st.integers(0, 3)) == 0:
        head, backends, tail = HEADS, BACKENDS, TAILS
    parts = [draw(st.sampled_from(head)), draw(st.sampled_from(backends)), section]
    if draw(st.integers(0, 3)) == 0:
        parts = draw(st.permutations(parts))
    text = "".join(parts) + draw(st.sampled_from(tail))
    if draw(st.integers(0, 5)) == 0:
        text = text.replace("\n", draw(st.sampled_from(["\r\n", "\r", "\n\r"])))
    if draw(st.integers(0, 5)) == 0:
        text = text.rstrip("\r\n")
    data = text.encode()
    if odd and draw(st.booleans()):
        place = draw(st.integers(0, len(data)))
        data = data[:place] + draw(st.binary(max_size=3)) + data[place + draw(st.integers(0, 3)) :]
    return data


@st.composite
def files_of_users(draw: st.DrawFn) -> bytes:
    """A file of users alone, in any of its forms, or nearly."""
    odd = draw(st.integers(0, 3)) == 0
    heads = ["", "", "", "---\n", "# c\n---\n", "\ufeff", "users:\n", "users: # c\n", "--- \n\n"]
    text = draw(st.sampled_from([*heads, *SECTION, "{\n", "...\n", "%YAML 1.1\n---\n", "--- # c\n"] if odd else heads))
    indentation = draw(st.sampled_from([0, 0, 0, 1, 2, 65])) or (2 if text.startswith("users:") else 0)
    good = st.sampled_from([*GOOD, "users", "config", "...", *(f"x{number}" for number in range(3))])
    for key in draw(st.lists(good, unique=draw(st.integers(0, 7)) > 0, max_size=8)):
        if draw(st.integers(0, 3)) == 0:
            text += draw(st.sampled_from(LINES if odd else LINES[:5])) + "\n"
        shift = draw(st.sampled_from([0, 0, 0, 1])) if odd else 0
        text += " " * (indentation + shift) + draw(entries(key, odd and draw(st.booleans()))) + "\n"
    many = draw(st.sampled_from([0, 0, 0, 900]))
    text += "".join(f"{' ' * indentation}u{number}@x: old\n" for number in range(many))
    text += draw(st.sampled_from(TAILS if odd else TAILS[:2]))
    if draw(st.integers(0, 5)) == 0:
        text = text.replace("\n", "\r\n")
    return (text.rstrip("\r\n") if draw(st.integers(0, 5)) == 0 else text).encode()


class NeverFlat(FlatUsers):
    """Sends every file through YAML."""

    def __init__(self, data: bytes, *, alone: bool = False) -> None:
        raise Doubt


def outcome(path: Path) -> tuple[Config | None, dict[str, tuple[str, int]], list[tuple[str, int]], tuple[str, ...]]:
    """Everything that loading it gives: values, users with lines, counts in their order, errors."""
    try:
        config = load_config(str(path))
    except ConfigError as error:
        return None, {}, [], error.errors
    users = {user: (name, config.users.line(user)) for user, name in config.users.items()}
    return config, users, list(config.users_per_backend.items()), ()


@settings(max_examples=900, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=files())
def test_the_same_result_as_yaml_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    path = tmp_path / "x.yml"
    path.write_bytes(data)
    found = outcome(path)
    with monkeypatch.context() as patch:
        patch.setattr(config_module, "FlatUsers", NeverFlat)
        as_yaml = outcome(path)
    assert found == as_yaml
    try:
        event(f"understood: {bool(list(FlatUsers(data).chunks()))}, errors: {bool(found[3])}")
    except Doubt:
        event(f"doubt, errors: {bool(found[3])}")


@settings(max_examples=300, deadline=None)
@given(data=files(), chosen=st.data(), rules=st.builds(KeyRules, st.booleans(), st.just("+"), st.booleans()))
def test_an_excerpt_is_edited_as_the_whole(data: bytes, chosen: st.DataObject, rules: KeyRules) -> None:
    names = ["alice@example.org", "BOB", "carol@example.org", "@x.org", "u5@x", "U77@X", "u899@x", "zoe", "größe"]
    users = chosen.draw(st.lists(st.sampled_from(names), unique_by=rules.table_key, max_size=4))
    if chosen.draw(st.integers(0, 9)) == 0:
        users += [f"new{number}@y" for number in range(20)]
    changes = {user: chosen.draw(st.sampled_from(["new", "hold", "a b", "größe"])) for user in users}
    try:
        text = data.decode()
    except UnicodeDecodeError:
        with pytest.raises((UnicodeDecodeError, EditError)):
            edit_file(data, changes, rules)
        return
    assume(not parse(text.removeprefix("\ufeff")).problems)  # such a file is refused before it is edited
    result: object
    try:
        edit = edit_users(text, changes, rules)
        result = (edit.text.encode(), edit.previous)
    except EditError as error:
        result = (str(error), error.line)
    try:
        found: object = tuple(edit_file(data, changes, rules))
    except EditError as error:
        found = (str(error), error.line)
    assert found == result


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=files_of_users(), more=files_of_users(), head=st.sampled_from(HEADS[:5]))
def test_the_same_of_files_of_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, more: bytes, head: str
) -> None:
    path = tmp_path / "x.yml"
    (tmp_path / "a").write_bytes(data)
    (tmp_path / "b").write_bytes(more.replace(b"@", b"@b.") if len(more) % 2 else more)
    head = head.replace("{socket: /run/x}", "{socket: /run/x, users_file: [a, b]}")
    path.write_text(head.replace("socket: /run/x\n", "socket: /run/x\n  users_file: [a, b]\n") + BACKENDS[0])
    found = outcome(path)
    with monkeypatch.context() as patch:
        patch.setattr(config_module, "FlatUsers", NeverFlat)
        patch.setattr(sources, "FlatUsers", NeverFlat)
        as_yaml = outcome(path)
    assert found == as_yaml
    event(f"errors: {bool(found[3])}")


@settings(max_examples=300, deadline=None)
@given(data=files_of_users(), chosen=st.data(), rules=st.builds(KeyRules, st.booleans(), st.just("+"), st.booleans()))
def test_an_excerpt_of_a_file_of_users_is_edited_as_the_whole(
    data: bytes, chosen: st.DataObject, rules: KeyRules
) -> None:
    names = ["alice@example.org", "BOB", "@x.org", "u5@x", "U77@X", "u899@x", "zoe", "users", "config"]
    users = chosen.draw(st.lists(st.sampled_from(names), unique_by=rules.table_key, max_size=4))
    changes = {user: chosen.draw(st.sampled_from(["new", "hold", "a b"])) for user in users}
    text = data.decode()
    assume(not parse(text.removeprefix("\ufeff"), users=True).problems)
    result: object
    try:
        edit = edit_users(text, changes, rules, alone=True)
        result = (edit.text.encode(), edit.previous)
    except EditError as error:
        result = (str(error), error.line)
    try:
        found: object = tuple(edit_file(data, changes, rules, alone=True))
    except EditError as error:
        found = (str(error), error.line)
    assert found == result
