"""move puts in force what the files say: what others have edited meanwhile is named first, and asked for."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.faults.conftest import Move
from tests.faults.test_ctl import run
from tests.faults.test_move import ALICE, BOB, USERS, flat, text_of
from tests.support.backend import FakeBackend
from tests.support.control import ControlConnection
from tests.support.ctl import controlled, end_ctl, start_ctl
from tests.support.proxy import BOTH_MODES

CAROL = "carol@example.org"


@pytest.fixture
def move() -> Iterator[Move]:
    with FakeBackend() as old, FakeBackend() as new, controlled({"old": old, "new": new}, USERS) as proxy:
        yield Move(old, new, proxy)


def edit(move: Move, was: str, now: str) -> str:
    text = text_of(move)
    assert was in text
    move.proxy.write_config(text.replace(was, now))
    return text_of(move)


@BOTH_MODES
def test_an_edit_that_moves_others_is_named_and_nothing_changes(move: Move) -> None:
    text = edit(move, f'"{BOB}": new', f'"{BOB}": reject')
    for users in ((ALICE,), (CAROL, "dave@example.org")):
        ended = run(move, "move", "--no-preflight", *users, "new")
        assert ended.status == 1
        assert f"1 user moved from new to reject: {BOB}" in flat(ended.err)
        assert "edited by somebody else" in ended.error and "nothing was changed; reload first, or" in ended.error
        assert text_of(move) == text
    assert move.delivered(ALICE) == "old" and move.delivered(BOB) == "new"
    document = run(move, "--json", "move", ALICE, "new").document
    assert document["also"] == [f"1 user moved from new to reject: {BOB}"] and document["status"] == 1


@BOTH_MODES
def test_also_puts_it_in_force_and_says_so(move: Move) -> None:
    edit(move, f'"{BOB}": new', f'"{BOB}": old')
    ended = run(move, "move", "--also", ALICE, "new")
    assert ended.status == 0
    named = f"warning: also in force now, by an edit of somebody else: 1 user moved from new to old: {BOB}"
    assert named in flat(ended.err)
    assert move.delivered(BOB) == "old" and move.delivered(ALICE) == "new"
    assert run(move, "move", ALICE, "old").err == "", "and it is the configuration in force now"


@BOTH_MODES
def test_an_edit_of_the_very_users_is_nobody_elses(move: Move) -> None:
    """Some edit the file and have move do the rest."""
    edit(move, f'"{ALICE}": old', f'"{ALICE}": new')
    ended = run(move, "move", ALICE, "new")
    assert (ended.status, ended.err) == (0, "") and "was on new already" in ended.out
    assert move.delivered(ALICE) == "new"
    edit(move, f'"{CAROL}": old', f'"{CAROL}": new')
    ended = run(move, "move", ALICE, CAROL, "old")
    assert (ended.status, ended.err) == (0, "")
    edit(move, f'"{CAROL}": old', f'"{CAROL}": new')
    ended = run(move, "move", ALICE, "old")
    assert ended.status == 1 and CAROL in ended.err, "also where nothing is to be edited"
    assert move.delivered(CAROL) == "old"


@BOTH_MODES
def test_an_edit_that_moves_nobody_is_named_and_goes_on(move: Move) -> None:
    edit(move, "config:\n", "# a comment\nconfig:\n  hold_timeout: 12\n")
    ended = run(move, "move", ALICE, "new")
    assert ended.status == 0
    assert "also in force now, by an edit of somebody else: changed: config.hold_timeout" in flat(ended.err)
    edit(move, "# a comment\n", "# another comment\n")
    assert run(move, "move", ALICE, "old").err == "", "a comment is not worth a word"


def test_many_are_counted_and_ours_are_not_among_them(move: Move) -> None:
    lines = "".join(f"  user{number}@example.org: old\n" for number in range(60))
    edit(move, "users:\n", f"users:\n{lines}")
    users = [f"user{number}@example.org" for number in range(0, 60, 2)]
    ended = run(move, "move", "--no-preflight", *users, "new")
    assert ended.status == 1 and "30 users added on old:" in flat(ended.err)
    assert "user1@example.org" in ended.err and "user2@example.org" not in ended.err


@BOTH_MODES
def test_an_edit_that_is_made_while_the_first_is_named(move: Move) -> None:
    """Each state of the file is looked at, not each second."""
    edit(move, f'"{BOB}": new', f'"{BOB}": old')
    socket = f"{move.proxy.directory}/ctl"
    before = move.proxy.log().count("control: check")
    began = time.monotonic()
    process = start_ctl("--socket", socket, "move", "--also", "--no-preflight", ALICE, "new")
    while move.proxy.log().count("control: check") == before and process.poll() is None:
        time.sleep(0.001)
    edit(move, f'"{CAROL}": old', f'"{CAROL}": new')
    ended = end_ctl(process, began)
    assert ended.status == 0, ended
    assert BOB in ended.err and (CAROL in ended.err or move.delivered(CAROL) == "old")


@pytest.mark.parametrize(
    "body", [{}, {"before": "a"}, {"before": "a", "after": 1}, {"before": "a", "after": "b", "x": 1}]
)
def test_what_the_question_must_be(move: Move, body: dict[str, object]) -> None:
    with closing(ControlConnection(f"{move.proxy.directory}/ctl")) as control:
        assert control.ask("POST", "/edit", body).code == 400
        assert control.ask("POST", "/edit", {"before": "a", "after": "b"}).document == {"known": False}


def test_where_nobody_is_to_be_left_out(move: Move) -> None:
    edit(move, f'"{BOB}": new', f'"{BOB}": old')
    with closing(ControlConnection(f"{move.proxy.directory}/ctl")) as control:
        for users, moved in (([], 1), ([ALICE], 1), ([BOB.upper()], 0)):
            found = control.ask("POST", "/check", {"path": move.proxy.config_path, "except": users}).document
            assert len(found["moved"]) == moved and len(found["sha256"]) == 64


@BOTH_MODES
def test_the_log_names_who_moved_and_who_asked(move: Move) -> None:
    since = move.proxy.mark()
    assert run(move, "move", "--no-preflight", ALICE, "dave@example.org", "reject").status == 0
    move.proxy.wait_log(rf"users: {ALICE}: old -> reject$", since=since)
    move.proxy.wait_log(r"users: dave@example.org: added on reject$", since=since)
    log = move.proxy.log()[since:]
    assert f"control: reload by uid {os.getuid()}" in log
    assert log.count("users: ") == 2 and log.count(": old -> reject") == 1, "once, whatever the number of processes"
    since = move.proxy.mark()
    edit(move, "users:\n", "users:\n" + "".join(f"  user{number}: old\n" for number in range(30)))
    move.proxy.signal_reload()
    move.proxy.wait_log("users: and 10 more$", since=since)
    assert move.proxy.log()[since:].count("added on old") == 20
