# SPDX-License-Identifier: GPL-3.0-or-later
"""What docs/migration.md and its appendix say of the proxy is so; their commands are run by tests/e2e."""

import re
from pathlib import Path

import pytest

from lmtp_proxy.config.read import load_config
from lmtp_proxy.config.values import Config
from lmtp_proxy.ctl import command as ctl
from lmtp_proxy.ctl.migrate import DEFAULT_JOURNAL
from lmtp_proxy.ctl.migrate.plan import parse_plan
from tests import ROOT

PAGE = "".join((ROOT / "docs" / name).read_text("utf-8") for name in ("migration.md", "migration-by-hand.md"))


def load(tmp_path: Path) -> Config:
    block, _plan = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "lmtp-proxy.yml"
    path.write_text(block, "utf-8")
    return load_config(str(path))


def test_its_configuration_loads(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert sorted(config.backends) == ["new", "old"]
    assert config.control is not None and config.uncertain_log is not None
    assert config.fallback_backend == "old"


def test_its_plan_is_one() -> None:
    _config, text = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    plan = parse_plan(text, "migrate.yml")
    assert (plan.old, plan.new, plan.park, plan.journal) == ("old", "new", "reject", DEFAULT_JOURNAL)


def test_the_limits_of_hold_are_the_defaults(tmp_path: Path) -> None:
    config = load(tmp_path)
    shown = {name: float(value) for name, value in re.findall(r"`(hold_\w+)` \((\d+)", PAGE)}
    assert shown == {"hold_limit": config.hold_limit, "hold_timeout": config.hold_timeout}


def test_its_exit_statuses_are_those_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        ctl.main(["--help"])
    assert ended.value.code == 0
    listed = re.findall(r"^  (\d+)  ", capsys.readouterr().out.split("exit status:")[1], re.MULTILINE)
    assert re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE) == listed


def test_its_verbs_and_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    verbs = set(re.findall(r"(?:`|# )lmtp-proxyctl ([a-z]+)", PAGE))
    assert {"move", "drain", "status", "uncertain"} <= verbs
    options = dict[str, str]()
    for verb in verbs:
        with pytest.raises(SystemExit) as ended:
            ctl.main([verb, "--help"])
        assert ended.value.code == 0, verb
        options[verb] = capsys.readouterr().out
    for verb, option in re.findall(r"lmtp-proxyctl ([a-z]+)[^`\n]*? (--[a-z-]+)", PAGE):
        assert option in options[verb], (verb, option)


def test_its_anchors_in_the_tree_exist() -> None:
    for path in re.findall(r"`(tests/[\w./]+)`", PAGE):
        assert (ROOT / path).exists(), path
