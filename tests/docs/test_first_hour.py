# SPDX-License-Identifier: GPL-3.0-or-later
"""The README's first configuration is started as it is, and its next section run with it: one user moves.

Only addresses and directories are those of this machine. The stores are scripted, the MTA is a client of ours.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import ROOT
from tests.docs.pages import blocks, replaced, section
from tests.e2e.shell_doc import Command, Shell, differences, steps
from tests.support.backend import FakeBackend
from tests.support.proxy import ProxyProcess

ALICE = "alice@example.org"
QUEUE_ID = "4bXyZ13kQhz9rVJ"
CONFIGURATION = "/etc/lmtp-proxy.yml"
POSTQUEUE = f"""\
#!{sys.executable}
# The queue of an MTA with one mail in it: `postqueue -i ID` has it tried again.
import smtplib, sys
assert sys.argv[1:] == ["-i", "{QUEUE_ID}"], sys.argv
with smtplib.LMTP("ADDRESS") as client:
    client.ehlo_or_helo_if_needed()
    assert client.docmd("XFORWARD IDENT={QUEUE_ID}")[0] == 250
    client.sendmail("bob@example.org", ["{ALICE}"], "Subject: while you were moving\\r\\n\\r\\nHello\\r\\n")
"""


@dataclass
class Site:
    """What the README is about: a proxy with its configuration, two stores, and a shell of an operator."""

    proxy: ProxyProcess
    old: FakeBackend
    new: FakeBackend
    shell: Shell
    meanings: dict[str, str]
    """What stands in the README -> what it is here."""

    def run(self, command: str) -> list[str]:
        """What it prints, as if it were the README's machine."""
        back = {here: there for there, here in self.meanings.items() if "\n" not in there}
        return [replaced(line, back) for line in self.shell.run(replaced(command, self.meanings))]

    def deliver(self, recipient: str, queue_id: str | None = None) -> int:
        with self.proxy.client() as client:
            if queue_id is not None:
                assert client.command(f"XFORWARD IDENT={queue_id}").code == 250
            return client.deliver("bob@example.org", [recipient]).verdict(0).code

    def got(self) -> tuple[int, int]:
        """How many messages the old and the new store have."""
        return len(self.old.transactions("bob@example.org")), len(self.new.transactions("bob@example.org"))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with FakeBackend() as old, FakeBackend(transport="tcp") as new:
        proxy = ProxyProcess({"config": {}, "backends": {}, "users": {}})
        directory = Path(proxy.directory)
        host, port = str(new.config["host"]), str(new.config["port"])
        meanings = {
            "/var/spool/postfix/lmtp-proxy/sock": str(proxy.address),
            "/run/lmtp-proxy/control": str(directory / "control"),
            "/var/lib/lmtp-proxy": str(directory),
            "/run/cyrus/socket/lmtp": str(old.config["socket"]),
            "host: 192.0.2.20\n    port: 24\n": f"host: {host}\n    port: {port}\n",
            "192.0.2.20:24": f"{host}:{port}",
            CONFIGURATION: proxy.config_path,
        }
        [text] = blocks(section("README.md", "A first configuration"), "yaml")
        pid = "config:\n  pid: " + proxy.pid_path  # not that of an lmtp-proxy on this machine
        proxy.write_config(replaced(text, meanings).replace("config:", pid, 1))
        commands = tmp_path / "bin"
        commands.mkdir()
        program = f'#!/bin/sh\nexec {sys.executable} {ROOT}/bin/lmtp-proxyctl -c {proxy.config_path} "$@"\n'
        postqueue = POSTQUEUE.replace("ADDRESS", str(proxy.address))
        for name, text in (("lmtp-proxyctl", program), ("postqueue", postqueue)):
            (commands / name).write_text(text)
            (commands / name).chmod(0o755)
        environment = {"PATH": f"{commands}:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        with proxy, Shell(tmp_path, environment) as shell:
            yield Site(proxy, old, new, shell, meanings)


def moving() -> list[Command]:
    parts = blocks(section("README.md", "Move one user"), "console")
    text = "".join(f"\n\n```console\n{part}```\n" for part in parts)
    return [step for step in steps(text) if isinstance(step, Command)]


def test_one_user_moves_as_the_readme_says(site: Site) -> None:
    assert site.deliver(ALICE) == 250
    assert site.got() == (1, 0)
    done = []
    for step in moving():
        output = site.run(step.text)
        assert site.run("echo $?") == ["0"], output
        assert differences(step.output, output, {}) == [], "\n".join([step.text, *output])
        done.append(step.text)
        if step.text.endswith(f"{ALICE} reject"):
            assert site.deliver(ALICE, QUEUE_ID) == 450
            assert site.got() == (1, 0)
    assert [text.split()[1] for text in done] == ["probe", "lookup", "move", "move", "requeue"]
    assert site.got() == (1, 1), "what waited has come"
    assert site.deliver(ALICE) == 250
    assert site.got() == (1, 2)


def test_all_users_of_it_are_where_the_readme_says(site: Site) -> None:
    assert site.deliver("anybody@example.net") == 250
    assert site.got() == (0, 1)
    assert site.deliver("carol@example.org") == 450
    assert site.deliver("somebody.else@example.com") == 250
    assert site.got() == (1, 1)
