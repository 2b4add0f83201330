# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration in force as JSON: by the names of the file, with every default, and without a secret."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lmtp_proxy.config.read import KEYS, load_config
from lmtp_proxy.control.json import config_json

ALL = """config:
  socket: /run/s
  owner: root
  group: root
  permissions: 0660
  ignoreDomain: true
  fallback_backend: tcp
  allow: [127.0.0.0/8]
  trusted: ["::1/128"]
  run_as: nobody
  default_domain: example.org
  control: {socket: /run/c, owner: root, group: root}
  metrics: ["::1", 9424]
  log: {syslog: /dev/log}
  uncertain_log: /var/u
  receipts: /var/r
backends:
  tcp: {host: 192.0.2.1, port: 24, user: u, password: hush, timeouts: {connect: 2.5}}
  unix: {socket: /run/lmtp}
users: {}
"""


def shown(path: Path, text: str) -> dict[str, Any]:
    path.write_text(text)
    document = config_json(load_config(str(path)))
    assert json.loads(json.dumps(document)) == document
    return document


def test_every_key_by_its_name_in_the_file(tmp_path: Path) -> None:
    found = shown(tmp_path / "c.yml", ALL)
    config = found["config"]
    assert config.keys() == {*KEYS["config"]}
    assert all(config[name].keys() == {*KEYS[f"config.{name}"]} for name in ("control", "timeouts", "log"))
    tcp, unix = found["backends"]["tcp"], found["backends"]["unix"]
    known = {*KEYS["backends.*"]} - {"password_file"}
    assert tcp.keys() == known - {"socket"} and unix.keys() == known - {"host", "port"}
    assert tcp["timeouts"].keys() == {*KEYS["backends.*.timeouts"]}


def test_values(tmp_path: Path) -> None:
    found = shown(tmp_path / "c.yml", ALL)
    config = found["config"]
    assert (config["socket"], config["metrics"], config["permissions"]) == ("/run/s", ["::1", 9424], "0660")
    assert (config["allow"], config["trusted"]) == (["127.0.0.0/8"], ["::1/128"])
    assert (config["max_removed"], config["ignoreDomain"], config["control"]["permissions"]) == ("10%", True, "0600")
    tcp = found["backends"]["tcp"]
    assert (tcp["host"], tcp["port"], tcp["user"], tcp["timeouts"]["connect"]) == ("192.0.2.1", 24, "u", 2.5)
    assert tcp["password"] == "(set)" and "hush" not in json.dumps(found)
    assert found["backends"]["unix"]["password"] is None


def test_defaults_are_there_and_users_are_not(tmp_path: Path) -> None:
    text = "config: {socket: [127.0.0.1, 24]}\nbackends:\n  a: {socket: /s}\nusers:\n  alice: a\n"
    found = shown(tmp_path / "c.yml", text)
    config = found["config"]
    assert (config["socket"], config["max_clients"], config["control"]) == (["127.0.0.1", 24], 1000, None)
    assert "alice" not in json.dumps(found)
