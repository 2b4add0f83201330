# SPDX-License-Identifier: GPL-3.0-or-later
"""The completion for bash offers the verbs and options that there are."""

import re
import subprocess
from pathlib import Path

import pytest

from tests import ROOT
from tests.docs.test_man_pages import help_of, options_in_help

SCRIPT = ROOT / "etc" / "bash-completion" / "lmtp-proxyctl"


def offered(*words: str, cwd: str | Path = "/") -> set[str]:
    """What bash offers for the last of the words."""
    function = "_lmtp_proxy" if words[0] == "lmtp-proxy" else "_lmtp_proxyctl"
    script = f'. "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); {function}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    command = ["/bin/bash", "--norc", "-c", script, "bash", str(SCRIPT), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd)
    assert not done.stderr
    return set(done.stdout.split())


VERBS = re.findall(r"(?m)^ {4}([a-z]+) {2,}[A-Z]", help_of("lmtp-proxyctl"))


def test_options_of_lmtp_proxy() -> None:
    assert offered("lmtp-proxy", "-") == options_in_help(help_of("lmtp-proxy"))
    assert "etc/" in {name + "/" for name in offered("lmtp-proxy", "-c", "et")}


def test_verbs_and_options_of_lmtp_proxyctl() -> None:
    assert offered("lmtp-proxyctl", "") == {*VERBS, *options_in_help(help_of("lmtp-proxyctl"))}
    assert offered("lmtp-proxyctl", "--socket", "/x", "dr") == {"drain"}


@pytest.mark.parametrize("verb", VERBS)
def test_options_of_each_verb(verb: str) -> None:
    assert offered("lmtp-proxyctl", "--json", verb, "-") == options_in_help(help_of("lmtp-proxyctl", verb))


def test_what_move_moves_to() -> None:
    assert offered("lmtp-proxyctl", "move", "alice", "") >= {"reject", "hold"}
    assert offered("lmtp-proxyctl", "move", "alice", "re") == {"reject"}


def test_what_migrate_takes(tmp_path: Path) -> None:
    """Its verbs, and plans: nothing else that lies about."""
    for name in ("plan.yml", "other.yaml", "plan.yml.bak", "users.txt"):
        (tmp_path / name).touch()
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "in.yml").touch()
    verbs = {"status", "report", "release", "reset", "pause", "resume", "jobs"}
    assert offered("lmtp-proxyctl", "migrate", "", cwd=tmp_path) == {*verbs, "plan.yml", "other.yaml"}
    assert offered("lmtp-proxyctl", "migrate", "pl", cwd=tmp_path) == {"plan.yml", "plans"}
    assert offered("lmtp-proxyctl", "migrate", "plans/", cwd=tmp_path) == {"plans/in.yml"}
    assert offered("lmtp-proxyctl", "migrate", "status", "", cwd=tmp_path) == {"plan.yml", "other.yaml"}
