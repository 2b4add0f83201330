"""A configuration too large for a thread: a process loads it, at the start and in a reload, and whatever happens to it.

Mail is never in its way, a bad end of it changes nothing, and nothing of it is left behind.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from lmtp_proxy.config.loading import LARGE
from lmtp_proxy.config.read import ConfigError, load_config
from tests import ROOT
from tests.faults.conftest import Move
from tests.support.accounting import check_earned
from tests.support.backend import FakeBackend
from tests.support.control import Control
from tests.support.ctl import controlled, ctl
from tests.support.delays import Delays
from tests.support.package import copied_package
from tests.support.patience import SOON
from tests.support.proxy import ProxyProcess, config_of, yaml_of

pytestmark = [
    # The children of the process are looked at, which are to be those that load.
    pytest.mark.parametrize("processes", [1], indirect=True, scope="module", ids=[""]),
    pytest.mark.timeout(600),
]

PATIENCE = 150.0
"""Seconds for a reload. Whoever loads is nice: on a machine with seven times as much to do as it has cores, it gets a
hundredth of one."""

USERS = 60_000


def text_of(proxy: ProxyProcess, moved: int = 0, more: str = "") -> str:
    """The configuration with so many users on `old`, the first of them on `new`; `u` as it is in `proxy`."""
    rest = {name: section for name, section in proxy.config.items() if name != "users"}
    users = "".join(f"  user{n:06d}: {'new' if n < moved else 'old'}\n" for n in range(USERS))
    return f"{yaml_of(rest)}users:\n  u: {proxy.config['users']['u']}\n{users}{more}"


@pytest.fixture(scope="module")
def shared() -> Iterator[Move]:
    with FakeBackend() as old, FakeBackend() as new:
        proxy = controlled({"old": old, "new": new}, {"u": "old"}, ignoreDomain=True, max_removed="100%")
        proxy.patience = PATIENCE
        proxy.write_config(text_of(proxy))
        assert os.path.getsize(proxy.config_path) > LARGE
        with proxy:
            yield Move(old, new, proxy)


@pytest.fixture
def large(shared: Move) -> Iterator[Move]:
    proxy = shared.proxy
    shared.old.forget()
    shared.new.forget()
    proxy.config["users"]["u"] = "old"
    proxy.write_config(text_of(proxy))
    assert "active" in proxy.signal_reload()
    yield shared
    assert children(proxy.pid) == []
    assert files_in_memory(proxy) in (["lmtp-proxy users"], ["lmtp-proxy users"] * 2)  # open, and mapped
    assert len([name for name in os.listdir(proxy.directory) if name not in ("s", "ctl", "c.yml", "log", "pid")]) == 0


def children(pid: int) -> list[int]:
    """The children of a process that are there, zombies too."""
    found: list[int] = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with suppress(FileNotFoundError):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def files_in_memory(proxy: ProxyProcess) -> list[str]:
    """The names of those that are open."""
    found = []
    for name in os.listdir(f"/proc/{proxy.pid}/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{proxy.pid}/fd/{name}"))
    return [name.removeprefix("/memfd:").removesuffix(" (deleted)") for name in found if name.startswith("/memfd:")]


def command_line(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def stopped_loader(proxy: ProxyProcess) -> int:
    """The process that loads, as soon as it is there, stopped wherever it is.

    Not before its exec: until then posix_spawn, which is a vfork, has its parent stand still.
    """
    return stop_loader(proxy.pid, proxy.log)


def stop_loader(parent: int, what_it_said: Callable[[], str]) -> int:
    deadline = time.monotonic() + SOON
    while not (found := [pid for pid in children(parent) if b"lmtp_proxy.config.loader" in command_line(pid)]):
        assert time.monotonic() < deadline, what_it_said()
        time.sleep(0.002)
    (pid,) = found
    os.kill(pid, signal.SIGSTOP)
    return pid


@contextmanager
def mail(move: Move) -> Iterator[list[str]]:
    """Delivers to `u` all the time; every command must be answered well, and held up for half a second at most."""
    stop = threading.Event()
    delays = Delays(move.proxy)
    replies: list[str] = []
    trouble: list[BaseException] = []

    def deliver() -> None:
        try:
            with move.proxy.client() as client:
                while not stop.is_set():
                    with delays.one():
                        outcome = client.deliver(f"{len(replies)}@x", ["u@x"])
                    assert outcome.verdict(0).positive, outcome
                    replies.append(outcome.verdict(0).text)
                client.quit()
        except BaseException as error:
            trouble.append(error)

    thread = threading.Thread(target=deliver)
    thread.start()
    try:
        yield replies
    finally:
        stop.set()
        thread.join()
    assert not trouble, trouble
    delays.check(0.5)


def test_mail_flows_through_reloads_and_the_log_counts_exactly(large: Move) -> None:
    with mail(large) as replies:
        for number in range(3):
            large.proxy.write_config(text_of(large.proxy, moved=10 * (number + 1), more=f"  x{number}: hold\n"))
            there = len(replies)
            line = large.proxy.signal_reload()
            removed = 0 if number == 0 else 1
            assert f"{USERS + 2} users (1 added, {removed} removed, 10 moved)" in line
            assert len(replies) - there > 3, "no mail passed during the reload"
    with large.proxy.client() as client:
        check_earned(client.deliver("after@x", ["user000029@x", "user000030@x"]), [large.new, large.old])
        client.quit()
    answer = Control(large.proxy).get("/lookup?address=user000029@x")
    assert (answer["line"], answer["hit"]) == (line_of(large.proxy), "user000029")


def line_of(proxy: ProxyProcess) -> int:
    lines = Path(proxy.config_path).read_text().split("\n")
    return next(number for number, line in enumerate(lines, 1) if line.startswith("  user000029:"))


def test_a_broken_file_is_refused_with_the_errors_of_a_small_one(large: Move) -> None:
    errors: tuple[str, ...] = ()
    for more in ("  carol: nobody\n", "  user000007: old\n", "\tcarol: old\n"):
        large.proxy.write_config(text_of(large.proxy, moved=5, more=more))
        with pytest.raises(ConfigError) as caught:
            load_config(large.proxy.config_path)
        since = large.proxy.mark()
        assert "stays active" in large.proxy.signal_reload()
        errors = caught.value.errors
        assert errors[0].startswith(f"{large.proxy.config_path}:")
        for error in errors:
            assert f"reload: {error}\n" in large.proxy.log()[since:]
    answer = Control(large.proxy).ask("POST", "/check", {"path": large.proxy.config_path})
    assert answer.document == {"errors": list(errors)}
    with large.proxy.client() as client:
        check_earned(client.deliver("after@x", ["user000000@x"]), [large.old])
        client.quit()


def test_a_check_says_what_a_reload_would_change(large: Move) -> None:
    large.proxy.write_config(text_of(large.proxy, moved=30, more="  carol: hold\n"))
    found = Control(large.proxy).post("/check", {"path": large.proxy.config_path})
    moved = [f"user{number:06d}" for number in range(20)]
    assert found == {
        "errors": [],
        "sha256": hashlib.sha256(Path(large.proxy.config_path).read_bytes()).hexdigest(),
        "users": USERS + 2,
        "added": [{"to": "hold", "count": 1, "users": ["carol"]}],
        "removed": [],
        "moved": [{"from": "old", "to": "new", "count": 30, "users": moved}],
        "backends": [],
        "config": [],
        "notes": [],
    }


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_loader_that_dies_changes_nothing(large: Move, number: signal.Signals) -> None:
    since = large.proxy.mark()
    large.proxy.config["users"]["u"] = "new"
    large.proxy.write_config(text_of(large.proxy))
    with mail(large) as replies:
        large.proxy.signal(signal.SIGUSR1)
        loader = stopped_loader(large.proxy)
        there = len(replies)
        time.sleep(0.2)
        os.kill(loader, number)
        with suppress(ProcessLookupError):
            os.kill(loader, signal.SIGCONT)
        line = large.proxy.wait_log("reload: .*cannot be loaded", since=since)
        assert len(replies) > there
    assert (
        f"{large.proxy.config_path}: cannot be loaded: the process that is to do it was ended by {number.name}" in line
    )
    assert "1 error" in large.proxy.wait_log("reload refused", since=since)
    with large.proxy.client() as client:
        check_earned(client.deliver("after@x", ["u@x"]), [large.old])
        client.quit()
    assert "active" in large.proxy.signal_reload()


def test_a_storm_of_signals_ends_with_the_last_file(large: Move) -> None:
    since = large.proxy.mark()
    for number in range(40):
        large.proxy.config["users"]["u"] = "new" if number % 2 else "old"
        large.proxy.write_config(text_of(large.proxy))
        large.proxy.signal(signal.SIGUSR1)
    Control(large.proxy).post("/drain", {"users": ["u"]})
    with large.proxy.client() as client:
        check_earned(client.deliver("after@x", ["u@x"]), [large.new])
        client.quit()
    assert 1 <= large.proxy.log()[since:].count("reload: generation") <= 40


def test_a_drain_waits_for_the_reload_under_way(large: Move) -> None:
    large.proxy.signal(signal.SIGUSR1)
    loader = stopped_loader(large.proxy)
    control = Control(large.proxy)
    early = control.post("/drain", {"users": ["u"], "timeout": 0.3})
    assert early["done"] is False
    assert control.get("/status")["reloading"] > 0.2
    done = threading.Timer(0.3, os.kill, (loader, signal.SIGCONT))
    done.start()
    late = control.post("/drain", {"users": ["u"]})
    done.join()
    assert late["done"] is True and late["waited"] > 0.2
    assert late["generation"] == early["generation"] + 1


def test_a_user_is_moved(large: Move) -> None:
    before = Path(large.proxy.config_path).read_text()
    run = ctl("-c", large.proxy.config_path, "move", "--no-preflight", "user030000", "new")
    assert run.status == 0, run
    assert Path(large.proxy.config_path).read_text() == before.replace("user030000: old", "user030000: new")
    with large.proxy.client() as client:
        check_earned(client.deliver("after@x", ["user030000@x", "user030001@x"]), [large.new, large.old])
        client.quit()


def test_a_table_that_shrinks_and_grows_again(large: Move) -> None:
    large.proxy.write_config(yaml_of({**large.proxy.config, "users": {"u": "new"}}))
    assert f"1 users (0 added, {USERS} removed, 1 moved)" in large.proxy.signal_reload()
    large.proxy.write_config()
    assert "1 users (0 added, 0 removed, 1 moved)" in large.proxy.signal_reload()  # in a thread
    large.proxy.write_config(text_of(large.proxy))
    assert f"{USERS + 1} users ({USERS} added, 0 removed, 0 moved)" in large.proxy.signal_reload()


def gone(pid: int) -> bool:
    deadline = time.monotonic() + SOON
    while os.path.exists(f"/proc/{pid}"):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_a_stop_ends_a_reload_under_way() -> None:
    with FakeBackend() as old, FakeBackend() as new:
        proxy = ProxyProcess(config_of({"old": old, "new": new}, {"u": "old"}, ignoreDomain=True))
        proxy.write_config(text_of(proxy))
        with proxy:
            proxy.signal(signal.SIGUSR1)
            loader = stopped_loader(proxy)
            assert proxy.stop() == 0
            assert gone(loader)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_as_a_daemon_that_became_somebody_else() -> None:
    """In the background, in /, with all descriptors closed that are not its own, and without its privileges."""
    assert pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(prefix="lpi", dir="/tmp") as installed, FakeBackend() as old:
        os.chmod(installed, 0o755)
        copied_package(Path(installed))
        shutil.copytree(ROOT / "bin", f"{installed}/bin")
        settings: dict[str, Any] = {"ignoreDomain": True, "run_as": "nobody", "log": {"syslog": "/nonexistent"}}
        python = "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable
        probe = [python, "-c", "import daemon, gevent, idna, setproctitle, yaml"]
        if subprocess.run(probe, user="nobody", capture_output=True, cwd="/").returncode:
            pytest.skip(f"{python} has not all modules")
        proxy = ProxyProcess(config_of({"old": old, "new": old}, {"u": "old"}, **settings))
        try:
            proxy.write_config(text_of(proxy))
            os.chmod(proxy.config_path, 0o644)
            command = [python, f"{installed}/bin/lmtp-proxy", "-D", "-c", "c.yml"]
            done = subprocess.run(command, cwd=proxy.directory, capture_output=True, timeout=2 * SOON, text=True)
            assert done.returncode == 0 and "no syslog at /nonexistent" in done.stderr, done
            assert done.stderr.count("\n") == 1
            assert verdict(proxy, "user000001") == "250"
            assert verdict(proxy, "carol") == "450"
            proxy.write_config(text_of(proxy, more="  carol: old\n"))
            os.chmod(proxy.config_path, 0o644)
            pid = int(Path(proxy.pid_path).read_text())
            os.kill(pid, signal.SIGUSR1)
            deadline = time.monotonic() + PATIENCE
            while verdict(proxy, "carol") != "250":
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert verdict(proxy, "user000001") == "250"
            assert children(pid) == []
        finally:
            for each in daemons(proxy.directory):  # also one that is there although the command failed
                os.kill(each, signal.SIGTERM)
                assert gone(each)
            proxy.close()


def daemons(directory: str) -> list[int]:
    """The processes that have a socket of their own in this directory."""
    inodes = {
        f"socket:[{line.split()[6]}]"
        for line in Path("/proc/net/unix").read_text().splitlines()
        if line.split()[-1].startswith(f"{directory}/")
    }
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it has ended
            links = {os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")}
            if links & inodes:
                found.append(int(pid))
    return found


def verdict(proxy: ProxyProcess, user: str) -> str:
    """The code that RCPT for `user` gets."""
    with proxy.client() as client:
        client.command("MAIL FROM:<s@x>")
        reply = client.command(f"RCPT TO:<{user}@x>")
        client.quit()
    return str(reply.code)


def test_a_start_with_a_broken_file_says_all_and_leaves_nothing(tmp_path: Path) -> None:
    text = "config: {socket: /s}\nbackends: {old: {socket: /o}}\nusers:\n"
    text += "".join(f"  user{n:06d}: {'old' if n % 30_000 else 'nobody'}\n" for n in range(USERS))
    (tmp_path / "c.yml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(str(tmp_path / "c.yml"))
    command = [sys.executable, str(ROOT / "bin" / "lmtp-proxy"), "-c", str(tmp_path / "c.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * SOON)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "\n".join(caught.value.errors) + "\n")
    assert len(caught.value.errors) == 2


def test_an_interrupt_during_a_start_ends_both(tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    path.write_text("config: {socket: /s}\nusers:\n" + "".join(f"  user{n:06d}: hold\n" for n in range(USERS)))
    command = [sys.executable, str(ROOT / "bin" / "lmtp-proxy"), "--check", "-c", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        loader = stop_loader(process.pid, lambda: f"no loader; exit status {process.poll()}")
        process.send_signal(signal.SIGINT)
        assert process.wait(SOON) == 130
        assert gone(loader)
    finally:
        process.kill()
        process.wait()
        for pid in loaders_of(path):
            os.kill(pid, signal.SIGKILL)


# A library that is loaded first. It interrupts the process at a moment that is too short to be met from outside; what
# that starts does not get on, so that nothing else ends the wait.
INTERRUPTING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *moment = "";

__attribute__((constructor)) static void learn(void) {
    const char *found = getenv("INTERRUPT_AT");
    while (found == NULL) pause();  /* a child */
    moment = strdup(found);
    unsetenv("INTERRUPT_AT");
}

static void at(const char *now) {
    if (strcmp(moment, now) == 0) {
        moment = "";
        raise(SIGINT);
    }
}

static int is_pipe(int handle) {
    struct stat status;
    return fstat(handle, &status) == 0 && S_ISFIFO(status.st_mode);
}

ssize_t read(int handle, void *octets, size_t most) {
    if (is_pipe(handle)) at("waiting");
    return ((ssize_t (*)(int, void *, size_t)) dlsym(RTLD_NEXT, "read"))(handle, octets, most);
}

int poll(struct pollfd *handles, nfds_t count, int milliseconds) {
    if (count && is_pipe(handles[0].fd)) at("waiting");
    return ((int (*)(struct pollfd *, nfds_t, int)) dlsym(RTLD_NEXT, "poll"))(handles, count, milliseconds);
}

int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
                const posix_spawnattr_t *attributes, char *const arguments[], char *const environment[]) {
    int (*real)(pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *, char *const[],
                char *const[]) = dlsym(RTLD_NEXT, "posix_spawn");
    int error = real(pid, path, actions, attributes, arguments, environment);
    at("started");
    return error;
}
"""


@pytest.fixture(scope="module")
def interrupting(tmp_path_factory: pytest.TempPathFactory) -> str:
    cc = shutil.which(os.environ.get("CC", "cc"))
    if cc is None:
        pytest.skip("no C compiler is here: apt install gcc libc6-dev")
    source = tmp_path_factory.mktemp("interrupting") / "interrupting.c"
    source.write_text(INTERRUPTING)
    library = str(source.with_suffix(".so"))
    subprocess.run([cc, "-shared", "-fPIC", "-o", library, str(source), "-ldl"], check=True)
    return library


@pytest.mark.parametrize("moment", ["started", "waiting"])
def test_an_interrupt_between_two_instructions_ends_both(moment: str, interrupting: str, tmp_path: Path) -> None:
    """Just before the start waits for the process that loads, and just before it knows that there is one."""
    path = tmp_path / "c.yml"
    path.write_text("config: {socket: /s}\nusers: {}\n")
    command = [sys.executable, str(ROOT / "bin" / "lmtp-proxy"), "-c", str(path)]
    environment = {**os.environ, "LD_PRELOAD": interrupting, "INTERRUPT_AT": moment}
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, said = process.communicate(timeout=SOON)
        left = loaders_of(path)
    finally:
        process.kill()
        process.wait()
        for pid in loaders_of(path):
            os.kill(pid, signal.SIGKILL)
    assert left == []
    assert (process.returncode, said) == (130, "")


def loaders_of(path: Path) -> list[int]:
    """The processes that load the configuration at `path`."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if b"lmtp_proxy.config.loader" in (line := command_line(pid)) and bytes(path) in line]
