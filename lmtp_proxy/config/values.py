# SPDX-License-Identifier: GPL-3.0-or-later
"""What a configuration is: frozen values, compared by value, safe to hand between threads and processes.

It does not know where they come from: no YAML, no file, no checks. Times are in seconds, sizes in octets. A process
that only serves by a configuration has nothing else of this folder in its memory.
"""

import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from lmtp_proxy.routing.keys import KeyRules
from lmtp_proxy.routing.static_table import StaticTable

if TYPE_CHECKING:  # 0.2 MB, which a process without networks does without
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from lmtp_proxy.table.served import ServedTable


MORE = re.compile(r": and (\d+) more (?:errors|notes)\Z")
"""How the last line of many ends: the first of them stand before it."""


def how_many(lines: Sequence[str]) -> int:
    """So many errors, or notes, do these lines stand for."""
    more = MORE.search(lines[-1]) if lines else None
    return len(lines) if more is None else len(lines) - 1 + int(more[1])


class ConfigError(Exception):
    """The configuration cannot be used.

    Attributes:
        errors: `FILE:LINE: key: what is wrong` each, in the order of the file; of very many, the first ones and how
            many more (`how_many`).
    """

    def __init__(self, errors: tuple[str, ...]) -> None:
        super().__init__(errors)
        self.errors = errors

    def __str__(self) -> str:
        return "\n".join(self.errors)


RESERVED = frozenset({"reject", "hold"})  # what a user can have in place of a backend

NAMES_IN_THE_FILE = {"ignore_domain": "ignoreDomain"}  # where a key is not called as the attribute is

LOCALHOST = frozenset({"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"})

PRIVATE_NETWORKS = (
    *("127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
    *("fc00::/7", "fe80::/10"),
)
"""Those that may connect to a TCP socket that is not on loopback, where `allow` is not there."""

FACILITIES: Mapping[str, int] = {
    "auth": 4,
    "authpriv": 10,
    "cron": 9,
    "daemon": 3,
    "ftp": 11,
    "kern": 0,
    "lpr": 6,
    "mail": 2,
    "news": 7,
    "syslog": 5,
    "user": 1,
    "uucp": 8,
    **{f"local{number}": 16 + number for number in range(8)},
}
"""Of syslog. The table of the standard library is in logging.handlers, which is 0.2 MB."""


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix socket; `path` is absolute."""

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """host: a name or an IPv4 or IPv6 address, without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Address: TypeAlias = UnixAddress | TcpAddress


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each step may take, in seconds; `final_reply` counts from the client's final dot; `message` up to it."""

    connect: float = 10.0
    greeting: float = 20.0
    command: float = 60.0
    data_write: float = 120.0
    final_reply: float = 500.0
    client_idle: float = 300.0
    message: float = 3600.0
    shutdown: float = 30.0


TIMEOUTS = tuple(field.name for field in fields(Timeouts))
_PROXY_TIMEOUTS = ("client_idle", "message", "shutdown")  # not a matter of any one backend
TIMEOUTS_OF_ONE = tuple(name for name in TIMEOUTS if name not in _PROXY_TIMEOUTS)
"""Those that a backend may have of its own."""


@dataclass(frozen=True, slots=True)
class PemFile:
    """A file with certificates or a key, as it was read.

    Attributes:
        path: absolute.
        mode: permission bits. Not compared.
    """

    path: str
    octets: bytes = field(repr=False)
    mode: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class ListenerTls:
    """TLS from clients, on TCP.

    Attributes:
        cert, key: ours.
        ca: whom a client's certificate has to come from; None where none is asked for.
        required: no mail without it.
        implicit: from the first octet on, else behind STARTTLS.
        allow_subjects: of which a client's certificate has to be one; None for any from `ca`.
    """

    cert: PemFile
    key: PemFile
    ca: PemFile | None = None
    required: bool = False
    implicit: bool = False
    allow_subjects: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Backend:
    """One store; `user` and `password` are both None or both text.

    Attributes:
        tls: no, starttls or implicit.
        tls_ca: whom its certificate has to come from; None for the CAs of the system.
        tls_name: whose it has to be; None for the host of the address.
        tls_fingerprint: SHA-256 in hex of certificates or public keys, of which it has to be one; None for any.
        tls_verify: False where it may be any.
        tls_cert, tls_key: ours, both or neither.
        idle_timeout: seconds, 0 to keep no connection.
        max_messages: on one connection, 0 for no limit.
        recipients_per_transaction: at most, 0 for no limit.
        max_per_user: recipients of one mailbox at a time.
        xclient: it is told whose mail it gets.
        restart_grace: seconds since its last good reply in which one that refuses connections is asked again; 0 for
            never.
    """

    name: str
    address: Address
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    max_connections: int = 20
    idle_timeout: float = 30.0
    timeouts: Timeouts = Timeouts()
    restart_grace: float = 3.0
    max_messages: int = 0
    recipients_per_transaction: int = 0
    max_per_user: int = 10
    xclient: bool = False
    tls: str = "no"
    tls_ca: PemFile | None = None
    tls_name: str | None = None
    tls_fingerprint: tuple[str, ...] | None = None
    tls_verify: bool = True
    tls_cert: PemFile | None = None
    tls_key: PemFile | None = None


@dataclass(frozen=True, slots=True)
class Log:
    """Where the log goes, and what of it.

    Attributes:
        syslog: path of the syslog socket, None for the standard way.
        format: text, or json: one object a line.
    """

    syslog: str | None = None
    facility: str = "mail"
    level: str = "info"
    format: str = "text"


@dataclass(frozen=True, slots=True)
class MaxRemoved:
    """How many users a reload may remove. number: of users; of each hundred if `percent`, but at least a few."""

    number: int
    percent: bool = False

    def __str__(self) -> str:
        return f"{self.number}%" if self.percent else str(self.number)

    def of(self, users: int) -> int:
        """Of a table with so many."""
        return max(_FEW_REMOVED, users * self.number // 100) if self.percent else self.number


_FEW_REMOVED = 10  # a tenth of a small table is nobody


@dataclass(frozen=True, slots=True)
class Control:
    """The control socket. permissions: mode bits; whoever may connect may do all that lmtp-proxyctl can."""

    socket: UnixAddress
    owner: str | None = None
    group: str | None = None
    permissions: int = 0o600


@dataclass(frozen=True, slots=True)
class TableSetting:
    """The database in which the users are. sqlite: absolute path of the file."""

    sqlite: str


class UsersFile(NamedTuple):
    """A file in which users stand, as it was read.

    Attributes:
        path: absolute.
        digest: SHA-256 in hex of its octets.
        before: lines of the files before it: the lines of a table are counted over all of them.
    """

    path: str
    digest: str
    before: int


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration, checked: every name in `users` and `fallback_backend` is in `backends` or reserved.

    Attributes:
        path: the file, absolute.
        users_file: more files with users, and directories of such, absolute; None for none.
        files: those that were read, the configuration first. Not compared.
        digest: SHA-256 in hex of their octets as they were read, see users_files.digest_of. Not compared.
        modified: when the last of them was changed, in seconds since the epoch. Not compared.
        socket: where clients connect, at least one; of each name all addresses.
        permissions: mode bits of the unix sockets, None for what the umask leaves.
        allow: None means everybody on loopback, and else PRIVATE_NETWORKS.
        trusted: whose clients may say XFORWARD, None for nobody's.
        proxy_protocol: whose connections begin with a PROXY header, None for nobody's.
        max_message_size: octets, 0 for no limit.
        tls: None where clients do without.
        workers: how many processes serve; each limit of connections is at least as much.
        notes: what is right and yet may not be what was meant, as the lines of a ConfigError.
        table: where the users are, if not in the files.
        users: keys as KeyRules.table_key makes them; of a table in a database its snapshot.
        served: that table, brought up to date, in a process that serves. Not compared.
        users_per_backend: how many of them are on each name, reserved names too.
    """

    path: str
    socket: tuple[Address, ...]
    hostname: str
    owner: str | None = None
    group: str | None = None
    permissions: int | None = None
    ignore_domain: bool = False
    fallback_backend: str | None = None
    default_domain: str | None = None
    max_removed: MaxRemoved = MaxRemoved(10, percent=True)
    pid: str = "/var/run/lmtp-proxy.pid"
    allow: "tuple[IPv4Network | IPv6Network, ...] | None" = None
    run_as: str | None = None
    case_sensitive: bool = False
    recipient_delimiter: str = "+"
    max_clients: int = 1000
    max_recipients: int = 1000
    max_message_size: int = 0
    smtputf8: bool = True
    timeouts: Timeouts = Timeouts()
    hold_timeout: float = 30.0
    hold_limit: int = 2
    log: Log = Log()
    control: Control | None = None
    metrics: TcpAddress | None = None
    uncertain_log: str | None = None
    receipts: str | None = None
    trusted: "tuple[IPv4Network | IPv6Network, ...] | None" = None
    proxy_protocol: "tuple[IPv4Network | IPv6Network, ...] | None" = None
    workers: int = 1
    tls: ListenerTls | None = None
    users_file: tuple[str, ...] | None = None
    table: TableSetting | None = None
    backends: Mapping[str, Backend] = field(default_factory=dict)
    users: StaticTable = field(default_factory=StaticTable, repr=False)  # too many to look at
    served: "ServedTable | None" = field(default=None, compare=False, repr=False)
    users_per_backend: Mapping[str, int] = field(default_factory=dict, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    files: tuple[UsersFile, ...] = field(default=(), compare=False)
    digest: str = field(default="", compare=False)
    modified: float = field(default=0.0, compare=False)

    @property
    def key_rules(self) -> KeyRules:
        """How recipients are looked up in `users`."""
        domain = self.default_domain or ""
        return KeyRules(self.case_sensitive, self.recipient_delimiter, self.ignore_domain, domain)

    @property
    def how_many(self) -> int:
        """Users, now."""
        return len(self.users if self.served is None else self.served)

    @property
    def users_on(self) -> Mapping[str, int]:
        """How many of them are on each name, now."""
        if self.served is None:
            return self.users_per_backend
        return {name: number for name, number in self.served.counts.items() if number}

    @property
    def in_force(self) -> str:
        """Names what is in force: the digest, and behind an @ the position of the table, `gen:tag`, if there is one."""
        if self.served is None:
            return self.digest
        gen, tag = self.served.position or (-1, 0)
        return f"{self.digest}@{gen}:{tag}"

    def place(self, key: str) -> tuple[str, int]:
        """The file in which `key`, which must be in `users`, stands, and the line there."""
        line = self.users.line(key)
        file = next((file for file in reversed(self.files) if file.before < line), None)
        return (self.path, line) if file is None else (file.path, line - file.before)


def named(addresses: Iterable[Address]) -> str:
    """`/run/a and [::1]:24`."""
    return " and ".join(map(str, addresses))


def is_own_listener(listener: Address, backend: Address) -> bool:
    """Whether a connection to `backend` ends at `listener`, as far as that can be told without asking DNS."""
    if isinstance(listener, UnixAddress):
        return isinstance(backend, UnixAddress) and _same_file(listener.path, backend.path)
    if isinstance(backend, UnixAddress) or backend.port != listener.port:
        return False
    here, there = _addresses(listener.host), _addresses(backend.host)
    # To connect to 0.0.0.0 or :: is to connect to loopback.
    loopback = {ip.version: ip for ip in _loopback()}
    targets = {loopback[ip.version] if ip.is_unspecified else ip for ip in there if not isinstance(ip, str)}
    if here & there or here & targets:
        return True
    wildcards = [ip for ip in here if not isinstance(ip, str) and ip.is_unspecified]
    if wildcards and backend.host.lower().rstrip(".") == socket.gethostname().lower():
        return True
    # A socket on :: takes IPv4 as well.
    return any(ip.is_loopback and ip.version <= wildcard.version for wildcard in wildcards for ip in targets)


def _same_file(one: str, other: str) -> bool:
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(one, other)
    except OSError:  # not there (yet)
        return False


def _addresses(host: str) -> "frozenset[IPv4Address | IPv6Address | str]":
    """What `host` stands for: IP addresses, or its own name in one spelling."""
    from ipaddress import ip_address

    name = host.lower().rstrip(".")
    if name in LOCALHOST:
        return frozenset(_loopback())
    try:
        address = ip_address(name)
    except ValueError:
        return frozenset({name})
    return frozenset({getattr(address, "ipv4_mapped", None) or address})


def _loopback() -> "tuple[IPv4Address, IPv6Address]":
    from ipaddress import IPv4Address, IPv6Address

    return IPv4Address("127.0.0.1"), IPv6Address("::1")
