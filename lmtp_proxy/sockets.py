# SPDX-License-Identifier: GPL-3.0-or-later
"""The listening socket: bound, with its owner, group and mode, before the first client can connect.

A unix socket is made ready under another name beside its own and renamed into place, so clients see no socket, the old
one or a complete one. It runs before gevent is there, and knows nothing of LMTP.
"""

import fcntl
import grp
import os
import pwd
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from lmtp_proxy.config import ConfigError
from lmtp_proxy.config_values import Config, TcpAddress, UnixAddress

BACKLOG = 1024
"""Connections that wait in the kernel; Linux cuts it to net.core.somaxconn."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket. file: device and inode of its name in the file system, None for TCP."""

    socket: socket.socket
    path: str = ""
    file: tuple[int, int] | None = None

    def remove(self) -> None:
        """Take the socket's name away, unless somebody else has put another there since."""
        with suppress(OSError):
            status = os.lstat(self.path)
            if (status.st_dev, status.st_ino) == self.file:
                os.unlink(self.path)


def listen(config: Config) -> Listener:
    """Bind and listen as `config` says. Raises ConfigError with what to do about it."""
    try:
        if isinstance(config.socket, UnixAddress):
            return _listen_unix(config, config.socket.path)
        return _listen_tcp(config.socket)
    except OSError as error:
        raise _refusal(config, f"cannot listen on {config.socket}: {error.strerror or error}") from error


def _refusal(config: Config, what: str) -> ConfigError:
    return ConfigError((f"{config.path}: config.socket: {what}",))


def _listen_tcp(address: TcpAddress) -> Listener:
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, where = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return Listener(listener)


def _listen_unix(config: Config, path: str) -> Listener:
    directory = os.path.dirname(path)
    with _locked(directory):
        _check_free(config, path)
        unfinished = os.path.join(directory, f".{os.getpid()}")
        with suppress(FileNotFoundError):
            os.unlink(unfinished)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(unfinished)
            try:
                _set_access(config, unfinished)
                listener.listen(BACKLOG)
                status = os.lstat(unfinished)
                os.rename(unfinished, path)
            except OSError:
                os.unlink(unfinished)
                raise
        except OSError:
            listener.close()
            raise
    return Listener(listener, path, (status.st_dev, status.st_ino))


@contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Keep a second start from taking the same name between our look and our rename."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _check_free(config: Config, path: str) -> None:
    """Nothing is at `path`, or a socket where nobody listens any more."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise _refusal(config, f"{path} exists and is no socket; it was left alone. Move it away or name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return
        except BlockingIOError:
            pass  # its backlog is full: very much alive
    raise _refusal(config, f"another process is listening on {path}. Stop it first, or name another path")


def _set_access(config: Config, path: str) -> None:
    """Owner and group first: chown clears mode bits, and nobody gets in between before `listen`."""
    owner = -1 if config.owner is None else _user_id(config.owner)
    group = -1 if config.group is None else _group_id(config.group)
    if (owner, group) != (-1, -1):
        os.chown(path, owner, group)
    if config.permissions is not None:
        os.chmod(path, config.permissions)


def _user_id(name: str) -> int:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return int(name)  # the configuration was checked: it is one of the two


def _group_id(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return int(name)
