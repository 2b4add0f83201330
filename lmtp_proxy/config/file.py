# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes users in the configuration file, or in the files of users that it names: as a whole, or not at all.

A user is changed in the file that has them. Others of its kind, editors and configuration management may write at the
same time, and it may be killed at any moment: what stands at the path is always a whole file, the old or the new one,
and nobody's edit is overwritten. It does not know what a move is for, and talks to no running proxy.
"""

import dataclasses
import difflib
import errno
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Callable, Collection, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from lmtp_proxy.config.read import load_config
from lmtp_proxy.config.users_edit import EditError, edit_file
from lmtp_proxy.config.users_files import for_new_users
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
_NOT_COMPARED = frozenset({"path", "files", "digest", "modified", "users_per_backend", "notes", "served"})
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


class _Written(NamedTuple):
    """A file that was changed.

    Attributes:
        path: as it is named.
        before, after: its octets.
        file: device and inode of the new one.
    """

    path: str
    before: bytes
    after: bytes
    file: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Change:
    """What is about to be done, or was done.

    Attributes:
        previous: user as given -> where the user was, None if in no file.
        path: as given.
        files: those in which the users stand from now on.
        before, after: digests of the configuration, see Config.
    """

    in_table: ClassVar[Literal[False]] = False
    previous: dict[str, str | None]
    changed: bool
    path: str
    files: tuple[str, ...] = ()
    before: str = ""
    after: str = ""
    _written: tuple[_Written, ...] = field(default=(), repr=False)

    @property
    def begun(self) -> bool:
        """Whether a file was changed, as its name says now."""
        return any(_is_file(each.path, each.file) for each in self._written)

    def undo(self) -> bool:
        """Put the old octets back. False, and nothing done, if somebody wrote since. Raises ConfigError."""
        if not self.changed:
            return True
        patience = _Patience(self.path, time.monotonic() + _UNDO_WAIT, lambda what: None)
        with ExitStack() as stack:
            news = []
            main = stack.enter_context(_locked(self.path, patience))
            for each in self._written:
                current = main if each.path == main.path else stack.enter_context(_locked(each.path, patience))
                status = current.status
                if (status.st_dev, status.st_ino) != each.file or current.data != each.after:
                    return False
                news.append((current, each.before))
            return _replace(news, patience, lambda written: True)


def change_users(
    path: str,
    users: Sequence[str],
    backend: str,
    *,
    deadline: float,
    waiting: Callable[[str], None],
    look: Callable[[Config, dict[str, str | None]], None] = lambda config, previous: None,
    about_to: Callable[[Change], None] = lambda change: None,
) -> Change:
    """Set `users` of the configuration at `path` to `backend`; the new files are on disk when this returns.

    Links are followed and stay. Owner, mode, ACL and extended attributes stay. A user in none of the files gets a line
    in the last file that `config.users_file` names, else in the configuration. Raises ConfigError: nothing was changed.
    An edit by hand up to the rename is noticed, and the change is made in the new content; what is left of that gap is
    the time between two system calls, as Linux has no rename that compares. Users of several files are changed by
    several renames, each of a whole file.

    Args:
        deadline: of time.monotonic(), how long to wait for others that change the files.
        waiting: told once, after a second, what is waited for.
        look: at the configuration as it is, and where the users are in it; what it raises comes out, and nothing is
            changed.
        about_to: told of the change before it is made, or found not to be needed; perhaps of several, the last one is
            it. What it raises comes out, and nothing is changed.
    """
    patience = _Patience(path, deadline, waiting)
    for _ in range(_ATTEMPTS):
        with _locked(path, patience) as current:
            change = _change(current, users, backend, patience, look, about_to)
        if change is not None:
            return change
    raise _refusal(path, "somebody else wrote it each time it was about to be changed; nothing was changed: try again")


@dataclass(frozen=True, slots=True)
class _Current:
    """A file as read under its lock.

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

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def is_still_there(self) -> bool:
        """Whether the file at the path is the one that was read, and has not been written since."""
        try:
            same = os.path.realpath(self.path) == self.target and Path(self.target).read_bytes() == self.data
            now, then = os.lstat(self.target), self.status
            return same and os.path.samestat(now, then) and now.st_mtime_ns == then.st_mtime_ns
        except OSError:
            return False


def _change(
    main: _Current,
    users: Sequence[str],
    backend: str,
    patience: "_Patience",
    look: Callable[[Config, dict[str, str | None]], None],
    about_to: Callable[[Change], None],
) -> Change | None:
    """One attempt under the lock. None if somebody wrote meanwhile."""
    with ExitStack() as stack:
        try:
            config = load_config(main.path)
            if backend not in config.backends and backend not in RESERVED:
                raise _refusal(main.path, _undefined(backend, config.backends))
            places = _places(config, users)
        except ConfigError:
            if not main.is_still_there():  # an editor in the middle of its work, perhaps
                return None
            raise
        # The lock of the configuration is that of all; theirs are for other configurations with the same files.
        currents = [main if place is None else stack.enter_context(_locked(place, patience)) for place in places]
        read = {file.path: file.digest for file in config.files}
        if any(
            read[place or config.files[0].path] != each.digest for place, each in zip(places, currents, strict=True)
        ):
            return None
        previous: dict[str, str | None] = {}
        news: list[tuple[_Current, bytes]] = []
        for current, named in zip(currents, places.values(), strict=True):
            try:
                changes = dict.fromkeys(named, backend)
                edit = edit_file(current.data, changes, config.key_rules, alone=current is not main)
            except (EditError, UnicodeDecodeError) as error:
                if not current.is_still_there():
                    return None
                if isinstance(error, EditError):
                    raise _refusal(current.path, str(error), error.line) from error
                raise
            previous |= edit.previous
            if edit.data != current.data:
                news.append((current, edit.data))
        previous = {user: previous[user] for user in users}
        look(config, previous)
        files = tuple(current.path for current in currents)
        if not news:
            there = all(current.is_still_there() for current in (main, *currents))
            change = Change(previous, False, main.path, files, config.digest, config.digest)
            if there:
                about_to(change)
            return change if there else None
        change = Change(previous, True, main.path, files, config.digest)
        wanted = {config.key_rules.table_key(user): backend for user in users}

        def replacing(written: tuple[_Written, ...]) -> bool:
            nonlocal change
            after = _checked(main, news, config, wanted)
            if after is None or not main.is_still_there():
                return False
            change = replace(change, after=after.digest, _written=written)
            about_to(change)
            return True

        return change if _replace(news, patience, replacing) else None


def _places(config: Config, users: Sequence[str]) -> dict[str | None, list[str]]:
    """The file that is to be changed for each of the users, None for the configuration; in the order of their names."""
    places: dict[str | None, list[str]] = {}
    new = for_new_users(config.users_file or ())
    for user in users:
        key = config.key_rules.table_key(user)
        place = config.place(key)[0] if key in config.users else new
        places.setdefault(None if place == config.files[0].path else place, []).append(user)
    if not places:
        places[None] = []
    return dict(sorted(places.items(), key=lambda each: each[0] or ""))


def _undefined(backend: str, names: Collection[str]) -> str:
    near = difflib.get_close_matches(backend[:64], [*names, *RESERVED], 1, 0.65)
    hint = f", did you mean {shown(near[0])}?" if near else ":"
    there = ", ".join(map(shown, list(names)[:_NAMES_SHOWN])) + (", ..." if len(names) > _NAMES_SHOWN else "")
    return f'there is no backend "{shown(backend)}"{hint} there are {there}; or reject and hold'


def _checked(
    main: _Current, news: Sequence[tuple[_Current, bytes]], before: Config, changes: dict[str, str]
) -> Config | None:
    """What is about to be written, loaded: `before` with these users changed. Raises ConfigError if it is not.

    None if others have written into other files meanwhile.
    """
    try:
        after = load_config(main.path, instead={current.target: data for current, data in news})
    except ConfigError as error:
        lines = []
        for line in error.errors:
            names = [shown(name, 4096) for name in (main.path, *(file.path for file in before.files))]
            name = max((name for name in names if line.startswith(f"{name}:")), key=len, default="")
            lines.append(f"{name}: would not load with this change: {line.removeprefix(name).partition(': ')[2]}")
        raise ConfigError(tuple(lines)) from error
    edited = {os.path.realpath(current.path) for current, _ in news}
    if _others(before, edited) != _others(after, edited):
        return None
    for key in dataclasses.fields(Config):
        if key.name == "users":
            same = all(after.users.get(user) == name for user, name in changes.items()) and all(
                change.key in changes for change in table_changes(before.users, after.users)
            )
        else:
            same = key.name in _NOT_COMPARED or getattr(after, key.name) == getattr(before, key.name)
        if not same:
            what = f"{key.name} would change too; was a file that it names written just now? Nothing was changed"
            raise _refusal(main.path, f"{what}: try again")
    return after


def _others(config: Config, edited: Set[str]) -> list[tuple[str, str]]:
    return [(file.path, file.digest) for file in config.files if os.path.realpath(file.path) not in edited]


class _New(NamedTuple):
    """A file that is ready to take the place of the one that is there.

    Attributes:
        temporary: its path.
        file: device and inode.
    """

    current: _Current
    data: bytes
    temporary: str
    handle: int
    file: tuple[int, int]


@contextmanager
def _made(current: _Current, data: bytes, patience: "_Patience") -> Iterator[_New]:
    """`data` as a file beside that of `current`, with the same access; gone at the end, unless it was renamed."""
    directory, name = os.path.split(current.target)
    temporary = os.path.join(directory, f".{name}.lmtp-proxyctl")
    with _refusals(current.path):
        handle = _create(temporary, patience)
        try:
            with open(handle, "wb", closefd=False) as file:
                file.write(data)
            _keep_access(handle, current)
            status = os.fstat(handle)
            yield _New(current, data, temporary, handle, (status.st_dev, status.st_ino))
        finally:
            if _is_at(handle, temporary):
                os.unlink(temporary)
            os.close(handle)


def _replace(
    news: Sequence[tuple[_Current, bytes]],
    patience: "_Patience",
    about_to: Callable[[tuple[_Written, ...]], bool],
) -> bool:
    """Put each of the new contents in the place of its file. False, and nothing done, if somebody wrote to one since.

    about_to: asked before the first is, whether they may.
    """
    with ExitStack() as stack:
        made = [stack.enter_context(_made(current, data, patience)) for current, data in news]
        if not about_to(tuple(_Written(new.current.path, new.current.data, new.data, new.file) for new in made)):
            return False
        for new in made:
            with _refusals(new.current.path):
                os.fsync(new.handle)
        if not all(new.current.is_still_there() for new in made):
            return False
        done: list[_New] = []
        try:
            for new in made:
                with _refusals(new.current.path):
                    os.rename(new.temporary, new.current.target)
                done.append(new)
        except ConfigError:
            for new in reversed(done):
                _put_back(new, patience)
            raise
    for directory in {os.path.dirname(new.current.target) for new in made}:
        with suppress(OSError):  # the new files are in place: too late to refuse, and some file systems cannot do this
            parent = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)
    return True


def _put_back(new: _New, patience: "_Patience") -> None:
    """Undo a rename, under the lock that is held still. Raises ConfigError."""
    with _made(new.current, new.current.data, patience) as old:
        if _is_at(new.handle, new.current.target):
            with _refusals(new.current.path):
                os.rename(old.temporary, new.current.target)


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
    with _refusals(path):
        current = _lock_of(path, patience)
    try:
        yield current
    finally:
        os.close(current.handle)


def _lock_of(path: str, patience: _Patience) -> _Current:
    while (current := _try_to_lock(path)) is None:
        patience.pause()
    return current


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
    status = os.fstat(handle)
    return _is_file(path, (status.st_dev, status.st_ino), follow=False)


def _is_file(path: str, file: tuple[int, int], *, follow: bool = True) -> bool:
    """Whether the file of that device and inode is at the path."""
    try:
        status = os.stat(path, follow_symlinks=follow)
    except FileNotFoundError:
        return False
    return (status.st_dev, status.st_ino) == file


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
