# SPDX-License-Identifier: GPL-3.0-or-later
"""A YAML file -> a `Config`, or a ConfigError with everything that is wrong with it.

Which keys there are, their defaults, and what they mean together. It reads the file, and those of users and passwords
that it names, asks the system for users and groups, and does nothing else: no sockets, no log, no gevent.
"""

import os
import socket
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address

from lmtp_proxy.config import backends as config_backends
from lmtp_proxy.config import tls as config_tls
from lmtp_proxy.config import types as config_keys
from lmtp_proxy.config.sources import Contents, Files, LargeConfig, Problems, UsersReader
from lmtp_proxy.config.types import MAX_ERRORS, Section
from lmtp_proxy.config.users import Doubt, FlatUsers, undefined
from lmtp_proxy.config.users_files import digest_of
from lmtp_proxy.config.values import (
    LOCALHOST,
    RESERVED,
    TIMEOUTS,
    TIMEOUTS_OF_ONE,
    Address,
    Backend,
    Config,
    ConfigError,
    Control,
    Log,
    MaxRemoved,
    TableSetting,
    TcpAddress,
    Timeouts,
    UnixAddress,
    is_own_listener,
)
from lmtp_proxy.config.yaml_text import Document, Mapping, Node, Note, Problem, Scalar, Sequence
from lmtp_proxy.routing.keys import KeyRules
from lmtp_proxy.routing.static_table import SameKey, StaticTable
from lmtp_proxy.text import shown

_LISTENER = "must be a path or [host, port]"
_PRIVATE_ONLY = (
    "only private networks may connect, where once everybody could; list those that may, "
    'for everybody allow: [0.0.0.0/0, "::/0"]'
)
_WILDCARDS = {"0.0.0.0", "::"}  # noqa: S104  (are two sockets that live beside each other)


def listeners(section: Section) -> tuple[Address, ...]:
    """`socket`: a path, [host, port], or a list of such. Empty after a problem."""
    if "socket" not in section:
        section.fail("socket", "is missing: write the path of a unix socket, or [host, port]")
        return ()
    node = section.node("socket")
    if not isinstance(node, Sequence):
        path = None if node is None else section.item("socket", node, config_keys.socket_path, None)
        return () if path is None else (UnixAddress(path),)
    if len(node.items) == 2 and not any(isinstance(item, Sequence) or _is_path(item) for item in node.items):
        address = _host_and_port(section, "socket", _LISTENER)
        return () if address is None else (address,)
    return _several(section, node)


def _several(section: Section, node: Sequence) -> tuple[Address, ...]:
    found: list[Address] = []
    wrong = set() if node.items else {node.line}
    for item in node.items:
        address: Address | None = None
        if isinstance(item, Sequence) and len(item.items) == 2:
            address = _address(section, "socket", item)
        elif _is_path(item):
            path = section.item("socket", item, config_keys.socket_path, None)
            address = None if path is None else UnixAddress(path)
        else:
            wrong.add(item.line)
        if address is None:
            continue
        for other in found:
            if _clash(address, other):
                section.fail("socket", f"{address} is taken by {other} already: name one of the two", item.line)
                break
        found.append(address)
    for line in sorted(wrong):
        section.fail("socket", _LISTENER, line)
    return tuple(found)


def _is_path(node: Node) -> bool:
    return isinstance(node, Scalar) and node.text.startswith("/")


def _clash(one: Address, other: Address) -> bool:
    if isinstance(one, TcpAddress) and isinstance(other, TcpAddress) and {one.host, other.host} == _WILDCARDS:
        return False
    return is_own_listener(one, other) or is_own_listener(other, one)


def _is_local(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return host.lower().rstrip(".") in LOCALHOST
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _host_and_port(section: Section, key: str, otherwise: str) -> TcpAddress | None:
    """None after a problem. otherwise: what it is where it is no list of two."""
    node = section.node(key)
    if not isinstance(node, Sequence) or len(node.items) != 2:
        if node is not None:
            section.fail(key, otherwise)
        return None
    return _address(section, key, node)


def _address(section: Section, key: str, node: Sequence) -> TcpAddress | None:
    """Of a list of two."""
    host = section.item(key, node.items[0], config_keys.host, None)
    port = section.item(key, node.items[1], config_keys.port, None)
    return None if host is None or port is None else TcpAddress(host, port)


def allow(section: Section, mail: tuple[Address, ...]) -> tuple[IPv4Network | IPv6Network, ...] | None:
    """The networks that may connect; None where that is not said. mail: where it comes in."""
    if "allow" not in section and any(isinstance(each, TcpAddress) and not _is_local(each.host) for each in mail):
        section.note("socket", f"is not on loopback and there is no allow: {_PRIVATE_ONLY}")
    node = section.node("allow")
    if node is None:
        return None
    items = node.items if isinstance(node, Sequence) else [node]
    if not items:
        section.fail("allow", "would refuse everybody: list the networks that may connect")
    networks = [section.item("allow", item, config_keys.network, None) for item in items]
    return tuple(network for network in networks if network is not None)


def control(parent: Section, known: tuple[str, ...], mail: tuple[Address, ...]) -> Control | None:
    """The control socket. known: its keys. mail: where mail comes in, empty if that is not known."""
    if "control" not in parent:
        return None
    section = parent.section("control", known)
    if section is None:
        return None
    if "socket" not in section:
        parent.fail("control", "needs a socket: the absolute path of a unix socket")
    path = section.value("socket", config_keys.socket_path, None)
    if path is not None and any(is_own_listener(each, UnixAddress(path)) for each in mail):
        section.fail("socket", "is the socket for mail already: the control socket needs one of its own")
    return Control(
        socket=UnixAddress(path or ""),
        owner=section.value("owner", config_keys.owner, None),
        group=section.value("group", config_keys.group, None),
        permissions=section.value("permissions", config_keys.permissions, 0o600),
    )


def metrics(section: Section, mail: tuple[Address, ...]) -> TcpAddress | None:
    """Where metrics are served. mail: as in `control`."""
    if "metrics" not in section:
        return None
    address = _host_and_port(section, "metrics", "must be [host, port]")
    if address is not None and any(is_own_listener(each, address) for each in mail):
        section.fail("metrics", "is the socket for mail already: take another port")
    return address


__all__ = [
    "KEYS",
    "RESERVED",
    "Address",
    "Backend",
    "Config",
    "ConfigError",
    "Control",
    "LargeConfig",
    "Log",
    "TcpAddress",
    "Timeouts",
    "UnixAddress",
    "load_config",
]

_ATTEMPTS = 4  # one, and three more while files come and go

# Section -> its keys. Anything else is refused, so that no key is believed to work that does not.
KEYS: dict[str, tuple[str, ...]] = {
    "": ("config", "backends", "users"),
    "config": (
        *("socket", "owner", "group", "permissions", "ignoreDomain", "fallback_backend", "pid", "allow", "run_as"),
        *("hostname", "case_sensitive", "recipient_delimiter", "max_clients", "max_recipients", "max_message_size"),
        *("smtputf8", "timeouts", "hold_timeout", "hold_limit", "log", "control", "metrics", "uncertain_log"),
        *("workers", "receipts", "trusted", "default_domain", "max_removed", "users_file", "table"),
        *("tls", "proxy_protocol"),
    ),
    "config.table": ("sqlite",),
    "config.control": ("socket", "owner", "group", "permissions"),
    "config.timeouts": TIMEOUTS,
    "config.tls": config_tls.LISTENER_KEYS,
    "config.log": ("syslog", "facility", "level", "format"),
    "backends.*": config_backends.KEYS,
    "backends.*.timeouts": TIMEOUTS_OF_ONE,
}


def load_config(
    path: str,
    store: int | None = None,
    *,
    instead: Contents | None = None,
    at_most: int | None = None,
    without_table: bool = False,
) -> Config:
    """Reads the configuration file at `path`. Raises ConfigError with all errors that it has.

    Args:
        store: descriptor of a file for the table of users, which goes to the Config; None to have it in memory.
        instead: path without links -> octets of a file that is not to be read from the disk.
        at_most: octets of all files; of more LargeConfig is raised.
        without_table: as if there were no `config.table`, for who brings the users of the file into that.
    """
    for _ in range(_ATTEMPTS):
        files = Files(path, instead or {}, at_most)
        config, problems = _read_as_can_be(files, store, without_table=without_table)
        if files.are_all():
            break
    else:
        what = "files came or went each time they were read: try again when that is over"
        raise ConfigError((f"{shown(path, 4096)}: config.users_file: {what}",))
    errors = {name: [each for each in found if not isinstance(each, Note)] for name, found in problems.items()}
    if config is None or any(errors.values()):
        raise ConfigError(_messages(errors, "errors"))
    return replace(config, notes=_messages(problems, "notes")) if any(problems.values()) else config


def load_users(path: str, config: Config) -> StaticTable:
    """The users in a file of users alone, which are to be on backends of `config`. Raises ConfigError."""
    reader = UsersReader(Files(config.path, {}, None), None, None)
    try:
        table, _ = reader.read_one(path, config.backends.keys() | RESERVED, config.key_rules)
    except SameKey:
        reader = UsersReader(reader.files, None, None, lines=False)
        table, _ = reader.read_one(path, config.backends.keys() | RESERVED, config.key_rules)
    errors = {name: [each for each in found if not isinstance(each, Note)] for name, found in reader.problems.items()}
    if any(errors.values()):
        raise ConfigError(_messages(errors, "errors"))
    return table


def _read_as_can_be(files: Files, store: int | None, *, without_table: bool) -> tuple[Config | None, Problems]:
    """As `_read`: as plain lines where that can be, else as YAML."""
    try:
        return _read(UsersReader(files, store, FlatUsers(files.main.data)), without_table=without_table)
    except (Doubt, SameKey):
        pass
    try:
        return _read(UsersReader(files, store, None), without_table=without_table)
    except SameKey:  # which two they are is told by YAML alone
        return _read(UsersReader(files, store, None, lines=False), without_table=without_table)


def _read(reader: UsersReader, *, without_table: bool) -> tuple[Config | None, Problems]:
    """The Config, and all that is wrong with it. Raises Doubt if the users are not where they were found as plain
    lines, and SameKey."""
    files, flat = reader.files, reader.flat
    document = files.main.document(flat.rest if flat else None)
    if flat:
        flat.check(document)
    if document.root is None:
        return None, {files.name: document.problems}
    found: list[Problem] = []
    config = _config(document, document.root, found, reader, without_table=without_table)
    # A value that is wrong as YAML already (a tag, an alias of nothing) is named once.
    named = {(problem.line, problem.key) for problem in document.problems}
    own = document.problems + [problem for problem in found if (problem.line, problem.key) not in named]
    return config, {files.name: own, **reader.problems}


def _messages(problems: Problems, what: str) -> tuple[str, ...]:
    lines = []
    for path, found in problems.items():
        name = shown(path, 4096)
        for line, key, text in sorted(found, key=lambda problem: problem.line)[:MAX_ERRORS]:
            place = f"{name}:{line}" if line else name
            lines.append(f"{place}: {key}: {text}" if key else f"{place}: {text}")
    total = sum(map(len, problems.values()))
    if total > MAX_ERRORS:
        lines[MAX_ERRORS:] = [f"{shown(next(iter(problems)), 4096)}: and {total - MAX_ERRORS} more {what}"]
    return tuple(lines)


def _config(
    document: Document, root: Mapping, problems: list[Problem], reader: UsersReader, *, without_table: bool
) -> Config:
    """The Config that `root`, the root of `document`, describes. Only to be used when `problems` stays empty."""
    path = reader.files.path
    top = Section(root, "", KEYS[""], problems)
    section = top.section("config", KEYS["config"]) or Section(Mapping({}, root.line), "config", None, [])
    mail = listeners(section)
    timeouts = config_backends.timeouts(section, KEYS["config.timeouts"], Timeouts())
    backends = config_backends.backends(top.section("backends", None), mail, timeouts, os.path.dirname(path))
    names = None if backends is None else backends.keys() | RESERVED
    default_domain = section.value("default_domain", config_keys.mail_domain, None)
    rules = KeyRules(
        case_sensitive=section.value("case_sensitive", config_keys.boolean, False),
        recipient_delimiter=section.value("recipient_delimiter", config_keys.delimiter, "+"),
        ignore_domain=section.value("ignoreDomain", config_keys.boolean, False),
        default_domain=default_domain or "",
    )
    fallback = section.value("fallback_backend", str, None)
    if fallback is not None and names is not None and fallback not in names:
        section.fail("fallback_backend", undefined(section, fallback, names))
    limits = [(section.value("max_clients", config_keys.whole(1, 100_000), 1000), "max_clients")]
    limits += [(each.max_connections, f"max_connections of {name}") for name, each in (backends or {}).items()]
    access = section
    if isinstance(section.entries.get("socket"), Sequence) and not any(isinstance(each, UnixAddress) for each in mail):
        section.ignore(("owner", "group", "permissions"), "a TCP socket has none")
        access = Section(Mapping({}, root.line), "config", None, [])
    users = reader.read(document, top.section("users", None), section, names, rules)
    table = None if without_table else _table(section)
    if table is not None:
        bring = f"`lmtp-proxyctl table import {shown(path, 4096)}` brings them over, then take it out"
        if len(users.table):
            top.fail("users", f"the users are in config.table: {bring}")
        if users.entries is not None:
            section.fail("users_file", f"the users are in config.table: {bring}")
    return Config(
        path=path,
        socket=mail or (UnixAddress(""),),
        owner=access.value("owner", config_keys.owner, None),
        group=access.value("group", config_keys.group, None),
        permissions=access.value("permissions", config_keys.permissions, None),
        ignore_domain=rules.ignore_domain,
        fallback_backend=fallback,
        default_domain=default_domain,
        max_removed=section.value("max_removed", config_keys.max_removed, MaxRemoved(10, percent=True)),
        pid=section.value("pid", config_keys.absolute_path, "/var/run/lmtp-proxy.pid"),
        allow=allow(section, mail),
        run_as=section.value("run_as", config_keys.account, None),
        hostname=section.value("hostname", config_keys.hostname, _own_hostname()),
        case_sensitive=rules.case_sensitive,
        recipient_delimiter=rules.recipient_delimiter,
        max_clients=limits[0][0],
        max_recipients=section.value("max_recipients", config_keys.whole(1, 100_000), 1000),
        max_message_size=section.value("max_message_size", config_keys.whole(0, 10**15), 0),
        smtputf8=section.value("smtputf8", config_keys.boolean, True),
        timeouts=timeouts,
        hold_timeout=section.value("hold_timeout", config_keys.seconds("hold_timeout"), 30.0),
        hold_limit=section.value("hold_limit", config_keys.whole(0, 1000), 2),
        log=_log(section),
        control=control(section, KEYS["config.control"], mail),
        metrics=metrics(section, mail),
        uncertain_log=section.value("uncertain_log", config_keys.absolute_path, None),
        receipts=section.value("receipts", config_keys.absolute_path, None),
        trusted=section.values("trusted", config_keys.network),
        proxy_protocol=section.values("proxy_protocol", config_keys.network),
        workers=_workers(section, limits),
        tls=config_tls.listener_tls(section, mail, os.path.dirname(path)),
        backends=backends or {},
        users_file=users.entries,
        table=table,
        users=users.table,
        users_per_backend=users.counts,
        files=users.files,
        digest=digest_of((file.path, file.digest) for file in users.files),
        modified=users.modified,
    )


def _table(parent: Section) -> TableSetting | None:
    if "table" not in parent:
        return None
    section = parent.section("table", KEYS["config.table"])
    if section is None:
        return None
    if "sqlite" not in section:
        parent.fail("table", "needs sqlite: the absolute path of the database, see lmtp-proxyctl table init")
        return None
    path = section.value("sqlite", config_keys.absolute_path, None)
    return None if path is None else TableSetting(path)


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


def _log(parent: Section) -> Log:
    section = parent.section("log", KEYS["config.log"])
    if section is None:
        return Log()
    return Log(
        syslog=section.value("syslog", config_keys.absolute_path, None),
        facility=section.value("facility", config_keys.facility, "mail"),
        level=section.value("level", config_keys.level, "info"),
        format=section.value("format", config_keys.log_format, "text"),
    )
