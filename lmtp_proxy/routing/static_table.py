# SPDX-License-Identifier: GPL-3.0-or-later
"""The `users:` section of the configuration as a table: immutable, compact, available until it is replaced.

It is one piece of octets, in memory or in a file that is mapped: another process can fill that file, and a million
users are then in force at once, shared by all who map it. It does not know how users are written in a configuration,
nor who makes the file.
"""

import mmap
import os
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice, pairwise
from operator import gt
from typing import NamedTuple

from lmtp_proxy.routing.table import TableUnavailable

# Records in a block. A look-up goes through one block (2 µs), and the first keys of all are objects of their own: with
# 64, a million users have 15,625 of them, made in a millisecond.
_BLOCK = 64
_PIECE = 64 * _BLOCK  # records that are compared at once
_WITH_DOMAIN = re.compile(rb"\n[^\t\n@]*+@")
_SAME_KEY = re.compile(rb"\n([^\t\n]*+)\t[^\n]*+\n\1\t")


class SameKey(ValueError):
    """Two records have the same key."""


class Shape(NamedTuple):
    """What must be known of a file to read it as a table.

    Attributes:
        keys: how many.
        body, firsts: octets of the first two parts.
        names: the backends, in no order.
        has_domains: see Table.
    """

    keys: int
    body: int
    firsts: int
    names: Sequence[str]
    has_domains: bool


class KeyChange(NamedTuple):
    """A key whose backend differs; None where it has none. line: in the file of the newer table that has the key."""

    key: str
    before: str | None
    after: str | None
    line: int


class StaticTable(Mapping[str, str]):
    """A Table over folded keys, and a mapping of them in the order of their code points, each with its line.

    Four parts follow one another: the records, `key TAB backend` between line feeds, in order, which holds as keys have
    no control characters; the first key of each block of records; where each block starts, and where the last one ends;
    the line of each record. Two tables are equal if they have the same backend for the same keys, whatever the lines.
    """

    constant = True

    def __init__(self, users: Mapping[str, str] | None = None, lines: Iterable[int] | None = None) -> None:
        """Of a mapping, with the line of each key in its order; counted from 1 without."""
        records = [f"{key}\t{name}".encode() for key, name in (users or {}).items()]
        pieces: list[bytes] = []
        numbers = array("I", range(1, len(records) + 1) if lines is None else lines)
        self._set(write_table(records, numbers, set(users.values() if users else ()), pieces.append), None)
        self._data = b"".join(pieces)

    @classmethod
    def of_octets(cls, octets: bytes, shape: Shape) -> "StaticTable":
        """Of what write_table wrote."""
        table = cls.__new__(cls)
        table._set(shape, None)
        table._data = octets
        return table

    @classmethod
    def of_file(cls, handle: int, shape: Shape) -> "StaticTable":
        """Of the open file `handle`, which becomes the table's own. It is mapped at the first use, not before.

        A process that is to close its descriptors, as a daemon does, must spare this one (`handles`), and could not
        spare the one that a mapping holds.
        """
        table = cls.__new__(cls)
        table._set(shape, handle)
        return table

    def open(self) -> None:
        """Map the file now, while there is a descriptor left for that. Raises OSError."""
        _ = self._data

    def unmap(self) -> None:
        """Give up the mapping, as it holds a descriptor of its own, but not the file: the next use maps it again."""
        data = self.__dict__.pop("_data", None)
        if isinstance(data, mmap.mmap):
            data.close()
        elif data is not None:
            self._data = data

    def _set(self, shape: Shape, handle: int | None) -> None:
        self._shape = shape
        self._handle = handle
        self._names = {name.encode(): name for name in shape.names}

    def close(self) -> None:
        """Give up the file, and so its memory, whoever may hold this table still: it is unavailable from here on."""
        if self._handle is not None:
            data = self._data
            assert isinstance(data, mmap.mmap)  # as of all that are in a file
            data.close()
            os.close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        for handle in self.handles:
            os.close(handle)

    def __reduce__(self) -> tuple[Callable[..., "StaticTable"], tuple[bytes, Shape]]:
        return StaticTable.of_octets, (self.octets(), self._shape)

    @property
    def handles(self) -> tuple[int, ...]:
        """The descriptor of its file, if it is in one."""
        handle = getattr(self, "_handle", None)  # a constructor may have failed
        return () if handle is None else (handle,)

    def octets(self) -> bytes:
        """Its file, whole."""
        return self._data[:]

    def overlaid(self, overlay: Mapping[str, str | None]) -> "StaticTable":
        """The same where `overlay` does not say otherwise, None for no backend; without lines."""
        if not overlay:
            return self
        octets = {key.encode(): name for key, name in overlay.items()}
        records = [
            record for record in self._records(0, self._shape.body - 1) if record.partition(b"\t")[0] not in octets
        ]
        records += [b"%b\t%b" % (key, name.encode()) for key, name in octets.items() if name is not None]
        pieces: list[bytes] = []
        names = {*self._shape.names, *filter(None, overlay.values())}
        shape = write_table(records, array("I", bytes(4 * len(records))), names, pieces.append)
        return StaticTable.of_octets(b"".join(pieces), shape)

    @property
    def has_domains(self) -> bool:
        """See Table.has_domains."""
        return self._shape.has_domains

    @property
    def shape(self) -> Shape:
        """See Shape."""
        return self._shape

    @cached_property
    def _data(self) -> "bytes | mmap.mmap":
        return mmap.mmap(self.handles[0], 0, prot=mmap.PROT_READ)

    @cached_property
    def _firsts(self) -> tuple[bytes, ...]:
        firsts = self._data[self._shape.body : self._shape.body + self._shape.firsts]
        # A tuple of octets is nothing that the garbage collector walks through more than once.
        return tuple(firsts.split(b"\n")) if self._shape.keys else ()

    @cached_property
    def _starts(self) -> "array[int]":
        starts = array("I")
        begin = self._shape.body + self._shape.firsts
        starts.frombytes(self._data[begin : begin + (len(self._firsts) + 1) * starts.itemsize])
        return starts

    def __repr__(self) -> str:
        return f"<StaticTable {len(self)} keys>"

    def __len__(self) -> int:
        return self._shape.keys

    def __iter__(self) -> Iterator[str]:
        for start, end in pairwise(self._starts):
            for record in self._data[start + 1 : end].split(b"\n"):
                yield record[: record.index(b"\t")].decode()

    def __getitem__(self, key: str) -> str:
        if (name := self.lookup(key)) is None:
            raise KeyError(key)
        return name

    def __eq__(self, other: object) -> bool:
        if isinstance(other, StaticTable):
            return len(self) == len(other) and next(changes(self, other), None) is None
        return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]  # as for any mapping

    def lookup(self, key: str) -> str | None:
        """See Table.lookup."""
        octets = key.encode("utf-8", "surrogatepass")
        block = bisect_right(self._firsts, octets)
        if not block or b"\n" in octets:  # which could go on into the next record
            return None
        try:
            records = self._data[self._starts[block - 1] : self._starts[block] + 1]
        except ValueError:
            raise TableUnavailable("users: another table has taken its place") from None
        found = records.find(b"\n%b\t" % octets)
        if found < 0:
            return None
        found += len(octets) + 2
        return self._names[records[found : records.index(b"\n", found)]]

    def line(self, key: str) -> int:
        """The line on which `key`, which must be in the table, stands in the configuration."""
        octets = key.encode("utf-8", "surrogatepass")
        block = bisect_right(self._firsts, octets) - 1
        records = self._data[self._starts[block] : self._starts[block + 1] + 1]
        number = block * _BLOCK + records.count(b"\n", 0, records.index(b"\n%b\t" % octets))
        return self._lines(number, number + 1)[0]

    def _lines(self, first: int, end: int) -> "array[int]":
        lines = array("I")
        begin = self._shape.body + self._shape.firsts + (len(self._firsts) + 1) * lines.itemsize
        lines.frombytes(self._data[begin + first * lines.itemsize : begin + end * lines.itemsize])
        return lines

    def _number_from(self, first: bytes | None) -> tuple[int, int]:
        """Number and position of the first record whose key is not before `first`; where they end for None."""
        if first is None or not self._shape.keys:
            return self._shape.keys, max(0, self._shape.body - 1)
        block = max(0, bisect_right(self._firsts, first) - 1)
        position = self._starts[block]
        records = self._records(position, self._starts[block + 1])
        before = bisect_left([record[: record.index(b"\t")] for record in records], first)
        return block * _BLOCK + before, position + sum(len(record) + 1 for record in records[:before])

    def _records(self, start: int, end: int) -> list[bytes]:
        """The records between two positions."""
        return self._data[start + 1 : end].split(b"\n") if end > start else []


def changes(old: StaticTable, new: StaticTable) -> Iterator[KeyChange]:
    """All that differs, in no order. What is equal is compared as octets, piece by piece, and costs nearly nothing."""
    firsts = max(old, new, key=len)._firsts[:: _PIECE // _BLOCK]
    was, now = (0, 0), (0, 0)
    for border in (*firsts[1:], None):
        was_end, now_end = old._number_from(border), new._number_from(border)
        if old._data[was[1] : was_end[1]] != new._data[now[1] : now_end[1]]:
            before, after = old._records(was[1], was_end[1]), new._records(now[1], now_end[1])
            yield from _changes_in(
                _apart(before, old._lines(was[0], was_end[0]), after),
                _apart(after, new._lines(now[0], now_end[0]), before),
            )
        was, now = was_end, now_end


def _apart(records: list[bytes], lines: Sequence[int], other: list[bytes]) -> dict[str, tuple[str, int]]:
    """Key -> backend and line, of the records that are not among the others."""
    known = set(other)
    found = {}
    for record, line in zip(records, lines, strict=True):
        if record not in known:
            key, _, name = record.decode().partition("\t")
            found[key] = (name, line)
    return found


def _changes_in(before: dict[str, tuple[str, int]], after: dict[str, tuple[str, int]]) -> Iterator[KeyChange]:
    for key, (name, line) in after.items():
        yield KeyChange(key, before[key][0] if key in before else None, name, line)
    for key, (name, line) in before.items():
        if key not in after:
            yield KeyChange(key, name, None, line)


def write_table(
    records: list[bytes], lines: "array[int]", names: Iterable[str], write: Callable[[bytes], object]
) -> Shape:
    """Writes a table, see StaticTable, piece by piece: a million users at once would need as much memory again.

    records: `key TAB backend` of all, in any order, put into order here. lines: that of each. names: of the backends,
    all that the records have. Raises SameKey.
    """
    if any(map(gt, records, islice(records, 1, None))):  # else they are in order, as in many files
        order = sorted(range(len(records)), key=records.__getitem__)
        records[:] = map(records.__getitem__, order)
        lines = array("I", map(lines.__getitem__, order))
    firsts, starts = [], array("I", [0])
    has_domains = False
    for number in range(0, len(records), _BLOCK):
        block = b"\n" + b"\n".join(records[number : number + _BLOCK])
        following = records[number + _BLOCK : number + _BLOCK + 1]
        if _SAME_KEY.search(b"\n".join([block, *following])):
            raise SameKey
        write(block)
        has_domains = has_domains or (b"@" in block and _WITH_DOMAIN.search(block) is not None)
        firsts.append(block[1 : block.index(b"\t")])
        starts.append(starts[-1] + len(block))
    end, index = b"\n" if records else b"", b"\n".join(firsts)
    for part in (end, index, starts, lines):
        write(bytes(part))
    return Shape(len(records), starts[-1] + len(end), len(index), tuple(names), has_domains)
