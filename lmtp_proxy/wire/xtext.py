# SPDX-License-Identifier: GPL-3.0-or-later
"""xtext (RFC 3461 section 4): how any octets are written in the value of an ESMTP parameter."""

import re

XTEXT = rb"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*"
"""A pattern: + and two hexadecimal digits, in upper case, for an octet that may not stand there itself."""
_ESCAPED = re.compile(rb"\+([0-9A-F]{2})")


def decoded(xtext: bytes) -> bytes:
    """The octets that are written so. Of valid xtext."""
    return _ESCAPED.sub(_octet, xtext)


def _octet(escaped: re.Match[bytes]) -> bytes:
    return bytes.fromhex(escaped[1].decode("ascii"))
