# SPDX-License-Identifier: GPL-3.0-or-later
"""What the README shows is true: its configuration loads, its replies and numbers are the program's own."""

import re
import subprocess
import sys
from pathlib import Path

from lmtp_proxy.config.read import load_config
from lmtp_proxy.config.values import Timeouts
from lmtp_proxy.wire import reply
from lmtp_proxy.wire.reply import Reply
from tests import ROOT

README = (ROOT / "README.md").read_text("utf-8")


def section(title: str) -> str:
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_first_configuration_loads(tmp_path: Path) -> None:
    [block] = re.findall(r"```yaml\n(.*?)```", section("A first configuration"), re.DOTALL)
    path = tmp_path / "lmtp-proxy.yml"
    path.write_text(block, "utf-8")
    config = load_config(str(path))
    assert sorted(config.backends) == ["new", "old"]
    assert config.users == {
        "alice@example.org": "new",
        "bob@example.org": "old",
        "carol@example.org": "reject",
        "@example.net": "new",
    }
    assert config.fallback_backend == "old"


def test_replies_in_the_table_are_those_of_the_proxy() -> None:
    ours = {str(value)[:9] for value in vars(reply).values() if isinstance(value, Reply)}
    shown = re.findall(r"\| .*(\d{3} \d\.\d\.\d)", section("What your MTA sees"))
    assert len(shown) > 12
    assert set(shown) <= ours


def test_timeouts() -> None:
    text = section("Limits")
    for name in Timeouts.__dataclass_fields__:
        [seconds] = re.findall(rf"`{name}`\s+(\d+)", text)
        assert float(seconds) == getattr(Timeouts(), name), name


def test_verbs_of_lmtp_proxyctl() -> None:
    program = ROOT / "bin" / "lmtp-proxyctl"
    done = subprocess.run([sys.executable, str(program), "--help"], capture_output=True, text=True, check=True)
    verbs = set(re.findall(r"(?m)^ {4}([a-z]+) {2,}[A-Z]", done.stdout))
    assert len(verbs) == 15
    rows = re.findall(r"(?m)^\| (`.*?) \|", section("lmtp-proxyctl"))
    assert set(re.findall(r"`([a-z]+)[ `]", " ".join(rows))) == verbs
    statuses = re.findall(r"(?m)^\| (\d+) \|", section("Moving a user"))
    assert set(statuses) | {"130"} == set(re.findall(r"(?m)^  (\d+) ", done.stdout.partition("exit status:")[2]))
