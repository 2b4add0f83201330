# SPDX-License-Identifier: GPL-3.0-or-later
"""The files that lmtp-proxyctl reads by itself: of the configuration what leads to the proxy, a list of users, a log.

The configuration is read up to the end of its `config:` section and not checked: what runs is another matter than what
the file says now. It changes nothing and asks no proxy.
"""

import sys
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from lmtp_proxy.ctl.arguments import WRONG_ARGUMENTS
from lmtp_proxy.ctl.client import Answer, ControlError

if TYPE_CHECKING:
    import yaml


class WrongList(ControlError):
    """A list that is none: as a wrong argument is."""

    status = WRONG_ARGUMENTS


_MAX_LIST = 64 * 2**20  # octets


def control_socket(path: str) -> str:
    """The control socket that the configuration at `path` names. Raises ControlError."""
    found = _settings(path).get(("config", "control", "socket"))
    if not found:
        what = "config.control: is not set, so the running proxy has no control socket"
        raise ControlError(f"{path}: {what}; set it (see etc/lmtp-proxy.yml) and restart")
    return found


def uncertain_log(path: str) -> str | None:
    """The log of uncertain deliveries that the configuration at `path` names. Raises ControlError."""
    return _settings(path).get(("config", "uncertain_log"))


def setting(path: str, *keys: str) -> str | None:
    """Any one value of the `config:` section. Raises ControlError."""
    return _settings(path).get(keys)


def _settings(path: str) -> Mapping[tuple[str, ...], str]:
    """All scalars of the `config:` section by their keys; those in lists under nonsense."""
    import yaml

    hint = "name the configuration with -c FILE, or the control socket with --socket PATH"
    try:
        with open(path, "rb") as file:
            # In C: a `users:` section that stands first has to be read, too.
            loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
            return dict(_scalars(yaml.parse(file, Loader=loader)))
    except _Folded:
        return dict(_unfolded(path))
    except OSError as error:
        raise ControlError(f"{path}: cannot be read: {error.strerror}; {hint}") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ControlError(f"{path}{line}: is not YAML; mend it, or name the control socket with --socket") from None


class _Folded(Exception):
    """Some of the section stands elsewhere, by an alias or by <<."""


def _unfolded(path: str) -> "Iterator[tuple[tuple[str, ...], str]]":
    """As `_scalars`, with all of YAML."""
    from lmtp_proxy.config.yaml_text import Mapping, Node, Scalar, read_document

    def below(keys: tuple[str, ...], node: Node) -> "Iterator[tuple[tuple[str, ...], str]]":
        if isinstance(node, Scalar):
            yield keys, node.text
        elif isinstance(node, Mapping):
            for key, value in node.entries.items():
                yield from below((*keys, key), value)

    root = read_document(path).root
    if root is not None and "config" in root.entries:
        yield from below(("config",), root.entries["config"])


def _scalars(events: "Iterator[yaml.Event]") -> Iterator[tuple[tuple[str, ...], str]]:
    import yaml

    anchors: dict[str, str] = {}
    # One per open mapping; None: a key comes next. A list counts as a mapping: no list leads to a wanted key.
    keys: list[str | None] = []
    for event in events:
        text = None
        if isinstance(event, yaml.ScalarEvent):
            text = event.value
            if event.anchor:
                anchors[event.anchor] = text
        elif isinstance(event, yaml.AliasEvent):
            text = anchors.get(event.anchor or "")
            if text is None and keys[:1] == ["config"]:
                raise _Folded
            text = text or ""
        elif isinstance(event, yaml.CollectionStartEvent):
            keys.append(None)
            continue
        elif isinstance(event, yaml.CollectionEndEvent):
            keys.pop()
            if keys == ["config"]:
                return
        else:
            continue
        if not keys:
            continue
        if text is not None and keys[-1] is None:
            if text == "<<" and keys[0] in (None, "config"):
                raise _Folded
            keys[-1] = text
            continue
        if text is not None and keys[0] == "config":
            yield tuple(key or "" for key in keys), text
        keys[-1] = None


def users_in(path: str) -> list[str]:
    """The users in a list, one a line; `-` is stdin. Raises ControlError with the line of anything else."""
    return [user for _, user in numbered_users(path)]


def numbered_users(path: str) -> list[tuple[str, str]]:
    """The same with where each stands, `list:3`."""
    name = "stdin" if path == "-" else path
    try:
        if path == "-":
            if sys.stdin is None:  # closed by whoever began us
                raise WrongList(f"{name}: is closed; nothing was changed")
            data = sys.stdin.buffer.read(_MAX_LIST + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(_MAX_LIST + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ControlError(f"{name}: cannot be read: {error.strerror}; nothing was changed") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise WrongList(f"{name}:{line}: is not UTF-8 text; nothing was changed") from None
    if len(data) > _MAX_LIST:
        raise ControlError(f"{name}: is larger than {_MAX_LIST} octets; nothing was changed")
    users: list[tuple[str, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        comment = next((place for place, word in enumerate(words) if word.startswith("#")), len(words))
        if comment > 1:
            raise WrongList(f"{name}:{number}: write one user a line, and nothing else; nothing was changed")
        if not all(map(str.isprintable, words[:comment])):
            raise WrongList(f"{name}:{number}: holds a character that no address can; nothing was changed")
        users += [(f"{name}:{number}", word) for word in words[:comment]]
    if not users:
        raise WrongList(f"{name}: names no user; nothing was changed")
    return users


def address_in(path: str) -> str:
    """The one address in a list. Raises ControlError."""
    found = users_in(path)
    if len(found) > 1:
        raise WrongList(f"{'stdin' if path == '-' else path}: names {len(found):,} addresses; name one")
    return found[0]


def uncertain_records(log: str | None, remembered: list[Answer] | None) -> tuple[list[Answer], list[str]]:
    """The uncertain deliveries in the file `log`, and warnings. remembered: those that the process knows, if it runs.

    They stand in where there is no log, or it cannot be read. Raises ControlError if there are neither.
    """
    from lmtp_proxy.delivery.uncertain import read_log

    instead = "what follows is what the running process remembers"
    if log is None:
        return remembered or [], [f"config.uncertain_log is not set: {instead}"]
    try:
        records, bad = read_log(log)
    except FileNotFoundError:  # it is made with the first record
        return remembered or [], []
    except OSError as error:
        if remembered is None:
            raise ControlError(f"{log}: cannot be read: {error.strerror}; run as root") from None
        return remembered, [f"{log}: cannot be read: {error.strerror}: {instead}"]
    warnings = [f"{log}: lines that are no record: {bad}"] if bad else []
    return [Answer(record.to_json(), log) for record in records], warnings


def concerns(record: Answer, users: Collection[str]) -> bool:
    """Whether the record of an uncertain delivery is about one of these users, in any form of their names."""
    from lmtp_proxy.routing.keys import KeyRules

    named = {KeyRules().table_key(user) for user in users}
    for address in (record.text("user"), record.text("recipient").strip("<>")):
        local_part, _, domain = address.rpartition("@") if "@" in address else (address, "", "")
        if not named.isdisjoint(KeyRules().forms(local_part, domain)):
            return True
    return False
