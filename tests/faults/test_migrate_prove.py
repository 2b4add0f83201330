# SPDX-License-Identifier: GPL-3.0-or-later
"""`prove` of a plan: nobody is begun before the new store is proven, once in a run. etc/migrate/kept-apart is one."""

from __future__ import annotations

import signal
import time

import pytest

from tests.faults.test_migrate import ALICE, BOB, FORWARD, Stand, heard, kill, many
from tests.faults.test_migrate import stand as stand
from tests.support.ctl import end_ctl, start_ctl

SAID = "kept-apart: new does not keep users apart"


def plan_of(stand: Stand) -> str:
    return stand.site.plan(prove=stand.site.hook("prove", "{to}", "test1", "test2"))


def proofs(stand: Stand) -> list[list[str]]:
    return [call.arguments for call in stand.site.calls() if call.hook == "prove"]


@pytest.mark.parametrize("options", [(), ("--sync-only",), ("--cutover-window", "00:00-23:59")], ids=" ".join)
def test_a_store_that_is_not_proven_gets_nobody(stand: Stand, options: tuple[str, ...]) -> None:
    stand.site.order("prove", exit=1, output=SAID)
    before = stand.backends()
    ended = stand.run(*options, ALICE, BOB, plan=plan_of(stand))
    assert ended.status == 1, ended
    assert "0 done, 2 not begun of 2 users in " in ended.err
    assert ended.err.splitlines()[-1].endswith(f"(prove: exit 1: {SAID})") and ended.err.count(SAID) == 1
    assert [call.hook for call in stand.site.calls()] == ["prove"] and stand.states() == {}
    assert stand.backends() == before and stand.old.transactions() == stand.new.transactions() == []
    assert SAID in stand.verb("status").out.replace("\n    ", " ")


def test_it_is_proven_once_and_before_everything(stand: Stand) -> None:
    users = many(6)
    stand.set_users(dict.fromkeys(users, "old"))
    stand.site.order("prove", sleep=0.5)
    ended = stand.run("--all-on", "old", plan=plan_of(stand))
    assert ended.status == 0, ended
    assert proofs(stand) == [["new", "test1", "test2"]] and stand.site.hooks_of(users[0]) == FORWARD
    [end] = [call.at for call in stand.site.calls("ended") if call.hook == "prove"]
    assert all(call.at > end for call in stand.site.calls() if call.hook != "prove")
    [call] = [call for call in stand.site.calls() if call.hook == "prove"]
    assert call.document["environment"] == {
        "MIGRATE_USER": "", "MIGRATE_ADDRESS": "", "MIGRATE_FROM": "old", "MIGRATE_TO": "new", "MIGRATE_NOW": "",
    }  # fmt: skip
    # nobody is left to begin
    again = stand.run(*users, plan=plan_of(stand))
    assert again.status == 0 and len(proofs(stand)) == 1


def test_who_was_in_hand_does_not_wait_for_a_proof(stand: Stand) -> None:
    """They are offline, and were begun after one."""
    stand.site.order("final_sync", ALICE, sleep=60)
    process = start_ctl(*stand.arguments(plan_of(stand), ALICE))
    stand.site.wait_for("final_sync")
    kill(process)
    stand.site.no_orders()
    stand.site.order("prove", exit=1, output=SAID)
    ended = stand.run(BOB, plan=plan_of(stand))
    assert ended.status == 3 and "1 done, 1 not begun of 2 users" in ended.err, ended
    assert stand.states() == {ALICE: "done"} and stand.site.hooks_of(BOB) == []


def test_a_proof_that_hangs_or_is_not_there(stand: Stand) -> None:
    stand.site.order("prove", sleep=60)
    plan = stand.site.plan(prove={"command": stand.site.hook("prove", "{to}"), "timeout": 0.5})
    ended = stand.run(ALICE, plan=plan)
    assert ended.status == 1 and "(prove: timeout after 0.5 s)" in ended.err
    ended = stand.run(ALICE, plan=stand.site.plan(prove=["/no/such/program", "{to}"]))
    assert ended.status == 1 and "prove: there is no program /no/such/program" in ended.error
    assert stand.states() == {}


def test_a_proof_that_is_tried_again(stand: Stand) -> None:
    stand.site.order("prove", exit=2, times=1)
    plan = stand.site.plan(prove={"command": stand.site.hook("prove", "{to}"), "retries": 1})
    assert stand.run(ALICE, plan=plan).status == 0 and len(proofs(stand)) == 2


def test_a_run_that_is_interrupted_before_it_is_proven(stand: Stand) -> None:
    stand.site.order("prove", sleep=60)
    process = start_ctl(*stand.arguments(plan_of(stand), ALICE))
    stand.site.wait_for("prove")
    for said in ("interrupted: ", "interrupted again: "):
        process.send_signal(signal.SIGINT)
        heard(process, said)
    ended = end_ctl(process, time.monotonic())
    assert ended.status in (1, 3) and "1 not begun of 1 user" in ended.err and stand.states() == {}
    assert [call for call in stand.site.calls("ended") if call.hook == "prove"] == [], "it was ended"


def test_a_dry_run_shows_it_and_proves_nothing(stand: Stand) -> None:
    shown = stand.run("--dry-run", ALICE, plan=plan_of(stand))
    text = " ".join(shown.out.split())
    assert shown.status == 0 and "prove new test1 test2 sync: " in text and stand.site.calls() == []
