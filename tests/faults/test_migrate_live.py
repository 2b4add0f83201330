# SPDX-License-Identifier: GPL-3.0-or-later
"""`lmtp-proxyctl migrate` on a real terminal: what it shows while users move, and what Ctrl-C does there."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from tests.faults.test_migrate import Stand, list_of, stand
from tests.support.ctl import PROGRAM
from tests.support.terminal import Tmux

__all__ = ["stand"]
USERS = [f"u{number:02}@example.org" for number in range(12)]
NO_TMUX = "not installed: tmux; to install: sudo tests/e2e/install.sh"
pytest.importorskip("rich")


@pytest.mark.skipif(shutil.which("tmux") is None, reason=NO_TMUX)
def test_a_run_on_a_terminal_and_one_ctrl_c(stand: Stand, tmp_path: Path) -> None:
    stand.set_users(dict.fromkeys(USERS, "old"))
    stand.site.order("final_sync", sleep=0.8)
    stand.site.order("sync", user=USERS[0], exit=75, output="no \x1b[31mlogin[/]")
    arguments = stand.arguments(stand.site.plan(), "--users", list_of(stand, USERS), "--jobs", "3")
    command = shlex.join([sys.executable, str(PROGRAM), *arguments])
    terminal = Tmux(tmp_path / "tmux", 80, 24, f"LC_ALL=C.UTF-8 {command}; echo status $?; sleep 60")
    try:
        screen = terminal.shows(
            lambda lines: all(
                any(words in line for line in lines)
                for words in ("final sync", ", offline ", ": failed: sync: exit 75")
            ),
            40,
        )
        text = "\n".join(screen)
        assert re.search(r"━+ *\d+/12 \d+ %", text), text
        assert f"{USERS[0]}: failed: sync: exit 75: no \\x1b[31mlogin[/]" in text
        assert re.search(rf"  {USERS[0][0]}\d\d@example\.org +final sync \d[\d.]* m?s, offline \d[\d.]* m?s", text)
        terminal.keys("C-c")
        terminal.shows(lambda lines: "users in hand are finished" in " ".join(" ".join(lines).split()))
        screen = terminal.shows(lambda lines: any(line.startswith("status ") for line in lines), 40)
    finally:
        terminal.close()
    text = " ".join(" ".join(screen).split())
    assert "status 3" in text
    summary = re.search(r"(\d+) done, 1 failed, (\d+) not begun of 12 users in .* \(interrupted\)", text)
    assert summary is not None, text
    done = int(summary[1])
    assert 1 <= done < 11 and done + 1 + int(summary[2]) == 12
    assert sorted(stand.states().values()).count("done") == done, "whoever was in hand was finished"
    assert set(stand.backends().values()) == {"old", "new"}
