"""Clients that go away: before their final dot nothing is delivered and the backends are free at once; after it the
answers are still read and logged."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from tests.faults.conftest import Pair
from tests.support.backend import FakeBackend
from tests.support.client import LmtpClient
from tests.support.http import add_metrics, fetch, series
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import Await, BodyTrigger, Hang, Pause, Script, say

SOON = 5.0  # seconds in which backends are released: one, and what a busy machine adds; deadlines are 60
LARGE = b"x" * 78 + b"\r\n"

WAYS: dict[str, Callable[[LmtpClient], None]] = {
    "half-close": LmtpClient.half_close,
    "close": LmtpClient.close,
    "reset": LmtpClient.reset,
}

SLOW_PHASES = {
    "greeting": Script(greeting=(Hang(),)),
    "lhlo": Script(lhlo=(Hang(),)),
    "mail": Script(mail=(Hang(),)),
    "rcpt": Script(rcpt=(Hang(),)),
    "data": Script(data=(Hang(),)),
}


@pytest.mark.parametrize("phase", SLOW_PHASES)
@pytest.mark.parametrize("way, owner", [*((way, "a") for way in WAYS), ("reset", "b")])
def test_gone_while_a_backend_is_slow(pair: Pair, owner: str, phase: str, way: str) -> None:
    backend: FakeBackend = getattr(pair, owner)
    backend.script = SLOW_PHASES[phase]
    since = pair.proxy.mark()
    client = pair.proxy.client()
    client.send(f"MAIL FROM:<s@x>\r\nRCPT TO:<u@{owner}>\r\n".encode())
    if phase == "data":
        assert client.reply().code == 250 and client.reply().code == 250
        client.send(b"DATA\r\n")
    last = {"greeting": None, "lhlo": b"LHLO", "mail": b"MAIL", "rcpt": b"RCPT", "data": b"DATA"}[phase]
    assert backend.wait_for(
        lambda: (
            bool(backend.connections)
            and (last is None or any(line.upper().startswith(last) for line in backend.connections[0].commands))
        )
    )
    WAYS[way](client)
    assert backend.wait_closed(1, SOON), "the backend is still held"
    pair.proxy.wait_log(rf"from=<s@x>, to=<u@{owner}>.*status=aborted", since=since)
    client.close()
    assert not any(seen.dotted for seen in backend.transactions())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("phase", ["idle", "mail", "rcpt", "data", "body", "dot-incomplete"])
def test_gone_between_commands(pair: Pair, phase: str, way: str) -> None:
    fds = pair.proxy.descriptors()
    client = pair.proxy.client()
    steps = {
        "idle": [],
        "mail": [b"MAIL FROM:<s@x>\r\n"],
        "rcpt": [b"MAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\nRCPT TO:<u@b>\r\n"],
        "data": [b"MAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\nRCPT TO:<u@b>\r\nDATA\r\n"],
        "body": [b"MAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\nRCPT TO:<u@b>\r\nDATA\r\n", b"Subject: x\r\n\r\nhalf"],
        "dot-incomplete": [b"MAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\nRCPT TO:<u@b>\r\nDATA\r\n", b"whole\r\n.\r"],
    }[phase]
    for step in steps:
        client.send(step)
        for _ in range(step.count(b"MAIL") + step.count(b"RCPT") + step.count(b"DATA\r")):
            assert client.reply().code in (250, 354)
    if phase in ("body", "dot-incomplete"):
        time.sleep(0.05)
    WAYS[way](client)
    for backend in (pair.a, pair.b):
        assert backend.wait_closed(1 if phase not in ("idle", "mail") else 0, SOON)
        assert not any(seen.dotted for seen in backend.transactions())
    client.close()
    assert pair.proxy.settles(fds, SOON)


@pytest.mark.parametrize("transport", ["unix", "tcp"])
@pytest.mark.parametrize("way", WAYS)
def test_gone_while_the_body_is_stalled(transport: str, way: str) -> None:
    stalled = Script(body=BodyTrigger(1000, (Hang(),)))
    with (
        FakeBackend(stalled, transport=transport, receive_buffer=4096) as backend,
        ProxyProcess(config_of({"a": backend}, timeouts={"data_write": 30})) as proxy,
    ):
        fds = proxy.descriptors()
        client = proxy.client()
        client.envelope("s@x", ["u@a"])
        client.sock.settimeout(0.5)
        with pytest.raises(TimeoutError):  # everything between the client and the stalled backend is full
            client.send(LARGE * 1_000_000)
        WAYS[way](client)
        assert proxy.settles(fds + (way == "half-close"), SOON), "the stalled backend is still held"
        client.close()
        assert proxy.settles(fds, SOON)
        assert not backend.transactions()[0].dotted


@pytest.mark.parametrize("way", WAYS)
def test_gone_while_held(way: str) -> None:
    with (
        FakeBackend() as backend,
        ProxyProcess(
            config_of({"a": backend}, {"u": "hold", "v": "a"}, ignoreDomain=True, hold_limit=1, hold_timeout=30)
        ) as proxy,
    ):
        for _ in range(2):  # the one place is free again each time
            client = proxy.client()
            client.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\n")
            assert client.reply().code == 250
            assert client.silent(0.2), "not held"
            WAYS[way](client)
            time.sleep(0.3)
            client.close()
        with proxy.client() as client:
            client.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\n")
            assert client.reply().code == 250
            assert client.silent(0.2), "not held"


@pytest.mark.parametrize("way", ["close", "reset"])
def test_after_the_dot_answers_are_still_read_and_logged(pair: Pair, way: str) -> None:
    go = threading.Event()
    pair.a.script = Script(final=(Await(go), *say("250 2.0.0 stored")))
    since = pair.proxy.mark()
    client = pair.proxy.client()
    client.envelope(f"after-{way}@x", ["u@a", "v@a"])
    client.send(b"x\r\n.\r\n")
    assert pair.a.wait_for(lambda: any(seen.dotted for seen in pair.a.transactions()))
    WAYS[way](client)
    time.sleep(0.3)
    assert pair.a.connections[0].ended is None, "the answers after the dot were not waited for"
    go.set()
    for address in ("u@a", "v@a"):
        pair.proxy.wait_log(rf"from=<after-{way}@x>, to=<{address}>.*status=sent \(250 2\.0\.0 stored", since=since)
    assert [recipient.delivered for recipient in pair.a.transactions()[0].recipients] == [True, True]


def unheard(proxy: ProxyProcess) -> int:
    host, port = cast(tuple[str, int], proxy.config["config"]["metrics"])
    found = series(fetch((host, port), "/metrics").text)
    name = "lmtp_proxy_backend_unheard_recipients_total"
    return int(sum(number for (named, _), number in found.items() if named == name))


@pytest.fixture(scope="module", params=["unix", "tcp"])
def counted(request: pytest.FixtureRequest) -> Iterator[tuple[ProxyProcess, FakeBackend]]:
    with FakeBackend() as a, FakeBackend() as b:
        own = ProxyProcess(config_of({"a": a, "b": b}), tcp=request.param == "tcp")
        add_metrics(own)
        with own as proxy:
            yield proxy, a


@pytest.mark.parametrize("said", [b"", b"QUIT\r\n", b"RSET\r\n", b"MAIL FROM:<next@x>\r\n"])
@pytest.mark.parametrize("way", ["close", "reset"])
def test_a_delivery_that_nobody_hears_of_is_said_and_counted(
    counted: tuple[ProxyProcess, FakeBackend], way: str, said: bytes
) -> None:
    """It will send the message again: every copy that a user sees has this cause."""
    proxy, a = counted
    # Over TCP, who said QUIT and closed cannot be told from who said QUIT and listens, before something is sent.
    told = not (isinstance(proxy.address, tuple) and way == "close" and said[:4] == b"QUIT")
    gone = "; client gone" if told else "(?:; client gone)?"
    go = threading.Event()
    a.script = Script(final=(Await(go), *say("250 2.0.0 stored")), final_by={"full@a": say("452 4.2.2 full")})
    since, before, seen = proxy.mark(), unheard(proxy), len(a.transactions())
    client = proxy.client()
    client.envelope("gone@x", ["u@a", "v@a", "full@a", "w@b"])
    client.send(b"x\r\n.\r\n" + said)
    assert a.wait_for(lambda: len(a.transactions()) > seen and a.transactions()[-1].dotted)
    WAYS[way](client)
    time.sleep(0.3)
    go.set()
    for address in ("u@a", "v@a", "w@b"):
        proxy.wait_log(rf"to=<{address}>.*status=sent \(250 2\.0\.0 stored{gone}\)", since=since)
    proxy.wait_log(rf"to=<full@a>.*status=deferred \(452 4\.2\.2 full{gone}\)", since=since)
    assert unheard(proxy) - before == 3 or not told


@pytest.mark.parametrize("said", [b"", b"QUIT\r\n"])
def test_a_client_that_listens_is_not_gone(counted: tuple[ProxyProcess, FakeBackend], said: bytes) -> None:
    proxy, a = counted
    a.script = Script(final=(Pause(0.3), *say("250 2.0.0 stored")))
    since, before = proxy.mark(), unheard(proxy)
    with proxy.client() as client:
        outcome = client.envelope("here@x", ["u@a"])
        client.send(b"x\r\n.\r\n" + said)
        if said:
            client.half_close()
        assert client.finals(outcome).verdict(0).positive
        proxy.wait_log(r"to=<u@a>.*status=sent \(250 2\.0\.0 stored\)", since=since)
    assert unheard(proxy) == before


@pytest.mark.parametrize("half_close", [False, True], ids=["open", "half-closed"])
def test_quit_behind_the_dot_is_no_abort(pair: Pair, half_close: bool) -> None:
    pair.a.script = Script(final=(Pause(0.3), *say("250 2.0.0 stored")))
    with pair.proxy.client() as client:
        outcome = client.envelope("s@x", ["u@a", "v@b", "w@a"])
        client.send(b"x\r\n.\r\nQUIT\r\n")
        if half_close:
            client.half_close()
        client.finals(outcome)
        assert [outcome.verdict(position).positive for position in range(3)] == [True] * 3
        assert client.reply().code == 221
        assert client.at_end()


def test_everything_in_one_write_and_half_closed(pair: Pair) -> None:
    """What `nc` does, but for the DATA that may not be pipelined before its 354: it is here, and must not hurt."""
    with LmtpClient(pair.proxy.address) as client:
        client.send(b"LHLO x\r\nMAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\nDATA\r\nbody\r\n.\r\nQUIT\r\n")
        client.half_close()
        assert [client.reply().code for _ in range(7)] == [220, 250, 250, 250, 354, 250, 221]
        assert client.at_end()


def test_rset_and_quit_release_the_backends(pair: Pair) -> None:
    with pair.proxy.client() as client:
        for last in ("RSET", "QUIT"):
            client.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\nRCPT TO:<u@b>\r\n")
            assert [client.reply().code for _ in range(3)] == [250] * 3
            assert client.command(last).positive
            for backend in (pair.a, pair.b):
                assert backend.wait_closed(1, SOON)


def test_aborted_recipients_are_logged_as_such(pair: Pair) -> None:
    since = pair.proxy.mark()
    client = pair.proxy.client()
    client.envelope("gone@x", ["u@a", "v@b"])
    client.send(b"half")
    client.close()
    for address in ("u@a", "v@b"):
        line = pair.proxy.wait_log(rf"from=<gone@x>, to=<{address}>.*status=", since=since)
        assert "status=aborted" in line and "may be delivered" not in line, line


def test_a_client_that_stalls_is_let_go() -> None:
    with FakeBackend() as backend, ProxyProcess(config_of({"a": backend}, timeouts={"client_idle": 0.5})) as proxy:
        with proxy.client() as client:  # between commands
            assert client.reply().code == 421
            assert client.at_end()
        with proxy.client() as client:  # within a command
            client.send(b"MAIL FR")
            assert client.reply().code == 421
            assert client.at_end()
        with proxy.client() as client:  # within the data
            client.envelope("s@x", ["u@a"])
            client.send(b"half a mess")
            begun = time.monotonic()
            assert backend.wait_closed(1)
            assert time.monotonic() - begun > 0.3
            assert not backend.transactions()[0].dotted
        with proxy.client() as client:  # slow but alive is not idle
            outcome = client.envelope("s@x", ["u@a"])
            for _ in range(5):
                time.sleep(0.2)
                client.send(b"line\r\n")
            assert client.finals_after(outcome, b".\r\n").verdict(0).positive
