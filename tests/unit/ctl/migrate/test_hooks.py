# SPDX-License-Identifier: GPL-3.0-or-later
"""One command: how it ends, what of its output is kept, and that nothing of it is left when it is ended."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmtp_proxy.ctl.migrate import keeper
from lmtp_proxy.ctl.migrate.hooks import LEFT_BEHIND, Begun, Cancel, Ran, run
from tests.support.patience import SOON

_number = itertools.count(1)


def sh(text: str, *arguments: str, timeout: float = 20.0, cancel: Cancel | None = None) -> Ran:
    return run(("/bin/sh", "-c", text, "sh", *arguments), {"MIGRATE_USER": "alice"}, timeout, cancel)


@pytest.mark.parametrize(
    "text, outcome, status",
    [("true", "ok", 0), ("exit 75", "exit 75", 75), ("kill -9 $$", "ended by signal 9", None)],
)
def test_how_it_ends(text: str, outcome: str, status: int | None) -> None:
    ran = sh(text)
    assert (ran.outcome, ran.status, ran.ok) == (outcome, status, outcome == "ok")


def test_what_it_is_given() -> None:
    ran = sh('printf "%s|" "$@" "$MIGRATE_USER"; cat', "a b", "$(id)", "'")
    assert ran.output == "a b|$(id)|'|alice|", "and nothing on its stdin"


def test_a_program_that_is_not_there() -> None:
    ran = run(("/no/such", "x"), {}, 5.0)
    assert ran.outcome == "cannot be run: No such file or directory: /no/such" and ran.status is None
    assert run(("/bin/echo", "a\0b"), {}, 5.0).outcome.startswith("cannot be run: embedded null byte")


def test_both_streams_and_odd_octets() -> None:
    ran = sh(r"echo out; echo err >&2; printf '\377\000'")
    assert ran.output == "out\nerr\n\\xff\\0"


def test_only_so_much_of_the_output_is_kept() -> None:
    ran = sh(f'{sys.executable} -c \'print("first" + "x" * 3_000_000 + "last")\'')
    assert ran.outcome == "ok" and len(ran.output) < 17000
    assert ran.output.startswith("first") and ran.output.endswith("last\n") and " octets ..." in ran.output


def test_it_is_not_waited_for_whom_it_leaves_behind() -> None:
    """A daemon that keeps the output open does not hold up the run."""
    ran = sh("sleep 40 & echo started")
    assert ran.outcome == "ok" and ran.output == "started\n" and ran.seconds < SOON


def test_a_timeout_ends_the_whole_group_even_if_it_does_not_want_to(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    ran = sh(f"trap '' TERM; (trap '' TERM; sleep 300; sleep 300) & echo $$ $! > {pids}; wait; sleep 300", timeout=0.3)
    assert ran.outcome == "timeout after 0.3 s" and ran.seconds < 2 * SOON
    assert not any(alive(int(pid)) for pid in pids.read_text().split())


def test_a_timeout_finds_who_has_left_the_group(tmp_path: Path) -> None:
    ran = sh(f"setsid sh -c 'echo $$ > {tmp_path}/pid; sleep 300' & sleep 300", timeout=0.5)
    assert ran.outcome == "timeout after 0.5 s"
    assert not alive(int((tmp_path / "pid").read_text()))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_it_is_killed_at_once_when_all_is_cancelled() -> None:
    cancel = Cancel()
    threading.Timer(0.3, cancel.set).start()
    ran = sh("sleep 300", cancel=cancel)
    assert ran.outcome == "killed" and ran.seconds < SOON and cancel.is_set()
    assert sh("sleep 300", cancel=cancel).seconds < SOON, "and so is the next one"
    cancel.close()


def test_output_without_end_is_no_way_around_the_timeout() -> None:
    ran = sh("yes", timeout=0.5)
    assert ran.outcome == "timeout after 0.5 s" and ran.seconds < SOON


def test_no_descriptor_is_left_open() -> None:
    sh("true")
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(5):
        sh("echo x")
        sh("sleep 9", timeout=0.05)
        run(("/no/such",), {}, 1.0)
    assert sorted(os.listdir("/proc/self/fd")) == before


# --- who has left, by whatever door ----------------------------------------------------------------------------------

_TITLE = "import ctypes, time; ctypes.CDLL(None).prctl(15, b'nobody', 0, 0, 0); time.sleep(TAG)"
_DAEMON = """import os, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
os.closerange(0, 4096)
time.sleep(TAG)"""
DOORS = {
    "another environment": "env -i sleep TAG &",
    "a new session": "setsid sleep TAG &",
    "a second fork": "(setsid sh -c 'setsid sleep TAG &' &)",
    "no descriptor": "setsid sh -c 'exec 0<&- 1<&- 2<&- 3<&- 4<&- 5<&- 6<&- 7<&- 8<&- 9<&-; exec sleep TAG' &",
    "another title": f'env -i {sys.executable} -IS -c "{_TITLE}" &',
    "all of them": f'env -i {sys.executable} -IS -c "{_DAEMON}" &',
}


@pytest.fixture
def tag() -> Iterator[str]:
    """Stands on the command line of what a command starts; nothing of it may be left."""
    tag = f"300.{os.getpid()}{next(_number)}"
    yield tag
    latest = time.monotonic() + SOON
    while found := [each.pid for each in keeper.processes() if each.alive and tag.encode() in cmdline(each.pid)]:
        assert time.monotonic() < latest, found
        time.sleep(0.02)


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("door", DOORS)
def test_a_timeout_finds_who_has_left_by(door: str, tag: str) -> None:
    ran = sh(DOORS[door].replace("TAG", tag) + "\nsleep 90", timeout=0.7)
    assert ran.outcome == "timeout after 0.7 s" and ran.left is None and ran.seconds < 2 * SOON


@pytest.mark.parametrize("door", DOORS)
def test_a_sync_that_goes_on_in_whatever_has_left_it_has_failed(door: str, tag: str) -> None:
    ran = run(("/bin/sh", "-c", DOORS[door].replace("TAG", tag)), {}, 20.0, whole=True)
    assert ran.outcome == LEFT_BEHIND and ran.left is None


def test_who_it_is_is_known_before_it_begins(tmp_path: Path) -> None:
    """And if that cannot be written down, it does not begin."""
    seen: list[Begun] = []

    def begun(each: Begun) -> None:
        assert not (tmp_path / "began").exists()
        own = keeper.process(each.pid)
        assert own is not None and own.start == each.start
        seen.append(each)

    program = ("/bin/sh", "-c", f"echo $$ >{tmp_path}/began; cut -d' ' -f5,6 /proc/self/stat")
    ran = run(program, {}, 20.0, begun=begun)
    assert ran.ok and (tmp_path / "began").read_text() == f"{seen[0].pid}\n"
    assert ran.output == f"{seen[0].pid} {seen[0].pid}\n", "its group and its session bear its number"

    def full(_begun: Begun) -> None:
        raise OSError("the disk is full")

    (tmp_path / "began").unlink()
    with pytest.raises(OSError, match="the disk is full"):
        run(program, {}, 20.0, begun=full)
    assert not (tmp_path / "began").exists()


def test_a_keeper_that_is_killed_is_no_success(tag: str) -> None:
    pids: list[int] = []

    def begun(each: Begun) -> None:
        pids.append(each.pid)
        threading.Timer(0.5, os.kill, (each.keeper, signal.SIGKILL)).start()

    ran = run(("/bin/sh", "-c", f"sleep {tag}"), {}, 20.0, begun=begun)
    assert (ran.outcome, ran.left) == ("its keeper was killed", "its keeper was killed") and ran.seconds < 15
    os.killpg(pids[0], signal.SIGKILL)


@pytest.fixture
def nothing_ignored() -> Iterator[None]:
    """Who runs the tests may ignore some for all that they start: nohup does, and a shell's background."""
    ignored = [number for number in (signal.SIGHUP, signal.SIGQUIT) if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.mark.usefixtures("nothing_ignored")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_for_the_command_as_they_would_be_without_a_keeper(number: signal.Signals) -> None:
    def begun(each: Begun) -> None:
        threading.Timer(0.4, os.kill, (each.keeper, number)).start()  # whoever stops a unit, say
        threading.Timer(0.8, os.kill, (each.pid, number)).start()

    ran = run(("/bin/sleep", "20"), {}, 20.0, begun=begun)
    assert ran.outcome == f"ended by signal {int(number)}" and ran.seconds > 0.7


@pytest.mark.usefixtures("nothing_ignored")
def test_no_signal_is_ignored_or_blocked_in_a_command() -> None:
    held = sh("grep -E 'Sig(Blk|Ign)' /proc/self/status").output.split()
    # glibc's posix_spawn, by which make starts the tests, ignores its own 32 and 33 in the child; nobody can undo it.
    masks = [int(mask, 16) & ~(0b11 << 31) for mask in held[1::2]]
    assert (held[::2], masks) == (["SigBlk:", "SigIgn:"], [0, 0])
