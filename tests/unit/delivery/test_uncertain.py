# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of uncertain deliveries: one JSON line each, and what else may stand in such a file does no harm."""

import dataclasses
import json
from pathlib import Path

import pytest

from lmtp_proxy.delivery.uncertain import MAX_LINE, Uncertain, from_json, read_log

RECORD = Uncertain(
    time=1795475363.125,
    user="alice@example.org",
    recipient="Alice+x@example.org",
    backend="old",
    address="/run/old",
    sender="s@example.net",
    message_id="<1@example.net>",
    size=123,
    session="8f3a0c12",
    reason="no answer in time",
    keys=("alice+x@example.org", "alice@example.org", "@example.org"),
)
WRITTEN = dataclasses.replace(RECORD, keys=())


def test_a_record_is_one_line_that_reads_back() -> None:
    line = RECORD.to_line()
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert json.loads(line)["time"] == "2026-11-23T23:09:23.125Z"
    assert "keys" not in json.loads(line)
    assert from_json(json.loads(line)) == WRITTEN
    odd = dataclasses.replace(RECORD, message_id=None, sender="", reason='a "quote", \u2028 and ü')
    assert odd.to_line().isascii() and odd.to_line().count(b"\n") == 1
    assert from_json(json.loads(odd.to_line())) == dataclasses.replace(odd, keys=())


def test_what_is_no_record_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "log"
    good = RECORD.to_line()
    bad = [
        *(b"\n", b"{}\n", b"[]\n", b"null\n", b"\xff\n", good[:50] + b"\n", b"[" * 5000 + b"\n"),
        *(good.replace(b'"size": 123', b'"size": "1"'), good.replace(b"2026-", b"x"), good.replace(b'"old"', b"7")),
    ]
    path.write_bytes(good + b"".join(bad) + good + good[:-20])
    assert read_log(str(path)) == ([WRITTEN] * 2, len(bad) + 1)


def test_an_endless_line_takes_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * (3 * MAX_LINE) + b"\n" + RECORD.to_line())
    records, bad = read_log(str(path))
    assert records == [WRITTEN] and bad == 4


def test_a_log_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_log(str(tmp_path / "none"))
