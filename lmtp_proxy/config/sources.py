# SPDX-License-Identifier: GPL-3.0-or-later
"""All files of one configuration, and the users in them: the configuration itself, and what `config.users_file` names.

Each file is read once, so what is found in them and what is said of them agree, whoever writes meanwhile.
"""

import os
from collections import Counter
from collections.abc import Mapping as Readable
from collections.abc import Set
from functools import partial
from typing import NamedTuple, TypeAlias

from lmtp_proxy.config import types as config_keys
from lmtp_proxy.config.types import Section
from lmtp_proxy.config.users import Doubt, FlatUsers, UsersPart, has_section, read_users
from lmtp_proxy.config.users_files import UsersFileError, listed
from lmtp_proxy.config.values import UsersFile
from lmtp_proxy.config.yaml_text import MAX_OCTETS, Document, Mapping, Problem, Source, read_source
from lmtp_proxy.routing.keys import KeyRules
from lmtp_proxy.routing.static_table import StaticTable
from lmtp_proxy.text import shown

Contents: TypeAlias = Readable[str, bytes]
"""Path without links -> octets."""

Problems: TypeAlias = dict[str, list[Problem]]
"""By the path of the file, in order."""


class LargeConfig(Exception):
    """It is larger than it may be for whoever reads it."""


class Files:
    """The octets of the files.

    Args:
        path: of the configuration.
        instead, at_most: see load_config.

    Attributes:
        name: the path as given.
        path: the same, absolute.
        main: the configuration.
    """

    def __init__(self, path: str, instead: Contents, at_most: int | None) -> None:
        self.name = path
        self.path = os.path.abspath(path)
        self._instead = instead
        self._at_most = at_most
        self._octets = 0
        self._sources: dict[str, Source] = {}
        self._listings: dict[tuple[str, ...], tuple[str, ...]] = {}
        self.main = self._read(path)

    def of_users(self, entries: tuple[str, ...]) -> list[tuple[str, Source]]:
        """Those that are meant, with their paths, in order. Raises UsersFileError, LargeConfig.

        Args:
            entries: `config.users_file`, absolute.
        """
        paths = self._listings[entries] = self._listings.get(entries) or listed(entries, self.path)
        return [(path, self._sources.get(path) or self._read(path)) for path in paths]

    def are_all(self) -> bool:
        """Whether the directories hold the same files still."""
        try:
            return all(listed(entries, self.path) == paths for entries, paths in self._listings.items())
        except UsersFileError:
            return False

    def _read(self, path: str) -> Source:
        octets = self._instead.get(os.path.realpath(path)) if self._instead else None
        source = read_source(path) if octets is None else Source(octets, 0.0)
        self._octets += len(source.data)
        if self._at_most is not None and self._octets > self._at_most:
            raise LargeConfig
        if self._octets > MAX_OCTETS:
            source = Source(b"", 0.0, Problem(0, "", f"is too much: all files may have {MAX_OCTETS} octets together"))
        self._sources[path] = source
        return source


class AllUsers(NamedTuple):
    """Who is where, and where that stands.

    Attributes:
        entries: `config.users_file`, absolute; None if it is not there.
        counts: how many are on each name.
        files, modified: as for Config.
    """

    entries: tuple[str, ...] | None
    table: StaticTable
    counts: Counter[str]
    files: tuple[UsersFile, ...]
    modified: float


class UsersReader:
    """Reads the users.

    Args:
        store: see load_config.
        flat: where those of the configuration are; Doubt is raised if they are not.
        lines: other files may be read as plain lines.

    Attributes:
        problems: what is wrong with the other files.
    """

    def __init__(self, files: Files, store: int | None, flat: FlatUsers | None, *, lines: bool = True) -> None:
        self.files = files
        self.flat = flat
        self.problems: Problems = {}
        self._store = store
        self._lines = lines

    def read(
        self, document: Document, own: Section | None, config: Section, names: Set[str] | None, rules: KeyRules
    ) -> AllUsers:
        """Raises Doubt, SameKey and LargeConfig.

        Args:
            document, config: the configuration, and that section of it.
            own: its section of users.
            names: see read_users.
        """
        files = self.files
        directory = os.path.dirname(files.path)
        written = config.values("users_file", config_keys.file_path)
        entries = tuple(os.path.normpath(os.path.join(directory, entry)) for entry in written or ())
        try:
            others = files.of_users(entries)
        except UsersFileError as error:
            config.fail("users_file", f"{shown(error.entry, 4096)} {error}")
            others = []
        for entry in dict.fromkeys(entries):
            if os.path.isdir(entry) and not any(path.startswith(os.path.join(entry, "")) for path, _ in others):
                config.note("users_file", f"{shown(entry, 4096)} holds no file that ends with .yml or .users")
            elif entries.count(entry) > 1:
                config.note("users_file", f"{shown(entry, 4096)} is named twice, and read once")
        parts = [UsersPart(shown(files.name, 4096), 0, self.flat, partial(self._own_section, own))]
        found = [UsersFile(files.path, document.digest, 0)]
        before = _count_lines(files.main) if others else 0
        for path, source in others:
            parts.append(self._part(path, before, source))
            found.append(UsersFile(path, source.digest, before))
            before += _count_lines(source)
        table, counts = read_users(self._store, parts, names, rules)
        modified = max(document.modified, *(source.modified for _, source in others), 0.0)
        return AllUsers(None if written is None else entries, table, counts, tuple(found), modified)

    def read_one(self, path: str, names: Set[str], rules: KeyRules) -> tuple[StaticTable, Counter[str]]:
        """The users of the file at `path` alone, none of the configuration's. Raises SameKey."""
        return read_users(None, [self._part(path, 0, read_source(path))], names, rules)

    def _own_section(self, section: Section | None) -> Section | None:
        if self.flat:
            raise Doubt
        return section

    def _part(self, path: str, before: int, source: Source) -> UsersPart:
        """The users in one of the other files."""
        flat = None
        try:
            if self._lines:
                flat = FlatUsers(source.data, alone=True)
                flat.check(source.document(flat.rest, users=True))
        except Doubt:
            flat = None
        problems = self.problems.setdefault(path, [])
        return UsersPart(shown(path, 4096), before, flat, partial(_section, source, problems))


def _count_lines(source: Source) -> int:
    return source.data.count(b"\n") + 1


def _section(source: Source, problems: list[Problem]) -> Section | None:
    """The users in a file of users alone: all that is in it, or what is under `users:` there.

    Args:
        problems: to which those of the file are added.
    """
    document = source.document(users=True)
    problems += document.problems
    root = document.root or Mapping({}, 1)
    if has_section(root):
        return Section(root, "", ("users",), problems).section("users", None)
    return Section(root, "", None, problems)
