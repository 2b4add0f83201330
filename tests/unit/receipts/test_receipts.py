# SPDX-License-Identifier: GPL-3.0-or-later
"""Receipts of a process that ends; the rest is in tests/faults/test_receipts.py."""

from pathlib import Path

import pytest

from lmtp_proxy.receipts.batch import Batch, ReceiptsError
from lmtp_proxy.receipts.receipts import Receipts


def test_who_asks_a_process_that_ends_is_told_so(tmp_path: Path) -> None:
    """An answer without users would read as: nothing was ever delivered to anybody."""
    receipts = Receipts(str(tmp_path / "receipts"))
    assert receipts.read({"alice": "alice"})["users"].keys() == {"alice"}
    receipts.stop()
    with pytest.raises(ReceiptsError, match=r"^lmtp-proxy is stopping: ask again once it has been started$"):
        receipts.read({"alice": "alice"})


def test_a_mistake_of_ours_has_its_traceback_in_the_log_and_what_the_disk_does_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    receipts = Receipts(str(tmp_path / "missing" / "receipts"))
    with pytest.raises(ReceiptsError):
        receipts.read({})
    [record] = caplog.records
    assert record.exc_info is None and "missing" in record.getMessage()
    caplog.clear()

    def fail(_self: Batch, _now: float) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Batch, "limit", fail)
    receipts = Receipts(str(tmp_path / "receipts"))
    with pytest.raises(ReceiptsError, match=r"^internal error: RuntimeError\('a bug'\)$"):
        receipts.read({})
    records = caplog.records  # another for each time that it is tried again meanwhile
    assert records and all(record.exc_info is not None for record in records) and "in fail" in caplog.text
    monkeypatch.undo()
    receipts.stop()
