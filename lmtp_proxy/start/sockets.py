# SPDX-License-Identifier: GPL-3.0-or-later
"""The listening sockets, for mail and for control: bound, with owner, group and mode, before anyone can connect.

A unix socket is made ready under another name beside its own and renamed into place, so clients see no socket, the old
one or a complete one. Or the socket was passed to the process, as systemd does it: LISTEN_PID, LISTEN_FDS
(sd_listen_fds(3)). Whoever passes it keeps it open, so clients wait in its backlog while one process ends and the next
one starts.
"""

import errno
import fcntl
import grp
import os
import pwd
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from lmtp_proxy.config.values import Address, Config, ConfigError, TcpAddress, UnixAddress, is_own_listener, named

_FIRST = 3  # SD_LISTEN_FDS_START


class PassedSocketError(Exception):
    """What was passed cannot be used; the text says why."""


def take_passed_socket() -> socket.socket | None:
    """The one listening socket that was passed to this very process; None if there is none. Raises PassedSocketError.

    A second call returns None: the variables are taken out of the environment, as they mean nobody else.
    """
    pid, count, _ = (os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or count in ("", "0"):
        return None
    if count != "1":
        raise PassedSocketError(f"LISTEN_FDS={count}: one socket can be passed, the one for mail")
    try:
        os.set_inheritable(_FIRST, False)
        passed = socket.socket(fileno=_FIRST)
    except OSError as error:
        raise PassedSocketError(f"LISTEN_FDS=1, but descriptor {_FIRST} is no socket: {error.strerror}") from error
    if (
        passed.family not in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
        or passed.type != socket.SOCK_STREAM
        or not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    ):
        raise PassedSocketError("the socket that was passed does not listen for connections (Accept=no, ListenStream=)")
    return passed


def address_of(listener: socket.socket) -> Address:
    """Where it listens."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return UnixAddress(name if isinstance(name, str) else "@" + name[1:].decode("utf-8", "backslashreplace"))
    return TcpAddress(name[0], name[1])


BACKLOG = 1024
"""Connections that wait in the kernel; Linux cuts it to net.core.somaxconn."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket.

    Attributes:
        socket: bound and listening.
        address: where, as its clients have it; None of one that is not shown.
        path: its name in the file system, empty for TCP or where the name is another's.
        file: device and inode of that name, None where there is none.
        after_crash: a dead socket was there, whose process did not come to take it away.
        notice: what the operator should know of it, one line or empty.
    """

    socket: socket.socket
    address: Address | None = None
    path: str = ""
    file: tuple[int, int] | None = None
    after_crash: bool = False
    notice: str = ""

    def remove(self) -> None:
        """Take the socket's name away, unless somebody else has put another there since."""
        with suppress(OSError):
            status = os.lstat(self.path)
            if (status.st_dev, status.st_ino) == self.file:
                os.unlink(self.path)


@dataclass(frozen=True, slots=True)
class _Access:
    """Who may use a socket, as the configuration has it.

    Attributes:
        owner: name or number, None for whoever starts the proxy.
        group: the same.
        permissions: of the file, None for what the umask leaves.
        place: the file and key, for messages.
    """

    owner: str | None
    group: str | None
    permissions: int | None
    place: str

    def refusal(self, what: str) -> ConfigError:
        return ConfigError((f"{self.place}: {what}",))


def listen(config: Config) -> tuple[Listener, ...]:
    """Bind and listen for clients as `config` says, or take the socket that was passed to the process in its place.

    Of a host name all addresses that this machine has. Raises ConfigError with what to do about it.
    """
    access = _Access(config.owner, config.group, config.permissions, f"{config.path}: config.socket")
    try:
        passed = take_passed_socket()
    except PassedSocketError as error:
        raise access.refusal(str(error)) from error
    if passed is not None:
        return (_take(passed, config, access),)
    found: list[Listener] = []
    hosts = {(each.host, each.port) for each in config.socket if isinstance(each, TcpAddress)}
    try:
        for address in config.socket:
            if isinstance(address, UnixAddress):
                found.append(_listen(address, access))
            else:
                found += _listen_on_all(address, access, only_ipv6=("0.0.0.0", address.port) in hosts)  # noqa: S104
    except ConfigError:
        for listener in found:
            listener.remove()
            listener.socket.close()
        raise
    return tuple(found)


def _take(passed: socket.socket, config: Config, access: _Access) -> Listener:
    """It has its owner and mode, and its name stays where it is when we end."""
    address = address_of(passed)
    for backend in config.backends.values():
        if is_own_listener(address, backend.address):
            raise access.refusal(f"{address}, which was passed, is backend {backend.name}: mail would go in circles")
    unused = [each for each in config.socket if not is_own_listener(address, each)]
    if not unused:
        return Listener(passed, address)
    are = "is" if len(unused) == 1 else "are"
    what = f"{named(unused)} {are} not used: the socket that was passed listens on {address} (see lmtp-proxy.socket)"
    return Listener(passed, address, notice=f"{access.place}: {what}")


def listen_for_control(config: Config) -> Listener | None:
    """Bind and listen on the control socket; None if there is to be none. Raises ConfigError."""
    control = config.control
    if control is None:
        return None
    place = f"{config.path}: config.control.socket"
    return _listen(control.socket, _Access(control.owner, control.group, control.permissions, place))


def listen_for_metrics(config: Config) -> Listener | None:
    """Bind and listen where /metrics and the status page are; None if nowhere. Raises ConfigError."""
    if config.metrics is None:
        return None
    return _listen(config.metrics, _Access(None, None, None, f"{config.path}: config.metrics"))


def remove_dead_sockets(config: Config) -> None:
    """Remove what a proxy has left that had no right to (`run_as`): unix sockets on which nobody listens."""
    for address in (*config.socket, config.control and config.control.socket):
        if isinstance(address, UnixAddress):
            with suppress(OSError, ConfigError), _locked(os.path.dirname(address.path)):
                if _is_dead(address.path, _Access(None, None, None, config.path)):
                    os.unlink(address.path)


def _listen(address: Address, access: _Access) -> Listener:
    with _refused(address, access):
        if isinstance(address, UnixAddress):
            return _listen_unix(address.path, access)
        return _listen_tcp(_addresses(address)[0])


def _listen_on_all(address: TcpAddress, access: _Access, *, only_ipv6: bool) -> list[Listener]:
    """On all addresses of a name, but for those that this machine has not: `::1 localhost` is in /etc/hosts also where
    there is no IPv6. only_ipv6: a socket on :: leaves IPv4 to another one."""
    found: list[Listener] = []
    missing: OSError | None = None
    try:
        with _refused(address, access):
            for each in _addresses(address):
                try:
                    found.append(_listen_tcp(each, only_ipv6=only_ipv6))
                except OSError as error:
                    if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                        at = f" at {_tcp(each[-1])}" if str(_tcp(each[-1])) != str(address) else ""
                        raise OSError(error.errno, f"{error.strerror}{at}") from error
                    missing = error
            if missing is not None and not found:
                raise missing
    except ConfigError:
        for listener in found:
            listener.socket.close()
        raise
    return found


_Found: TypeAlias = tuple[socket.AddressFamily, socket.SocketKind, int, Any]


def _addresses(address: TcpAddress) -> list[_Found]:
    """Each once, in the order in which clients try them. Raises OSError."""
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, kind, protocol, where) for family, kind, protocol, _, where in found))


def _tcp(where: Any) -> TcpAddress:
    return TcpAddress(where[0], where[1])


@contextmanager
def _refused(address: Address, access: _Access) -> Iterator[None]:
    """Why it cannot be listened on becomes a ConfigError."""
    try:
        yield
    except OSError as error:
        what = f"cannot listen on {address}: {error.strerror or error}"
        if isinstance(address, UnixAddress) and isinstance(error, FileNotFoundError):
            what += f": make its directory, {os.path.dirname(address.path)}"
        elif isinstance(address, UnixAddress) and isinstance(error, PermissionError):
            what += f": {own_name()} may not do so in {os.path.dirname(address.path)}; see chown and chmod"
        raise access.refusal(what) from error


def own_name() -> str:
    """Of the user we are, for messages."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"user {os.geteuid()}"


def _listen_tcp(found: _Found, *, only_ipv6: bool = False) -> Listener:
    family, kind, protocol, where = found
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if only_ipv6 and family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return Listener(listener, address_of(listener))


def _listen_unix(path: str, access: _Access) -> Listener:
    directory = os.path.dirname(path)
    with _locked(directory):
        after_crash = _is_dead(path, access)
        unfinished = os.path.join(directory, f".{os.getpid()}")
        with suppress(FileNotFoundError):
            os.unlink(unfinished)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(unfinished)
            try:
                _set_access(access, unfinished)
                listener.listen(BACKLOG)
                status = os.lstat(unfinished)
                os.rename(unfinished, path)
            except OSError:
                os.unlink(unfinished)
                raise
        except OSError:
            listener.close()
            raise
    return Listener(listener, UnixAddress(path), path, (status.st_dev, status.st_ino), after_crash)


@contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Keep a second start from taking the same name between our look and our rename."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _is_dead(path: str, access: _Access) -> bool:
    """Whether a socket is at `path` where nobody listens any more; False if nothing is. Raises ConfigError."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        raise access.refusal(f"{path} exists and is no socket; it was left alone. Move it away or name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except BlockingIOError:
            pass  # its backlog is full: very much alive
    raise access.refusal(
        f"another process is listening on {path}. Stop it first, and wait for its end, or name another path"
    )


def _set_access(access: _Access, path: str) -> None:
    """Owner and group first: chown clears mode bits, and nobody gets in between before `listen`."""
    owner = -1 if access.owner is None else _user_id(access.owner)
    group = -1 if access.group is None else _group_id(access.group)
    if (owner, group) != (-1, -1):
        os.chown(path, owner, group)
    if access.permissions is not None:
        os.chmod(path, access.permissions)


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
