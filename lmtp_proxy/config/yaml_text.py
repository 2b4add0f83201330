# SPDX-License-Identifier: GPL-3.0-or-later
"""A YAML file as a tree of text with line numbers, and everything that is wrong with it as YAML.

Every scalar stays the text that stands in the file: `no`, `0123` and `1:30` are names, not values of some type.
Tags are never executed. An alias is the node that has the anchor, with its lines; `<<` takes over the keys of a mapping
or of several that are not given beside it (yaml.org/type/merge). How far both unfold a file is bounded. It knows
nothing of the keys and their meaning. Problems are collected and returned, not raised; none of them quotes a value,
which may be a password.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import yaml

from lmtp_proxy.text import shown

_LOADER = (
    yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
)  # only its parser is used: 15 times faster in C

MAX_OCTETS = 64 * 2**20  # more than a million users; a device such as /dev/zero ends here too
MAX_DEPTH = 10  # mappings and lists inside one another; a configuration has three
MAX_ALIASED = (
    100_000  # values that stand in a file by aliases, beyond one for each; some 10 MB where `<<` takes them over
)
MERGE = "<<"
_TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"
_STR_TAG = "tag:yaml.org,2002:str"

# Not only what YAML forbids: the odd line ends too (CR alone, NEL, LS, PS), which editors and YAML count differently.
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_SEARCH = 2**16  # characters at a time: no other thread runs during a search, and 5 MB take one 50 ms
_WORD_IN_QUOTES = re.compile(r"'[\w!-]{2,}'")
_QUOTE_HINT = " (what begins with one of @ * & ! % ` { [ or a tab must be in quotes)"


class Problem(NamedTuple):
    """What is wrong with the file at one place.

    Attributes:
        line: from 1, 0 for the file as a whole.
        key: dotted, may be empty.
        text: what is wrong, one printable line.
    """

    line: int
    key: str
    text: str


class Note(Problem):
    """What is right and yet may not be what was meant: the file can be used."""

    __slots__ = ()


class Scalar(NamedTuple):
    """A single value, as text.

    Attributes:
        line: where its key stands, or it itself when it has none.
        plain: written without quotes and without a tag.
    """

    text: str
    line: int
    plain: bool

    @property
    def missing(self) -> bool:
        """Nothing at all is written: `key:`. A quoted empty text is not missing."""
        return self.plain and not self.text


class Sequence(NamedTuple):
    """A list, which may be in the tree more than once. line: as for Scalar."""

    items: list["Node"]
    line: int


class Mapping(NamedTuple):
    """Keys in the order of the file, those by `<<` first. It may be in the tree more than once. line: as for Scalar."""

    entries: dict[str, "Node"]
    line: int


Node: TypeAlias = Scalar | Sequence | Mapping


class _Anchored(NamedTuple):
    """What an anchor stands for.

    Attributes:
        size: nodes in it.
        height: how deep it is in itself.
        node: None if it is not whole.
    """

    node: Node | None
    size: int = 1
    height: int = 0


@dataclass(frozen=True, slots=True)
class Document:
    """A file as it was read, and what is wrong with it.

    Attributes:
        root: None if the file could not be read to its end as one YAML mapping; the problems then say why.
        digest: SHA-256 of the file's octets in hex.
        modified: when the file was changed, in seconds since the epoch.
    """

    root: Mapping | None
    problems: list[Problem]
    digest: str = ""
    modified: float = 0.0


class Source(NamedTuple):
    """The octets of a file.

    Attributes:
        modified: as for Document.
        problem: why there are none.
    """

    data: bytes
    modified: float
    problem: Problem | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the octets in hex."""
        return hashlib.sha256(self.data).hexdigest()

    def document(self, text: str | None = None, *, users: bool = False) -> Document:
        """What it says; `text`, if given, instead of its octets. users: see `parse`."""
        if self.problem is not None:
            return Document(None, [self.problem])
        try:
            text = self.data.decode("utf-8").removeprefix("\ufeff") if text is None else text
        except UnicodeDecodeError as error:
            return _failed(self.data.count(b"\n", 0, error.start) + 1, "is not UTF-8 text")
        return replace(parse(text, users=users), digest=self.digest, modified=self.modified)


def read_document(path: str) -> Document:
    """What the file at `path` says. Whatever is there, the answer is a Document; memory is bounded by MAX_OCTETS."""
    return read_source(path).document()


def read_source(path: str) -> Source:
    """Reads the file at `path`, up to MAX_OCTETS."""
    try:
        # Without blocking: a pipe, or one of the odd files of /proc, would hold up every reload from here on.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
                return _unread("cannot be read: it is no regular file")
            modified = status.st_mtime
            data = file.read(MAX_OCTETS + 1) or b""
    except OSError as error:
        return _unread(f"cannot be read: {error.strerror}")
    except ValueError:
        return _unread("cannot be read: there can be no file of this name")
    return _unread(f"is larger than {MAX_OCTETS} octets") if len(data) > MAX_OCTETS else Source(data, modified)


def parse(text: str, *, users: bool = False) -> Document:
    """Parses the text of one YAML document whose root is a mapping.

    Args:
        users: it is a file of users alone, which may be empty.
    """
    text = text.replace("\r\n", "\n")
    for start in range(0, len(text), _SEARCH):
        if forbidden := _FORBIDDEN.search(text, start, start + _SEARCH):
            line = text.count("\n", 0, forbidden.start()) + 1
            return _failed(line, f"holds the control character U+{ord(forbidden[0]):04X}")
    builder = _Builder(yaml.parse(text, Loader=_LOADER))
    root: Node | None = None
    try:
        root = builder.document()
    except yaml.MarkedYAMLError as error:
        builder.problems.append(_syntax(error))
    except (yaml.YAMLError, ValueError, OverflowError):
        # The parser in Python lets `"\Uffffffff"` out as ValueError, without a line.
        builder.problems.append(Problem(0, "", "is not YAML: it holds a character that cannot be read"))
    else:
        if root is None or (isinstance(root, Scalar) and root.missing):
            if users:
                return Document(Mapping({}, 1), builder.problems)
            return _failed(0, "is empty: it needs at least a `config:` section")
        if not isinstance(root, Mapping):
            wanted = "`USER: BACKEND` lines" if users else "`key: value` lines, starting with `config:`"
            builder.problems.append(Problem(root.line, "", f"must hold {wanted}"))
    return Document(root if isinstance(root, Mapping) else None, builder.problems)


def dotted(path: tuple[str, ...]) -> str:
    """The key as messages name it, `backends.old.port`."""
    return ".".join(map(shown, path))


def _unread(text: str) -> Source:
    return Source(b"", 0.0, Problem(0, "", text))


def _failed(line: int, text: str) -> Document:
    return Document(None, [Problem(line, "", text)])


def _syntax(error: yaml.MarkedYAMLError) -> Problem:
    mark, start = error.problem_mark, error.context_mark
    line = mark.line + 1 if mark else 0
    if error.problem == "exceeded maximum nesting depth":  # of libyaml from 0.2.6 on, which reads ahead of the events
        return Problem(line, "", f"YAML error: {_TOO_DEEP}")
    # The parser in Python quotes what it read; a single character of it helps, a word may be a password.
    text = _WORD_IN_QUOTES.sub("'...'", ", ".join(filter(None, (error.context, error.problem))))
    if start and start.line + 1 != line:
        text += f" (it begins on line {start.line + 1})"
    elif "next token" in text or "alias" in text or "anchor" in text or "tag" in text:
        text += _QUOTE_HINT
    return Problem(line, "", f"YAML error: {shown(text, 300)}")


def _stop(event: yaml.Event, text: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=yaml.Mark("", 0, _line(event) - 1, 0, None, 0))


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0


_NOTHING = _Anchored(None)


class _Builder:
    """Turns parse events into nodes. In Python and event by event: another thread's turn comes between any two."""

    def __init__(self, events: Iterator[yaml.Event]) -> None:
        self.problems: list[Problem] = []
        self._events = events
        self._anchors: dict[str, _Anchored] = {}
        self._nodes = self._aliased = 0  # in the tree so far; of these by aliases
        self._deepest = 0  # of the nodes within the one that is read now
        self._texts: dict[str, str] = {}  # 100,000 users share the names of a few backends

    def document(self) -> Node | None:
        """The one document, None if there is none. Raises yaml.YAMLError where the text stops being YAML."""
        root: Node | None = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    raise _stop(event, "a second document begins here")
                root = self._node(next(self._events), 0, ())
        return root

    def _node(self, event: yaml.Event, line: int, path: tuple[str, ...]) -> Node:
        """The node that starts with `event`; `line` is that of its key, 0 if it has none."""
        line = line or _line(event)
        self._nodes += 1
        self._deepest = max(self._deepest, len(path))
        if isinstance(event, yaml.ScalarEvent):
            if event.tag is not None and event.tag != _STR_TAG:
                self._refuse_tag(line, path)
            text = self._texts.setdefault(event.value, event.value)
            scalar = Scalar(text, line, not event.style and event.tag is None)
            if event.anchor is not None:
                self._anchors[event.anchor] = _Anchored(scalar)
            return scalar
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, line, path)
        assert isinstance(event, yaml.CollectionStartEvent)
        if event.tag is not None:
            self._refuse_tag(line, path)
        if len(path) >= MAX_DEPTH:
            raise _stop(event, _TOO_DEEP)
        if event.anchor is None:
            return self._collection(event, line, path)
        self._anchors[event.anchor] = _Anchored(None)
        before, around, self._deepest = self._nodes, self._deepest, len(path)
        node = self._collection(event, line, path)
        self._anchors[event.anchor] = _Anchored(node, self._nodes - before + 1, self._deepest - len(path))
        self._deepest = max(around, self._deepest)
        return node

    def _collection(self, event: yaml.CollectionStartEvent, line: int, path: tuple[str, ...]) -> Node:
        if isinstance(event, yaml.MappingStartEvent):
            return Mapping(self._entries(path), line)
        items: list[Node] = []
        while not isinstance(item := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(item, 0, (*path, str(len(items) + 1))))
        return Sequence(items, line)

    def _entries(self, path: tuple[str, ...]) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        merged: Node | None = None
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key_line = _line(event)
            if isinstance(event, yaml.ScalarEvent) and event.tag is None and event.anchor is None:
                key: str | None = event.value
            else:
                key = self._odd_key(event, path)
            value = self._node(next(self._events), key_line, (*path, "?" if key is None else key))
            if key is None:
                continue
            if key == MERGE and isinstance(event, yaml.ScalarEvent) and not (event.style or isinstance(value, Scalar)):
                if merged is not None:
                    self._refuse(key_line, (*path, key), f"is given twice, first on line {merged.line}: make one list")
                merged = merged or value
                continue
            first = entries.setdefault(key, value)
            if first is not value:
                self._refuse(key_line, (*path, key), f"is given twice, first on line {first.line}")
        return entries if merged is None else self._merged(merged, path) | entries

    def _merged(self, node: Node, path: tuple[str, ...]) -> dict[str, Node]:
        """The keys that `<<` brings: of a mapping, or of a list of them, where the first one that has a key wins."""
        taken: dict[str, Node] = {}
        for source in node.items if isinstance(node, Sequence) else [node]:
            if isinstance(source, Mapping):
                for key, value in source.entries.items():
                    taken.setdefault(key, value)
            else:
                self._refuse(node.line, (*path, MERGE), "takes a mapping, or a list of mappings")
        return taken

    def _odd_key(self, event: yaml.Event, path: tuple[str, ...]) -> str | None:
        """Any key that is more than a bare scalar: reads it to its end. None if it cannot be a key."""
        if isinstance(event, yaml.AliasEvent):
            self._refuse(_line(event), path, "a key cannot be an alias: what begins with * must be in quotes")
            return None
        node = self._node(event, 0, (*path, "?"))
        if isinstance(node, Scalar):
            return node.text
        self._refuse(node.line, path, "a key must be a single text, not a mapping or a list")
        return None

    def _alias(self, event: yaml.AliasEvent, line: int, path: tuple[str, ...]) -> Node:
        node, size, height = self._anchors.get(event.anchor or "", _NOTHING)
        if node is None:
            what = "what it stands in" if event.anchor in self._anchors else "nothing"
            self._refuse(line, path, f"is an alias of {what}: a value that begins with * must be in quotes")
            return Scalar("", line, False)
        self._nodes += size - 1
        self._aliased += size - 1
        if self._aliased > MAX_ALIASED:
            raise _stop(event, f"* and << unfold it to more than {MAX_ALIASED} values")
        self._deepest = max(self._deepest, len(path) + height)
        if self._deepest > MAX_DEPTH:
            raise _stop(event, _TOO_DEEP)
        return node._replace(line=line)

    def _refuse_tag(self, line: int, path: tuple[str, ...]) -> None:
        self._refuse(line, path, "YAML tags are not used here: a value that begins with ! must be in quotes")

    def _refuse(self, line: int, path: tuple[str, ...], text: str) -> None:
        self.problems.append(Problem(line, dotted(path), text))
