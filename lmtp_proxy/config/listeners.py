# SPDX-License-Identifier: GPL-3.0-or-later
"""Where clients of all kinds connect: `socket` with `allow`, `control`, and `metrics`.

It reads these keys of a Section, and knows neither the file nor what else is configured. Nothing is bound here.
"""

from ipaddress import IPv4Network, IPv6Network

from lmtp_proxy.config import types as config_keys
from lmtp_proxy.config.types import Section
from lmtp_proxy.config.values import Address, Control, TcpAddress, UnixAddress, is_own_listener
from lmtp_proxy.config.yaml_text import Sequence


def listener(section: Section) -> Address | None:
    """`socket`: a path or [host, port]. None after a problem."""
    if "socket" not in section:
        section.fail("socket", "is missing: write the path of a unix socket, or [host, port]")
        return None
    node = section.node("socket")
    if isinstance(node, Sequence):
        return _host_and_port(section, "socket", "must be a path or [host, port]")
    path = None if node is None else section.item("socket", node, config_keys.socket_path, None)
    return None if path is None else UnixAddress(path)


def _host_and_port(section: Section, key: str, otherwise: str) -> TcpAddress | None:
    """None after a problem. otherwise: what it is where it is no list of two."""
    node = section.node(key)
    if not isinstance(node, Sequence) or len(node.items) != 2:
        if node is not None:
            section.fail(key, otherwise)
        return None
    host = section.item(key, node.items[0], config_keys.host, None)
    port = section.item(key, node.items[1], config_keys.port, None)
    return None if host is None or port is None else TcpAddress(host, port)


def allow(section: Section) -> tuple[IPv4Network | IPv6Network, ...] | None:
    """The networks that may connect; None for all."""
    node = section.node("allow")
    if node is None:
        return None
    items = node.items if isinstance(node, Sequence) else [node]
    if not items:
        section.fail("allow", "would refuse everybody: list the networks that may connect, or take it out for all")
    networks = [section.item("allow", item, config_keys.network, None) for item in items]
    return tuple(network for network in networks if network is not None)


def control(parent: Section, known: tuple[str, ...], mail: Address | None) -> Control | None:
    """The control socket. known: its keys. mail: where mail comes in, None if that is not known."""
    if "control" not in parent:
        return None
    section = parent.section("control", known)
    if section is None:
        return None
    if "socket" not in section:
        parent.fail("control", "needs a socket: the absolute path of a unix socket")
    path = section.value("socket", config_keys.socket_path, None)
    if path is not None and mail is not None and is_own_listener(mail, UnixAddress(path)):
        section.fail("socket", "is the socket for mail already: the control socket needs one of its own")
    return Control(
        socket=UnixAddress(path or ""),
        owner=section.value("owner", config_keys.owner, None),
        group=section.value("group", config_keys.group, None),
        permissions=section.value("permissions", config_keys.permissions, 0o600),
    )


def metrics(section: Section, mail: Address | None) -> TcpAddress | None:
    """Where metrics are served. mail: as in `control`."""
    if "metrics" not in section:
        return None
    address = _host_and_port(section, "metrics", "must be [host, port]")
    if address is not None and mail is not None and is_own_listener(mail, address):
        section.fail("metrics", "is the socket for mail already: take another port")
    return address
