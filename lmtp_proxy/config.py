# SPDX-License-Identifier: GPL-3.0-or-later
"""A YAML file -> a `Config`, or a ConfigError with everything that is wrong with it.

Which keys there are, their defaults, and what they mean together. It reads the file and the password files that it
names, asks the system for users and groups, and does nothing else: no sockets, no log, no gevent, so it may run in a
thread beside the deliveries.
"""

import os
import socket
import stat
from collections import Counter
from collections.abc import Callable, Set
from dataclasses import fields, replace
from functools import partial
from typing import TypeAlias

from lmtp_proxy import config_keys, config_listeners
from lmtp_proxy.config_keys import MAX_ERRORS, Section
from lmtp_proxy.config_users import read_users, undefined
from lmtp_proxy.config_values import (
    RESERVED,
    Address,
    Backend,
    Config,
    Control,
    Log,
    TcpAddress,
    Timeouts,
    UnixAddress,
    is_own_listener,
)
from lmtp_proxy.flat_users import Doubt, FlatUsers
from lmtp_proxy.keys import KeyRules
from lmtp_proxy.tables.static import StaticTable
from lmtp_proxy.yaml_text import Document, Mapping, Problem, Source, read_source, shown

__all__ = [
    "KEYS",
    "RESERVED",
    "Address",
    "Backend",
    "Config",
    "ConfigError",
    "Control",
    "Log",
    "TcpAddress",
    "Timeouts",
    "UnixAddress",
    "load_config",
]

_TIMEOUTS = tuple(field.name for field in fields(Timeouts))
_PROXY_TIMEOUTS = ("client_idle", "shutdown")  # not a matter of any one backend

# Section -> its keys. Anything else is refused, so that no key is believed to work that does not.
KEYS: dict[str, tuple[str, ...]] = {
    "": ("config", "backends", "users"),
    "config": (
        *("socket", "owner", "group", "permissions", "ignoreDomain", "fallback_backend", "pid", "allow", "run_as"),
        *("hostname", "case_sensitive", "recipient_delimiter", "max_clients", "max_recipients", "max_message_size"),
        *("smtputf8", "timeouts", "hold_timeout", "hold_limit", "log", "control", "metrics", "uncertain_log"),
        "workers",
    ),
    "config.control": ("socket", "owner", "group", "permissions"),
    "config.timeouts": _TIMEOUTS,
    "config.log": ("syslog", "facility", "level"),
    "backends.*": (
        *("socket", "host", "port", "user", "password", "password_file"),
        *("max_connections", "idle_timeout", "timeouts"),
    ),
    "backends.*.timeouts": tuple(name for name in _TIMEOUTS if name not in _PROXY_TIMEOUTS),
}

_PASSWORD_MAX = 4096  # octets; a larger file is not a password


class ConfigError(Exception):
    """The configuration cannot be used. errors: `FILE:LINE: key: what is wrong` each, in the order of the file."""

    def __init__(self, errors: tuple[str, ...]) -> None:
        super().__init__(errors)
        self.errors = errors

    def __str__(self) -> str:
        return "\n".join(self.errors)


def load_config(path: str, store: int | None = None) -> Config:
    """Reads the configuration file at `path`. Raises ConfigError with all errors that it has.

    store: descriptor of a file for the table of users, which goes to the Config; None to have it in memory.
    """
    source = read_source(path)
    try:
        config, problems = _read(source, os.path.abspath(path), store, FlatUsers(source.data))
    except Doubt:
        config, problems = _read(source, os.path.abspath(path), store, None)
    if config is None or problems:
        raise ConfigError(_messages(path, problems))
    return config


def _read(source: Source, path: str, store: int | None, flat: FlatUsers | None) -> tuple[Config | None, list[Problem]]:
    """The Config, and all that is wrong with it. flat: where the users are. Raises Doubt if they are not."""
    document = source.document(flat.rest if flat else None)
    if flat:
        flat.check(document)
    if document.root is None:
        return None, document.problems
    found: list[Problem] = []
    config = _config(document, document.root, path, found, partial(read_users, store, flat))
    # A value that is wrong as YAML already (a tag, an alias of nothing) is named once.
    named = {(line, key) for line, key, _ in document.problems}
    return config, document.problems + [problem for problem in found if (problem.line, problem.key) not in named]


def _messages(path: str, problems: list[Problem]) -> tuple[str, ...]:
    name = shown(path, 4096)
    lines = []
    for line, key, text in sorted(problems, key=lambda problem: problem.line)[:MAX_ERRORS]:
        place = f"{name}:{line}" if line else name
        lines.append(f"{place}: {key}: {text}" if key else f"{place}: {text}")
    if len(problems) > MAX_ERRORS:
        lines.append(f"{name}: and {len(problems) - MAX_ERRORS} more errors")
    return tuple(lines)


_ReadUsers: TypeAlias = Callable[[Section | None, Set[str] | None, KeyRules], tuple[StaticTable, Counter[str]]]


def _config(document: Document, root: Mapping, path: str, problems: list[Problem], users_of: _ReadUsers) -> Config:
    """The Config that `root`, the root of `document`, describes. Only to be used when `problems` stays empty."""
    top = Section(root, "", KEYS[""], problems)
    section = top.section("config", KEYS["config"]) or Section(Mapping({}, root.line), "config", None, [])
    listener = config_listeners.listener(section)
    timeouts = _timeouts(section, "config.timeouts", Timeouts())
    backends = _backends(top.section("backends", None), listener, timeouts, os.path.dirname(path))
    names = None if backends is None else backends.keys() | RESERVED
    rules = KeyRules(
        case_sensitive=section.value("case_sensitive", config_keys.boolean, False),
        recipient_delimiter=section.value("recipient_delimiter", config_keys.delimiter, "+"),
        ignore_domain=section.value("ignoreDomain", config_keys.boolean, False),
    )
    fallback = section.value("fallback_backend", str, None)
    if fallback is not None and names is not None and fallback not in names:
        section.fail("fallback_backend", undefined(section, fallback, names))
    limits = [(section.value("max_clients", config_keys.whole(1, 100_000), 1000), "max_clients")]
    limits += [(each.max_connections, f"max_connections of {name}") for name, each in (backends or {}).items()]
    users, counts = users_of(top.section("users", None), names, rules)
    return Config(
        path=path,
        socket=listener or UnixAddress(""),
        owner=section.value("owner", config_keys.owner, None),
        group=section.value("group", config_keys.group, None),
        permissions=section.value("permissions", config_keys.permissions, None),
        ignore_domain=rules.ignore_domain,
        fallback_backend=fallback,
        pid=section.value("pid", config_keys.absolute_path, "/var/run/lmtp-proxy.pid"),
        allow=config_listeners.allow(section),
        run_as=section.value("run_as", config_keys.account, None),
        hostname=section.value("hostname", config_keys.hostname, _own_hostname()),
        case_sensitive=rules.case_sensitive,
        recipient_delimiter=rules.recipient_delimiter,
        max_clients=limits[0][0],
        max_recipients=section.value("max_recipients", config_keys.whole(1, 100_000), 1000),
        max_message_size=section.value("max_message_size", config_keys.whole(0, 10**15), 0),
        smtputf8=section.value("smtputf8", config_keys.boolean, False),
        timeouts=timeouts,
        hold_timeout=section.value("hold_timeout", config_keys.seconds("hold_timeout"), 30.0),
        hold_limit=section.value("hold_limit", config_keys.whole(0, 1000), 2),
        log=_log(section),
        control=config_listeners.control(section, KEYS["config.control"], listener),
        metrics=config_listeners.metrics(section, listener),
        uncertain_log=section.value("uncertain_log", config_keys.absolute_path, None),
        workers=_workers(section, limits),
        backends=backends or {},
        users=users,
        users_per_backend=counts,
        digest=document.digest,
        modified=document.modified,
    )


def _workers(section: Section, limits: list[tuple[int, str]]) -> int:
    """`workers`, which share each of `limits`: at least one is for each worker."""
    wanted, (least, what) = section.value("workers", config_keys.workers, 1), min(limits)
    if wanted is not None and wanted > least:
        section.fail("workers", f"{wanted} cannot share {what}, which is {least}: lower the one or raise the other")
    return min(len(os.sched_getaffinity(0)), least) if wanted is None else wanted


def _own_hostname() -> str:
    name = socket.gethostname()  # the kernel's; the fully qualified one may take DNS its time
    try:
        return config_keys.hostname(name)
    except ValueError:
        return "localhost"


def _timeouts(parent: Section, keys: str, defaults: Timeouts) -> Timeouts:
    section = parent.section("timeouts", KEYS[keys])
    if section is None:
        return defaults
    given = [name for name in KEYS[keys] if name in section]
    return replace(
        defaults, **{name: section.value(name, config_keys.seconds(name), getattr(defaults, name)) for name in given}
    )


def _log(parent: Section) -> Log:
    section = parent.section("log", KEYS["config.log"])
    if section is None:
        return Log()
    return Log(
        syslog=section.value("syslog", config_keys.absolute_path, None),
        facility=section.value("facility", config_keys.facility, "mail"),
        level=section.value("level", config_keys.level, "info"),
    )


def _backends(
    section: Section | None, listener: Address | None, timeouts: Timeouts, directory: str
) -> dict[str, Backend] | None:
    """Name -> Backend, with all names, also of backends that have problems. None if there is no telling the names."""
    if section is None:
        return None
    backends = {}
    for name in section.entries:
        if name in RESERVED:
            section.fail(name, "is reserved: a user on it is refused or held, no backend can be called so")
            continue
        try:
            config_keys.backend_name(name)
        except ValueError as error:
            section.fail(name, str(error))
        backends[name] = _backend(section, name, listener, timeouts, directory)
    return backends


def _backend(parent: Section, name: str, listener: Address | None, timeouts: Timeouts, directory: str) -> Backend:
    section = parent.section(name, KEYS["backends.*"])
    if section is None:
        return Backend(name, UnixAddress(""))
    address = _backend_address(parent, name, section)
    if address is not None and listener is not None and is_own_listener(listener, address):
        key = "socket" if "socket" in section else "host"
        section.fail(key, f"{address} is the socket of this proxy: mail would go round in circles")
    user, password = _credentials(section, directory)
    return Backend(
        name=name,
        address=address or UnixAddress(""),
        user=user,
        password=password,
        max_connections=section.value("max_connections", config_keys.whole(1, 10_000), 20),
        idle_timeout=section.value("idle_timeout", config_keys.seconds_or_none("idle_timeout"), 30.0),
        timeouts=_timeouts(section, "backends.*.timeouts", timeouts),
    )


def _backend_address(parent: Section, name: str, section: Section) -> Address | None:
    """`socket`, or `host` and `port`. None after a problem."""
    path = section.value("socket", config_keys.socket_path, None)
    host = section.value("host", config_keys.host, None)
    port = section.value("port", config_keys.port, None)
    if "socket" in section:
        for key in ("host", "port"):
            if key in section:
                section.fail(key, "cannot stand beside socket: a backend has one address")
        return None if path is None else UnixAddress(path)
    if "host" in section and "port" not in section:
        section.fail("host", "needs a port beside it")
    elif "port" in section and "host" not in section:
        section.fail("port", "needs a host beside it")
    elif "host" not in section:
        parent.fail(name, "has no address: give it a socket, or host and port")
    return None if host is None or port is None else TcpAddress(host, port)


def _credentials(section: Section, directory: str) -> tuple[str | None, str | None]:
    """`user` with `password` or `password_file`: both are here or neither is."""
    user = section.value("user", config_keys.credential, None)
    password = section.value("password", config_keys.credential, None)
    file = section.value("password_file", str, None)
    if "password" in section and "password_file" in section:
        section.fail("password_file", "cannot stand beside password: take one of the two out")
    for key in ("password", "password_file"):
        if key in section and "user" not in section:
            section.fail(key, "needs a user beside it")
    if "user" in section and "password" not in section and "password_file" not in section:
        section.fail("user", "needs a password or password_file beside it")
    if file is not None:  # its name stays out of the messages: it may be the password, on the wrong line
        try:
            password = _read_password(os.path.join(directory, file))
        except OSError as error:
            section.fail("password_file", f"cannot be read: {error.strerror}")
        except ValueError as error:
            section.fail("password_file", str(error))
    return user, password


def _read_password(path: str) -> str:
    """The file's octets as UTF-8, less one line end. Raises OSError, or ValueError with no part of the content."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # to open a FIFO would wait for its writer
        raise ValueError("is not a regular file")
    with open(path, "rb") as file:
        data = file.read(_PASSWORD_MAX + 1)
    if len(data) > _PASSWORD_MAX:
        raise ValueError(f"is larger than {_PASSWORD_MAX} octets")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    return config_keys.credential(text.removesuffix("\n").removesuffix("\r"))
