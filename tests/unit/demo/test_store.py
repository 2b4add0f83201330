# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's store, spoken to over real sockets in plain bytes: what it keeps must be what was sent."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmtp_proxy.demo.store import Store, user_of
from tests import ROOT

TRACE_LINES = 2  # Return-Path and Delivered-To, put in front of each copy


class Client:
    """A scripted peer: writes bytes, reads whole replies. Used as `with Client(address) as client`."""

    def __init__(self, address: str | tuple[str, int]) -> None:
        self.sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.sock.settimeout(10)
        self.sock.connect(address)
        self.file = self.sock.makefile("rb")

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.sock.close()

    def reply(self) -> str:
        lines = []
        while (line := self.file.readline().decode()) and line[3:4] == "-":
            lines.append(line)
        return "".join([*lines, line])

    def say(self, data: bytes, replies: int = 1) -> list[str]:
        self.sock.sendall(data)
        return [self.reply() for _ in range(replies)]

    def envelope(self, *recipients: bytes) -> list[str]:
        """From the greeting to the 354, all in one write."""
        group = b"LHLO me\r\nMAIL FROM:<s@x.test>\r\n" + b"".join(b"RCPT TO:<%s>\r\n" % r for r in recipients)
        return self.say(group + b"DATA\r\n", 4 + len(recipients))


@pytest.fixture(params=["unix", "tcp"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    address = str(tmp_path / "s") if request.param == "unix" else ("127.0.0.1", 0)
    with Store("old", address, tmp_path / "mail", users=["alice", "bob"], max_size=1000) as running:
        yield running


def client_of(store: Store) -> Client:
    return Client(store.server_address)  # type: ignore[arg-type]


def kept(store: Store, user: str) -> list[bytes]:
    """What was stored for a user, without the trace header."""
    return [path.read_bytes().split(b"\r\n", TRACE_LINES)[TRACE_LINES] for path in store.messages(user)]


def test_offers_what_postfix_wants(store: Store) -> None:
    with client_of(store) as client:
        assert client.reply().startswith("220 ")
        [reply] = client.say(b"lhlo me\r\n")
        for word in ("PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES", "SIZE 1000"):
            assert word in reply


def test_one_reply_and_one_copy_for_each_recipient(store: Store, tmp_path: Path) -> None:
    with client_of(store) as client:
        replies = client.envelope(b"alice@x.test", b"nobody@x.test", b"Bob+work@x.test", b"alice@x.test")
        assert [reply[:9] for reply in replies[3:]] == [
            "250 2.1.5", "550 5.1.1", "250 2.1.5", "250 2.1.5", "354 End d"]  # fmt: skip
        final = client.say(b"Subject: a\r\n\r\nbody\r\n.\r\nQUIT\r\n", 4)
    assert final == [
        "250 2.1.5 alice saved in old\r\n",
        "250 2.1.5 bob saved in old\r\n",
        "250 2.1.5 alice saved in old\r\n",
        "221 2.0.0 Bye\r\n",
    ]
    assert kept(store, "alice") == [b"Subject: a\r\n\r\nbody\r\n"] * 2
    [path] = store.messages("bob")
    assert path.read_bytes().startswith(b"Return-Path: <s@x.test>\r\nDelivered-To: Bob+work@x.test\r\nSubject:")
    assert sorted(p.name for p in (tmp_path / "mail/bob").iterdir()) == ["cur", "new", "tmp"]
    assert list((tmp_path / "mail/bob/tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("wire", "stored"),
    [
        (b"", b""),
        (b"..\r\n...x\r\n.y\r\n", b".\r\n..x\r\ny\r\n"),
        (b"bare\n.\r\nlf\n..\n\r\n", b"bare\n.\r\nlf\n..\n\r\n"),
        (b"cr\r.\r\n.\nnot the end\r\n", b"cr\r.\r\n\nnot the end\r\n"),
        (b"\x00\xff\xe4\r\n", b"\x00\xff\xe4\r\n"),
    ],
)
def test_bytes_are_kept_and_stuffing_taken_off(store: Store, wire: bytes, stored: bytes) -> None:
    with client_of(store) as client:
        client.envelope(b"alice")
        for at in range(len(wire)):
            client.sock.sendall(wire[at : at + 1])
        assert client.say(b".\r\n")[0].startswith("250 ")
    assert kept(store, "alice") == [stored]


def test_a_line_of_any_length_is_kept(tmp_path: Path) -> None:
    wire = b"a" * 65535 + b"\r\n..b\r\n" + b"c" * 200_000 + b"\r\n"
    with Store("old", str(tmp_path / "s"), tmp_path / "mail") as store, client_of(store) as client:
        client.envelope(b"alice")
        assert client.say(wire + b".\r\n")[0].startswith("250 ")
        assert kept(store, "alice") == [wire.replace(b"..b", b".b")]


def test_too_big_is_read_to_its_end_and_refused_for_each(store: Store) -> None:
    with client_of(store) as client:
        client.envelope(b"alice", b"bob")
        final = client.say((b"x" * 98 + b"\r\n") * 11 + b".\r\nNOOP\r\n", 3)
        assert [reply[:9] for reply in final] == ["552 5.3.4", "552 5.3.4", "250 2.0.0"]
        assert client.say(b"MAIL FROM:<> SIZE=1001\r\n")[0].startswith("552 5.3.4")
        assert client.say(b"MAIL FROM:<> SIZE=1000 BODY=8BITMIME\r\n")[0].startswith("250 ")
    assert store.messages("alice") == []


def test_a_client_that_vanishes_before_the_dot_stores_nothing(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    with client_of(store) as client:
        client.envelope(b"alice")
        client.sock.sendall(b"half a mess")
    with client_of(store) as client:
        client.envelope(b"bob")
        client.say(b".\r\n")
    assert (store.messages("alice"), len(store.messages("bob"))) == ([], 1)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        (b"EHLO me", "500 5.5.1"),
        (b"RCPT TO:<alice>", "503 5.5.1"),
        (b"DATA", "503 5.5.1"),
        (b"MAIL TO:<alice>", "501 5.5.4"),
        (b"MAIL FROM:<a> RET=HDRS", "555 5.5.4"),
        (b"MAIL FROM:<a>\r\nMAIL FROM:<b>", "503 5.5.1"),
        (b"MAIL FROM:<a>\r\nRCPT TO:<>", "501 5.5.4"),
        (b"MAIL FROM:<a>\r\nRCPT TO:<alice> NOTIFY=NEVER", "555 5.5.4"),
        (b"MAIL FROM:<a>\r\nRCPT TO:<../../alice@x.test>", "550 5.1.1"),
        (b"MAIL FROM:<a>\r\nRCPT TO:<alice>\r\nRSET\r\nDATA", "503 5.5.1"),
        (b"vrfy alice", "252 2.1.5"),
        (b"NOOP " + b"x" * 3000, "500 5.5.2"),
    ],
)
def test_commands_it_answers_without_storing(store: Store, command: bytes, reply: str) -> None:
    with client_of(store) as client:
        client.reply()
        assert client.say(command + b"\r\n", 1 + command.count(b"\r\n"))[-1].startswith(reply)


def test_a_maildir_that_cannot_be_written_is_a_temporary_refusal(store: Store, tmp_path: Path) -> None:
    (tmp_path / "mail").mkdir()
    (tmp_path / "mail/alice").write_text("a file where the folder should be")
    with client_of(store) as client:
        client.envelope(b"alice", b"bob")
        assert [reply[:9] for reply in client.say(b".\r\n", 2)] == ["451 4.3.0", "250 2.1.5"]


@pytest.mark.parametrize(
    ("address", "user"),
    [
        (b"Alice@X", "alice"), (b"alice", "alice"), (b'"al"@x', "al"), (b"a+b+c@x", "a"), (b"0@x", "0"),
        (b"@x", None), (b"..@x", None), (b"a/b@x", None), (b"+x@x", None), (b"\xe4@x", None), (b'""@x', None),
    ],
)  # fmt: skip
def test_user_of(address: bytes, user: str | None) -> None:
    assert user_of(address) == user


def test_by_hand(tmp_path: Path) -> None:
    """As a program: says when it is ready, ends on SIGTERM, takes its socket with it."""
    path = tmp_path / "s"
    command = [sys.executable, "-m", "lmtp_proxy.demo.store", "--socket", str(path), "--maildir", str(tmp_path / "m")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready: store on ")
        with Client(str(path)) as client:
            client.envelope(b"carol@x.test")
            assert client.say(b"hello\r\n.\r\n") == ["250 2.1.5 carol saved in store\r\n"]
        assert len(list((tmp_path / "m/carol/new").iterdir())) == 1
        process.terminate()
        assert process.wait(10) == 0
    assert not path.exists()
