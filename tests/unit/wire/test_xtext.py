# SPDX-License-Identifier: GPL-3.0-or-later
"""xtext: what stands for itself, what is written as a number, and what is none."""

import re

import pytest

from lmtp_proxy.wire.xtext import XTEXT, decoded


@pytest.mark.parametrize(
    ("text", "octets"),
    [
        (b"", b""),
        (b"Alice@Example.org", b"Alice@Example.org"),
        (b"a+2Bb+3D", b"a+b="),
        (b"+00+7F+FF+0D+0A", b"\0\x7f\xff\r\n"),
        (b"+2B2B", b"+2B"),
        (b"!~;\\{}", b"!~;\\{}"),
    ],
)
def test_what_is_written(text: bytes, octets: bytes) -> None:
    assert re.fullmatch(XTEXT, text)
    assert decoded(text) == octets


@pytest.mark.parametrize("text", [b"+", b"a+2", b"+2b", b"+ZZ", b"a=b", b"a b", b"\x7f", b"\0", b"\xc3\xbc", b"a\n"])
def test_what_is_no_xtext(text: bytes) -> None:
    assert not re.fullmatch(XTEXT, text)
