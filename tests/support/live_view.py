# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that never was, for whoever wants to see what a watcher makes of it: python -m tests.support.live_view USERS.

It goes on until a line comes from standard input after the last user but the ones in hand; then it ends.
"""

import os
import sys
import time

from lmtp_proxy.ctl.migrate.events import Summary
from lmtp_proxy.ctl.migrate.live import watcher_for

NAMES = ("anna", "[bold red]bela[/]", "carl\x1b[2J\x07", ":smile: dora", "jörg 漢字", "a-very-long-name" * 12)
JOBS = 6


def main(total: int, ending: int) -> None:
    """`ending` users end, every 7th of them with a failure; then JOBS of them are left in hand."""
    watcher = watcher_for(sys.stdout, dict(os.environ))
    watcher.began(total, total // 10)
    watcher.note("plan /etc/lmtp-proxy/migrate.yml: old -> new")
    for number in range(ending):
        user = f"user{number:04}@example.org"
        for state, step in (("syncing", "sync"), ("blocked", "block"), ("final_sync", "final_sync")):
            watcher.user_step(user, state, step)
        time.sleep(0.01)
        if number % 7 == 6:
            watcher.user_ended(user, "failed", 1.5, "sync: exit 75: [red]Login failed[/]\x1b[31m; is on old as before")
        else:
            watcher.user_ended(user, "done", 0.8, None)
    for name, step in zip(NAMES, ("sync", "park", "block", "final_sync", "verify", "move"), strict=True):
        watcher.user_step(name, "syncing", "block" if step in ("final_sync", "verify", "move") else "sync")
        watcher.user_step(name, "syncing", step)
    sys.stdin.readline()
    failed = ending // 7
    watcher.ended(
        Summary(1, total, ending - failed, total // 10, failed, 0, total - total // 10 - ending, {}, 12.0, None, 1)
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
