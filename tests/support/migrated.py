# SPDX-License-Identifier: GPL-3.0-or-later
"""A journal as a migration leaves it, made from a seed: many users, some of them with every trouble there is.

The rows are written by hand into an empty journal, so that all that a reader may find can be in it.
"""

import json
import math
import random
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmtp_proxy.ctl.migrate.journal import open_journal

EVENING = 1795467600.0
"""2026-11-23 21:00 UTC."""
PLAN = """from: old
to: new
park: reject
sync: [doveadm, -c, /etc/dovecot/migration.conf, backup, -R, -u, '{address}', 'imapc:']
"""
EVIL = "<script>alert(1)</script>&\"'`\x1b[31m"
"""In names and in the output of hooks: nothing of it may work anywhere."""
HOOK_TROUBLE = (
    (
        "sync",
        "exit 75",
        "dsync(USER): Error: imapc(192.0.2.10:143): Login failed: NO Login failed: authentication failure\n"
        "dsync(USER): Error: Failed to initialize mailbox list",
    ),
    ("sync", "exit 67", "doveadm(USER): Error: User doesn't exist"),
    ("final_sync", "timeout after 300 s", "dsync(USER): Info: imapc(192.0.2.10:143): Connected to 192.0.2.10:143"),
    ("verify", "exit 1", "2c2\n< INBOX.Sent messages=412\n---\n> INBOX.Sent messages=411"),
    ("preflight", "refused", "new said 550 5.1.1 <USER> User doesn't exist: USER"),
)


class JournalFile:
    """Writes rows; `close` before it is read."""

    def __init__(self, path: Path) -> None:
        open_journal(str(path)).close()
        self.path = path
        self._database = sqlite3.connect(path)

    def close(self) -> None:
        self._database.commit()
        self._database.close()

    def run(self, began: float, ended: float | None, result: str | None = None, **changed: object) -> int:
        row = {"pid": 4711, "plan_path": "/etc/lmtp-proxy/migrate.yml", "plan": PLAN, "old": "old", "new": "new"}
        return self._insert(
            "runs", **(row | {"park": "reject", "began": began, "ended": ended, "result": result} | changed)
        )

    def user(self, user: str, state: str, since: float, *, run: int = 1, error: str | None = None) -> None:
        self._insert("users", user=user, state=state, since=since, run=run, error=error, guard_since=0.0)

    def step(
        self, user: str, step: str, began: float, ended: float | None, outcome: str | None = "ok", output: str = "",
        *, run: int = 1, attempt: int = 1,
    ) -> float:  # fmt: skip
        self._insert(
            "steps", run=run, user=user, step=step, attempt=attempt, began=began, ended=ended, outcome=outcome,
            output=output,
        )  # fmt: skip
        return began if ended is None else ended

    def receipt(self, user: str, **document: Any) -> None:
        self._insert("receipts", user=user, document=json.dumps(document))

    def _insert(self, table: str, **row: object) -> int:
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        cursor = self._database.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(row.values()))
        assert cursor.lastrowid is not None
        return cursor.lastrowid


def made_journal(path: Path, users: int, seed: int = 1, evil: bool = True) -> None:
    """A night's migration of so many users, with four jobs."""
    rng = random.Random(seed)
    journal = JournalFile(path)
    if users:
        ends = [EVENING] * 4
        journal.run(EVENING, None, None)
        for number, name in enumerate(_names(rng, users, evil)):
            job = min(range(4), key=lambda job: ends[job])
            ends[job] = _moved(journal, rng, name, ends[job], number)
        journal._database.execute("UPDATE runs SET ended = ?, result = ?", (max(ends), "done"))
    journal.close()


FIRST = ("anna", "bela", "carl", "dora", "emil", "frida", "georg", "hanna", "ines", "jakob", "karin", "lars", "mona")
LAST = ("abel", "brandt", "conrad", "dietz", "ebert", "falk", "graf", "hansen", "illner", "jahn", "kraft", "lorenz")


def _names(rng: random.Random, users: int, evil: bool) -> Sequence[str]:
    names = [f"{rng.choice(FIRST)}.{rng.choice(LAST)}{number}@example.org" for number in range(users)]
    if evil and users >= 10:
        names[3], names[7] = f"{EVIL}@example.org", "jörg müller 漢字@example.org"
        names[8] = "a-very-long-name-that-somebody-was-given-by-a-directory-service" * 2 + "@example.org"
    return names


def _moved(journal: JournalFile, rng: random.Random, user: str, now: float, number: int) -> float:
    """All steps of one user; returns when it was over."""
    began = now
    size = rng.lognormvariate(0.0, 1.0)
    trouble = HOOK_TROUBLE[number // 83 % len(HOOK_TROUBLE)] if number % 83 == 40 else None
    attention = number % 250 == 121
    info = f"dsync({user}): Info: imapc(192.0.2.10:143): Connected to 192.0.2.10:143 (local 192.0.2.20:40694)"

    def step(name: str, seconds: float, output: str = "") -> bool:
        nonlocal now
        wrong = trouble is not None and trouble[0] == name
        outcome = trouble[1] if wrong and trouble else "ok"
        text = trouble[2].replace("USER", user) if wrong and trouble else output
        now = journal.step(user, name, now, now + (300 if outcome.startswith("timeout") else seconds), outcome, text)
        now += rng.uniform(0.002, 0.006)
        return not wrong

    def failed() -> float:
        assert trouble is not None
        error = f"{trouble[0]}: {trouble[1]}: {trouble[2].splitlines()[-1].replace('USER', user)}"
        journal.user(user, "failed", now, error=f"{error}; is on old as before")
        return now

    parked = 0.0
    deferred = [f"4X{rng.randrange(16**9):09X}" for _ in range(int(rng.expovariate(1.0) * 2))]
    if number % 97 == 5:
        journal.step(user, "sync", now, now + 9.0, "exit 2", info + "\ndsync: Warning: Mailbox changes during dsync")
        now += 9.1
    if not step("sync", 6.0 * size, info) or not step("preflight", rng.uniform(0.01, 0.03)):
        return failed()
    parked = now
    step(
        "park",
        rng.uniform(0.02, 0.06) + (rng.uniform(1, 5) if number % 20 == 3 else 0),
        f"{user}: old -> reject, nothing in flight",
    )
    blocked = now
    step("block", rng.uniform(0.02, 0.08))
    if not step("final_sync", 0.4 + 0.9 * size * rng.uniform(0.7, 1.4), info) or not step(
        "verify", rng.uniform(0.05, 0.2)
    ):
        now = journal.step(user, "restore", now, now + 0.05, "ok", f"{user}: reject -> old")
        now = journal.step(user, "unblock", now, now + 0.06)
        journal.receipt(
            user, last_on_old=began - 40, parked_from=parked, parked_until=now, deferred=deferred, requeued=deferred,
            uncertain=[], first_on_new=None, offline={"from": blocked, "until": now},
        )  # fmt: skip
        return failed()
    step("move", rng.uniform(0.02, 0.07), f"{user}: reject -> new, nothing in flight")
    until = now
    if attention:
        now = journal.step(
            user,
            "redirect",
            now,
            now + 0.4,
            "exit 1",
            "makegdbm: /etc/perdition/popmap.gdbm.new: No space left on device",
        )
        error = (
            "redirect: exit 1: makegdbm: /etc/perdition/popmap.gdbm.new: No space left on device; mail goes"
            " to new already, IMAP is blocked: mend the cause, then run the same command again"
        )
        journal.user(user, "needs_attention", now, error=error)
    else:
        step("redirect", rng.uniform(0.02, 0.08))
        step("unblock", rng.uniform(0.02, 0.08))
        journal.user(user, "done", now)
        until = now
        if deferred:
            step("requeue", rng.uniform(0.1, 0.5), "\n".join(f"postqueue -i {ident}: 0" for ident in deferred))
    journal.receipt(
        user, last_on_old=parked - rng.expovariate(1 / 600), parked_from=parked, parked_until=until, deferred=deferred,
        requeued=[] if attention else deferred,
        uncertain=["<4f1c@example.com>, 246 octets"] if number % 300 == 17 else [],
        first_on_new=until + rng.expovariate(1 / 60) if rng.random() < 0.8 else None,
        offline={"from": blocked, "until": None if attention else until},
    )  # fmt: skip
    return now + math.ldexp(1, -4)
