# SPDX-License-Identifier: GPL-3.0-or-later
"""The live view of a migration, as it is on a real terminal: tmux is one, and tells what is on it."""

import io
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmtp_proxy.ctl.migrate.events import LogWatcher, Summary
from lmtp_proxy.ctl.migrate.live import LiveWatcher, watcher_for
from tests import ROOT
from tests.support.patience import SOON
from tests.support.terminal import Tmux

SUMMARY = Summary(1, 10, 9, 0, 1, 0, 0, {}, 61.0, None, 1)
pytest.importorskip("rich")


class Terminal(io.StringIO):
    """Says that it is one."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(params=[(80, 24), (200, 50), (40, 8)])
def tmux(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Tmux, int, int]]:
    if shutil.which("tmux") is None:
        pytest.skip("not installed: tmux; to install: sudo tests/e2e/install.sh")
    columns, rows = request.param
    command = f"cd {ROOT} && LC_ALL=C.UTF-8 {sys.executable} -m tests.support.live_view 60 22; sleep 60"
    terminal = Tmux(tmp_path / "tmux", columns, rows, command)
    try:
        yield terminal, columns, rows
    finally:
        terminal.close()


def test_a_terminal_of_any_size_shows_bar_users_and_failures(tmux: tuple[Tmux, int, int]) -> None:
    terminal, columns, rows = tmux
    small = rows < 12
    screen = terminal.shows(lambda lines: any("28/60" in line for line in lines) and (small or "move" in str(lines)))

    text = "\n".join(screen)
    assert max(map(len, screen)) <= columns
    assert re.search(r"━+.* 28/60 46 %", text)
    assert "19 done, 6 done before, 3 failed" in text
    if small:
        assert re.search(r"  and \d users more", text), text
    else:
        assert "about " in text and re.search(r" left, until \d{4}-\d\d-\d\d \d\d:\d\d [+-]\d{4}\b", text)
        # markup, emoji codes and control characters are data
        for name in ("[bold red]bela[/]", r"carl\x1b[2J\x07", ":smile: dora", "jörg 漢字"):
            assert name in text
        assert r"[red]Login" in text and r"\x1b[31m" in text
        assert re.search(r"jörg 漢字 +verify \d[\d.]* m?s, offline \d[\d.]* m?s", text)
        assert len([line for line in screen if ": failed: " in line]) == 1, "the first of equal failures, for good"
        assert "3 users failed: sync: exit 75: [red]Login" in text, "and how many there are of them"
    terminal.keys("Enter")
    terminal.shows(lambda lines: "19 done, 6 done before, 3 failed, 32 not begun of 60 users" in " ".join(lines))


def test_whoever_calls_it_is_not_held_up_by_a_terminal_that_takes_nothing(tmp_path: Path) -> None:
    """Ctrl-S: the drawing thread waits, and nobody else does."""

    on_again = threading.Event()

    class Stopped(Terminal):
        def write(self, text: str) -> int:
            on_again.wait(60)
            return len(text)

    watcher = LiveWatcher(Stopped())
    began = time.monotonic()
    watcher.began(10, 0)
    for number in range(10):
        watcher.user_step(f"u{number}", "syncing", "sync")
        watcher.user_ended(f"u{number}", "failed", None, "sync: exit 1")
    assert time.monotonic() - began < SOON
    watcher.ended(SUMMARY)
    assert time.monotonic() - began < 2 * SOON
    on_again.set()
    assert watcher._thread is not None
    watcher._thread.join(SOON)
    assert not watcher._thread.is_alive(), "it would draw while another test takes rich away"


def test_a_terminal_that_goes_away_takes_nothing_along() -> None:
    class Gone(Terminal):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    watcher = LiveWatcher(Gone())
    watcher.began(1, 0)
    watcher.note("a note")
    watcher.user_ended("u", "done", 1.0, None)
    watcher.ended(SUMMARY)
    assert watcher._thread is not None and not watcher._thread.is_alive()


def test_equal_failures_are_folded() -> None:
    """The first is a line for good; then it is counted, and at the end the others are named."""
    terminal = Terminal()
    watcher = LiveWatcher(terminal, draw=False)
    watcher.began(5, 0)
    for user in ("u1", "u10", "u2"):
        watcher.user_ended(user, "failed", None, f"sync of {user}: exit 1")
    watcher.user_ended("u3", "needs_attention", None, "sync of u3: exit 1")
    watcher._show()
    seen = terminal.getvalue()
    seen = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", seen)
    assert re.findall(r"(?m)^\S+ \S+ (u\d+: .*)$", seen) == [
        "u1: failed: sync of u1: exit 1", "u3: needs attention: sync of u3: exit 1"
    ]  # fmt: skip
    with watcher._console.capture() as picture:
        watcher._console.print(watcher._picture())
    assert "3 users failed: sync of USER: exit 1" in picture.get()
    watcher.ended(SUMMARY)
    watcher._show()
    assert "u2, u10: failed, as u1: sync of USER: exit 1" in terminal.getvalue()


def test_what_is_said_before_a_run_is_seen_at_once() -> None:
    """It may never begin: a dry run, or a proxy that is waited for."""
    terminal = Terminal()
    LiveWatcher(terminal).note("waiting for [lmtp-proxy]\x1b")
    assert re.fullmatch(r"\d\d:\d\d:\d\d [+-]\d{4} waiting for \[lmtp-proxy\]\\x1b\n", terminal.getvalue())


def test_what_is_no_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(watcher_for(io.StringIO(), {"TERM": "xterm"}), LogWatcher)
    assert isinstance(watcher_for(Terminal(), {"TERM": "dumb"}), LogWatcher)
    assert isinstance(watcher_for(Terminal(), {}), LogWatcher)
    assert isinstance(watcher_for(Terminal(), {"TERM": "xterm"}), LiveWatcher)
    monkeypatch.setitem(sys.modules, "rich.console", None)  # as if it were not installed
    terminal = Terminal()
    assert isinstance(watcher_for(terminal, {"TERM": "xterm"}), LogWatcher)
    assert "apt install python3-rich" in terminal.getvalue()
