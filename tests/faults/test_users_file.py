"""Users in files beside the configuration: a tool owns its files, move another, and all of it is one configuration."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Move
from tests.faults.test_ctl import run
from tests.support.backend import FakeBackend
from tests.support.ctl import Run, controlled
from tests.support.proxy import BOTH_MODES, PROGRAM

ALICE, BOB, CAROL = "alice@example.org", "bob@example.org", "carol@example.org"


@pytest.fixture
def move() -> Iterator[Move]:
    settings = {"users_file": ["tools.d", "moved.users"], "fallback_backend": "old"}
    with FakeBackend() as old, FakeBackend() as new:
        proxy = controlled({"old": old, "new": new}, {CAROL: "old"}, **settings)
        tools = Path(proxy.directory) / "tools.d"
        tools.mkdir()
        (tools / "10-ldap.yml").write_text(f"---\n# by the directory service\n{ALICE}: old\n")
        (tools / "20.users").write_text(f"{BOB}: new\n")
        (Path(proxy.directory) / "moved.users").write_text("")
        with proxy:
            yield Move(old, new, proxy)


def file(move: Move, name: str) -> Path:
    return Path(move.proxy.directory) / name


def said(ended: Run) -> str:
    return " ".join(f"{ended.out}{ended.err}".split())


def check(move: Move) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), "--check", "-c", move.proxy.config_path]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@BOTH_MODES
def test_move_writes_the_file_that_has_the_user_and_new_ones_go_to_its_own(move: Move) -> None:
    tool, main = file(move, "tools.d/10-ldap.yml"), Path(move.proxy.config_path)
    tool.chmod(0o640)
    before = main.read_bytes()
    ended = run(move, "--json", "move", ALICE, "dave@example.org", "new").document
    assert ended["status"] == 0 and ended["files"] == [str(file(move, "moved.users")), str(tool)]
    assert ended["previous"] == {ALICE: "old", "dave@example.org": None}
    assert (
        tool.read_text() == f"---\n# by the directory service\n{ALICE}: new\n" and tool.stat().st_mode & 0o777 == 0o640
    )
    assert file(move, "moved.users").read_text() == "dave@example.org: new\n"
    assert main.read_bytes() == before
    assert [move.delivered(user) for user in (ALICE, "dave@example.org", BOB, CAROL)] == ["new", "new", "new", "old"]
    assert run(move, "move", CAROL, "new").status == 0
    assert main.read_bytes() != before and move.delivered(CAROL) == "new"
    assert move.proxy.stop() == 0
    move.proxy.start()
    assert move.delivered(ALICE) == "new"


@BOTH_MODES
def test_what_is_shown_names_the_file(move: Move) -> None:
    tool = file(move, "tools.d/10-ldap.yml")
    assert f"{ALICE} <- {tool}:3" in said(run(move, "lookup", ALICE))
    assert f"{CAROL} <- {move.proxy.config_path}:" in said(run(move, "lookup", CAROL))
    status = run(move, "--json", "status").document
    assert status["sha256_on_disk"] == status["config"]["sha256"] and status["users"] == 3
    assert "differs" not in said(run(move, "status"))
    file(move, "tools.d/30.yml").touch()
    assert "with its files of users on disk" in said(run(move, "status")), "a file more"
    file(move, "tools.d/30.yml").unlink()
    assert "differs" not in said(run(move, "status"))
    tool.write_text(tool.read_text().replace("old", "new"))
    assert "differs" in said(run(move, "status"))
    assert "1 user moved from old to new: alice@example.org" in said(run(move, "check"))
    assert "1 moved" in move.proxy.signal_reload()
    assert "differs" not in said(run(move, "status")) and move.delivered(ALICE) == "new"


@BOTH_MODES
@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("tools.d/10-ldap.yml", f"{ALICE}: ol", f'10-ldap.yml:1: {ALICE}: there is no backend "ol"'),
        ("tools.d/30.yml", f"\n{BOB}: new\n", f"30.yml:2: {BOB}: stands in /"),
        ("moved.users", None, "moved.users: cannot be read: No such file or directory"),
        ("tools.d/30.yml", '"', "30.yml:1: YAML error"),
    ],
)
def test_a_file_that_is_wrong_changes_nothing_and_is_named(move: Move, name: str, text: str | None, why: str) -> None:
    path = file(move, name)
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    assert "stays active" in move.proxy.signal_reload()
    assert why in move.proxy.log()
    for ended in (run(move, "reload"), run(move, "move", "--no-preflight", CAROL, "new"), run(move, "check")):
        assert ended.status == 1 and why in said(ended)
    assert (path.read_text() if path.exists() else None) == text
    assert move.delivered(ALICE) == move.delivered(CAROL) == "old"


def test_a_half_written_file_is_refused_by_its_name(move: Move) -> None:
    """Cut off at the end of a line it is a good file, with fewer users."""
    path = file(move, "tools.d/20.users")
    lines = "".join(f"user{number}@example.org: new\n" for number in range(40))
    path.write_text(lines)
    assert "40 added, 1 removed" in move.proxy.signal_reload()
    path.write_text(lines[:60])
    assert "stays active" in move.proxy.signal_reload()
    path.write_text(lines[: lines.index("user9@")])
    assert "stays active" in move.proxy.signal_reload()
    assert f"{path}: users: would remove 31 of 42 users" in move.proxy.log()
    assert move.delivered("user39@example.org") == "new"


def test_check_reads_all(move: Move) -> None:
    checked = check(move)
    assert checked.returncode == 0 and ": OK: 3 users, 2 backends" in checked.stdout
    file(move, "moved.users").write_text('# pasted\n"alice example.org": new\n')
    checked = check(move)
    assert checked.returncode == 0
    assert f'note: {file(move, "moved.users")}:2: users: "alice example.org" is no address' in checked.stdout
    file(move, "moved.users").write_text("erin@example.org: nwe\n")
    checked = check(move)
    assert checked.returncode == 1
    assert checked.stderr.startswith(f"{file(move, 'moved.users')}:1: erin@example.org: there is no backend")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_user_who_serves_must_be_able_to_read_them(move: Move) -> None:
    main = Path(move.proxy.config_path)
    main.write_text(
        main.read_text().replace("config:\n", "config:\n  run_as: nobody\n", 1).replace("uncertain_log", "#")
    )
    main.chmod(0o644)
    for name, mode in (("tools.d/20.users", 0o600), ("tools.d", 0o711)):
        before = file(move, name).stat().st_mode
        file(move, name).chmod(mode)
        checked = check(move)
        assert checked.returncode == 1
        assert f"nobody may not read {file(move, name)}, so no reload would work" in checked.stderr
        file(move, name).chmod(before)
    checked = check(move)
    assert checked.returncode == 0, checked


def test_large_files_are_loaded_aside(move: Move) -> None:
    """No one of them is large; together they are."""
    lines = "".join(f"user{number:05}@example.org: new\n" for number in range(20_000))
    file(move, "tools.d/30.users").write_text(lines)
    file(move, "tools.d/40.users").write_text(lines.replace("user", "more"))
    line = move.proxy.signal_reload()
    assert "40003 users (40000 added, 0 removed, 0 moved)" in line
    assert f"more19999@example.org <- {file(move, 'tools.d/40.users')}:20000" in said(
        run(move, "lookup", "more19999@example.org")
    )
    ended = run(move, "move", "more00007@example.org", "old")
    assert ended.status == 0 and re.search(r"new -> old, generation 3", said(ended))
    assert move.delivered("more00007@example.org") == "old"
