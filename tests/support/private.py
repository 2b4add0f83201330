"""What a process sees of the machine, changed for it alone: namespaces, which take root."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.support.patience import SOON

_MOUNT = 'mount --bind "$0/hosts" /etc/hosts && mount --bind "$0/resolv.conf" /etc/resolv.conf && exec "$@"'


def needs(*unshare: str) -> pytest.MarkDecorator:
    """For tests that use such namespaces: skipped where there can be none."""
    done = subprocess.run(["unshare", *unshare, "true"], capture_output=True, check=False)
    return pytest.mark.skipif(done.returncode != 0, reason=f"unshare {' '.join(unshare)}: {done.stderr.decode()}")


@contextmanager
def names(hosts: Sequence[tuple[str, str]], nameserver: str = "127.255.255.254") -> Iterator[list[str]]:
    """The prefix of a command for which these (address, name) are in /etc/hosts.

    nameserver: is asked once for any other name, with a patience of half a minute.
    """
    directory = tempfile.mkdtemp(prefix="lpn", dir="/tmp")
    try:
        with open(os.path.join(directory, "hosts"), "w", encoding="ascii") as file:
            file.writelines(f"{address} {name}\n" for address, name in hosts)
        with open(os.path.join(directory, "resolv.conf"), "w", encoding="ascii") as file:
            file.write(f"nameserver {nameserver}\noptions timeout:30 attempts:1\n")
        yield ["unshare", "--mount", "sh", "-c", _MOUNT, directory]
    finally:
        shutil.rmtree(directory)


class Network:
    """Two hosts that see each other and no others. `prefix` runs a command on one, `there` makes sockets of the other.

    `address` is that of the other one. Use as a context manager.
    """

    address = "192.0.2.2"

    def __init__(self) -> None:
        self._hosts = [subprocess.Popen(["unshare", "--net", "sleep", "1000"]) for _ in range(2)]
        here, there = self._hosts
        self.prefix = ["nsenter", f"--net=/proc/{here.pid}/ns/net"]
        self._on_other = ["nsenter", f"--net=/proc/{there.pid}/ns/net"]

    def __enter__(self) -> Network:
        own = os.readlink("/proc/self/ns/net")
        deadline = time.monotonic() + SOON
        while any(os.readlink(f"/proc/{host.pid}/ns/net") == own for host in self._hosts):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        _run(*self.prefix, "ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", self._hosts[1].pid)
        for prefix, link, address in ((self.prefix, "v0", "192.0.2.1"), (self._on_other, "v1", self.address)):
            _run(*prefix, "ip", "address", "add", f"{address}/24", "dev", link)
            _run(*prefix, "ip", "link", "set", link, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in self._hosts:
            host.kill()
            host.wait()

    @contextmanager
    def there(self) -> Iterator[None]:
        """Sockets that this thread makes are the other host's."""
        with open("/proc/thread-self/ns/net") as own, open(f"/proc/{self._hosts[1].pid}/ns/net") as other:
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.setns(other.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
            try:
                yield
            finally:
                assert libc.setns(own.fileno(), 0) == 0

    def also(self, network: str) -> None:
        """Both have an address of it, too, NETWORK.1 here and NETWORK.2 there."""
        _run(*self.prefix, "ip", "address", "add", f"{network}.1/24", "dev", "v0")
        _run(*self._on_other, "ip", "address", "add", f"{network}.2/24", "dev", "v1")

    def part(self) -> None:
        """The other host has lost its address: nothing that is sent there comes back."""
        _run(*self._on_other, "ip", "address", "flush", "dev", "v1")

    def forget(self, port: int) -> None:
        """From now on the other host drops all that comes from `port`, as a firewall that knows it no more."""
        _run(*self._on_other, "ip", "rule", "add", "pref", "200", "lookup", "local", check=False)
        _run(*self._on_other, "ip", "rule", "del", "pref", "0", check=False)
        _run(*self._on_other, *f"ip rule add pref 10 ipproto tcp sport {port} blackhole".split())
        _run(*self._on_other, "ip", "route", "flush", "cache")


def _run(*command: object, check: bool = True) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{command}: {done.stderr}"
