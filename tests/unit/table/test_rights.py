# SPDX-License-Identifier: GPL-3.0-or-later
"""A database that cannot be written is an error of a check, and keeps no start away; another proxy of it does."""

from pathlib import Path

import pytest

from lmtp_proxy import check
from lmtp_proxy.config.read import load_config
from lmtp_proxy.config.values import Config, ConfigError
from lmtp_proxy.start.table_owner import TableOwner


def config_of(tmp_path: Path, database: str = "table.db") -> Config:
    path = tmp_path / "c.yml"
    path.write_text(f"""\
config: {{socket: {tmp_path}/s, table: {{sqlite: {tmp_path}/{database}}}}}
backends: {{old: {{host: 192.0.2.1, port: 24}}}}
""")
    return load_config(str(path))


def test_rights_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "table.db").touch()
    config = config_of(tmp_path)
    monkeypatch.setattr(check, "_may", lambda _config, path, _mode: not path.endswith("table.db"))
    check.check_files(config)  # what a start asks
    assert any("cannot write" in note for note in check.check(config, stores=False))
    with pytest.raises(ConfigError, match=r"config\.table\.sqlite: .* cannot write"):
        check.check(config)


def test_one_owner(tmp_path: Path) -> None:
    (tmp_path / "table.db").touch()
    (tmp_path / "link.db").symlink_to("table.db")
    TableOwner(config_of(tmp_path)).acquire()
    for name in ("table.db", "link.db"):
        with pytest.raises(ConfigError, match="another lmtp-proxy serves by this table"):
            TableOwner(config_of(tmp_path, name)).acquire()
    TableOwner(config_of(tmp_path, "other.db")).acquire()
    (tmp_path / "third.db.copy.owner").symlink_to("table.db")
    with pytest.raises(ConfigError, match="cannot open"):
        TableOwner(config_of(tmp_path, "third.db")).acquire()
