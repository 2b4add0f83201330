# SPDX-License-Identifier: GPL-3.0-or-later
"""The first of several addresses that takes a connection, on loopback; a full backlog is an address that is silent."""

import errno
import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from lmtp_proxy.loop.connect import connect, in_turn
from lmtp_proxy.loop.resolve import SocketAddress


def v4(host: str, port: int = 24) -> SocketAddress:
    return SocketAddress(socket.AF_INET, (host, port))


def v6(host: str, port: int = 24) -> SocketAddress:
    return SocketAddress(socket.AF_INET6, (host, port, 0, 0))


A4, B4, C4, A6, B6 = v4("192.0.2.1"), v4("192.0.2.2"), v4("192.0.2.3"), v6("2001:db8::1"), v6("2001:db8::2")


@pytest.mark.parametrize(
    "given, first, last, expected",
    [
        ([], None, None, []),
        ([A4], None, None, [A4]),
        ([A6, B6, A4, B4, C4], None, None, [A6, A4, B6, B4, C4]),
        ([A4, A6, B6], None, None, [A4, A6, B6]),
        ([A6, B6, A4], B6, None, [B6, A6, A4]),
        ([A6, B6, A4], None, A6, [A4, B6, A6]),
        ([A6, B6, A4], A4, A6, [A4, B6, A6]),
        ([A6, A4], B4, B6, [A6, A4]),  # both have gone from the name
        ([A4], None, A4, [A4]),
    ],
)
def test_families_take_turns_behind_the_one_that_worked(
    given: list[SocketAddress], first: SocketAddress, last: SocketAddress, expected: list[SocketAddress]
) -> None:
    assert in_turn(given, first, last) == expected


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def listening(stack: ExitStack, backlog: int = 8) -> tuple[socket.socket, SocketAddress]:
    listener = stack.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    listener.listen(backlog)
    return listener, v4(*listener.getsockname())


def silent(stack: ExitStack) -> SocketAddress:
    _, address = listening(stack, 0)
    for _ in range(64):
        filler = stack.enter_context(socket.socket())
        filler.setblocking(False)
        if filler.connect_ex(address.address) and not select.select([], [filler], [], 0.2)[1]:
            return address
    raise AssertionError("the backlog does not fill up")


def refusing(stack: ExitStack) -> SocketAddress:
    bound = stack.enter_context(socket.socket())
    bound.bind(("127.0.0.1", 0))
    return v4(*bound.getsockname())


@contextmanager
def took(least: float, most: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert least <= time.monotonic() - began < most


def connected(addresses: list[SocketAddress], seconds: float) -> SocketAddress:
    sock, address = connect(addresses, time.monotonic() + seconds)
    assert sock.getpeername() == address.address and sock.gettimeout() == 0.0
    sock.close()
    return address


def test_one_that_listens_is_connected_to(stack: ExitStack) -> None:
    _, address = listening(stack)
    assert connected([address], 10) == address


def test_behind_those_that_refuse_it_is_there_at_once(stack: ExitStack) -> None:
    _, address = listening(stack)
    with took(0, 5):  # 100 head starts are 25 s
        assert connected([*(refusing(stack) for _ in range(100)), address], 60) == address


def test_it_does_not_wait_for_one_that_is_silent(stack: ExitStack) -> None:
    _, address = listening(stack)
    addresses = [silent(stack), address]
    with took(0.2, 10):
        assert connected(addresses, 60) == address


def test_with_many_that_are_silent_each_has_its_share_of_the_time(stack: ExitStack) -> None:
    _, address = listening(stack)
    addresses = [*(silent(stack) for _ in range(12)), address]
    with took(0.5, 2.0):  # the head starts of twelve are 3 s
        assert connected(addresses, 2.0) == address


def test_an_earlier_one_may_still_win(stack: ExitStack) -> None:
    """It has room again when the next one is tried, too: the kernel repeats the SYN after a second."""
    listener, slow = listening(stack, 0)
    fillers = [stack.enter_context(socket.socket()) for _ in range(4)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(slow.address)
    other = silent(stack)
    listener.settimeout(5)
    listener.accept()[0].close()
    assert connected([slow, other], 10) == slow


def test_all_that_are_silent_end_at_the_deadline(stack: ExitStack) -> None:
    addresses = [silent(stack), silent(stack)]
    with took(0.4, 5), pytest.raises(TimeoutError, match=r"^no connection in 0\.5 s$"):
        connected(addresses, 0.5)


def test_the_deadline_may_have_passed(stack: ExitStack) -> None:
    _, address = listening(stack)
    with pytest.raises(TimeoutError):
        connected([address], -1)


def test_one_that_refuses_says_so(stack: ExitStack) -> None:
    with took(0, 5), pytest.raises(OSError, match="Connection refused") as raised:
        connected([refusing(stack)], 60)
    assert raised.value.errno == errno.ECONNREFUSED


def test_each_of_several_is_told_of(stack: ExitStack) -> None:
    refused, dumb = refusing(stack), silent(stack)
    with pytest.raises(OSError) as raised:
        connected([refused, v6("::ffff:127.0.0.1", refused.address[1])], 10)
    assert str(raised.value) == "127.0.0.1: Connection refused; ::ffff:127.0.0.1: Connection refused"
    assert not isinstance(raised.value, TimeoutError)
    with pytest.raises(TimeoutError, match=r"Connection refused; 127\.0\.0\.1: no connection in 0\.5 s"):
        connected([refused, dumb], 0.5)


def test_no_socket_is_left_open(stack: ExitStack) -> None:
    _, address = listening(stack)
    addresses = [silent(stack), refusing(stack), address]
    dumb = [silent(stack)]
    before = len(os.listdir("/proc/self/fd"))
    connected(addresses, 10)
    with pytest.raises(TimeoutError):
        connected(dumb, 0.1)
    assert len(os.listdir("/proc/self/fd")) <= before
