"""A file that was cut off at the end of a line is a good file: only what is in force tells how many users it lacks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Move
from tests.support.backend import FakeBackend
from tests.support.ctl import Run, controlled, ctl
from tests.support.proxy import BOTH_MODES

NUMBER = 200
USERS = {f"user{number:03}@example.org": "new" for number in range(NUMBER)}
LAST = f"user{NUMBER - 1:03}@example.org"


@pytest.fixture
def move() -> Iterator[Move]:
    with (
        FakeBackend() as old,
        FakeBackend() as new,
        controlled({"old": old, "new": new}, USERS, fallback_backend="old") as proxy,
    ):
        yield Move(old, new, proxy)


def run(move: Move, *arguments: str) -> Run:
    return ctl("--socket", f"{move.proxy.directory}/ctl", *arguments)


def cut(move: Move, lines: int, text: str | None = None) -> str:
    """The file without its last lines, in its place."""
    text = Path(move.proxy.config_path).read_text() if text is None else text
    text = "".join(text.splitlines(keepends=True)[:-lines])
    move.proxy.write_config(text)
    return text


@BOTH_MODES
def test_a_reload_of_a_cut_file_is_refused_whoever_asks_and_force_is_the_way(move: Move) -> None:
    whole = Path(move.proxy.config_path).read_text()
    cut(move, 21)
    line = move.proxy.signal_reload()
    assert "reload refused: 1 error" in line and "stays active" in line
    why = "would remove 21 of 200 users (user179@example.org, user180@example.org, user181@example.org, ...), more than"
    assert why in move.proxy.log() and "config.max_removed allows (10%, which is 20)" in move.proxy.log()
    refused = run(move, "reload")
    assert refused.status == 1 and why in " ".join(refused.err.split()) and "--force" in refused.err
    assert move.delivered(LAST) == "new", "not to the fallback's store"
    checked = run(move, "--json", "check").document
    assert checked["errors"] == [] and why in checked["notes"][0]

    forced = run(move, "reload", "--force")
    assert forced.status == 0 and "21 removed" in " ".join(forced.out.split()), forced
    assert move.delivered(LAST) == "old"
    cut(move, 180, whole)
    assert run(move, "reload").status == 1, "force is for one reload"


@BOTH_MODES
def test_a_tenth_may_go_and_all_may_move(move: Move) -> None:
    text = Path(move.proxy.config_path).read_text().replace(": new\n", ": old\n")
    cut(move, 20, text)
    assert "20 removed, 180 moved" in move.proxy.signal_reload()


def test_what_counts_is_the_value_in_force(move: Move) -> None:
    """A file that says how much of it may be missing is believed from the next reload on."""
    text = Path(move.proxy.config_path).read_text().replace("config:\n", "config:\n  max_removed: 100%\n", 1)
    cut(move, 50, text)
    assert "refused" in move.proxy.signal_reload()
    move.proxy.write_config(text)
    assert "active" in move.proxy.signal_reload()
    cut(move, 190, text)
    assert "190 removed" in move.proxy.signal_reload()


@BOTH_MODES
def test_a_move_that_meets_it_ends_with_1_and_is_undone(move: Move) -> None:
    text = cut(move, 60)
    moved = run(move, "move", "--no-preflight", "--also", "user000@example.org", "old")
    assert moved.status == 1, moved
    said = " ".join(moved.err.split())
    assert "would remove 60 of 200 users" in said and "was put back as it was, so nothing was changed" in said
    assert Path(move.proxy.config_path).read_text() == text
    assert move.delivered("user000@example.org") == move.delivered(LAST) == "new"


def test_a_start_has_nothing_to_compare_with(move: Move) -> None:
    cut(move, 60)
    assert move.proxy.stop() == 0
    move.proxy.start()
    assert move.delivered(LAST) == "old" and move.delivered("user000@example.org") == "new"
