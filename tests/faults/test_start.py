"""Start: the command line, what may lie at the socket's path, daemonising, every error on stderr."""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.backend import FakeBackend
from tests.support.package import code_of_copy, copied_package
from tests.support.patience import SOON
from tests.support.proxy import PROGRAM, ProxyProcess, config_of, yaml_of

IS_ROOT = os.geteuid() == 0


def run(*arguments: str, cwd: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program to its end, in at most 10 s."""
    return subprocess.run(
        [sys.executable, str(PROGRAM), *arguments],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
        cwd=cwd,
        env={**os.environ, **environment},
    )


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """Checks that it was refused as an operator should see it; returns what was said."""
    assert done.returncode == 1, done
    assert done.stderr.strip() and "Traceback" not in done.stderr and "Error:" not in done.stderr, done.stderr
    return done.stderr


# -- the command line -------------------------------------------------------------------------------------------------


def test_the_options() -> None:
    text = run("--help", COLUMNS="200").stdout
    options = set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", text.partition("options:")[2]))
    assert options == {
        *("-h", "--help", "-c", "--config", "-D", "--daemonize", "--check", "--version"),
        *("--try", "--old", "--new", "--listen", "--user"),
    }
    assert "/etc/lmtp-proxy.yml" in text
    assert re.search(r"-c \[CONFIG\], --config \[CONFIG\]", text) or "[CONFIG]" in text


def test_the_version() -> None:
    done = run("--version")
    assert done.returncode == 0 and re.fullmatch(r"lmtp-proxy \d+\.\d+\S*\n", done.stdout), done


@pytest.mark.parametrize("option", ["--bogus", "-x", "surplus"])
def test_unknown_options(option: str) -> None:
    done = run(option)
    assert done.returncode != 0 and "usage" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["-c", "--config"])
def test_check_of_a_good_file(option: str, tmp_path: Path) -> None:
    with FakeBackend() as backend:
        path = tmp_path / "c.yml"
        config = config_of({"a": backend}, socket=str(tmp_path / "s"))
        path.write_text(yaml_of(config))
        done = run("--check", option, str(path))
        assert done.returncode == 0 and len(done.stdout.splitlines()) == 1 and not done.stderr, done
        assert not (tmp_path / "s").exists() and not backend.connections


def test_check_shows_notes_and_a_start_logs_them(tmp_path: Path) -> None:
    with FakeBackend(transport="unix") as backend:
        config = config_of({"a": backend}, owner="nobody-at-all")
        config["backends"]["a"] = {**backend.config, "host": "192.0.2.1", "port": 24}
        with ProxyProcess(config, tcp=True) as proxy:
            line = proxy.wait_log("note: ")
            with proxy.client() as client:
                assert client.deliver("s@x", ["u@a"]).verdict(0).positive
                client.quit()
            assert "config.owner: is ignored: a TCP socket has none" in line
            done = run("--check", "-c", proxy.config_path)
            assert done.returncode == 0 and not done.stderr
            *notes, last = done.stdout.splitlines()
            assert len(notes) == 3 and all(note.startswith(f"note: {proxy.config_path}:") for note in notes)
            assert ": OK: " in last
            assert "active" in proxy.reload()
            proxy.wait_log("reload: note: .*backends.a.host: is ignored: socket stands beside it")


def test_check_of_a_bad_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    path.write_text("config:\n  socket: /tmp/x\n  permisions: 0660\nbackends:\n  a: {socket: /y}\nusers:\n  u: b\n")
    done = run("--check", "-c", str(path))
    text = refused(done)
    assert f"{path}:3: " in text and "permisions" in text and "permissions" in text
    assert f"{path}:7: " in text and not done.stdout


def test_a_missing_configuration() -> None:
    assert "/nowhere/at/all.yml" in refused(run("-c", "/nowhere/at/all.yml"))
    assert "/nowhere/at/all.yml" in refused(run("-D", "-c", "/nowhere/at/all.yml"))


# -- the listening socket ---------------------------------------------------------------------------------------------


@contextmanager
def at_path() -> Iterator[ProxyProcess]:
    """A proxy that is not started yet, with something to be put at its socket's path."""
    with FakeBackend() as backend:
        proxy = ProxyProcess(config_of({"a": backend}), workers=1)
        try:
            yield proxy
        finally:
            proxy.close()


def test_a_stale_socket_is_replaced() -> None:
    with at_path() as proxy:
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(proxy.address))
        proxy.start()
        with proxy.client() as client:
            assert client.deliver("s@x", ["u@a"]).verdict(0).positive
            client.quit()


@pytest.mark.parametrize("arguments", [[], ["-D"]], ids=["foreground", "daemon"])
def test_a_live_socket_is_refused(arguments: list[str]) -> None:
    with at_path() as proxy:
        proxy.start()
        inode = os.stat(str(proxy.address)).st_ino
        assert str(proxy.address) in refused(run(*arguments, "-c", proxy.config_path))
        assert os.stat(str(proxy.address)).st_ino == inode
        with proxy.client() as client:
            assert client.deliver("s@x", ["u@a"]).verdict(0).positive
            client.quit()


def test_a_tcp_address_in_use_is_refused() -> None:
    with FakeBackend() as backend, ProxyProcess(config_of({"a": backend}), tcp=True) as proxy:
        text = refused(run("-c", proxy.config_path))
        assert str(proxy.address[1]) in text
        with proxy.client() as client:
            client.quit()


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "fifo"])
def test_what_is_no_socket_is_kept(kind: str) -> None:
    with at_path() as proxy:
        path = Path(str(proxy.address))
        precious = path.with_name("precious")
        precious.write_text("precious")
        if kind == "file":
            path.write_text("precious")
        elif kind == "directory":
            path.mkdir()
        elif kind == "symlink":
            path.symlink_to(precious)
        else:
            os.mkfifo(path)
        before = os.lstat(path)
        assert str(path) in refused(run("-c", proxy.config_path))
        after = os.lstat(path)
        assert (before.st_ino, before.st_mode, before.st_size) == (after.st_ino, after.st_mode, after.st_size)
        assert precious.read_text() == "precious"


def test_a_socket_in_a_missing_directory() -> None:
    with at_path() as proxy:
        proxy.config["config"]["socket"] = "/nowhere/at/all/s"
        proxy.write_config()
        line = refused(run("-c", proxy.config_path))
        assert "/nowhere/at/all/s" in line and "make its directory, /nowhere/at/all" in line


@pytest.mark.parametrize("mode", ["0600", "0666", "0o660"])
def test_mode_and_owner_of_the_socket(mode: str) -> None:
    owner = "nobody" if IS_ROOT else pwd.getpwuid(os.geteuid()).pw_name
    group = grp.getgrgid(pwd.getpwnam(owner).pw_gid).gr_name if IS_ROOT else grp.getgrgid(os.getegid()).gr_name
    with at_path() as proxy:
        proxy.config["config"].update(permissions=mode, owner=owner, group=group)
        proxy.write_config()
        proxy.spawn()
        path = str(proxy.address)
        deadline = time.monotonic() + SOON
        while not os.path.exists(path):
            assert time.monotonic() < deadline, proxy.log()
        seen = os.stat(path)  # at its first sight, before anyone could connect with other rights
        connectable = stat.S_IMODE(seen.st_mode) & 0o777
        assert connectable & ~int(mode.replace("0o", "0"), 8) == 0, oct(connectable)
        proxy.wait_log("ready: ")
        seen = os.stat(path)
        assert stat.S_IMODE(seen.st_mode) == int(mode.replace("0o", "0"), 8)
        assert (seen.st_uid, seen.st_gid) == (pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid)


def test_an_unknown_owner_is_refused() -> None:
    with at_path() as proxy:
        proxy.config["config"]["owner"] = "no-such-user-here"
        proxy.write_config()
        assert "no-such-user-here" in refused(run("-c", proxy.config_path))


def test_run_as() -> None:
    user = "nobody" if IS_ROOT and readable_by_all(PROGRAM) else pwd.getpwuid(os.geteuid()).pw_name
    with at_path() as proxy:
        os.chmod(proxy.directory, 0o777)
        proxy.config["config"].update(run_as=user, permissions="0666")
        proxy.write_config()
        proxy.start()
        assert proxy.status("Uid") == pwd.getpwnam(user).pw_uid
        assert proxy.status("Gid") == pwd.getpwnam(user).pw_gid
        with proxy.client() as client:
            assert client.deliver("s@x", ["u@a"]).verdict(0).positive
            proxy.route("@b", "a")
            assert client.deliver("s@x", ["u@b"]).verdict(0).positive
            client.quit()


@pytest.mark.skipif(not IS_ROOT, reason="only root can become another user: run the tests as root")
def test_run_as_a_user_who_may_not_read_the_configuration() -> None:
    with at_path() as proxy:
        proxy.config["config"]["run_as"] = "nobody"
        proxy.write_config()
        os.chmod(proxy.config_path, 0o600)
        for more in ((), ("--check",)):  # which the init script asks before it stops the proxy that runs
            assert "nobody may not read" in refused(run(*more, "-c", proxy.config_path))


@pytest.mark.skipif(not IS_ROOT, reason="only root can become another user: run the tests as root")
def test_run_as_a_user_who_may_not_read_the_program(tmp_path: Path) -> None:
    """A large file is loaded by a process of its own, which has to find the program; a small one is not."""
    code = code_of_copy(copied_package(tmp_path))
    os.chmod(tmp_path, 0o700)
    with at_path() as proxy:
        proxy.config["config"]["run_as"] = "nobody"
        for users, status in ((1, 0), (40_000, 1)):
            proxy.config["users"] = {f"user{number}@example.org": "b" for number in range(users)}
            proxy.config["backends"] = {"b": {"socket": "/nonexistent/lmtp"}}
            proxy.write_config()
            done = subprocess.run(
                [sys.executable, "-P", "-c", code, "--check", "-c", proxy.config_path], capture_output=True, text=True
            )
            assert done.returncode == status, done.stderr
        assert "so no reload of so large a file would work" in done.stderr


def readable_by_all(path: Path) -> bool:
    """Whether another user could read the checkout and the interpreter's packages."""
    places = [path, Path(sys.prefix), Path(sys.base_prefix)]
    return all(parent.stat().st_mode & 0o005 == 0o005 for place in places for parent in [place, *place.parents])


def test_the_process_title() -> None:
    with at_path() as proxy:
        proxy.start()

        def title() -> str:
            return Path(f"/proc/{proxy.pid}/cmdline").read_bytes().rstrip(b"\0 ").decode()

        expected = re.escape(f"[{proxy.config_path}]")
        with proxy.client(), proxy.client():
            deadline = time.monotonic() + SOON
            while not re.fullmatch(rf"lmtp-proxy: 2 sessions {expected}", title()):
                assert time.monotonic() < deadline, title()
                time.sleep(0.05)
        deadline = time.monotonic() + SOON
        while not re.fullmatch(rf"lmtp-proxy: 0 sessions {expected}", title()):
            assert time.monotonic() < deadline, title()
            time.sleep(0.05)


@pytest.mark.parametrize("workers", [1, 2])
def test_it_is_found_by_the_name_of_its_command(workers: int) -> None:
    """As `pgrep -x` and the journal look for it, whatever the title is; each worker, too."""
    with FakeBackend() as backend, ProxyProcess(config_of({"a": backend}), workers=workers) as proxy:
        with proxy.client() as client:
            client.quit()
        found = subprocess.run(["pgrep", "-x", "lmtp-proxy"], capture_output=True, text=True).stdout.split()
        assert str(proxy.pid) in found
        assert Path(f"/proc/{proxy.pid}/cmdline").read_bytes().startswith(b"lmtp-proxy: ")
        children = Path(f"/proc/{proxy.pid}/task/{proxy.pid}/children").read_text().split()
        assert len(children) == (workers if workers > 1 else 0) and set(children) <= set(found)
        if (pidof := shutil.which("pidof", path="/bin:/sbin")) is not None:
            done = subprocess.run([pidof, "lmtp-proxy"], capture_output=True, text=True)
            assert str(proxy.pid) in done.stdout.split()
