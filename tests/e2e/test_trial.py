# SPDX-License-Identifier: GPL-3.0-or-later
"""`lmtp-proxy --try` in front of the real stores: its line in Postfix's transport_maps, and its two moves."""

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.proxy import PROGRAM

from .conftest import Stack
from .cutover import PROXYCTL
from .mail import check_copies, message, read_back, submit
from .postfix import DOMAIN, Postfix
from .process import free_port
from .requirements import program, run


@contextmanager
def with_transport(postfix: Postfix, line: str) -> Iterator[None]:
    """One more line in transport_maps, `ADDRESS TRANSPORT`, in front of the others."""
    address, transport = line.split()
    postconf, command, main = program("postconf"), program("postfix"), f"{postfix.directory}/etc"
    assert postconf is not None and command is not None
    before = run(postconf, "-c", main, "-h", "transport_maps").strip()
    run(postconf, "-c", main, "-e", f"transport_maps = inline:{{ {{{address} = {transport}}} }} {before}")
    run(command, "-c", main, "reload")
    try:
        yield
    finally:
        run(postconf, "-c", main, "-e", f"transport_maps = {before}")
        run(command, "-c", main, "reload")


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="lpt", dir="/tmp"))
    yield path
    shutil.rmtree(path)


def test_one_user_through_it_to_the_new_store_and_back(stack: Stack, home: Path) -> None:
    [user] = stack.users(1)
    stores = ("--old", str(stack.old.lmtp_socket), "--new", f"lmtp:unix:{stack.new.lmtp_socket}")
    options = (*stores, "--listen", f"127.0.0.1:{free_port()}", "--user", f"{user}@{DOMAIN}")
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), "--try", *options],
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line.strip())
            if line.startswith("Ctrl-C ends it."):
                break
        assert sum(line.startswith(f"{user}@{DOMAIN}: 250 ") for line in lines) == 2, lines
        [transport] = [line for line in lines if " lmtp:inet:" in line]
        moves = [line.split()[1:] for line in lines if line.startswith("lmtp-proxyctl ")]
        assert [move[-1] for move in moves] == ["new", "old"], lines
        messages = [message(f"trial-{number}", [user]) for number in range(3)]
        with with_transport(stack.postfix, transport):
            for item, move in zip(messages, [None, *moves], strict=True):
                if move is not None:
                    done = subprocess.run([sys.executable, str(PROXYCTL), *move], capture_output=True, text=True)
                    assert done.returncode == 0, done.stderr
                stack.postfix.wait_removed(submit(stack.postfix, [item]).values(), 60)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)
    assert [path.name for path in home.iterdir()] == ["lmtp-proxy-try.yml"]
    check_copies([messages[0], messages[2]], read_back([stack.old], [user]))
    check_copies([messages[1]], read_back([stack.new], [user]))
