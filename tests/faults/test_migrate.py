# SPDX-License-Identifier: GPL-3.0-or-later
"""lmtp-proxyctl migrate with the real proxy, real commands, and a runner that is killed, interrupted and refused."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lmtp_proxy.config.read import load_config
from tests.support.backend import FakeBackend
from tests.support.control import Control
from tests.support.ctl import Run, controlled, ctl, end_ctl, start_ctl
from tests.support.patience import SOON
from tests.support.proxy import ProxyProcess
from tests.support.script import Close, Pause, Script, say
from tests.support.site import Site

FORWARD = ["sync", "block", "final_sync", "verify", "redirect", "unblock"]
ALICE, BOB = "alice@example.org", "bob@example.org"


@dataclass
class Stand:
    """Two stores, a proxy with receipts, a site."""

    old: FakeBackend
    new: FakeBackend
    proxy: ProxyProcess
    site: Site

    def arguments(self, *arguments: str) -> list[str]:
        return ["-c", self.proxy.config_path, "migrate", *arguments]

    def run(self, *arguments: str, plan: str | None = None) -> Run:
        return ctl(*self.arguments(plan or self.site.plan(), *arguments))

    def start(self, *arguments: str, **values: Any) -> subprocess.Popen[str]:
        return start_ctl(*self.arguments(self.site.plan(**values), *arguments))

    def verb(self, *arguments: str) -> Run:
        return ctl(*self.arguments("--journal", self.site.journal, *arguments))

    def backends(self) -> dict[str, str]:
        return dict(load_config(self.proxy.config_path).users)

    def states(self) -> dict[str, str]:
        with closing(sqlite3.connect(self.site.journal)) as db:
            return dict(db.execute("SELECT user, state FROM users").fetchall())

    def deliver(self, user: str) -> int:
        with self.proxy.client() as client:
            code = client.deliver("s@x", [user]).verdict(0).code
            client.quit()
            return int(code)

    def set_users(self, users: dict[str, str]) -> None:
        self.proxy.config["users"].clear()
        self.proxy.config["users"].update(users)
        self.proxy.write_config()
        self.proxy.reload()


@pytest.fixture
def stand() -> Iterator[Stand]:
    receipts = f"/tmp/lpr{os.getpid()}.{random.SystemRandom().randrange(10**9)}"
    os.mkdir(receipts)
    site = Site()
    users = {ALICE: "old", BOB: "old", "zoe@example.org": "new"}
    with (
        FakeBackend() as old,
        FakeBackend() as new,
        controlled({"old": old, "new": new}, users, receipts=f"{receipts}/r.db") as proxy,
    ):
        yield Stand(old, new, proxy, site)
    shutil.rmtree(receipts)
    shutil.rmtree(site.directory)


def many(count: int) -> list[str]:
    return [f"u{number:03}@example.org" for number in range(count)]


def heard(process: subprocess.Popen[str], text: str) -> None:
    """Read what the command says up to the line with `text`; only what comes later is in what `end_ctl` returns."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return
    raise AssertionError(f"it ended and never said {text!r}: {lines}")


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


# --- it migrates -----------------------------------------------------------------------------------------------------


def test_one_user_with_all_steps(stand: Stand) -> None:
    ended = stand.run(ALICE)
    assert ended.status == 0, ended
    assert stand.site.hooks_of(ALICE) == FORWARD and stand.site.hooks_of(BOB) == []
    assert stand.backends() == {ALICE: "new", BOB: "old", "zoe@example.org": "new"}
    assert stand.deliver(ALICE) == 250 and len([seen for seen in stand.new.transactions() if seen.dotted]) == 1
    status = stand.verb("--json", "status", ALICE).document["users"][ALICE]
    assert status["state"] == "done"
    assert [step["step"] for step in status["steps"]] == [
        "sync", "preflight", "park", "block", "final_sync", "verify", "move", "redirect", "unblock",
    ]  # fmt: skip
    assert {step["outcome"] for step in status["steps"]} == {"ok"}
    receipt = status["receipt"]
    assert receipt["parked_from"] <= receipt["offline"]["from"] < receipt["parked_until"] < receipt["offline"]["until"]
    lines = [line.split(" ", 3)[3] for line in ended.err.splitlines()]
    assert "1 done of 1 user in" in lines[-1] and f"{ALICE}: blocked: block" in lines, ended.err


def test_the_proxy_is_told_how_far_it_is(stand: Stand) -> None:
    """For the status page: numbers, no names; the last word is that it has ended."""
    control = Control(stand.proxy)
    assert control.get("/migration") == {"migration": None}
    stand.site.order("verify", BOB, exit=1)
    assert stand.run(ALICE, BOB).status == 2
    told = control.get("/migration")["migration"]
    assert told.pop("ago") < 10 and told.pop("seconds") > 0
    assert told == {"from": "old", "to": "new", "running": False, "total": 2, "before": 0, "done": 1, "copied": 0,
                    "failed": 1, "attention": 0}  # fmt: skip
    bad = control.ask("POST", "/migration", {"from": "a", "to": "b", "total": "1"})
    assert bad.code == 400 and bad.document["error"] == '"total" must be a whole number from 0 on'
    bad = control.ask("POST", "/migration", {"from": "a", "to": "b", "total": 1})
    assert bad.code == 400 and bad.document["error"] == '"before" must be a whole number from 0 on'
    assert control.get("/migration")["migration"]["total"] == 2, "what is wrong changes nothing"


def test_a_command_of_the_site_tries_deferred_mail_again(stand: Stand) -> None:
    """Once the user is on the new store; for whom nothing was deferred nothing is run."""
    mark = os.path.join(stand.site.directory, "tried")
    plan = stand.site.plan(requeue={"mta": ["/bin/sh", "-c", f'echo "$1" >> {mark}', "sh", "{user}"]})
    stand.site.order("final_sync", ALICE, hold=True)
    process = start_ctl(*stand.arguments(plan, ALICE, BOB, "--jobs", "1"))
    stand.site.wait_for("final_sync", [ALICE])
    assert stand.deliver(ALICE) == 450
    stand.site.let_go()
    ended = end_ctl(process, time.monotonic())
    assert ended.status == 0, ended
    assert Path(mark).read_text() == f"{ALICE}\n"


def test_while_a_user_is_offline_nothing_is_waited_for_but_commands_and_mail(stand: Stand) -> None:
    """How much of that time is ours is a figure of the bench (G); here, that no step of ours takes long."""
    users = many(16)
    stand.set_users(dict.fromkeys(users, "old"))
    hooks: dict[str, Any] = {hook: ["/bin/true", "{user}"] for hook in FORWARD}
    assert stand.run("--all-on", "old", "--jobs", "4", plan=stand.site.plan(**hooks)).status == 0
    with closing(sqlite3.connect(stand.site.journal)) as db:
        rows = db.execute("SELECT user, step, began, ended FROM steps ORDER BY id").fetchall()
    steps = {user: [row[1:] for row in rows if row[0] == user] for user in users}
    offline = {user: mine[[step for step, *_ in mine].index("block") :] for user, mine in steps.items()}
    assert {tuple(step for step, *_ in mine) for mine in offline.values()} == {
        ("block", "final_sync", "verify", "move", "redirect", "unblock")
    }
    between = [min(later[1] - step[2] for step, later in pairwise(mine)) for mine in offline.values()]
    assert min(between) >= 0, "one step after the other"
    whole = min(mine[-1][2] - mine[0][1] for mine in offline.values())
    assert whole < 5, f"the quickest of {len(users)} was offline for {whole:.1f} s, with commands that do nothing"


HOSTILE = [
    "with space", "quote'single", 'quote"double', "semi;colon", "$(touch /tmp/pwned)", "`id`", "jürgen", "-x", "--help",
    "{to}", "a\\b", "*", "~root", "$home", "&&", "|cat", "<in", "日本",
]  # fmt: skip


def test_user_names_reach_commands_as_one_exact_argument(stand: Stand) -> None:
    users = [f"{name}@example.org" for name in HOSTILE if name != "*"]
    stand.set_users(dict.fromkeys(users, "old"))
    shell = {"command": 'exec "$@" "$MIGRATE_USER" "$1"'.replace('"$@"', " ".join(stand.site.hook("block", "from"))),
             "shell": True}  # fmt: skip
    plan = stand.site.plan(block=shell, verify=stand.site.hook("verify", "--", "{user}", "{address}:{from}:{to}:{now}"))
    ended = stand.run("--all-on", "old", plan=plan)
    assert ended.status == 0, ended
    for hook in ("sync", "final_sync", "redirect", "unblock"):
        assert sorted(call.arguments[0] for call in stand.site.calls() if call.hook == hook) == sorted(users)
        assert all(len(call.arguments) == 1 for call in stand.site.calls() if call.hook == hook)
    by_shell = [call.arguments for call in stand.site.calls() if call.hook == "block"]
    assert sorted(by_shell) == sorted(["from", user, user] for user in users)
    verified = [call.arguments for call in stand.site.calls() if call.hook == "verify"]
    assert sorted(verified) == sorted(["--", user, f"{user}:old:new:old"] for user in users)
    call = next(call for call in stand.site.calls() if call.hook == "sync" and call.user == users[0])
    assert call.document["environment"] == {
        "MIGRATE_USER": users[0], "MIGRATE_ADDRESS": users[0], "MIGRATE_FROM": "old", "MIGRATE_TO": "new",
        "MIGRATE_NOW": "old",
    }  # fmt: skip
    assert not os.path.exists("/tmp/pwned")


def test_a_user_beginning_with_a_dash_can_be_named(stand: Stand) -> None:
    stand.set_users({"-x@example.org": "old"})
    ended = stand.run("--", "-x@example.org")
    assert ended.status == 0, ended
    assert stand.backends() == {"-x@example.org": "new"}


def test_statuses_that_mean_again_and_long_syncs(stand: Stand) -> None:
    stand.site.order("sync", exit=2, times=2)
    again = {"command": stand.site.hook("sync"), "again": [2], "attempts": 3}
    plan = stand.site.plan(sync=again, final_sync=stand.site.hook("final_sync"), sync_again_above=0, max_syncs=2)
    assert stand.run(ALICE, plan=plan).status == 0
    assert stand.site.hooks_of(ALICE) == ["sync"] * 4 + FORWARD[1:], "three attempts, and once more as it took long"
    stand.site.no_orders()
    stand.site.order("final_sync", exit=2)
    plan = stand.site.plan(final_sync={"command": stand.site.hook("final_sync"), "again": [2], "attempts": 2})
    ended = stand.run(BOB, plan=plan)
    assert ended.status == 2 and "final_sync: exit 2" in ended.err
    assert stand.site.hooks_of(BOB) == ["sync", "block", "final_sync", "final_sync", "unblock"]


# --- it fails and is put back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hook, expected",
    [
        ("sync", ["sync"]),
        ("block", ["sync", "block", "unblock"]),
        ("final_sync", ["sync", "block", "final_sync", "unblock"]),
        ("verify", ["sync", "block", "final_sync", "verify", "unblock"]),
    ],
)
def test_whatever_fails_before_the_move_is_undone(stand: Stand, hook: str, expected: list[str]) -> None:
    stand.site.order(hook, ALICE, exit=7, output="no such mailbox \x1b[2J")
    ended = stand.run(ALICE, BOB)
    assert ended.status == 2
    assert f"{ALICE}: failed" in ended.err and f"{hook}: exit 7: no such mailbox \\x1b[2J" in ended.err
    assert stand.site.hooks_of(ALICE) == expected and stand.site.hooks_of(BOB) == FORWARD
    assert stand.backends() == {ALICE: "old", BOB: "new", "zoe@example.org": "new"}
    assert stand.states() == {ALICE: "failed", BOB: "done"}
    stand.site.no_orders()
    assert stand.run(ALICE, BOB).status == 0, "and the next run tries again"
    assert stand.states() == {ALICE: "done", BOB: "done"}


def test_after_the_move_a_human_is_asked_and_the_same_command_goes_on(stand: Stand) -> None:
    stand.site.order("redirect", ALICE, exit=1)
    ended = stand.run(ALICE)
    assert ended.status == 2 and "needs_attention" in ended.err
    assert f"so nothing is put back: mend it, then `lmtp-proxyctl migrate {stand.site.directory}" in ended.err
    assert stand.backends()[ALICE] == "new" and stand.site.hooks_of(ALICE)[-1] == "redirect"
    stand.site.no_orders()
    assert stand.run(ALICE).status == 0
    assert stand.site.hooks_of(ALICE) == [*FORWARD[:-1], "redirect", "unblock"], "no sync after the move"
    assert stand.states()[ALICE] == "done"


def test_a_command_that_hangs_is_ended_with_all_that_it_started(stand: Stand) -> None:
    script = Path(stand.site.directory, "hang.sh")
    script.write_text(f"#!/bin/sh\ntrap '' TERM\necho $$ > {stand.site.directory}/pid\nsleep 301 & sleep 301\n")
    script.chmod(0o755)
    plan = stand.site.plan(final_sync={"command": [str(script), "{user}"], "timeout": 0.5})
    began = time.monotonic()
    ended = stand.run(ALICE, plan=plan)
    assert ended.status == 2 and "final_sync: timeout after 0.5 s" in ended.err
    assert time.monotonic() - began < 30
    group = Path(stand.site.directory, "pid").read_text().strip()
    left = [name for name in os.listdir("/proc") if name.isdigit() and group_of(name) == group]
    assert left == [] and stand.backends()[ALICE] == "old"


def group_of(pid: str) -> str:
    try:
        state, _, group, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state == "Z" else group  # nobody may be there to take note of its end
    except OSError:
        return ""


def test_no_account_on_the_new_store(stand: Stand) -> None:
    stand.new.script = Script(rcpt_by={ALICE: say("550 5.1.1 no such user")})
    ended = stand.run(ALICE)
    assert ended.status == 2, ended
    assert "preflight: new said 550 5.1.1 no such user: is the account missing there?" in ended.err
    assert stand.site.hooks_of(ALICE) == ["sync"], "nobody was blocked"


def test_an_uncertain_delivery(stand: Stand) -> None:
    """By default the user is put back; `on_uncertain: go_on` goes on, and both say which it is."""
    stand.old.script = Script(final=(Close(),))
    assert stand.deliver(ALICE) == 451
    ended = stand.run(ALICE)
    assert ended.status == 2 and "park: of deliveries to the old backend nobody knows the outcome" in ended.err
    assert "Message-ID" in ended.err and stand.backends()[ALICE] == "old"
    assert stand.site.hooks_of(ALICE) == ["sync"]
    assert stand.run(ALICE, plan=stand.site.plan(on_uncertain="go_on")).status == 0
    receipt = stand.verb("--json", "status", ALICE).document["users"][ALICE]["receipt"]
    assert len(receipt["uncertain"]) == 1


def test_a_delivery_that_takes_long_is_waited_for_before_the_block(stand: Stand) -> None:
    stand.old.script = Script(final=(Pause(2.0), *say("250 2.0.0 stored")))
    with stand.proxy.client() as client:
        client.envelope("slow@x", [ALICE])
        client.send(b"x\r\n.\r\n")
        assert stand.old.wait_for(lambda: any(seen.dotted for seen in stand.old.transactions()))
        began = time.time()
        assert stand.run(ALICE).status == 0
    block = next(call for call in stand.site.calls() if call.hook == "block")
    assert block.at - began > 1.0, "the drain cost no downtime"


def test_a_delivery_that_takes_too_long_puts_back(stand: Stand) -> None:
    stand.old.script = Script(final=(Pause(8.0), *say("250 2.0.0 stored")))
    with stand.proxy.client() as client:
        client.envelope("slow@x", [ALICE])
        client.send(b"x\r\n.\r\n")
        assert stand.old.wait_for(lambda: any(seen.dotted for seen in stand.old.transactions()))
        ended = stand.run(ALICE, plan=stand.site.plan(drain_timeout=1))
    assert ended.status == 2 and "park: not all is quiet after 1 s" in ended.err
    assert stand.site.hooks_of(ALICE) == ["sync"] and stand.backends()[ALICE] == "old"


# --- what is refused -------------------------------------------------------------------------------------------------


def test_mail_in_the_new_store_forbids_a_sync(stand: Stand) -> None:
    stand.set_users({ALICE: "new", BOB: "old"})
    assert stand.deliver(ALICE) == 250
    stand.set_users({ALICE: "old", BOB: "old"})
    ended = stand.run(ALICE, BOB)
    assert ended.status == 2
    assert "mail was delivered to new for this user" in ended.err
    assert f"`lmtp-proxyctl migrate reset {ALICE}`" in ended.err
    assert stand.site.hooks_of(ALICE) == [] and stand.states() == {ALICE: "needs_attention", BOB: "done"}
    assert stand.run(ALICE).status == 2 and stand.site.hooks_of(ALICE) == [], "nor the next time"
    reset = stand.verb("reset", ALICE)
    assert reset.status == 0 and "begins anew" in reset.out
    assert stand.run(ALICE).status == 0 and stand.states()[ALICE] == "done"


def test_who_is_elsewhere_already_is_skipped(stand: Stand) -> None:
    ended = stand.run("zoe@example.org", "nobody@example.org", ALICE)
    assert ended.status == 2
    assert "zoe@example.org: skipped: is on new, not on old" in ended.err
    assert "nobody@example.org: skipped: is on no backend, not on old" in ended.err
    assert stand.site.hooks_of("zoe@example.org") == [] and stand.backends()[ALICE] == "new"
    assert stand.run("--all-on", "new").status == 64


def test_one_line_for_each_mistake_before_anything_begins(stand: Stand) -> None:
    plan = stand.site.plan(to="knew", park="reject", block=["/no/such/program", "{user}"])
    ended = stand.run(ALICE, plan=plan)
    assert ended.status == 1
    assert "to: " in ended.err and "has no backend knew; there are old, new" in ended.err
    assert "block: there is no program /no/such/program" in ended.err
    broken = stand.site.plan(sync=["{user}"], max_syncs=0, typo="x")
    ended = stand.run(ALICE, plan=broken)
    assert (ended.status == 1 and ended.error == "4 errors in the plan") or ended.error == "3 errors in the plan"
    assert "plan.yml:" in ended.err and "typo: unknown key" in ended.err
    assert stand.run(ALICE, plan="/no/plan.yml").error.startswith("1 error in the plan")
    assert not os.path.exists(stand.site.journal) and stand.site.calls() == []
    assert stand.run().status == 1, "nobody to migrate"


def test_a_proxy_without_receipts_is_refused() -> None:
    site = Site()
    with FakeBackend() as old, FakeBackend() as new, controlled({"old": old, "new": new}, {ALICE: "old"}) as proxy:
        ended = ctl("-c", proxy.config_path, "migrate", site.plan(), ALICE)
    assert ended.status == 1 and "config.receipts is not set" in ended.error and len(ended.err.splitlines()) == 1
    assert site.calls() == [] and not os.path.exists(site.journal)
    shutil.rmtree(site.directory)


def test_a_dry_run_changes_nothing(stand: Stand) -> None:
    before = Path(stand.proxy.config_path).read_text()
    stand.new.script = Script(rcpt_by={BOB: say("550 5.1.1 no such user")})
    ended = stand.run("--dry-run", ALICE, BOB, "zoe@example.org")
    flat = " ".join(ended.out.split())
    assert f"{ALICE}: sync, park, block, final sync, move to new, redirect, unblock" in flat
    assert f"{BOB}: sync, and then fail: new said 550" in flat
    assert "zoe@example.org: nothing: is on new, not on old" in flat
    assert "nothing was changed; of 3 users 2 would not be migrated" in flat and ended.status == 2
    assert stand.site.calls() == [] and not os.path.exists(stand.site.journal)
    assert Path(stand.proxy.config_path).read_text() == before
    shown = stand.run("--dry-run", ALICE)
    assert shown.status == 0
    text = "".join(line.strip() for line in shown.out.splitlines())
    words = json.loads(json.dumps(stand.site.hook("final_sync", ALICE)))
    assert f"final_sync: {shlex.join(words)}".replace(" ", "") in text.replace(" ", "")
    assert stand.site.calls() == [], "nothing was run"


def test_a_dry_run_tells_alike_users_once_and_is_refused_where_the_run_would_be(stand: Stand) -> None:
    stand.set_users(dict.fromkeys(many(30), "old"))
    shown = " ".join(stand.run("--dry-run", "--all-on", "old").out.split())
    assert "30 users: sync, park, block, final sync, move to new, redirect, unblock: u000@example.org," in shown
    assert "and 10 more" in shown and shown.count("final sync,") == 1
    for dry in ((), ("--dry-run",)):
        nobody = stand.run(*dry)
        assert nobody.status == 1 and "nobody to migrate: name users" in nobody.error
        plan = stand.site.plan(journal="/nowhere/at/all/j.db")
        nowhere = stand.run(*dry, "u000@example.org", plan=plan)
        assert nowhere.status == 1 and "/nowhere/at/all" in nowhere.error, nowhere


@pytest.mark.parametrize("verb, meant", [("stauts", "status"), ("reprot", "report"), ("relase", "release")])
def test_a_verb_that_is_nearly_one(stand: Stand, verb: str, meant: str) -> None:
    ended = ctl(*stand.arguments(verb, ALICE))
    assert ended.status == 64 and f"did you mean {meant}?" in ended.err


def test_the_journal_is_that_of_the_plan(stand: Stand) -> None:
    assert stand.run(ALICE).status == 0
    plan = stand.site.plan()
    for verb in ("status", "report"):
        for users in ((), (ALICE,)):
            assert ctl(*stand.arguments(verb, plan, *users)).status == 0, verb
    assert "begins anew" in ctl(*stand.arguments("reset", plan, ALICE)).out
    assert stand.states()[ALICE] == "on_old"


def test_a_second_runner_is_refused(stand: Stand) -> None:
    stand.site.order("final_sync", hold=True)
    first = stand.start(ALICE)
    stand.site.wait_for("final_sync")
    second = stand.run(BOB)
    assert second.status == 1 and f"another run is at work on it: pid {first.pid}, since" in second.error
    assert stand.verb("release", ALICE).status == 1
    status = stand.verb("status")
    assert f"under way, pid {first.pid}" in " ".join(status.out.split()) and "final_sync for" in status.out
    stand.site.let_go()
    assert end_ctl(first, time.monotonic()).status == 0
    assert stand.site.hooks_of(BOB) == []


# --- it dies ---------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_killed_at_random_moments_and_resumed(stand: Stand) -> None:
    """Every user gets there, no sync runs after a move, and mail keeps coming all the while."""
    users = many(30)
    stand.set_users(dict.fromkeys(users, "old"))
    chance = random.Random(7)
    for _ in range(10):
        process = stand.start("--users", list_of(stand, users), "--jobs", "4")
        time.sleep(chance.uniform(0.3, 1.3))
        for user in chance.sample(users, 3):
            assert stand.deliver(user) in (250, 450)
        kill(process)
    ended = stand.run("--users", list_of(stand, users), "--jobs", "4")
    assert ended.status == 0, ended
    assert set(stand.states().values()) == {"done"} and set(stand.backends().values()) == {"new"}
    for user in users:
        hooks = stand.site.hooks_of(user)
        assert hooks[-1] == "unblock"
        first = hooks.index("redirect")
        assert not {"sync", "final_sync", "block"} & set(hooks[first:]), (user, hooks)
        moved = first_moved(stand, user)
        syncs = [call.at for call in stand.site.calls() if call.user == user and "sync" in call.hook]
        assert max(syncs) < moved


def first_moved(stand: Stand, user: str) -> float:
    with closing(sqlite3.connect(stand.site.journal)) as db:
        query = "SELECT min(at) FROM transitions WHERE user = ? AND after = 'moved'"
        return float(db.execute(query, (user,)).fetchone()[0])


def list_of(stand: Stand, users: Sequence[str]) -> str:
    path = Path(stand.site.directory, "list")
    path.write_text("\n".join(users))
    return str(path)


def test_a_sync_that_a_dead_runner_left_is_ended_before_anything_else(stand: Stand) -> None:
    stand.site.order("final_sync", ALICE, sleep=60)
    process = stand.start(ALICE)
    stand.site.wait_for("final_sync")
    orphan = next(call.document["pid"] for call in stand.site.calls() if call.hook == "final_sync")
    kill(process)
    status = " ".join(stand.verb("status").out.split())
    assert "died" in status and "in the hands of a run that died" in status and f"{ALICE}: final_sync for" in status
    stand.site.no_orders()
    ended = stand.run(BOB)
    assert ended.status == 0, ended
    assert not os.path.exists(f"/proc/{orphan}")
    assert "1 user in the hands of a run that died is taken up first" in ended.err
    assert [call for call in stand.site.calls("ended") if call.document["pid"] == orphan] == []
    assert stand.states() == {ALICE: "done", BOB: "done"}, "also the one who was not asked for"


def test_released_by_hand(stand: Stand) -> None:
    stand.site.order("final_sync", ALICE, sleep=60)
    process = stand.start(ALICE)
    stand.site.wait_for("final_sync")
    kill(process)
    assert stand.backends()[ALICE] == "reject" and stand.deliver(ALICE) == 450
    refused = stand.verb("release", BOB)
    assert refused.status == 1 and "the journal has never heard of this user" in refused.err
    assert stand.verb("reset", ALICE).status == 1, "while it is in hand"
    released = stand.verb("release", ALICE)
    assert released.status == 0, released
    assert stand.backends()[ALICE] == "old" and stand.deliver(ALICE) == 250
    assert stand.site.hooks_of(ALICE)[-1] == "unblock" and stand.states() == {ALICE: "on_old"}
    again = stand.verb("release", ALICE)
    assert again.status == 1 and "is on_old: there is nothing to release" in again.err
    stand.site.no_orders()
    assert stand.run(ALICE).status == 0
    assert "there is nothing to release" in stand.verb("release", ALICE).err


def test_a_run_with_other_backends_does_not_take_up_what_died(stand: Stand) -> None:
    stand.site.order("block", ALICE, sleep=60)
    process = stand.start(ALICE)
    stand.site.wait_for("block")
    kill(process)
    stand.site.no_orders()
    ended = stand.run(BOB, plan=stand.site.plan(name="other.yml", park="hold"))
    assert ended.status == 1 and f"{ALICE} is in the hands of run 1, which died" in ended.error
    assert stand.site.hooks_of(BOB) == []
    assert stand.run().status == 0 and stand.states() == {ALICE: "done"}


def test_the_proxy_is_restarted_amid(stand: Stand) -> None:
    users = many(12)
    stand.set_users(dict.fromkeys(users, "old"))
    process = stand.start("--all-on", "old", "--jobs", "4")
    stand.site.wait_for("verify")
    stand.proxy.stop()
    time.sleep(1.0)
    stand.proxy.start()
    ended = end_ctl(process, time.monotonic())
    assert ended.status == 0, ended
    assert "waiting for lmtp-proxy" in ended.err
    assert set(stand.states().values()) == {"done"} and set(stand.backends().values()) == {"new"}


def test_somebody_else_moves_a_user_amid(stand: Stand) -> None:
    stand.site.order("verify", ALICE, hold=True)
    process = stand.start(ALICE)
    stand.site.wait_for("verify")
    assert ctl("-c", stand.proxy.config_path, "move", ALICE, "new").status == 0
    stand.site.let_go()
    ended = end_ctl(process, time.monotonic())
    assert ended.status == 2 and "somebody else moved the user meanwhile" in ended.err
    assert stand.backends()[ALICE] == "new" and stand.states() == {ALICE: "needs_attention"}
    assert "redirect" not in stand.site.hooks_of(ALICE)


# --- when no more users are begun ------------------------------------------------------------------------------------


def test_an_edit_by_hand_that_a_move_puts_in_force_is_named(stand: Stand) -> None:
    """On the screen and in the journal; nobody is there to be asked, so the run goes on."""
    stand.proxy.config["users"][BOB] = "new"
    stand.proxy.write_config()
    ended = stand.run(ALICE)
    what = f"somebody else had edited the file, and with this move is in force: 1 user moved from old to new: {BOB}"
    assert ended.status == 0 and f"{ALICE}: {what}" in ended.err, ended
    assert stand.backends() == {ALICE: "new", BOB: "new", "zoe@example.org": "new"}
    steps = stand.verb("--json", "status", ALICE).document["users"][ALICE]["steps"]
    assert [step["step"] for step in steps if what in step["output"]] == ["park"], steps


def test_every_seventh_fails(stand: Stand) -> None:
    users = many(28)
    stand.set_users(dict.fromkeys(users, "old"))
    for user in users[::7]:
        stand.site.order("sync", user, exit=75)
    ended = stand.run("--all-on", "old", "--jobs", "8")
    assert ended.status == 2 and "24 done, 4 failed of 28 users" in ended.err
    assert {user for user, backend in stand.backends().items() if backend == "old"} == set(users[::7])
    document = stand.verb("--json", "status").document
    assert document["states"] == {"done": 24, "failed": 4} and document["under_way"] is False


def test_stop_after(stand: Stand) -> None:
    users = many(20)
    stand.set_users(dict.fromkeys(users, "old"))
    stand.site.order("sync", exit=1)
    ended = stand.run("--all-on", "old", "--jobs", "1", "--stop-after", "3")
    assert ended.status == 3 and "no more users are begun: 3 failed" in ended.err
    assert len(stand.states()) == 3 and "17 not begun" in ended.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_once_the_users_in_hand_are_finished(stand: Stand, number: int) -> None:
    users = many(20)
    stand.set_users(dict.fromkeys(users, "old"))
    stand.site.order("verify", hold=True)
    process = stand.start("--all-on", "old", "--jobs", "2")
    stand.site.wait_for("verify", users[:1])
    stand.site.wait_for("verify", users[1:2])
    process.send_signal(number)
    heard(process, "interrupted: the users in hand are finished")
    stand.site.let_go()
    assert end_ctl(process, time.monotonic()).status == 3
    assert set(stand.states().values()) == {"done"} and len(stand.states()) == 2


def test_interrupted_twice_they_are_put_back(stand: Stand) -> None:
    users = many(20)
    stand.set_users(dict.fromkeys(users, "old"))
    stand.site.order("final_sync", users[0], sleep=90)
    stand.site.order("unblock", users[1], hold=True)
    process = stand.start("--all-on", "old", "--jobs", "2")
    stand.site.wait_for("final_sync", [users[0]])
    stand.site.wait_for("unblock", [users[1]])
    for said in ("interrupted: the users in hand are finished", "interrupted again: "):
        process.send_signal(signal.SIGINT)
        heard(process, said)
    stand.site.let_go()
    ended = end_ctl(process, time.monotonic(), timeout=SOON)
    assert ended.status == 3, ended
    assert f"{users[0]}: on_old" in ended.err and f"{users[1]}: done" in ended.err
    assert stand.backends()[users[0]] == "old" and stand.site.hooks_of(users[0])[-1] == "unblock"
    assert stand.states() == {users[0]: "on_old", users[1]: "done"}
    assert [call.user for call in stand.site.calls("ended") if call.hook == "final_sync"] == [users[1]], "it was killed"


def test_a_terminal_that_goes_away_stops_nothing(stand: Stand) -> None:
    stand.site.order("verify", sleep=0.5)
    process = stand.start("--jobs", "1", ALICE, BOB)
    stand.site.wait_for("verify")
    assert process.stderr is not None and process.stdout is not None
    process.stderr.close()
    process.stdout.close()
    process.send_signal(signal.SIGHUP)
    assert process.wait(30) == 0
    assert stand.states() == {ALICE: "done", BOB: "done"}


def test_outside_the_window_nobody_is_begun(stand: Stand) -> None:
    hour = (time.localtime().tm_hour + 2) % 24
    process = stand.start("--window", f"{hour:02}:00-{(hour + 1) % 24:02}:00", ALICE)
    heard(process, "outside the window")
    process.send_signal(signal.SIGINT)
    ended = end_ctl(process, time.monotonic())
    assert ended.status == 3 and "1 not begun" in ended.err
    assert stand.site.calls() == []
    now = time.localtime()
    inside = f"{(now.tm_hour - 1) % 24:02}:00-{(now.tm_hour + 2) % 24:02}:00"
    assert stand.run("--window", inside, ALICE).status == 0
    assert stand.run("--window", "25:00-1", ALICE).status == 64


def test_an_exit_status_that_counts_as_success(stand: Stand) -> None:
    stand.site.order("unblock", exit=111)
    plan = stand.site.plan(unblock={"command": stand.site.hook("unblock"), "ok": [0, 111]})
    assert stand.run(ALICE, plan=plan).status == 0 and stand.states()[ALICE] == "done"
    assert "offline NOW" not in stand.verb("report", ALICE).out, "and ends what it ends"
    stand.site.order("unblock", exit=3)
    assert "unblock: exit 3" in stand.run(BOB, plan=plan).err


def test_success_is_what_the_plan_says_it_is(stand: Stand) -> None:
    plan = stand.site.plan(verify={"command": stand.site.hook("verify"), "ok": [5]})
    ended = stand.run(ALICE, plan=plan)
    assert ended.status == 2 and "verify: exit 0" in ended.err and stand.states()[ALICE] == "failed"
    stand.site.order("verify", exit=5)
    assert stand.run(ALICE, plan=plan).status == 0


@pytest.mark.parametrize("retries, done", [(2, True), (1, False)])
def test_what_failed_is_tried_again_so_often(stand: Stand, retries: int, done: bool) -> None:
    stand.site.order("block", exit=1, times=2)
    plan = stand.site.plan(block={"command": stand.site.hook("block"), "retries": retries})
    assert (stand.run(ALICE, plan=plan).status == 0) is done
    assert stand.site.hooks_of(ALICE).count("block") == retries + 1


def test_others_are_told_how_it_ended(stand: Stand) -> None:
    told = Path(stand.site.directory, "told")
    ends: dict[str, Any] = {
        name: ["/bin/sh", "-c", f'echo "{name} $1 $(cat)" >>{told}; [ $1 != {ALICE} ]', "sh", "{user}"]
        for name in ("on_done", "on_failed", "on_attention")
    }
    stand.site.order("sync", BOB, exit=7)
    ended = stand.run(ALICE, BOB, plan=stand.site.plan(**ends))
    assert ended.status == 2 and stand.states() == {ALICE: "done", BOB: "failed"}
    assert f"{ALICE}: on_done: exit 1" in ended.err, "which changes nothing"
    said = {}
    for line in told.read_text().splitlines():
        name, user, text = line.split(" ", 2)
        said[name, user] = json.loads(text)
    assert said.keys() == {("on_done", ALICE), ("on_failed", BOB)}
    assert said["on_done", ALICE]["state"] == "done" and said["on_done", ALICE]["offline"] > 0
    assert said["on_failed", BOB]["error"] == "sync: exit 7" and said["on_failed", BOB]["address"] == BOB
    stand.site.no_orders()
    stand.site.order("redirect", BOB, exit=9)
    stand.run(BOB, plan=stand.site.plan(**ends))
    assert f"on_attention {BOB} " in told.read_text()
    assert stand.run(ALICE, plan=stand.site.plan(**ends)).status == 0 and told.read_text().count("on_done") == 1


def test_sync_only_copies_and_does_no_more_as_often_as_it_is_asked(stand: Stand) -> None:
    for _ in range(2):
        ended = stand.run("--sync-only", ALICE, BOB)
        assert ended.status == 0 and "0 done, 2 copied of 2 users" in ended.err, ended
        assert stand.states() == {ALICE: "on_old", BOB: "on_old"} and stand.backends()[ALICE] == "old"
    assert stand.site.hooks_of(ALICE) == ["sync", "sync"]
    ended = stand.run(ALICE)
    assert ended.status == 0 and stand.site.hooks_of(ALICE) == ["sync", "sync", *FORWARD]
    stand.site.order("sync", BOB, exit=1)
    failed = stand.run("--sync-only", ALICE, BOB)
    assert failed.status == 2 and "1 done before, 1 failed" in failed.err and stand.states()[BOB] == "failed"


def test_outside_the_cutover_window_all_are_copied_and_nobody_is_parked(stand: Stand) -> None:
    hour = (time.localtime().tm_hour + 2) % 24
    later = f"{hour:02}:00-{(hour + 1) % 24:02}:00"
    process = stand.start("--jobs", "1", "--cutover-window", later, ALICE, BOB)
    stand.site.wait_for("sync", [BOB])
    latest = time.monotonic() + 20
    while stand.states().get(BOB) != "on_old":
        assert time.monotonic() < latest
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    ended = end_ctl(process, time.monotonic())
    assert ended.status == 3 and "2 not begun of 2 users" in ended.err, ended
    assert stand.site.hooks_of(ALICE) == stand.site.hooks_of(BOB) == ["sync"]
    assert stand.backends()[ALICE] == "old" and stand.states() == {ALICE: "on_old", BOB: "on_old"}
    now = time.localtime()
    inside = f"{(now.tm_hour - 1) % 24:02}:00-{(now.tm_hour + 2) % 24:02}:00"
    assert stand.run("--cutover-window", inside, ALICE, BOB).status == 0
    assert stand.states() == {ALICE: "done", BOB: "done"}
    assert stand.run("--cutover-window", "noon", ALICE).status == 64


def test_who_was_parked_when_the_run_died_waits_for_no_window(stand: Stand) -> None:
    stand.site.order("final_sync", ALICE, sleep=60)
    process = stand.start(ALICE)
    stand.site.wait_for("final_sync")
    kill(process)
    stand.site.no_orders()
    hour = (time.localtime().tm_hour + 2) % 24
    later = f"{hour:02}:00-{(hour + 1) % 24:02}:00"
    assert stand.run("--cutover-window", later, ALICE).status == 0 and stand.states() == {ALICE: "done"}


def test_json_is_one_document(stand: Stand) -> None:
    ended = ctl("--json", *stand.arguments(stand.site.plan(), ALICE))
    document: dict[str, Any] = json.loads(ended.out)
    assert (document["done"], document["total"], document["status"], ended.status) == (1, 1, 0, 0)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)


def test_no_room_for_the_journal(stand: Stand, tmp_path: Path) -> None:
    """On a file system of 2 MB that is full: refused at the start; filled up meanwhile: all in hand are finished."""
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(mount)], check=False).returncode:
        pytest.skip("only root can mount")
    try:
        filler = mount / "filler"
        filler.write_bytes(b"x" * (3 * 2**20 - 8192))
        ended = stand.run(ALICE, plan=stand.site.plan(journal=str(mount / "j.db")))
        assert ended.status == 1 and "j.db: " in ended.error and "Traceback" not in ended.err
        assert stand.site.calls() == []
        filler.unlink()
        stand.site.order("block", ALICE, hold=True)
        process = stand.start("--jobs", "1", ALICE, BOB, journal=str(mount / "j.db"))
        stand.site.wait_for("block", [ALICE])
        fill(filler)
        stand.site.let_go()
        ended = end_ctl(process, time.monotonic())
        assert ended.status == 3 and "the disk is full" in ended.err, ended
        assert stand.site.hooks_of(ALICE) == FORWARD and stand.site.hooks_of(BOB) == []
        assert stand.backends()[ALICE] == "new"
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=False)
