# SPDX-License-Identifier: GPL-3.0-or-later
"""The PROXY protocol's header, whole and octet by octet: never one octet more than its own."""

import struct
from ipaddress import ip_address

import pytest

from lmtp_proxy.wire.proxy_header import MAX_LENGTH, MAX_LINE, ProxyHeader

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
BEHIND = b"LHLO c\r\n"


def version_2(command: int, family: int, rest: bytes, version: int = 2) -> bytes:
    return SIGNATURE + bytes([version << 4 | command, family]) + struct.pack("!H", len(rest)) + rest


def addresses(host: str, port: int, other: str = "") -> bytes:
    packed = ip_address(host).packed
    return packed + (ip_address(other).packed if other else packed) + struct.pack("!HH", port, 24)


LONGEST = b"PROXY UNKNOWN " + b"f" * (MAX_LINE - 16) + b"\r\n"
GOOD = [
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 24\r\n", ("192.0.2.1", 56324), False),
    (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 0\r\n", ("255.255.255.255", 65535), False),
    (b"PROXY TCP6 2001:DB8::1 ::1 1 24\r\n", ("2001:db8::1", 1), False),
    (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 24\r\n", ("::ffff:192.0.2.1", 1), False),
    (b"PROXY UNKNOWN\r\n", None, False),
    (b"PROXY UNKNOWN ffff::1 x y\0 z\r\n", None, False),
    (LONGEST, None, False),
    (version_2(1, 0x11, addresses("192.0.2.1", 56324)), ("192.0.2.1", 56324), False),
    (version_2(1, 0x21, addresses("2001:db8::1", 1)), ("2001:db8::1", 1), False),
    (version_2(1, 0x11, addresses("192.0.2.1", 1) + b"\x03\0\x04abcd" * 20), ("192.0.2.1", 1), False),
    (version_2(1, 0x00, b""), None, False),
    (version_2(1, 0x31, b"/run/x".ljust(216, b"\0")), None, False),
    (version_2(1, 0x12, addresses("192.0.2.1", 1)), None, False),
    (version_2(0, 0x00, b""), None, True),
    (version_2(0, 0x11, addresses("192.0.2.1", 1)), None, True),
    (version_2(1, 0x00, b"x" * (MAX_LENGTH - 16)), None, False),
]


@pytest.mark.parametrize(("octets", "source", "local"), GOOD)
def test_whoever_it_names(octets: bytes, source: tuple[str, int] | None, local: bool) -> None:
    whole = ProxyHeader()
    assert not whole.begun and "complete" not in repr(whole)
    used = whole.feed(octets + BEHIND)
    assert used == len(octets) and whole.complete
    assert "complete" in repr(whole)
    for size in (1, 2, 5, 13):
        header, rest = ProxyHeader(), octets + BEHIND
        while not header.complete:
            used = header.feed(rest[:size])
            rest = rest[used:]
            assert header.begun
        assert rest == BEHIND
        assert (header.source, header.local) == (source, local) == (whole.source, whole.local)


@pytest.mark.parametrize(
    "octets",
    [
        b"LHLO c\r\n",
        b"PROXY\r\n",
        b"PROXYTCP4 ",
        b"proxy TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
        b"PROXY TCP4 192.0.2.1  192.0.2.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
        b"PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY TCP6 fe80::1%1 ::1 1 2\r\n",
        b"PROXY TCP5 192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY UNKNOWNx\r\n",
        b"PROXY UNKNOWN " + b"x" * (MAX_LINE - 15) + b"\r\n",
        b"PROXY UNKNOWN\n" + b"x" * MAX_LINE,
        SIGNATURE[:-1] + b"\r\n",
        version_2(1, 0x11, addresses("192.0.2.1", 1), version=1),
        version_2(2, 0x11, addresses("192.0.2.1", 1)),
        version_2(1, 0x11, addresses("192.0.2.1", 1)[:-1]),
        version_2(1, 0x21, addresses("192.0.2.1", 1)),
        version_2(1, 0x00, b"x" * (MAX_LENGTH - 15)),
    ],
)
def test_what_is_none(octets: bytes) -> None:
    with pytest.raises(ValueError):
        ProxyHeader().feed(octets)
    header = ProxyHeader()
    with pytest.raises(ValueError):
        by_octet(header, octets)
    assert not header.complete


def by_octet(header: ProxyHeader, octets: bytes) -> None:
    for octet in octets:
        header.feed(bytes([octet]))
