# SPDX-License-Identifier: GPL-3.0-or-later
"""How foreign text, numbers and times are written."""

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_proxy.text import count, in_words, iso_time, natural, number, printable, safe, share, shown, span, zoned_time


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (b"<a@b>", "<a@b>"),
        ("<\u00fc@\u4f60>".encode(), "<\u00fc@\u4f60>"),
        (b"a\r\nb", r"a\r\nb"),
        (b"a\nJan 1 host lmtp-proxy: forged", r"a\nJan 1 host lmtp-proxy: forged"),
        (b"\x00\x1b[31m\x7f", r"\x00\x1b[31m\x7f"),
        (b"\xff\xfe", r"\xff\xfe"),
        (rb"\xff", r"\\xff"),
        ("\u2028\u202e".encode(), r"\u2028\u202e"),
    ],
)
def test_foreign_text_is_one_line_without_controls(octets: bytes, text: str) -> None:
    assert printable(octets) == text


def test_every_octet_is_printable_after_it() -> None:
    for octet in range(256):
        assert printable(b"a" + bytes([octet]) + b"b").isprintable()


def test_long_text_is_cut_and_says_so() -> None:
    assert len(printable(b"x" * 100_000)) < 1000
    assert printable(b"x" * 100_000).endswith("x...")
    assert printable("\u00fc".encode() * 2000).isprintable()


@pytest.mark.parametrize(
    "text, said",
    [
        ("alice@example.org", "alice@example.org"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\r\nb\tc\x00\x7f\x9b", "a\\r\\nb\\tc\\x00\\x7f\\x9b"),
        ("\u202egro.elpmaxe", "\\u202egro.elpmaxe"),
        ("ü漢🙂", "ü漢🙂"),
        ("ü\n", "ü\\n"),
        ("\udcff", "\\udcff"),
    ],
)
def test_nothing_moves_the_cursor(text: str, said: str) -> None:
    assert safe(text) == said
    assert shown(text) == said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (FileNotFoundError(2, "No such file or directory", "/x"), "No such file or directory"),
        (OSError("127.0.0.1:1: Connection refused; ::1: no connection in 3 s"),
         "127.0.0.1:1: Connection refused; ::1: no connection in 3 s"),
        (TimeoutError("no connection in 3 s"), "no connection in 3 s"),
        (ValueError("no"), "no"),
    ],
)  # fmt: skip
def test_an_error_is_told_without_its_number(error: BaseException, said: str) -> None:
    assert in_words(error) == said


@given(st.text(), st.integers(1, 30))
def test_what_is_shown_is_short_and_printable(text: str, limit: int) -> None:
    said = shown(text, limit)
    assert said.isprintable()
    assert said == safe(text) if len(safe(text)) <= limit else (said[:-3], said[-3:]) == (safe(text)[:limit], "...")


def test_numbers() -> None:
    assert [number(value) for value in (0, 999, 1000, 1234567, 12.6)] == ["0", "999", "1,000", "1,234,567", "13"]
    assert [count(amount, "user") for amount in (0, 1, 2, 1000)] == ["0 users", "1 user", "2 users", "1,000 users"]
    assert count(2, "delivery", "deliveries") == "2 deliveries"


def test_a_share_is_never_all_or_nothing_unless_it_is() -> None:
    assert [share(part, 10000) for part in (0, 1, 100, 5000, 9999, 10000)] == [
        "0 %", "< 0.1 %", "1.0 %", "50 %", "> 99.9 %", "100 %"
    ]  # fmt: skip
    assert share(0, 0) == "-"


@pytest.mark.parametrize(
    "seconds, text",
    [
        (None, "-"), (0, "0.0 ms"), (0.0005, "0.5 ms"), (0.00949, "9.5 ms"), (0.0095, "10 ms"), (0.031, "31 ms"),
        (0.9994, "999 ms"), (0.9995, "1.0 s"), (4.94, "4.9 s"), (42, "42.0 s"), (119.4, "119.4 s"), (119.6, "2 min"),
        (600, "10 min"), (7199, "2 h 0 min"), (11100, "3 h 5 min"), (93784 * 2, "2 d 4 h"), (300000, "3 d 11 h"),
    ],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert span(seconds) == text


def test_times(monkeypatch: pytest.MonkeyPatch) -> None:
    assert iso_time(0) == "1970-01-01T00:00:00.000Z"
    assert iso_time(1795475363.9999) == "2026-11-23T23:09:23.999Z"
    before = os.environ.get("TZ")
    try:
        monkeypatch.setenv("TZ", "CET-1CEST")
        time.tzset()
        assert zoned_time(1795475363.9999) == "2026-11-24 00:09:23 +0100"
    finally:
        monkeypatch.delenv("TZ")
        if before is not None:
            monkeypatch.setenv("TZ", before)
        time.tzset()


def test_names_are_sorted_as_people_do() -> None:
    names = ["u10@x", "u2@x", "u2@a", "u", "10", "9", "b2c10", "b2c9", "U3@x"]
    assert sorted(names, key=natural) == ["9", "10", "U3@x", "b2c9", "b2c10", "u", "u2@a", "u2@x", "u10@x"]
    assert natural("1" * 5000), "no matter how long"
