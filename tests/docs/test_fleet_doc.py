# SPDX-License-Identifier: GPL-3.0-or-later
"""What docs/fleet.md gives to be copied works: the file, and the script that lets nothing else through."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from lmtp_proxy.ctl.fleet.file import the_fleet
from tests import ROOT
from tests.support.fleet import Hosts

PAGE = (ROOT / "docs" / "fleet.md").read_text("utf-8")
ALICE = "alice@example.org"


def block(language: str) -> str:
    [text] = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(text)


def script(tmp_path: Path, program: str) -> Path:
    path = tmp_path / "lmtp-proxy-fleet"
    text = block("sh")
    assert "exec /usr/bin/lmtp-proxyctl " in text
    path.write_text(text.replace("/usr/bin/lmtp-proxyctl", program))
    path.chmod(0o755)
    return path


def test_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lmtp-proxyctl", "ssh"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "fleet.yml").write_text(block("yaml"))
    with the_fleet(str(tmp_path / "fleet.yml")) as fleet:
        assert [host.name for host in fleet.hosts] == ["mx1", "mx2", "mx3"] and fleet.patience == 30


def test_its_script_lets_a_whole_fleet_through(tmp_path: Path) -> None:
    """By a command that does what ssh and sshd do: arguments become one text, which a forced command is given."""
    with Hosts({ALICE: "old"}, size=2) as fleet:
        forced = script(tmp_path, " ".join(fleet.command("mx2")))
        ssh = tmp_path / "ssh"
        ssh.write_text(f'#!/bin/sh\nshift\nSSH_ORIGINAL_COMMAND="$*" exec {forced}\n')
        ssh.chmod(0o755)
        fleet.commands["mx2"] = [str(ssh), "mx2", "lmtp-proxyctl"]
        fleet.write()
        for words in (("move", ALICE, "reject"), ("move", "--also", "--domain", "example.org", ALICE, "new"),
                      ("drain", ALICE), ("drain", "--all"), ("status",), ("lookup", ALICE)):  # fmt: skip
            ended = fleet.ctl(*words)
            assert ended.status == 0, ended
        assert fleet.lines(ALICE) == ["new", "new"]
        fleet.instead("mx1", 'case "$*" in *-\\ hold) exit 7;; *) exec $real "$@";; esac')
        ended = fleet.ctl("move", ALICE, "old")
        assert ended.status == 1 and "hold was taken back" in ended.error, ended
        assert fleet.lines(ALICE) == ["new", "new"]


@pytest.mark.parametrize(
    "command",
    [
        "",
        "lmtp-proxyctl",
        "lmtp-proxyctl --json reload --force",
        "lmtp-proxyctl --json migrate /tmp/plan",
        "lmtp-proxyctl --json move --file /etc/shadow new",
        "lmtp-proxyctl --json move --file=/etc/shadow new",
        "lmtp-proxyctl --json move -c /tmp/x --file - new",
        "lmtp-proxyctl --json move --socket /tmp/x --file - new",
        "lmtp-proxyctl --json status --fleet /tmp/x",
        "lmtp-proxyctl --json move --fleet /tmp/x --file - new",
        "lmtp-proxyctl --json move --file - new; id",
        "lmtp-proxyctl --json move --file - new\nid",
        "lmtp-proxyctl --json move --file - $(id)",
        "lmtp-proxyctl --json move --file - *",
        "id",
        "sh -c id",
    ],
)
def test_its_script_lets_nothing_else_through(tmp_path: Path, command: str) -> None:
    path = script(tmp_path, "echo RAN")
    environment = {**os.environ, "SSH_ORIGINAL_COMMAND": command}
    done = subprocess.run([path], env=environment, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (126, "")
    assert done.stderr == "lmtp-proxy-fleet: not a command of a fleet\n"


def test_each_status_of_the_man_page_is_in_the_table() -> None:
    page = (ROOT / "docs" / "lmtp-proxyctl.8").read_text("utf-8")
    there = page.partition("\n.Sh SEVERAL HOSTS\n")[2].partition("\n.Sh EXIT STATUS\n")[0]
    statuses = re.findall(r"(?m)^\.It (\d+)$", there)
    assert set(statuses) | {"64"} == set(re.findall(r"(?m)^\| (\d+)", PAGE)) and len(statuses) == 5
