# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes users in the configuration file: as a whole, or not at all.

Others of its kind, editors and configuration management may write at the same time, and it may be killed at any
moment: what stands at the path is always a whole file, the old or the new one, and nobody's edit is overwritten. It
does not know what a move is for, and talks to no running proxy.
"""

import dataclasses
import difflib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from lmtp_proxy.config.read import load_config
from lmtp_proxy.config.users_edit import EditError, edit_file
from lmtp_proxy.config.values import RESERVED, Config, ConfigError
from lmtp_proxy.config.yaml_text import MAX_OCTETS
from lmtp_proxy.routing.static_table import changes as table_changes
from lmtp_proxy.text import shown

_ATTEMPTS = 4  # one, and three more after an edit by somebody else
_POLL = 0.01  # seconds between two looks at a lock; 50 commands at once take turns of some 20 ms
_TELL_AFTER = 1.0
_UNDO_WAIT = 10.0
_NAMES_SHOWN = 20
# Not through a link, which was resolved before; and to open a pipe would wait for its writer.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

# Of Config: where it was read, or what follows from `users`, which is compared itself.
_NOT_COMPARED = frozenset({"path", "digest", "modified", "users_per_backend", "notes"})
# Signatures over the content, which the kernel keeps; those of the old one would be wrong for the new one.
_SIGNATURES = frozenset({"security.ima", "security.evm"})

_AS_OWNER = "a new file must be made in {} and take its place: make the change as root, or as their owner"
_ROOM = "make room in {}, where a new file must be made"
_ADVICE = {
    errno.EACCES: _AS_OWNER,
    errno.EPERM: _AS_OWNER,
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EROFS: "a new file must be made in {}, so mount it writable",
    errno.EBUSY: "is it mounted by itself, as into a container? Edit it by hand, and reload",
}


@dataclass(frozen=True, slots=True)
class Change:
    """What was done.

    Attributes:
        previous: user as given -> where the user was, None if not in the file.
        path: as given.
    """

    previous: dict[str, str | None]
    changed: bool
    path: str
    _before: bytes = field(default=b"", repr=False)
    _after: bytes = field(default=b"", repr=False)
    _file: tuple[int, int] = (0, 0)

    def undo(self) -> bool:
        """Put the old octets back. False, and nothing done, if somebody wrote since. Raises ConfigError."""
        if not self.changed:
            return True
        patience = _Patience(self.path, time.monotonic() + _UNDO_WAIT, lambda what: None)
        with _refusals(self.path), _locked(self.path, patience) as current:
            status = current.status
            if (status.st_dev, status.st_ino) != self._file or current.data != self._after:
                return False
            return _replace(current, self._before, patience, lambda temporary: None) is not None


def change_users(
    path: str,
    users: Sequence[str],
    backend: str,
    *,
    deadline: float,
    waiting: Callable[[str], None],
    look: Callable[[Config, dict[str, str | None]], None] = lambda config, previous: None,
) -> Change:
    """Set `users` in the file at `path` to `backend`; the new file is on disk when this returns.

    Links are followed and stay. Owner, mode, ACL and extended attributes stay. deadline: of time.monotonic(), how long
    to wait for others that change the file. waiting: told once, after a second, what is waited for. look: at the file
    as it is, and where the users are in it; what it raises comes out, and nothing is changed. Raises ConfigError:
    nothing was changed. An edit by hand up to the rename is noticed, and the change is made in the new content; what
    is left of that gap is the time between two system calls, as Linux has no rename that compares.
    """
    patience = _Patience(path, deadline, waiting)
    with _refusals(path):
        for _ in range(_ATTEMPTS):
            with _locked(path, patience) as current:
                change = _change(current, users, backend, patience, look)
            if change is not None:
                return change
    raise _refusal(path, "somebody else wrote it each time it was about to be changed; nothing was changed: try again")


@dataclass(frozen=True, slots=True)
class _Current:
    """The file as read under its lock.

    Attributes:
        path: as given.
        target: the same without links.
        status: taken before reading.
    """

    path: str
    target: str
    handle: int
    status: os.stat_result
    data: bytes

    def is_still_there(self) -> bool:
        """Whether the file at the path is the one that was read, and has not been written since."""
        try:
            same = os.path.realpath(self.path) == self.target and Path(self.target).read_bytes() == self.data
            now, then = os.lstat(self.target), self.status
            return same and os.path.samestat(now, then) and now.st_mtime_ns == then.st_mtime_ns
        except OSError:
            return False


def _change(
    current: _Current,
    users: Sequence[str],
    backend: str,
    patience: "_Patience",
    look: Callable[[Config, dict[str, str | None]], None],
) -> Change | None:
    """One attempt under the lock. None if somebody wrote meanwhile."""
    try:
        config = load_config(current.path)
        if backend not in config.backends and backend not in RESERVED:
            raise _refusal(current.path, _undefined(backend, config.backends))
        edit = edit_file(current.data, dict.fromkeys(users, backend), config.key_rules)
    except (ConfigError, EditError, UnicodeDecodeError) as error:
        if not current.is_still_there():  # an editor in the middle of its work, perhaps
            return None
        if isinstance(error, EditError):
            raise _refusal(current.path, str(error), error.line) from error
        raise
    look(config, edit.previous)
    data = edit.data
    if data == current.data:
        return Change(edit.previous, False, current.path) if current.is_still_there() else None

    def check(temporary: str) -> None:
        _check(current, temporary, config, {config.key_rules.table_key(user): backend for user in users})

    file = _replace(current, data, patience, check)
    return None if file is None else Change(edit.previous, True, current.path, current.data, data, file)


def _undefined(backend: str, names: Collection[str]) -> str:
    near = difflib.get_close_matches(backend[:64], [*names, *RESERVED], 1, 0.65)
    hint = f", did you mean {shown(near[0])}?" if near else ":"
    there = ", ".join(map(shown, list(names)[:_NAMES_SHOWN])) + (", ..." if len(names) > _NAMES_SHOWN else "")
    return f'there is no backend "{shown(backend)}"{hint} there are {there}; or reject and hold'


def _check(current: _Current, temporary: str, before: Config, changes: dict[str, str]) -> None:
    """The file at `temporary` must load, and as `before` with these users changed. Raises ConfigError."""
    with _seen_from(current.path, temporary) as name:
        try:
            after = load_config(name)
        except ConfigError as error:
            errors = [line.removeprefix(shown(name, 4096)).partition(": ")[2] for line in error.errors]
            raise ConfigError(
                tuple(f"{shown(current.path, 4096)}: would not load with this change: {line}" for line in errors)
            ) from error
    for key in dataclasses.fields(Config):
        if key.name == "users":
            same = all(after.users.get(user) == name for user, name in changes.items()) and all(
                change.key in changes for change in table_changes(before.users, after.users)
            )
        else:
            same = key.name in _NOT_COMPARED or getattr(after, key.name) == getattr(before, key.name)
        if not same:
            what = f"{key.name} would change too; was a file that it names written just now? Nothing was changed"
            raise _refusal(current.path, f"{what}: try again")


@contextmanager
def _seen_from(path: str, temporary: str) -> Iterator[str]:
    """A name for `temporary` in the directory of `path`, from where a relative password_file counts."""
    link = os.path.join(os.path.dirname(os.path.abspath(path)), os.path.basename(temporary))
    with suppress(OSError):  # it is there already: the file itself, or the link of a killed process
        os.symlink(temporary, link)
    try:
        yield link if os.path.realpath(link) == temporary else temporary
    finally:
        if os.path.islink(link):
            os.unlink(link)


def _replace(
    current: _Current, data: bytes, patience: "_Patience", check: Callable[[str], None]
) -> tuple[int, int] | None:
    """Put `data` in the place of the file. Its device and inode, or None if somebody wrote to the old one since."""
    directory, name = os.path.split(current.target)
    temporary = os.path.join(directory, f".{name}.lmtp-proxyctl")
    handle = _create(temporary, patience)
    try:
        with open(handle, "wb", closefd=False) as file:
            file.write(data)
        _keep_access(handle, current)
        check(temporary)
        os.fsync(handle)
        status = os.fstat(handle)
        if not current.is_still_there():
            return None
        os.rename(temporary, current.target)
    finally:
        if _is_at(handle, temporary):
            os.unlink(temporary)
        os.close(handle)
    with suppress(OSError):  # the new file is in place: too late to refuse, and some file systems cannot do this
        parent = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
    return status.st_dev, status.st_ino


def _create(path: str, patience: "_Patience") -> int:
    """A new empty file, mine alone (mode 0600, as there may be passwords in it), and locked.

    What a killed process left there goes. Two can get here, if an editor put a new file in the place of the one that
    the first has locked: without a lock on this name too, one would put the unfinished file of the other into place.
    """
    while True:
        mine = True
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            mine = False
            try:
                handle = os.open(path, _READ)
            except FileNotFoundError:
                continue
        if locked := _lock(handle) and _is_at(handle, path):
            if mine:
                return handle
            os.unlink(path)
        os.close(handle)
        if not locked:
            patience.pause()


def _keep_access(handle: int, current: _Current) -> None:
    """Give the file of `handle` what the old one has: owner, group, extended attributes with the ACL, mode."""
    old = current.status
    new = os.fstat(handle)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        try:
            os.fchown(handle, old.st_uid, old.st_gid)
        except OSError as error:
            who = f"{old.st_uid}:{old.st_gid}"
            raise _refusal(current.path, f"would not stay with its owner ({who}): make the change as root") from error
    wanted, there = _attributes(current.handle), _attributes(handle)
    for name in wanted.keys() | there.keys():
        if wanted.get(name) == there.get(name):
            continue
        try:
            if name in wanted:
                os.setxattr(handle, name, wanted[name])
            else:
                os.removexattr(handle, name)  # the default ACL of the directory
        except OSError as error:
            what = f"its attribute {shown(name)} cannot be kept ({error.strerror}): do it as root, or edit it by hand"
            raise _refusal(current.path, what) from error
    os.fchmod(handle, stat.S_IMODE(old.st_mode))


def _attributes(handle: int) -> dict[str, bytes]:
    try:
        return {name: os.getxattr(handle, name) for name in os.listxattr(handle) if name not in _SIGNATURES}
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise


class _Patience:
    """How long to wait for others."""

    def __init__(self, path: str, deadline: float, waiting: Callable[[str], None]) -> None:
        self._path = path
        self._deadline = deadline
        self._waiting: Callable[[str], None] | None = waiting
        self._tell_at = time.monotonic() + _TELL_AFTER

    def pause(self) -> None:
        """Wait for a moment. Raises ConfigError when the time is over."""
        now = time.monotonic()
        if now >= self._deadline:
            raise _refusal(self._path, "is locked by another process that is changing it: try again when that is done")
        if self._waiting is not None and now >= self._tell_at:
            self._waiting(f"the lock of {shown(self._path, 4096)}: another process is changing it")
            self._waiting = None
        time.sleep(min(_POLL, self._deadline - now))


@contextmanager
def _locked(path: str, patience: _Patience) -> Iterator[_Current]:
    """The file at `path`, read under its lock. The lock is on the file that has the name, as others replace it."""
    while (current := _try_to_lock(path)) is None:
        patience.pause()
    try:
        yield current
    finally:
        os.close(current.handle)


def _try_to_lock(path: str) -> _Current | None:
    try:
        target = os.path.realpath(path)
        handle = os.open(target, _READ)
    except OSError as error:
        raise _refusal(path, f"cannot be read: {error.strerror}") from error
    except ValueError:
        raise _refusal(path, "cannot be read: there can be no file of this name") from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise _refusal(path, "cannot be read: it is no regular file")
        if _lock(handle) and _is_at(handle, target):
            return _Current(path, target, handle, os.fstat(handle), _read(handle))
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(handle: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _read(handle: int) -> bytes:
    with open(handle, "rb", closefd=False) as file:
        return file.read(MAX_OCTETS + 1)  # load_config refuses what is larger


@contextmanager
def _refusals(path: str) -> Iterator[None]:
    """A failure of the system becomes one line that says what to do."""
    try:
        yield
    except OSError as error:
        directory = shown(os.path.dirname(os.path.realpath(path)), 4096)
        advice = _ADVICE.get(error.errno or 0, "a new file must be made in {} and take its place").format(directory)
        raise _refusal(path, f"cannot be changed: {error.strerror}: {advice}") from error


def _refusal(path: str, what: str, line: int = 0) -> ConfigError:
    return ConfigError((f"{shown(path, 4096)}{f':{line}' if line else ''}: {what}",))
