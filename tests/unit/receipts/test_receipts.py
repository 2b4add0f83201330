# SPDX-License-Identifier: GPL-3.0-or-later
"""Receipts of a process that ends; the rest is in tests/faults/test_receipts.py."""

from pathlib import Path

import pytest

from lmtp_proxy.receipts.batch import ReceiptsError
from lmtp_proxy.receipts.receipts import Receipts


def test_who_asks_a_process_that_ends_is_told_so(tmp_path: Path) -> None:
    """An answer without users would read as: nothing was ever delivered to anybody."""
    receipts = Receipts(str(tmp_path / "receipts"))
    assert receipts.read({"alice": "alice"})["users"].keys() == {"alice"}
    receipts.stop()
    with pytest.raises(ReceiptsError, match=r"^lmtp-proxy is stopping: ask again once it has been started$"):
        receipts.read({"alice": "alice"})
