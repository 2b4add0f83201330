# SPDX-License-Identifier: GPL-3.0-or-later
"""XFORWARD: of all attributes the queue id is kept, if it is one; the syntax of all is looked at."""

import pytest

from lmtp_proxy.wire import reply as say
from lmtp_proxy.wire.xforward import NAMES, Forwarded


def test_whom_it_is_offered() -> None:
    assert Forwarded(True).offered == NAMES
    assert Forwarded(False).offered == ()


@pytest.mark.parametrize(
    ("arguments", "queue_id"),
    [
        (b"IDENT=4fX1z0", "4fX1z0"),
        (b"ident=3C1DB2040B", "3C1DB2040B"),
        (b"NAME=a.b ADDR=IPV6:::1 PORT=25 PROTO=ESMTP HELO=+20+3D+2B IDENT=A+42C SOURCE=REMOTE", "ABC"),
        (b"  IDENT=A   PORT=[UNAVAILABLE]  ", "A"),
        (b"IDENT=A IDENT=B", "B"),
        (b"IDENT=" + b"z" * 64, "z" * 64),
        # none of the usual kind: it could not be put on a command line, or is not Postfix' at all
        (b"IDENT=[UNAVAILABLE]", None),
        (b"IDENT=" + b"z" * 65, None),
        *((b"IDENT=" + odd, None) for odd in (b"-f", b"1sXyz-0001", b"a+0Ab", b"a+20b", b"+C3+A4", b"a;b", b"$(x)")),
        # said before, and not said now
        (b"PROTO=ESMTP", "before"),
    ],
)
def test_queue_id(arguments: bytes, queue_id: str | None) -> None:
    forwarded = Forwarded(True)
    assert forwarded.take(b"IDENT=before", None) == say.OK
    assert forwarded.take(arguments, None) == say.OK
    assert forwarded.queue_id == queue_id


@pytest.mark.parametrize(
    ("arguments", "client"),
    [
        (b"IDENT=A NAME=x SOURCE=REMOTE", {}),
        (
            b"proto=ESMTP HELO=mx-1.Example ADDR=IPV6:::1 PORT=65535 login=a+20b NAME=x",
            {"ADDR": b"IPV6:::1", "HELO": b"mx-1.Example", "LOGIN": b"a+20b", "PORT": b"65535", "PROTO": b"ESMTP"},
        ),
        (b"ADDR=192.0.2.1 PROTO=SMTP", {"ADDR": b"192.0.2.1", "PROTO": b"SMTP"}),
        (b"ADDR=[UNAVAILABLE] HELO=[unavailable] LOGIN=[UNAVAILABLE] PORT=[UNAVAILABLE] PROTO=[UNAVAILABLE]", {}),
        (b"ADDR=mx ADDR=1.2.3 PORT=0 PORT=x HELO=a_b HELO=-a HELO=a. HELO=a+20b PROTO=QMQP", {}),
        (b"ADDR=192.0.2.1 ADDR=x", {}),
        (b"ADDR=999.0.2.1 PORT=65536", {}),
        (b"ADDR=IPV6:1:2", {}),
        (b"ADDR=IPV6:192.0.2.1", {}),
    ],
)
def test_of_the_client_what_a_store_takes(arguments: bytes, client: dict[str, bytes]) -> None:
    forwarded = Forwarded(True)
    assert forwarded.client == ()
    assert forwarded.take(arguments, None) == say.OK
    assert dict(forwarded.client) == client and list(forwarded.client) == sorted(forwarded.client)


def test_it_is_said_bit_by_bit_and_for_one_message() -> None:
    forwarded = Forwarded(True)
    forwarded.take(b"ADDR=192.0.2.1 PORT=1", None)
    forwarded.take(b"PORT=2 IDENT=A", None)
    assert dict(forwarded.client) == {"ADDR": b"192.0.2.1", "PORT": b"2"}
    assert forwarded.take(b"PORT=3 X=1", None) == say.BAD_XFORWARD
    assert dict(forwarded.client)["PORT"] == b"2"
    forwarded.queue_id = ""  # the message is over
    assert dict(forwarded.client) == {}
    forwarded.take(b"HELO=a", None)
    assert dict(forwarded.client) == {"HELO": b"a"}


def test_mail_that_has_none_is_told_from_a_client_that_says_none() -> None:
    """Postfix says SOURCE alone of mail from sendmail(1)."""
    forwarded = Forwarded(True)
    assert forwarded.queue_id == ""
    assert forwarded.take(b"SOURCE=LOCAL", None) == say.OK
    assert forwarded.queue_id is None


@pytest.mark.parametrize(
    "arguments",
    [
        *(b"", b" ", b"IDENT", b"IDENT=", b"=A", b"TTL=5", b"IDENT A", b"IDENT=A\tPORT=1", b"IDENT=A XYZ=1"),
        *(b"IDENT=A PORT=", b"IDENT=a=b", b"IDENT=a+2", b"IDENT=a+zz", b"IDENT=a+2b", b"IDENT=\xc3\xa4", b"IDENT=a\0"),
        b"HELO=" + b"x" * 256,
    ],
)
def test_bad_syntax_changes_nothing(arguments: bytes) -> None:
    forwarded = Forwarded(True)
    forwarded.take(b"IDENT=before", None)
    assert forwarded.take(arguments, None) == say.BAD_XFORWARD
    assert forwarded.queue_id == "before"


def test_out_of_turn() -> None:
    forwarded = Forwarded(True)
    assert forwarded.take(b"IDENT=A", say.LATE_XFORWARD) == say.LATE_XFORWARD
    assert Forwarded(False).take(b"IDENT=A", say.LATE_XFORWARD) == say.BAD_COMMAND
    assert forwarded.queue_id == ""
