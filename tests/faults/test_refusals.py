# SPDX-License-Identifier: GPL-3.0-or-later
"""What the proxy refuses itself is in the log: each message and recipient, and each other mistake once a session."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.support.backend import FakeBackend
from tests.support.client import Disconnected
from tests.support.proxy import ProxyProcess, config_of

MAIL, RCPT, DATA = b"MAIL FROM:<s@x>\r\n", b"RCPT TO:<u@a>\r\n", b"DATA\r\n"


@pytest.fixture(scope="module")
def proxy() -> Iterator[ProxyProcess]:
    with FakeBackend() as store, ProxyProcess(config_of({"a": store}, max_message_size=100, max_recipients=2)) as proxy:
        yield proxy


def lines_of(proxy: ProxyProcess, script: bytes) -> list[str]:
    """What a session that says this, and whatever else it takes to end it well, leaves in the log; without its name."""
    since = proxy.mark()
    with proxy.client() as client:
        client.send(script + b"RSET\r\nNOOP last\r\nQUIT\r\n")
        try:
            while client.reply().code != 221:
                pass
        except Disconnected:
            pass
    with proxy.client() as client:  # lines are written in order
        assert client.deliver("marker@x", ["u@a"]).verdict(0).positive
        client.quit()
    proxy.wait_log("from=<marker@x>", since=since)
    lines = [line.partition(" INFO ")[2] for line in proxy.log()[since:].splitlines()]
    return [line.partition(": ")[2] for line in lines if "marker@x" not in line and "status=aborted" not in line]


def refused(sender: str, recipient: str, size: int, reply: str, command: str) -> str:
    status = {"4": "deferred", "5": "bounced"}[reply[0]]
    dsn = reply.split()[1]
    who = f"from={sender}, to={recipient}, backend=-, size={size}"
    return f"{who}, delay=0.00, dsn={dsn}, status={status} ({reply}{command})"


SIZE = "552 5.3.4 Message is larger than the size limit"
PARAMETER = "555 5.5.4 Unsupported parameter"
SENDER = "501 5.5.4 Syntax: MAIL FROM:<address>"
RECIPIENT = "501 5.5.4 Syntax: RCPT TO:<address>"
SYNTAX = "501 5.5.4 Syntax error in the arguments"
MANY = "452 4.5.3 Too many recipients"
LONG = "500 5.5.2 Command line too long"
UNKNOWN = "500 5.5.2 Command not recognized"
NESTED = "503 5.5.1 Nested MAIL command"


@pytest.mark.parametrize(
    ("script", "lines"),
    [
        (
            b"MAIL FROM:<s@x> SIZE=101\r\n" + RCPT * 2 + DATA,
            [refused("<s@x>", "-", 101, SIZE, "; in reply to MAIL FROM:<s@x> SIZE=101")],
        ),
        (
            b"MAIL FROM:<s@x> RET=HDRS\r\n" + RCPT + DATA,
            [refused("<s@x>", "-", 0, PARAMETER, "; in reply to MAIL FROM:<s@x> RET=HDRS")],
        ),
        (b"MAIL FROM:<s y@x>\r\n", [refused("-", "-", 0, SENDER, "; in reply to MAIL FROM:<s y@x>")]),
        (b"mail from:<s@x> size=x\r\n", [refused("<s@x>", "-", 0, SYNTAX, "; in reply to mail from:<s@x> size=x")]),
        (b"MAIL\r\n", [refused("-", "-", 0, SENDER, "; in reply to MAIL")]),
        (b"MAIL FROM:<\xff\x1b[2J>\r\n", [refused("-", "-", 0, SENDER, r"; in reply to MAIL FROM:<\xff\x1b[2J>")]),
        (MAIL + b"MAIL FROM:<t@x>\r\n", [refused("<t@x>", "-", 0, NESTED, "; in reply to MAIL FROM:<t@x>")]),
        (
            MAIL + b"RCPT TO:<u@a> NOTIFY=NEVER\r\nRCPT TO:<u v@a>\r\n" + RCPT,
            [
                refused("<s@x>", "<u@a>", 0, PARAMETER, "; in reply to RCPT TO:<u@a> NOTIFY=NEVER"),
                refused("<s@x>", "-", 0, RECIPIENT, "; in reply to RCPT TO:<u v@a>"),
            ],
        ),
        (
            MAIL + RCPT * 2 + b"RCPT TO:<v@a>\r\nRCPT TO:<w@a>\r\n",
            [refused("<s@x>", f"<{user}@a>", 0, MANY, f"; in reply to RCPT TO:<{user}@a>") for user in "vw"],
        ),
        (MAIL + b"RCPT TO:<" + b"u" * 3000 + b"@a>\r\n", [refused("<s@x>", "-", 0, LONG, "")]),
        # A body whose DATA was refused: no more of it than its first word.
        (b"Mail me the password: secret\r\n", [refused("-", "-", 0, SENDER, "; in reply to MAIL")]),
        # No message is concerned: each once, and without what may be a password.
        (b"EHLO x\r\nEHLO x\r\nHELO x\r\n", ["refused EHLO from unix: 500 5.5.1 This is LMTP: say LHLO"]),
        (b"AUTH PLAIN c2VjcmV0\r\nBDAT 5 LAST\r\n" * 3, [f"refused AUTH from unix: {UNKNOWN}"]),
        (b"\x01\x02 secret\r\n", [f"refused a command from unix: {UNKNOWN}"]),
        (b"n" * 3000 + b"\r\n", [f"refused a command from unix: {LONG}"]),
        (RCPT * 3, ["refused RCPT from unix: 503 5.5.1 Send MAIL first"]),
        (b"LHLO\r\nXFORWARD X=1\r\nDATA\r\n", [
            "refused LHLO from unix: 501 5.5.4 Syntax: LHLO hostname",
            "refused XFORWARD from unix: 501 5.5.4 Syntax: XFORWARD attribute=value...",
            "refused DATA from unix: 503 5.5.1 Send MAIL first",
        ]),
        (b"X\r\n" * 30, [
            f"refused X from unix: {UNKNOWN}",
            "closing the connection from unix: 421 4.7.0 Too many errors in a row, closing connection",
        ]),
        # Each recipient has its line, and DATA behind them says nothing new.
        (MAIL + b"RCPT TO:<u v@a>\r\n" + DATA, [refused("<s@x>", "-", 0, RECIPIENT, "; in reply to RCPT TO:<u v@a>")]),
        (b"NOOP\r\nVRFY u\r\nHELP\r\n", []),
    ],
)  # fmt: skip
def test_each_refusal_has_its_line(proxy: ProxyProcess, script: bytes, lines: list[str]) -> None:
    assert lines_of(proxy, script) == lines


def test_mail_before_lhlo(proxy: ProxyProcess) -> None:
    since = proxy.mark()
    with proxy.client(greeted=False) as client:
        assert client.reply().code == 220
        assert client.command(MAIL.strip()).code == 503
        client.quit()
    line = proxy.wait_log("Send LHLO first", since=since)
    assert refused("<s@x>", "-", 0, "503 5.5.1 Send LHLO first", "; in reply to MAIL FROM:<s@x>") in line


@pytest.mark.parametrize(
    "script",
    [
        b"RCPT TO:<u v@a>\r\nNOOP\r\n",
        b"RCPT TO:<v@a>\r\n",  # above max_recipients
        b"RCPT TO:<" + b"u" * 3000 + b"\r\nNOOP\r\n",
        b"MAIL FROM:<" + b"x" * 1900 + b"@y> SIZE=" + b"1" * 20 + b"\r\nNOOP\r\n",
    ],
)
def test_no_session_fills_the_disk(proxy: ProxyProcess, script: bytes) -> None:
    """As many as it likes, with something good between that keeps it alive: 100 lines, and how many more there were."""
    begin = MAIL + RCPT * 2 if script.startswith(b"RCPT") else b""
    lines = lines_of(proxy, begin + script * 1000)
    assert len(lines) == 101
    assert all(" status=" in line for line in lines[:100])
    assert lines[-1] == "900 more refusals of this session are not in the log"
    assert sum(map(len, lines)) < 150_000


def test_noise_of_every_kind_is_bounded(proxy: ProxyProcess) -> None:
    noise = (
        b"X%d\r\nEHLO x\r\nLHLO\r\nRSET x\r\nXFORWARD Y=1\r\nDATA\r\nRCPT x\r\nQUIT x\r\n"
        + b"y" * 3000
        + b"\r\nNOOP\r\n"
    )
    lines = lines_of(proxy, b"".join(noise % number for number in range(500)))
    assert len(lines) < 20
    assert len({re.sub("refused .*? from", "", line) for line in lines}) == len(lines)
