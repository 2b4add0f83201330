# SPDX-License-Identifier: GPL-3.0-or-later
"""`lmtp-proxy --try` in front of two scripted stores: what it says, what serves, what it leaves behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.backend import FakeBackend
from tests.support.client import LmtpClient
from tests.support.ctl import ctl
from tests.support.proxy import PROGRAM
from tests.support.script import Script, say
from tests.support.terminal import Tmux

BOB = "bob@example.org"
FILE = "lmtp-proxy-try.yml"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def place_of(store: FakeBackend) -> str:
    config = store.config
    return str(config["socket"]) if "socket" in config else f"{config['host']}:{config['port']}"


@pytest.fixture
def home() -> Iterator[Path]:
    """A short path: a control socket is made in it."""
    path = Path(tempfile.mkdtemp(prefix="lpt", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def stores() -> Iterator[tuple[FakeBackend, FakeBackend]]:
    with FakeBackend() as old, FakeBackend(transport="tcp") as new:
        yield old, new


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(PROGRAM), "--try", *arguments]


def refused(home: Path, *arguments: str) -> str:
    """The one line of one that ends by itself with status 1."""
    done = subprocess.run(
        command(*arguments), cwd=home, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done
    [line] = done.stderr.splitlines()
    return line


@contextmanager
def running(home: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """One that serves, and what it has printed until then. It is ended with SIGTERM if the test has not ended it."""
    with ExitStack() as cleanup:
        log = cleanup.enter_context(open(home.with_name(f"{home.name}.log"), "w+", encoding="utf-8"))
        cleanup.callback(os.unlink, log.name)
        process = subprocess.Popen(
            command(*arguments), cwd=home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                if line.startswith("Ctrl-C ends it."):
                    break
            else:
                log.seek(0)
                raise AssertionError(f"it ended: {lines}\n{log.read()}")
            yield process, lines
        finally:
            if process.poll() is None:
                process.terminate()
            process.communicate(timeout=30)


def test_everybody_is_on_old_until_somebody_moves(home: Path, stores: tuple[FakeBackend, FakeBackend]) -> None:
    old, new = stores
    port = free_port()
    at = f"127.0.0.1:{port}"
    with running(home, "--old", place_of(old), "--new", place_of(new), "--listen", at, "--user", BOB) as (it, lines):
        text = "\n".join(lines)
        assert re.search(r"(?m)^old\[.*ready in .*\n(    .*\n)*    bob@example.org: 250 ", text), text
        assert re.search(r"(?m)^new\[.*ready in .*\n(    .*\n)*    bob@example.org: 250 ", text), text
        assert f"  swaks --protocol LMTP --server 127.0.0.1 --port {port} --to {BOB}" in lines
        assert f"  {BOB} lmtp:inet:{at}" in lines
        assert all(len(line) <= 80 for line in lines if not line.startswith("  ")), text
        with LmtpClient(("127.0.0.1", port)) as client:
            client.greet()
            assert client.deliver("s@x", [BOB, "else@example.org"]).verdict(0).code == 250
        moves = [line for line in lines if line.endswith(f"move {BOB} new")]
        assert ctl(*moves[0].split()[1:]).status == 0
        with LmtpClient(("127.0.0.1", port)) as client:
            client.greet()
            assert client.deliver("s@x", [BOB]).verdict(0).code == 250
        it.send_signal(signal.SIGINT)
        rest, _ = it.communicate(timeout=30)
        assert it.returncode == 0 and f"The configuration is left: {home / FILE}" in " ".join(rest.split())
    assert os.listdir(home) == [FILE]
    assert [[each.path for each in seen.recipients] for seen in old.transactions() if seen.dotted] == [
        [BOB, "else@example.org"]
    ]
    assert [[each.path for each in seen.recipients] for seen in new.transactions() if seen.dotted] == [[BOB]]


def test_the_file_is_used_again_as_it_is(home: Path, stores: tuple[FakeBackend, FakeBackend]) -> None:
    old, new = stores
    flags = ("--old", f"lmtp:unix:{place_of(old)}", "--new", f"inet:{place_of(new)}")
    at = ("--listen", f"127.0.0.1:{free_port()}", "--user", BOB)
    with running(home, *flags, *at):
        assert "another --try runs by this file" in refused(home, *flags, *at)
    before = (home / FILE).read_text()
    with running(home) as (_, lines):
        assert any(BOB in line for line in lines)
    assert (home / FILE).read_text() == before
    assert "leave --old, --new and --listen out to use it as it is" in refused(home, *flags)
    (home / FILE).write_text(before.replace("port: ", "port: x"))
    assert refused(home).startswith(f"{home / FILE}:13: backends.new.port: ")
    (home / FILE).write_text("config:\n")
    assert refused(home).endswith("is there, and is none that --try wrote: name another file with -c")
    assert os.listdir(home) == [FILE]


def test_a_store_that_does_not_answer(home: Path, stores: tuple[FakeBackend, FakeBackend]) -> None:
    """The configuration is there to be put right; no error number is shown."""
    at = ("--listen", f"127.0.0.1:{free_port()}")
    line = refused(home, "--old", place_of(stores[0]), "--new", f"127.0.0.1:{free_port()}", *at)
    assert line.startswith("lmtp-proxy: new does not answer as a store does (connect: Connection refused")
    assert f"put it right in {home / FILE}, and run `lmtp-proxy --try -c {home / FILE}`" in line
    assert os.listdir(home) == [FILE]


def test_a_store_that_does_not_know_the_user_is_no_reason_to_end(
    home: Path, stores: tuple[FakeBackend, FakeBackend]
) -> None:
    old, new = stores
    new.script = Script(rcpt_by={BOB: say("550 5.1.1 who?")})
    flags = ("--old", place_of(old), "--new", place_of(new), "--listen", f"127.0.0.1:{free_port()}", "--user", BOB)
    with running(home, *flags) as (_, lines):
        assert any(line.startswith(f"    FAILED: {BOB}: 550 5.1.1 who?") for line in lines), lines


def test_mistakes_leave_nothing(home: Path, stores: tuple[FakeBackend, FakeBackend]) -> None:
    both = ("--old", place_of(stores[0]), "--new", place_of(stores[1]))
    form = "must be the absolute path of a socket, or HOST:PORT"
    assert refused(home, *both[:2]) == f"lmtp-proxy: --try needs --new, {form.removeprefix('must be ')}"
    assert refused(home, "--old", "x.y", *both[2:]) == f'lmtp-proxy: --old: "x.y" {form}'
    assert refused(home, *both, "--listen", "24") == 'lmtp-proxy: --listen: "24" must be HOST:PORT'
    assert refused(home, *both, "--user", "a b@") == 'lmtp-proxy: --user: "a b@" is no address that RCPT would take'
    assert "cannot be written: No such file or directory" in refused(home, *both, "-c", "none/x.yml")
    with FakeBackend(transport="tcp") as taken:
        line = refused(home, *both, "--listen", place_of(taken))
        assert line.endswith(f"config.socket: cannot listen on {place_of(taken)}: Address already in use")
    assert os.listdir(home) == []
    wrong = subprocess.run(
        [sys.executable, str(PROGRAM), "--old", "/x"], capture_output=True, text=True, timeout=60, check=False
    )
    assert wrong.returncode == 2 and "--old, --new, --listen and --user are for --try" in wrong.stderr


@pytest.mark.skipif(shutil.which("tmux") is None, reason="no tmux")
def test_it_asks_on_a_terminal(home: Path, stores: tuple[FakeBackend, FakeBackend]) -> None:
    old, new = stores
    at = f"127.0.0.1:{free_port()}"
    words = " ".join(command("--listen", at))
    terminal = Tmux(home / "tmux", 80, 40, f"cd {home}; {words}; echo status $?; read x")
    try:
        terminal.shows(lambda screen: any("that everybody is on" in line for line in screen))
        terminal.keys("x", "Enter")
        terminal.shows(lambda screen: any('"x" must be' in line for line in screen))
        terminal.keys(place_of(old), "Enter")
        terminal.shows(lambda screen: any("The new store" in line for line in screen))
        terminal.keys(place_of(new), "Enter")
        terminal.shows(lambda screen: any("One user" in line for line in screen))
        terminal.keys(BOB, "Enter")
        screen = terminal.shows(lambda screen: any("Ctrl-C ends it" in line for line in screen))
        assert any(f"lmtp:inet:{at}" in line for line in screen)
        terminal.keys("C-c")
        terminal.shows(lambda screen: "status 0" in screen)
    finally:
        terminal.close()
    assert FILE in os.listdir(home) and "lmtp-proxy-try.control" not in os.listdir(home)


@pytest.mark.skipif(shutil.which("tmux") is None, reason="no tmux")
def test_ctrl_c_at_a_question(home: Path) -> None:
    terminal = Tmux(home / "tmux", 80, 24, f"cd {home}; {' '.join(command())}; echo status $?; read x")
    try:
        terminal.shows(lambda screen: any("that everybody is on" in line for line in screen))
        terminal.keys("C-c")
        screen = terminal.shows(lambda screen: "status 130" in screen)
        assert not any("Traceback" in line for line in screen)
    finally:
        terminal.close()
    assert FILE not in os.listdir(home)
