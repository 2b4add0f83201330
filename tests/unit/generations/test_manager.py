# SPDX-License-Identifier: GPL-3.0-or-later
"""A loading process under gevent that never ends, and one whose reload is given up. The rest is tests of faults."""

import os
import sys
import time
from pathlib import Path

import gevent
import pytest

from lmtp_proxy.config.loading import LARGE, load
from lmtp_proxy.generations import manager as config_manager
from lmtp_proxy.generations.manager import ConfigManager
from lmtp_proxy.generations.reloads import ReloadRefused
from lmtp_proxy.start.late_modules import READS_CONFIG


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigManager:
    path = tmp_path / "c.yml"
    path.write_text("config: {socket: /s}\nusers:\n  a: hold\n" + "#" * LARGE)
    found = ConfigManager(load(str(path)), lambda: None)
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/pids\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return found


def check_gone(directory: Path) -> None:
    pids = (directory / "pids").read_text().split()
    assert len(pids) == 1
    assert not os.path.exists(f"/proc/{pids[0]}")


def test_one_that_hangs_is_given_up(manager: ConfigManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_manager, "LONGEST", 0.3)
    outcome = manager.reload()
    assert isinstance(outcome, ReloadRefused)
    assert outcome.errors[0].startswith(f"{tmp_path}/c.yml: cannot be loaded: the process that is to do it did not end")
    assert manager.current().number == 1
    assert manager.current().config.users.lookup("a") == "hold"
    check_gone(tmp_path)


def test_a_reload_that_is_given_up_takes_it_along(manager: ConfigManager, tmp_path: Path) -> None:
    reload = gevent.spawn(manager.reload)
    deadline = time.monotonic() + 20
    while not (tmp_path / "pids").exists() or not (tmp_path / "pids").read_text():
        assert time.monotonic() < deadline
        gevent.sleep(0.01)
    reload.kill()
    check_gone(tmp_path)


def test_a_first_reload_without_a_descriptor_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads YAML is imported then; half of it would stay so for ever."""
    path = tmp_path / "c.yml"
    path.write_text("config: {socket: /s}\nusers:\n  a: hold\n")
    manager = ConfigManager(load(str(path)), lambda: None)
    manager._thread.prepare()
    with monkeypatch.context() as meanwhile:
        meanwhile.delitem(sys.modules, READS_CONFIG, raising=False)
        meanwhile.setattr(os, "devnull", "/dev/null/none")
        outcome = manager.reload()
        assert READS_CONFIG not in sys.modules
    assert isinstance(outcome, ReloadRefused)
    (error,) = outcome.errors
    assert error.startswith(f"{path}: cannot be loaded: what reads it cannot be: ") and "Not a directory" in error
    assert not isinstance(manager.reload(), ReloadRefused)
