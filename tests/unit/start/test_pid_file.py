# SPDX-License-Identifier: GPL-3.0-or-later
"""A lock on the pid file is a lock on the file that has its name."""

import fcntl
import os
from pathlib import Path

import pytest

from lmtp_proxy.config.read import ConfigError
from lmtp_proxy.start.pid_file import PidFile


def test_the_file_goes_away_between_opening_and_locking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pid"
    ending = PidFile(str(path), "c.yml")
    ending.acquire()
    real = fcntl.flock

    def flock_too_late(handle: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        ending.remove()
        os.close(ending.fileno())
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock_too_late)
    second = PidFile(str(path), "c.yml")
    second.acquire()
    second.write()
    assert path.read_text() == f"{os.getpid()}\n"
    with pytest.raises(ConfigError, match=f"running already .pid {os.getpid()}.: {path} is locked"):
        PidFile(str(path), "c.yml").acquire()
    second.remove()
    assert not path.exists()
    os.close(second.fileno())


def test_a_file_that_is_no_pid_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("x" * 100)
    with pytest.raises(ConfigError, match="too large for a pid file"):
        PidFile(str(path), "c.yml").acquire()
    assert path.read_text() == "x" * 100


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("1\n")
    (tmp_path / "pid").symlink_to("precious")
    with pytest.raises(ConfigError, match="cannot open"):
        PidFile(str(tmp_path / "pid"), "c.yml").acquire()
    assert (tmp_path / "precious").read_text() == "1\n"
