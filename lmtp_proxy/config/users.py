# SPDX-License-Identifier: GPL-3.0-or-later
"""The users of the configuration, and of the files that it names: who is on which backend, under the keys of a table.

A section of plain lines is found in the octets of the file and read ten times faster than as YAML. Only what cannot be
read in any other way is understood there: comments, blank lines and `key: value`, all at one indentation, key and value
each a bare word or in quotes without escapes. A file of users alone may have such lines without `users:` above them. At
the first doubt Doubt is raised, and the whole file has to be read as YAML, which also finds out what is wrong with it;
what stands around the section is read as YAML in any case.
"""

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from typing import NamedTuple

from lmtp_proxy.config.types import Section
from lmtp_proxy.config.yaml_text import Document, Mapping, Scalar
from lmtp_proxy.routing.keys import FoldingError, KeyRules, is_plain
from lmtp_proxy.routing.static_table import Shape, StaticTable, write_table
from lmtp_proxy.text import shown

_CHUNK = 2**14  # octets: a line that is not plain makes its chunk slower, and no more

# What yaml_text refuses anywhere, and every line end that any YAML knows.
_NEVER = "\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff"
# No character that means something at the start of a scalar; in it, neither colon nor # nor those of the form {...}.
# YAML looks no further than 1024 characters for the colon of a key without quotes.
_WORD = r"[\w.+/=~$][\w.+/=~$@'%&*!^?|-]{0,400}"
_QUOTED = rf""""[^"\\\t{_NEVER}]{{0,400}}"|'[^'\t{_NEVER}]{{0,400}}'"""
_COMMENT = rf"#[^{_NEVER}]*"

_HEAD = re.compile(rb"users:(?: *| +#[^\r\n]*)\r?\n")
_START = re.compile(rb"(?:\xef\xbb\xbf)?(?:(?: *(?:#[^\r\n]*)?\r?\n)*+--- *\r?\n)?")  # of a file of users alone
_BEFORE_FIRST = re.compile(rb"(?: *(?:#[^\r\n]*)?\r?\n)*+")
_BEHIND = re.compile(rb"\n[^ #\r\n]")
_MAX_INDENTATION = 64


class Doubt(Exception):
    """The section is not understood: the file has to be read as YAML."""


class UserEntry(NamedTuple):
    """One line of the section.

    Attributes:
        key, value: as YAML reads them.
        line: counted from 1.
    """

    key: str
    value: str
    line: int


class Chunk(NamedTuple):
    """Some whole lines of the section.

    Attributes:
        text: with LF at the end of each line.
        line: the first one's, from 1.
        start, end: octets of the file.
        plain: each line is an entry whose key and value are bare words, with one colon and no other blanks than before
            and behind them.
    """

    text: str
    line: int
    start: int
    end: int
    plain: bool


class FlatUsers:
    """The section in `data`. Raises Doubt if there is none that can be of this kind.

    Args:
        alone: it is a file of users alone, which need not have `users:` above them.

    Attributes:
        rest: the text of the whole file without the entries but the first; all lines keep their numbers.
        first_end: where the line of that one ends.
    """

    def __init__(self, data: bytes, *, alone: bool = False) -> None:
        self.data = data
        head = _HEAD.match(data, 0 if data.startswith(b"users:") else data.find(b"\nusers:") + 1)
        self._section = head is not None or not alone
        self._alone = alone
        if head is None:
            head = _START.match(data) if alone else None
        if head is None or (self._section and data.find(b"\nusers:", head.start()) >= 0):
            raise Doubt
        self._start = head.end()
        behind = _BEHIND.search(data, head.end() - 1) if self._section else None
        self._end = len(data) if behind is None else behind.start() + 1
        self._line = data.count(b"\n", 0, self._start) + 1
        before = _BEFORE_FIRST.match(data, self._start, self._end)
        first = before.end() if before else self._start
        self.first_end = data.find(b"\n", first, self._end) + 1 or self._end
        lines = data[first : self.first_end]
        indentation = len(lines) - len(lines.lstrip(b" "))
        if not lines or not self._section <= indentation <= _MAX_INDENTATION:
            raise Doubt
        self._entry = re.compile(
            rf"(?!\.\.\. ) {{{indentation}}}({_WORD}|{_QUOTED}) {{0,16}}: +({_WORD}|{_QUOTED})(?: +{_COMMENT}| *)\n"
        )
        self._nothing = re.compile(f" *(?:{_COMMENT})?\n")
        self._plain = re.compile(f"(?: {{{indentation}}}{_WORD}: +{_WORD}\n)*+")
        number = self._line + data.count(b"\n", self._start, first)
        found = list(self.entries(Chunk(_text(lines), number, first, self.first_end, False)))
        if not found:  # a comment on the last line, without its end
            raise Doubt
        (self._first,) = found
        blank = b"\n" * data.count(b"\n", self.first_end, self._end)
        try:
            self.rest = (data[: self.first_end] + blank + data[self._end :]).decode().removeprefix("\ufeff")
        except UnicodeDecodeError:
            raise Doubt from None

    def check(self, document: Document) -> None:
        """Raises Doubt unless `document`, what `rest` says as YAML, is without problems and has the one entry there.

        Then this is where the section stands, and not within a text or a list; and as YAML leaves each such entry as it
        came to it, with the same indentation, the others are read like the first.
        """
        root = None if document.problems else document.root
        if self._alone and root and self._section and len(root.entries) > 1:
            raise Doubt
        users = root.entries.get("users") if root and self._section else root
        entry = users.entries.get(self._first.key) if isinstance(users, Mapping) and len(users.entries) == 1 else None
        if not isinstance(entry, Scalar) or (entry.text, entry.line) != (self._first.value, self._first.line):
            raise Doubt

    def chunks(self) -> Iterator[Chunk]:
        """The section piece by piece. Raises Doubt."""
        start, line = self._start, self._line
        while start < self._end:
            end = self.data.find(b"\n", start + _CHUNK, self._end) + 1 or self._end
            text = _text(self.data[start:end])
            yield Chunk(text, line, start, end, self._plain.fullmatch(text) is not None)
            start, line = end, line + text.count("\n")

    def entries(self, chunk: Chunk) -> Iterator[UserEntry]:
        """The entries in a chunk, plain or not. Raises Doubt."""
        position, line = 0, chunk.line
        while position < len(chunk.text):
            if found := self._entry.match(chunk.text, position):
                key, value = found.groups()
                yield UserEntry(_unquoted(key), _unquoted(value), line)
            elif not (found := self._nothing.match(chunk.text, position)):
                raise Doubt
            position, line = found.end(), line + 1


def _text(octets: bytes) -> str:
    try:
        text = octets.decode().replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise Doubt from None
    return text if text.endswith("\n") else text + "\n"


def _unquoted(word: str) -> str:
    return word[1:-1] if word[0] in "\"'" else word


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def has_section(root: Mapping) -> bool:
    """Whether `root`, of a file of users alone, has them under `users:`, and not a user of that name."""
    users = root.entries.get("users")
    return isinstance(users, Mapping) or (isinstance(users, Scalar) and users.missing and len(root.entries) == 1)


class UsersPart(NamedTuple):
    """Where some of the users stand.

    Attributes:
        name: of the file, as messages have it.
        before: lines of the files before it.
        flat: None if they are not of that kind.
        section: as YAML reads them; None if there are none. It may raise Doubt where they are in `flat`.
    """

    name: str
    before: int
    flat: FlatUsers | None
    section: Callable[[], Section | None]


class _Records:
    """What becomes the table: a record of each user, its line counted over all files, and how many are on each name."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self.lines = array("I")
        self.counts: Counter[str] = Counter()

    def write(self, write: Callable[[bytes], object]) -> tuple[Shape, Counter[str]]:
        """Raises SameKey."""
        return write_table(self.texts, self.lines, self.counts, write), self.counts

    def add(self, more: "_Records") -> None:
        self.texts += more.texts
        self.lines.extend(more.lines)
        self.counts.update(more.counts)


def read_users(
    store: int | None, parts: Sequence[UsersPart], names: Set[str] | None, rules: KeyRules
) -> tuple[StaticTable, Counter[str]]:
    """The table of all users, and how many are on each name.

    store: descriptor of the file in which the table is to be, None for memory. What is wrong with the users of a
    section is noted there. names: None if the backends cannot be told. Raises Doubt where a part does, and SameKey if a
    user of a part that is flat is that of another line, too.
    """
    records = _Records()
    seen: dict[str, _First] = {}
    for part in parts:
        try:
            records.add(_of_lines(part, names, rules))
        except Doubt:
            records.add(_of_section(part, names, rules, seen))
    if store is None:
        pieces: list[bytes] = []
        shape, counts = records.write(pieces.append)
        return StaticTable.of_octets(b"".join(pieces), shape), counts
    with open(store, "wb", closefd=False) as file:
        file.seek(0)
        file.truncate()
        shape, counts = records.write(file.write)
    return StaticTable.of_file(store, shape), counts


class _First(NamedTuple):
    """A line that has a user before others do."""

    part: UsersPart
    user: str
    node: Scalar


def _of_section(part: UsersPart, names: Set[str] | None, rules: KeyRules, seen: dict[str, _First]) -> _Records:
    """seen: by key, those of the parts before, and then of this one."""
    records = _Records()
    section = part.section()
    if section is None:
        return records
    for user, node in section.entries.items():
        if not isinstance(node, Scalar):
            section.fail(user, "must be the name of a backend, reject or hold")
            continue
        if node.missing:
            section.fail(user, "has no value: write the name of a backend, reject or hold")
        elif names is not None and node.text not in names:
            section.fail(user, undefined(section, node.text, names))
        try:
            key = rules.table_key(user)
        except FoldingError as error:
            section.fail(user, str(error))
            continue
        if problem := _problem(user, key, rules):
            section.fail(user, problem)
            continue
        if user.startswith("*"):
            section.note(user, _NO_WILDCARD)
        first = seen.setdefault(key, _First(part, user, node))
        if first.user == user and first.part is part:
            if names is not None:
                # A name that no backend has may be anything, and not to be written as UTF-8. Who is on it is in the
                # table all the same, so that SameKey is raised for them, too.
                name = node.text if node.text in names else "reject"
                records.texts.append(f"{key}\t{name}".encode())
                records.lines.append(part.before + node.line)
                records.counts[name] += 1
        elif first.part is not part:
            where = f"stands in {first.part.name}, too, on line {first.node.line}"
            who = "" if first.user == user else f" as {shown(first.user)}"
            section.fail(user, f"{where}{who}: take one of the two out")
        elif first.node.text != node.text:
            section.fail(
                user,
                f"is the same user as {shown(first.user)} on line {first.node.line}, who is on "
                f"{shown(first.node.text)}: take one of the two out",
            )
    return records


def _of_lines(part: UsersPart, names: Set[str] | None, rules: KeyRules) -> _Records:
    """Raises Doubt."""
    found = _Records()
    users, records, lines, counts = part.flat, found.texts, found.lines, found.counts
    if users is None:
        raise Doubt
    for chunk in users.chunks():
        first = part.before + chunk.line
        if chunk.plain:
            words = chunk.text.split()  # the keys with their colons, and the names
            if _is_folded(chunk.text, rules):
                records += chunk.text.replace(" ", "").replace(":", "\t").encode().split(b"\n")[:-1]
            else:
                pairs = zip(words[::2], words[1::2], strict=True)
                records += [f"{rules.table_key(key[:-1])}\t{name}".encode() for key, name in pairs]
            lines.extend(range(first, first + len(words) // 2))
            counts.update(words[1::2])
            continue
        for user, name, line in users.entries(chunk):
            key = rules.table_key(user)
            if _problem(user, key, rules) or user.startswith("*"):
                raise Doubt
            records.append(f"{key}\t{name}".encode())
            lines.append(part.before + line)
            counts[name] += 1
    if names is None or not counts.keys() <= names:
        raise Doubt
    return found


_BARE_KEY = re.compile(" *[^ @:\n]*:", re.MULTILINE)


def _is_folded(text: str, rules: KeyRules) -> bool:
    """Whether all keys in `text`, a plain chunk's, are as `rules` would make them."""
    if rules.ignore_domain or not is_plain(text) or ".:" in text or text != text.lower():
        return False
    return not rules.default_domain or not _BARE_KEY.search(text)


_NO_WILDCARD = (
    "is the one mailbox of that name, as * is no wildcard: write @example.org (in quotes) for all of a domain, "
    "fallback_backend for all the rest"
)


def _problem(user: str, key: str, rules: KeyRules) -> str | None:
    """Why `user` can never be found by any recipient, None if it can."""
    if not user:
        return "a user cannot be empty"
    if user == "@":
        return "has no domain: write @example.org for all of a domain, fallback_backend for all the rest"
    if not key:
        return "can never match while ignoreDomain is true: take it out, or use fallback_backend"
    if re.match('"[^@]*"(@|$)', user):
        return "is looked up without its quotes: write it without them"
    if not user.isprintable() and _CONTROL.search(user):
        return "holds a control character, which no address can"
    return None


def undefined(section: Section, name: str, names: Set[str]) -> str:
    """What is wrong with `name`, which is none of `names`, the backends and the reserved words."""
    near = section.nearest(name, names)
    hint = f"did you mean {shown(near)}?" if near else "define it under backends"
    return f'there is no backend "{shown(name)}": {hint}'
