# SPDX-License-Identifier: GPL-3.0-or-later
"""What a certificate says (X.509 in DER, RFC 5280): whose it is, who issued it, how long it is valid, its digests.

The ssl module tells that only of a certificate that it has verified, and an operator wants to know it of the others.
Nothing is verified here, and what comes out is the peer's own text.
"""

import calendar
import hashlib
import re
import time
from typing import NamedTuple

_SEQUENCE, _INTEGER, _OID, _VERSION = 0x30, 0x02, 0x06, 0xA0
_UTC_TIME, _GENERALIZED_TIME, _BMP_STRING = 0x17, 0x18, 0x1E
_NAMES = {"2.5.4.3": "CN", "2.5.4.6": "C", "2.5.4.7": "L", "2.5.4.8": "ST", "2.5.4.10": "O", "2.5.4.11": "OU"}
_TIME = re.compile(rb"(\d\d)?\d{10}(\d\d)?Z")


class Certificate(NamedTuple):
    """What one says. Texts are not escaped.

    Attributes:
        subject: `CN=store.example.org, O=Example`.
        issuer: the same of who signed it.
        begins: since the epoch.
        ends: since the epoch.
        digest: SHA-256 of all of it, in hex.
        key_digest: SHA-256 of its public key (SubjectPublicKeyInfo), in hex: a renewal may leave it as it is.
    """

    subject: str
    issuer: str
    begins: float
    ends: float
    digest: str
    key_digest: str

    @classmethod
    def read(cls, der: bytes) -> "Certificate":
        """Raises ValueError."""
        fields = _Reader(_Reader(_Reader(der).inner(_SEQUENCE)).inner(_SEQUENCE))
        if fields.tag == _VERSION:
            fields.skip()
        fields.inner(_INTEGER)  # its serial number
        fields.inner(_SEQUENCE)  # how it is signed
        issuer = _name(fields.inner(_SEQUENCE))
        validity = _Reader(fields.inner(_SEQUENCE))
        begins, ends = _time(validity), _time(validity)
        subject = _name(fields.inner(_SEQUENCE))
        key = fields.skip()
        return cls(subject, issuer, begins, ends, hashlib.sha256(der).hexdigest(), hashlib.sha256(key).hexdigest())


class _Reader:
    """Values one after another. Each call raises ValueError where there is none, or it is cut off."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self._at = 0

    @property
    def tag(self) -> int:
        """Of the next one, -1 at the end."""
        return self._octets[self._at] if self._at < len(self._octets) else -1

    def skip(self) -> bytes:
        """The next one with its tag and length."""
        begin = self._at
        self._next()
        return self._octets[begin : self._at]

    def inner(self, tag: int) -> bytes:
        """What is in the next one, which must have this tag."""
        if self.tag != tag:
            raise ValueError(f"no certificate: {self.tag:#x} where {tag:#x} should be")
        return self._next()

    def _next(self) -> bytes:
        octets = self._octets
        try:
            length, at = octets[self._at + 1], self._at + 2
            if length >= 0x80:
                more = length & 0x7F
                length, at = int.from_bytes(octets[at : at + more], "big"), at + more
        except IndexError:
            raise ValueError("no certificate: it is cut off") from None
        if at + length > len(octets):
            raise ValueError("no certificate: it is cut off")
        self._at = at + length
        return octets[at : self._at]


def _name(octets: bytes) -> str:
    """A Name: sets of a type and its value each (RFC 5280 section 4.1.2.4)."""
    parts = []
    sets = _Reader(octets)
    while sets.tag != -1:
        pairs = _Reader(sets.inner(0x31))
        while pairs.tag != -1:
            pair = _Reader(pairs.inner(_SEQUENCE))
            kind, tag = _oid(pair.inner(_OID)), pair.tag
            text = pair.inner(tag).decode("utf-16-be" if tag == _BMP_STRING else "utf-8", "replace")
            parts.append(f"{_NAMES.get(kind, kind)}={text}")
    return ", ".join(parts)


def _oid(octets: bytes) -> str:
    numbers, number = [], 0
    for octet in octets:
        number = number << 7 | octet & 0x7F
        if octet < 0x80:
            numbers.append(number)
            number = 0
    first = min(numbers[0] // 40, 2) if numbers else 0
    return ".".join(map(str, [first, *(numbers[:1] and [numbers[0] - 40 * first]), *numbers[1:]]))


def _time(reader: _Reader) -> float:
    """RFC 5280 section 4.1.2.5: two digits of a year below 50 are of this century."""
    tag = reader.tag
    if tag not in (_UTC_TIME, _GENERALIZED_TIME):
        raise ValueError("no certificate: it has no time where one should be")
    octets = reader.inner(tag)
    if not _TIME.fullmatch(octets) or len(octets) != (13 if tag == _UTC_TIME else 15):
        raise ValueError("no certificate: its time is none")
    text = octets.decode("ascii")
    if tag == _UTC_TIME:
        text = ("20" if text < "50" else "19") + text
    return float(calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ")))
