# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes users in the text of a configuration, or of a file of users alone, and nothing else of it.

One scalar is replaced where the YAML marks say it stands, or a line is added at the end of the section; comments,
order, quoting, spacing and line ends stay. The result is parsed and compared with what was there before it is given
out. Of a section of plain lines, only those that concern the change are read, changed and proved so, with all that
stands around the section: the time hardly grows with the file. It knows nothing of files, backends or what a user may
be called.
"""

import re
from bisect import bisect_right
from collections import abc
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

import yaml

from lmtp_proxy.config import yaml_text
from lmtp_proxy.config.users import Chunk, Doubt, FlatUsers, has_section
from lmtp_proxy.config.yaml_text import MERGE, Mapping, Node, Scalar, Sequence, parse
from lmtp_proxy.routing.keys import KeyRules, is_plain
from lmtp_proxy.text import shown

_LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader  # only its parser is used

# Text in every version of YAML, in a flow mapping too: a letter in front, or a digit where an @ makes it no number.
_PLAIN = re.compile(r"[^\W\d_][\w.+/=@-]*|\d[\w.+/=-]*@[\w.+/=@-]*")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})  # yaml.org/type/bool and null
_COMMENT_LINE = re.compile(r"([ \t]*)#[^\n]*(?:\n|\Z)")
# Of a block that another tool writes anew, with all that stands in it: Ansible's blockinfile, for one.
_MARK = re.compile(r"^[ \t]*#[^\n]*\b(BEGIN|END)\b[^\n]*\bBLOCK\b[^\n]*(?:\n|\Z)", re.MULTILINE)
_NOTHING = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\r?\n)*")
_MARK_OCTETS = re.compile(_MARK.pattern.encode(), re.MULTILINE)
_COMMENT = re.compile(r"(?<=[ \t\n])#[^\n]*")
_BY_HAND = "make the change by hand"

_Event: TypeAlias = Any  # of yaml.parse; the type hints there know few of its attributes
_Splice: TypeAlias = tuple[int, int, str]  # start and end of what goes, and what comes in its place


class EditError(Exception):
    """The text cannot be changed safely. One line that says what to do; line: of the text, from 1, 0 if unknown."""

    def __init__(self, text: str, line: int = 0) -> None:
        super().__init__(text)
        self.line = line


@dataclass(frozen=True, slots=True)
class Edit:
    """What a change makes of the text.

    Attributes:
        text: the whole new text.
        previous: user as given -> what stood there, None if the user was not in the file.
        splices: what was replaced, in order: start and end in the old text without its BOM, and what came in its place.
    """

    text: str
    previous: dict[str, str | None]
    splices: list[_Splice]


class _Entry(NamedTuple):
    """The events of one `key: value`; `end` is the last of the value, itself unless it is a mapping or a list."""

    key: _Event
    value: _Event
    end: _Event


@dataclass(slots=True)
class _Layout:
    """Where things stand.

    Attributes:
        flow: the document has the form {...}.
        bare: the root is the users, without `users:` above them.
        column: of the keys of the root.
        step: how much further right the next level is.
        users: that entry of the root, with the root itself for its key where they are bare.
        first, last: its entries.
        wanted: those that changes concern, with their table keys.
        end: of the document, an index.
        aliases: name -> the line of the first alias of it.
    """

    flow: bool
    bare: bool = False
    column: int = 0
    step: int = 2
    users: _Entry | None = None
    first: _Entry | None = None
    last: _Entry | None = None
    wanted: list[tuple[str, _Entry]] = field(default_factory=list)
    end: int = 0
    aliases: dict[str, int] = field(default_factory=dict)


def edit_users(text: str, changes: abc.Mapping[str, str], rules: KeyRules, *, alone: bool = False) -> Edit:
    """Set each user of `changes`, as an operator writes it, to the value beside it.

    Every entry with the same table key is set; a user without one gets a line at the end of the section. What has its
    value already stays as it is to the octet. text: one YAML document, with or without BOM. alone: it holds nothing
    but users. Raises EditError.
    """
    body = text.removeprefix("\ufeff")
    values = _values(changes, rules)
    document = yaml_text.parse(body, users=alone)
    if document.root is None or document.problems:
        line, key, what = min(document.problems)
        raise EditError(f"{key}: {what}" if key else what, line)
    bare = alone and not has_section(document.root)
    users = document.root if bare else document.root.entries.get("users")
    if not isinstance(users, Mapping | None) and not (isinstance(users, Scalar) and users.missing):
        raise EditError("users must be a mapping: lines of `key: value`, indented", users.line)
    layout = _layout(body, values, rules, bare=bare)
    found: dict[str, str] = {}
    splices = []
    for key, entry in layout.wanted:
        node = _entries(users)[_text(entry.key)]
        if not isinstance(node, Scalar):
            raise EditError(f"users.{shown(_text(entry.key))} is no single value: {_BY_HAND}", node.line)
        found.setdefault(key, node.text)
        if node.text != values[key]:
            splices.append(_replaced(entry, values[key], layout.aliases))
    if layout.aliases or MERGE in body:
        _refuse_taken_over(users, values, layout, rules)
    previous = {user: found.get(rules.table_key(user)) for user in changes}
    new: dict[str, str] = {}  # table key -> how it is to be written
    for user in changes:
        if (key := rules.table_key(user)) not in found:
            new.setdefault(key, _new_key(user, key, rules))
    added = {name: values[key] for key, name in new.items()}
    if added:
        splices += _added(body, layout, added)
    if not splices:
        return Edit(text, previous, [])
    splices.sort(key=lambda splice: splice[:2])  # stable: a comma comes before what it ends
    result = _spliced(body, splices)
    _verify(document.root, users, result, values, added, rules, alone=alone)
    return Edit(text[: len(text) - len(body)] + result, previous, splices)


def _values(changes: abc.Mapping[str, str], rules: KeyRules) -> dict[str, str]:
    """Table key -> value. Raises EditError for what cannot be written, and for contradictions."""
    values: dict[str, str] = {}
    for user, value in changes.items():
        for name in (user, value):
            if any("\ud800" <= mark <= "\udfff" for mark in name):
                raise EditError(f"{shown(name)} is not UTF-8 text")
        if values.setdefault(rules.table_key(user), value) != value:
            other = next(other for other in changes if rules.table_key(other) == rules.table_key(user))
            who = f"{shown(other)} and {shown(user)} are the same user"
            raise EditError(f"{who}, who cannot be on {shown(changes[other])} and on {shown(value)}")
    return values


def _layout(text: str, wanted: dict[str, str], rules: KeyRules, *, bare: bool) -> _Layout:
    """Goes through `text`, which yaml_text.parse found to be one mapping without problems, or empty."""
    layout = _Layout(False, bare)
    events = _noted(yaml.parse(text, Loader=_LOADER), layout.aliases)
    root = next((event for event in events if isinstance(event, yaml.MappingStartEvent)), None)
    if root is None:  # nothing at all
        layout.end = len(text)
        return layout
    layout.flow = bool(root.flow_style)
    sections: list[_Entry] = []
    if bare:
        layout.users = _Entry(root, root, _read_users(events, layout, wanted, rules))
        return layout
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        value = next(events)
        if _text(key) == "users" and _is_mapping(value):
            end = _read_users(events, layout, wanted, rules)
        else:
            end = _skip(events, value)
        sections.append(_Entry(key, value, end))
    ending = next(events)
    layout.end = ending.start_mark.index if ending.explicit else len(text)
    layout.users = next((section for section in sections if _text(section.key) == "users"), None)
    if sections:
        layout.column = _column(root, sections[0])
    blocks = [section.value for section in sections if _is_mapping(section.value) and not section.value.flow_style]
    if blocks:  # the first one is as good as any
        layout.step = max(1, blocks[0].start_mark.column - layout.column)
    return layout


def _noted(events: Iterator[_Event], aliases: dict[str, int]) -> Iterator[_Event]:
    """The events, with a note of each alias that passes."""
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            aliases.setdefault(str(event.anchor), _line(event))
        yield event


def _refuse_taken_over(users: Node | None, values: dict[str, str], layout: _Layout, rules: KeyRules) -> None:
    """Refuse if one of the users has no line of their own in the section: others may have it where they do."""
    written = {_text(entry.key) for _, entry in layout.wanted}
    for key, node in _entries(users).items():
        if key not in written and rules.table_key(key) in values:
            what = f"users.{shown(key)} comes by << or an alias: write a line of its own, or {_BY_HAND}"
            raise EditError(what, node.line)


def _read_users(events: Iterator[_Event], layout: _Layout, wanted: dict[str, str], rules: KeyRules) -> _Event:
    """Takes the entries of `users` up to their end, which it returns."""
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        value = next(events)
        layout.last = _Entry(key, value, _skip(events, value))
        layout.first = layout.first or layout.last
        table_key = rules.table_key(_text(key))
        if table_key in wanted:
            layout.wanted.append((table_key, layout.last))
    return key


def _skip(events: Iterator[_Event], event: _Event) -> _Event:
    """Reads the node that starts with `event` to its last event, which it returns."""
    depth = 0
    while True:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth == 0:
            return event
        event = next(events)


def _is_mapping(event: _Event) -> bool:
    return isinstance(event, yaml.MappingStartEvent)


def _text(event: _Event) -> str:
    return str(event.value) if isinstance(event, yaml.ScalarEvent) else ""


def _line(event: _Event) -> int:
    return int(event.start_mark.line) + 1


def _column(start: _Event, first: _Entry) -> int:
    """The column of the keys of a block mapping. An anchor in front of it stands elsewhere."""
    return int((start if start.anchor is None else first.key).start_mark.column)


def _entries(users: Node | None) -> dict[str, Node]:
    return users.entries if isinstance(users, Mapping) else {}


def _replaced(entry: _Entry, value: str, aliases: dict[str, int]) -> _Splice:
    """`value` in place of what `entry` has. An alias goes, what it stood for stays as it is for everybody else; so does
    an anchor that nobody uses. aliases: see _Layout.
    """
    event = entry.value
    name = f"users.{shown(_text(entry.key))}"
    start, end = event.start_mark.index, event.end_mark.index
    if isinstance(event, yaml.AliasEvent):
        return (start, end, _written(value, ""))
    if event.anchor in aliases:
        line = aliases[event.anchor]
        what = f"has an anchor (&{event.anchor}), whose aliases (line {line}) would follow: take it out"
    elif event.tag is not None:
        what = "has a YAML tag: take it out"
    elif event.style in ("|", ">"):
        what = f"is written as a block ({event.style}): write it on one line"
    elif start == end:
        what = "has no value: write one"
    else:
        return (start, end, _written(value, event.style or ""))
    raise EditError(f"{name} {what}, or {_BY_HAND}", _line(entry.key))


def _written(text: str, style: str) -> str:
    """`text` as YAML in `style` (`'`, `"` or empty for plain), or in double quotes where that style cannot hold it."""
    if style == "'" and text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    if not style and text.isprintable() and _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(mark: str) -> str:
    if mark in '"\\':
        return "\\" + mark
    return mark if mark.isprintable() else f"\\U{ord(mark):08X}"


def _new_key(user: str, key: str, rules: KeyRules) -> str:
    """How a user who is not in the file is to be written: as given, but with the default domain if they have none, and
    without a domain that is not looked at."""
    mailbox, at, _ = user.rpartition("@")
    if not at and rules.default_domain and not rules.ignore_domain:
        return f"{user}@{rules.default_domain}"
    return mailbox if rules.ignore_domain and mailbox and rules.table_key(mailbox) == key else user


def _added(text: str, layout: _Layout, added: dict[str, str]) -> list[_Splice]:
    """The splices that add entries at the end of the section, and the section itself where there is none."""
    users = layout.users
    column = layout.column + layout.step
    if users is None and layout.bare:
        return [_inserted(text, layout.end, _lines(added, 0))]
    if users is None and not layout.flow:
        return [_inserted(text, layout.end, [" " * layout.column + "users:", *_lines(added, column)])]
    if users is None or (layout.flow and not _is_mapping(users.value)):
        raise EditError("users has no value in a file of the form {...}: write `users: {}` by hand first")
    if _is_mapping(users.value) and users.value.flow_style:
        start, end = users.value.start_mark.index, users.end.end_mark.index
        if layout.last is not None or layout.flow or users.value.anchor or text[start + 1 : end - 1].strip():
            return _added_to_flow(text, users.end.start_mark.index, layout.last, added)
        # `users: {}`: a thousand lines are easier to read than what would become one.
        start = len(text[:start].rstrip(" \t"))
        return [(start, end, ""), _behind(text, end, layout.column + 1, _lines(added, column))]
    if layout.first is None or layout.last is None:
        if isinstance(users.value, yaml.AliasEvent) or users.value.anchor is not None:
            raise EditError(f"users is an alias or has an anchor: take it out, or {_BY_HAND}", _line(users.key))
        return [_behind(text, users.key.end_mark.index, layout.column + 1, _lines(added, column))]
    column = _column(users.value, layout.first)
    return [_behind(text, _end(text, layout.last), column, _lines(added, column))]


def _lines(added: dict[str, str], column: int) -> list[str]:
    return [f"{' ' * column}{_written(key, '')}: {_written(value, '')}" for key, value in added.items()]


def _end(text: str, entry: _Entry) -> int:
    """Where `entry` of a mapping ends: behind its value, or behind its key if it has none."""
    value = entry.value
    if value is not entry.end:
        if value.flow_style and _text(entry.key) == MERGE:
            return int(entry.end.end_mark.index)
        raise EditError(f"users.{shown(_text(entry.key))} is no single value: {_BY_HAND}", _line(entry.key))
    if getattr(value, "style", "") in ("|", ">"):  # its marks hold the empty lines behind it
        return len(text[: value.end_mark.index].rstrip())
    return int((value if value.end_mark.index > value.start_mark.index else entry.key).end_mark.index)


def _next_line(text: str, position: int) -> int:
    return text.find("\n", position) + 1 or len(text)


def _behind(text: str, position: int, least: int, lines: list[str]) -> _Splice:
    """`lines` below that of `position`, and below the comments that follow it at once at column `least` or further."""
    position = _next_line(text, position)
    while (comment := _COMMENT_LINE.match(text, position)) and len(comment[1]) >= least:
        if (mark := _MARK.match(text, position)) and mark[1] == "BEGIN":
            break
        position = comment.end()
    return _inserted(text, _out_of_block(text, position), lines)


def _out_of_block(text: str, position: int, *, flow: bool = False) -> int:
    """`position`, or the line below the block of another tool in which it is. Raises EditError if there is none.

    Args:
        flow: it is between braces, where no other place is looked for.
    """
    begin = None
    for mark in _MARK.finditer(text):
        if mark.start() < position:
            begin = mark if mark[1] == "BEGIN" else None
        elif begin is None or mark[1] == "BEGIN":
            break
        elif not flow and _NOTHING.fullmatch(text, position, mark.start()):
            return mark.end()
        else:
            line = text.count("\n", 0, begin.start()) + 1
            what = f"a new user would stand in a block that another tool writes ({shown(begin[0].strip())})"
            raise EditError(f"users: {what}: make the change there, or let it end before the next section", line)
    return position


def _inserted(text: str, position: int, lines: list[str]) -> _Splice:
    """`lines` at `position`, which is the start of a line or the end of `text`, with the line end that stands there."""
    before = text.rfind("\n", 0, position)
    newline = "\r\n" if text[max(before - 1, 0) : before] == "\r" else "\n"
    new = newline.join(lines)
    return (position, position, newline + new if position > before + 1 else new + newline)


def _added_to_flow(text: str, closing: int, last: _Entry | None, added: dict[str, str]) -> list[_Splice]:
    """New entries before the } at `closing`, as the last entry is written: inline or on lines, as JSON or not."""
    if last is None:
        return [(closing, closing, ", ".join(_lines(added, 0)))]
    styles = ['"' if getattr(event, "style", "") == '"' else "" for event in (last.key, last.value)]
    entries = [f"{_written(key, styles[0])}: {_written(value, styles[1])}" for key, value in added.items()]
    end = position = _end(text, last)
    _out_of_block(text, end, flow=True)
    rest = _COMMENT.sub(lambda comment: " " * len(comment[0]), text[end:closing])
    comma = "," if "," in rest else ""
    splices = [] if comma else [(end, end, ",")]
    if comma:
        position += rest.index(",") + 1
    next_line = _next_line(text, position)
    indentation = text[text.rfind("\n", 0, last.key.start_mark.index) + 1 : last.key.start_mark.index]
    if next_line > closing or indentation.strip() or "\n" in text[end:position]:
        return [*splices, (position, position, " " + ", ".join(entries) + comma)]
    lines = ",\n".join(indentation + entry for entry in entries) + comma
    return [*splices, _inserted(text, next_line, lines.split("\n"))]


def _spliced(text: str, splices: list[_Splice]) -> str:
    pieces = []
    position = 0
    for start, end, new in splices:
        assert start >= position
        pieces += [text[position:start], new]
        position = end
    return "".join([*pieces, text[position:]])


def _verify(
    old: Mapping,
    users: Node | None,
    text: str,
    values: dict[str, str],
    added: dict[str, str],
    rules: KeyRules,
    *,
    alone: bool,
) -> None:
    """Proves that `text` holds the tree `old`, in which `users` are, with these changed, and nothing else.

    Raises EditError.
    """
    document = yaml_text.parse(text, users=alone)
    wanted: dict[str, Node] = {}
    for key, node in _entries(users).items():
        value = values.get(rules.table_key(key))
        wanted[key] = node if value is None else Scalar(value, 0, False)
    wanted |= {key: Scalar(value, 0, False) for key, value in added.items()}
    root = Mapping(wanted if users is old else {**old.entries, "users": Mapping(wanted, 0)}, 0)
    if document.root is None or document.problems or _bare(document.root) != _bare(root):
        what = f"the way in which users is written cannot be changed safely: {_BY_HAND}"
        raise EditError(what, users.line if users else 0)


def _bare(node: Node) -> tuple[object, ...]:
    """A tree without its line numbers, with the order of its keys."""
    if isinstance(node, Scalar):
        return (node.text, node.missing)
    if isinstance(node, Sequence):
        return (list, *map(_bare, node.items))
    return (dict, *((key, _bare(value)) for key, value in node.entries.items()))


_BOM = b"\xef\xbb\xbf"
_FEW = 16  # keys that are looked for in each chunk before its entries are read one by one


class FileEdit(NamedTuple):
    """What a change makes of the file.

    Attributes:
        data: the whole new content.
        previous: as for users_edit.Edit.
    """

    data: bytes
    previous: dict[str, str | None]


def edit_file(data: bytes, changes: abc.Mapping[str, str], rules: KeyRules, *, alone: bool = False) -> FileEdit:
    """As edit_users. Raises EditError, and UnicodeDecodeError if it is not UTF-8 text."""
    try:
        users = FlatUsers(data, alone=alone)
        users.check(parse(users.rest, users=alone))
        pieces = _pieces(users, {rules.table_key(user) for user in changes}, rules)
    except Doubt:
        pieces = [(0, len(data))]
    bom = len(_BOM) if data.startswith(_BOM) else 0
    pieces[0] = (bom, pieces[0][1])
    starts = list(accumulate((end - start for start, end in pieces), initial=0))  # of each piece in the excerpt
    excerpt = b"".join(data[start:end] for start, end in pieces).decode()
    try:
        edit = edit_users(excerpt, changes, rules, alone=alone)
    except EditError as error:
        raise EditError(str(error), _line_in_file(data, excerpt, pieces, starts, error.line)) from error
    result, done, octets, position = [], 0, 0, 0
    for first, last, new in edit.splices:
        # Pieces are whole lines, and the last one goes from an entry to the end of the file: none is torn by a splice.
        octets += len(excerpt[position:first].encode())
        piece = bisect_right(starts, octets, hi=len(pieces)) - 1
        start = pieces[piece][0] + octets - starts[piece]
        result += [data[done:start], new.encode()]
        replaced = len(excerpt[first:last].encode())
        done, octets, position = start + replaced, octets + replaced, last
    return FileEdit(b"".join([*result, data[done:]]), edit.previous)


def _line_in_file(data: bytes, excerpt: str, pieces: list[tuple[int, int]], starts: list[int], line: int) -> int:
    """The line of the file which is `line` of the excerpt, 0 for 0."""
    before = "".join(excerpt.splitlines(keepends=True)[: line - 1]).encode() if line else b""
    piece = bisect_right(starts, len(before), hi=len(pieces)) - 1
    return line and data.count(b"\n", 0, pieces[piece][0] + len(before) - starts[piece]) + 1


def _pieces(users: FlatUsers, wanted: Set[str], rules: KeyRules) -> list[tuple[int, int]]:
    """Start and end of what an edit has to see, in order. Raises Doubt.

    That is all up to the first entry, the entries with one of the keys, the comments at which blocks of other tools
    begin and end, and all from the last entry on.
    """
    entries: list[tuple[int, int]] = []
    last = (0, 0)
    words = {rules.bare_key(key) for key in wanted}
    for chunk in users.chunks():
        if chunk.plain and not _may_hold(chunk, words):
            last = (users.data.rfind(b"\n", chunk.start, chunk.end - 1) + 1 or chunk.start, chunk.end)
            continue
        ends = [found.end() for found in re.finditer(b"\n|\\Z", users.data[chunk.start : chunk.end])]
        for entry in users.entries(chunk):
            number = entry.line - chunk.line
            last = (chunk.start + (ends[number - 1] if number else 0), chunk.start + ends[number])
            if rules.table_key(entry.key) in wanted:
                entries.append(last)
    marks = _MARK_OCTETS.finditer(users.data, users.first_end, last[0]) if b"BLOCK" in users.data else ()
    entries = sorted([*entries, *(mark.span() for mark in marks)])
    between = [piece for piece in entries if users.first_end <= piece[0] < last[0]]
    if last[1] <= users.first_end:
        return [(0, len(users.data))]
    return [(0, users.first_end), *between, (last[0], len(users.data))]


def _may_hold(chunk: Chunk, words: Set[str]) -> bool:
    """False only if no key in it begins with one of the words."""
    folded = chunk.text.lower()
    if len(words) > _FEW or not is_plain(folded):
        return True
    return any(word.lower() in folded for word in words)
