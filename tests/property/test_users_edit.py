# SPDX-License-Identifier: GPL-3.0-or-later
"""users_edit on generated files: the asked users change, and no octet besides.

A file is drawn as a list of pieces, some of them values, so what must come out is known without a look at the code:
the same pieces with other values, and for new users one insertion at one place. PyYAML itself reads the result.
"""

import re
from dataclasses import dataclass

import yaml
from hypothesis import event, given, settings
from hypothesis import strategies as st

from lmtp_proxy.config.users_edit import Edit, EditError, edit_users
from lmtp_proxy.routing.keys import KeyRules

PLAIN = ["old", "new", "reject", "hold", "store-2", "größe", "a.b@c", "it's", "x#y", "Old Store", "\U0001f4ee"]
QUOTED = [*PLAIN, "no", "0123", "@x", "* y", "a: b", "a #b", 'say "hi"', "back\\slash", "{}", ""]
NEW_VALUES = ["new", "hold", "no", "0123", "it's", 'q"q', "größe", "\U0001f4ee", "a b", "b\\c"]
SAFE = {"new", "hold", "größe"}  # of NEW_VALUES, what needs no quotes
NAMES = ["alice@example.org", "bob", "Carol@Example.ORG", "dave+x@example.org", "größe@x.org", "007@x.org", "e.f-g"]
ODD_NAMES = ["no", "0123", "@example.net", "a: b", "x #y", "it's", "\U0001f600", 'q"q', "* z", "[", "~"]
MERGED = ["alice@example.org", "bob", "ida", "jon"]
STRANGERS = ["zoe@example.org", "Yves", "no way", "off", "0x10", "@example.com", "\U0001f98a", "zed@x"]
LOADER = yaml.CBaseLoader if yaml.__with_libyaml__ else yaml.BaseLoader
TAB = "\t" if yaml.__with_libyaml__ else " "  # the parser in Python refuses one before a comment
COMMENTS = ["", "", "  # why, and when", " # users: {a: b}", TAB + "# 'it\"", " #\U0001f600 äöü", "   "]
LINES = [
    "",
    "# a comment",
    "#",
    "   ",
    "  # users:",
    "      # alice@example.org: old",
    "# {a: b, \U0001f600",
    "  # - 'x",
]


def quoted(text: str, style: str) -> str:
    if style == "'":
        return "'" + text.replace("'", "''") + "'"
    if style == '"':
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text


def rewritten(value: str, style: str) -> str:
    """How a value must be written in the place of one in `style`."""
    return quoted(value, style if style or value in SAFE else '"')


@dataclass(frozen=True)
class Value:
    """The value of `user`, written as `written` in `style`."""

    user: str
    text: str
    style: str

    @property
    def written(self) -> str:
        return quoted(self.text, self.style)


@dataclass(frozen=True)
class File:
    """pieces: the whole text. comma: index of the piece before which a comma goes if entries are added, else -1."""

    pieces: list[str | Value]
    rules: KeyRules
    comma: int

    def text(self, changes: dict[str, str], comma: bool = False) -> str:
        out = []
        for number, piece in enumerate(self.pieces):
            if comma and number == self.comma:
                out.append(",")
            if isinstance(piece, str):
                out.append(piece)
            else:
                value = changes.get(self.rules.table_key(piece.user), piece.text)
                out.append(piece.written if value == piece.text else rewritten(value, piece.style))
        return "".join(out)


@st.composite
def keys(draw: st.DrawFn, flow: bool) -> tuple[str, str, str]:
    """A user, how it is written, and what stands before the value."""
    user = draw(st.sampled_from([*NAMES, *ODD_NAMES]))
    style = draw(st.sampled_from("'\"" if user in ODD_NAMES else ["", "", "'", '"']))
    colon = draw(st.sampled_from([":", " :"])) + draw(st.sampled_from([" ", " ", "   "] if flow else [" ", " ", "  "]))
    return user, quoted(user, style), colon


@st.composite
def values(draw: st.DrawFn, user: str) -> Value:
    style = draw(st.sampled_from(["", "", "'", '"']))
    return Value(user, draw(st.sampled_from(QUOTED if style else PLAIN)), style)


def noise(draw: st.DrawFn, most: int = 2) -> list[str]:
    return [line + "\n" for line in draw(st.lists(st.sampled_from(LINES), max_size=most))]


@st.composite
def block_users(draw: st.DrawFn, names: list[str]) -> tuple[list[str | Value], int]:
    indentation = " " * draw(st.integers(1, 8))
    pieces: list[str | Value] = ["users:" + draw(st.sampled_from(COMMENTS)) + "\n"]
    for name, written, colon in draw(st.lists(keys(False), unique_by=lambda key: key[0], max_size=6)):
        names.append(name)
        pieces += noise(draw)
        form = draw(st.sampled_from(["one line", "one line", "one line", "two lines", "explicit"]))
        start = {"one line": written + colon, "two lines": written + ":\n  " + indentation}
        start["explicit"] = f"? {written}{draw(st.sampled_from(COMMENTS))}\n{indentation}: "
        pieces += [indentation + start[form], draw(values(name)), draw(st.sampled_from(COMMENTS)) + "\n"]
    return pieces, -1


@st.composite
def flow_users(draw: st.DrawFn, names: list[str]) -> tuple[list[str | Value], int]:
    found = draw(st.lists(keys(True), unique_by=lambda key: key[0], max_size=5))
    on_lines = draw(st.booleans())
    pieces: list[str | Value] = ["users: {"]
    comma = -1
    for number, (name, written, colon) in enumerate(found):
        names.append(name)
        if on_lines and (number == 0 or draw(st.integers(0, 3))):
            pieces.append(draw(st.sampled_from(COMMENTS)) + "\n   ")
        pieces += [written + colon, draw(values(name))]
        last = number == len(found) - 1
        if last and draw(st.booleans()):
            comma = len(pieces)
        else:
            pieces.append(draw(st.sampled_from([",", " ,", ", "])))
    if found and on_lines and draw(st.booleans()):
        pieces.append(draw(st.sampled_from(COMMENTS)) + "\n ")
    return [*pieces, "}" + draw(st.sampled_from(COMMENTS)) + "\n"], comma


@st.composite
def files(draw: st.DrawFn) -> File:
    names: list[str] = []
    users = draw(st.one_of(block_users(names), block_users(names), flow_users(names), st.just(([], -1))))
    others: list[list[str | Value]] = [
        ["config:\n  socket: /run/x  # the users: are elsewhere\n  allow: [127.0.0.0/8, '::1/128']\n"],
        ["backends:\n    old: {socket: /a}\n    new:\n", "      host: 'h' # \U0001f600\n      port: 24\n"],
    ]
    sections = draw(st.permutations([*others, users[0]]))
    pieces: list[str | Value] = [draw(st.sampled_from(["", "---\n", "%YAML 1.1\n---\n"]))]
    comma = -1
    for section in sections:
        pieces += noise(draw, 3)
        if section is users[0] and users[1] >= 0:
            comma = len(pieces) + users[1]
        pieces += section
    pieces += noise(draw, 3)
    if draw(st.booleans()):
        pieces = [piece.replace("\n", "\r\n") if isinstance(piece, str) else piece for piece in pieces]
    if draw(st.booleans()) and isinstance(pieces[-1], str):
        pieces[-1] = re.sub(r"\r?\n\Z", "", pieces[-1])
    if draw(st.booleans()):
        pieces.insert(0, "\ufeff")
        comma += comma >= 0
    rules = KeyRules(draw(st.booleans()), "+", draw(st.integers(0, 4)) == 0)
    return File(pieces, rules, comma)


def users_of(text: str) -> dict[str, str]:
    tree = yaml.load(text, LOADER)  # every scalar is text
    return {str(key): str(value) for key, value in (tree.get("users") or {}).items()}


def rest_of(text: str) -> list[tuple[str, object]]:
    return [(key, value) for key, value in yaml.load(text, LOADER).items() if key != "users"]


@settings(max_examples=400)
@given(data=st.data(), file=files())
def test_the_asked_users_change_and_nothing_else(data: st.DataObject, file: File) -> None:
    before = file.text({})
    there = users_of(before)
    asked = data.draw(
        st.dictionaries(
            st.sampled_from([*there, *(name.upper() for name in there), *STRANGERS]),
            st.sampled_from(NEW_VALUES),
            max_size=5,
        )
    )
    by_key = {file.rules.table_key(user): value for user, value in asked.items()}
    changes = {user: by_key[file.rules.table_key(user)] for user in asked}  # no contradictions

    result = edit_users(before, changes, file.rules)

    known = {file.rules.table_key(user) for user in there}
    new = [key for key in by_key if key not in known]
    event(f"{len(by_key) - len(new)} changed, {len(new)} new")
    after = users_of(result.text)
    assert list(after)[: len(there)] == list(there)
    assert len(after) == len(there) + len(new)
    for user, value in after.items():
        assert value == by_key.get(file.rules.table_key(user), there.get(user))
    assert rest_of(result.text) == rest_of(before)
    first = {file.rules.table_key(user): value for user, value in reversed(there.items())}
    assert result.previous == {user: first.get(file.rules.table_key(user)) for user in changes}
    assert ("\r\n" in before) == ("\r\n" in result.text) or "\n" not in before
    assert result.text.count("\r") in (0, result.text.count("\n"))
    assert result.text.endswith("\n") == before.endswith("\n")

    wanted = file.text(by_key)
    if not new:
        assert result.text == wanted
        return
    wanted = wanted.replace("users: {}", "users:")  # lines below take its place
    if file.comma >= 0:
        wanted = file.text(by_key, comma=True)
    same = 0
    while same < len(wanted) and wanted[same] == result.text[same]:
        same += 1
    assert result.text.endswith(wanted[same:]), "more than one place was touched"
    inserted = result.text[same : len(result.text) - len(wanted) + same]
    assert "#" not in re.sub(r'"(\\.|[^"\\])*"', "", inserted), "a comment was moved"


@settings(max_examples=150)
@given(data=st.data(), file=files())
def test_there_and_back_again(data: st.DataObject, file: File) -> None:
    """A second edit to the same values changes nothing; one back to the old values gives the old tree."""
    before = file.text({})
    there = users_of(before)
    users = data.draw(st.lists(st.sampled_from([*there, *STRANGERS]), unique=True, max_size=5))
    result = edit_users(before, dict.fromkeys(users, "new"), file.rules)
    assert edit_users(result.text, dict.fromkeys(users, "new"), file.rules).text == result.text
    back = {user: value for user, value in result.previous.items() if value is not None}
    keys = [file.rules.table_key(user) for user in there]
    if len(set(keys)) == len(keys):
        restored = users_of(edit_users(result.text, back, file.rules).text)
        assert {user: restored[user] for user in there} == there


# --- with anchors, aliases and merges ---


class AsText(yaml.SafeLoader):
    """PyYAML with nothing of its own but `<<`."""

    yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile("<<"))]}  # noqa: RUF012


@st.composite
def folded_values(draw: st.DrawFn, anchors: list[str]) -> str:
    """A value, or an alias of one that has an anchor."""
    kind = draw(st.sampled_from(["plain", "plain", "anchor", "alias"]))
    if kind == "alias" and anchors:
        return f"*{draw(st.sampled_from(anchors))}"
    value = draw(st.sampled_from(["old", "'old'", '"hold"', "new"]))
    if kind != "anchor":
        return value
    anchors.append(f"v{len(anchors)}")
    return f"&{anchors[-1]} {value}"


@st.composite
def folded_files(draw: st.DrawFn) -> str:
    """A file of which no line says by itself what it means."""
    anchors: list[str] = []
    texts = ["config: {socket: /run/x, timeouts: &t {connect: 3}}\n"]
    bases = []
    for number in range(draw(st.integers(0, 2))):
        names = draw(st.lists(st.sampled_from(MERGED), unique=True, max_size=3))
        entries = "".join(f"  {name}: {draw(folded_values(anchors))}\n" for name in names)
        texts.append(f"base{number}: &b{number}\n{entries}" if names else f"base{number}: &b{number} {{}}\n")
        bases.append(f"*b{number}")
    lines = [
        f"{name}: {draw(folded_values(anchors))}"
        for name in draw(st.lists(st.sampled_from([*MERGED, *NAMES[2:]]), unique=True, max_size=5))
    ]
    with_merge, with_aliases = draw(st.booleans()), draw(st.booleans())
    if bases and with_merge:
        merge = bases[0] if draw(st.booleans()) else f"[{', '.join(bases)}]"
        lines.insert(draw(st.integers(0, len(lines))), f"<<: {merge}")
    users = "users: " + draw(st.sampled_from(["", "", "&u "]))
    if draw(st.integers(0, 3)) == 0:
        texts.append(users + "{" + ", ".join(lines) + " }\n")
    else:
        texts.append(users + "\n" + "".join(f"  {line}\n" for line in lines))
    if anchors and with_aliases:
        texts.append(f"backends: {{x: *{draw(st.sampled_from(anchors))}, y: {{timeouts: *t}}}}\n")
    return "".join(texts)


def edited_or_not(text: str, changes: dict[str, str]) -> Edit | EditError:
    try:
        return edit_users(text, changes, KeyRules(case_sensitive=True))
    except EditError as error:
        return error


@settings(max_examples=400)
@given(data=st.data(), text=folded_files())
def test_with_aliases_and_merges_exactly_the_asked_users_change_or_nobody(data: st.DataObject, text: str) -> None:
    before = yaml.load(text, AsText)
    there = before["users"] or {}
    users = data.draw(st.lists(st.sampled_from([*there, *STRANGERS]), unique=True, min_size=1, max_size=3))
    changes = dict.fromkeys(users, data.draw(st.sampled_from(["new", "hold"])))
    result = edited_or_not(text, changes)
    if isinstance(result, EditError):
        event(str(result).partition(" ")[2][:30])
        assert result.line > 0
        return
    event("changed")
    after = yaml.load(result.text, AsText)
    assert after == {**before, "users": {**there, **changes}}
    assert result.previous == {user: there.get(user) for user in changes}
    assert edit_users(result.text, changes, KeyRules(case_sensitive=True)).text == result.text
