# SPDX-License-Identifier: GPL-3.0-or-later
"""The files beside the configuration in which users stand: `config.users_file` -> paths, and one digest over all.

A tool that asks what is on the disk needs this and no YAML. What stands in the files is not looked at.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence

_ENDINGS = (".yml", ".users")


class UsersFileError(Exception):
    """`entry` of the list cannot be used; the text says why."""

    def __init__(self, entry: str, text: str) -> None:
        super().__init__(text)
        self.entry = entry


def listed(entries: Sequence[str], main: str) -> tuple[str, ...]:
    """The files that are meant, each once, where it comes first. Raises UsersFileError.

    Of a directory those whose names end with .yml or .users and do not begin with a dot, by name. The configuration
    itself is left out there, and an error as an entry. A file that is not there is left to whoever opens it.

    Args:
        entries: absolute paths of files and directories.
        main: of the configuration.
    """
    found: dict[object, str] = {}
    own = _identity(main)
    for entry in entries:
        if not os.path.isdir(entry):
            if _identity(entry) == own:
                raise UsersFileError(entry, "is this configuration, whose users count in any case: take it out")
            found.setdefault(_identity(entry), entry)
            continue
        try:
            names = sorted(os.listdir(entry))
        except OSError as error:
            raise UsersFileError(entry, f"cannot be read: {error.strerror}") from error
        for name in names:
            path = os.path.join(entry, name)
            if name.endswith(_ENDINGS) and not name.startswith(".") and _identity(path) != own:
                found.setdefault(_identity(path), path)
    return tuple(found.values())


def _identity(path: str) -> object:
    """The same for all names of a file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return os.path.abspath(path)
    return status.st_dev, status.st_ino


def for_new_users(entries: Sequence[str]) -> str | None:
    """The last entry that is no directory: what stands in one is others' to write. None if there is none."""
    return next((entry for entry in reversed(entries) if not os.path.isdir(entry)), None)


def digest_of(files: Iterable[tuple[str, str]]) -> str:
    """SHA-256 in hex over the path and SHA-256 of each file, the configuration first; its own if it is the only one.

    It is what `sha256sum FILE... | sha256sum` says.
    """
    (_, first), *others = files = list(files)
    if not others:
        return first
    lines = "".join(f"{digest}  {path}\n" for path, digest in files)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def digest_on_disk(main: str, entries: Sequence[str]) -> str | None:
    """`digest_of` all files as they are now, None if one cannot be read."""
    try:
        return digest_of([(path, _digest(path)) for path in (main, *listed(entries, main))])
    except (OSError, UsersFileError):
        return None


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
