# SPDX-License-Identifier: GPL-3.0-or-later
"""The table as one process serves it: a snapshot that all processes map, and the changes since in memory.

It changes under those who look things up in it, which is right as long as a new generation follows at once: a route
that is newer than its generation is looked up again at the commit point, and nobody keeps one that is older.
"""

import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from lmtp_proxy.routing.keys import FoldingError, KeyRules
from lmtp_proxy.routing.static_table import StaticTable
from lmtp_proxy.routing.table import TableUnavailable
from lmtp_proxy.table.history import Position, RouteChange
from lmtp_proxy.table.schema import MAX_ADDRESS, MAX_BACKEND
from lmtp_proxy.text import shown

_CONTROL = re.compile(r"[\0-\x1f\x7f]")
_SURROGATE = re.compile("[\ud800-\udfff]")

GRACE = 15.0
"""Seconds in which a user whose row was taken away is answered 451: their new row may come in a commit of its own."""


class UserMove(NamedTuple):
    """A user who is elsewhere now. before, after: a backend's name, None for nowhere."""

    user: str
    before: str | None
    after: str | None


def why_refused(address: str, backend: str, rules: KeyRules) -> str | None:
    """Why a row cannot be served as it is written; None of a good one.

    The checks of a table that was made otherwise, or by somebody who switched them off, let anything through.
    """
    for what, text, longest in (("", address, MAX_ADDRESS), ("has a backend that ", backend, MAX_BACKEND)):
        if not text or len(text) > longest:
            return f"{what}is {'too long' if text else 'empty'}"
        if _CONTROL.search(text):
            return f"{what}has a control character"
        if not text.isascii() and _SURROGATE.search(text):  # as the dialects bring it
            return f"{what}is no UTF-8"
    try:
        key = rules.table_key(address)
    except FoldingError as error:
        return str(error)
    if not key or address == "@":
        return "can never match"
    return None if key == address else f'must be written "{shown(key)}"'


def _meant(address: str, rules: KeyRules) -> str:
    """The key that is deferred for a row that cannot be served; "" for none."""
    if len(address) > MAX_ADDRESS or address == "@" or _SURROGATE.search(address):
        return ""
    try:
        return rules.table_key(address)
    except FoldingError:
        return ""


class ServedTable:
    """What is served.

    Args:
        base: the snapshot.
        position: of the snapshot.
        counts: how many of its keys are on each name.
        refused: address -> why, of rows that cannot be served.
        where: names the database.

    Attributes:
        position: of what is served; None if there was neither a database nor a copy of it: nobody has a route.
        trouble: why it cannot be brought up to date; "" if it can.
        refusals: rises when a row comes or goes that cannot be served.
    """

    def __init__(
        self,
        base: StaticTable,
        position: Position | None,
        counts: Mapping[str, int],
        refused: Mapping[str, str],
        where: str,
    ) -> None:
        self.base = base
        self.position = position
        self.where = where
        self.trouble = ""
        self.refusals = 0
        self.refused = dict(refused)
        self.counts = Counter(counts)
        self._changed: dict[str, str | None] = {}
        self._gone: dict[str, float] = {}
        self._with_domain = base.has_domains
        self._blocked: dict[str, dict[str, None]] = {}  # key -> the addresses that stand for it

    def __repr__(self) -> str:
        return f"<ServedTable {len(self)} keys at {self.position}, {len(self._changed)} changed>"

    def __len__(self) -> int:
        return sum(self.counts.values())

    @property
    def changed(self) -> int:
        """How many keys differ from the snapshot."""
        return len(self._changed)

    @property
    def has_domains(self) -> bool:
        """See Table."""
        return self._with_domain

    def block(self, rules: KeyRules) -> None:
        """Defer whom a refused row may be meant for. To be called once, when it is made."""
        for address in self.refused:
            if key := _meant(address, rules):
                self._blocked.setdefault(key, {})[address] = None

    def _refuse(self, address: str, why: str | None, rules: KeyRules) -> None:
        """Of a row that has changed: it cannot be served, or can again for None."""
        if self.refused.get(address) == why:
            return
        self.refusals += 1
        key = _meant(address, rules)
        if why is not None:
            self.refused[address] = why
            if key:
                self._blocked.setdefault(key, {})[address] = None
            return
        del self.refused[address]
        if key in self._blocked:
            self._blocked[key].pop(address, None)
            if not self._blocked[key]:
                del self._blocked[key]

    def find(self, key: str) -> str | None:
        """The name that `key` has, whatever it means."""
        try:
            return self._changed[key]
        except KeyError:
            return self.base.lookup(key)

    def lookup(self, key: str) -> str | None:
        """See Table.lookup."""
        if self.position is None:
            raise TableUnavailable(f"{self.where}: {self.trouble or 'was never read'}")
        if self._blocked and key in self._blocked:
            why = self.refused[next(iter(self._blocked[key]))]
            raise TableUnavailable(f"{self.where}: the row of {shown(key)} cannot be served: it {why}")
        if (name := self.find(key)) is None and key in self._gone:
            if time.monotonic() < self._gone[key]:
                raise TableUnavailable(f"{self.where}: the row of {shown(key)} was taken away just now")
            del self._gone[key]
        return name

    def apply(self, changes: Iterable[RouteChange], rules: KeyRules) -> list[UserMove]:
        """Serve by these, too. Returns who is elsewhere now; a new generation must follow before anybody is told.

        `position` is for the caller, when all is done.
        """
        before: dict[str, str | None] = {}
        for change in changes:
            key = change.address
            why = None if change.backend is None else why_refused(key, change.backend, rules)
            self._refuse(key, why, rules)
            if why is not None:
                continue
            was = self.find(key)
            before.setdefault(key, was)
            if was == change.backend:
                continue
            self._changed[key] = change.backend
            if was is not None:
                self.counts[was] -= 1
            if change.backend is not None:
                self.counts[change.backend] += 1
                self._with_domain = self._with_domain or "@" in key
                self._gone.pop(key, None)
            else:
                self.defer(key)
        return [UserMove(key, was, now) for key, was in before.items() if (now := self.find(key)) != was]

    def defer(self, key: str) -> None:
        """Their row was taken away just now."""
        self._gone[key] = time.monotonic() + GRACE

    def takes_the_place_of(self, former: "ServedTable", gone: Iterable[str]) -> None:
        """Who was deferred there goes on to be so, and who had a row there, of those who have `gone`."""
        now = time.monotonic()
        for key, until in former._gone.items():
            if until > now and self.find(key) is None:
                self._gone[key] = until
        for key in gone:
            if former.find(key) is not None and self.find(key) is None:
                self.defer(key)

    def overlay(self) -> dict[str, str | None]:
        """What differs from the snapshot; a copy."""
        return dict(self._changed)

    def settle(self) -> None:
        """What was taken away so far was so long ago: nobody is deferred for it."""
        self._gone.clear()

    def view(self, names: Collection[str]) -> "ServedView":
        """For one generation, which has backends of these names."""
        return ServedView(self, frozenset(names))


class ServedView:
    """A Table: what is served, as far as there are backends for it."""

    constant = True  # within one generation

    def __init__(self, table: ServedTable, names: frozenset[str]) -> None:
        self._table = table
        self._names = names

    def __repr__(self) -> str:
        return f"{self._table!r}"

    def __len__(self) -> int:
        return len(self._table)

    @property
    def has_domains(self) -> bool:
        """See Table."""
        return self._table.has_domains

    def lookup(self, key: str) -> str | None:
        """See Table.lookup."""
        name = self._table.lookup(key)
        if name is not None and name not in self._names:
            where = self._table.where
            raise TableUnavailable(f'{where}: {shown(key)} is on "{shown(name)}", and there is no such backend')
        return name
