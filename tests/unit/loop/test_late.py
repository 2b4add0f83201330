"""A thread for work that waits: made at the first work, and where it cannot be made, it can be later."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lmtp_proxy.config.values import Config, UnixAddress
from lmtp_proxy.delivery.in_flight import Flight, InFlight
from lmtp_proxy.delivery.uncertain_log import UncertainLog
from lmtp_proxy.generations.manager import ConfigManager
from lmtp_proxy.loop import late
from lmtp_proxy.loop.late import OneThread
from lmtp_proxy.receipts.batch import ReceiptsError
from lmtp_proxy.receipts.receipts import Receipts
from tests.support.flight import SomeFlight
from tests.unit.delivery.test_uncertain import RECORD


@contextmanager
def nothing_can_be_opened() -> Iterator[None]:
    os.close(os.open(os.devnull + "/none", os.O_RDONLY))
    yield


def test_work_is_done_elsewhere_one_after_the_other() -> None:
    thread = OneThread()
    assert repr(thread) == "<OneThread never used>"
    first, second = thread.apply(threading.get_ident), thread.apply(threading.get_ident)
    assert first == second != threading.get_ident()
    assert thread.used and repr(thread) == "<OneThread>"
    assert thread.apply(divmod, (7, 2)) == (3, 1)


def test_receipts_without_a_descriptor_left(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    receipts = Receipts()
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(late, "late_import", nothing_can_be_opened)
        with pytest.raises(ReceiptsError, match=r"there can be no thread to write them: .*Not a directory"):
            receipts.read({})
    assert [record.message.partition(":")[0] for record in caplog.records] == ["receipts"]


def test_uncertain_deliveries_without_a_descriptor_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They are in the log at least, and nobody waits for them for ever."""
    path = tmp_path / "uncertain"
    config = Config("/c.yml", (UnixAddress("/s"),), "mx", uncertain_log=str(path))
    in_flight, flights = InFlight(), [SomeFlight(), SomeFlight()]
    uncertain = UncertainLog(ConfigManager(config, lambda: None).current, in_flight)

    def record(flight: Flight) -> None:
        in_flight.begin(flight)
        uncertain.record(flight, [RECORD])
        uncertain.stop()

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(late, "late_import", nothing_can_be_opened)
        record(flights[0])
    assert not path.exists() and len(in_flight) == 0
    assert "Not a directory" in caplog.text and "alice@example.org" in caplog.text
    record(flights[1])
    assert path.read_bytes() == RECORD.to_line() and len(in_flight) == 0
