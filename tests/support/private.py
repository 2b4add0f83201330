"""What a process sees of the machine, changed for it alone: namespaces, which take root."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

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
