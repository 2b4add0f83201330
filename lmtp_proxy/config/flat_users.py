# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds a `users:` section of plain lines in the octets of a configuration, and reads it ten times faster than as YAML.

Only what cannot be read in any other way is understood: comments, blank lines and `key: value`, all at one indentation,
key and value each a bare word or in quotes without escapes. At the first doubt it raises Doubt, and the whole file has
to be read as YAML, which also finds out what is wrong with it. What stands around the section is read as YAML in any
case. It does not know which users and backends there may be.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from lmtp_proxy.config.yaml_text import Document, Mapping, Scalar

_CHUNK = 2**14  # octets: a line that is not plain makes its chunk slower, and no more

# What yaml_text refuses anywhere, and every line end that any YAML knows.
_NEVER = "\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff"
# No character that means something at the start of a scalar; in it, neither colon nor # nor those of the form {...}.
# YAML looks no further than 1024 characters for the colon of a key without quotes.
_WORD = r"[\w.+/=~$][\w.+/=~$@'%&*!^?|-]{0,400}"
_QUOTED = rf""""[^"\\\t{_NEVER}]{{0,400}}"|'[^'\t{_NEVER}]{{0,400}}'"""
_COMMENT = rf"#[^{_NEVER}]*"

_HEAD = re.compile(rb"users:(?: *| +#[^\r\n]*)\r?\n")
_BEFORE_FIRST = re.compile(rb"(?: *(?:#[^\r\n]*)?\r?\n)*+")
_BEHIND = re.compile(rb"\n[^ #\r\n]")
_MAX_INDENTATION = 64


class Doubt(Exception):
    """The section is not understood: the file has to be read as YAML."""


class Entry(NamedTuple):
    """key, value: as YAML reads them. line: counted from 1."""

    key: str
    value: str
    line: int


class Chunk(NamedTuple):
    """Some whole lines of the section.

    text: with LF at the end of each line. line: the first one's, from 1. start, end: octets of the file. plain: each
    line is an entry whose key and value are bare words, with one colon and no other blanks than before and behind them.
    """

    text: str
    line: int
    start: int
    end: int
    plain: bool


class FlatUsers:
    """The section in `data`. Raises Doubt if there is none that can be of this kind.

    rest: the text of the whole file without the entries but the first; all lines keep their numbers. first_end: where
    the line of that one ends.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        head = _HEAD.match(data, 0 if data.startswith(b"users:") else data.find(b"\nusers:") + 1)
        if head is None or data.find(b"\nusers:", head.start()) >= 0:
            raise Doubt
        self._start = head.end()
        behind = _BEHIND.search(data, head.end() - 1)
        self._end = len(data) if behind is None else behind.start() + 1
        self._line = data.count(b"\n", 0, self._start) + 1
        before = _BEFORE_FIRST.match(data, self._start, self._end)
        first = before.end() if before else self._start
        self.first_end = data.find(b"\n", first, self._end) + 1 or self._end
        lines = data[first : self.first_end]
        indentation = len(lines) - len(lines.lstrip(b" "))
        if not 0 < indentation <= _MAX_INDENTATION:
            raise Doubt
        self._entry = re.compile(
            f" {{{indentation}}}({_WORD}|{_QUOTED}) {{0,16}}: +({_WORD}|{_QUOTED})(?: +{_COMMENT}| *)\n"
        )
        self._nothing = re.compile(f" *(?:{_COMMENT})?\n")
        self._plain = re.compile(f"(?: {{{indentation}}}{_WORD}: +{_WORD}\n)*+")
        number = self._line + data.count(b"\n", self._start, first)
        (self._first,) = self.entries(Chunk(_text(lines), number, first, self.first_end, False))
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
        users = document.root.entries.get("users") if document.root and not document.problems else None
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

    def entries(self, chunk: Chunk) -> Iterator[Entry]:
        """The entries in a chunk, plain or not. Raises Doubt."""
        position, line = 0, chunk.line
        while position < len(chunk.text):
            if found := self._entry.match(chunk.text, position):
                key, value = found.groups()
                yield Entry(_unquoted(key), _unquoted(value), line)
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
