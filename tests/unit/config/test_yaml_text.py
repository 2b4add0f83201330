# SPDX-License-Identifier: GPL-3.0-or-later
"""yaml_text with both of PyYAML's parsers: text stays text, lines are right, and nothing but a Document comes out."""

import os
import re
import tracemalloc
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmtp_proxy.config import yaml_text
from lmtp_proxy.config.yaml_text import Mapping, Node, Scalar, Sequence, parse, read_document
from lmtp_proxy.text import shown

LOADERS = [yaml.SafeLoader, *([yaml.CSafeLoader] if yaml.__with_libyaml__ else [])]


@pytest.fixture(autouse=True, params=LOADERS, ids=lambda loader: loader.__name__)
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_text, "_LOADER", request.param)


def root(text: str) -> Mapping:
    document = parse(text)
    assert document.problems == []
    assert document.root is not None
    return document.root


def problems(text: str) -> list[str]:
    """`LINE key: text` of each."""
    return [f"{line} {key}: {text}" for line, key, text in parse(text).problems]


def flat(node: Node) -> object:
    """The tree without its lines."""
    if isinstance(node, Mapping):
        return {key: flat(value) for key, value in node.entries.items()}
    return [flat(item) for item in node.items] if isinstance(node, Sequence) else node.text


@pytest.mark.parametrize(
    "text",
    [
        "no",
        "yes",
        "on",
        "NULL",
        "null",
        "~",
        "0123",
        "0x1f",
        "1:30",
        "1e3",
        "1_000",
        ".inf",
        "2001-01-01",
        "=",
        "<<",
        "-1",
    ],
)
def test_plain_scalars_are_text(text: str) -> None:
    node = root(f"{text}: {text}\n")
    assert node.entries == {text: Scalar(text, 1, True)}


@pytest.mark.parametrize(
    ("written", "text", "plain", "missing"),
    [
        ("", "", True, True),
        ("# comment", "", True, True),
        ('""', "", False, False),
        ("''", "", False, False),
        ("!!str", "", False, False),
        ("!!str 12", "12", False, False),
        ("'12'", "12", False, False),
        ('"a\\tb"', "a\tb", False, False),
        ("|\n  x\n  y\n", "x\ny\n", False, False),
    ],
)
def test_quoted_and_empty_values(written: str, text: str, plain: bool, missing: bool) -> None:
    node = root(f"key: {written}\n").entries["key"]
    assert node == Scalar(text, 1, plain)
    assert isinstance(node, Scalar)
    assert node.missing is missing


def test_the_tree_and_its_lines() -> None:
    node = root("# first\nconfig:\n  socket:\n    - a\n    - 24\nusers: {x: y,\n  z: w}\nlong:\n\n  value\n")
    assert flat(node) == {"config": {"socket": ["a", "24"]}, "users": {"x": "y", "z": "w"}, "long": "value"}
    config, users = node.entries["config"], node.entries["users"]
    assert isinstance(config, Mapping) and config.line == 2
    socket = config.entries["socket"]
    assert isinstance(socket, Sequence) and socket.line == 3
    assert [item.line for item in socket.items] == [4, 5]
    assert isinstance(users, Mapping) and users.entries["z"].line == 7
    assert node.entries["long"].line == 8, "a value has the line of its key"


def test_lines_after_crlf() -> None:
    assert root("a: b\r\nc: d\r\n").entries["c"] == Scalar("d", 2, True)


def test_equal_values_share_their_text() -> None:
    node = root("a: backend\nb: backend\n")
    a, b = node.entries["a"], node.entries["b"]
    assert isinstance(a, Scalar)
    assert isinstance(b, Scalar)
    assert a.text is b.text


def test_an_alias_of_one_value() -> None:
    assert root("a: &x 0123\nb: *x\nc: [*x, *x]\n").entries["b"] == Scalar("0123", 2, True)
    assert root("&k key: 1\nb: *k\n").entries["b"] == Scalar("key", 2, True)


SHARED = {"x": "1", "y": ["2", "3"]}
LIST = ["a", "b"]


class AsText(yaml.SafeLoader):
    """PyYAML with nothing of its own but `<<`."""

    yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile("<<"))]}  # noqa: RUF012


def bare(node: Node) -> object:
    if isinstance(node, Scalar):
        return node.text
    if isinstance(node, Sequence):
        return [bare(item) for item in node.items]
    return {key: bare(value) for key, value in node.entries.items()}


SINGLE = "a key must be a single text, not a mapping or a list"
TAG = "YAML tags are not used here: a value that begins with ! must be in quotes"
NOTHING = "is an alias of nothing: a value that begins with * must be in quotes"
CYCLE = "is an alias of what it stands in: a value that begins with * must be in quotes"
SOURCES = "takes a mapping, or a list of mappings"
KEY_ALIAS = "a key cannot be an alias: what begins with * must be in quotes"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\n\na: 3\n", ["4 a: is given twice, first on line 1"]),
        ("a: 1\na: 1\na: 1\n", ["2 a: is given twice, first on line 1", "3 a: is given twice, first on line 1"]),
        ("u:\n  x: 1\n  'x': 2\n", ["3 u.x: is given twice, first on line 2"]),
        ("u:\n  x: {y: 1, y: 2}\n", ["2 u.x.y: is given twice, first on line 2"]),
        ("a: !!python/object/apply:os.system [ls]\n", [f"1 a: {TAG}"]),
        ("a: !!python/name:os.system\n", [f"1 a: {TAG}"]),
        ("a: !!int 3\nb: ! x\nc: !local x\n", [f"1 a: {TAG}", f"2 b: {TAG}", f"3 c: {TAG}"]),
        ("a: !!map {x: !!binary eA==}\n", [f"1 a: {TAG}", f"1 a.x: {TAG}"]),
        ("!!int 3: x\n", [f"1 ?: {TAG}"]),
        ("a: &x {<<: *x}\n", [f"1 a.<<: {CYCLE}"]),
        ("a: &x [1, [*x]]\nb: *x\n", [f"1 a.2.1: {CYCLE}"]),
        ("d: &d {a: 1}\nu:\n  <<: *d\n  b: 1\n  <<: *d\n", ["5 u.<<: is given twice, first on line 3: make one list"]),
        ("d: &d {a: 1}\nu:\n  <<: [*d, x]\n", [f"3 u.<<: {SOURCES}"]),
        ("d: &d [[a]]\nu:\n  <<: *d\n", [f"3 u.<<: {SOURCES}"]),
        ("u:\n  <<: *d\n", [f"2 u.<<: {NOTHING}"]),
        ("u:\n  <<: {a: 1, a: 2}\n  a: 3\n", ["2 u.<<.a: is given twice, first on line 2"]),
        ("a: *hunter2\n", [f"1 a: {NOTHING}"]),
        ("a: &x 1\n*x : 2\n", [f"2 : {KEY_ALIAS}"]),
        ("u:\n  ? [a, b]\n  : c\n  ? {d: e}\n  : f\n", [f"2 u: {SINGLE}", f"4 u: {SINGLE}"]),
        ("a: [{b: *x}]\n", [f"1 a.1.b: {NOTHING}"]),
        ('"a\\nb": *x\n', [f"1 a\\nb: {NOTHING}"]),
    ],
)
def test_what_is_refused_with_its_line_and_key(text: str, expected: list[str]) -> None:
    assert problems(text) == expected
    assert parse(text).root is not None, "the rest can be checked all the same"


def bomb(leaf: str, level: str) -> str:
    """Eight levels, each of them with nine of the one before."""
    lines = [f"a0: &a0 {leaf}", *(f"a{n}: &a{n} {level.replace('*', f'*a{n - 1}')}" for n in range(1, 9))]
    return "\n".join(lines)


NINE = "[" + ", ".join("*" * 9) + "]"
KEYS = "{" + ", ".join(f"k{n}: *" for n in range(9)) + "}"


@pytest.mark.parametrize(
    "text",
    [
        bomb("[x, x, x, x, x, x, x, x, x]", NINE),
        bomb("{x: 1, y: 2}", KEYS),
        bomb("{x: 1, y: 2}", KEYS[:-1] + ", <<: *}"),
        "a: &a [" + "x, " * 999 + "x]\nb: [" + "*a, " * 999 + "*a]\n",
        "a: &a {" + ", ".join(f"k{n}: x" for n in range(1000)) + "}\nb:\n" + "  - <<: *a\n" * 1000,
    ],
)
def test_an_alias_bomb_is_one_short_error_and_stays_small(text: str) -> None:
    tracemalloc.start()
    try:
        document = parse(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    [problem] = document.problems
    assert document.root is None and problem.line > 0 and peak < 30 * 2**20
    assert problem.text == "YAML error: * and << unfold it to more than 100000 values"


@pytest.mark.parametrize("deep", [9, 10, 11])
def test_aliases_do_not_go_deeper_than_the_file_may(deep: int) -> None:
    half = deep // 2
    text = "a: &a " + "[" * half + "x" + "]" * half + "\nb: " + "[" * (deep - half - 1) + "*a" + "]" * (deep - half - 1)
    document = parse(text)
    assert (document.root is None) == (deep > 10), document.problems
    assert [problem.text for problem in document.problems] == ["YAML error: nested more than 10 levels deep"] * (
        deep > 10
    )


@pytest.mark.parametrize(
    "text",
    [
        yaml.dump({"a": SHARED, "b": {"c": SHARED, "d": [SHARED]}, "e": LIST, "f": LIST}),
        yaml.dump({"a": SHARED, "b": {"c": SHARED, "d": [SHARED]}, "e": LIST}, default_flow_style=True),
        "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3, z: 4}\nc: {y: 3, <<: *a}\n",
        "a: &a {x: 1}\nb: &b {x: 2, y: 2}\nc: {<<: [*a, *b], z: 3}\nd: {<<: [*b, *a]}\n",
        "a: &a {x: 1}\nb: &b {<<: *a, y: 2}\nc:\n  <<: *b\n  x: 3\nd: *b\n",
        "a: {<<: {x: 1}, y: 2}\nb: {<<: [{x: 1}, {x: 2, z: 3}]}\nc: {<<: {}}\nd: {<<: []}\n",
        "a: {'<<': b}\nc: {\"<<\": {d: e}}\n",
        "a: &a {k: &s old, l: *s}\nb: *a\nc: *s\n",
        "? &k a\n: &v {x: 1}\nb: *v\nc: *k\n",
    ],
)
def test_what_stands_by_aliases_is_what_pyyaml_reads(text: str) -> None:
    document = parse(text)
    assert document.problems == [] and document.root is not None
    assert bare(document.root) == yaml.load(text, AsText)


def test_an_anchor_may_be_given_again() -> None:
    """YAML 1.2 section 7.1: the last one before the alias counts. PyYAML refuses it."""
    entries = root("a: &a [1, 2]\nb: *a\nc: &a [3]\nd: *a\n").entries
    assert [bare(entries[key]) for key in "bd"] == [["1", "2"], ["3"]]


def test_a_key_by_a_merge_has_the_line_where_it_is_written() -> None:
    entries = root("a: &a\n  x: 1\n  y: 2\nb:\n  y: 3\n  <<: *a\n").entries
    assert entries["b"] == Mapping({"x": Scalar("1", 2, True), "y": Scalar("3", 5, True)}, 4)
    assert entries["a"] == Mapping({"x": Scalar("1", 2, True), "y": Scalar("2", 3, True)}, 1)


def test_a_merge_key_with_one_value_is_a_name() -> None:
    assert root("u:\n  <<: old\n").entries["u"] == Mapping({"<<": Scalar("old", 2, True)}, 1)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 'x\nb: 2\n", 3, "end of stream (it begins on line 1)"),
        ("u:\n  @d: x\n", 2, "that cannot start any token (what begins with one of @ "),
        ("u:\n\ta: x\n", 2, "that cannot start any token (what begins with one of @ "),
        ("a: b: c\n", 1, "mapping values are not allowed"),
        ("a:\n  b: 1\n c: 2\n", 3, "(it begins on line 1)"),
        ("a: [b\n", 0, "while parsing a flow sequence"),
        ("a: 1\n---\nb: 2\n", 2, "a second document begins here"),
        ("---\n---\n", 2, "a second document begins here"),
        ("%YAML 2.0\n---\na: 1\n", 1, "incompatible YAML document"),
        ("a: !x!y z\n", 1, "undefined tag handle"),
        ("a: \"\\q\"\n", 1, "unknown escape character"),
        ("a: " + "[" * 20 + "\n", 1, "nested more than 10 levels deep"),
        ("a: " + "[" * 100_000 + "\n", 1, "nested more than 10 levels deep"),
        ("".join(" " * n + "a:\n" for n in range(15)), 11, "nested more than 10 levels deep"),
        ("- " * 5000, 1, "nested more than 10 levels deep"),
        ("? " * 5000, 1, "nested more than 10 levels deep"),
    ],
)  # fmt: skip
def test_where_the_text_stops_being_yaml(text: str, line: int, words: str) -> None:
    document = parse(text)
    assert document.root is None
    problem = document.problems[-1]
    assert problem.key == "" and problem.text.startswith("YAML error: ") and words in problem.text
    if line:
        assert problem.line == line


def test_problems_before_a_syntax_error_are_kept() -> None:
    document = parse("a: 1\na: 2\nb: [\n")
    assert [problem.line for problem in document.problems][:1] == [2]
    assert len(document.problems) == 2


def test_ten_levels_are_possible() -> None:
    assert root("a: " * 1 + "[" * 9 + "]" * 9)


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n", "--- # x\n...\n"])
def test_an_empty_file(text: str) -> None:
    assert problems(text) == ["0 : is empty: it needs at least a `config:` section"]
    assert parse(text).root is None


@pytest.mark.parametrize("text", ["just text", "- a\n- b\n", "[]", '""', "--- |\n  x\n"])
def test_a_root_that_is_no_mapping(text: str) -> None:
    assert problems(text) == ["1 : must hold `key: value` lines, starting with `config:`"]
    assert parse(text).root is None


@pytest.mark.parametrize(
    "character", ["\0", "\x07", "\x1b", "\x7f", "\x85", "\x9f", "\u2028", "\u2029", "\ufeff", "\r"]
)
@pytest.mark.parametrize("place", ["a: x{}y\n", "# {}\n", "'{}': x\n"])
def test_control_characters(character: str, place: str) -> None:
    document = parse("\n\n" + place.format(character + "z"))
    assert document.root is None
    assert document.problems == [(3, "", f"holds the control character U+{ord(character):04X}")]


def test_a_control_character_anywhere_in_a_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_text, "_SEARCH", 3)
    for length in range(8):
        text = "a: " + "x" * length
        assert parse(f"{text}\x7f").problems == [(1, "", "holds the control character U+007F")]
        assert root(f"{text}\r\nb: c\r\n").entries["b"] == Scalar("c", 2, True)


def test_no_value_is_part_of_a_problem() -> None:
    texts = ["p: !secret\n", "p: !sec!ret x\n", "p: *secret\n", "p: !<secret> x\n", "p: &secret [*secret]\n"]
    texts += ["p: !!secret x\n", "p: %secret\n", "p: @secret\n", "p: 'secret\n", "p: {secret\n", "%secret\np: 1\n"]
    for text in texts:
        found = parse(text).problems
        assert found
        assert "sec" not in repr(found)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: b\n", []),
        (b"\xef\xbb\xbfa: b\n", []),
        ("a: grüße\n".encode(), []),
        (b"a: b\nc: \xff\n", [(2, "", "is not UTF-8 text")]),
        ("a: grüße\n".encode("latin-1"), [(1, "", "is not UTF-8 text")]),
        ("a: b\n".encode("utf-16"), [(1, "", "is not UTF-8 text")]),
        ("a: b\n".encode("utf-16-le"), [(1, "", "holds the control character U+0000")]),
        (b"a: \xed\xa0\x80\n", [(1, "", "is not UTF-8 text")]),
    ],
)
def test_files(tmp_path: Path, content: bytes, expected: list[object]) -> None:
    file = tmp_path / "file.yml"
    file.write_bytes(content)
    document = read_document(str(file))
    assert document.problems == expected
    assert (document.root is None) is bool(expected)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    def problem(path: str) -> object:
        document = read_document(path)
        assert document.root is None
        return document.problems

    assert problem(str(tmp_path)) == [(0, "", "cannot be read: Is a directory")]
    os.mkfifo(tmp_path / "pipe")
    assert problem(str(tmp_path / "pipe")) == [(0, "", "cannot be read: it is no regular file")]
    assert problem(str(tmp_path / "none")) == [(0, "", "cannot be read: No such file or directory")]
    assert problem("a\0b") == [(0, "", "cannot be read: there can be no file of this name")]
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert problem(str(loop)) == [(0, "", "cannot be read: Too many levels of symbolic links")]


def test_a_file_without_permission(tmp_path: Path) -> None:
    file = tmp_path / "file.yml"
    file.touch(0o000)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read any file
    try:
        assert read_document(str(file)).problems == [(0, "", "cannot be read: Permission denied")]
    finally:
        os.seteuid(user)


def test_a_file_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file.yml"
    file.write_bytes(b"a: b #89")
    monkeypatch.setattr(yaml_text, "MAX_OCTETS", 8)
    assert read_document(str(file)).root is not None
    monkeypatch.setattr(yaml_text, "MAX_OCTETS", 7)
    assert read_document(str(file)).problems == [(0, "", "is larger than 7 octets")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alice", "alice"),
        ("grüße", "grüße"),
        ("a\nb\x1b[0m", "a\\nb\\x1b[0m"),
        ("\ud800", "\\ud800"),
        ("x" * 20, "x" * 10 + "..."),
        ("\n" * 20, "\\n" * 5 + "..."),
    ],
)
def test_shown_is_one_short_printable_line(text: str, expected: str) -> None:
    assert shown(text, 10 if len(text) > 15 else 100) == expected


def test_an_escape_beyond_unicode() -> None:
    document = parse('a: 1\nb: "\\Uffffffff"\n')
    assert document.root is None
    assert len(document.problems) == 1


def check_whole(document: yaml_text.Document) -> None:
    assert document.root is not None or document.problems
    for line, key, text in document.problems:
        assert line >= 0
        assert key.isprintable() and text.isprintable() and text


fuzz = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(st.binary(max_size=200))
def test_any_octets(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file.yml"
    file.write_bytes(content)
    check_whole(read_document(str(file)))


@fuzz
@given(
    st.lists(st.sampled_from([*"ab:-?*&!|>%@{}[],#'\"\\ \n\t", ": ", "\n  ", "- ", "!!", "&a ", "*a", "\\U", "---"]))
)
def test_anything_that_looks_like_yaml(pieces: list[str]) -> None:
    check_whole(parse("".join(pieces)))


@fuzz
@given(st.dictionaries(st.text(), st.text()))
def test_what_pyyaml_writes_is_read_back(tree: dict[str, str]) -> None:
    text = yaml.safe_dump(tree, allow_unicode=False)
    if tree:
        assert flat(root(text)) == tree
