# SPDX-License-Identifier: GPL-3.0-or-later
"""The installed package under a booted systemd: files with errors, upgrades, the end of a process."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmtp_proxy import __version__
from tests.e2e.process import wait_until

from .booted import Booted, CannotBoot, booted, files_for, in_root, missing_for_booting
from .building import NEXT, next_version

SERVICE, SOCKET = "lmtp-proxy.service", "lmtp-proxy.socket"
CONFIG = "/etc/lmtp-proxy.yml"
BREAK = f"cp -p {CONFIG} /root/good.yml && sed -i 's/^  #*hold_limit: 2/  hold_limit: many/' {CONFIG}"
MEND = f"cat /root/good.yml >{CONFIG}"
WHAT = 'config.hold_limit: must be a whole number from 0 to 1000, not "many"'
_GREETING = """
import socket
with socket.create_connection(("127.0.0.1", 2424), timeout=30) as client:
    client.settimeout(30)
    print(client.recv(100).decode())
"""
_CONNECT = """
import socket
with socket.create_connection(("127.0.0.1", 2424), timeout=30):
    print("connected")
"""


@pytest.fixture(scope="module")
def files(package: Path) -> Path:
    return files_for(package, next_version(package))


@pytest.fixture
def root(files: Path) -> Path:
    """The directory for `in_root`."""
    if (reason := missing_for_booting()) is not None:
        pytest.skip(reason)
    return files


@pytest.fixture
def machine(files: Path, package: Path) -> Iterator[Booted]:
    """One on which the package is installed, and serves."""
    if (reason := missing_for_booting()) is not None:
        pytest.skip(reason)
    try:
        with booted(files) as machine:
            machine.run("dpkg", "-i", f"/mnt/{package.name}")
            assert machine.show(SERVICE, "ActiveState") == "active"
            yield machine
    except CannotBoot as error:
        pytest.skip(str(error))


@pytest.mark.timeout(300)
def test_a_file_with_an_error_closes_the_socket_to_nobody_and_mending_it_is_all_that_is_needed(machine: Booted) -> None:
    machine.shell(BREAK)
    assert WHAT in machine.run("systemctl", "reload", SERVICE, statuses=[1]) + machine.journal()
    assert "220 " in machine.run("python3", "-c", _GREETING), "it does not run as before"
    machine.run("systemctl", "kill", "--signal=KILL", SERVICE)
    wait_until(lambda: machine.journal().count(WHAT) > 7, 120, machine.journal)  # systemd's limit is five
    assert machine.run("python3", "-c", _CONNECT) == "connected\n"
    assert machine.show(SOCKET, "ActiveState") == "active"
    machine.shell(MEND)
    assert "220 " in machine.run("python3", "-c", _GREETING), "who connects waits for it"
    assert machine.show(SERVICE, "ActiveState") == "active"


@pytest.mark.timeout(300)
def test_an_upgrade_with_a_broken_file_leaves_the_old_process_serving_and_says_so(machine: Booted) -> None:
    pid = machine.show(SERVICE, "MainPID")
    machine.shell(BREAK)
    said = machine.run("dpkg", "-i", "/mnt/next.deb")
    assert WHAT in said
    assert f"lmtp-proxy: not restarted: version {__version__} goes on serving as it was, and takes no reload." in said
    assert machine.run("dpkg-query", "-W", "-f", "${Version} ${Status}", "lmtp-proxy") == f"{NEXT} install ok installed"
    assert machine.show(SERVICE, "MainPID") == pid
    assert "220 " in machine.run("python3", "-c", _GREETING)
    machine.shell(MEND)
    said = machine.run("systemctl", "reload", SERVICE, statuses=[1]) + machine.journal()
    assert f"version {NEXT} was installed while {__version__} runs: restart lmtp-proxy" in said
    assert machine.show(SERVICE, "MainPID") == pid
    machine.run("systemctl", "restart", SERVICE)
    assert f'"version": "{NEXT}"' in machine.run("lmtp-proxyctl", "--json", "status")


@pytest.mark.timeout(300)
def test_an_upgrade_restarts_what_runs_and_nothing_else(machine: Booted) -> None:
    pid = machine.show(SERVICE, "MainPID")
    assert machine.show(SERVICE, "StatusText") == "generation 1: 5 users, 2 backends"
    assert pid in machine.run("pgrep", "-x", "lmtp-proxy").split()
    assert "ready: lmtp-proxy" in machine.run("journalctl", "--no-pager", "_COMM=lmtp-proxy")
    machine.run("dpkg", "-i", "/mnt/next.deb")
    assert f'"version": "{NEXT}"' in machine.run("lmtp-proxyctl", "--json", "status")
    assert machine.show(SERVICE, "MainPID") != pid
    machine.run("systemctl", "disable", "--now", SERVICE, SOCKET)
    machine.run("dpkg", "-i", f"/mnt/lmtp-proxy_{__version__}_all.deb")
    assert machine.show(SERVICE, "ActiveState") == machine.show(SOCKET, "ActiveState") == "inactive"


@pytest.mark.timeout(300)
def test_purged_though_its_directory_is_a_mount_point(machine: Booted) -> None:
    machine.run("systemctl", "stop", SERVICE, SOCKET)
    machine.shell("mount -t tmpfs -o mode=0750,uid=lmtp-proxy,gid=lmtp-proxy tmpfs /var/lib/lmtp-proxy")
    machine.run("systemctl", "start", SERVICE)
    machine.shell("touch /var/lib/lmtp-proxy/uncertain.log")
    said = machine.run("dpkg", "--purge", "lmtp-proxy")
    assert "lmtp-proxy: /var/lib/lmtp-proxy could not be removed" in said
    assert machine.run("ls", "-A", "/var/lib/lmtp-proxy") == ""
    assert not re.search("lmtp-proxy", machine.run("getent", "passwd"))


# --- the init.d script, where no systemd runs -------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_a_first_start_that_fails_leaves_the_package_installed(root: Path, package: Path) -> None:
    said = in_root(
        root,
        f"""
        python3 -c 'import socket, time; s = socket.create_server(("127.0.0.1", 2424)); time.sleep(600)' &
        until python3 -c 'import socket; socket.create_connection(("127.0.0.1", 2424))'; do sleep 0.1; done
        dpkg -i /mnt/{package.name}
        dpkg-query -W -f '${{Status}}\n' lmtp-proxy
        kill $!
        service lmtp-proxy start
        service lmtp-proxy status
        """,
    )
    assert "config.socket: cannot listen on 127.0.0.1:2424: Address already in use" in said
    assert "\ninstall ok installed\n" in said


@pytest.mark.timeout(300)
def test_the_script_restarts_only_what_runs_with_try_restart_and_removes_what_run_as_may_not(
    root: Path, package: Path
) -> None:
    said = in_root(
        root,
        f"""
        dpkg -i /mnt/{package.name}
        pid() {{ cat /run/lmtp-proxy.pid; }}
        before=$(pid)
        service lmtp-proxy try-restart
        [ "$(pid)" != "$before" ]
        mkdir /run/of-root
        sed -i 's|/run/lmtp-proxy/control|/run/of-root/control|' {CONFIG}
        service lmtp-proxy restart
        [ -S /run/of-root/control ]
        {BREAK}
        before=$(pid)
        ! service lmtp-proxy try-restart
        [ "$(pid)" = "$before" ]
        {MEND}
        service lmtp-proxy stop
        ls -A /run/of-root
        [ -z "$(ls -A /run/of-root)" ]
        service lmtp-proxy try-restart
        ! service lmtp-proxy status
        """,
    )
    assert "lmtp-proxy: not restarted: what runs goes on as it was" in said
