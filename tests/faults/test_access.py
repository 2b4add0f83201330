# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may speak to the proxy: no web page, and without `allow` nobody from a public network."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.support.backend import FakeBackend
from tests.support.client import Disconnected, LmtpClient
from tests.support.private import Network, needs
from tests.support.proxy import PROGRAM, ProxyProcess, config_of

CLOSED = "421 4.7.0 This is LMTP, and that was not; closing connection"
REFUSED = "421 4.7.1"

POST = (
    b"POST / HTTP/1.1\r\nHost: 127.0.0.1:2424\r\nConnection: keep-alive\r\nContent-Length: 96\r\n"
    b'sec-ch-ua: "Chromium";v="144"\r\nContent-Type: text/plain;charset=UTF-8\r\nUser-Agent: Mozilla/5.0\r\n'
    b"Accept: */*\r\nOrigin: http://evil.example\r\nReferer: http://evil.example/\r\n\r\n"
    b"LHLO x\r\nMAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\nDATA\r\nSubject: from a page\r\n\r\nx\r\n.\r\nQUIT\r\n"
)


def until_closed(client: LmtpClient) -> list[int]:
    """The codes of its replies; the last may be lost, where it closes before all is read."""
    codes = []
    try:
        while True:
            codes.append(client.reply().code)
    except Disconnected:
        return codes


@pytest.fixture(scope="module")
def stand() -> Iterator[tuple[ProxyProcess, FakeBackend]]:
    with FakeBackend() as store, ProxyProcess(config_of({"a": store}), tcp=True) as proxy:
        yield proxy, store


@pytest.mark.parametrize(
    "said",
    [
        POST,
        POST.partition(b"\r\n")[2],
        b"GET / HTTP/1.1\r\n" + POST.partition(b"\r\n")[2],
        b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n" + POST.partition(b"\r\n")[2],
        b"connect 127.0.0.1:2424 HTTP/1.1\r\n" + POST.partition(b"\r\n")[2],
    ],
)
@pytest.mark.parametrize("pieces", [False, True])
def test_a_web_page_delivers_nothing(stand: tuple[ProxyProcess, FakeBackend], said: bytes, pieces: bool) -> None:
    """A browser that is made to POST to an allowed host: its headers were 18 mistakes, its body a dialogue."""
    proxy, store = stand
    since = proxy.mark()
    with proxy.client(greeted=False) as client:
        if pieces:
            head, _, _ = said.partition(b"LHLO")
            assert client.reply().code == 220
            client.send(head)
            replies = [client.reply()]
            while replies[-1].code == 500:  # the line that was too long
                replies.append(client.reply())
            assert replies[-1].text == CLOSED and len(replies) <= 2
            assert client.at_end()
        else:
            client.send(said)
            assert set(until_closed(client)) <= {220, 421, 500}
    assert not store.transactions()
    line = proxy.wait_log("closing the connection", since=since)
    assert "from 127." in line and "is no LMTP client" in line
    assert "Mozilla" not in proxy.log()[since:]


def test_a_page_is_no_client_on_a_unix_socket_either() -> None:
    with FakeBackend() as store, ProxyProcess(config_of({"a": store})) as proxy:
        with proxy.client(greeted=False) as client:
            client.send(POST)
            assert set(until_closed(client)) <= {220, 421}
        assert not store.transactions()


# --- by default ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as network:
        network.also("10.99.7")
        yield network


def served(network: Network, store: FakeBackend, host: str = "0.0.0.0", **settings: object) -> ProxyProcess:
    config = config_of({"a": store}, **settings)  # type: ignore[arg-type]
    proxy = ProxyProcess(config, prefix=network.prefix)
    proxy.address = ("192.0.2.1", 2424)
    proxy.config["config"]["socket"] = [host, 2424]
    proxy.write_config()
    return proxy


def greeting(network: Network, host: str) -> str:
    with network.there(), closing(LmtpClient((host, 2424))) as client:
        return client.reply().text


@needs("--net")
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_without_allow_only_private_networks_may_connect(network: Network, host: str) -> None:
    with FakeBackend() as store, served(network, store, host) as proxy:
        started = proxy.wait_log(r"is not on loopback")
        assert 'allow: [0.0.0.0/0, "::/0"]' in started
        assert greeting(network, "10.99.7.1").startswith("220")
        assert greeting(network, "192.0.2.1").startswith(REFUSED)
        line = proxy.wait_log("refused a connection")
        assert "192.0.2.2:" in line and 'allow: [0.0.0.0/0, "::/0"]' in line
        for _ in range(3):
            assert greeting(network, "192.0.2.1").startswith(REFUSED)
        assert proxy.log().count("refused a connection") == proxy.workers or proxy.workers > 1

        proxy.config["config"]["allow"] = ["0.0.0.0/0", "::/0"]
        assert "active" in proxy.reload()
        assert greeting(network, "192.0.2.1").startswith("220")
        del proxy.config["config"]["allow"]
        assert "active" in proxy.reload()
        assert greeting(network, "192.0.2.1").startswith(REFUSED)


@needs("--net")
def test_on_another_address_than_loopback_it_is_the_same(network: Network) -> None:
    with FakeBackend() as store, served(network, store, "192.0.2.1", allow=["192.0.2.2"]) as proxy:
        assert greeting(network, "192.0.2.1").startswith("220")
        assert "loopback" not in proxy.log()


def test_check_names_the_change() -> None:
    with FakeBackend() as store:
        proxy = ProxyProcess(config_of({"a": store}))
        with closing(proxy):
            proxy.config["config"]["socket"] = ["192.0.2.1", 2424]
            proxy.write_config()
            command = [sys.executable, str(PROGRAM), "--check", "-c", proxy.config_path]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert re.search(r"c\.yml:\d+: config\.socket: is not on loopback and there is no allow", done.stdout + done.stderr)
