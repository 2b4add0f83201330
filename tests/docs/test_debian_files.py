# SPDX-License-Identifier: GPL-3.0-or-later
"""One version everywhere, and one truth for each address, path and time that debian/ repeats."""

import re
import subprocess
from pathlib import Path

from lmtp_proxy import __version__, cli
from lmtp_proxy.config.types import _SECONDS_MAX
from lmtp_proxy.config.values import Config, UnixAddress
from lmtp_proxy.config.yaml_text import Mapping, Scalar, Sequence, read_source
from lmtp_proxy.ctl import arguments as ctl_arguments
from tests import ROOT


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def keys(path: Path) -> dict[str, str]:
    """Every scalar of a configuration by its whole name; an item of a list by its number."""
    found: dict[str, str] = {}

    def walk(name: str, node: object) -> None:
        if isinstance(node, Mapping):
            for key, value in node.entries.items():
                walk(f"{name}.{key}" if name else key, value)
        elif isinstance(node, Sequence):
            for number, item in enumerate(node.items):
                walk(f"{name}.{number}", item)
        elif isinstance(node, Scalar):
            found[name] = node.text

    walk("", read_source(str(path)).document(None).root)
    return found


def test_one_version() -> None:
    assert re.match(r"lmtp-proxy \((\S+)\) ", text("debian/changelog"))[1] == __version__  # type: ignore[index]
    assert re.search(r"(?m)^## \[(\S+)\]", text("CHANGELOG.md"))[1] == __version__  # type: ignore[index]
    assert f"lmtp-proxy {__version__} on" in text("docs/lmtp-proxy.8")


def test_the_first_configuration_is_the_example_with_what_a_package_can_know(tmp_path: Path) -> None:
    made = subprocess.run(
        ["sed", "-f", str(ROOT / "debian/lmtp-proxy.yml.sed"), str(ROOT / "etc/lmtp-proxy.yml")],
        capture_output=True,
        check=True,
    )
    (tmp_path / "c.yml").write_bytes(made.stdout)
    example, first = keys(ROOT / "etc/lmtp-proxy.yml"), keys(tmp_path / "c.yml")
    assert {name: first[name] for name in first.keys() - example.keys()} == {
        "config.run_as": "lmtp-proxy",
        "config.control.socket": "/run/lmtp-proxy/control",
        "config.uncertain_log": "/var/lib/lmtp-proxy/uncertain.log",
        "config.trusted.0": "127.0.0.0/8",
        "config.trusted.1": "::1/128",
        "config.receipts": "/var/lib/lmtp-proxy/receipts.db",
        "config.log.syslog": "/dev/log",
    }
    assert {name: first[name] for name in example} == example


def test_paths() -> None:
    defaults = dict(re.findall(r"(?m)^(\w+)=(\S+)$", text("debian/lmtp-proxy.default")))
    pid = Config("", (UnixAddress(""),), "").pid
    assert defaults == {"CONFIG": cli.DEFAULT_CONFIG, "PIDFILE": pid}
    assert ctl_arguments.DEFAULT_CONFIG == cli.DEFAULT_CONFIG
    script = dict(re.findall(r"(?m)^(CONFIG|PIDFILE)=(\S+)$", text("debian/lmtp-proxy.init")))
    assert script == defaults
    assert f"Environment=CONFIG={cli.DEFAULT_CONFIG}\n" in text("debian/lmtp-proxy.service")
    assert keys(ROOT / "etc/lmtp-proxy.yml")["config.pid"] == pid


def test_the_socket_unit_listens_where_the_first_configuration_does() -> None:
    example = keys(ROOT / "etc/lmtp-proxy.yml")
    address = f"{example['config.socket.0']}:{example['config.socket.1']}"
    assert re.findall(r"(?m)^ListenStream=(.*)$", text("debian/lmtp-proxy.socket")) == [address]


def test_a_stop_has_the_time_that_a_delivery_may_take() -> None:
    longest, _ = _SECONDS_MAX["final_reply"]
    [unit] = re.findall(r"(?m)^TimeoutStopSec=(\d+)$", text("debian/lmtp-proxy.service"))
    [script] = re.findall(r"(?m)^STOP_SECONDS=(\d+)", text("debian/lmtp-proxy.init"))
    assert int(unit) > longest + 30 and int(script) > longest + 30


def test_the_unit_lets_metrics_be_served() -> None:
    unit = text("debian/lmtp-proxy.service")
    [families] = re.findall(r"(?m)^RestrictAddressFamilies=(.*)$", unit)
    assert {"AF_INET", "AF_INET6"} <= set(families.split())
    assert not re.search(r"(?m)^(IPAddressDeny|SocketBindDeny|PrivateNetwork)=", unit)


def test_the_pages_that_man_pages_name_are_in_the_package() -> None:
    install = text("debian/lmtp-proxy.install")
    assert "\ndocs/*.md usr/share/doc/lmtp-proxy/docs\n" in install
    named = {
        path
        for page in (ROOT / "docs").glob("*.[58]")
        for path in re.findall(r"(?m)^\.Pa /usr/share/doc/lmtp-proxy/docs/(\S+)", page.read_text("utf-8"))
    }
    assert len(named) > 1
    for name in named:
        assert name.endswith(".md.gz"), "debhelper compresses what has more than 4 KiB"
        assert (ROOT / "docs" / name.removesuffix(".gz")).stat().st_size > 4096


def test_what_setup_py_asks_for_is_what_the_build_has() -> None:
    [block] = re.findall(r"install_requires=\[(.*?)\]", text("setup.py"), re.DOTALL)
    wanted = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', block))
    debian = {"gevent": "gevent", "PyYAML": "yaml", "python-daemon": "daemon", "setproctitle": "setproctitle",
              "prometheus_client": "prometheus-client", "idna": "idna"}  # fmt: skip
    assert set(wanted) == set(debian)
    for name, least in wanted.items():
        assert f" python3-{debian[name]} (>= {least})" in text("debian/control"), name
        assert f"python3-{debian[name]} " in text("tests/e2e/install.sh"), name
