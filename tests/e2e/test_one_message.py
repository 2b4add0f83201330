# SPDX-License-Identifier: GPL-3.0-or-later
"""One message never becomes two, whatever a store takes for the end of it."""

import smtplib

import pytest

from .conftest import Stack, Start
from .mail import SENDER, message, read_back
from .postfix import DOMAIN

SECOND = (
    f"MAIL FROM:<{SENDER}@{DOMAIN}>\r\nRCPT TO:<%s@{DOMAIN}>\r\nDATA\r\n"
    "X-E2E-Id: second\r\nSubject: second\r\n\r\nText.\r\n.\r\n"
)
"""Lines of a message that a store must not take for commands."""

# As the client sends them: the dots are not stuffed. Each is followed by SECOND.
AMBIGUOUS = {
    "LF.LF": b"\n.\n",
    "LF.CRLF": b"\n.\r\n",
    "CRLF.LF": b"\r\n.\n",
    "CR.CR": b"\r.\r",
    "CR.CRLF": b"\r.\r\n",
    "CRLF.CR": b"\r\n.\r",
}

CYRUS_PIECE = 8189
"""Cyrus 3.6 reads a line in pieces of so many octets and looks for the final dot at the start of each."""


def stored_after(stack: Stack, store: str, start_proxy: Start, end: bytes) -> tuple[list[bytes], int]:
    """Sends a message with `end` and SECOND in it. Returns the proxy's final reply, and how many were stored."""
    (user,) = stack.users(1)
    start_proxy(stack.config({user: store}))
    with smtplib.LMTP(str(stack.proxy_socket), timeout=20) as client:
        client.ehlo()
        client.mail(f"{SENDER}@{DOMAIN}")
        client.rcpt(f"{user}@{DOMAIN}")
        client.putcmd("DATA")
        assert client.getreply()[0] == 354
        # what follows the ambiguous end is again unambiguous: stuffed, and ended
        rest = (SECOND % user).replace("\r\n.\r\n", "\r\n..\r\n").encode("ascii")
        client.send(message("first", [user]).content + b"Text" + end + rest + b".\r\n")
        code, text = client.getreply()
    stored = sum(len(copies) for copies in read_back(stack.stores, [user]).values())
    return [str(code).encode("ascii"), text], stored


@pytest.mark.parametrize("store", ["old", "new"])
@pytest.mark.parametrize("end", AMBIGUOUS)
def test_a_lone_dot_that_a_store_may_take_for_the_end(stack: Stack, start_proxy: Start, end: str, store: str) -> None:
    (code, text), stored = stored_after(stack, store, start_proxy, AMBIGUOUS[end])

    assert code == b"550" and text.startswith(b"5.6.0"), text
    assert stored == 0


@pytest.mark.parametrize("store", ["old", "new"])
@pytest.mark.parametrize(
    "line",
    [
        b"x" * CYRUS_PIECE,
        b"x" * (2 * CYRUS_PIECE),
        b"x" * (CYRUS_PIECE - 1) + b"\r" + b"y" * (CYRUS_PIECE - 1),  # a CR that would end a piece begins the next
        b"abc d" + b"x" * (CYRUS_PIECE - 1),  # no header: the first piece begins behind "abc "
    ],
    ids=["one piece", "two pieces", "CR at the cut", "header ends amid the line"],
)
def test_a_dot_where_cyrus_cuts_a_long_line(stack: Stack, start_proxy: Start, line: bytes, store: str) -> None:
    (code, text), stored = stored_after(stack, store, start_proxy, b"\r\n" + line + b".\r\n")

    assert code == b"550" and text.startswith(b"5.6.0"), text
    assert stored == 0
