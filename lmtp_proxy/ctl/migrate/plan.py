# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan: from which backend to which, and the site's own commands. A YAML file -> a `Plan`, or all that is wrong.

A command is an argument list, and what is known of a user goes into it as data, never as text of a program. It runs
nothing and asks nobody whether the backends exist.
"""

import re
from collections.abc import Callable, Collection, Iterator
from collections.abc import Mapping as Mapping_
from dataclasses import dataclass, field, replace
from typing import Final

from lmtp_proxy.config.types import Section, absolute_path, backend_name, boolean, hostname, whole
from lmtp_proxy.config.yaml_text import Mapping, Node, Problem, Scalar, Sequence, parse, read_source
from lmtp_proxy.ctl.migrate import DEFAULT_JOURNAL
from lmtp_proxy.ctl.mta import OWN, Mta, mta_called
from lmtp_proxy.text import shown

PLACEHOLDERS: Final = ("user", "address", "from", "to", "now")
PARKS: Final = ("reject", "hold")
# Seconds that each may take if the plan does not say. A timeout never hits what is only slow: it is for what hangs.
HOOKS: Final = {
    "prove": 300.0,
    "sync": 6 * 3600.0,
    "final_sync": 3600.0,
    "block": 120.0,
    "redirect": 120.0,
    "unblock": 120.0,
    "verify": 3600.0,
    "on_done": 120.0,
    "on_failed": 120.0,
    "on_attention": 120.0,
}
MIRRORS: Final = ("sync", "final_sync")
OF_NO_USER: Final = {"prove": ("from", "to")}
"""What is run for no one user, and the placeholders that stand for something in it."""
KEYS: Final = (
    *("from", "to", "park", "domain", *HOOKS, "max_syncs", "sync_again_above", "on_uncertain", "requeue", "journal"),
    "drain_timeout",
)
HOOK_KEYS: Final = ("command", "timeout", "again", "attempts", "ok", "retries", "shell")
POSTFIX: Final = Mta()
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_MAX_ARGUMENT = 100_000  # octets; the kernel takes no more than 131,072


class PlanError(Exception):
    """The plan cannot be used.

    Attributes:
        errors: `FILE:LINE: key: what is wrong` each, in the order of the file.
    """

    def __init__(self, errors: tuple[str, ...]) -> None:
        super().__init__(errors)
        self.errors = errors

    def __str__(self) -> str:
        return "\n".join(self.errors)


@dataclass(frozen=True, slots=True)
class Hook:
    """One command of the site.

    Attributes:
        again: exit statuses that mean "run me once more", up to `attempts` runs in all.
        ok: those that mean success.
        retries: how often it is run again when it has failed, in whatever other way.
    """

    arguments: tuple[str, ...]
    timeout: float
    again: frozenset[int] = frozenset()
    attempts: int = 5
    shell: bool = False
    ok: frozenset[int] = frozenset({0})
    retries: int = 0
    mirror: bool = False
    """It deletes in the new store what the old one does not have."""

    @property
    def program(self) -> str:
        """What is looked for before anything begins."""
        return "/bin/sh" if self.shell else self.arguments[0]

    def filled(self, values: Mapping_[str, str]) -> tuple[str, ...]:
        """The argument list for one user. values: for each of PLACEHOLDERS.

        A shell gets them as $1, $2, ... in the order of PLACEHOLDERS, beside what `environment` has.
        """
        if self.shell:
            return ("/bin/sh", "-c", self.arguments[0], "migrate", *(values[name] for name in PLACEHOLDERS))
        return tuple(_filled(argument, values) for argument in self.arguments)


def environment(values: Mapping_[str, str]) -> dict[str, str]:
    """What each command finds in its environment beside what the runner has in its own."""
    return {f"MIGRATE_{name.upper()}": values[name] for name in PLACEHOLDERS}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is to do.

    Attributes:
        text: the file.
        hooks: those that it has, `sync` and `final_sync` always.
        requeue: the MTA that is to try deferred mail again; None for no.
    """

    path: str
    text: str = field(repr=False)
    old: str
    new: str
    park: str
    hooks: Mapping_[str, Hook] = field(repr=False)
    domain: str | None = None
    max_syncs: int = 3
    sync_again_above: float = 60.0
    go_on_if_uncertain: bool = False
    requeue: Mta | None = POSTFIX
    journal: str = DEFAULT_JOURNAL
    drain_timeout: float = 600.0

    def address(self, user: str) -> str:
        return f"{user}@{self.domain}" if self.domain and user and "@" not in user else user

    def values(self, user: str, now: str) -> dict[str, str]:
        """now: the backend that the user is on, as the command shall see it. Both are empty for OF_NO_USER."""
        return {"user": user, "address": self.address(user), "from": self.old, "to": self.new, "now": now}


def load_plan(path: str) -> Plan:
    """Reads the plan at `path`. Raises PlanError with all errors that it has."""
    source = read_source(path)
    if source.problem is not None:
        raise PlanError((f"{shown(path, 4096)}: {source.problem.text}",))
    try:
        return parse_plan(source.data.decode("utf-8"), path)
    except UnicodeDecodeError as error:
        line = source.data.count(b"\n", 0, error.start) + 1
        raise PlanError((f"{shown(path, 4096)}:{line}: is not UTF-8 text",)) from None


def parse_plan(text: str, path: str) -> Plan:
    """The plan with this text. Raises PlanError; path: for its messages."""
    document = parse(text.removeprefix("\ufeff"))
    found: list[Problem] = []
    plan = None if document.root is None else _plan(document.root, text, path, found)
    problems = sorted([*document.problems, *found], key=lambda problem: problem.line)
    if plan is None or problems:
        raise PlanError(tuple(_message(path, problem) for problem in problems))
    return plan


def _message(path: str, problem: Problem) -> str:
    text = problem.text
    if text.startswith("is empty:"):  # of a configuration
        text = "is empty: a plan needs from, to, park and sync"
    place = f"{shown(path, 4096)}:{problem.line}" if problem.line else shown(path, 4096)
    return f"{place}: {problem.key}: {text}" if problem.key else f"{place}: {text}"


def _plan(root: Mapping, text: str, path: str, problems: list[Problem]) -> Plan:
    """Only to be used if there are no problems."""
    top = Section(root, "", KEYS, problems)
    problems.extend(Problem(0, key, "is missing") for key in ("from", "to", "park", "sync") if key not in top)
    old, new = top.value("from", _backend, ""), top.value("to", _backend, "")
    if old and old == new:
        top.fail("to", "is the backend that users come from")
    hooks = {name: replace(hook, mirror=name in MIRRORS) for name in HOOKS if (hook := _hook(top, name)) is not None}
    if "final_sync" not in hooks and "final_sync" not in top and "sync" in hooks:
        hooks["final_sync"] = hooks["sync"]
    if "block" in top and "unblock" not in top:
        top.fail("block", "needs an `unblock`, or nobody who is put back gets at their mail")
    domain = top.value("domain", hostname, None)
    on_uncertain = top.value("on_uncertain", _one_of("fail", "go_on"), "fail")
    return Plan(
        path=path,
        text=text,
        old=old,
        new=new,
        park=top.value("park", _one_of(*PARKS), ""),
        hooks=hooks,
        domain=domain,
        max_syncs=top.value("max_syncs", whole(1, 100), 3),
        sync_again_above=top.value("sync_again_above", _seconds(86400), 60.0),
        go_on_if_uncertain=on_uncertain == "go_on",
        requeue=_requeue(top, domain),
        journal=top.value("journal", absolute_path, DEFAULT_JOURNAL),
        drain_timeout=top.value("drain_timeout", _seconds(86400), 600.0),
    )


def _hook(top: Section, name: str) -> Hook | None:
    node = top.node(name)
    if node is None:
        return None
    placeholders = OF_NO_USER.get(name, PLACEHOLDERS)
    if isinstance(node, Sequence):
        arguments = _arguments(top, name, node, placeholders)
        return Hook(arguments, HOOKS[name]) if arguments else None
    if not isinstance(node, Mapping):
        top.fail(name, 'must be an argument list, as [program, "{user}"], or a mapping with `command`')
        return None
    section = top.section(name, HOOK_KEYS)
    assert section is not None
    shell = section.value("shell", boolean, False)
    timeout = section.value("timeout", _seconds(7 * 86400), HOOKS[name])
    if not timeout:
        section.fail("timeout", "must be more than 0")
    attempts = section.value("attempts", whole(1, 100), 5)
    again, ok = frozenset(_exits(section, "again", 1)), frozenset(_exits(section, "ok", 0)) or frozenset({0})
    if both := again & ok:
        section.fail("again", f"has {min(both)}, which is `ok`")
    retries = section.value("retries", whole(0, 100), 0)
    if "command" not in section:
        section.fail("command", "is missing")
        return None
    command = section.node("command")
    if shell:
        text = _script(section, command)
        return Hook((text,), timeout, again, attempts, True, ok, retries) if text else None
    if command is None:
        return None
    if not isinstance(command, Sequence):
        section.fail("command", 'must be an argument list, as [program, "{user}"]; a text is for `shell: yes`')
        return None
    arguments = _arguments(section, "command", command, placeholders)
    return Hook(arguments, timeout, again, attempts, False, ok, retries) if arguments else None


def _arguments(
    section: Section, key: str, node: Sequence, placeholders: Collection[str], *, filled: bool = True
) -> tuple[str, ...]:
    texts = list(_texts(section, key, node))
    for text, line in texts if filled else ():
        for match in _BRACES.finditer(text):
            if match[0] not in ("{{", "}}") and match[1] not in placeholders:
                names = " ".join(f"{{{name}}}" for name in placeholders)
                here = " here" if match[1] in PLACEHOLDERS else ""
                what = f"is no placeholder{here}; there are {names}; a brace itself is {{{{ or }}}}"
                section.fail(key, f"{shown(match[0], 60)} {what}", line)
    if not node.items or (texts and not texts[0][0]):
        section.fail(key, "names no program", node.line)
        return ()
    if filled and texts and "{" in texts[0][0]:
        section.fail(key, "the program cannot depend on the user", node.line)
    return tuple(text for text, _ in texts)


def _texts(section: Section, key: str, node: Sequence) -> Iterator[tuple[str, int]]:
    for item in node.items:
        if not isinstance(item, Scalar):
            section.fail(key, "each argument must be a single text; what begins with { must be in quotes", item.line)
        elif len(item.text.encode("utf-8", "surrogatepass")) > _MAX_ARGUMENT:
            section.fail(key, "has an argument that is too long", item.line)
        else:
            yield item.text, item.line


def _script(section: Section, node: Node | None) -> str:
    if node is None:
        return ""
    if not isinstance(node, Scalar):
        section.fail("command", 'with `shell: yes` it must be one text; the user is "$1" or "$MIGRATE_USER" in it')
        return ""
    for name in PLACEHOLDERS:
        if f"{{{name}}}" in node.text.replace(f"${{{name}}}", ""):
            what = f'nothing is put into the text of a shell: write "$MIGRATE_{name.upper()}" for {{{name}}}'
            section.fail("command", what, node.line)
    return node.text


def _exits(section: Section, key: str, least: int) -> Iterator[int]:
    node = section.node(key)
    if node is None:
        return
    if not isinstance(node, Sequence):
        section.fail(key, f"must be a list of exit statuses, as {'[2]' if least else '[0, 111]'}")
        return
    for item in node.items:
        if (status := section.item(key, item, whole(least, 255), -1)) >= 0:
            yield status


def _requeue(top: Section, domain: str | None) -> Mta | None:
    """No, how postqueue is called, or which MTA it is."""
    node = top.node("requeue")
    if node is None:
        return POSTFIX
    if isinstance(node, Mapping):
        section = top.section("requeue", ("mta", "command"))
        assert section is not None
        return _mta(section, domain)
    if isinstance(node, Scalar) and node.text.lower() in ("no", "false", "off"):
        return None
    if not isinstance(node, Sequence):
        top.fail("requeue", "must be the argument list that calls postqueue, as [postqueue], or no, or have an `mta`")
        return None
    arguments = _arguments(top, "requeue", node, (), filled=False)
    called = arguments[:-1] if arguments[-1:] == ("-i",) else arguments  # it is added with each queue id
    return Mta(POSTFIX.name, called)


def _mta(section: Section, domain: str | None) -> Mta | None:
    node, called = section.node("mta"), section.node("command")
    arguments: tuple[str, ...] = ()
    if isinstance(called, Sequence):
        arguments = _arguments(section, "command", called, (), filled=False)
    elif called is not None:
        section.fail("command", "must be the argument list that calls the MTA's program, as [exim4, -C, FILE]")
    if isinstance(node, Sequence):
        if called is not None:
            section.fail("command", "is how an MTA's program is called, and `mta` is a command itself")
        return Mta(OWN, _arguments(section, "mta", node, ("user", "address")), domain)
    if "mta" not in section:
        section.fail("mta", "is missing")
    return section.value("mta", lambda text: mta_called(text, arguments or None), None)


def _filled(argument: str, values: Mapping_[str, str]) -> str:
    """In one pass: what stands in a value is never looked at."""
    return _BRACES.sub(lambda match: values[match[1]] if match[1] else match[0][0], argument)


def _backend(text: str) -> str:
    if text in PARKS:
        raise ValueError(f"must be a backend; {text} is for `park`")
    return backend_name(text)


def _one_of(*names: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in names:
            raise ValueError(f'must be {" or ".join(names)}, not "{shown(text, 60)}"')
        return text

    return convert


def _seconds(most: float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        if not _SECONDS.fullmatch(text) or float(text) > most:
            raise ValueError(f'must be a number of seconds from 0 to {most:g}, not "{shown(text, 60)}"')
        return float(text)

    return convert
