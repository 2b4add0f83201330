# SPDX-License-Identifier: GPL-3.0-or-later
"""The Debian package: what can be seen without installing it, and its whole life, by the commands of the README."""

import grp
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lmtp_proxy import __version__
from tests import ROOT
from tests.e2e.flow import Flow
from tests.e2e.postfix import DOMAIN
from tests.e2e.process import wait_until

from . import machine as machine_module
from .building import ENVIRONMENT, NEXT, commands_of_the_readme, next_version, run_in
from .conftest import missing_for_installing
from .machine import MARK, in_use, machine_of_our_own, purge
from .site import CONFIG, USERS, Site, command, delivers, reloads, running, service, started

_PLACES = ("/etc", "/lib/systemd", "/run", "/usr/bin", "/usr/lib", "/usr/sbin", "/usr/share", "/var/lib", "/var/log")
# --- without installing ----------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_lintian_has_nothing_to_say(package: Path) -> None:
    [changes] = package.parent.glob("*.changes")
    words = ["lintian", "-EviI", "--pedantic", "--allow-root", "--fail-on", "error,warning", str(changes)]
    done = subprocess.run(words, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=120)
    found = re.findall(r"(?m)^[EW]: .*", done.stdout)
    assert done.returncode == 0 and not found, done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_it_needs_what_debian_has_and_brings_no_conffile_that_a_command_edits(package: Path, tmp_path: Path) -> None:
    fields = subprocess.run(
        ["dpkg-deb", "-f", package, "Depends", "Architecture"], capture_output=True, text=True
    ).stdout
    assert "Architecture: all" in fields
    names = set(re.findall(r"(?:Depends: |, |\| )([a-z0-9-]+)", fields))
    assert {"python3-gevent", "python3-daemon", "python3-yaml", "python3-setproctitle", "python3-idna"} <= names
    assert "python3-prometheus-client" in names
    known = subprocess.run(
        ["apt-cache", "show", *names - {"systemd-sysusers", "systemd-tmpfiles"}], capture_output=True
    )
    assert known.returncode == 0, known.stderr
    subprocess.run(["dpkg-deb", "-e", package, tmp_path / "control"], check=True)
    assert (tmp_path / "control/conffiles").read_text().split() == ["/etc/default/lmtp-proxy", "/etc/init.d/lmtp-proxy"]


@pytest.mark.timeout(300)
def test_the_examples_are_there(package: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "-x", package, tmp_path], check=True)
    examples = tmp_path / "usr/share/doc/lmtp-proxy/examples"
    for name in ("grafana-dashboard.json", "prometheus-alerts.yml"):  # as they are: not compressed
        assert (examples / name).read_bytes() == (ROOT / "etc" / name).read_bytes()


@pytest.mark.timeout(300)
def test_units(package: Path, tmp_path: Path) -> None:
    """systemd finds nothing wrong with them, and little for an attacker to use."""
    subprocess.run(["dpkg-deb", "-x", package, tmp_path], check=True)
    # Debian 12 has them below /lib, 13 below /usr/lib; lintian there wants them so.
    [directory] = (path.parent for path in tmp_path.glob("**/systemd/system/lmtp-proxy.service"))
    units = [directory / f"lmtp-proxy.{kind}" for kind in ("service", "socket")]
    text = units[0].read_text()
    for name in ("lmtp-proxy", "lmtp-proxyctl"):  # where they are now, for the check that they are there
        text = text.replace(f"/usr/bin/{name} ", f"{tmp_path}/usr/bin/{name} ")
    units[0].write_text(text)
    words = ["systemd-analyze", "verify", "--man=no", *map(str, units)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    # Other units of this machine that it loads on the way are not our concern.
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "lmtp-proxy" in line]
    assert complaints == []
    words = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(units[0])]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    [exposure] = re.findall(r"Overall exposure level for \S+: (\d+\.\d)", done.stdout)
    assert float(exposure) <= 2.0, done.stdout


# --- the whole life --------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_a_life(machine: None, tree: Path, package: Path) -> None:
    before = traces()
    build_dep, _, install = commands_of_the_readme()[:3]
    run_in(tree, build_dep)
    with purged_at_last():
        run_in(tree, install)
        is_installed()
        with running() as site:
            started(site)
            service("start")  # once more, and nothing happens
            delivers(site)
            reloads(site)
            upgrade_under_load(site, package)
            starts_after_a_crash_and_a_boot(site)
            stop_waits_for_a_delivery(site)
            service("stop")
        service("status", statuses=[3])
        service("reload", statuses=[7])
        edited = CONFIG.read_bytes()
        command("apt-get", "-o", "DPkg::Lock::Timeout=120", "remove", "-y", "lmtp-proxy")
        assert CONFIG.read_bytes() == edited
        command("apt-get", "-o", "DPkg::Lock::Timeout=120", "purge", "-y", "lmtp-proxy")
    assert traces() - before == set()
    with pytest.raises(KeyError):
        pwd.getpwnam("lmtp-proxy")
    with pytest.raises(KeyError):
        grp.getgrnam("lmtp-proxy")


_INSTALL_AND_HANG = """
import subprocess, sys, time
from tests.packaging.machine import machine_of_our_own
with machine_of_our_own() as used:
    assert used is None, used
    subprocess.run(["apt-get", "-o", "DPkg::Lock::Timeout=120", "-o", "DPkg::Use-Pty=0", "install", "-y", sys.argv[1]])
    time.sleep(600)
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("all_of_it", [False, True], ids=["the run alone", "with apt and dpkg"])
def test_what_a_run_leaves_that_is_killed_amid_the_installation_is_purged_by_the_next(
    package: Path, all_of_it: bool
) -> None:
    """A machine in use without the mark of such a run is left alone."""
    if (reason := missing_for_installing()) is not None:
        pytest.skip(reason)
    run = subprocess.Popen(
        [sys.executable, "-c", _INSTALL_AND_HANG, package],
        cwd=ROOT,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until(lambda: CONFIG.exists() or run.poll() is not None, 180, "the installation")
    finally:
        (os.killpg if all_of_it else os.kill)(run.pid, signal.SIGKILL)
        run.wait()
    assert CONFIG.exists() and MARK.exists(), run.returncode
    with machine_of_our_own() as used:
        assert used is None and in_use() is None
    assert not MARK.exists()


def test_a_machine_in_use_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = tmp_path / "lmtp-proxy.yml"
    monkeypatch.setattr(machine_module, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(machine_module, "MARK", tmp_path / "mark")
    monkeypatch.setattr(machine_module, "_PLACES", (str(place),))
    with machine_of_our_own() as used:
        assert used is None and (tmp_path / "mark").exists()
        place.touch()
    assert (tmp_path / "mark").exists(), "something is left"
    (tmp_path / "mark").unlink()
    with machine_of_our_own() as used:
        assert used is not None and str(place) in used
    assert place.exists() and not (tmp_path / "mark").exists()


def traces() -> set[str]:
    """All that has the name of the package, where packages put things."""
    words = ["find", *_PLACES, "-xdev", "(", "-name", "*lmtp-proxy*", "-o", "-name", "*lmtp_proxy*", ")"]
    return set(subprocess.run(words, capture_output=True, text=True).stdout.splitlines())


@contextmanager
def purged_at_last() -> Iterator[None]:
    """However it ends, the package does not stay, and no process of it."""
    try:
        yield
    finally:
        purge()


def is_installed() -> None:
    status = os.stat(CONFIG)
    account = pwd.getpwnam("lmtp-proxy")
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o640, 0, account.pw_gid)
    assert account.pw_shell == "/usr/sbin/nologin"
    for path, mode in (("/run/lmtp-proxy", 0o755), ("/var/lib/lmtp-proxy", 0o750)):
        status = os.stat(path)
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (mode, account.pw_uid), path
    assert command("lmtp-proxy", "--version").split() == ["lmtp-proxy", __version__]
    command("adduser", "lmtp-proxy", "mail")  # as the README has it: the first store is Cyrus', which may be here
    assert "127.0.0.1:2424" in command("lmtp-proxy", "--check"), "the first configuration is right as it is"
    for page in ("lmtp-proxy.8", "lmtp-proxyctl.8", "lmtp-proxy.yml.5"):
        assert f"/{page}" in command("man", "-w", page)


def upgrade_under_load(site: Site, package: Path) -> None:
    """Mail flows on, dpkg asks nothing, the edited configuration stays, the new version serves."""
    newer = next_version(package)
    before = CONFIG.read_bytes()
    flow = Flow(site.postfix, "upgrade", USERS, rate=20, large_every=50, large_size=2**18)
    with flow.running():
        time.sleep(1)
        command("apt-get", "-o", "DPkg::Lock::Timeout=120", "install", "-y", str(newer))
        # Where a policy forbids starting services, as in a container, it is still the former one that runs.
        service("restart")
        time.sleep(1)
    assert CONFIG.read_bytes() == before
    assert f'"version": "{NEXT}"' in command("lmtp-proxyctl", "--json", "status")
    assert "hold_limit: 3" in Path("/usr/share/doc/lmtp-proxy/examples/lmtp-proxy.yml").read_text()
    site.postfix.flush()
    site.postfix.wait_removed(flow.queue_ids.values(), 30)
    expected = sorted((item.ident, user) for item in flow.messages for user in item.recipients)
    there = sorted(
        (ident, user)
        for user in USERS
        for store in ("old", "new")
        for ident in site.copies(store, user)
        if ident.startswith("upgrade-")
    )
    assert there == expected, "lost, or delivered twice"
    deferred = sum(attempt.status == "deferred" for attempt in site.postfix.attempts(flow.queue_ids.values()))
    print(f"{len(flow.messages)} messages in {flow.seconds:.1f} s with an upgrade; {deferred} deferrals by its restart")


def starts_after_a_crash_and_a_boot(site: Site) -> None:
    """The pid file of a process that was killed is no obstacle, nor is a /run that is empty."""
    pid = int(Path("/run/lmtp-proxy.pid").read_text())
    assert b"/etc/lmtp-proxy.yml" in Path(f"/proc/{pid}/cmdline").read_bytes(), "this number is killed"
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not accepts(site.port), 10, "the end of the process")
    service("status", statuses=[1])
    shutil.rmtree("/run/lmtp-proxy")
    service("start")
    site.deliver("after-a-crash", [USERS[2]])
    assert "after-a-crash" in site.copies("old", USERS[2])


def stop_waits_for_a_delivery(site: Site) -> None:
    """A client that is in the middle of a message when the script is told to stop."""
    user = f"{USERS[1]}@{DOMAIN}"
    ended: list[float] = []

    def stop() -> None:
        service("stop")
        ended.append(time.monotonic())

    with socket.create_connection(("127.0.0.1", site.port), timeout=20) as client, client.makefile("rb") as replies:
        client.sendall(f"LHLO x\r\nMAIL FROM:<s@x>\r\nRCPT TO:<{user}>\r\nDATA\r\n".encode())
        while not (line := replies.readline()).startswith(b"354"):
            assert line, "closed"
        thread = threading.Thread(target=stop)
        thread.start()
        wait_until(lambda: not accepts(site.port), 10, "the end of accepting")
        time.sleep(1)
        assert not ended
        client.sendall(b"X-E2E-Id: last\r\n\r\nx\r\n.\r\n")
        assert replies.readline().startswith(b"250")
        done = time.monotonic()
        thread.join(20)
    assert ended and ended[0] >= done
    assert "last" in site.copies("new", USERS[1])
    service("status", statuses=[3])
    service("start")


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
