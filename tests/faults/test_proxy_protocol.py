# SPDX-License-Identifier: GPL-3.0-or-later
"""The PROXY protocol: whoever a proxy in front names is the client, and nobody else may name one."""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from tests.support.backend import FakeBackend
from tests.support.client import Disconnected, LmtpClient
from tests.support.control import Control, add_control
from tests.support.proxy import ProxyProcess, config_of

PROXY, OTHER = "127.0.9.1", "127.0.9.2"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def version_1(host: str, port: int = 4711) -> bytes:
    return f"PROXY TCP{'6' if ':' in host else '4'} {host} {host} {port} 24\r\n".encode()


def version_2(host: str, port: int = 4711, tlv: bytes = b"\x04\0\x03abc") -> bytes:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    rest = socket.inet_pton(family, host) * 2 + struct.pack("!HH", port, 24) + tlv
    return SIGNATURE + bytes([0x21, 0x21 if ":" in host else 0x11]) + struct.pack("!H", len(rest)) + rest


LOCAL = SIGNATURE + b"\x20\0\0\0"


def controlled(store: FakeBackend, **settings: object) -> ProxyProcess:
    proxy = ProxyProcess(config_of({"a": store}, None, **settings), tcp=True)  # type: ignore[arg-type]
    add_control(proxy)
    return proxy


@pytest.fixture(scope="module")
def store() -> Iterator[FakeBackend]:
    with FakeBackend() as store:
        yield store


@pytest.fixture(scope="module")
def proxy(store: FakeBackend) -> Iterator[ProxyProcess]:
    proxy = controlled(
        store,
        allow=["192.0.2.0/24", "2001:db8::/32", OTHER],
        trusted=["192.0.2.7/32"],
        proxy_protocol=[PROXY],
        timeouts={"client_idle": 2},
    )
    with proxy:
        yield proxy


def connected(proxy: ProxyProcess, said: bytes, source: str = PROXY) -> LmtpClient:
    client = proxy.client(greeted=False, source=source)
    client.send(said)
    return client


def lines(proxy: ProxyProcess, since: int) -> list[str]:
    return [line for line in proxy.log()[since:].splitlines() if line]


def until_closed(client: LmtpClient) -> list[str]:
    replies = []
    try:
        while True:
            replies.append(client.reply().text)
    except Disconnected:
        return replies


@pytest.mark.parametrize("header", [version_1, version_2])
@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_the_client_is_who_it_names(proxy: ProxyProcess, header: object, host: str) -> None:
    with connected(proxy, header(host)) as client:  # type: ignore[operator]
        client.greet()
        sessions = Control(proxy).get("/sessions")["sessions"]
        assert [session["peer"] for session in sessions] == [f"{host}:4711"]
        since = proxy.mark()
        assert client.deliver("s@x", ["u@a"]).verdict(0).positive
        client.send(b"NONSENSE\r\n")
        assert client.reply().code == 500
        client.quit()
    assert f"refused NONSENSE from {host}:4711" in proxy.wait_log("NONSENSE", since=since)


@pytest.mark.parametrize("header", [version_1, version_2])
def test_allow_and_trusted_are_about_the_one_named(proxy: ProxyProcess, header: object) -> None:
    since = proxy.mark()
    with connected(proxy, header("198.51.100.9")) as client:  # type: ignore[operator]
        assert client.reply().text.startswith("421 4.7.1")
        assert client.at_end()
    if header is version_1:  # once a minute
        assert "refused a connection from 198.51.100.9:4711" in proxy.wait_log("refused a connection", since=since)
    for host, trusted in (("192.0.2.7", True), ("192.0.2.8", False)):
        with connected(proxy, header(host)) as client:  # type: ignore[operator]
            assert client.reply().code == 220
            client.send(b"LHLO c\r\n")
            assert ("XFORWARD" in client.reply().text) is trusted


def test_the_header_may_come_octet_by_octet_and_with_all_that_follows(proxy: ProxyProcess, store: FakeBackend) -> None:
    for header in (version_1("192.0.2.1"), version_2("192.0.2.1", tlv=b"\x04\x0f\x00" + b"x" * 3840)):
        with proxy.client(greeted=False, source=PROXY) as client:
            if len(header) < 100:
                client.pieces([header[at : at + 1] for at in range(len(header))])
            else:
                client.pieces([header[:13], header[13:3000], header[3000:]])
            client.greet()
            client.quit()
        before = len(store.transactions())
        mail = b"LHLO c\r\nMAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\nDATA\r\n"
        with connected(proxy, header + mail) as client:
            codes = [client.reply().code for _ in range(5)]
            client.send(b"x\r\n.\r\nQUIT\r\n")
            assert [*codes, client.reply().code] == [220, 250, 250, 250, 354, 250]
        assert len(store.transactions()) == before + 1


@pytest.mark.parametrize(
    "said", [b"LHLO c\r\n", b"PROXY TCP4 192.0.2.1\r\n", SIGNATURE + b"\x31\x11\0\0", b"GET / HTTP/1.1\r\n\r\n"]
)
def test_without_a_header_the_proxys_connection_is_closed(proxy: ProxyProcess, said: bytes) -> None:
    with connected(proxy, said) as client:
        assert until_closed(client) == []


def test_with_none_in_time_it_is_closed_and_each_reason_named_once_a_minute(store: FakeBackend) -> None:
    proxy = controlled(store, proxy_protocol=[PROXY], timeouts={"client_idle": 0.5})
    with proxy:
        began = time.monotonic()
        with proxy.client(greeted=False, source=PROXY) as client:
            assert until_closed(client) == []
        assert time.monotonic() - began > 0.4
        line = proxy.wait_log("refused a connection")
        assert re.search(
            rf"from {PROXY}:\d+: no PROXY header within 0.5 s, which config.proxy_protocol asks of it", line
        )
        for said in (b"PRO", b"LHLO c\r\n") * 2:
            with connected(proxy, said) as client:
                if said == b"PRO":
                    client.half_close()
                assert until_closed(client) == []
        if proxy.workers == 1:
            assert proxy.log().count("refused a connection") == 3  # one of each kind


@pytest.mark.parametrize("header", [version_1("192.0.2.1"), version_2("192.0.2.1"), LOCAL])
def test_from_anybody_else_a_header_closes(proxy: ProxyProcess, store: FakeBackend, header: bytes) -> None:
    before = len(store.transactions())
    mail = b"LHLO c\r\nMAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\nDATA\r\nx\r\n.\r\n"
    with connected(proxy, header + mail, OTHER) as client:
        assert not [text for text in until_closed(client) if text.startswith(("250", "354"))]
    with proxy.client(source=OTHER) as client:
        client.quit()
    assert len(store.transactions()) == before


def test_health_checks_are_no_line_in_the_log(proxy: ProxyProcess) -> None:
    """Nor does `allow` have to name the proxy for them."""
    with connected(proxy, version_1("192.0.2.1")) as client:  # what ends late of the tests before is there by now
        client.greet()
        client.quit()
    since = proxy.mark()
    for said in (b"", LOCAL, version_1("192.0.2.1"), version_2("192.0.2.1")):
        with proxy.client(greeted=False, source=PROXY) as client:
            client.send(said)
        with proxy.client(greeted=False, source=PROXY) as client:
            client.send(said)
            client.reset()
        with proxy.client(greeted=False, source=PROXY) as client:
            client.send(said)
            client.half_close()
            assert until_closed(client) == ["220 " + socket.gethostname() + " LMTP lmtp-proxy ready"] * bool(said)
    with connected(proxy, LOCAL) as client:
        client.greet()
        client.quit()
    with connected(proxy, LOCAL + b"QUIT\r\n") as client:
        assert [text[:3] for text in until_closed(client)] == ["220", "221"]
    with connected(proxy, version_1("192.0.2.1")) as client:
        client.greet()
        assert client.deliver("marker@x", ["u@a"]).verdict(0).positive
        client.quit()
    proxy.wait_log("from=<marker@x>", since=since)
    assert [line for line in lines(proxy, since) if "marker@x" not in line] == []


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", SIGNATURE + b"\x21\0\0\0"])
def test_who_is_not_named_counts_as_the_proxy_itself(proxy: ProxyProcess, header: bytes) -> None:
    """`allow` does not name it. HAProxy's checks in version 1, which has no LOCAL, say nothing behind this header."""
    since = proxy.mark()
    with connected(proxy, header) as client:
        assert client.reply().text.startswith("421 4.7.1")
    with connected(proxy, version_1(PROXY)) as client:
        client.reset()
    with proxy.client(source=OTHER) as client:
        assert client.deliver("marker@x", ["u@a"]).verdict(0).positive
        client.quit()
    proxy.wait_log("from=<marker@x>", since=since)
    assert "refused" not in proxy.log()[since:]
    with connected(proxy, header + b"LHLO c\r\n") as client:
        assert client.reply().text.startswith("421 4.7.1")
    if header.startswith(b"PROXY"):  # once a minute
        proxy.wait_log(rf"refused a connection from {PROXY}:\d+: not in config.allow", since=since)


def test_a_reload_switches_it_on_and_off(store: FakeBackend) -> None:
    with controlled(store) as proxy:
        with proxy.client(source=PROXY) as client:
            client.quit()
        proxy.config["config"]["proxy_protocol"] = [PROXY]
        assert "active" in proxy.reload()
        with connected(proxy, version_2("127.0.9.3")) as client:
            client.greet()
            client.quit()
        del proxy.config["config"]["proxy_protocol"]
        assert "active" in proxy.reload()
        with proxy.client(source=PROXY) as client:
            client.quit()


def test_one_who_has_not_said_it_does_not_hold_up_a_stop(store: FakeBackend) -> None:
    with (
        controlled(store, proxy_protocol=[PROXY]) as proxy,
        proxy.client(greeted=False, source=PROXY),
        connected(proxy, version_1("127.0.0.1")) as client,
    ):
        client.greet()
        began = time.monotonic()
        assert proxy.stop() == 0
        assert time.monotonic() - began < 9.0
