# SPDX-License-Identifier: GPL-3.0-or-later
"""Which sockets are bound for a list of addresses, and for a name that has several. What clients see is in faults."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from lmtp_proxy.config.values import Address, Config, ConfigError, TcpAddress, UnixAddress
from lmtp_proxy.start.sockets import Listener, listen

MISSING = "203.0.113.7"  # RFC 5737: no machine has it


def config_of(*addresses: Address) -> Config:
    return Config("/etc/c.yml", addresses, "mx")


def bound(*addresses: Address) -> list[str]:
    """What listens then."""
    listeners = listen(config_of(*addresses))
    for each in listeners:
        assert each.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        close(each)
    return [str(each.address) for each in listeners]


def close(listener: Listener) -> None:
    listener.remove()
    listener.socket.close()


def resolved(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Every name has these addresses."""

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        kinds = [(each, socket.AF_INET6 if ":" in each else socket.AF_INET) for each in hosts]
        return [(kind, socket.SOCK_STREAM, 6, "", (each, port)) for each, kind in kinds]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture
def port() -> int:
    """One that is free on some loopback addresses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
    return found


def test_a_name_stands_for_all_its_addresses(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    resolved(monkeypatch, "127.0.0.1", "127.0.0.2", "127.0.0.1")
    assert bound(TcpAddress("localhost", port)) == [f"127.0.0.1:{port}", f"127.0.0.2:{port}"]


def test_an_address_that_this_machine_has_not_is_left_out(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """`::1 localhost` is in /etc/hosts also where there is no IPv6."""
    resolved(monkeypatch, MISSING, "127.0.0.1")
    assert bound(TcpAddress("localhost", port)) == [f"127.0.0.1:{port}"]
    real = socket.socket

    def no_ipv6(family: int = -1, *arguments: Any, **settings: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, *arguments, **settings)

    monkeypatch.setattr(socket, "socket", no_ipv6)
    resolved(monkeypatch, "::1", "127.0.0.1")
    assert bound(TcpAddress("localhost", port)) == [f"127.0.0.1:{port}"]


def test_none_of_them(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    resolved(monkeypatch, MISSING, "203.0.113.8")
    with pytest.raises(ConfigError, match=rf"^/etc/c.yml: config.socket: cannot listen on mx:{port}: Cannot assign"):
        listen(config_of(TcpAddress("mx", port)))


def test_one_that_is_taken_is_named_and_nothing_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, port: int
) -> None:
    resolved(monkeypatch, "127.0.0.1", "127.0.0.2")
    unix = UnixAddress(f"{tmp_path}/s")
    with socket.create_server(("127.0.0.2", port)):
        with pytest.raises(ConfigError) as caught:
            listen(config_of(unix, TcpAddress("localhost", port)))
        what = f"cannot listen on localhost:{port}: Address already in use at 127.0.0.2:{port}"
        assert caught.value.errors == (f"/etc/c.yml: config.socket: {what}",)
        assert os.listdir(tmp_path) == []
        socket.create_server(("127.0.0.1", port)).close()
    assert bound(unix, TcpAddress("localhost", port)) == [unix.path, f"127.0.0.1:{port}", f"127.0.0.2:{port}"]
    assert os.listdir(tmp_path) == []


def test_several_unix_sockets_have_their_names_and_access(tmp_path: Path, port: int) -> None:
    addresses = (UnixAddress(f"{tmp_path}/a"), TcpAddress("127.0.0.1", port), UnixAddress(f"{tmp_path}/b"))
    config = Config("/etc/c.yml", addresses, "mx", permissions=0o620)
    listeners = listen(config)
    assert [each.address for each in listeners] == list(addresses)
    assert [os.stat(f"{tmp_path}/{name}").st_mode & 0o777 for name in "ab"] == [0o620, 0o620]
    for each in listeners:
        close(each)


def test_both_wildcards_beside_each_other(port: int) -> None:
    try:
        socket.create_server(("::", port), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    both = (TcpAddress("::", port), TcpAddress("0.0.0.0", port))
    assert bound(*both) == [f"[::]:{port}", f"0.0.0.0:{port}"]
    [alone] = listen(config_of(both[0]))
    assert not alone.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY), "it takes IPv4 as well"
    close(alone)
