"""What the proxy says to a backend: only what that backend offered, authentication, lockstep without PIPELINING."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.faults.conftest import Pair
from tests.support.accounting import check_earned
from tests.support.backend import FakeBackend
from tests.support.client import LmtpClient
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import Close, Pause, Script, raw, say

PASSWORD = "pä ßwörd: #'\"\\ €"
ENHANCED = ("ENHANCEDSTATUSCODES",)
XFORWARD = b"XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE"  # on a unix socket everybody is trusted


@contextmanager
def authenticating(script: Script, **keys: object) -> Iterator[tuple[FakeBackend, ProxyProcess]]:
    with FakeBackend(script, transport="tcp") as backend:
        config = config_of({"a": backend})
        config["backends"]["a"] = {**backend.config, **keys}
        with ProxyProcess(config, environment={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}) as proxy:
            yield backend, proxy
            assert PASSWORD not in proxy.log()


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5", "GSSAPI DIGEST-MD5 PLAIN", "PLAIN LOGIN CRAM-MD5"])
def test_the_password_arrives_exactly(mechanism: str) -> None:
    script = Script(
        offer=("PIPELINING", f"AUTH {mechanism}"),
        credentials=("proxy@x", PASSWORD),
        offer_after_auth=("PIPELINING", "ENHANCEDSTATUSCODES", "SIZE", "8BITMIME"),
    )
    with authenticating(script, user="proxy@x", password=PASSWORD) as (backend, proxy), proxy.client() as client:
        client.send(b"MAIL FROM:<s@x> SIZE=100 BODY=8BITMIME\r\nRCPT TO:<u@a>\r\nDATA\r\n")
        assert [client.reply().code for _ in range(3)] == [250, 250, 354]
        client.send(b"x\r\n.\r\n")
        assert client.reply().positive
        client.quit()
        (connection,) = backend.connections
        verbs = [line.split()[0].upper() for line in connection.commands]
        assert verbs[:4] == [b"LHLO", b"AUTH", b"LHLO", b"MAIL"], "LHLO again after AUTH, and nothing before"
        assert connection.transactions[0].line.upper().endswith(b"> SIZE=100 BODY=8BITMIME")


def test_a_password_file_is_read(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("p") / "password"
    path.write_bytes(PASSWORD.encode() + b"\n")
    script = Script(offer=("AUTH PLAIN",), credentials=("u", PASSWORD))
    with authenticating(script, user="u", password_file=str(path)) as (_, proxy), proxy.client() as client:
        assert client.deliver("s@x", ["u@a"]).verdict(0).positive
        client.quit()


@pytest.mark.parametrize("offer", [(), ("AUTH",), ("AUTH GSSAPI",), ("XAUTH PLAIN",), ("AUTHX PLAIN LOGIN",)])
def test_no_password_without_a_usable_offer(offer: tuple[str, ...]) -> None:
    script = Script(offer=("PIPELINING", *offer), credentials=("u", PASSWORD))
    with authenticating(script, user="u", password=PASSWORD) as (backend, proxy), proxy.client() as client:
        assert client.deliver("s@x", ["u@a"]).verdict(0).text.startswith("451 4.7.0")
        client.quit()
        secret = base64.b64encode(PASSWORD.encode())
        for connection in backend.connections:
            assert not connection.auth_lines and not connection.transactions
            assert not any(secret in line or PASSWORD.encode() in line for line in connection.commands)


def test_a_wrong_password_defers_and_is_no_plain_delivery() -> None:
    script = Script(offer=("PIPELINING", "AUTH PLAIN LOGIN"), credentials=("u", "right"))
    with authenticating(script, user="u", password=PASSWORD) as (backend, proxy), proxy.client() as client:
        reply = client.deliver("s@x", ["u@a"]).verdict(0)
        assert reply.text.startswith("451 4.7.0")
        assert not backend.transactions()
        client.quit()


def test_no_auth_without_a_user() -> None:
    with authenticating(Script(offer=("PIPELINING", "AUTH PLAIN EXTERNAL"))) as (backend, proxy):
        with proxy.client() as client:
            assert client.deliver("s@x", ["u@a"]).verdict(0).positive
            client.quit()
        assert not backend.connections[0].auth_lines


@pytest.mark.parametrize(
    "offer, line",
    [
        (("SIZE", "8BITMIME"), b"MAIL FROM:<s@x> SIZE=100 BODY=8BITMIME"),
        (("SIZE 20000",), b"MAIL FROM:<s@x> SIZE=100"),
        (("8BITMIME",), b"MAIL FROM:<s@x> BODY=8BITMIME"),
        (("size", "8bitmime"), b"MAIL FROM:<s@x> SIZE=100 BODY=8BITMIME"),
        ((), b"MAIL FROM:<s@x>"),
        (("XSIZE", "SIZEX", "AUTH SIZE"), b"MAIL FROM:<s@x>"),
    ],
)
def test_parameters_are_filtered_per_backend(pair: Pair, offer: tuple[str, ...], line: bytes) -> None:
    pair.a.script = Script(offer=("PIPELINING", *offer))
    with pair.proxy.client() as client:
        client.send(b"MAIL FROM:<s@x> SIZE=100 BODY=8BITMIME\r\nRCPT TO:<u@a>\r\nRCPT TO:<u@b>\r\nDATA\r\n")
        assert [client.reply().code for _ in range(4)] == [250, 250, 250, 354]
        client.send(b"x\r\n.\r\n")
        assert client.reply().positive and client.reply().positive
        client.quit()
    assert pair.a.transactions()[0].line.upper() == line.upper()
    assert pair.b.transactions()[0].line.upper() == b"MAIL FROM:<S@X> SIZE=100 BODY=8BITMIME"


def test_the_word_after_250_is_no_offer(pair: Pair) -> None:
    """Cyrus ends its LHLO reply with `250 Ok SESSIONID=<...>`; the first line is a greeting, not a keyword."""
    pair.a.script = Script(lhlo=say("250-SIZE", "250-PIPELINING", "250 Ok SESSIONID=<a-1>"))
    with pair.proxy.client() as client:
        client.send(b"MAIL FROM:<s@x> SIZE=100\r\nRCPT TO:<u@a>\r\n")
        assert [client.reply().code for _ in range(2)] == [250, 250]
        client.quit()
    assert pair.a.transactions()[0].line.upper() == b"MAIL FROM:<S@X>"


@pytest.fixture(scope="module")
def utf8_pair() -> Iterator[Pair]:
    with (
        FakeBackend(Script(offer=("PIPELINING", "SMTPUTF8", "8BITMIME"))) as a,
        FakeBackend(Script(offer=("PIPELINING", "8BITMIME"))) as b,
        ProxyProcess(config_of({"a": a, "b": b})) as proxy,
    ):
        yield Pair(proxy, a, b)


def utf8_mail(client: LmtpClient, sender: str, recipients: list[str]) -> list[str]:
    lines = [f"MAIL FROM:<{sender}> BODY=8BITMIME SMTPUTF8", *(f"RCPT TO:<{recipient}>" for recipient in recipients)]
    client.send("".join(line + "\r\n" for line in lines).encode())
    assert client.reply().code == 250
    return [client.reply().text for _ in recipients]


def test_smtputf8_goes_where_it_was_offered(utf8_pair: Pair) -> None:
    with utf8_pair.proxy.client() as client:
        utf8_pair.a.forget()
        utf8_pair.b.forget()
        told = utf8_mail(client, "s@x", ["u@a", "ü@a", "u@b", "ü@b"])
        assert [text[:9] for text in told] == ["250 2.1.5", "250 2.1.5", "250 2.1.5", "553 5.6.7"]
        assert utf8_pair.a.transactions()[0].line == b"MAIL FROM:<s@x> BODY=8BITMIME SMTPUTF8"
        assert utf8_pair.b.transactions()[0].line == b"MAIL FROM:<s@x> BODY=8BITMIME"
        assert [recipient.line for recipient in utf8_pair.a.transactions()[0].recipients] == [
            b"RCPT TO:<u@a>",
            "RCPT TO:<ü@a>".encode(),
        ]
        assert client.command("RSET").positive
        utf8_pair.b.forget()
        told = utf8_mail(client, "sü@x", ["u@a", "u@b"])
        assert [text[:9] for text in told] == ["250 2.1.5", "553 5.6.7"]
        assert not utf8_pair.b.transactions()
        client.quit()


@pytest.mark.parametrize(("first", "second"), [(("SMTPUTF8",), ()), ((), ("SMTPUTF8",))])
@pytest.mark.parametrize("pipelining", [(), ("PIPELINING",)])
def test_smtputf8_follows_the_offer_of_each_connection(
    pipelining: tuple[str, ...], first: tuple[str, ...], second: tuple[str, ...]
) -> None:
    """A store that is upgraded, or goes back: what counts is the connection that the mail really goes over."""
    with (
        FakeBackend(Script(offer=(*pipelining, *first), mail_again=(Close(),))) as store,
        ProxyProcess(config_of({"a": store}, idle_timeout=30)) as proxy,
        proxy.client() as client,
    ):
        assert client.deliver("s@x", ["u@a"]).verdict(0).positive
        store.script = Script(offer=(*pipelining, *second))
        told = utf8_mail(client, "s@x", ["u@a", "ü@a", "v@a"])
        assert [text[:3] for text in told] == ["250", "250" if second else "553", "250"]
        client.quit()
        *_, last = store.transactions()
        assert last.line == b"MAIL FROM:<s@x>" + (b" SMTPUTF8" if second else b"")
        assert len(last.recipients) == (3 if second else 2)


def test_smtputf8_can_be_switched_off() -> None:
    with (
        FakeBackend() as store,
        ProxyProcess(config_of({"a": store}, smtputf8=False)) as proxy,
        proxy.client(greeted=False) as client,
    ):
        assert client.reply().code == 220
        words = set(client.command("LHLO x").lines[1:])
        assert words == {b"PIPELINING", b"ENHANCEDSTATUSCODES", b"8BITMIME", b"SIZE", XFORWARD}
        assert client.command("MAIL FROM:<s@x> SMTPUTF8").text.startswith("555 5.5.4")
        client.quit()


def test_the_offer(pair: Pair) -> None:
    with pair.proxy.client(greeted=False) as client:
        assert client.reply().code == 220
        words = set(client.command("LHLO x").lines[1:])
        assert words == {b"PIPELINING", b"ENHANCEDSTATUSCODES", b"8BITMIME", b"SIZE", b"SMTPUTF8", XFORWARD}
        client.quit()


@pytest.mark.parametrize("offer", [(), ENHANCED, ("XPIPELINING", "CHUNKING")])
def test_lockstep_without_pipelining(pair: Pair, offer: tuple[str, ...]) -> None:
    pause = (Pause(0.02),)
    pair.a.script = Script(
        offer=offer,
        mail=pause + say("250 2.1.0 ok"),
        rcpt=pause + say("250 2.1.5 ok"),
        data=pause + say("354 go"),
        final=pause + say("250 2.0.0 ok"),
    )
    with pair.proxy.client() as client:
        outcome = client.deliver("s@x", ["u@a", "v@b", "w@a", "x@a"])
        assert all(outcome.verdict(position).positive for position in range(4))
        check_earned(outcome, [pair.a, pair.b, pair.a, pair.a])
        client.quit()
    assert pair.a.wait_closed(1)
    for connection in pair.a.connections:
        assert connection.pipelined == [], "more than one command was on its way"
        assert connection.early == [], "bytes came before the last answer was sent"


def test_a_group_is_one_write_with_pipelining(pair: Pair) -> None:
    with pair.proxy.client() as client:
        client.deliver("s@x", ["u@a", "v@b", "w@a", "x@a"])
        client.quit()
    for backend in (pair.a, pair.b):
        assert any(line.startswith(b"MAIL") for line in backend.connections[0].pipelined), "MAIL went alone"
    assert [line for line in pair.a.connections[0].pipelined if line.startswith(b"RCPT")]


def test_paths_pass_byte_for_byte(pair: Pair) -> None:
    paths = [
        '"quoted user"@a', "UPPER.case@a", "u+Detail@a", '"a\\"b@c"@a', "@relay.test,@other:u@a",
        "u=x_{}|~!#$%&'*/?^`@a",
    ]  # fmt: skip
    for sender in ("", '"odd sender"@x', "a+b@X.Test", "user@[192.0.2.1]"):
        pair.a.forget()
        with pair.proxy.client() as client:
            outcome = client.deliver(sender, paths)
            assert [outcome.verdict(position).text for position in range(len(paths))] == ["250 2.0.0 stored"] * len(
                paths
            )
            client.quit()
        (seen,) = pair.a.transactions()
        assert seen.line.startswith(f"MAIL FROM:<{sender}>".encode())
        assert [recipient.line for recipient in seen.recipients] == [f"RCPT TO:<{path}>".encode() for path in paths]


@pytest.mark.parametrize(
    "line",
    [
        b"RCPT TO:<u@a>\rRCPT TO:<v@a>",
        b"RCPT TO:<u@a\nRCPT TO:<v@a>",
        b"RCPT TO:<u\0@a>",
        b"RCPT TO:<u@a> X=\r\x00",
        b"RCPT TO:<u@a>\x85RCPT TO:<v@a>",
        b"RCPT TO:<u@a",
        b"RCPT TO:<u>@a>",
        b"RCPT TO:<u@a> ORCPT=rfc822;u+",
        b"RCPT TO:<u@a> ORCPT=rfc822;u@a NOTIFY=NEVER",
        b"RCPT TO:<u\xff@a>",
        b"RCPT TO:<u @a>",
    ],
)
def test_nothing_half_valid_reaches_a_backend(pair: Pair, line: bytes) -> None:
    with pair.proxy.client() as client:
        assert client.command("MAIL FROM:<s@x>").positive
        client.send(line + b"\r\n")
        first = client.reply()
        assert first.code in (500, 501, 553, 555), first
        client.send(b"RCPT TO:<good@a>\r\nNOOP\r\n")
        replies = [client.reply(), client.reply()]
        while not client.silent(0.05):
            replies.append(client.reply())  # a line feed alone may count as a line end, or not
        assert [reply.code for reply in replies[-2:]] == [250, 250], replies
        client.quit()
    allowed = {b"RCPT TO:<good@a>"} | ({b"RCPT TO:<v@a>"} if b"\n" in line else set())
    for seen in pair.a.transactions():
        assert {recipient.line for recipient in seen.recipients} <= allowed, seen


@pytest.mark.parametrize("offer", [(), ("PIPELINING", "DSN")])
def test_orcpt_goes_to_no_backend(pair: Pair, offer: tuple[str, ...]) -> None:
    """Cyrus answers it with a 501, which would bounce the mail."""
    pair.a.script = Script(offer=offer)
    lines = [
        "RCPT TO:<u@a> ORCPT=rfc822;U+2Bx@b",
        "RCPT TO:<u@a>",
        "RCPT TO:<v@b> orcpt=rfc822;v",
        "RCPT TO:<u@a> ORCPT=x;y",
    ]
    with pair.proxy.client() as client:
        client.send("".join(f"{line}\r\n" for line in ["MAIL FROM:<s@x>", *lines, "DATA"]).encode())
        assert [client.reply().code for _ in range(6)] == [250, 250, 250, 250, 250, 354]
        client.send(b"x\r\n.\r\n")
        assert [client.reply().text for _ in range(4)] == ["250 2.0.0 stored"] * 4
        client.quit()
    (seen,) = pair.a.transactions()
    assert [recipient.line for recipient in seen.recipients] == [b"RCPT TO:<u@a>"] * 3
    assert pair.b.transactions()[0].recipients[0].line == b"RCPT TO:<v@b>"


def test_a_backend_that_greets_in_many_lines(pair: Pair) -> None:
    pair.a.script = Script(greeting=raw(b"220-first\r\n220-second\r\n220 third\r\n"))
    with pair.proxy.client() as client:
        assert client.deliver("s@x", ["u@a"]).verdict(0).positive
        client.quit()
