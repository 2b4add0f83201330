# SPDX-License-Identifier: GPL-3.0-or-later
"""read, types, values: what each key takes, every error line word for word, the shipped example."""

import dataclasses
import hashlib
import logging.handlers
import os
import pickle
import re
import socket
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmtp_proxy.config.read import (
    KEYS,
    RESERVED,
    Address,
    Backend,
    Config,
    ConfigError,
    Control,
    Log,
    TcpAddress,
    Timeouts,
    UnixAddress,
    load_config,
)
from lmtp_proxy.config.values import FACILITIES, TableSetting, how_many, is_own_listener
from lmtp_proxy.routing.keys import KeyRules
from lmtp_proxy.routing.static_table import StaticTable
from tests import ROOT

EXAMPLE = ROOT / "etc/lmtp-proxy.yml"

MAPPING = "must be a single value, not a mapping or a list"
EMPTY = 'has no value: write one ("" for an empty text) or take the line out'
NUMBER = "must be a whole number from {} to {}, not "
SECONDS = "must be a number of seconds such as 30 or 2.5, not "
HOST = "must be a host name or an IP address (without brackets), not "
FILE = "must be the absolute path of a file, not "
MARKS = 'must be a few different marks such as "+" or "+-", or "" for none, not '
BITS = "has bits set behind its prefix: write {} for the network, {} for the one address"
TEXT = "must be a mapping: lines of `key: value`, indented"
LINE_END = "must not hold a NUL or a line end"
REPLY = "Postfix waits 300 s for a reply"
MISSING = "config.socket: is missing: write the path of a unix socket, or [host, port]"
QUOTES = "is looked up without its quotes: write it without them"
LISTENER = "must be a path or [host, port]"
SHARED_SOCKET = "is the socket for mail already: the control socket needs one of its own"
NO_DOMAIN = "has no domain: write @example.org for all of a domain, fallback_backend for all the rest"
UNPRINTABLE = "holds a character that cannot be printed"
NO_FILE = "cannot be read: No such file or directory"
SAME = "is the same user as {} on line {}, who is on {}: take one of the two out"

Load = Callable[[str], Config]
Errors = Callable[[str], list[str]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """text -> the Config of a file with it"""

    def load(text: str) -> Config:
        file = tmp_path / "file.yml"
        file.write_text(text, "utf-8")
        return load_config(str(file))

    return load


@pytest.fixture
def errors(load: Load, tmp_path: Path) -> Errors:
    """text -> the errors of a file with it, `LINE: key: what is wrong` each"""

    def errors(text: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(text)
        assert str(caught.value) == "\n".join(caught.value.errors)
        assert all(error.startswith(f"{tmp_path}/file.yml:") for error in caught.value.errors)
        return [error.removeprefix(f"{tmp_path}/file.yml:") for error in caught.value.errors]

    return errors


def config_with(*lines: str) -> str:
    """A file whose `config:` has `lines`, from line 3 on."""
    return "".join(f"{line}\n" for line in ("config:", "  socket: /run/proxy.sock", *(f"  {line}" for line in lines)))


def backend_with(*lines: str) -> str:
    """A file with the backend `b` with `lines`, from line 5 on."""
    return config_with() + "backends:\n  b:\n" + "".join(f"    {line}\n" for line in lines)


def users_with(*lines: str, config: tuple[str, ...] = ()) -> str:
    """A file with the backends `old` and `new` and users `lines`, from line 7 on (later by that of `config`)."""
    backends = "backends:\n  old: {socket: /run/old}\n  new: {socket: /run/new}\nusers:\n"
    return config_with(*config) + backends + "".join(f"  {line}\n" for line in lines)


# --- the whole ---


def test_the_least_file_has_the_defaults(load: Load, tmp_path: Path) -> None:
    config = load(config_with())
    assert config == Config(
        path=f"{tmp_path}/file.yml",
        socket=(UnixAddress("/run/proxy.sock"),),
        owner=None,
        group=None,
        permissions=None,
        ignore_domain=False,
        fallback_backend=None,
        pid="/var/run/lmtp-proxy.pid",
        allow=None,
        run_as=None,
        hostname=socket.gethostname(),
        case_sensitive=False,
        recipient_delimiter="+",
        max_clients=1000,
        max_recipients=1000,
        max_message_size=0,
        smtputf8=True,
        timeouts=Timeouts(10, 20, 60, 120, 500, 300, 3600, 30),
        hold_timeout=30.0,
        hold_limit=2,
        log=Log(None, "mail", "info"),
        control=None,
        uncertain_log=None,
        receipts=None,
        trusted=None,
        backends={},
        users=StaticTable(),
    )
    assert config.key_rules == KeyRules(False, "+", False)


def test_a_full_file(load: Load, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes("pässword \n".encode())
    config = load(
        """
config:
  socket: /run/s
  owner: root
  group: root
  permissions: 0660
  ignoreDomain: Yes
  fallback_backend: old
  pid: /run/p.pid
  allow: [192.0.2.0/24, "2001:db8::/32", 198.51.100.7]
  run_as: root
  hostname: mx.example.org
  case_sensitive: on
  recipient_delimiter: "+-"
  max_clients: 5
  max_recipients: 50
  max_message_size: 1000000
  smtputf8: FALSE
  timeouts: {connect: 1, greeting: 2.5, shutdown: 3600}
  hold_timeout: 12.5
  hold_limit: 0
  log: {syslog: /run/log, facility: LOCAL3, level: Debug, format: JSON}
  control: {socket: /run/ctl, owner: root}
  uncertain_log: /var/lib/uncertain
  receipts: /var/lib/receipts
  trusted: [192.0.2.0/24, "::1"]
backends:
  old: {socket: /run/old, idle_timeout: 12, restart_grace: 0, recipients_per_transaction: 1, max_per_user: 7}
  new:
    host: store.example.org
    port: 2003
    user: admin
    password_file: secret
    max_connections: 3
    idle_timeout: 0
    timeouts: {command: 5}
  third: {host: 192.0.2.1, port: 24, user: a b, password: 0123}
users:
  Alice@example.org: old
  no: new
  0123: third
  1:30: reject
  on: hold
"""
    )
    timeouts = Timeouts(connect=1, greeting=2.5, shutdown=3600)
    assert config == Config(
        path=f"{tmp_path}/file.yml",
        socket=(UnixAddress("/run/s"),),
        owner="root",
        group="root",
        permissions=0o660,
        ignore_domain=True,
        fallback_backend="old",
        pid="/run/p.pid",
        allow=(ip_network("192.0.2.0/24"), ip_network("2001:db8::/32"), ip_network("198.51.100.7/32")),
        run_as="root",
        hostname="mx.example.org",
        case_sensitive=True,
        recipient_delimiter="+-",
        max_clients=5,
        max_recipients=50,
        max_message_size=1000000,
        smtputf8=False,
        timeouts=timeouts,
        hold_timeout=12.5,
        hold_limit=0,
        log=Log("/run/log", "local3", "debug", "json"),
        control=Control(UnixAddress("/run/ctl"), "root", None, 0o600),
        uncertain_log="/var/lib/uncertain",
        receipts="/var/lib/receipts",
        trusted=(ip_network("192.0.2.0/24"), ip_network("::1/128")),
        backends={
            "old": Backend("old", UnixAddress("/run/old"), None, None, 20, 12.0, timeouts, 0.0, 0, 1, 7),
            "new": Backend(
                *("new", TcpAddress("store.example.org", 2003), "admin", "pässword ", 3, 0.0),
                dataclasses.replace(timeouts, command=5),
                max_per_user=1,
            ),
            "third": Backend("third", TcpAddress("192.0.2.1", 24), "a b", "0123", 20, 30.0, timeouts),
        },
        users=StaticTable({"Alice": "old", "no": "new", "0123": "third", "1:30": "reject", "on": "hold"}),
    )
    assert config.key_rules == KeyRules(True, "+-", True)
    lines = {user: config.users.line(user) for user in config.users}
    assert lines == {"Alice": 39, "no": 40, "0123": 41, "1:30": 42, "on": 43}
    assert config.users_per_backend == {"old": 1, "new": 1, "third": 1, "reject": 1, "hold": 1}
    file = tmp_path / "file.yml"
    assert config.digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert config.modified == file.stat().st_mtime


def test_all_errors_at_once_in_the_order_of_the_file(errors: Errors) -> None:
    text = """\
users:
  alice: odl
  bob: old
  bob: new
config:
  sokcet: /run/x
  permissions: 660
  smtputf8: maybe
backends:
  old: {host: localhost}
"""
    assert errors(text) == [
        '2: users.alice: there is no backend "odl": did you mean old?',
        "4: users.bob: is given twice, first on line 3",
        f"5: {MISSING}",
        "6: config.sokcet: unknown key, did you mean socket?",
        "7: config.permissions: must be octal with a leading 0: write 0660",
        '8: config.smtputf8: must be true or false, not "maybe"',
        "10: backends.old.host: needs a port beside it",
    ]


def test_the_file_name_is_the_one_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.yml").write_text(config_with())
    assert load_config("good.yml").path == str(tmp_path / "good.yml")
    Path("bad.yml").write_text("config: {}\n")
    with pytest.raises(ConfigError) as caught:
        load_config("bad.yml")
    assert caught.value.errors == (f"bad.yml:1: {MISSING}",)
    with pytest.raises(ConfigError) as caught:
        load_config("none.yml")
    assert caught.value.errors == ("none.yml: cannot be read: No such file or directory",)
    with pytest.raises(ConfigError) as caught:
        load_config("a\nb")
    assert caught.value.errors == ("a\\nb: cannot be read: No such file or directory",)


def test_what_is_wrong_as_yaml_is_reported_with_the_rest_and_once(errors: Errors) -> None:
    text = backend_with("socket: relative", "user: !!int 3", "password: *hunter2")
    assert errors(text) == [
        '5: backends.b.socket: must be the absolute path of a file, not "relative"',
        "6: backends.b.user: YAML tags are not used here: a value that begins with ! must be in quotes",
        "7: backends.b.password: is an alias of nothing: a value that begins with * must be in quotes",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" # nothing\n", ["", " is empty: it needs at least a `config:` section"]),
        ("users: {}\n", [f"1: {MISSING}"]),
        ("config:\n", [f"1: {MISSING}"]),
        ("config: x\n", [f"1: config: {TEXT}"]),
        (
            config_with() + "backends: [a]\nusers:\n- b\n",
            [
                f"3: backends: {TEXT}",
                f"4: users: {TEXT}",
            ],
        ),
        (config_with() + "backends: x\nusers: {a: b}\n", [f"3: backends: {TEXT}"]),
        (config_with() + "user: {}\n", ["3: user: unknown key, did you mean users?"]),
        (config_with() + "backends: {a: b}\n", [f"3: backends.a: {TEXT}"]),
        ("socket: /x\n", ["1: socket: unknown key", f"1: {MISSING}"]),
    ],
)
def test_sections(load: Load, text: str, expected: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    name = f"{tmp_path}/file.yml:"
    assert [error.removeprefix(name) for error in caught.value.errors] == [line for line in expected if line]


def test_sections_may_be_empty(load: Load) -> None:
    config = load(config_with("timeouts:", "log:") + "backends:\nusers:\n")
    assert config == load(config_with())
    assert load(config_with("timeouts: {}", "log: {}") + "backends: {}\nusers: {}\n") == config


# --- config: ---

SWITCHES = ["ignoreDomain", "case_sensitive", "smtputf8"]
FIELDS = {"ignoreDomain": "ignore_domain"}


@pytest.mark.parametrize("key", SWITCHES)
@pytest.mark.parametrize("value", ["true", "True", "YES", "yes", "on", "false", "FALSE", "no", "No", "off"])
def test_switches(load: Load, key: str, value: str) -> None:
    expected = value.lower() in {"true", "yes", "on"}
    assert getattr(load(config_with(f"{key}: {value}")), FIELDS.get(key, key)) is expected


@pytest.mark.parametrize("value", ["0660", '"0660"', "0o660", "'0o660'"])
def test_permissions(load: Load, value: str) -> None:
    assert load(config_with(f"permissions: {value}")).permissions == 0o660


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("permissions: 0777", "permissions", 0o777),
        ("permissions: 0o7", "permissions", 7),
        ("socket: /run/" + "x" * 102, "socket", (UnixAddress("/run/" + "x" * 102),)),
        ("socket: [localhost, 24]", "socket", (TcpAddress("localhost", 24),)),
        ("socket: ['0.0.0.0', '65535']", "socket", (TcpAddress("0.0.0.0", 65535),)),
        ("socket:\n  - '::'\n  - 1", "socket", (TcpAddress("::", 1),)),
        ("socket: [/run/a]", "socket", (UnixAddress("/run/a"),)),
        ("socket: [/run/a, /run/b]", "socket", (UnixAddress("/run/a"), UnixAddress("/run/b"))),
        ("socket: [[localhost, 24], /run/b]", "socket", (TcpAddress("localhost", 24), UnixAddress("/run/b"))),
        ("socket: [[127.0.0.1, 24]]", "socket", (TcpAddress("127.0.0.1", 24),)),
        ("socket: [[0.0.0.0, 24], ['::', 24]]", "socket", (TcpAddress("0.0.0.0", 24), TcpAddress("::", 24))),
        (
            "socket:\n  - /run/a\n  - ['::1', 24]\n  - [mx, 25]",
            "socket",
            (UnixAddress("/run/a"), TcpAddress("::1", 24), TcpAddress("mx", 25)),
        ),
        ("owner: 12345", "owner", "12345"),
        ("group: 12345", "group", "12345"),
        ("run_as: 0", "run_as", "0"),
        ("allow: 127.0.0.1", "allow", (ip_network("127.0.0.1/32"),)),
        ("trusted: 127.0.0.1", "trusted", (ip_network("127.0.0.1/32"),)),
        ("trusted: []", "trusted", ()),
        ("proxy_protocol: [192.0.2.5]", "proxy_protocol", (ip_network("192.0.2.5/32"),)),
        ("allow: ['::/0']", "allow", (ip_network("::/0"),)),
        ("allow: [10.0.0.0/255.0.0.0]", "allow", (ip_network("10.0.0.0/8"),)),
        ('recipient_delimiter: ""', "recipient_delimiter", ""),
        ("recipient_delimiter: '-'", "recipient_delimiter", "-"),
        ("recipient_delimiter: '=[]~'", "recipient_delimiter", "=[]~"),
        ("hostname: my_host", "hostname", "my_host"),
        ("max_clients: 1", "max_clients", 1),
        ("max_message_size: 0", "max_message_size", 0),
        ("max_message_size: 26214400", "max_message_size", 26214400),
        ("hold_timeout: 0.5", "hold_timeout", 0.5),
        ("hold_timeout: 290", "hold_timeout", 290.0),
        ("timeouts: {final_reply: 539}", "timeouts", Timeouts(final_reply=539)),
        ("timeouts: {client_idle: 86400}", "timeouts", Timeouts(client_idle=86400)),
        ("fallback_backend: reject", "fallback_backend", "reject"),
        ("fallback_backend: hold", "fallback_backend", "hold"),
    ],
)
def test_config_values(load: Load, line: str, field: str, value: object) -> None:
    text = config_with(line)
    if line.startswith("socket"):
        text = f"config:\n  {line}\n"
    assert getattr(load(text), field) == value


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("permissions: 660", "permissions: must be octal with a leading 0: write 0660"),
        ("permissions: '660'", "permissions: must be octal with a leading 0: write 0660"),
        ("permissions: 0680", 'permissions: must be octal with a leading 0, such as 0660, not "0680"'),
        ("permissions: 432", "permissions: must be octal with a leading 0: write 0432"),
        ("permissions: 0x1b0", 'permissions: must be octal with a leading 0, such as 0660, not "0x1b0"'),
        ("permissions: rw-rw----", 'permissions: must be octal with a leading 0, such as 0660, not "rw-rw----"'),
        ("permissions: 02660", 'permissions: may have permission bits only (0777), not "02660"'),
        ("permissions: 0000", "permissions: leaves the socket to nobody: write the mode it shall have, such as 0660"),
        ("permissions: [0660]", f"permissions: {MAPPING}"),
        ("ignoreDomain: 1", 'ignoreDomain: must be true or false, not "1"'),
        ("ignore_domain: true", "ignore_domain: unknown key, did you mean ignoreDomain?"),
        ("ignoredomain: true", "ignoredomain: unknown key, did you mean ignoreDomain?"),
        ("control: /x", "control: must be a mapping: lines of `key: value`, indented"),
        ("control: {}", "control: needs a socket: the absolute path of a unix socket"),
        ("control: {socket: x}", 'control.socket: must be the absolute path of a file, not "x"'),
        ("control: {socket: [localhost, 1]}", f"control.socket: {MAPPING}"),
        ("control: {socket: /run/proxy.sock}", f"control.socket: {SHARED_SOCKET}"),
        ("control: {socket: /x, permissions: 660}", "control.permissions: must be octal with a leading 0: write 0660"),
        ("control: {socket: /x, owner: nobody-here}", 'control.owner: there is no user "nobody-here" on this system'),
        ("control: {socket: /x, mode: 0600}", "control.mode: unknown key"),
        ("metrics: /run/metrics", "metrics: must be [host, port]"),
        ("metrics: [localhost]", "metrics: must be [host, port]"),
        ("metrics: {host: localhost}", "metrics: must be [host, port]"),
        ("metrics:", 'metrics: has no value: write one ("" for an empty text) or take the line out'),
        ("uncertain_log: x", 'uncertain_log: must be the absolute path of a file, not "x"'),
        ("workers: 0", 'workers: must be auto or a whole number from 1 to 64, not "0"'),
        ("workers: all", 'workers: must be auto or a whole number from 1 to 64, not "all"'),
        ("trusted: all", 'trusted: must be a network such as 192.0.2.0/24 or 2001:db8::/32, not "all"'),
        ("trusted:", f"trusted: {EMPTY}"),
        ("proxy_protocol:", f"proxy_protocol: {EMPTY}"),
        ("receipts: x", 'receipts: must be the absolute path of a file, not "x"'),
        ("<<: x", "<<: unknown key"),
        ('"a\\nb": x', "a\\nb: unknown key"),
        ("timeout: {}", "timeout: unknown key, did you mean timeouts?"),
        ("owner: no such", 'owner: there is no user "no such" on this system'),
        ("owner: -1", 'owner: there is no user "-1" on this system'),
        ("owner: 4294967295", 'owner: there is no user "4294967295" on this system'),
        ("group: nosuch", 'group: there is no group "nosuch" on this system'),
        ("run_as: nosuch", 'run_as: there is no user "nosuch" on this system'),
        ("run_as: 3999999999", 'run_as: there is no user "3999999999" on this system'),
        ("owner:", f"owner: {EMPTY}"),
        ("recipient_delimiter:", f"recipient_delimiter: {EMPTY}"),
        ("allow:", f"allow: {EMPTY}"),
        ("smtputf8:", f"smtputf8: {EMPTY}"),
        ("allow: []", "allow: would refuse everybody: list the networks that may connect"),
        ("allow: all", 'allow: must be a network such as 192.0.2.0/24 or 2001:db8::/32, not "all"'),
        (
            "allow: 192.0.2.1/24",
            f"allow: {BITS.format('192.0.2.0/24', '192.0.2.1')}",
        ),
        (
            "allow: ['2001:db8::1/32']",
            f"allow: {BITS.format('2001:db8::/32', '2001:db8::1')}",
        ),
        ("allow: {a: b}", f"allow: {MAPPING}"),
        ("allow: [[x]]", f"allow: {MAPPING}"),
        ("pid: run.pid", f'pid: {FILE}"run.pid"'),
        ("pid: /run/", f'pid: {FILE}"/run/"'),
        ('pid: "/run/\\0x"', "pid: holds a character that cannot be printed"),
        ("hostname: a b", 'hostname: must be a host name such as mx.example.org, not "a b"'),
        ("hostname: a..b", 'hostname: must be a host name such as mx.example.org, not "a..b"'),
        ("hostname: -a", 'hostname: must be a host name such as mx.example.org, not "-a"'),
        ("hostname: ü", 'hostname: must be a host name such as mx.example.org, not "ü"'),
        ('hostname: "a\\r\\nb"', "hostname: holds a character that cannot be printed"),
        ("recipient_delimiter: x", f'recipient_delimiter: {MARKS}"x"'),
        ('recipient_delimiter: "@"', f'recipient_delimiter: {MARKS}"@"'),
        ("recipient_delimiter: ++", f'recipient_delimiter: {MARKS}"++"'),
        ("max_clients: 0", f'max_clients: {NUMBER.format(1, 100000)}"0"'),
        ("max_clients: 1_000", f'max_clients: {NUMBER.format(1, 100000)}"1_000"'),
        ("max_clients: 1e3", f'max_clients: {NUMBER.format(1, 100000)}"1e3"'),
        ("max_clients: ٣", f'max_clients: {NUMBER.format(1, 100000)}"٣"'),
        ("max_recipients: -1", f'max_recipients: {NUMBER.format(1, 100000)}"-1"'),
        ("max_message_size: 50M", f'max_message_size: {NUMBER.format(0, 10**15)}"50M"'),
        ("max_message_size: " + "9" * 5000, f'max_message_size: {NUMBER.format(0, 10**15)}"{"9" * 60}..."'),
        ("hold_limit: 1001", f'hold_limit: {NUMBER.format(0, 1000)}"1001"'),
        ("hold_timeout: 30s", f'hold_timeout: {SECONDS}"30s"'),
        (
            "hold_timeout: 300",
            "hold_timeout: must be more than 0 and at most 290 (Postfix waits 300 s for the reply to RCPT)",
        ),
        ("timeouts: 30", f"timeouts: {TEXT}"),
        ("timeouts: {connect: 1:30}", f'timeouts.connect: {SECONDS}"1:30"'),
        ("timeouts: {connect: -1}", f'timeouts.connect: {SECONDS}"-1"'),
        ("timeouts: {connect: nan}", f'timeouts.connect: {SECONDS}"nan"'),
        ("timeouts: {connect: 1e9}", f'timeouts.connect: {SECONDS}"1e9"'),
        ("timeouts: {connect: 0}", f"timeouts.connect: must be more than 0 and at most 300 ({REPLY})"),
        ("timeouts: {connect: 0.00}", f"timeouts.connect: must be more than 0 and at most 300 ({REPLY})"),
        ("timeouts: {greeting: 301}", f"timeouts.greeting: must be more than 0 and at most 300 ({REPLY})"),
        ("timeouts: {command: 301}", f"timeouts.command: must be more than 0 and at most 300 ({REPLY})"),
        (
            "timeouts: {data_write: 301}",
            "timeouts.data_write: must be more than 0 and at most 300 (Postfix gives up a write after 180 s)",
        ),
        ("timeouts: {client_idle: 86401}", "timeouts.client_idle: must be more than 0 and at most 86400 (a day)"),
        ("timeouts: {shutdown: 3601}", "timeouts.shutdown: must be more than 0 and at most 3600 (an hour)"),
        (
            "timeouts: {final_reply: 540}",
            "timeouts.final_reply: must be more than 0 and at most 539 "
            "(every recipient has to be answered in less than 540 s from the client's final dot)",
        ),
        ("timeouts: {conect: 3}", "timeouts.conect: unknown key, did you mean connect?"),
        ("log: info", f"log: {TEXT}"),
        ("log: {syslog: log}", f'log.syslog: {FILE}"log"'),
        (
            "log: {facility: post}",
            "log.facility: must be one of auth, authpriv, cron, daemon, ftp, kern, lpr, mail, news, syslog, user, "
            'uucp, local0, local1, local2, local3, local4, local5, local6, local7, not "post"',
        ),
        ("log: {level: loud}", 'log.level: must be one of debug, info, warning, error, not "loud"'),
        ("log: {file: /x}", "log.file: unknown key"),
        ("fallback_backend: x", 'fallback_backend: there is no backend "x": define it under backends'),
        ("fallback_backend: Reject", 'fallback_backend: there is no backend "Reject": did you mean reject?'),
    ],
)
def test_config_errors(errors: Errors, line: str, expected: str) -> None:
    assert errors(config_with(line)) == [f"3: config.{expected}"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("relative.sock", f'{FILE}"relative.sock"'),
        ("127.0.0.1:24", f'{FILE}"127.0.0.1:24"'),
        ('""', f'{FILE}""'),
        ("", EMPTY),
        ("/run/" + "x" * 103, "is too long for a unix socket: 108 octets, at most 107 are possible"),
        ("/run/" + "ü" * 52, "is too long for a unix socket: 109 octets, at most 107 are possible"),
        ("[localhost]", LISTENER),
        ("[localhost, 24, 25]", LISTENER),
        ("{host: localhost}", MAPPING),
        ("['', 24]", f'{HOST}""'),
        ('["*", 24]', f'{HOST}"*"'),
        ("['[::1]', 24]", f'{HOST}"[::1]"'),
        ("[127.0.0.256, 24]", f'{HOST}"127.0.0.256"'),
        ("[127.1, 24]", f'{HOST}"127.1"'),
        ("[[a], 24]", LISTENER),
        ("[]", LISTENER),
        ("[/run/a, {}]", LISTENER),
        ("[/run/a, run/b]", LISTENER),
        ("[/run/a, 24]", LISTENER),
        ("[/run/a, [h]]", LISTENER),
        ("[/run/a, [h, x]]", f'{NUMBER.format(1, 65535)}"x"'),
        ("[/run/a, /run/]", f'{FILE}"/run/"'),
        ("[/run/a, /run/a]", "/run/a is taken by /run/a already: name one of the two"),
        ("[[localhost, 24], [127.0.0.1, 24]]", "127.0.0.1:24 is taken by localhost:24 already: name one of the two"),
        ("[['::1', 24], ['::', 24]]", "[::]:24 is taken by [::1]:24 already: name one of the two"),
        ("[localhost, 0]", f'{NUMBER.format(1, 65535)}"0"'),
        ("[localhost, 65536]", f'{NUMBER.format(1, 65535)}"65536"'),
        ("[localhost, lmtp]", f'{NUMBER.format(1, 65535)}"lmtp"'),
    ],
)
def test_socket_errors(errors: Errors, value: str, expected: str) -> None:
    assert errors(f"config:\n  socket: {value}\n") == [f"2: config.socket: {expected}"]


def test_each_wrong_listener_is_named_by_its_line(errors: Errors) -> None:
    text = "config:\n  socket:\n  - /run/a\n  - run/b\n  - [h, 0]\n  - /run/a\n  owner: nobody-at-all\n"
    assert errors(text) == [
        f"4: config.socket: {LISTENER}",
        f'5: config.socket: {NUMBER.format(1, 65535)}"0"',
        "6: config.socket: /run/a is taken by /run/a already: name one of the two",
        '7: config.owner: there is no user "nobody-at-all" on this system',
    ]


def test_none_of_several_listeners_may_be_anything_else(errors: Errors) -> None:
    text = "config:\n  socket: [/run/a, [127.0.0.1, 24]]\n  control: {socket: /run/a}\n  metrics: [127.0.0.1, 24]\n"
    assert errors(text + "backends:\n  b: {host: localhost, port: 24}\n  c: {socket: /run/a}\n") == [
        f"3: config.control.socket: {SHARED_SOCKET}",
        "4: config.metrics: is the socket for mail already: take another port",
        "6: backends.b.host: localhost:24 is the socket of this proxy: mail would go round in circles",
        "7: backends.c.socket: /run/a is the socket of this proxy: mail would go round in circles",
    ]


def test_owner_and_mode_hold_for_the_unix_sockets_among_several(load: Load) -> None:
    config = load("config:\n  socket: [/run/a, [127.0.0.1, 24]]\n  owner: root\n  permissions: 0660\n")
    assert (config.owner, config.permissions, config.notes) == ("root", 0o660, ())
    config = load("config:\n  socket: [[127.0.0.2, 24], [127.0.0.1, 24]]\n  owner: root\n")
    assert config.owner is None and len(config.notes) == 1


def test_metrics(load: Load, errors: Errors) -> None:
    assert load(config_with("metrics: [localhost, 9424]")).metrics == TcpAddress("localhost", 9424)
    assert load(config_with()).metrics is None
    assert [error.partition(" must")[0] for error in errors(config_with('metrics: ["", 70000]'))] == [
        "3: config.metrics:", "3: config.metrics:"
    ]  # fmt: skip
    mail = "config:\n  socket: [0.0.0.0, 2424]\n  metrics: [127.0.0.1, 2424]\n"
    assert errors(mail) == ["3: config.metrics: is the socket for mail already: take another port"]


def test_an_item_of_a_list_is_named_by_its_own_line(errors: Errors) -> None:
    assert errors(config_with("allow:", "  - ::1", "  - x", "  - 10.0.0.0/8", "  - y")) == [
        '5: config.allow: must be a network such as 192.0.2.0/24 or 2001:db8::/32, not "x"',
        '7: config.allow: must be a network such as 192.0.2.0/24 or 2001:db8::/32, not "y"',
    ]


@pytest.mark.parametrize(("own", "expected"), [("mx1", "mx1"), ("a b", "localhost"), ("", "localhost")])
def test_the_default_hostname(load: Load, monkeypatch: pytest.MonkeyPatch, own: str, expected: str) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: own)
    assert load(config_with()).hostname == expected


def test_facilities_are_those_of_the_syslog_handler() -> None:
    assert FACILITIES.items() < logging.handlers.SysLogHandler.facility_names.items()


# --- backends: ---


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], ["4: backends.b: has no address: give it a socket, or host and port"]),
        (["max_connections: 3"], ["4: backends.b: has no address: give it a socket, or host and port"]),
        (["socket: lmtp"], [f'5: backends.b.socket: {FILE}"lmtp"']),
        (["socket: [localhost, 24]"], [f"5: backends.b.socket: {MAPPING}"]),
        (
            ["socket: /" + "x" * 107],
            ["5: backends.b.socket: is too long for a unix socket: 108 octets, at most 107 are possible"],
        ),
        (["socket:"], [f"5: backends.b.socket: {EMPTY}"]),
        (["host: h"], ["5: backends.b.host: needs a port beside it"]),
        (["port: 24"], ["5: backends.b.port: needs a host beside it"]),
        (
            ["host: a b", "port: x"],
            [f'5: backends.b.host: {HOST}"a b"', f'6: backends.b.port: {NUMBER.format(1, 65535)}"x"'],
        ),
        (["host: h", "port:"], [f"6: backends.b.port: {EMPTY}"]),
        (["socket: /a", "max_connections: 0"], [f'6: backends.b.max_connections: {NUMBER.format(1, 10000)}"0"']),
        (["socket: /a", "max_per_user: 0"], [f'6: backends.b.max_per_user: {NUMBER.format(1, 10000)}"0"']),
        (["socket: /a", "tsl: no"], ["6: backends.b.tsl: unknown key, did you mean tls?"]),
        (["socket: /a", "idle_timeout: x"], [f'6: backends.b.idle_timeout: {SECONDS}"x"']),
        (["socket: /a", "idle_timeout: -1"], [f'6: backends.b.idle_timeout: {SECONDS}"-1"']),
        (
            ["socket: /a", "idle_timeout: 86401"],
            ["6: backends.b.idle_timeout: must be more than 0 and at most 86400 (a day)"],
        ),
        (["socket: /a", "restart_grace: -1"], [f'6: backends.b.restart_grace: {SECONDS}"-1"']),
        (
            ["socket: /a", "restart_grace: 61"],
            ["6: backends.b.restart_grace: must be more than 0 and at most 60 (a client waits meanwhile)"],
        ),
        (
            ["socket: /a", "recipients_per_transaction: -1"],
            [f'6: backends.b.recipients_per_transaction: {NUMBER.format(0, 1000000)}"-1"'],
        ),
        (["socket: /a", "pasword_file: x"], ["6: backends.b.pasword_file: unknown key, did you mean password_file?"]),
        (["socket: /a", "timeouts: {client_idle: 3}"], ["6: backends.b.timeouts.client_idle: unknown key"]),
        (["socket: /a", "timeouts: {shutdown: 3}"], ["6: backends.b.timeouts.shutdown: unknown key"]),
        (["socket: /a", "timeouts: {command: x}"], [f'6: backends.b.timeouts.command: {SECONDS}"x"']),
        (["socket: /a", "user: u"], ["6: backends.b.user: needs a password or password_file beside it"]),
        (["socket: /a", "password: secret"], ["6: backends.b.password: needs a user beside it"]),
        (["socket: /a", "user:", "password: secret"], [f"6: backends.b.user: {EMPTY}"]),
        (["socket: /a", 'user: ""', "password: secret"], ["6: backends.b.user: is empty"]),
        (["socket: /a", "user: u", "password:"], [f"7: backends.b.password: {EMPTY}"]),
        (["socket: /a", "user: u", 'password: ""'], ["7: backends.b.password: is empty"]),
        (["socket: /a", "user: u", "password: {secret: x}"], [f"7: backends.b.password: {MAPPING}"]),
        (["socket: /a", "user: u", 'password: "secret\\0"'], [f"7: backends.b.password: {LINE_END}"]),
        (["socket: /a", "user: u", 'password: "\\rsecret"'], [f"7: backends.b.password: {LINE_END}"]),
        (["socket: /a", 'user: "u\\n"', "password: secret"], [f"6: backends.b.user: {LINE_END}"]),
        (["socket: /a", "user: u", "password: |", "  secret"], [f"7: backends.b.password: {LINE_END}"]),
        (
            ["socket: /a", "user: u", "password: secret", "password_file: file.yml"],
            [
                "8: backends.b.password_file: cannot stand beside password: take one of the two out",
                f"8: backends.b.password_file: {LINE_END}",
            ],
        ),
        (["socket: /a", "user: u", "password_file: secret"], [f"7: backends.b.password_file: {NO_FILE}"]),
        (["socket: /a", "user: u", "password_file: /"], ["7: backends.b.password_file: is not a regular file"]),
        (["socket: /a", "user: u", "password_file: /dev/zero"], ["7: backends.b.password_file: is not a regular file"]),
        (["socket: /a", "user: u", "password_file:"], [f"7: backends.b.password_file: {EMPTY}"]),
        (["socket: /a", "user: u", 'password_file: "secret\\0"'], [f"7: backends.b.password_file: {UNPRINTABLE}"]),
    ],
)
def test_backend_errors(errors: Errors, lines: list[str], expected: list[str]) -> None:
    found = errors(backend_with(*lines))
    assert found == expected
    assert "secret" not in "".join(found)


def test_a_lone_surrogate_is_no_password(errors: Errors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmtp_proxy.config.yaml_text._LOADER", yaml.SafeLoader)  # the parser in C refuses it itself
    lines = ("socket: /a", "user: u", 'password: "\\ud800"')
    assert errors(backend_with(*lines)) == ["7: backends.b.password: is not UTF-8 text"]


@pytest.mark.parametrize("name", ['""', "a b", '"a,b"', '"a[b"', '"]"', '"a\\nb"', "a\u00a0b"])
def test_backend_names_can_stand_in_the_log(errors: Errors, name: str) -> None:
    found = errors(config_with() + f"backends:\n  {name}: {{socket: /a}}\n")
    assert [error.rpartition(": ")[2] for error in found] == ["must be a name without blanks, commas and brackets"]


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_reserved_names(errors: Errors, name: str) -> None:
    assert errors(config_with() + f"backends:\n  {name}: {{socket: /a}}\nusers: {{u: {name}}}\n") == [
        f"4: backends.{name}: is reserved: a user on it is refused or held, no backend can be called so"
    ]


@pytest.mark.parametrize(
    ("content", "password"),
    [
        (b"secret", "secret"),
        (b"secret\n", "secret"),
        (b"secret\r\n", "secret"),
        (b" se cret \n", " se cret "),
        ("pässword\n".encode(), "pässword"),
        (b"x" * 4096, "x" * 4096),
    ],
)
def test_password_files(load: Load, tmp_path: Path, content: bytes, password: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/pw").write_bytes(content)
    for name in ("sub/pw", f"{tmp_path}/sub/pw"):
        backend = load(backend_with("socket: /a", "user: u", f"password_file: {name}")).backends["b"]
        assert (backend.user, backend.password) == ("u", password)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"secret\n\n", LINE_END),
        (b"secret\nsecret", LINE_END),
        (b"\0secret", LINE_END),
        (b"secret\xff", "is not UTF-8 text"),
        (b"secret" * 1000, "is larger than 4096 octets"),
    ],
)
def test_bad_password_files(errors: Errors, tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "pw").write_bytes(content)
    lines = ("socket: /a", "user: u", "password_file: pw")
    assert errors(backend_with(*lines)) == [f"7: backends.b.password_file: {expected}"]


def test_a_fifo_is_no_password_file(errors: Errors, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pw")
    lines = ("socket: /a", "user: u", "password_file: pw")
    assert errors(backend_with(*lines)) == ["7: backends.b.password_file: is not a regular file"]


def test_passwords_are_never_shown(load: Load) -> None:
    config = load(backend_with("socket: /a", "user: u", "password: hunter2"))
    assert config.backends["b"].password == "hunter2"
    assert "hunter2" not in repr(config) + str(config) + repr(config.backends["b"])


# --- loops ---


def tcp(text: str, port: int = 24) -> TcpAddress:
    return TcpAddress(text, port)


@pytest.mark.parametrize(
    ("listener", "backend", "expected"),
    [
        (tcp("127.0.0.1"), tcp("127.0.0.1"), True),
        (tcp("127.0.0.1"), tcp("127.0.0.1", 25), False),
        (tcp("127.0.0.1"), tcp("127.0.0.2"), False),
        (tcp("127.0.0.1"), tcp("localhost"), True),
        (tcp("127.0.0.1"), tcp("LocalHost."), True),
        (tcp("127.0.0.1"), tcp("0.0.0.0"), True),
        (tcp("127.0.0.1"), tcp("::ffff:127.0.0.1"), True),
        (tcp("127.0.0.1"), tcp("::1"), False),
        (tcp("127.0.0.1"), tcp("::"), False),
        (tcp("::1"), tcp("0:0::1"), True),
        (tcp("::1"), tcp("::"), True),
        (tcp("::1"), tcp("localhost"), True),
        (tcp("localhost"), tcp("::1"), True),
        (tcp("localhost"), tcp("127.0.0.1"), True),
        (tcp("0.0.0.0"), tcp("127.0.0.1"), True),
        (tcp("0.0.0.0"), tcp("127.9.9.9"), True),
        (tcp("0.0.0.0"), tcp("0.0.0.0"), True),
        (tcp("0.0.0.0"), tcp("localhost"), True),
        (tcp("0.0.0.0"), tcp("::1"), False),
        (tcp("0.0.0.0"), tcp("192.0.2.1"), False),
        (tcp("0.0.0.0"), tcp("store.example.org"), False),
        (tcp("0.0.0.0"), tcp(socket.gethostname().upper()), True),
        (tcp("::"), tcp("127.0.0.1"), True),
        (tcp("::"), tcp("::1"), True),
        (tcp("::"), tcp("2001:db8::1"), False),
        (tcp("192.0.2.1"), tcp("192.0.2.1"), True),
        (tcp("192.0.2.1"), tcp("127.0.0.1"), False),
        (tcp("mx.example.org"), tcp("MX.example.org."), True),
        (tcp("mx.example.org"), tcp("store.example.org"), False),
        (tcp("127.0.0.1"), UnixAddress("/a"), False),
        (UnixAddress("/a"), tcp("127.0.0.1"), False),
        (UnixAddress("/a/b"), UnixAddress("/a/b"), True),
        (UnixAddress("/a/b"), UnixAddress("/a//./x/../b"), True),
        (UnixAddress("/a/b"), UnixAddress("/a/c"), False),
    ],
)
def test_own_listener(listener: Address, backend: Address, expected: bool) -> None:
    assert is_own_listener(listener, backend) is expected


def test_own_listener_by_another_name(tmp_path: Path) -> None:
    file = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(file))
    (tmp_path / "symlink").symlink_to(file)
    os.link(file, tmp_path / "hardlink")
    (tmp_path / "dir").symlink_to(tmp_path)
    for name in ("symlink", "hardlink", "dir/sock"):
        assert is_own_listener(UnixAddress(str(file)), UnixAddress(str(tmp_path / name)))
    assert not is_own_listener(UnixAddress(str(file)), UnixAddress(str(tmp_path / "other")))


def test_a_loop_is_refused(errors: Errors) -> None:
    text = "config: {socket: /run/x}\nbackends:\n  a:\n    socket: /run/./x\n"
    assert errors(text) == [
        "4: backends.a.socket: /run/./x is the socket of this proxy: mail would go round in circles"
    ]
    text = "config: {socket: ['::', 24]}\nbackends:\n  a:\n    host: ::1\n    port: 24\n"
    assert errors(text) == ["4: backends.a.host: [::1]:24 is the socket of this proxy: mail would go round in circles"]


# --- users: ---

WILDCARD = (
    "is the one mailbox of that name, as * is no wildcard: write @example.org (in quotes) for all of a domain, "
    "fallback_backend for all the rest"
)
NO_MATCH = "can never match while ignoreDomain is true: take it out, or use fallback_backend"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["alice: odl"], ['7: users.alice: there is no backend "odl": did you mean old?']),
        (["alice: OLD"], ['7: users.alice: there is no backend "OLD": did you mean old?']),
        (["alice: REJECT"], ['7: users.alice: there is no backend "REJECT": did you mean reject?']),
        (["alice: elsewhere"], ['7: users.alice: there is no backend "elsewhere": define it under backends']),
        (['alice: ""'], ['7: users.alice: there is no backend "": define it under backends']),
        (["alice: " + "x" * 99], [f'7: users.alice: there is no backend "{"x" * 99}": define it under backends']),
        (["alice:"], ["7: users.alice: has no value: write the name of a backend, reject or hold"]),
        (["alice: [old]"], ["7: users.alice: must be the name of a backend, reject or hold"]),
        (["alice: {old: new}"], ["7: users.alice: must be the name of a backend, reject or hold"]),
        (['"": old'], ["7: users.: a user cannot be empty"]),
        (["?", ": old"], ["7: users.: a user cannot be empty"]),
        (['"@": old'], [f"7: users.@: {NO_DOMAIN}"]),
        (["'\"a b\"@example.org': old"], [f'7: users."a b"@example.org: {QUOTES}']),
        (["'\"a b\"': old"], ['7: users."a b": is looked up without its quotes: write it without them']),
        (['"a\\nb": old'], ["7: users.a\\nb: holds a control character, which no address can"]),
        (
            ['"a\\x7fb": odl'],
            [
                '7: users.a\\x7fb: there is no backend "odl": did you mean old?',
                "7: users.a\\x7fb: holds a control character, which no address can",
            ],
        ),
        (["alice: old", "", "bob: new", "alice: new"], ["10: users.alice: is given twice, first on line 7"]),
        (
            ["alice: old", "bob: new", "Alice: new"],
            [f"9: users.Alice: {SAME.format('alice', 7, 'old')}"],
        ),
        (
            ["a@b.C: old", "A@B.c: reject", "a@b.c: hold"],
            [f"8: users.A@B.c: {SAME.format('a@b.C', 7, 'old')}", f"9: users.a@b.c: {SAME.format('a@b.C', 7, 'old')}"],
        ),
    ],
)
def test_user_errors(errors: Errors, lines: list[str], expected: list[str]) -> None:
    assert errors(users_with(*lines)) == expected


def test_users_of_several_domains_while_domains_are_ignored(load: Load, errors: Errors) -> None:
    ignore = ("ignoreDomain: true",)
    assert load(users_with("a@x: old", "a@y: old", "A: old", "b@x: new", config=ignore)).users == {
        "a": "old",
        "b": "new",
    }
    assert errors(users_with("a@x: old", "a@y: new", '"@x": old', config=ignore)) == [
        f"9: users.a@y: {SAME.format('a@x', 8, 'old')}",
        f"10: users.@x: {NO_MATCH}",
    ]


def test_users(load: Load) -> None:
    users = load(
        users_with(
            *("Alice@Example.org: old", "ALICE@example.org: old", '"@Example.NET": new', "bob+x@example.org: hold"),
            *("NO: reject", "012: old", "1:30: new", "null: old", "~: old", "1e3: old", "=: old", "<<: old"),
            *("grüße@example.org: old", "'\"': old", '"a\u00a0b": old', "alice+: old", "a b@c: old"),
        )
    ).users
    assert users == {
        "alice@example.org": "old",
        "@example.net": "new",
        "bob+x@example.org": "hold",
        "no": "reject",
        **dict.fromkeys(["012", "null", "~", "1e3", "=", "<<", "a b@c", "grüße@example.org", '"'], "old"),
        "1:30": "new",
        "a\u00a0b": "old",
        "alice+": "old",
    }


def test_letters_count_when_they_shall(load: Load) -> None:
    assert load(users_with("alice: old", "Alice: new", config=("case_sensitive: true",))).users == {
        "alice": "old",
        "Alice": "new",
    }


def test_very_many_errors_are_cut(errors: Errors, load: Load, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(users_with(*(f"u{n}: store{n}" for n in range(5000))))
    assert len(caught.value.errors) == 21
    assert caught.value.errors[-1] == f"{tmp_path}/file.yml: and 4980 more errors"
    assert how_many(caught.value.errors) == 5000
    assert how_many(caught.value.errors[:-1]) == 20 and how_many(()) == 0
    with pytest.raises(ConfigError) as caught:
        load("".join(f"user{n}: old\n" for n in range(5000)))  # the line `users:` is missing
    assert caught.value.errors[-1] == f"{tmp_path}/file.yml: and 4981 more errors"


def test_twenty_errors_are_no_more_than_can_be_read(errors: Errors) -> None:
    found = errors(users_with(*(f"u{n}: store{n}" for n in range(20))))
    assert len(found) == 20 and "more" not in found[-1]


SHARED = {"connect": "3", "command": "7"}
NETWORKS = ["127.0.0.0/8", "::1/128"]


@pytest.mark.parametrize("style", [{}, {"default_flow_style": True}, {"explicit_start": True, "sort_keys": False}])
def test_what_yaml_dump_makes_of_shared_values(load: Load, style: dict[str, Any]) -> None:
    store = {"host": "192.0.2.1", "port": "24", "timeouts": SHARED}
    tree = {
        "config": {"socket": "/run/s", "timeouts": SHARED, "allow": NETWORKS, "trusted": NETWORKS},
        "backends": {"old": store, "new": {**store, "host": "192.0.2.2"}, "same": store},
        "users": {"alice": "old", "bob": "same"},
    }
    text = yaml.dump(tree, **style)
    assert "&id001" in text and "*id002" in text
    config = load(text)
    assert config.timeouts == Timeouts(connect=3, command=7) and config.allow == config.trusted != ()
    assert config.backends["old"] == dataclasses.replace(config.backends["same"], name="old")
    assert config.backends["new"].timeouts == config.timeouts


def test_a_store_made_of_another_by_a_merge(load: Load, errors: Errors) -> None:
    text = config_with() + (
        "backends:\n  old: &store\n    host: 192.0.2.1\n    port: 24\n    timeouts: &t {connect: 3}\n"
        "  new:\n    <<: *store\n    host: 192.0.2.2\n  third:\n    timeouts: {<<: *t, command: 9}\n    socket: /s\n"
        "users:\n  alice: new\n"
    )
    config = load(text)
    assert config.backends["new"] == Backend(
        "new", TcpAddress("192.0.2.2", 24), timeouts=Timeouts(connect=3), max_connections=20
    )
    assert config.backends["third"].timeouts == Timeouts(connect=3, command=9)
    wrong = text.replace("port: 24", "port: x")
    assert errors(wrong) == [
        f'6: backends.old.port: {NUMBER.format(1, 65535)}"x"',
        f'6: backends.new.port: {NUMBER.format(1, 65535)}"x"',
    ]


def test_users_by_a_merge_are_users_and_have_their_lines(load: Load, errors: Errors) -> None:
    lines = ("<<: [{alice: old, bob: old}, {bob: new, carol: &c new}]", "dave: *c", "alice: new")
    config = load(users_with(*lines))
    assert dict(config.users) == {"alice": "new", "bob": "old", "carol": "new", "dave": "new"}
    assert [config.users.line(name) for name in ("alice", "bob", "carol", "dave")] == [9, 7, 7, 8]
    assert errors(users_with(*lines, "Carol: old")) == [f"10: users.Carol: {SAME.format('carol', 7, 'new')}"]


@pytest.mark.parametrize(
    ("text", "users", "allowed"),
    [
        *(("10%", 0, 10), ("10%", 100, 10), ("10%", 119, 11), ("10%", 1_000_000, 100_000), ("0%", 9999, 10)),
        *(("100%", 5000, 5000), ("100%", 3, 10), ("0", 5000, 0), ("25", 10, 25), ("500", 1000, 500)),
    ],
)
def test_how_many_users_a_reload_may_remove(load: Load, text: str, users: int, allowed: int) -> None:
    value = load(config_with(f"max_removed: {text}")).max_removed
    assert value.of(users) == allowed and str(value) == text


@pytest.mark.parametrize("text", ["101%", "-1", "ten", "10 %", "1.5", "'%'", "'10%%'", "'٣'"])
def test_what_max_removed_cannot_be(errors: Errors, text: str) -> None:
    [error] = errors(config_with(f"max_removed: {text}"))
    assert error.startswith("3: config.max_removed: must be a number of users, or a share of them such as 10%, not ")


# --- notes: right, and perhaps not what was meant ---


OPEN_BEFORE = (
    "config.socket: is not on loopback and there is no allow: only private networks may connect, where once everybody "
    'could; list those that may, for everybody allow: [0.0.0.0/0, "::/0"]'
)


@pytest.mark.parametrize(
    ("sockets", "noted"),
    [
        ("[0.0.0.0, 24]", True),
        ("['::', 24]", True),
        ("[10.1.2.3, 24]", True),
        ("[127.0.0.1.example.org, 24]", True),
        ("[mx, 24]", True),
        ("[[127.0.0.1, 24], [192.0.2.1, 24]]", True),
        ("[127.1.2.3, 24]", False),
        ("['::1', 24]", False),
        ("['::ffff:127.0.0.1', 24]", False),
        ("[LocalHost., 24]", False),
        ("/run/x", False),
    ],
)
def test_who_may_connect_by_default_is_named_as_a_change(load: Load, tmp_path: Path, sockets: str, noted: bool) -> None:
    text = f"config:\n  socket: {sockets}\nbackends: {{a: {{socket: /s}}}}\nusers: {{u: a}}\n"
    assert load(text).notes == ((f"{tmp_path}/file.yml:2: {OPEN_BEFORE}",) if noted else ())
    config = load(text.replace("backends", "  allow: 127.0.0.1\nbackends", 1))
    assert config.notes == ()


def test_an_asterisk_is_a_possible_local_part(load: Load, tmp_path: Path) -> None:
    names = ["*", "*example.org", "*@example.org", "**@x"]
    config = load(users_with("bob: old", *(f'"{name}": new' for name in names), "'a*b': old"))
    assert {name: config.users[name] for name in names} == dict.fromkeys(names, "new") and len(config.users) == 6
    assert config.notes == tuple(
        f"{tmp_path}/file.yml:{n}: users.{name}: {WILDCARD}" for n, name in enumerate(names, 8)
    )


@pytest.mark.parametrize(
    ("lines", "notes"),
    [
        (["socket: /a", "port: 24"], ["6: backends.b.port"]),
        (["port: 24", "socket: /a", "host: h"], ["5: backends.b.port", "7: backends.b.host"]),
        (["socket: /a", "host: a b", "port: x"], ["6: backends.b.host", "7: backends.b.port"]),
        (["socket: /a", "host:", "port: {}"], ["6: backends.b.host", "7: backends.b.port"]),
        (["socket: /a", "host: [a]"], ["6: backends.b.host"]),
        (["socket: /a"], []),
    ],
)
def test_a_host_beside_a_socket_is_ignored(load: Load, tmp_path: Path, lines: list[str], notes: list[str]) -> None:
    config = load(backend_with(*lines))
    assert config.backends["b"] == Backend("b", UnixAddress("/a"))
    assert config.notes == tuple(f"{tmp_path}/file.yml:{note}: is ignored: socket stands beside it" for note in notes)


def test_a_wrong_socket_is_wrong_also_with_a_host_beside_it(errors: Errors) -> None:
    assert errors(backend_with("socket: lmtp", "host: h", "port: 24")) == [f'5: backends.b.socket: {FILE}"lmtp"']


@pytest.mark.parametrize(
    "lines",
    [
        *(["owner: root"], ["owner: nobody-at-all"], ["group: nobody-at-all", "permissions: 660"], ["owner:"]),
        *(["permissions: 0000", "owner: [a]", "group: null"], ["permissions: {a: b}"], []),
    ],
)
def test_the_owner_of_a_tcp_socket_is_ignored(load: Load, tmp_path: Path, lines: list[str]) -> None:
    text = "".join(f"  {line}\n" for line in ("socket: [127.0.0.1, 24]", *lines))
    config = load(f"config:\n{text}")
    assert (config.owner, config.group, config.permissions) == (None, None, None)
    keys = [(number, line.partition(":")[0]) for number, line in enumerate(lines, 3)]
    assert config.notes == tuple(
        f"{tmp_path}/file.yml:{line}: config.{key}: is ignored: a TCP socket has none" for line, key in keys
    )


def test_a_wrong_listener_has_no_owner_either(errors: Errors) -> None:
    assert errors("config:\n  socket: [h, 24, 25]\n  owner: nobody-at-all\n") == [
        "2: config.socket: must be a path or [host, port]"
    ]
    assert errors("config:\n  socket: s\n  owner: nobody-at-all\n")[1:] == [
        '3: config.owner: there is no user "nobody-at-all" on this system'
    ]


def test_of_many_notes_the_first_are_shown(load: Load, tmp_path: Path) -> None:
    backends = "".join(f"  b{n}: {{socket: /b{n}, host: h}}\n" for n in range(30))
    config = load(config_with() + "backends:\n" + backends)
    assert len(config.notes) == 21 and how_many(config.notes) == 30
    assert config.notes[-1] == f"{tmp_path}/file.yml: and 10 more notes"
    assert pickle.loads(pickle.dumps(config)).notes == config.notes


# --- values ---


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (UnixAddress("/run/x"), "/run/x"),
        (TcpAddress("127.0.0.1", 24), "127.0.0.1:24"),
        (TcpAddress("store", 24), "store:24"),
        (TcpAddress("::1", 24), "[::1]:24"),
    ],
)
def test_addresses_as_text(address: Address, text: str) -> None:
    assert str(address) == text


def test_values_are_frozen_and_can_travel(load: Load) -> None:
    config = load(users_with("alice: old", config=("allow: 10.0.0.0/8",)))
    assert pickle.loads(pickle.dumps(config)) == config
    for value in (config, config.timeouts, config.log, config.backends["old"], config.socket[0]):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, dataclasses.fields(value)[0].name, "x")
    assert "alice" not in repr(config)
    assert len({config.backends["old"], config.backends["old"]}) == 1
    error = ConfigError(("a", "b"))
    assert pickle.loads(pickle.dumps(error)).errors == ("a", "b")


# --- the shipped example ---

EXAMPLE_TEXT = EXAMPLE.read_text("utf-8")
DECIDED_BY_THE_SYSTEM = {"hostname"}


def test_the_example_has_the_defaults(load: Load) -> None:
    example = load_config(str(EXAMPLE))
    least = load("config: {socket: [127.0.0.1, 2424]}\n")
    differing = {name: getattr(example, name) for name in ("path", "backends", "users")}
    assert example == dataclasses.replace(least, **differing)
    assert set(example.backends) == {"old", "new"}
    assert set(example.users.values()) == {"old", "new", "reject", "hold"}
    assert any(user.startswith("@") for user in example.users)


def active(section: list[str]) -> Any:
    node: Any = yaml.safe_load(EXAMPLE_TEXT)
    for name in section:
        node = node[name]
    return node


@pytest.mark.parametrize("key", KEYS["config"])
def test_the_example_shows_every_key_of_config(key: str) -> None:
    text = EXAMPLE_TEXT.partition("\nconfig:\n")[2].partition("\nbackends:\n")[0]
    written = re.findall(rf"^  (#?){key}:(?: |$)", text, re.MULTILINE)
    assert len(written) == 1
    defaults = {field.name: field.default for field in dataclasses.fields(Config)}
    if written == ["#"]:
        assert key in DECIDED_BY_THE_SYSTEM or defaults[key] is None
        before = text[: text.index(f"  #{key}:")]
        assert "Default: " in before[before.rindex("\n\n") :], "the comment says what holds without it"
    else:
        assert key == "socket" or defaults[FIELDS.get(key, key)] is not None


def test_the_example_shows_every_other_key() -> None:
    control = re.findall(
        r"^  #  (\w+):", EXAMPLE_TEXT.partition("\n  #control:\n")[2].partition("\n\n")[0], re.MULTILINE
    )
    assert set(control) == set(KEYS["config.control"])
    assert set(active(["config", "timeouts"])) == set(KEYS["config.timeouts"])
    assert set(active(["config", "log"])) | {"syslog"} == set(KEYS["config.log"])
    backends = EXAMPLE_TEXT.partition("\nbackends:\n")[2].partition("\nusers:\n")[0]
    assert set(re.findall(r"^    #?(\w+):", backends, re.MULTILINE)) == set(KEYS["backends.*"])
    for key in KEYS["backends.*.timeouts"]:
        assert re.search(rf"\b{key}\b", backends)


def test_the_example_is_right_with_every_line_in_force(load: Load, tmp_path: Path) -> None:
    """Each example that is commented out is valid too, one at a time."""
    (tmp_path / "secret").write_text("x")
    system = {"owner: postfix": "owner: root", "group: postfix": "group: root", "run_as: lmtp-proxy": "run_as: root"}
    found = re.findall(r"^ +#(\w+:.*)$", EXAMPLE_TEXT, re.MULTILINE)
    assert len(found) >= 8
    for line in found:
        if line.startswith(("password", "user", "timeouts", "control", "tls", "table")):
            continue
        config = load(EXAMPLE_TEXT.replace(f"#{line}", system.get(line, line), 1))
        assert config != load_config(str(EXAMPLE))
    text = EXAMPLE_TEXT.replace("#timeouts:", "timeouts:").replace("#  final_reply", "  final_reply")
    assert load(text).backends["old"].timeouts.final_reply == 300
    text = re.sub(
        "^  #control:\n(  #  .*\n)+", lambda found: found[0].replace("  #", "  "), EXAMPLE_TEXT, flags=re.MULTILINE
    )
    assert load(text).control == Control(UnixAddress("/run/lmtp-proxy/control"), "root", "adm", 0o660)
    with_table = EXAMPLE_TEXT.replace("#table:\n  #", "table:\n  ").partition("users:\n")[0]
    assert load(with_table).table == TableSetting("/var/lib/lmtp-proxy/table.db")
    text = EXAMPLE_TEXT.replace("#user:", "user:")
    assert load(text.replace("#password:", "password:")).backends["new"].password == "secret"
    text = text.replace("#password_file: /etc/lmtp-proxy.password", "password_file: secret")
    assert load(text).backends["new"].password == "x"


# --- users in a database ---


@pytest.mark.parametrize(
    "section, users, error",
    [
        (
            "table: {}",
            "",
            "config.table: needs sqlite: the absolute path of the database, see lmtp-proxyctl table init",
        ),
        ("table: {sqlite: t.db}", "", 'config.table.sqlite: must be the absolute path of a file, not "t.db"'),
        ("table: {sqlite: /t.db, node: mx1}", "", "config.table.node: unknown key"),
        ("table: /t.db", "", "config.table: must be a mapping: lines of `key: value`, indented"),
        (
            "table: {sqlite: /t.db}",
            "users: {a: old}",
            "users: the users are in config.table: `lmtp-proxyctl table import ",
        ),
        ("table: {sqlite: /t.db}\n  users_file: x.d", "", "config.users_file: the users are in config.table: "),
    ],
)
def test_a_table_that_is_wrong(tmp_path: Path, section: str, users: str, error: str) -> None:
    (tmp_path / "x.d").mkdir()
    path = tmp_path / "c.yml"
    path.write_text(f"config:\n  socket: /run/x\n  {section}\nbackends:\n  old: {{socket: /run/z}}\n{users}\n")
    with pytest.raises(ConfigError) as refused:
        load_config(str(path))
    assert any(error in line for line in refused.value.errors), refused.value.errors


def test_users_beside_a_table_can_be_read_to_be_brought_over(tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    head = "config:\n  socket: /run/x\n  table: {sqlite: /t.db}\nbackends:\n  old: {socket: /run/z}\n"
    path.write_text(f"{head}users: {{a: old}}\n")
    config = load_config(str(path), without_table=True)
    assert (config.table, dict(config.users)) == (None, {"a": "old"})
    path.write_text(head)
    assert load_config(str(path)).table == TableSetting("/t.db")
    assert load_config(str(path)).how_many == 0


# --- whatever the file is ---

fuzz = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check_outcome(path: Path, content: bytes) -> None:
    """A Config, or errors that each begin with a file, this or that of `users_file`, and are one printable line."""
    path.write_bytes(content)
    errors: tuple[str, ...] | None = None
    try:
        load_config(str(path))
    except ConfigError as error:
        errors = error.errors
    assert errors != ()
    for line in errors or ():
        assert re.match((r"/.+?" if b"users_file" in content else re.escape(str(path))) + r"(:\d+)?: .", line)
        assert line.isprintable()


@fuzz
@given(st.binary(max_size=300))
def test_any_octets_as_a_file(tmp_path: Path, content: bytes) -> None:
    check_outcome(tmp_path / "x.yml", content)


@fuzz
@given(st.binary(max_size=20), st.integers(0), st.integers(0, 60))
def test_the_example_with_octets_changed(tmp_path: Path, change: bytes, place: int, cut: int) -> None:
    content = EXAMPLE_TEXT.encode()
    place %= len(content)
    check_outcome(tmp_path / "x.yml", content[:place] + change + content[place + cut :])


ANY_NODE = st.recursive(
    st.text(max_size=8) | st.integers() | st.booleans() | st.none() | st.sampled_from(["/x", "old", "reject", "0660"]),
    lambda node: st.lists(node, max_size=3) | st.dictionaries(st.text(max_size=5), node, max_size=3),
    max_leaves=5,
)


def keyed(name: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(KEYS[name]), ANY_NODE)


@fuzz
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "config": keyed("config") | ANY_NODE,
            "backends": st.dictionaries(st.sampled_from(["old", "new", "hold", ""]), keyed("backends.*") | ANY_NODE),
            "users": st.dictionaries(st.text(max_size=5), ANY_NODE),
        },
    )
)
def test_any_tree_as_a_file(tmp_path: Path, tree: dict[str, Any]) -> None:
    check_outcome(tmp_path / "x.yml", yaml.safe_dump(tree, allow_unicode=False).encode())


NAMES = (
    st.text(min_size=1)
    .filter(lambda name: name != "@" and not re.search('^[*"]|[\x00-\x1f\x7f-\x9f]', name))
    .filter(lambda name: unicodedata.is_normalized("NFC", name))
    .filter(lambda name: "@" not in name or (domain := name.rpartition("@")[2]) == domain.lower())  # always folded
)


@fuzz
@given(st.dictionaries(NAMES, st.sampled_from(["old", "new", "reject", "hold"])), st.booleans())
def test_user_names_are_read_as_they_were_written(tmp_path: Path, users: dict[str, str], wide: bool) -> None:
    backends = {name: {"socket": f"/{name}"} for name in ("old", "new")}
    tree = {"config": {"socket": "/s", "case_sensitive": "true"}, "backends": backends, "users": users}
    file = tmp_path / "x.yml"
    file.write_text(yaml.safe_dump(tree, allow_unicode=False, width=1000 if wide else 20), "utf-8")
    assert load_config(str(file)).users == users


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8", "tr_TR.ISO8859-9"])
def test_any_locale(tmp_path: Path, locale: str) -> None:
    good, bad = tmp_path / "good.yml", tmp_path / "bad.yml"
    good.write_text(users_with("grüße: old"), "utf-8")
    bad.write_text(users_with("grüße: älter"), "utf-8")
    code = """
import sys
from lmtp_proxy.config.read import ConfigError, load_config
assert load_config(sys.argv[1]).users == {"gr\\xfc\\xdfe": "old"}
try:
    load_config(sys.argv[2])
except ConfigError as error:
    print(error, file=sys.stderr)
"""
    environment = {**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(good), str(bad)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"{bad}:7: users.".encode())
    assert b"Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_host_name_that_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "x.yml"
    file.write_text("config: {socket: /s}\nbackends:\n  a: {host: " + "x" * 64 + ".test, port: 24}\n")
    with pytest.raises(ConfigError, match=r"x\.yml:3: backends\.a\.host: has more than 63 characters between two dots"):
        load_config(str(file))


@pytest.mark.parametrize(("connections", "per_user"), [(1, 1), (2, 1), (3, 1), (4, 2), (19, 9), (20, 10), (1000, 10)])
def test_a_mailbox_may_have_half_of_the_connections_and_ten_at_most(
    load: Load, connections: int, per_user: int
) -> None:
    text = f"config: {{socket: /run/s}}\nbackends:\n  a: {{socket: /run/a, max_connections: {connections}}}\n"
    assert load(text).backends["a"].max_per_user == per_user
