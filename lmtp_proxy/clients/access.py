# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts may do what, by their addresses, and the log's lines about those that may not: one a minute for each.

It opens and closes no connection. What it takes to read addresses is loaded where there are networks to look into.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from lmtp_proxy.config.values import PRIVATE_NETWORKS
from lmtp_proxy.text import printable

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

Networks: TypeAlias = "Sequence[IPv4Network | IPv6Network]"

_log = logging.getLogger(__name__)
_PAUSE = 60.0  # seconds between two lines about one host
_MOST = 1000  # hosts that are remembered; of more, in one minute, the log says nothing


def is_loopback(host: str) -> bool:
    """Whether a socket with this address is reached from this machine alone."""
    return host == "::1" or host.removeprefix("::ffff:").startswith("127.")


def private_networks() -> Networks:
    """Those that may connect where nobody has said who may."""
    from ipaddress import ip_network

    return tuple(map(ip_network, PRIVATE_NETWORKS))


class Members:
    """Which hosts are in some networks; what was found out is remembered, for as long as these are the networks."""

    __slots__ = ("_known", "_networks")

    def __init__(self) -> None:
        self._networks: Networks = ()
        self._known: dict[str, bool] = {}

    def __repr__(self) -> str:
        return f"<Members {len(self._known)} known>"

    def has(self, host: str, networks: Networks) -> bool:
        """Whether `host`, an IP address, is in one of them; an IPv4 address in IPv6 form is both."""
        if networks is not self._networks or len(self._known) >= _MOST:
            self._networks, self._known = networks, {}
        known = self._known.get(host)
        if known is None:
            known = self._known[host] = _is_within(host, networks)
        return known


class Complaints:
    """About hosts, of one process."""

    __slots__ = ("_said",)

    def __init__(self) -> None:
        # Host and reason -> when, and how often it was not said since.
        self._said: dict[tuple[str, str], tuple[float, int]] = {}

    def __repr__(self) -> str:
        return f"<Complaints {len(self._said)}>"

    def make(self, host: str, peer: str, why: str) -> None:
        """A connection from `host` was closed. peer: it, with its port."""
        now = time.monotonic()
        when, unsaid = self._said.get((host, why), (-_PAUSE, 0))
        if now - when < _PAUSE:
            self._said[host, why] = when, unsaid + 1
            return
        if len(self._said) >= _MOST:
            self._said = {each: said for each, said in self._said.items() if now - said[0] < _PAUSE}
            if len(self._said) >= _MOST:
                return
        self._said[host, why] = now, 0
        more = f" ({unsaid} more since the last such line)" if unsaid else ""
        _log.warning("refused a connection from %s: %s%s", printable(peer.encode()), why, more)


def _is_within(host: str, networks: Networks) -> bool:
    from ipaddress import ip_address

    address = ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return any((mapped or address) in network or address in network for network in networks)
