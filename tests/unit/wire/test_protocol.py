# SPDX-License-Identifier: GPL-3.0-or-later
"""A client's octets in; events for the session and replies for the client out.

Each script is run whole, octet by octet, cut at random places and with something behind it, by a session that answers
at once and by one that answers as late as it may: all must be the same.
"""

import copy
import dataclasses
import random
import re
from dataclasses import dataclass

import pytest

from lmtp_proxy.wire import reply as say
from lmtp_proxy.wire.envelope import Envelope, Recipient
from lmtp_proxy.wire.events import (
    ConnectionClosed,
    DataCommand,
    EndOfMessage,
    EnvelopeCommand,
    Event,
    MailCommand,
    MessageOctets,
    Mistake,
    RcptCommand,
    RefusedCommand,
    TransactionReset,
    Wait,
)
from lmtp_proxy.wire.protocol import LocalProtocolError, Protocol
from lmtp_proxy.wire.reply import Reply
from tests.property.driver import Driver, buffered, cut, new_protocol, parse_replies

LHLO = b"LHLO client.test\r\n"
MAIL = b"MAIL FROM:<s@x>\r\n"
ALICE = b"RCPT TO:<alice@x>\r\n"
NOBODY = b"RCPT TO:<nobody@x>\r\n"
LATER = b"RCPT TO:<later@x>\r\n"
RCPT_TOO_EARLY = b"RCPT TO:<early@x>\r\n"
DATA = b"DATA\r\n"
BODY = b"Subject: x\r\n\r\n..\r\nhello\r\n"
DOT = b".\r\n"
XFORWARD = (
    b"XFORWARD NAME=[UNAVAILABLE] ADDR=127.0.0.1 PORT=4711\r\nXFORWARD PROTO=ESMTP HELO=c IDENT=4fX1z0 SOURCE=LOCAL\r\n"
)

M = MailCommand(Envelope(b"<s@x>"))
A = RcptCommand(Recipient(b"<alice@x>", "alice", "x"))
N = RcptCommand(Recipient(b"<nobody@x>", "nobody", "x"))
L = RcptCommand(Recipient(b"<later@x>", "later", "x"))
D = DataCommand()
OCTETS = MessageOctets(BODY)
E = EndOfMessage(len(BODY) - 1, None)  # one dot is stuffing
END = E._replace(octets=BODY)  # as it comes; the driver takes the last piece apart from it
CLOSED = ConnectionClosed()

LHLO_OK = "250 mx.test"
MAIL_OK = "250 2.1.0"
ALICE_OK = "250 2.1.5 recipient alice"
NOBODY_NO = "550 5.1.1 first line"
LATER_NO = "450 4.2.1 deferred: later"
GO = "354 "


def saved(message: int, position: int) -> str:
    return f"250 2.0.0 message {message} position {position} saved"


@dataclass(frozen=True)
class Case:
    """A script, the events that the session gets, and how each reply starts that the client gets."""

    script: bytes
    events: list[Event]
    replies: list[str]
    settings: dict[str, int | bool] = dataclasses.field(default_factory=dict)


def transaction(*rcpt: bytes, body: bytes = BODY) -> bytes:
    return MAIL + b"".join(rcpt) + DATA + body + DOT


CASES: dict[str, Case] = {
    "nothing": Case(b"", [], []),
    "one message": Case(
        LHLO + transaction(ALICE) + b"QUIT\r\n",
        [M, A, D, OCTETS, E, CLOSED],
        [LHLO_OK, MAIL_OK, ALICE_OK, GO, saved(1, 0), "221 2.0.0"],
    ),
    "several recipients": Case(
        LHLO + transaction(ALICE, NOBODY, ALICE, LATER, ALICE),
        [M, A, N, A, L, A, D, OCTETS, E],
        [
            LHLO_OK, MAIL_OK, ALICE_OK, NOBODY_NO, ALICE_OK, LATER_NO, ALICE_OK, GO,
            saved(1, 0), saved(1, 1), "452 4.2.2 message 1 position 2 over quota",
        ],
    ),
    "two messages, the second without LHLO": Case(
        LHLO + transaction(ALICE, ALICE) + transaction(ALICE) + b"QUIT\r\n",
        [M, A, A, D, OCTETS, E, M, A, D, OCTETS, E, CLOSED],
        [LHLO_OK, MAIL_OK, ALICE_OK, ALICE_OK, GO, saved(1, 0), saved(1, 1), MAIL_OK, ALICE_OK, GO, saved(2, 0),
         "221 2.0.0"],
    ),
    "RSET behind a message, as Postfix does": Case(
        LHLO + transaction(ALICE) + b"RSET\r\n" + transaction(ALICE),
        [M, A, D, OCTETS, E, M, A, D, OCTETS, E],
        [LHLO_OK, MAIL_OK, ALICE_OK, GO, saved(1, 0), "250 2.0.0", MAIL_OK, ALICE_OK, GO, saved(2, 0)],
    ),
    "an empty message": Case(
        LHLO + transaction(ALICE, body=b""),
        [M, A, D, EndOfMessage(0, None)],
        [LHLO_OK, MAIL_OK, ALICE_OK, GO, saved(1, 0)],
    ),
    "no recipient stands": Case(
        LHLO + MAIL + NOBODY + LATER + DATA + ALICE + DATA + BODY + DOT,
        [M, N, L, A, D, OCTETS, E],
        [LHLO_OK, MAIL_OK, NOBODY_NO, LATER_NO, "503 5.5.1", ALICE_OK, GO, saved(1, 0)],
    ),
    "DATA without RCPT": Case(LHLO + MAIL + DATA, [M], [LHLO_OK, MAIL_OK, "503 5.5.1"]),
    "out of order before LHLO": Case(
        MAIL + ALICE + DATA + LHLO + MAIL,
        [M],
        ["503 5.5.1", "503 5.5.1", "503 5.5.1", LHLO_OK, MAIL_OK],
    ),
    "out of order before MAIL": Case(
        LHLO + ALICE + DATA + MAIL, [M], [LHLO_OK, "503 5.5.1", "503 5.5.1", MAIL_OK]
    ),
    "nested MAIL, the transaction goes on": Case(
        LHLO + MAIL + ALICE + b"MAIL FROM:<other@x>\r\n" + DATA + BODY + DOT,
        [M, A, D, OCTETS, E],
        [LHLO_OK, MAIL_OK, ALICE_OK, "503 5.5.1", GO, saved(1, 0)],
    ),
    "all that needs no LHLO": Case(
        b"NOOP\r\nNOOP with words\r\nRSET\r\nVRFY alice\r\nHELP\r\nHELP DATA\r\nQUIT\r\n",
        [CLOSED],
        ["250 2.0.0", "250 2.0.0", "250 2.0.0", "252 2.", "214 2.0.0", "214 2.0.0", "221 2.0.0"],
    ),
    "all that leaves a transaction alone": Case(
        LHLO + MAIL + b"NOOP\r\n" + ALICE + b"VRFY alice\r\nHELP\r\nBAD\r\n" + DATA + BODY + DOT,
        [M, A, D, OCTETS, E],
        [LHLO_OK, MAIL_OK, "250 2.0.0", ALICE_OK, "252 2.", "214 2.0.0", "500 5.5.2", GO, saved(1, 0)],
    ),
    "verbs and keywords in any case": Case(
        b"lhlo x\r\nmAiL from:<s@x>\r\nrcpt tO:<alice@x>\r\ndata\r\n" + BODY + DOT + b"noop\r\nquit\r\n",
        [M, A, D, OCTETS, E, CLOSED],
        [LHLO_OK, MAIL_OK, ALICE_OK, GO, saved(1, 0), "250 2.0.0", "221 2.0.0"],
    ),
    "this is no SMTP": Case(
        b"HELO client.test\r\nEHLO client.test\r\nehlo x\r\n" + MAIL,
        [],
        ["500 5.5.", "500 5.5.", "500 5.5.", "503 5.5.1"],
    ),
    "unknown commands": Case(
        b"BDAT 1 LAST\r\nSTARTTLS\r\nAUTH PLAIN\r\nEXPN x\r\nETRN x\r\nXYZZY\r\n__class__\r\n_lhlo x\r\n"
        b"RCPTX TO:<a@b>\r\nDATAX\r\n\r\n NOOP\r\n\0\r\n\xff\xfe\r\n.\r\n..\r\nNOOP\r\r\nNO\rOP\r\n",
        [],
        ["500 5.5.2"] * 18,
    ),
    "bad LHLO": Case(
        b"LHLO\r\nLHLO \r\nLHLO two words\r\nLHLO \x01\r\nLHLO \xff\r\n" + MAIL,
        [],
        ["501 5.5.4"] * 5 + ["503 5.5.1"],
    ),
    "LHLO with an address literal": Case(b"LHLO [IPv6:::1]\r\n", [], [LHLO_OK]),
    "bad MAIL": Case(
        LHLO
        + b"MAIL\r\nMAIL FROM\r\nMAIL FROM:\r\nMAIL FROM:s@x\r\nMAIL TO:<s@x>\r\nMAIL FROM:<s@x\r\n"
        + b"MAIL FROM:<s x@y>\r\nMAIL FROM:<s@x> SIZE=x\r\nMAIL FROM:<s@x> BODY=9BIT\r\n"
        + ALICE,
        [],
        [LHLO_OK] + ["501 5.5.4"] * 9 + ["503 5.5.1"],
    ),
    "bad RCPT": Case(
        LHLO
        + MAIL
        + b"RCPT\r\nRCPT TO\r\nRCPT TO:\r\nRCPT TO:<>\r\nRCPT TO:a@x\r\nRCPT FROM:<a@x>\r\nRCPT TO:<a@x\r\n"
        + DATA,
        [M],
        [LHLO_OK, MAIL_OK] + ["501 5.5.4"] * 7 + ["503 5.5.1"],
    ),
    "parameters that are not offered": Case(
        LHLO + b"MAIL FROM:<s@x> RET=HDRS\r\nMAIL FROM:<s@x> SMTPUTF8\r\nMAIL FROM:<s@x> AUTH=<>\r\n" + MAIL
        + b"RCPT TO:<a@x> NOTIFY=NEVER\r\n",
        [M],
        [LHLO_OK, "555 5.5.4", "555 5.5.4", "555 5.5.4", MAIL_OK, "555 5.5.4"],
    ),
    "ORCPT is taken without being offered": Case(
        LHLO + MAIL + b"RCPT TO:<alice@x> ORCPT=rfc822;Alice@X\r\nRCPT TO:<alice@x> ORCPT=rfc822;+\r\n" + ALICE + DATA
        + BODY + DOT,
        [M, RcptCommand(A.recipient._replace(orcpt=b"rfc822;Alice@X")), A, D, OCTETS, E],
        [LHLO_OK, MAIL_OK, ALICE_OK, "501 5.5.4", ALICE_OK, GO, saved(1, 0), saved(1, 1)],
    ),
    "arguments where none belong": Case(
        LHLO + b"RSET x\r\nQUIT x\r\n" + MAIL + ALICE + b"DATA x\r\n" + b"RSET x\r\n" + DATA + BODY + DOT,
        [M, A, D, OCTETS, E],
        [LHLO_OK, "501 5.5.4", "501 5.5.4", MAIL_OK, ALICE_OK, "501 5.5.4", "501 5.5.4", GO, saved(1, 0)],
    ),
    "parameters and odd paths": Case(
        LHLO
        + b"MAIL FROM:<> SIZE=100 BODY=8BITMIME\r\n"
        + b'RCPT TO:<"alice"@x>\r\n'
        + b"RCPT TO:<@r:alice@[192.0.2.1]>\r\nRCPT TO:<alice>\r\n",
        [
            MailCommand(Envelope(b"<>", size=100, body=b"8BITMIME")),
            RcptCommand(Recipient(b'<"alice"@x>', "alice", "x")),
            RcptCommand(Recipient(b"<@r:alice@[192.0.2.1]>", "alice", "[192.0.2.1]")),
            RcptCommand(Recipient(b"<alice>", "alice", "")),
        ],
        [LHLO_OK, MAIL_OK, ALICE_OK, ALICE_OK, ALICE_OK],
    ),
    "SMTPUTF8": Case(
        LHLO
        + "MAIL FROM:<jürgen@x> SMTPUTF8\r\nRCPT TO:<élise@x>\r\nRSET\r\n".encode()
        + MAIL
        + "RCPT TO:<élise@x>\r\n".encode(),  # this MAIL did not say so
        [
            MailCommand(Envelope("<jürgen@x>".encode(), smtputf8=True)),
            RcptCommand(Recipient("<élise@x>".encode(), "élise", "x")),
            TransactionReset(),
            M,
        ],
        [LHLO_OK, MAIL_OK, "250 2.1.5 recipient élise", "250 2.0.0", MAIL_OK, "501 5.5.4"],
        {"smtputf8": True},
    ),
    "RSET ends a transaction": Case(
        LHLO + b"RSET\r\n" + MAIL + ALICE + b"RSET\r\n" + ALICE + DATA + b"RSET\r\n" + MAIL,
        [M, A, TransactionReset(), M],
        [LHLO_OK, "250 2.0.0", MAIL_OK, ALICE_OK, "250 2.0.0", "503 5.5.1", "503 5.5.1", "250 2.0.0", MAIL_OK],
    ),
    "RSET after LHLO needs no new LHLO, recipients are forgotten": Case(
        LHLO + MAIL + ALICE + b"RSET\r\n" + MAIL + DATA,
        [M, A, TransactionReset(), M],
        [LHLO_OK, MAIL_OK, ALICE_OK, "250 2.0.0", MAIL_OK, "503 5.5.1"],
    ),
    "LHLO amid a transaction ends it": Case(
        LHLO + LHLO + MAIL + ALICE + LHLO + ALICE + MAIL,
        [M, A, TransactionReset(), M],
        [LHLO_OK, LHLO_OK, MAIL_OK, ALICE_OK, LHLO_OK, "503 5.5.1", MAIL_OK],
    ),
    "QUIT amid a transaction": Case(
        LHLO + MAIL + ALICE + b"QUIT\r\n", [M, A, CLOSED], [LHLO_OK, MAIL_OK, ALICE_OK, "221 2.0.0"]
    ),
    "nothing is done after QUIT": Case(
        LHLO + b"QUIT\r\n" + MAIL + ALICE + b"\0" * 5000, [CLOSED], [LHLO_OK, "221 2.0.0"]
    ),
    "commands in the body are body": Case(
        LHLO + transaction(ALICE, body=b"RSET\r\nQUIT\r\n" + DATA),
        [M, A, D, MessageOctets(b"RSET\r\nQUIT\r\n" + DATA), EndOfMessage(18, None)],
        [LHLO_OK, MAIL_OK, ALICE_OK, GO, saved(1, 0)],
    ),
    "any octets in the body": Case(
        LHLO + transaction(ALICE, body=bytes(range(256)) * 20 + b"\n\r\r\n"),
        [M, A, D, MessageOctets(bytes(range(256)) * 20 + b"\n\r\r\n"), EndOfMessage(5124, None)],
        [LHLO_OK, MAIL_OK, ALICE_OK, GO, saved(1, 0)],
    ),
    "the longest command line": Case(
        b"NOOP " + b"x" * 2041 + b"\r\n" + b"NOOP\r\n", [], ["250 2.0.0", "250 2.0.0"]
    ),
    "an octet more": Case(b"NOOP " + b"x" * 2042 + b"\r\n" + b"NOOP\r\n", [], ["500 5.5.2", "250 2.0.0"]),
    "a long line amid a transaction": Case(
        LHLO + MAIL + ALICE + b"RCPT TO:<" + b"a" * 5_000 + b"@x>\r\n" + ALICE + DATA + BODY + DOT,
        [M, A, A, D, OCTETS, E],
        [LHLO_OK, MAIL_OK, ALICE_OK, "500 5.5.2", ALICE_OK, GO, saved(1, 0), saved(1, 1)],
    ),
    "a long line of noise": Case(
        LHLO + b"\0\r\xff" * 1_500 + b"\r\n" + MAIL, [M], [LHLO_OK, "500 5.5.2", MAIL_OK]
    ),
    "a long line never ends": Case(LHLO + b"x" * 5_000, [], [LHLO_OK]),
    "as many recipients as may be": Case(
        LHLO + MAIL + ALICE * 3 + DATA + BODY + DOT,
        [M, A, A, A, D, OCTETS, E],
        [LHLO_OK, MAIL_OK, *[ALICE_OK] * 3, GO, saved(1, 0), saved(1, 1), "452 4.2.2"],
        {"max_recipients": 3},
    ),
    "more recipients than may be": Case(
        LHLO + MAIL + ALICE * 2 + ALICE * 30 + DATA + BODY + DOT + MAIL + ALICE,
        [M, A, A, D, OCTETS, E, M, A],
        [LHLO_OK, MAIL_OK, *[ALICE_OK] * 2, *["452 4.5.3"] * 30, GO, saved(1, 0), saved(1, 1), MAIL_OK, ALICE_OK],
        {"max_recipients": 2},
    ),
    "only accepted recipients count": Case(
        LHLO + MAIL + NOBODY * 3 + ALICE + LATER + ALICE + ALICE,
        [M, N, N, N, A, L, A],
        [LHLO_OK, MAIL_OK, *[NOBODY_NO] * 3, ALICE_OK, LATER_NO, ALICE_OK, "452 4.5.3"],
        {"max_recipients": 2},
    ),
    "announced as too large": Case(
        LHLO + b"MAIL FROM:<s@x> SIZE=101\r\n" + ALICE + b"MAIL FROM:<s@x> SIZE=100\r\n" + ALICE,
        [MailCommand(Envelope(b"<s@x>", size=100)), A],
        [LHLO_OK, "552 5.3.4", "503 5.5.1", MAIL_OK, ALICE_OK],
        {"max_message_size": 100},
    ),
    "as large as may be": Case(
        LHLO + transaction(ALICE),
        [M, A, D, OCTETS, E],
        [LHLO_OK, MAIL_OK, ALICE_OK, GO, saved(1, 0)],
        {"max_message_size": len(BODY) - 1},
    ),
    "an announced size is no promise": Case(
        LHLO + b"MAIL FROM:<s@x> SIZE=1\r\n" + ALICE + DATA + BODY + DOT,
        [MailCommand(Envelope(b"<s@x>", size=1)), A, D, OCTETS, E],
        [LHLO_OK, MAIL_OK, ALICE_OK, GO, saved(1, 0)],
    ),
    "XFORWARD before each MAIL, as Postfix does": Case(
        LHLO + XFORWARD + transaction(ALICE) + b"RSET\r\n" + XFORWARD.replace(b"4fX", b"5gY") + transaction(ALICE),
        [MailCommand(Envelope(b"<s@x>", queue_id="4fX1z0")), A, D, OCTETS, E,
         MailCommand(Envelope(b"<s@x>", queue_id="5gY1z0")), A, D, OCTETS, E],
        [f"{LHLO_OK} PIPELINING ENHANCEDSTATUSCODES 8BITMIME SIZE XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE",
         "250 2.0.0", "250 2.0.0", MAIL_OK, ALICE_OK, GO, saved(1, 0), "250 2.0.0",
         "250 2.0.0", "250 2.0.0", MAIL_OK, ALICE_OK, GO, saved(2, 0)],
        {"trusted": True},
    ),
    "XFORWARD lasts for one transaction": Case(
        LHLO + XFORWARD + transaction(ALICE) + transaction(ALICE) + XFORWARD + b"RSET\r\n" + MAIL + b"RSET\r\n"
        + XFORWARD + LHLO + MAIL + b"RSET\r\n" + XFORWARD + MAIL + b"RSET\r\n" + MAIL,
        [MailCommand(Envelope(b"<s@x>", queue_id="4fX1z0")), A, D, OCTETS, E, M, A, D, OCTETS, E,
         M, TransactionReset(), M, TransactionReset(),
         MailCommand(Envelope(b"<s@x>", queue_id="4fX1z0")), TransactionReset(), M],
        [LHLO_OK, "250 2.0.0", "250 2.0.0", MAIL_OK, ALICE_OK, GO, saved(1, 0), MAIL_OK, ALICE_OK, GO, saved(2, 0),
         "250 2.0.0", "250 2.0.0", "250 2.0.0", MAIL_OK, "250 2.0.0", "250 2.0.0", "250 2.0.0", LHLO_OK, MAIL_OK,
         "250 2.0.0", "250 2.0.0", "250 2.0.0", MAIL_OK, "250 2.0.0", MAIL_OK],
        {"trusted": True},
    ),
    "XFORWARD in its place only, a bad one changes nothing": Case(
        XFORWARD + LHLO + XFORWARD + b"XFORWARD IDENT=x=y\r\nXFORWARD\r\n" + MAIL + XFORWARD + ALICE,
        [MailCommand(Envelope(b"<s@x>", queue_id="4fX1z0")), A],
        ["503 5.5.1", "503 5.5.1", LHLO_OK, "250 2.0.0", "250 2.0.0", "501 5.5.4", "501 5.5.4", MAIL_OK,
         "503 5.5.1", "503 5.5.1", ALICE_OK],
        {"trusted": True},
    ),
    "XFORWARD of a client that is not trusted": Case(
        LHLO + XFORWARD + b"xforward\r\n" + MAIL,
        [M],
        [LHLO_OK, "500 5.5.2", "500 5.5.2", "500 5.5.2", MAIL_OK],
    ),
    "end of data with CRLF alone": Case(
        LHLO + MAIL + ALICE + DATA + b"a\r\n .\r\n. \r\nb.\r\n" + DOT + b"NOOP\r\n",
        [M, A, D, MessageOctets(b"a\r\n .\r\n. \r\nb.\r\n"), EndOfMessage(14, None)],
        [LHLO_OK, MAIL_OK, ALICE_OK, GO, saved(1, 0), "250 2.0.0"],
    ),
}  # fmt: skip


def starts(output: bytes, expected: list[str]) -> bool:
    replies = parse_replies(output)
    return len(replies) == len(expected) and all(
        str(reply).startswith(start) for reply, start in zip(replies, expected, strict=True)
    )


def ways(script: bytes) -> list[list[bytes]]:
    """Whole, by octet, and cut at random but always the same places."""
    random_cuts = random.Random(len(script))
    return [
        cut(script, ()),
        cut(script, range(len(script))),
        *(cut(script, random_cuts.choices(range(len(script) + 1), k=random_cuts.randint(1, 12))) for _ in range(10)),
    ]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("eager", [True, False])
def test_script(name: str, eager: bool) -> None:
    case = CASES[name]
    for pieces in ways(case.script):
        driver = Driver(new_protocol(**case.settings), eager=eager)  # type: ignore[arg-type]
        driver.run(pieces)
        assert driver.events == case.events
        assert starts(driver.output, case.replies), driver.output


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.script.endswith(b"\r\n")])
@pytest.mark.parametrize("eager", [True, False])
def test_script_with_something_behind_it(name: str, eager: bool) -> None:
    case = CASES[name]
    over = CLOSED in case.events
    for pieces in ways(case.script + b"NOOP\r\nNOO"):
        driver = Driver(new_protocol(**case.settings), eager=eager)  # type: ignore[arg-type]
        waiting = driver.run(pieces)
        assert driver.events == case.events
        assert starts(driver.output, case.replies + ([] if over else ["250 2.0.0"])), driver.output
        if not over:
            assert waiting is Wait.NEED_DATA
            assert buffered(driver.protocol) == 3


@pytest.mark.parametrize("name", CASES)
def test_script_and_then_end_of_file(name: str) -> None:
    case = CASES[name]
    for pieces in ways(case.script):
        driver = Driver(new_protocol(**case.settings))  # type: ignore[arg-type]
        driver.run([*pieces, b""])
        assert driver.events == [*(event for event in case.events if event != CLOSED), CLOSED]
        assert starts(driver.output, case.replies), driver.output


# --- what was refused, for the log ------------------------------------------------------------------------------------


MISTAKES = {say.MAIL_FIRST: Mistake.NO_MAIL, say.LINE_TOO_LONG: Mistake.TOO_LONG}


def test_each_refusal_comes_out_with_its_line() -> None:
    envelope = Envelope(b"<s@x>")
    script = (
        MAIL + LHLO + b"MAIL FROM:<s@x> SIZE=101\r\nmail from:<s@x> x\r\n" + RCPT_TOO_EARLY + MAIL + MAIL
        + b"RCPT TO:<u v@x>\r\n" + ALICE * 2 + b"x" * 3000 + b"\r\nRSET\r\n" + b"x" * 3000 + b"\r\n" + DATA
        + b"NOOP\r\nX\r\n"
    )  # fmt: skip
    expected = [
        (MAIL, say.LHLO_FIRST, None),
        (b"MAIL FROM:<s@x> SIZE=101\r\n", say.SIZE_TOO_BIG, Envelope(b"<s@x>", size=101)),
        (b"mail from:<s@x> x\r\n", say.UNKNOWN_PARAMETER, None),
        (RCPT_TOO_EARLY, say.MAIL_FIRST, None),
        (MAIL, say.NESTED_MAIL, None),
        (b"RCPT TO:<u v@x>\r\n", say.BAD_RECIPIENT, envelope),
        (ALICE, say.TOO_MANY_RECIPIENTS, envelope),
        (b"", say.LINE_TOO_LONG, envelope),
        (b"", say.LINE_TOO_LONG, None),
        (DATA, say.MAIL_FIRST, None),
        (b"X\r\n", say.BAD_COMMAND, None),
    ]
    for pieces in ways(script):
        driver = Driver(new_protocol(max_message_size=100, max_recipients=1))
        driver.run(pieces)
        assert driver.refused == [
            RefusedCommand(line.removesuffix(b"\r\n"), reply, envelope, False, MISTAKES.get(reply, Mistake.OTHER))
            for line, reply, envelope in expected
        ]


def test_data_for_nobody_says_so() -> None:
    driver = Driver(new_protocol())
    driver.run([LHLO + MAIL + DATA])
    assert driver.refused == [RefusedCommand(b"DATA", say.NO_RECIPIENTS, None, False, Mistake.NO_RECIPIENTS)]


def test_the_last_of_too_many_says_so() -> None:
    driver = Driver(new_protocol())
    driver.run([LHLO + b"X\r\n" * 30])
    assert [refused.last for refused in driver.refused] == [*[False] * 19, True]


# --- data that may not be delivered ----------------------------------------------------------------------------------


def refused(script: bytes, **settings: int) -> tuple[bytes, list[EndOfMessage], list[Reply]]:
    """What came out of the one message's body, how it ended, and all replies, however the script is cut."""
    runs = []
    for pieces in ways(script):
        driver = Driver(new_protocol(**settings))  # type: ignore[arg-type]
        driver.run(pieces)
        body = b"".join(event.octets for event in driver.events if isinstance(event, MessageOctets))
        ends = [event for event in driver.events if isinstance(event, EndOfMessage)]
        runs.append((body, ends, parse_replies(driver.output)))
    bodies = sorted({body for body, _, _ in runs}, key=len)
    assert all(bodies[-1].startswith(body) for body in bodies)  # how far it got before is a matter of the cut
    assert all(run[1:] == runs[0][1:] for run in runs)
    return (bodies[-1], *runs[0][1:])


def test_a_message_over_the_limit_is_read_to_its_end_and_refused_for_each() -> None:
    body = b"Subject: large\r\n" * 1000
    script = LHLO + transaction(ALICE, NOBODY, ALICE, body=body) + b"NOOP\r\n"
    passed, ends, replies = refused(script, max_message_size=1000)
    assert len(passed) <= 1000
    assert body.startswith(passed)
    assert ends == [EndOfMessage(len(body), say.SIZE_TOO_BIG)]
    assert [reply.code for reply in replies[-4:]] == [354, 552, 552, 250]
    assert replies[-2].enhanced == "5.3.4"


def test_one_octet_over_the_limit() -> None:
    _, ends, replies = refused(LHLO + transaction(ALICE), max_message_size=len(BODY) - 2)
    assert ends == [EndOfMessage(len(BODY) - 1, say.SIZE_TOO_BIG)]
    assert replies[-1].code == 552


@pytest.mark.parametrize("lone", [b"\n.\n", b"\r\n.\n", b"\n.\r\n", b"\r.\r", b"\r\n.\r\r\n", b"\r\n\r.\r\n"])
@pytest.mark.parametrize("limit", [0, 30])
def test_a_smuggled_message_is_refused_for_each(lone: bytes, limit: int) -> None:
    smuggled = b"MAIL FROM:<evil@x>\r\nRCPT TO:<alice@x>\r\nDATA\r\nSubject: smuggled\r\n"
    script = LHLO + transaction(ALICE, ALICE, body=b"a\r\nb" + lone + smuggled) + b"NOOP\r\n"
    passed, ends, replies = refused(script, max_message_size=limit)
    assert passed == b"a\r\nb" + lone[: lone.index(b".")]
    assert [end.refusal for end in ends] == [say.AMBIGUOUS_DATA]
    assert [(reply.code, reply.enhanced) for reply in replies[-3:]] == [(550, "5.6.0")] * 2 + [(250, "2.0.0")]


def test_an_ambiguous_message_has_its_size_for_the_log() -> None:
    _, ends, _ = refused(LHLO + transaction(ALICE, body=b"a\n.\nb\r\n"))
    assert ends == [EndOfMessage(7, say.AMBIGUOUS_DATA)]


def test_the_next_message_is_judged_by_itself() -> None:
    driver = Driver(new_protocol(max_message_size=100))
    driver.feed(LHLO + transaction(ALICE, body=b"a\n.\nb\r\n") + transaction(ALICE, body=b"x" * 200 + b"\r\n"))
    driver.feed(transaction(ALICE))
    assert [event.refusal for event in driver.events if isinstance(event, EndOfMessage)] == [
        say.AMBIGUOUS_DATA, say.SIZE_TOO_BIG, None,
    ]  # fmt: skip


# --- XFORWARD --------------------------------------------------------------------------------------------------------


def test_an_envelope_behind_xforward_is_still_taken_as_a_whole() -> None:
    protocol = new_protocol(trusted=True)
    protocol.receive_data(LHLO + XFORWARD + MAIL + ALICE + DATA)
    event = protocol.next_event()
    assert event == EnvelopeCommand(Envelope(b"<s@x>", queue_id="4fX1z0"), [A.recipient.path])


# --- PIPELINING: what waits for what ---------------------------------------------------------------------------------


def test_greeting_comes_first_and_once() -> None:
    protocol = new_protocol()
    protocol.greet()
    assert re.fullmatch(rb"220 mx\.test LMTP [ -~]*\r\n", protocol.data_to_send())
    assert protocol.data_to_send() == b""


def test_lhlo_offer_follows_the_settings() -> None:
    driver = Driver(new_protocol(max_message_size=1000, smtputf8=True))
    driver.feed(LHLO)
    assert driver.output == (
        b"250-mx.test\r\n250-PIPELINING\r\n250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250-SIZE 1000\r\n250 SMTPUTF8\r\n"
    )


def started(*commands: bytes, **settings: int) -> tuple[Protocol, list[Event | Wait]]:
    """A session after LHLO and MAIL whose output was taken, then `commands` in one piece: events up to the wait."""
    protocol = new_protocol(**settings)  # type: ignore[arg-type]
    protocol.receive_data(LHLO + MAIL)
    assert protocol.next_event() == M
    assert protocol.next_event() is Wait.NEED_DATA
    protocol.data_to_send()
    protocol.receive_data(b"".join(commands))
    return protocol, drain(protocol)


def drain(protocol: Protocol) -> list[Event | Wait]:
    """Its events, but for those that are for the log only."""
    events: list[Event | Wait] = [protocol.next_event()]
    while not isinstance(events[-1], Wait | ConnectionClosed | DataCommand):
        events.append(protocol.next_event())
    return [event for event in events if not isinstance(event, RefusedCommand)]


def accept(number: int) -> Reply:
    return Reply(250, (b"2.1.5 number %d" % number,))


def test_recipients_of_a_group_come_out_before_the_first_is_answered() -> None:
    protocol, events = started(ALICE, NOBODY, LATER, DATA)
    assert events == [A, N, L, Wait.PAUSED]
    assert protocol.owed == 3
    assert protocol.data_to_send() == b""


def test_data_waits_for_each_reply_that_is_owed() -> None:
    protocol, _ = started(ALICE, NOBODY, DATA)
    for number, owed in ((1, 1), (2, 0)):
        assert protocol.next_event() is Wait.PAUSED
        protocol.reply(accept(number))
        assert protocol.data_to_send() == accept(number).to_bytes()
        assert protocol.owed == owed
    assert protocol.next_event() == D
    protocol.start_data()
    assert protocol.data_to_send().startswith(b"354 ")
    assert protocol.next_event() is Wait.NEED_DATA


@pytest.mark.parametrize(
    "command", [b"RSET", b"NOOP", b"QUIT", b"LHLO x", b"MAIL FROM:<b@x>", b"HELP", b"VRFY x", b"?"]
)
def test_every_other_command_waits_for_its_turn_too(command: bytes) -> None:
    protocol, events = started(ALICE, command + b"\r\n")
    assert events == [A, Wait.PAUSED]
    assert buffered(protocol) == len(command) + 2
    protocol.reply(accept(1))
    drain(protocol)
    output = protocol.data_to_send()
    assert output.startswith(accept(1).to_bytes())
    assert len(parse_replies(output)) == 2


def test_own_answers_queue_behind_those_that_are_owed() -> None:
    protocol, events = started(ALICE, b"RCPT TO:<bad\r\n", NOBODY, b"RCPT TO:<a> X=1\r\n", ALICE, max_recipients=9)
    assert events == [A, N, A, Wait.PAUSED]
    assert protocol.data_to_send() == b""
    protocol.reply(accept(1))
    assert [reply.code for reply in parse_replies(protocol.data_to_send())] == [250, 501]
    protocol.reply(Reply(550, (b"5.1.1 second",)))
    assert [reply.code for reply in parse_replies(protocol.data_to_send())] == [550, 555]
    protocol.reply(accept(3))
    assert protocol.data_to_send() == accept(3).to_bytes()
    assert protocol.next_event() is Wait.NEED_DATA


def test_data_that_came_along_is_taken_only_once_somebody_was_accepted() -> None:
    protocol = new_protocol()
    protocol.receive_data(LHLO + MAIL + ALICE + NOBODY + DATA)
    assert isinstance(protocol.next_event(), EnvelopeCommand)
    assert not protocol.take_data()
    protocol.reply(accept(1))
    assert not protocol.take_data()
    protocol.reply(Reply(550, (b"5.1.1 no",)))
    assert protocol.take_data()
    with pytest.raises(LocalProtocolError):
        protocol.next_event()
    protocol.start_data()
    assert protocol.in_data and not protocol.take_data()


def test_data_that_came_along_is_refused_where_nobody_was_accepted() -> None:
    protocol = new_protocol()
    protocol.receive_data(LHLO + MAIL + NOBODY + LATER + DATA)
    assert isinstance(protocol.next_event(), EnvelopeCommand)
    protocol.reply(Reply(550, (b"5.1.1 no",)), Reply(450, (b"4.2.1 later",)))
    assert not protocol.take_data()
    assert drain(protocol) == [Wait.NEED_DATA]
    assert [reply.code for reply in parse_replies(protocol.data_to_send())][-3:] == [550, 450, 503]


def test_only_2xx_accepts_a_recipient() -> None:
    protocol, _ = started(ALICE, NOBODY, LATER, DATA)
    for code in (354, 450, 550):
        protocol.reply(Reply(code, (b"text",)))
    assert drain(protocol) == [Wait.NEED_DATA]
    assert [reply.code for reply in parse_replies(protocol.data_to_send())] == [354, 450, 550, 503]


def test_a_long_line_waits_for_its_turn_too() -> None:
    protocol, events = started(ALICE, b"x" * 5000)
    assert events == [A, Wait.PAUSED]
    protocol.receive_data(b"x" * 5000)
    assert protocol.next_event() is Wait.PAUSED
    protocol.receive_data(b"x\r\nNOOP\r\n")
    assert protocol.next_event() is Wait.PAUSED
    assert protocol.data_to_send() == b""
    protocol.reply(accept(1))
    assert drain(protocol) == [Wait.NEED_DATA]
    assert [reply.code for reply in parse_replies(protocol.data_to_send())] == [250, 500, 250]


def test_each_final_reply_goes_out_as_it_is_known_and_nothing_else_in_between() -> None:
    protocol, _ = started(ALICE, ALICE, ALICE)
    for number in range(3):
        protocol.reply(accept(number))
    protocol.receive_data(DATA + BODY + DOT + b"QUIT\r\n")
    assert drain(protocol) == [D]
    protocol.start_data()
    assert drain(protocol) == [END, Wait.PAUSED]
    protocol.data_to_send()
    for number, final in enumerate(
        [Reply(250, (b"2.0.0 a", b"2.0.0 b")), Reply(452, (b"4.2.2 c",)), say.BACKEND_SILENT]
    ):
        assert protocol.owed == 3 - number
        assert protocol.in_transaction
        assert protocol.next_event() is Wait.PAUSED
        protocol.reply(final)
        assert protocol.data_to_send() == final.to_bytes()
    assert protocol.owed == 0
    assert not protocol.in_transaction
    assert protocol.next_event() == CLOSED
    assert protocol.data_to_send() == b"221 2.0.0 Bye\r\n"


def test_the_end_of_file_does_not_cancel_what_is_owed_after_the_dot() -> None:
    protocol, _ = started(ALICE)
    protocol.reply(accept(1))
    protocol.receive_data(DATA)
    assert drain(protocol) == [D]
    protocol.start_data()
    protocol.receive_data(BODY + DOT)
    protocol.receive_data(b"")
    assert drain(protocol) == [END, Wait.PAUSED]
    protocol.data_to_send()
    protocol.reply(accept(2))
    assert protocol.data_to_send() == accept(2).to_bytes()
    assert protocol.next_event() == CLOSED


@pytest.mark.parametrize(
    "script",
    [
        b"", b"NOO", LHLO + b"QUIT", LHLO + b"QUIT\r", LHLO + MAIL + ALICE[:-1], LHLO + b"x" * 4999,
        LHLO + MAIL + ALICE + b"D",
    ],
)  # fmt: skip
def test_a_command_cut_short_by_the_end_of_file_is_no_command(script: bytes) -> None:
    whole = script[: script.rfind(b"\n") + 1]
    for pieces in ways(script):
        driver, other = Driver(new_protocol()), Driver(new_protocol())
        driver.run([*pieces, b""])
        other.run([whole, b""])
        assert (driver.events, driver.output) == (other.events, other.output)


@pytest.mark.parametrize("body", [b"", b"x", BODY, BODY + b".", BODY + b".\r", BODY + b".\n", b"x" * 3000])
@pytest.mark.parametrize("limit", [0, 10])
def test_the_end_of_file_amid_the_data_ends_no_message(body: bytes, limit: int) -> None:
    for pieces in ways(body):
        driver = Driver(new_protocol(max_message_size=limit))
        driver.feed(LHLO + MAIL + ALICE + DATA)
        driver.run([*pieces, b""])
        assert not any(isinstance(event, EndOfMessage) for event in driver.events)
        assert driver.events[-1] == CLOSED
        assert parse_replies(driver.output)[-1].code == 354


# --- clients that do nothing useful ----------------------------------------------------------------------------------

BAD = [b"BAD\r\n", b"\r\n", b"RCPT\r\n", b"MAIL\r\n", b"DATA\r\n", b"HELO x\r\n", b"QUIT x\r\n", b"x" * 2100 + b"\r\n"]


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("bad", BAD)
def test_twenty_errors_in_a_row_close_the_session(bad: bytes, eager: bool) -> None:
    for pieces in ways(LHLO + bad * 25):
        driver = Driver(new_protocol(), eager=eager)
        driver.run(pieces)
        assert driver.events == [CLOSED]
        codes = [reply.code for reply in parse_replies(driver.output)]
        assert codes[0] == 250
        assert len(codes) == 1 + 20 + 1
        assert set(codes[1:-1]) <= {500, 501, 503}
        assert codes[-1] == 421


@pytest.mark.parametrize("good", [b"NOOP\r\n", LHLO, b"RSET\r\n", b"HELP\r\n", b"VRFY x\r\n"])
def test_a_command_that_is_none_starts_the_count_again(good: bytes) -> None:
    for pieces in ways((b"BAD\r\n" * 19 + good) * 3 + b"QUIT\r\n"):
        driver = Driver(new_protocol())
        driver.run(pieces)
        assert [reply.code for reply in parse_replies(driver.output)].count(500) == 57
        assert driver.output.endswith(b"221 2.0.0 Bye\r\n")


@pytest.mark.parametrize("rcpt", [NOBODY, LATER, ALICE])
def test_a_refusal_by_a_backend_or_for_too_many_is_no_error(rcpt: bytes) -> None:
    for eager in (True, False):
        driver = Driver(new_protocol(max_recipients=2), eager=eager)
        driver.run([LHLO + MAIL + rcpt * 100 + b"QUIT\r\n"])
        assert len(parse_replies(driver.output)) == 103
        assert driver.output.endswith(b"221 2.0.0 Bye\r\n")


def test_too_many_errors_do_not_swallow_what_is_owed() -> None:
    """Twenty bad RCPTs behind a good one in one piece: each has its reply, in order, as if they came one by one."""
    script = LHLO + MAIL + ALICE + b"RCPT bad\r\n" * 20
    for pieces in ways(script):
        for eager in (True, False):
            driver = Driver(new_protocol(), eager=eager)
            driver.run(pieces)
            assert driver.events == [M, A, CLOSED]
            codes = [reply.code for reply in parse_replies(driver.output)]
            assert codes == [250, 250, 250, *[501] * 20, 421]


@pytest.mark.parametrize("noise", [b"x", b"\r", b"\0", b"\xff", b"RCPT TO:<", b".", b"\r\r.\r\r"])
def test_a_line_without_end_is_not_kept(noise: bytes) -> None:
    protocol = new_protocol()
    for _ in range(200):
        protocol.receive_data((noise * 4096)[:4096])
        assert protocol.next_event() is Wait.NEED_DATA
        assert buffered(protocol) < 2048
        assert protocol.data_to_send() == b""
    protocol.receive_data(b"\r\n")
    assert drain(protocol) == [Wait.NEED_DATA]
    assert [reply.code for reply in parse_replies(protocol.data_to_send())] == [500]


def test_a_body_is_not_kept() -> None:
    protocol, _ = started(ALICE)
    protocol.reply(accept(1))
    protocol.receive_data(DATA)
    assert drain(protocol) == [D]
    protocol.start_data()
    for _ in range(20):
        protocol.receive_data(b"x" * 65536)
        assert protocol.next_event() == MessageOctets(b"x" * 65536)
        assert protocol.next_event() is Wait.NEED_DATA
        assert buffered(protocol) == 0


def test_many_commands_give_the_others_a_turn() -> None:
    protocol, _ = started(MAIL)
    protocol.data_to_send()
    protocol.receive_data(b"NOOP\r\n" * 250)
    assert [protocol.next_event() for _ in range(3)] == [Wait.BUSY, Wait.BUSY, Wait.NEED_DATA]
    assert len(parse_replies(protocol.data_to_send())) == 250


@pytest.mark.parametrize(
    ("behind", "follows"),
    [(b"DATA\r\n", True), (b"data\r\nx", True), (b"DATA", False), (b"DATA x\r\n", False), (b"", False)],
)
def test_it_tells_when_data_stands_behind_the_recipients(behind: bytes, follows: bool) -> None:
    protocol, events = started(ALICE, NOBODY, behind)
    assert events[-1] is Wait.PAUSED
    assert protocol.data_follows is follows


# --- the session's side ----------------------------------------------------------------------------------------------


def test_properties_follow_a_message() -> None:
    protocol = new_protocol()

    def flags() -> tuple[bool, bool, int]:
        return protocol.in_transaction, protocol.in_data, protocol.owed

    assert flags() == (False, False, 0)
    protocol.receive_data(LHLO + MAIL)
    drain(protocol)
    assert flags() == (True, False, 0)
    protocol.receive_data(ALICE + ALICE)
    drain(protocol)
    assert flags() == (True, False, 2)
    protocol.reply(accept(1))
    protocol.reply(accept(2))
    protocol.receive_data(DATA)
    drain(protocol)
    assert flags() == (True, False, 0)
    protocol.start_data()
    assert flags() == (True, True, 0)
    protocol.receive_data(BODY + DOT)
    drain(protocol)
    assert flags() == (True, False, 2)
    protocol.reply(accept(1))
    protocol.reply(accept(2))
    assert flags() == (False, False, 0)


@pytest.mark.parametrize(
    "script",
    [b"", LHLO, LHLO + MAIL, LHLO + MAIL + ALICE, LHLO + MAIL + ALICE + DATA + BODY, LHLO + transaction(ALICE)],
)
def test_the_session_may_close_at_any_time(script: bytes) -> None:
    protocol = new_protocol()
    if script:
        protocol.receive_data(script)
    while not isinstance(event := protocol.next_event(), Wait | ConnectionClosed):
        if isinstance(event, DataCommand):
            protocol.start_data()
        if isinstance(event, RcptCommand) and DATA in script:
            protocol.reply(accept(1))
    protocol.data_to_send()
    protocol.close(say.SHUTTING_DOWN)
    assert protocol.data_to_send() == say.SHUTTING_DOWN.to_bytes()
    assert protocol.next_event() == CLOSED
    assert (protocol.in_transaction, protocol.in_data, protocol.owed) == (False, False, 0)
    protocol.receive_data(b"NOOP\r\n")
    assert protocol.next_event() == CLOSED
    assert protocol.data_to_send() == b""


WHOLE = MAIL + ALICE + DATA + BODY + DOT


@pytest.mark.parametrize("split", range(len(WHOLE) + 1))
def test_completes_says_whether_the_final_dot_is_among_the_octets(split: int) -> None:
    """Asked while a backend is waited for: what was received, and what lies in the socket of a client that is gone."""
    driver = Driver(new_protocol())
    driver.run([LHLO, *([WHOLE[:split]] if split else [])])
    assert not driver.protocol.completes(b"") or split == len(WHOLE)
    for end in range(split, len(WHOLE)):
        assert not driver.protocol.completes(WHOLE[split:end])
    if split < len(WHOLE):
        assert driver.protocol.completes(WHOLE[split:])
        assert driver.protocol.completes(WHOLE[split:] + b"QUIT\r\n")
        # Nothing of it was taken in.
        driver.feed(WHOLE[split:])
    assert driver.events == [M, A, D, OCTETS, E]
    assert starts(driver.output, [LHLO_OK, MAIL_OK, ALICE_OK, GO, saved(1, 0)])


def test_completes_while_recipients_are_waited_for() -> None:
    protocol, events = started(ALICE, DATA, BODY)
    assert events == [A, Wait.PAUSED]
    assert not protocol.completes(b"")
    assert not protocol.completes(b"\r\n.\n")
    assert protocol.completes(DOT)
    protocol, _ = started(ALICE, DATA, BODY, DOT)
    assert protocol.completes(b"")


@pytest.mark.parametrize("body", [b"", BODY])
def test_completes_while_backends_are_asked_for_data(body: bytes) -> None:
    protocol, _ = started(ALICE, DATA)
    protocol.reply(accept(1))
    assert drain(protocol) == [D]
    assert not protocol.completes(body)
    assert protocol.completes(body + DOT)
    protocol.start_data()
    assert not protocol.completes(body)
    assert protocol.completes(body + DOT)


def test_completes_amid_the_data_wants_the_true_end() -> None:
    protocol, _ = started(ALICE, DATA)
    protocol.reply(accept(1))
    assert drain(protocol) == [D]
    protocol.start_data()
    protocol.receive_data(b"x\r\n.")
    drain(protocol)
    assert not protocol.completes(b"\n")
    assert not protocol.completes(b".\r\n")
    assert not protocol.completes(b"\r")
    assert protocol.completes(b"\r\n")
    protocol.receive_data(b"\nambiguous\r\n")
    drain(protocol)
    assert not protocol.completes(b"")
    assert protocol.completes(DOT)


def test_a_reply_that_is_not_owed_is_our_bug() -> None:
    protocol = new_protocol()
    with pytest.raises(LocalProtocolError, match="0 replies are owed"):
        protocol.reply(accept(1))
    protocol, _ = started(ALICE)
    protocol.reply(accept(1))
    with pytest.raises(LocalProtocolError, match="0 replies are owed"):
        protocol.reply(accept(2))


def test_a_final_reply_too_many_is_our_bug() -> None:
    driver = Driver(new_protocol())
    driver.feed(LHLO + transaction(ALICE))
    with pytest.raises(LocalProtocolError, match="0 replies are owed"):
        driver.protocol.reply(accept(2))


def test_start_data_out_of_turn_is_our_bug() -> None:
    protocol, _ = started(ALICE)
    with pytest.raises(LocalProtocolError, match="no DATA"):
        protocol.start_data()
    protocol.reply(accept(1))
    protocol.receive_data(DATA)
    assert drain(protocol) == [D]
    with pytest.raises(LocalProtocolError, match="start_data"):
        protocol.next_event()
    protocol.start_data()
    with pytest.raises(LocalProtocolError, match="no DATA"):
        protocol.start_data()


def test_repr_says_where_the_session_is() -> None:
    driver = Driver(new_protocol())
    protocol = driver.protocol
    assert "idle" in repr(protocol)
    driver.feed(LHLO + MAIL + ALICE + NOBODY + b"NOO")
    assert all(word in repr(protocol) for word in ("envelope", "accepted=1", "owed=0", "buffered=3"))
    driver.feed(b"P\r\n" + DATA)
    assert "data" in repr(protocol)
    protocol.receive_data(BODY + DOT)
    drain(protocol)
    assert all(word in repr(protocol) for word in ("replying", "accepted=1", "owed=1", "buffered=0"))
    protocol.close(say.IDLE_TOO_LONG)
    assert "closed" in repr(protocol)


@pytest.mark.parametrize("event", [M, A, D, OCTETS, E, TransactionReset(), CLOSED])
def test_events_are_frozen_values(event: Event) -> None:
    twin = copy.copy(event)
    assert event == twin and hash(event) == hash(twin)
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError, AttributeError)):
        event.anything = 1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("octets", "follows"),
    [
        *((b"", None), (b"q", None), (b"QUIT\r", None)),
        *((b"quit\r\n", True), (b"QUIT\r\nNOOP\r\n", True)),
        *((b"QUIT \r\n", False), (b"RSET\r\n", False), (b"QUITE\r\n", False), (b"\r\n", False)),
    ],
)
def test_whether_quit_follows(octets: bytes, follows: bool | None) -> None:
    protocol = new_protocol()
    protocol.receive_data(LHLO + octets)
    if octets:
        protocol._lines.position = len(LHLO)
    else:
        assert drain(protocol) == [Wait.NEED_DATA]
    assert protocol.quit_follows is follows


@pytest.mark.parametrize(
    ("unread", "more", "said"),
    [
        (b"QUIT\r\n", b"", True),
        (b"", b"quit\r\n", True),
        (b"RSET\r\nQU", b"IT\r\n", True),
        *((b"", b"", False), (b"RSET\r\n", b"NOOP\r\n", False), (b"NOQUIT\r\n", b"", False), (b"QUIT", b"", False)),
    ],
)
def test_whether_quit_was_said_and_not_read(unread: bytes, more: bytes, said: bool) -> None:
    protocol = new_protocol()
    protocol.receive_data(LHLO + unread)
    protocol._lines.position = len(LHLO)
    assert protocol.quit_is_among(more) is said


# --- before LHLO: what is no client -----------------------------------------------------------------------------------

FOREIGN = [
    b"GET / HTTP/1.1",
    b"post /x HTTP/1.1",
    b"HEAD",
    b"CONNECT mx:24 HTTP/1.1",
    b"PRI * HTTP/2.0",
    b"Host: mx.example.test:24",
    b"X-A:b",
    b"MAIL: x",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2",
]


@pytest.mark.parametrize("line", FOREIGN)
@pytest.mark.parametrize("before", [b"", b"NOOP\r\nX y\r\n", b"x" * 3000 + b"\r\n"])
def test_what_is_no_client_is_closed_at_once(line: bytes, before: bytes) -> None:
    script = before + line + b"\r\n" + LHLO + MAIL + ALICE + DATA
    for pieces in ways(script):
        driver = Driver(new_protocol())
        assert isinstance(driver.run(pieces), ConnectionClosed)
        assert driver.output.endswith(say.NOT_A_CLIENT.to_bytes())
        assert driver.refused[-1] == RefusedCommand(line, say.NOT_A_CLIENT, None, True, Mistake.FOREIGN)
        assert b"250 2.1" not in driver.output and b"354" not in driver.output


@pytest.mark.parametrize("line", [*FOREIGN, b"GETTING x", b"a b: c", b": x"])
def test_behind_lhlo_or_if_it_is_none_of_those_it_is_a_mistake(line: bytes) -> None:
    known = line in FOREIGN
    script = (LHLO if known else b"") + line + b"\r\n" + (b"" if known else LHLO) + b"QUIT\r\n"
    for pieces in ways(script):
        driver = Driver(new_protocol())
        driver.run(pieces)
        assert [refused[:2] for refused in driver.refused] == [(line, say.BAD_COMMAND)]
        assert driver.output.endswith(say.BYE.to_bytes())


def test_what_is_forwarded_of_the_client_is_for_one_message() -> None:
    said = b"XFORWARD ADDR=192.0.2.1 PORT=4711\r\n"
    for trusted in (True, False):
        driver = Driver(Protocol("p", max_message_size=0, max_recipients=9, smtputf8=True, trusted=trusted))
        assert driver.protocol.forwarded == ()
        driver.feed(LHLO + said + MAIL)
        told = {"ADDR": b"192.0.2.1", "PORT": b"4711"} if trusted else {}
        assert dict(driver.protocol.forwarded) == told
        driver.feed(b"RSET\r\n")
        assert dict(driver.protocol.forwarded) == {}
        driver.feed(said + MAIL + ALICE + DATA + BODY + DOT)
        assert dict(driver.protocol.forwarded) == {}
