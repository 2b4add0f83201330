# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user has in a store, and how two stores differ: for same-state, same-mail and mail-state.

Whatever is not understood is Trouble: a verify must never pass because a tool or a server said nothing, or said it in
another way than it does today.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NoReturn, TextIO

SHOWN = 10  # differences
NAMED = 3  # messages of one folder that are only in one store
NUMBERS = ("messages", "uidnext", "uidvalidity", "unseen")
FIELDS = ("mailbox", "uid", "flags", "size.virtual", "hdr.message-id")
# doveadm 2.3 knows mail_location, 2.4 mail_driver and mail_path, and each ignores the others' without a word. Without
# the empty mail_path 2.4 leaves index files in the new mailbox.
OLD_STORE = ("-o", "mail_location=imapc:", "-o", "mail_driver=imapc", "-o", "mail_path=")
# doveadm(alice)<5784><qSeEOuZsDWuYFgAAg>: Info: imapc(192.0.2.10:143): Connected to 192.0.2.10:143 (local ...)
CONNECTED = re.compile(r": Info: imapc\((?P<server>.+?)\): Connected to ")
HARMLESS = re.compile(r"^\S+: (Info|Warning|Debug): ")
# Set by the store itself, for its own use.
NOT_THE_USERS = ("\\Recent", "$HasAttachment", "$HasNoAttachment")


class Trouble(Exception):
    """One line: it cannot be told whether the stores are the same."""


@dataclass
class Folder:
    """What is compared of a folder.

    numbers: what the store says of it, by name.
    messages: what is to be the same in both stores, as text (Message-ID, size, UID where they are kept), and the flags.
    """

    numbers: dict[str, int] = field(default_factory=dict)
    messages: list[tuple[str, frozenset[str]]] = field(default_factory=list)


def differences(old: Mapping[str, Folder], new: Mapping[str, Folder]) -> list[str]:
    """Lines; none if both have the same folders with the same messages. old, new: by name."""
    lines = []
    for where, one, other in (("old", old, new), ("new", new, old)):
        only = sorted(one.keys() - other.keys())
        lines += [f"{name}: only in the {where} store, with {messages(len(one[name].messages))}" for name in only]
    for name in sorted(old.keys() & new.keys()):
        lines += [f"{name}: {what}" for what in _of_folder(old[name], new[name])]
    return lines


def _of_folder(old: Folder, new: Folder) -> Iterator[str]:
    ours, theirs = _by_text(old), _by_text(new)
    for where, one, other in (("old", ours, theirs), ("new", theirs, ours)):
        left = {text: one[text].total() - other[text].total() for text in one}
        left = {text: number for text, number in left.items() if number > 0}
        if left:
            more = ", ..." if len(left) > NAMED else ""
            yield f"{sum(left.values()):,} only in the {where} store: {', '.join(sorted(left)[:NAMED])}{more}"
    for text in sorted(ours.keys() & theirs.keys()):
        if ours[text].total() == theirs[text].total() and ours[text] != theirs[text]:
            here, there = (
                ", ".join(sorted((a[text] - b[text]).elements())) for a, b in ((ours, theirs), (theirs, ours))
            )
            yield f"{text}: {here} in the old store, {there} in the new one"
    for name in old.numbers:
        if old.numbers[name] != new.numbers[name]:
            yield f"{name} is {old.numbers[name]} in the old store, {new.numbers[name]} in the new one"


def _by_text(folder: Folder) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for text, flags in folder.messages:
        found[text][" ".join(sorted(flags)) or "no flags"] += 1
    return found


def messages(number: int) -> str:
    return f"{number:,} message{'' if number == 1 else 's'}"


def compared(old: Mapping[str, Folder], new: Mapping[str, Folder]) -> int:
    """Says how they differ, and gives the exit status."""
    lines = differences(old, new)
    for line in lines[:SHOWN]:
        say(line)
    if len(lines) > SHOWN:
        say(f"and {len(lines) - SHOWN:,} more")
    if not lines:
        folders = f"{len(old):,} folder{'' if len(old) == 1 else 's'}"
        say(f"{folders}, {messages(sum(len(each.messages) for each in old.values()))}, the same in both stores")
    return 1 if lines else 0


def say(line: str, file: TextIO | None = None) -> None:
    """One line, whatever is in it."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)
    file = file or sys.stdout
    encoding = file.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=file)


def run(main: Callable[[list[str]], int]) -> None:
    """Runs a script: 0 the same, 1 not the same, 2 it cannot be told, 64 wrong arguments."""
    name = os.path.basename(sys.argv[0])
    try:
        sys.exit(main(sys.argv[1:]))
    except (Trouble, OSError, ValueError) as error:
        for line in str(error).splitlines() or [repr(error)]:
            say(f"{name}: {line}", sys.stderr)
        sys.exit(2)


def usage(text: str) -> NoReturn:
    print(f"usage: {text}", file=sys.stderr)
    sys.exit(64)


# --- by doveadm ------------------------------------------------------------------------------------------------------


def by_doveadm(user: str, server: str | None = None) -> dict[str, Folder]:
    """Folders by name, as doveadm tells of them: of the store at `server` (HOST:PORT), over IMAP, or else its own."""
    with ThreadPoolExecutor(2) as pool:
        numbers = pool.submit(_doveadm, server, "mailbox", "status", "-u", user, " ".join(NUMBERS), "*")
        mails = pool.submit(_doveadm, server, "fetch", "-u", user, " ".join(FIELDS), "mailbox", "*")
        told, shown = numbers.result(), mails.result()
    folders: dict[str, Folder] = {}
    expected = {}
    for row in told:
        if row.keys() != {"mailbox", *NUMBERS} or row["mailbox"] in folders:
            raise Trouble(f"doveadm mailbox status: not understood: {row!r}")
        folders[row["mailbox"]] = Folder({name: _number(row[name]) for name in ("uidnext", "uidvalidity")})
        expected[row["mailbox"]] = (_number(row["messages"]), _number(row["unseen"]))
    for row in shown:
        if row.keys() != set(FIELDS) or row["mailbox"] not in folders:
            raise Trouble(f"doveadm fetch: not understood: {row!r}")
        flags = frozenset(row["flags"].split()).difference(NOT_THE_USERS)
        identity = row["hdr.message-id"] or "(no Message-ID)"
        text = f"{identity} ({_number(row['size.virtual'])} octets, UID {_number(row['uid'])})"
        folders[row["mailbox"]].messages.append((text, flags))
    for name, folder in folders.items():
        found = len(folder.messages), unseen(folder)
        if found != expected[name]:
            where = f"at {server}" if server else "of doveadm"
            said = "{:,} messages, {:,} unseen".format
            raise Trouble(f"the store {where} has {said(*expected[name])}, in {name} and shows {said(*found)}")
    if server and "INBOX" not in folders:
        raise Trouble(f"the store at {server} shows no INBOX of {user}")
    return folders


def unseen(folder: Folder) -> int:
    return sum("\\Seen" not in flags for _, flags in folder.messages)


def _number(text: str) -> int:
    if not re.fullmatch("[0-9]+", text):
        raise Trouble(f"doveadm: {text!r} is no number")
    return int(text)


def _doveadm(server: str | None, *arguments: str) -> list[dict[str, str]]:
    """The rows that it prints, each a dict. Raises Trouble unless it asked whom it was to ask."""
    config = os.environ.get("DOVEADM_CONFIG", "/etc/dovecot/migration.conf")
    command = ["doveadm", "-f", "json", "-c", config, *(OLD_STORE if server else ()), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="surrogateescape", check=False)
    what = " ".join(["doveadm", *arguments[: 2 if arguments[0] == "mailbox" else 1]])
    said = done.stderr.splitlines()
    asked = {match["server"] for match in map(CONNECTED.search, said) if match}
    odd = [line for line in said if not HARMLESS.match(line)]
    if done.returncode != 0 or odd:
        raise Trouble("\n".join([f"{what}: exit {done.returncode}", *(odd or said)]))
    if server is None and asked:
        raise Trouble(f"{what}: the new store is to be read, and it asked {', '.join(sorted(asked))}")
    if server is not None and asked != {server}:
        whom = ", ".join(sorted(asked)) or "nobody, so it read the new store: does this doveadm know `mail_driver`?"
        raise Trouble(f"{what}: {server} is to be asked, and it asked {whom}")
    try:
        rows = json.loads(done.stdout)
    except ValueError as error:
        raise Trouble(f"{what}: does not print JSON: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Trouble(f"{what}: not understood: {done.stdout[:200]!r}")
    if not all(isinstance(value, str) for row in rows for value in row.values()):
        raise Trouble(f"{what}: not understood: {done.stdout[:200]!r}")
    return rows


def same_for_everybody(config: str) -> str | None:
    """The `imapc_user` of a configuration, if it names one user for all."""
    with open(config, encoding="utf-8", errors="replace") as file:
        text = re.sub(r"(?m)^\s*#.*$", "", file.read())
    found = re.findall(r"(?m)^\s*imapc_user\s*=[ \t]*(\S+)", text)
    for block in re.findall(r"(?ms)^\s*imapc\s*\{(.*?)^\s*\}", text):
        found += re.findall(r"(?m)^\s*user\s*=[ \t]*(\S+)", block)
    return next((name for name in found if "%" not in name), None)


def lines_of(folders: Mapping[str, Folder]) -> list[str]:
    """A line a folder."""
    lines = []
    for name in sorted(folders):
        folder = folders[name]
        numbers = {"messages": len(folder.messages), **folder.numbers, "unseen": unseen(folder)}
        lines.append(" ".join([name, *(f"{key}={value}" for key, value in numbers.items())]))
    return lines
