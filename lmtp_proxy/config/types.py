# SPDX-License-Identifier: GPL-3.0-or-later
"""The type of each key: text in, value out, or a ValueError whose text says what to write instead.

`Section` applies them to one mapping of the file and collects what is wrong with its keys. Which keys there are, and
what they mean together, is not known here. A text that may be a password is never part of an error.
"""

import difflib
import grp
import ipaddress
import pwd
import re
from collections.abc import Callable, Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import TypeVar

from lmtp_proxy.config.values import FACILITIES, MaxRemoved
from lmtp_proxy.config.yaml_text import Mapping, Node, Note, Problem, Scalar, Sequence
from lmtp_proxy.text import shown

T = TypeVar("T")
D = TypeVar("D")

_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9_]([A-Za-z0-9_.-]{0,253}[A-Za-z0-9_])?\.?")
_MAIL_DOMAIN = re.compile(r"(?!.*\.\.)[\w-]([\w.-]{0,253}[\w-])?\.?")
_OCTAL = re.compile(r"0o?([0-7]{1,4})")
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_WHOLE = re.compile(r"[0-9]{1,18}")
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

MAX_ERRORS = 20  # of 100,000 users on a backend that is not there, this many are reported
UNIX_PATH_MAX = 107  # octets: sun_path has 108, the last one is the NUL (unix(7))

# Seconds. Postfix waits 300 for the reply to RCPT, 600 after the final dot, and each of these is one part of that.
_SECONDS_MAX: dict[str, tuple[int, str]] = {
    "connect": (300, "Postfix waits 300 s for a reply"),
    "greeting": (300, "Postfix waits 300 s for a reply"),
    "command": (300, "Postfix waits 300 s for a reply"),
    "data_write": (300, "Postfix gives up a write after 180 s"),
    "final_reply": (539, "every recipient has to be answered in less than 540 s from the client's final dot"),
    "client_idle": (86400, "a day"),
    "message": (86400, "a day"),
    "shutdown": (3600, "an hour"),
    "idle_timeout": (86400, "a day"),
    "restart_grace": (60, "a client waits meanwhile"),
    "hold_timeout": (290, "Postfix waits 300 s for the reply to RCPT"),
}
WORKERS_MAX = 64  # processes; more than one for each core are of no use
_LEVELS = ("debug", "info", "warning", "error")


def boolean(text: str) -> bool:
    try:
        return _BOOLEANS[text.lower()]
    except KeyError:
        raise ValueError(f"must be true or false, not {_quoted(text)}") from None


def whole(minimum: int, maximum: int) -> Callable[[str], int]:
    """A decimal number from `minimum` to `maximum`."""

    def convert(text: str) -> int:
        if not _WHOLE.fullmatch(text) or not minimum <= int(text) <= maximum:
            raise ValueError(f"must be a whole number from {minimum} to {maximum}, not {_quoted(text)}")
        return int(text)

    return convert


port = whole(1, 65535)


def max_removed(text: str) -> MaxRemoved:
    """A number of users, or `N%` of them."""
    number = text.removesuffix("%")
    if not _WHOLE.fullmatch(number) or (number != text and int(number) > 100):
        raise ValueError(f"must be a number of users, or a share of them such as 10%, not {_quoted(text)}")
    return MaxRemoved(int(number), percent=number != text)


def workers(text: str) -> int | None:
    """A number of processes, None for `auto`."""
    if text == "auto":
        return None
    if not _WHOLE.fullmatch(text) or not 1 <= int(text) <= WORKERS_MAX:
        raise ValueError(f"must be auto or a whole number from 1 to {WORKERS_MAX}, not {_quoted(text)}")
    return int(text)


def seconds(name: str) -> Callable[[str], float]:
    """A number of seconds, more than 0 and no more than the time called `name` may last."""
    maximum, reason = _SECONDS_MAX[name]

    def convert(text: str) -> float:
        if not _SECONDS.fullmatch(text):
            raise ValueError(f"must be a number of seconds such as 30 or 2.5, not {_quoted(text)}")
        value = float(text)
        if not 0 < value <= maximum:
            raise ValueError(f"must be more than 0 and at most {maximum} ({reason})")
        return value

    return convert


def seconds_or_none(name: str) -> Callable[[str], float]:
    """As `seconds`, or 0, which switches off what it is about."""
    convert = seconds(name)
    return lambda text: 0.0 if text == "0" else convert(text)


def permissions(text: str) -> int:
    """Octal and recognisable as such: 0660 or 0o660."""
    match = _OCTAL.fullmatch(text)
    if match is None:
        if re.fullmatch("[0-7]{3}", text):
            raise ValueError(f"must be octal with a leading 0: write 0{text}")
        raise ValueError(f"must be octal with a leading 0, such as 0660, not {_quoted(text)}")
    mode = int(match[1], 8)
    if mode > 0o777:
        raise ValueError(f"may have permission bits only (0777), not {_quoted(text)}")
    if mode == 0:
        raise ValueError("leaves the socket to nobody: write the mode it shall have, such as 0660")
    return mode


def absolute_path(text: str) -> str:
    if not text.startswith("/") or text.endswith("/"):
        raise ValueError(f"must be the absolute path of a file, not {_quoted(text)}")
    return text


def file_path(text: str) -> str:
    """Of a file or a directory, absolute or not."""
    if not text:
        raise ValueError("must be the path of a file or a directory, not an empty text")
    return text


def socket_path(text: str) -> str:
    path = absolute_path(text)
    if (octets := len(path.encode())) > UNIX_PATH_MAX:
        raise ValueError(f"is too long for a unix socket: {octets} octets, at most {UNIX_PATH_MAX} are possible")
    return path


def host(text: str) -> str:
    """An IP address, or a name that may be one in DNS or /etc/hosts. Nothing is looked up."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        # A name whose last part is a number is an address gone wrong, or 127.1, which resolvers take for one.
        if not _NAME.fullmatch(text) or text.rstrip(".").rpartition(".")[2].isdigit():
            raise ValueError(f"must be a host name or an IP address (without brackets), not {_quoted(text)}") from None
        if any(len(label) > 63 for label in text.split(".")):
            raise ValueError("has more than 63 characters between two dots, which no host name can have") from None
    return text


def hostname(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(f"must be a host name such as mx.example.org, not {_quoted(text)}")
    return text


def mail_domain(text: str) -> str:
    """As it stands in an address, in any spelling."""
    if not _MAIL_DOMAIN.fullmatch(text):
        raise ValueError(f"must be a domain such as example.org, not {_quoted(text)}")
    return text


def network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"must be a network such as 192.0.2.0/24 or 2001:db8::/32, not {_quoted(text)}") from None
    address = text.partition("/")[0]
    raise ValueError(f"has bits set behind its prefix: write {meant} for the network, {address} for the one address")


def account(text: str) -> str:
    """A user who exists, by name or number."""
    try:
        pwd.getpwnam(text)
    except KeyError:
        try:
            pwd.getpwuid(_account_number(text))
        except KeyError:
            raise ValueError(f"there is no user {_quoted(text)} on this system") from None
    return text


def owner(text: str) -> str:
    """A user name, or any number: a file can belong to a number that has no name."""
    try:
        pwd.getpwnam(text)
    except KeyError:
        if _account_number(text) < 0:
            raise ValueError(f"there is no user {_quoted(text)} on this system") from None
    return text


def group(text: str) -> str:
    """A group name, or any number."""
    try:
        grp.getgrnam(text)
    except KeyError:
        if _account_number(text) < 0:
            raise ValueError(f"there is no group {_quoted(text)} on this system") from None
    return text


def delimiter(text: str) -> str:
    """Each character starts a `+detail`; empty for none."""
    if not re.fullmatch(r"[!#-/:-?\[-`{-~]{0,8}", text) or len(set(text)) != len(text):
        raise ValueError(f'must be a few different marks such as "+" or "+-", or "" for none, not {_quoted(text)}')
    return text


def facility(text: str) -> str:
    return _one_of(text, tuple(FACILITIES))


def log_format(text: str) -> str:
    return _one_of(text, ("text", "json"))


def level(text: str) -> str:
    return _one_of(text, _LEVELS)


def credential(text: str) -> str:
    """A user name or password as AUTH sends it: any UTF-8 text in one piece. Errors do not show it."""
    if not text:
        raise ValueError("is empty")
    if re.search("[\0\r\n]", text):
        raise ValueError("must not hold a NUL or a line end")
    if re.search("[\ud800-\udfff]", text):
        raise ValueError("is not UTF-8 text")
    return text


def backend_name(text: str) -> str:
    """A name that can stand in a log line."""
    if not text or not text.isprintable() or re.search(r"[\s,\[\]]", text):
        raise ValueError("must be a name without blanks, commas and brackets")
    return text


class Section:
    """One mapping of the file, read key by key; every problem is named with the key's line and full name."""

    def __init__(self, node: Mapping, name: str, known: tuple[str, ...] | None, problems: list[Problem]) -> None:
        """known: the keys that may be here, None for free names. Unknown ones are refused at once."""
        self.entries = node.entries
        self.name = name
        self._line = node.line
        self._problems = problems
        if known is not None:
            for key in [key for key in self.entries if key not in known]:
                near = self.nearest(key, known)
                self.fail(key, "unknown key" + (f", did you mean {near}?" if near else ""))

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def fail(self, key: str, text: str, line: int = 0) -> None:
        """Notes that `key` is wrong, on `line`, else its own line, else that of the section."""
        line = line or (self.entries[key].line if key in self.entries else self._line)
        self._problems.append(Problem(line, f"{self.name}.{shown(key)}" if self.name else shown(key), text))

    def note(self, key: str, text: str) -> None:
        """Notes what is right and yet may not be what was meant, on the line of `key`, which is here."""
        name = f"{self.name}.{shown(key)}" if self.name else shown(key)
        self._problems.append(Note(self.entries[key].line, name, text))

    def ignore(self, keys: Iterable[str], why: str) -> None:
        """Notes of each of these, if it is here, that it is not looked at."""
        for key in keys:
            if key in self.entries:
                self.note(key, f"is ignored: {why}")

    def node(self, key: str) -> Node | None:
        """What is written for `key`, None if it is not here. `key:` with nothing behind it is a problem and None."""
        node = self.entries.get(key)
        if isinstance(node, Scalar) and node.missing:
            self.fail(key, 'has no value: write one ("" for an empty text) or take the line out')
            return None
        return node

    def value(self, key: str, convert: Callable[[str], T], default: D) -> T | D:
        """The value of `key`, `default` if it is not here or wrong."""
        node = self.node(key)
        return default if node is None else self.item(key, node, convert, default)

    def item(self, key: str, node: Node, convert: Callable[[str], T], default: D) -> T | D:
        """As `value`, for a node below `key`."""
        try:
            if not isinstance(node, Scalar):
                raise ValueError("must be a single value, not a mapping or a list")
            if convert is not credential and not node.text.isprintable():
                raise ValueError("holds a character that cannot be printed")
            return convert(node.text)
        except ValueError as error:
            self.fail(key, str(error), node.line)
            return default

    def values(self, key: str, convert: Callable[[str], T]) -> tuple[T, ...] | None:
        """Those of a list under `key`, or the one in its place, but for wrong ones; None if it is not here."""
        node = self.node(key)
        if node is None:
            return None
        nodes = node.items if isinstance(node, Sequence) else [node]
        values = [self.item(key, each, convert, None) for each in nodes]
        return tuple(value for value in values if value is not None)

    def section(self, key: str, known: tuple[str, ...] | None) -> "Section | None":
        """The mapping below `key`, empty if there is none; None if something else stands there."""
        node = self.entries.get(key)
        if node is None or (isinstance(node, Scalar) and node.missing):
            node = Mapping({}, node.line if node else self._line)
        if not isinstance(node, Mapping):
            self.fail(key, "must be a mapping: lines of `key: value`, indented")
            return None
        return Section(node, f"{self.name}.{shown(key)}" if self.name else shown(key), known, self._problems)

    def nearest(self, text: str, known: Iterable[str]) -> str | None:
        """The one of `known` that `text` may have been meant to be."""
        # A hint takes a millisecond, more if `text` is long; a table on the wrong place would need 100,000 of them.
        if len(text) > 64 or len(self._problems) > MAX_ERRORS:
            return None
        plain = {name.lower().replace("_", ""): name for name in known}
        wanted = text.lower().replace("_", "").replace("-", "")
        close = difflib.get_close_matches(wanted, plain, 1, 0.65)
        return plain[close[0]] if close else None


def _one_of(text: str, names: tuple[str, ...]) -> str:
    if text.lower() not in names:
        raise ValueError(f"must be one of {', '.join(names)}, not {_quoted(text)}")
    return text.lower()


def _account_number(text: str) -> int:
    """The number that `text` is, -1 if it is none; 2**32 - 1 means "no change" to chown(2)."""
    return int(text) if _WHOLE.fullmatch(text) and int(text) < 2**32 - 1 else -1


def _quoted(text: str) -> str:
    return f'"{shown(text, 60)}"'
