# SPDX-License-Identifier: GPL-3.0-or-later
"""The `backends:` section: name -> Backend, with the password files that it names; and the timeouts, which are those of
all backends where one has none of its own.

It opens no connection and looks no name up.
"""

import os
from dataclasses import replace

from lmtp_proxy.config import tls
from lmtp_proxy.config import types as config_keys
from lmtp_proxy.config.small_file import read_small_file
from lmtp_proxy.config.types import Section
from lmtp_proxy.config.values import (
    RESERVED,
    TIMEOUTS_OF_ONE,
    Address,
    Backend,
    TcpAddress,
    Timeouts,
    UnixAddress,
    is_own_listener,
)

KEYS = (
    *("socket", "host", "port", "user", "password", "password_file"),
    *("max_connections", "max_per_user", "idle_timeout", "max_messages", "recipients_per_transaction"),
    *("restart_grace", "timeouts", "xclient", *tls.KEYS),
)
_MOST_PER_USER = 10  # unless it is said; Dovecot 2.4 takes no more (lmtp_user_concurrency_limit)
_PASSWORD_MAX = 4096  # octets; a larger file is not a password


def timeouts(parent: Section, keys: tuple[str, ...], defaults: Timeouts) -> Timeouts:
    """The section `timeouts` of `parent`, with `keys`."""
    section = parent.section("timeouts", keys)
    if section is None:
        return defaults
    given = [name for name in keys if name in section]
    return replace(
        defaults, **{name: section.value(name, config_keys.seconds(name), getattr(defaults, name)) for name in given}
    )


def backends(
    section: Section | None, mail: tuple[Address, ...], defaults: Timeouts, directory: str
) -> dict[str, Backend] | None:
    """Name -> Backend, with all names, also of backends that have problems. None if there is no telling the names."""
    if section is None:
        return None
    found = {}
    for name in section.entries:
        if name in RESERVED:
            section.fail(name, "is reserved: a user on it is refused or held, no backend can be called so")
            continue
        try:
            config_keys.backend_name(name)
        except ValueError as error:
            section.fail(name, str(error))
        found[name] = _backend(section, name, mail, defaults, directory)
    return found


def _backend(parent: Section, name: str, mail: tuple[Address, ...], defaults: Timeouts, directory: str) -> Backend:
    section = parent.section(name, KEYS)
    if section is None:
        return Backend(name, UnixAddress(""))
    address = _backend_address(parent, name, section)
    if address is not None and any(is_own_listener(each, address) for each in mail):
        key = "socket" if "socket" in section else "host"
        section.fail(key, f"{address} is the socket of this proxy: mail would go round in circles")
    user, password = _credentials(section, directory)
    connections = section.value("max_connections", config_keys.whole(1, 10_000), 20)
    per_user = min(_MOST_PER_USER, max(1, connections // 2))
    backend = Backend(
        name=name,
        address=address or UnixAddress(""),
        user=user,
        password=password,
        max_connections=connections,
        max_per_user=section.value("max_per_user", config_keys.whole(1, 10_000), per_user),
        idle_timeout=section.value("idle_timeout", config_keys.seconds_or_none("idle_timeout"), 30.0),
        max_messages=section.value("max_messages", config_keys.whole(0, 1_000_000), 0),
        recipients_per_transaction=section.value("recipients_per_transaction", config_keys.whole(0, 1_000_000), 0),
        timeouts=timeouts(section, TIMEOUTS_OF_ONE, defaults),
        restart_grace=section.value("restart_grace", config_keys.seconds_or_none("restart_grace"), 3.0),
        xclient=section.value("xclient", config_keys.boolean, False),
    )
    return tls.with_tls(backend, section, directory)


def _backend_address(parent: Section, name: str, section: Section) -> Address | None:
    """`socket`, or else `host` and `port`. None after a problem."""
    if "socket" in section:
        section.ignore(("host", "port"), "socket stands beside it")
        path = section.value("socket", config_keys.socket_path, None)
        return None if path is None else UnixAddress(path)
    host = section.value("host", config_keys.host, None)
    port = section.value("port", config_keys.port, None)
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
    data, _ = read_small_file(path, _PASSWORD_MAX)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    return config_keys.credential(text.removesuffix("\n").removesuffix("\r"))
