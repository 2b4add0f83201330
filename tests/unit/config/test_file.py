# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration file is the old or the new one, whole, whoever writes beside us and whenever we are killed."""

import errno
import fcntl
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lmtp_proxy.config import file as config_file
from lmtp_proxy.config.file import Change, change_users
from lmtp_proxy.config.read import ConfigError, load_config
from tests import ROOT

TOP = "config:\n  socket: /run/mail\nbackends:\n  old: {socket: /run/old}\n  new: {socket: /run/new}\n"
USERS = "users:  # who is where\n  alice: old  # since May\n  bob: new\n"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def silent(what: str) -> None:
    raise AssertionError(f"waited for {what}")


def change(path: Path, *users: str, to: str = "new", wait: float = 5.0) -> Change:
    return change_users(str(path), users, to, deadline=time.monotonic() + wait, waiting=lambda what: None)


def refusal(path: Path, *users: str, to: str = "new", wait: float = 5.0) -> str:
    """The one line of a refusal, after which all is as before."""
    before = path.read_bytes() if path.is_file() else None
    there = set(os.listdir(path.parent))
    with pytest.raises(ConfigError) as caught:
        change(path, *users, to=to, wait=wait)
    assert set(os.listdir(path.parent)) == there
    assert (path.read_bytes() if path.is_file() else None) == before
    (line,) = caught.value.errors
    assert line.startswith(str(path)) and line.isprintable()
    return line.removeprefix(str(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "proxy.yml"
    path.write_text(TOP + USERS)
    return path


@pytest.fixture
def before_rename(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], object]]]:
    """What is put into this list runs, once, when the new file is complete and before it is looked at the old one."""
    waiting: list[Callable[[], object]] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        real(handle)
        if waiting:
            waiting.pop(0)()

    monkeypatch.setattr(os, "fsync", fsync)
    yield waiting
    assert waiting == []


def test_one_user_is_changed_and_access_stays(path: Path) -> None:
    path.chmod(0o2640)
    if os.geteuid() == 0:
        os.chown(path, 1234, 2345)
        path.chmod(0o2640)
    old = path.stat()
    result = change_users(str(path), ["ALICE", "carol"], "new", deadline=time.monotonic(), waiting=silent)
    assert path.read_text() == TOP + "users:  # who is where\n  alice: new  # since May\n  bob: new\n  carol: new\n"
    assert (result.previous, result.changed, result.path) == ({"ALICE": "old", "carol": None}, True, str(path))
    new = path.stat()
    assert (new.st_mode, new.st_uid, new.st_gid) == (old.st_mode, old.st_uid, old.st_gid)
    assert new.st_ino != old.st_ino
    assert os.listdir(path.parent) == [path.name]


def test_every_octet_of_a_strange_file_stays(path: Path) -> None:
    octets = ("\ufeff# ä\U0001f600\n" + TOP + USERS).replace("\n", "\r\n").encode().rstrip()
    path.write_bytes(octets)
    change(path, "alice")
    assert path.read_bytes() == octets.replace(b"alice: old", b"alice: new")


def test_nothing_is_written_where_nothing_would_change(path: Path) -> None:
    old = path.stat()
    result = change(path, "bob", "Bob")
    assert (result.previous, result.changed) == ({"bob": "new", "Bob": "new"}, False)
    assert result.undo() is True
    assert path.stat() == old
    assert change(path).changed is False


def test_a_link_stays_and_its_target_is_changed(tmp_path: Path, path: Path) -> None:
    """A relative password_file counts from the link, as it does for the proxy."""
    (tmp_path / "etc").mkdir()
    link = tmp_path / "etc" / "link.yml"
    link.symlink_to("../proxy.yml")
    (tmp_path / "etc" / "secret").write_text("x\n")
    path.write_text(path.read_text().replace("/run/old", "/run/old, user: u, password_file: secret"))
    assert change(link, "alice").changed
    assert load_config(str(link)).users["alice"] == "new"
    assert link.is_symlink() and not path.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["etc", "proxy.yml"]
    assert sorted(os.listdir(tmp_path / "etc")) == ["link.yml", "secret"]


def test_undo(path: Path) -> None:
    old = path.read_bytes()
    result = change(path, "alice")
    assert result.undo() is True
    assert path.read_bytes() == old
    assert result.undo() is False  # it is not the file that we wrote any more
    for write in (
        lambda: change(path, "dora"),
        lambda: path.write_text(path.read_text() + "# by hand\n"),
        lambda: by_rename(path, path.read_text()),
    ):
        result = change(path, "alice")
        write()
        now = path.read_bytes()
        assert result.undo() is False
        assert path.read_bytes() == now
        change(path, "alice", to="old")


def test_undo_of_a_file_that_is_edited_at_the_same_time(path: Path, before_rename: list[Callable[[], object]]) -> None:
    result = change(path, "alice")
    before_rename.append(lambda: path.write_text(TOP + "users: {zoe: old}\n"))
    assert result.undo() is False
    assert path.read_text() == TOP + "users: {zoe: old}\n"
    assert os.listdir(path.parent) == [path.name]


# --- edits by others at the same time --------------------------------------------------------------------------------


def in_place(path: Path, text: str) -> None:
    path.write_text(text)


def by_rename(path: Path, text: str) -> None:
    (path.parent / "editor~").write_text(text)
    (path.parent / "editor~").rename(path)


def unnoticed(path: Path, text: str) -> None:
    """In place, with the same size and time as before: only the content tells."""
    old = path.stat()
    assert len(text.encode()) == old.st_size
    path.write_text(text)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))


@pytest.mark.parametrize("write", [in_place, by_rename, unnoticed])
def test_an_edit_by_hand_is_not_lost(
    path: Path, before_rename: list[Callable[[], object]], write: Callable[[Path, str], None]
) -> None:
    edit = (TOP + USERS).replace("bob: new", "bob: old").replace("May", "Mai")
    before_rename.append(lambda: write(path, edit))
    assert change(path, "alice").previous == {"alice": "old"}
    assert path.read_text() == edit.replace("alice: old", "alice: new")
    assert os.listdir(path.parent) == [path.name]


def test_a_new_file_with_the_old_content_is_noticed_too(path: Path, before_rename: list[Callable[[], object]]) -> None:
    """Its mode is what the editor wanted to change."""

    def replace() -> None:
        by_rename(path, TOP + USERS)
        path.chmod(0o600)

    path.chmod(0o644)
    before_rename.append(replace)
    assert change(path, "alice").changed
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_that_is_turned_elsewhere_is_followed(
    tmp_path: Path, path: Path, before_rename: list[Callable[[], object]]
) -> None:
    link, other, turned = tmp_path / "link", tmp_path / "other.yml", tmp_path / "turned"
    link.symlink_to(path.name)
    other.write_text(TOP + "users: {alice: hold}\n")
    turned.symlink_to(other.name)
    before_rename.append(lambda: turned.rename(link))
    assert change(link, "alice").previous == {"alice": "hold"}
    assert path.read_text() == TOP + USERS
    assert other.read_text() == TOP + "users: {alice: new}\n"


def test_it_gives_up_when_the_file_never_comes_to_rest(path: Path, before_rename: list[Callable[[], object]]) -> None:
    def edit() -> None:
        path.write_text(path.read_text() + "# again\n")

    before_rename += [edit] * 4
    with pytest.raises(ConfigError, match=r"somebody else wrote it each time .* try again$"):
        change(path, "alice")
    assert path.read_text() == TOP + USERS + "# again\n" * 4
    assert os.listdir(path.parent) == [path.name]


def test_a_file_that_an_editor_is_just_writing_is_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was empty for a moment, between truncation and writing."""
    real = load_config
    text = path.read_text()

    def load(name: str) -> object:
        monkeypatch.setattr(config_file, "load_config", real)
        Path(name).write_text("")
        try:
            return real(name)
        finally:
            path.write_text(text + "  carol: old\n")

    monkeypatch.setattr(config_file, "load_config", load)
    assert change(path, "carol").previous == {"carol": "old"}


def test_the_file_vanishes(path: Path, before_rename: list[Callable[[], object]]) -> None:
    before_rename.append(path.unlink)
    with pytest.raises(ConfigError, match=r"cannot be read: No such file or directory$"):
        change(path, "alice")
    assert os.listdir(path.parent) == []


def test_two_with_the_lock_of_two_files(path: Path, before_rename: list[Callable[[], object]]) -> None:
    """An editor replaced the file that the first has locked: the second must not take its temporary file."""
    seen = []

    def second() -> None:
        by_rename(path, TOP + "users: {alice: hold, bob: hold}\n")
        with pytest.raises(ConfigError, match="is locked by another process") as caught:
            change(path, "bob", wait=0.1)
        seen.append(caught.value)

    before_rename.append(second)
    assert change(path, "alice").previous == {"alice": "hold"}
    assert len(seen) == 1
    assert path.read_text() == TOP + "users: {alice: new, bob: hold}\n"
    assert os.listdir(path.parent) == [path.name]


# --- locks and processes ---------------------------------------------------------------------------------------------

CHANGE = """
import sys, time
from lmtp_proxy.config.file import change_users
path, backend, *users = sys.argv[1:]
change = change_users(path, users, backend, deadline=time.monotonic() + 50, waiting=lambda what: None)
print(change.previous)
"""

BACK_AND_FORTH = """
import sys, time
from lmtp_proxy.config.file import change_users
print("ready", flush=True)
while True:
    for backend in ("new", "old"):
        change_users(sys.argv[1], sys.argv[2:], backend, deadline=time.monotonic() + 50, waiting=print)
"""


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_processes_that_change_different_users_at_once_lose_nothing(path: Path) -> None:
    path.write_text(TOP + "users:\n" + "".join(f"  u{number}: old\n" for number in range(15)))
    running = [start(CHANGE, str(path), "new", f"u{number}") for number in range(20)]
    outputs = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * 20
    there = ["'old'"] * 15 + ["None"] * 5
    assert outputs == [f"{{'u{number}': {was}}}\n" for number, was in enumerate(there)]
    assert load_config(str(path)).users == {f"u{number}": "new" for number in range(20)}
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.timeout(300)
def test_a_kill_at_any_moment_leaves_a_whole_file(path: Path) -> None:
    users = [f"u{number}" for number in range(150)]
    old = TOP + "users:\n" + "".join(f"  {user}: old\n" for user in users)
    new = old.replace(": old\n", ": new\n")
    path.write_text(old)
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 1234, 2345)
    access = path.stat()
    chance = random.Random(3)
    left_behind = 0
    for _ in range(60):
        process = start(BACK_AND_FORTH, str(path), *users)
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0, 0.06))
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        assert path.read_text() in (old, new)
        now = path.stat()
        assert (now.st_mode, now.st_uid, now.st_gid) == (access.st_mode, access.st_uid, access.st_gid)
        others = [name for name in os.listdir(path.parent) if name != path.name]
        assert others in ([], [".proxy.yml.lmtp-proxyctl"])
        left_behind += len(others)
    assert left_behind > 0  # some did hit
    change(path, "x")
    assert os.listdir(path.parent) == [path.name]


def test_what_a_killed_process_left_behind_goes(path: Path) -> None:
    stale = path.parent / ".proxy.yml.lmtp-proxyctl"
    stale.write_text("users: {")
    assert change(path, "alice").changed
    assert os.listdir(path.parent) == [path.name]


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path: Path, path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("x")
    (tmp_path / ".proxy.yml.lmtp-proxyctl").symlink_to("precious")
    assert "Too many levels of symbolic links" in refusal(path, "alice")
    assert precious.read_text() == "x"


def test_the_temporary_file_is_for_nobody_else_while_it_is_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    real = config_file._keep_access

    def keep(handle: int, current: object) -> None:
        modes.append(stat.S_IMODE(os.fstat(handle).st_mode))
        real(handle, current)  # type: ignore[arg-type]

    monkeypatch.setattr(config_file, "_keep_access", keep)
    path.chmod(0o666)
    change(path, "alice")
    assert modes == [0o600]


def test_waiting_for_the_lock(path: Path) -> None:
    """It is told once, after a second; the lock of a file that is replaced meanwhile is not waited for."""
    told: list[str] = []
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        began = time.monotonic()
        with pytest.raises(
            ConfigError, match=r"proxy.yml: is locked by another process that is changing it: try again"
        ):
            change_users(str(path), ["alice"], "new", deadline=began + 1.3, waiting=told.append)
        assert 1.3 <= time.monotonic() - began < 10
        assert told == [f"the lock of {path}: another process is changing it"]
        assert refusal(path, "alice", wait=-1).startswith(": is locked by")
        by_rename(path, TOP + "users: {alice: hold}\n")
        assert change(path, "alice").previous == {"alice": "hold"}


def test_the_file_is_replaced_between_opening_and_locking(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = config_file._lock

    def lock(handle: int) -> bool:
        monkeypatch.setattr(config_file, "_lock", real)
        by_rename(path, TOP + "users: {alice: hold}\n")
        return real(handle)

    monkeypatch.setattr(config_file, "_lock", lock)
    assert change(path, "alice").previous == {"alice": "hold"}
    assert path.read_text() == TOP + "users: {alice: new}\n"


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_file_with_errors_is_not_touched(path: Path) -> None:
    path.write_text(TOP.replace("socket: /run/new", "sokket: /x") + "users: {alice: olt}\n")
    with pytest.raises(ConfigError) as loading:
        load_config(str(path))
    with pytest.raises(ConfigError) as caught:
        change(path, "alice")
    assert caught.value.errors == loading.value.errors
    assert len(caught.value.errors) > 1
    assert path.read_text().endswith("alice: olt}\n")


@pytest.mark.parametrize(
    "user, backend, error",
    [
        ("alice", "nwe", ': there is no backend "nwe", did you mean new? there are old, new; or reject and hold'),
        ("alice", "x", ': there is no backend "x": there are old, new; or reject and hold'),
        ("alice", "x\n", ': there is no backend "x\\n": there are old, new; or reject and hold'),
        (
            "alice",
            "Reject",
            ': there is no backend "Reject", did you mean reject? there are old, new; or reject and hold',
        ),
        ("", "new", ": would not load with this change: users.: a user cannot be empty"),
        (
            "a\tb",
            "new",
            ": would not load with this change: users.a\\tb: holds a control character, which no address can",
        ),
        ("\udcff", "new", ": \\udcff is not UTF-8 text"),
    ],
)
def test_a_change_that_makes_no_sense(path: Path, user: str, backend: str, error: str) -> None:
    assert refusal(path, user, to=backend).startswith(error)


def test_many_backends_are_not_all_named(path: Path) -> None:
    path.write_text(TOP + "".join(f"  store{number}: {{socket: /{number}}}\n" for number in range(100)))
    line = refusal(path, "alice", to="?")
    assert "store17, ...; or reject and hold" in line and "store18" not in line


def test_a_way_of_writing_that_cannot_be_edited(path: Path) -> None:
    path.write_text(TOP + "users:\n  alice: &x old\n  bob: *x\n")
    assert refusal(path, "alice") == (
        ":7: users.alice has an anchor (&x), whose aliases (line 8) would follow: take it out, "
        "or make the change by hand"
    )


def test_no_file_no_regular_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == ": cannot be read: No such file or directory"
    assert refusal(tmp_path) == ": cannot be read: it is no regular file"
    (tmp_path / "loop").symlink_to("loop")
    assert refusal(tmp_path / "loop") == ": cannot be read: Too many levels of symbolic links"
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == ": cannot be read: it is no regular file"
    with pytest.raises(ConfigError, match="there can be no file of this name"):
        change_users("a\0b", [], "new", deadline=0, waiting=silent)


def test_what_else_the_new_file_would_change_is_noticed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    password = path.parent / "secret"
    password.write_text("one")
    path.write_text(TOP.replace("/run/old", "/run/old, user: u, password_file: secret") + USERS)
    real = config_file._keep_access

    def keep(handle: int, current: object) -> None:
        real(handle, current)  # type: ignore[arg-type]
        password.write_text("two")

    monkeypatch.setattr(config_file, "_keep_access", keep)
    assert refusal(path, "alice").startswith(": backends would change too; was a file that it names written just now?")
    assert change(path, "alice").changed


@pytest.mark.parametrize(
    "number, advice",
    [
        (errno.ENOSPC, "No space left on device: make room in {}, where a new file must be made"),
        (errno.EDQUOT, "Disk quota exceeded: make room in {}, where a new file must be made"),
        (errno.EROFS, "Read-only file system: a new file must be made in {}, so mount it writable"),
        (errno.EACCES, "Permission denied: a new file must be made in {} and take its place: make the change as root"),
        (errno.EBUSY, "Device or resource busy: is it mounted by itself, as into a container? Edit it by hand"),
        (errno.EIO, "Input/output error: a new file must be made in {} and take its place"),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "rename", "fchmod"])
def test_the_system_refuses(path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, advice: str) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse)
    assert refusal(path, "alice").startswith(": cannot be changed: " + advice.format(path.parent))


def test_the_directory_cannot_be_synced(path: Path, before_rename: list[Callable[[], object]]) -> None:
    """It is too late then to say that nothing was changed."""

    def refuse() -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    before_rename += [lambda: None, refuse]
    assert change(path, "alice").changed


@pytest.fixture
def shared() -> Iterator[Path]:
    """A file of root's in a directory that others can enter."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    path = directory / "proxy.yml"
    path.write_text(TOP + USERS)
    path.chmod(0o644)
    yield path
    shutil.rmtree(directory)


@pytest.fixture
def nobody() -> Iterator[None]:
    os.setegid(65534)
    os.seteuid(65534)
    yield
    os.seteuid(0)
    os.setegid(0)


@needs_root
def test_without_the_right_to_do_it(shared: Path, nobody: None) -> None:
    line = refusal(shared, "alice")
    assert line.startswith(f": cannot be changed: Permission denied: a new file must be made in {shared.parent} and")


@needs_root
def test_an_owner_who_would_be_another_is_refused(shared: Path) -> None:
    shared.parent.chmod(0o777)
    os.setegid(65534)
    os.seteuid(65534)
    try:
        line = refusal(shared, "alice")
    finally:
        os.seteuid(0)
        os.setegid(0)
    assert line == ": would not stay with its owner (0:0): make the change as root"


def acl(user: int) -> bytes:
    """A POSIX ACL as the kernel takes it (linux/posix_acl_xattr.h): rw- for the owner and `user`, r-- for the rest."""
    entries = [(1, 6, 2**32 - 1), (2, 6, user), (4, 4, 2**32 - 1), (16, 6, 2**32 - 1), (32, 4, 2**32 - 1)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def test_acl_and_extended_attributes_stay(path: Path) -> None:
    try:
        os.setxattr(path, "user.note", b"mine")
        os.setxattr(path, "system.posix_acl_access", acl(4321))
    except OSError as error:
        pytest.skip(f"this file system keeps no ACL: {error}")
    mode = path.stat().st_mode
    change(path, "alice")
    assert os.getxattr(path, "user.note") == b"mine"
    assert os.getxattr(path, "system.posix_acl_access") == acl(4321)
    assert path.stat().st_mode == mode


def test_the_default_acl_of_the_directory_does_not_open_the_file(path: Path) -> None:
    path.chmod(0o640)
    try:
        os.setxattr(path.parent, "system.posix_acl_default", acl(4321))
    except OSError as error:
        pytest.skip(f"this file system keeps no ACL: {error}")
    change(path, "alice")
    assert "system.posix_acl_access" not in os.listxattr(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_an_attribute_that_cannot_be_kept_is_a_reason_to_refuse(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    real = config_file._attributes
    lacking = iter([False, True])
    monkeypatch.setattr(
        config_file, "_attributes", lambda handle: {} if next(lacking) else {"user.x": b"y", **real(handle)}
    )
    monkeypatch.setattr(os, "setxattr", refuse)
    assert refusal(path, "alice").startswith(
        ": its attribute user.x cannot be kept (Operation not permitted): do it as"
    )
