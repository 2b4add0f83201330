# SPDX-License-Identifier: GPL-3.0-or-later
"""What README and the pages of docs/ show is true: configurations, replies, verbs and numbers are the program's own."""

import re
import subprocess
import sys
from pathlib import Path

from lmtp_proxy.config.read import load_config
from lmtp_proxy.config.values import Timeouts
from lmtp_proxy.wire import reply
from lmtp_proxy.wire.reply import Reply
from tests import ROOT
from tests.docs.pages import blocks, section, text_of


def test_it_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= 200


def test_first_configuration_loads(tmp_path: Path) -> None:
    [block] = blocks(section("README.md", "A first configuration"), "yaml")
    path = tmp_path / "lmtp-proxy.yml"
    path.write_text(block, "utf-8")
    config = load_config(str(path))
    assert sorted(config.backends) == ["new", "old"]
    assert config.users == {
        "alice@example.org": "old",
        "bob@example.org": "old",
        "carol@example.org": "reject",
        "@example.net": "new",
    }
    assert config.fallback_backend == "old"
    assert config.control is not None and config.uncertain_log is not None and config.receipts is not None


def test_the_configuration_for_a_try_loads(tmp_path: Path) -> None:
    [block] = blocks(section("docs/try-it.md", "Your own stores"), "yaml")
    path = tmp_path / "try.yml"
    path.write_text(block, "utf-8")
    config = load_config(str(path))
    assert config.users == {} and config.fallback_backend == "old" and config.control is not None
    assert "--port 2424" in text_of("docs/try-it.md") and "inet:[127.0.0.1]:2424" in text_of("docs/try-it.md")


def test_replies_in_the_table_are_those_of_the_proxy() -> None:
    ours = {str(value)[:9] for value in vars(reply).values() if isinstance(value, Reply)}
    shown = re.findall(r"\| .*(\d{3} \d\.\d\.\d)", text_of("docs/reference/replies.md"))
    assert len(shown) > 12
    assert set(shown) <= ours


def test_timeouts() -> None:
    text = section("docs/stores.md", "Limits")
    for name in Timeouts.__dataclass_fields__:
        [seconds] = re.findall(rf"`{name}`\s+(\d+)", text)
        assert float(seconds) == getattr(Timeouts(), name), name


def test_verbs_of_lmtp_proxyctl() -> None:
    program = ROOT / "bin" / "lmtp-proxyctl"
    done = subprocess.run([sys.executable, str(program), "--help"], capture_output=True, text=True, check=True)
    verbs = set(re.findall(r"(?m)^ {4}([a-z]+) {2,}[A-Z]", done.stdout))
    assert len(verbs) == 16
    rows = re.findall(r"(?m)^\| (`.*?) \|", section("docs/operating.md", "lmtp-proxyctl"))
    assert set(re.findall(r"`([a-z]+)[ `]", " ".join(rows))) == verbs
    statuses = re.findall(r"(?m)^\| (\d+) \|", section("docs/move.md", "Exit statuses"))
    assert set(statuses) | {"130"} == set(re.findall(r"(?m)^  (\d+) ", done.stdout.partition("exit status:")[2]))


def cells(text: str, first: str) -> list[str]:
    """The row of a table that begins so."""
    [row] = re.findall(rf"(?m)^\| {re.escape(first)}(?:, [^|]*)? \|(.*)\|$", text)
    return [cell.strip() for cell in row.split("|")]


def test_what_it_costs_is_what_was_measured() -> None:
    """The figures of README are those of docs/performance.md; who renews the one renews the other."""
    page, shown = text_of("docs/performance.md"), section("README.md", "What it costs")
    small, large, users = (
        page.split(f"\n### {title}", 1)[1].split("\n### ", 1)[0]
        for title in ("B: connection kept", "D: messages of 10 MiB", "F: tables of many users")
    )
    for name, measured in (
        ("HAProxy", "HAProxy TCP"),
        ("lmtp-proxy", "lmtp-proxy"),
        ("Dovecot's LMTP proxy", "Dovecot LMTP proxy"),
    ):
        [row_small, row_large] = (
            re.findall(rf"(?m)^\| {re.escape(measured)} \|(.*)\|$", table)[0].split("|") for table in (small, large)
        )
        micro, milli, memory = cells(shown, name)
        assert micro == f"{float(row_small[0]):.0f} µs", name
        assert milli in (f"{float(row_large[0]):.1f} ms", f"{float(row_large[0]):.0f} ms"), name
        assert memory == f"{float(row_small[5]):.1f} MB", name
    last = {
        name: re.findall(rf"(?m)^\| {name}.*\| ([^|]*) \|$", users)[0]
        for name in ("reload, idle: until", "reload under load B: until", "reload: PSS")
    }
    stalls = [float(each) for each in re.findall(r"(?m)^\| longest stall .*\| ([\d.]+) \([^|]*\) \|$", users)]
    text = " ".join(shown.split())
    assert f"after {last['reload, idle: until']} s on an idle machine" in text
    assert f"{last['reload under load B: until']} s under load" in text
    assert f"was {max(stalls[0], stalls[2])} ms" in text
    assert f"took {last['reload: PSS'].split(', ')[2]} MB" in text
