# SPDX-License-Identifier: GPL-3.0-or-later
"""The header of the PROXY protocol, versions 1 and 2 (HAProxy's doc/proxy-protocol.txt): for whom a proxy connects.

It comes before anything else. Of a connection it takes no octet more than its own, so that whatever follows, LMTP or
TLS, finds the rest untouched. Who may say it is decided elsewhere.
"""

import re

MAX_LINE = 107
"""Octets of version 1, CRLF included: as long as two IPv6 addresses can make it."""
MAX_LENGTH = 4096
"""Octets of version 2, which may have anything behind the addresses; nginx takes as many."""

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED = len(_SIGNATURE) + 4  # with version and command, family, and the length of what follows
_HOST = rb"[0-9A-Fa-f:.]+"
_PORT = rb"(0|[1-9][0-9]{0,4})"
_LINE = re.compile(rb"PROXY (?:UNKNOWN(?: [^\r\n]*)?|TCP([46]) (%b) %b %b %b)\r\n" % (_HOST, _HOST, _PORT, _PORT))
_TCP4, _TCP6 = 0x11, 0x21
_ADDRESSES = {_TCP4: 4, _TCP6: 16}


class ProxyHeader:
    """Of one connection.

    Attributes:
        complete: all of it has come.
        source: host and port of the client; None where the header does not say, and so the proxy's own count.
        local: the proxy speaks for itself, to see whether somebody is here.
    """

    __slots__ = ("_octets", "complete", "local", "source")

    def __init__(self) -> None:
        self._octets = b""
        self.complete = self.local = False
        self.source: tuple[str, int] | None = None

    def __repr__(self) -> str:
        return f"<ProxyHeader {len(self._octets)} octets{' complete' * self.complete} {self.source}>"

    @property
    def begun(self) -> bool:
        """Some of it has come."""
        return self._octets != b""

    def feed(self, octets: bytes) -> int:
        """How many of the next octets, which may be more than the header's, are its own.

        Not to be called once it is complete. Raises ValueError where there is no such header.
        """
        before = len(self._octets)
        whole = self._octets + octets
        of_2 = whole[: len(_SIGNATURE)] == _SIGNATURE[: len(whole)]
        end = _end_of_2(whole) if of_2 else _end_of_1(whole)
        if len(whole) < end:
            self._octets = whole
            return len(octets)
        self._octets = whole[:end]
        if of_2:
            self._read_2()
        else:
            self._read_1()
        self.complete = True
        return end - before

    def _read_1(self) -> None:
        match = _LINE.fullmatch(self._octets)
        if match is None:
            raise ValueError("no PROXY header")
        family, host, port, other_port = match.groups()
        if family is not None:
            if max(int(port), int(other_port)) > 65535:
                raise ValueError("no port")
            self.source = _address(host.decode("ascii"), 4 if family == b"4" else 6), int(port)

    def _read_2(self) -> None:
        version_and_command, family = self._octets[len(_SIGNATURE) : len(_SIGNATURE) + 2]
        if version_and_command not in (0x20, 0x21):
            raise ValueError("not of version 2, or a command that nobody knows")
        self.local = version_and_command == 0x20
        size = _ADDRESSES.get(family)
        if self.local or size is None:
            return
        addresses = self._octets[_FIXED:]
        if len(addresses) < 2 * size + 4:
            raise ValueError("too short for its addresses")
        port = int.from_bytes(addresses[2 * size : 2 * size + 2], "big")
        self.source = _address(addresses[:size], 4 if family == _TCP4 else 6), port


def _end_of_1(octets: bytes) -> int:
    """Where the header ends; more than there is while that has not come."""
    if octets[:6] != b"PROXY "[: len(octets)]:
        raise ValueError("no PROXY header")
    line_end = octets.find(b"\r\n", 0, MAX_LINE)
    if line_end < 0 and len(octets) >= MAX_LINE:
        raise ValueError("too long")
    return line_end + 2 if line_end >= 0 else len(octets) + 1


def _end_of_2(octets: bytes) -> int:
    if len(octets) < _FIXED:
        return _FIXED
    end = _FIXED + int.from_bytes(octets[_FIXED - 2 : _FIXED], "big")
    if end > MAX_LENGTH:
        raise ValueError("too long")
    return end


def _address(of: str | bytes, version: int) -> str:
    from ipaddress import IPv4Address, IPv6Address  # 0.2 MB, for those alone who have such a proxy

    if version == 4:
        return str(IPv4Address(of))
    address = IPv6Address(of)
    mapped = address.ipv4_mapped
    return str(address) if mapped is None else f"::ffff:{mapped}"  # as a socket has it; Python before 3.13 does not
