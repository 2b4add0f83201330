# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts are in which networks, and how often the log says that they are not."""

import logging
from ipaddress import ip_network

import pytest

from lmtp_proxy.clients import access
from lmtp_proxy.clients.access import Complaints, Members, is_loopback, private_networks


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("10.255.255.255", True),
        ("11.0.0.0", False),
        ("172.15.255.255", False),
        ("172.16.0.0", True),
        ("172.31.255.255", True),
        ("172.32.0.0", False),
        ("192.168.1.1", True),
        ("192.169.0.0", False),
        ("169.254.1.1", True),
        ("100.64.0.1", False),
        ("fd00::1", True),
        ("fe80::1%eth0", True),
        ("2001:db8::1", False),
        ("::ffff:10.0.0.1", True),
        ("::ffff:8.8.8.8", False),
    ],
)
def test_private_networks(host: str, private: bool) -> None:
    members, networks = Members(), private_networks()
    assert [members.has(host, networks) for _ in range(2)] == [private] * 2


def test_other_networks_are_looked_into_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_MOST", 2)
    members, one, other = Members(), (ip_network("192.0.2.0/24"),), (ip_network("192.0.2.0/30"),)
    for _ in range(2):
        assert [members.has(f"192.0.2.{number}", one) for number in (1, 9, 99)] == [True] * 3
        assert [members.has(f"192.0.2.{number}", other) for number in (1, 9, 99)] == [True, False, False]
    assert repr(members) == "<Members 1 known>"


def test_loopback() -> None:
    hosts = ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "10.0.0.1", "::ffff:10.127.0.1"]
    assert [is_loopback(host) for host in hosts] == [True] * 4 + [False] * 4


def test_one_line_a_minute_for_each_host(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    monkeypatch.setattr("lmtp_proxy.clients.access.time.monotonic", lambda: now)
    monkeypatch.setattr(access, "_MOST", 2)
    complaints = Complaints()
    with caplog.at_level(logging.WARNING):
        for port in range(5):
            complaints.make("a", f"a:{port}", "not in b")
        complaints.make("b\n", "b\n:1", "why")
        complaints.make("c", "c:1", "more hosts than can be remembered")
        now = 159.9
        complaints.make("a", "a:5", "not in b")
        now = 160.0
        complaints.make("a", "a:6", "not in b")
        complaints.make("c", "c:2", "there is room again")
    assert caplog.messages == [
        "refused a connection from a:0: not in b",
        r"refused a connection from b\n:1: why",
        "refused a connection from a:6: not in b (5 more since the last such line)",
        "refused a connection from c:2: there is room again",
    ]
    assert repr(complaints) == "<Complaints 2>"
