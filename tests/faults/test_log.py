"""The log is not what mail waits for: a syslog that is absent, gone or full delays no delivery."""

from __future__ import annotations

import json
import os
import re
import socket
import tempfile
import time
from pathlib import Path

import pytest

from tests.support.backend import FakeBackend
from tests.support.client import LmtpClient
from tests.support.ctl import ctl
from tests.support.patience import SOON
from tests.support.proxy import ProxyProcess, config_of


def wait_for_socket(proxy: ProxyProcess) -> None:
    deadline = time.monotonic() + SOON
    while True:
        try:
            with LmtpClient(proxy.address) as client:
                client.greet()
                client.quit()
            return
        except OSError:
            assert time.monotonic() < deadline, proxy.log()
            time.sleep(0.02)


@pytest.mark.parametrize("kind", ["full", "gone", "returns"])
def test_a_syslog_that_is_not_there(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("l")
    path = str(directory / "log")
    with FakeBackend(keep_body=False) as backend:
        proxy = ProxyProcess(config_of({"a": backend}, log={"syslog": path}))
        syslog = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            syslog.bind(path)
            proxy.spawn()
            wait_for_socket(proxy)
            if kind != "full":
                syslog.close()
                os.unlink(path)
            with proxy.client() as client:  # who waits for a full socket waits for ever, and a reply does not come
                for number in range(400):  # more than a datagram socket queues
                    assert client.deliver(f"{number}@x", ["u@a", "v@a"]).verdict(0).positive
                client.quit()
            if kind == "returns":
                syslog = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                syslog.bind(path)
                syslog.settimeout(SOON)
                with proxy.client() as client:
                    client.deliver("back@x", ["u@a"])
                    client.quit()
                while b"back@x" not in syslog.recv(65536):  # lines about the lost ones may come first
                    pass
            assert proxy.stop() == 0
        finally:
            syslog.close()
            proxy.close()


def test_a_syslog_of_streams_is_used_as_one(tmp_path: Path) -> None:
    """As syslog-ng's unix-stream: a datagram socket gets EPROTOTYPE there."""
    with FakeBackend() as backend, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as syslog:
        syslog.bind(str(tmp_path / "log"))
        syslog.listen()
        syslog.settimeout(SOON)
        proxy = ProxyProcess(config_of({"a": backend}, log={"syslog": str(tmp_path / "log")}), workers=1)
        try:
            proxy.spawn()
            first, _ = syslog.accept()  # whether it can be reached
            first.close()
            lines, _ = syslog.accept()
            with lines:
                lines.settimeout(SOON)
                wait_for_socket(proxy)
                with proxy.client() as client:
                    client.deliver("one@x", ["u@a", "v@a"])
                    client.quit()
                octets = b""
                while octets.count(b"status=sent") < 2:
                    octets += lines.recv(65536)
            found = [line.decode() for line in octets.split(b"\0") if b"status=sent" in line]
            assert all(re.match(r"<22>lmtp-proxy: \w+: from=<one@x>, to=<[uv]@a>, ", line) for line in found), found
            assert proxy.log() == ""
        finally:
            proxy.close()


def test_where_there_is_no_syslog_start_and_status_say_so() -> None:
    with tempfile.TemporaryDirectory(prefix="lpl", dir="/tmp") as short, FakeBackend() as backend:
        path = Path(short, "log")
        config = config_of({"a": backend}, log={"syslog": str(path)}, control={"socket": f"{short}/control"})
        proxy = ProxyProcess(config)
        try:
            proxy.spawn()
            wait_for_socket(proxy)
            what = f"no syslog at {path}: No such file or directory; up to 10000 lines of the log wait for one"
            assert f"{proxy.config_path}: config.log.syslog: {what}, the rest is lost\n" in proxy.log()
            said = re.sub(r"\n {6,}", " ", ctl("-c", proxy.config_path, "status").out)  # as lines that are not wrapped
            assert re.search(
                rf"(?m)^log +0 lines lost, \d+ lines? waiting: {path}: No such file or directory$", said
            ), said
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
                syslog.bind(str(path))
                syslog.settimeout(SOON)
                assert b"lmtp-proxy" in syslog.recv(65536)
                deadline = time.monotonic() + SOON
                while re.search("(?m)^log ", ctl("-c", proxy.config_path, "status").out):
                    assert time.monotonic() < deadline
        finally:
            proxy.close()


def test_one_object_a_line(tmp_path: Path) -> None:
    with FakeBackend() as backend:
        config = config_of({"a": backend}, {"@a": "a", "r@a": "reject"}, log={"format": "json"})
        proxy = ProxyProcess(config, workers=1)
        try:
            proxy.spawn()
            wait_for_socket(proxy)
            with proxy.client() as client:
                client.deliver('"a, to=<b>"@x', ["u@a", "r@a"])
                client.quit()
            assert proxy.stop() == 0
            found = [json.loads(line) for line in proxy.log().splitlines()]
        finally:
            proxy.close()
    assert {(each["level"], each["pid"] > 1, each["time"][:2]) for each in found} == {("info", True, "20")}
    assert any(each.get("message", "").startswith("ready: lmtp-proxy") for each in found)
    sent, refused = sorted((each for each in found if "session" in each), key=lambda each: each["status"] != "sent")
    common = {"session": sent["session"], "from": '<"a, to=<b>"@x>'}
    assert common.items() <= sent.items() and common.items() <= refused.items()
    assert (sent["to"], sent["dsn"], sent["status"]) == ("<u@a>", "2.0.0", "sent")
    assert sent["backend"].startswith("a[") and sent["size"] > 0 and sent["delay"] >= 0
    assert sent["reply"].startswith("250 ")
    assert (refused["to"], refused["dsn"], refused["status"]) == ("<r@a>", "4.2.1", "deferred")


def test_the_journal_gets_priorities_and_no_times(tmp_path: Path) -> None:
    """JOURNAL_STREAM names the file that standard error is, in systemd's words."""
    directory = tmp_path / "d"
    directory.mkdir()
    (directory / "log").touch()
    status = (directory / "log").stat()
    with FakeBackend() as backend:
        journal = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        proxy = ProxyProcess(config_of({"a": backend}), directory=str(directory), environment=journal, workers=1)
        try:
            proxy.start()
            proxy.write_config("nonsense")
            assert "refused" in proxy.signal_reload()
            assert re.search(r"(?m)^<6>ready: lmtp-proxy ", proxy.log())
            assert re.search(r"(?m)^<3>reload refused: ", proxy.log())
        finally:
            proxy.close()
