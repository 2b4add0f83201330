# SPDX-License-Identifier: GPL-3.0-or-later
"""The man pages say what the code does: options, verbs, statuses, keys with defaults, replies, log lines."""

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lmtp_proxy import __version__
from lmtp_proxy.config.read import KEYS, load_config
from lmtp_proxy.config.values import ListenerTls, PemFile
from lmtp_proxy.ctl.command import _parser
from lmtp_proxy.delivery import log as delivery_log
from lmtp_proxy.generations import manager as config_manager
from lmtp_proxy.wire import reply
from lmtp_proxy.wire.reply import Reply
from tests import ROOT
from tests.faults import failure_cases as cases
from tests.faults.failure_cases import Case

PROXY, CTL, YML = (
    (ROOT / "docs" / name).read_text("utf-8") for name in ("lmtp-proxy.8", "lmtp-proxyctl.8", "lmtp-proxy.yml.5")
)


def section(page: str, title: str, kind: str = "Sh") -> str:
    """What stands under a heading, up to the next of its kind or of a higher one."""
    rest = page.split(f"\n.{kind} {title}\n", 1)[1]
    return re.split(r"\n\.Sh " if kind == "Sh" else r"\n\.S[hs] ", rest, maxsplit=1)[0] + "\n"


def help_of(program: str, *verb: str) -> str:
    command = [sys.executable, str(ROOT / "bin" / program), *verb, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def options_in_help(text: str) -> set[str]:
    return set(re.findall(r"(?m)(?:^  |, )(--?[A-Za-z][\w-]*)", text.partition("options:")[2]))


def options_in(page: str) -> set[str]:
    """Those that have an entry of their own, or stand in that of their verb."""
    return {f"-{name}" for line in re.findall(r"(?m)^\.It (.*)", page) for name in re.findall(r"\bFl (\S+)", line)}


def statuses(page: str) -> list[str]:
    return re.findall(r"(?m)^\.It (\d+)$", section(page, "EXIT STATUS"))


# --- the commands ----------------------------------------------------------------------------------------------------


def test_options_of_lmtp_proxy() -> None:
    assert options_in(section(PROXY, "DESCRIPTION")) == options_in_help(help_of("lmtp-proxy"))
    shown = {f"-{name}" for name in re.findall(r"Fl (\S+)", section(PROXY, "SYNOPSIS"))}
    assert shown == {"-h", "-c", "-D", "--check", "--version", "--try", "--old", "--new", "--listen", "--user"}


def test_exit_statuses_of_lmtp_proxy(tmp_path: Path) -> None:
    """Each is reached: 0 by --check of a good file, 1 of a bad one, 2 by a wrong option, 74 on a full disk.

    130 is reached in tests/faults/test_large_tables.py.
    """
    (tmp_path / "good").write_text("config:\n  socket: /run/x\nbackends: {}\n")
    (tmp_path / "bad").write_text("config: {}\n")
    seen = [
        subprocess.run([sys.executable, str(ROOT / "bin/lmtp-proxy"), *arguments], capture_output=True).returncode
        for arguments in (
            ("--check", "-c", str(tmp_path / "good")),
            ("--check", "-c", str(tmp_path / "bad")),
            ("--bogus",),
        )
    ]
    with open("/dev/full", "w") as full:
        program = [sys.executable, str(ROOT / "bin/lmtp-proxy"), "--version"]
        seen.append(subprocess.run(program, stdout=full, stderr=subprocess.PIPE).returncode)
    assert [*map(str, seen), "130"] == statuses(PROXY)


def test_verbs_options_and_exit_statuses_of_lmtp_proxyctl() -> None:
    text = help_of("lmtp-proxyctl")
    verbs = re.findall(r"(?m)^ {4}([a-z]+) {2,}[A-Z]", text)
    assert list(dict.fromkeys(re.findall(r"(?m)^\.It Cm (\S+)", section(CTL, "VERBS")))) == verbs
    common = options_in(section(CTL, "DESCRIPTION"))
    assert common == options_in_help(text)
    for verb in verbs:
        entries = re.findall(rf"(?ms)^\.It Cm {verb}\b.*?(?=^\.It Cm |^\.Sh |\Z)", section(CTL, "VERBS"))
        own = options_in("".join(entries))
        assert own == options_in_help(help_of("lmtp-proxyctl", verb)) - common, verb
    assert statuses(CTL) == re.findall(r"(?m)^  (\d+) ", text.partition("exit status:")[2])


def test_help_texts_end_with_what_one_looks_for() -> None:
    """Statuses and an example that the parser takes; of a verb its own options stand before those of all verbs."""
    text = help_of("lmtp-proxy")
    assert re.findall(r"(?m)^  (\d+) ", text.partition("exit status:")[2]) == statuses(PROXY)
    assert text.splitlines()[-1].startswith("example: lmtp-proxy ")
    for verb in re.findall(r"(?m)^ {4}([a-z]+) {2,}[A-Z]", help_of("lmtp-proxyctl")):
        text = help_of("lmtp-proxyctl", verb)
        [example] = re.findall(r"(?m)^example: lmtp-proxyctl (.*)$", text)
        assert _parser().parse_args(shlex.split(example)).name == verb
        own, common = text.partition("options of all verbs:")[::2]
        assert "--socket" in common and "--socket" not in own.partition("options:")[2], verb


def test_signals() -> None:
    named = set(re.findall(r"Dv (SIG\w+)", section(PROXY, "SIGNALS")))
    assert named == set(re.findall(r"SIG[A-Z]+\d?", help_of("lmtp-proxy")))


# --- the configuration -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A key in the page: its section as in KEYS, and what stands in brackets."""

    section: str
    key: str
    default: str
    restart: bool


def entries() -> Iterator[Entry]:
    for title, kind, name in (
        ("CONFIG", "Sh", "config"),
        ("timeouts", "Ss", "config.timeouts"),
        ("BACKENDS", "Sh", "backends.*"),
    ):
        text = section(YML, title, kind)
        path: list[str] = []
        for line in (text.partition("\n.Ss ")[0] if kind == "Sh" else text).splitlines():
            if line.startswith(".Bl"):
                path.append("")
            elif line.startswith(".El"):
                path.pop()
            elif match := re.fullmatch(r"\.It Cm (\S+)(?: Pq (.*))?", line):
                path[-1] = match[1]
                words = (match[2] or "").replace(r"\&", "").split(", ")
                default = "" if words[0] == "restart" else words[0]
                yield Entry(".".join([name, *path[:-1]]), match[1], default, "restart" in words)


def test_every_key_has_its_entry_and_no_other() -> None:
    shown: dict[str, list[str]] = {}
    for entry in entries():
        shown.setdefault(entry.section, []).append(entry.key)
    missing = {name: keys for name, keys in KEYS.items() if name not in shown}
    assert missing == {"": ("config", "backends", "users"), "backends.*.timeouts": KEYS["backends.*.timeouts"]}
    assert {name: sorted(keys) for name, keys in shown.items()} == {name: sorted(KEYS[name]) for name in shown}, (
        "document each key in docs/lmtp-proxy.yml.5, with its default"
    )
    without = re.findall(r"(?m)^\.Cm (\w+)", section(YML, "BACKENDS").rpartition(".It Cm timeouts")[2])
    assert set(KEYS["config.timeouts"]) - set(KEYS["backends.*.timeouts"]) == set(without)


def test_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    path.write_text("config:\n  socket: /run/x\n  control: {socket: /run/y}\nbackends:\n  a: {socket: /run/z}\n")
    config = load_config(str(path))
    places = {
        "config": config,
        "config.timeouts": config.timeouts,
        "config.control": config.control,
        "config.log": config.log,
        "config.tls": ListenerTls(PemFile("/c", b""), PemFile("/k", b"")),
        "backends.*": config.backends["a"],
    }
    compared = 0
    for entry in entries():
        if entry.default in ("required", "") or entry.key in KEYS or f"{entry.section}.{entry.key}" in KEYS:
            continue
        if entry.key in ("hostname", "socket", "host", "port", "password_file"):  # no value of their own by default
            assert entry.default == "none", entry
            continue
        name = re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", entry.key)
        value = getattr(places[entry.section], name)
        shown: object = entry.default
        if entry.default == "none":
            shown = None
        elif entry.key == "max_removed":
            value = str(value)
        elif entry.key == "permissions":
            shown = int(entry.default, 8)
        elif isinstance(value, bool):
            shown = {"true": True, "false": False}[entry.default]
        elif isinstance(value, int | float):
            shown = float(entry.default)
        assert shown == value, f"{entry.section}.{entry.key} is {value!r} by default"
        compared += 1
    assert compared > 25


def test_what_needs_a_restart() -> None:
    shown = {entry.key for entry in entries() if entry.restart and entry.section == "config"}
    assert shown == set(config_manager._NEEDS_RESTART)


def test_the_example_loads(tmp_path: Path) -> None:
    [block] = re.findall(r"\.Bd .*?\n(.*?)\.Ed", section(YML, "EXAMPLES"), re.DOTALL)
    (tmp_path / "c.yml").write_text(block)
    assert len(load_config(str(tmp_path / "c.yml")).users) == 4


# --- replies ---------------------------------------------------------------------------------------------------------

PHASES: dict[str, list[Case]] = {
    "Connecting": cases.CONNECT,
    "Greeting and LHLO": cases.GREETING,
    "Authentication": cases.AUTH,
    "MAIL": cases.MAIL,
    "RCPT": cases.RCPT,
    "DATA": cases.DATA,
    "The message": cases.BODY,
    "After the final dot": cases.FINAL,
}
"""Which part of the page is about which cases of tests/faults, where the real proxy gives these replies."""


def replies_in(title: str) -> list[str]:
    return re.findall(r"(?m)^\.It (.*)$", section(PROXY, title, "Ss"))


def test_every_case_is_in_a_table() -> None:
    assert [case for group in PHASES.values() for case in group] == cases.CASES


@pytest.mark.parametrize("title", PHASES)
def test_replies_for_what_a_store_does_are_those_of_the_cases(title: str) -> None:
    shown = replies_in(title)
    assert len(shown) == len(set(shown))
    needed, possible = set(), set()
    for case in PHASES[title]:
        for told in (case.first, case.second):
            if told.verbatim:
                needed.add("verbatim")
            elif len(told.replies) == 1:
                needed.add(told.replies[0])
            elif not set(told.replies) & set(shown):
                pytest.fail(f"{case.name}: none of {told.replies} is in the page")
            possible |= set(told.replies)
    if title == "RCPT":  # a bare code with a generic enhanced one is still the store's own
        needed = {text for text in needed if not text.startswith("5")}
    assert needed <= set(shown) <= possible | {"verbatim"}


def test_every_refusal_of_the_proxy_is_in_the_page_and_no_other() -> None:
    ours = {str(value)[:9] for value in vars(reply).values() if isinstance(value, Reply) and value.code >= 400}
    shown = set(re.findall(r"(?m)^\.It (\d{3} \d\.\d\.\d)$", section(PROXY, "REPLIES")))
    assert shown == ours


# --- the log ---------------------------------------------------------------------------------------------------------


def examples(title: str) -> list[str]:
    return [line for block in re.findall(r"\.Bd -literal\n(.*?)\.Ed", section(PROXY, title, "Ss"), re.S)
            for line in block.splitlines()]  # fmt: skip


def test_one_delivery_line_for_each_status() -> None:
    lines = examples("Deliveries")
    form = (
        r"[0-9a-f]{8}: from=<\S*>, to=<\S+>, backend=(?:-|\w+\[\S+\]), size=\d+, delay=\d+\.\d\d, dsn=(\S+), "
        r"status=(\w+) \((.*)\)"
    )
    found = [re.fullmatch(form, line) for line in lines]
    assert all(found), lines
    seen = {match[2] for match in found if match}
    assert seen == {*delivery_log._STATUS.values(), "aborted"}
    titles = re.findall(r"(?m)^\.It status=(\w+)", section(PROXY, "Deliveries", "Ss"))
    assert titles == [match[2] for match in found if match]
    ours = [str(value) for value in vars(reply).values() if isinstance(value, Reply)]
    for match in found:
        if match and match[2] == "deferred":
            assert any(match[3].startswith(text) for text in ours), match[3]
            assert match[1] == match[3].split()[1]
    assert sum("; may be delivered" in line for line in lines) == 1


def test_events_are_written_so() -> None:
    """Each example is what one of the log's formats makes."""
    formats = [
        str(node.args[0].value)
        for path in (ROOT / "lmtp_proxy").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "_log"
        and isinstance(node.args[0], ast.Constant)
    ]
    patterns = [".*".join(map(re.escape, re.split(r"%(?:\.\d)?[sdfg]", text))) for text in formats]
    assert not any(re.fullmatch(pattern, "a line that nobody writes: at all") for pattern in patterns)
    lines = examples("Events")
    assert len(lines) > 5
    for line in lines:
        assert any(re.fullmatch(pattern, line) for pattern in patterns), line
    assert f"lmtp-proxy {__version__} " in lines[0]


# --- the form --------------------------------------------------------------------------------------------------------


def test_the_pages_refer_to_each_other() -> None:
    for page, others in (
        (PROXY, ["lmtp-proxy.yml 5", "lmtp-proxyctl 8"]),
        (CTL, ["lmtp-proxy.yml 5", "lmtp-proxy 8"]),
        (YML, ["lmtp-proxy 8", "lmtp-proxyctl 8"]),
    ):
        assert all(f".Xr {other}" in section(page, "SEE ALSO") for other in others)
