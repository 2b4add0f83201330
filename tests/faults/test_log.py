"""The log is not what mail waits for: a syslog that is absent, gone or full delays no delivery."""

from __future__ import annotations

import os
import socket
import time

import pytest

from tests.support.backend import FakeBackend
from tests.support.client import LmtpClient
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
