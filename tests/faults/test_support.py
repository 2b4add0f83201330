"""The instruments of these tests, tried against each other: client and scripted backend, the skip rule."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from tests import ROOT
from tests.support.accounting import check_earned
from tests.support.backend import FakeBackend
from tests.support.client import Disconnected, LmtpClient, Outcome, Reply
from tests.support.proxy import yaml_of
from tests.support.record import BodyReader, is_positive
from tests.support.script import Await, BodyTrigger, Close, Drip, Hang, Reset, Script, raw, say

TRANSPORTS = ["unix", "tcp"]


def connect(backend: FakeBackend, timeout: float = 20.0) -> LmtpClient:
    client = LmtpClient(backend.path if backend.transport == "unix" else ("127.0.0.1", backend.port), timeout=timeout)
    client.greet()
    return client


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_delivery_is_recorded(transport: str) -> None:
    script = Script(rcpt_by={"b@x": say("550-5.1.1 no", "550 5.1.1 such user")}, final_at={1: say("452 4.2.2 full")})
    with FakeBackend(script, transport=transport) as backend, connect(backend) as client:
        outcome = client.deliver("s@x", ["a@x", "b@x", "a@x"], b"..one\r\n\x00\xff\r\n")
        client.quit()
        assert backend.wait_closed(1)
        assert [reply.code for reply in outcome.rcpts] == [250, 550, 250]
        assert [final.code if final else None for final in outcome.finals] == [250, None, 452]
        check_earned(outcome, [backend] * 3)
        (seen,) = backend.transactions("s@x")
        assert seen.dotted and seen.body is not None and seen.body.bytes == b"..one\r\n\x00\xff\r\n"
        assert [recipient.final for recipient in seen.recipients] == [
            b"250 2.0.0 stored\r\n", None, b"452 4.2.2 full\r\n",
        ]  # fmt: skip
        assert b"MAIL FROM:<s@x>" in backend.connections[0].pipelined


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_faults_after_the_dot(transport: str) -> None:
    for step in (Close(), Reset()):
        with FakeBackend(Script(final_at={1: (step,)}), transport=transport) as backend, connect(backend) as client:
            outcome = client.envelope("s@x", ["a@x", "b@x"])
            client.send(b"x\r\n.\r\n")
            assert client.reply().code == 250
            with pytest.raises(Disconnected):
                client.reply()
            assert outcome.data is not None


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("peer", ["refused", "absent", "full"])
def test_unreachable_peers(transport: str, peer: str) -> None:
    with FakeBackend(transport=transport, peer=peer) as backend, pytest.raises((OSError, TimeoutError)):
        connect(backend, 0.3)


def test_body_faults_and_end_of_a_peer() -> None:
    script = Script(body=BodyTrigger(10, say("452 4.3.1 disk full")))
    with FakeBackend(script) as backend, connect(backend) as client:
        client.envelope("s@x", ["a@x"])
        client.send(b"0123456789abcdef")
        assert client.reply().text == "452 4.3.1 disk full"
        client.close()
        assert backend.wait_closed(1, 1.0)
        (seen,) = backend.transactions()
        assert not seen.dotted and seen.body is not None and seen.body.bytes == b"0123456789abcdef"


def test_a_hanging_backend_notices_the_end() -> None:
    for steps in ((Hang(),), (Await(threading.Event()),), (Drip(b"250 ok\r\n", 0.5),)):
        with FakeBackend(Script(rcpt=steps)) as backend, connect(backend) as client:
            client.send(b"MAIL FROM:<>\r\nRCPT TO:<a>\r\n")
            assert client.reply().code == 250
            time.sleep(0.05)
            client.close()
            assert backend.wait_closed(1, 1.0)


def test_bodies_end_at_the_first_crlf_dot_crlf_at_any_cut() -> None:
    data = b".\n\n.\r\n..\r\nend\r\n"
    whole = data + b".\r\nQUIT\r\n"
    for cut in range(1, len(whole)):
        reader = BodyReader(keep=True)
        rest = reader.feed(whole[:cut])
        rest = reader.feed(whole[cut:]) if rest is None else rest + whole[cut:]
        assert rest == b"QUIT\r\n" and reader.bytes == data and reader.size == len(data)
    empty = BodyReader(keep=True)
    assert empty.feed(b".\r\n") == b"" and empty.bytes == b""


def test_what_counts_as_positive() -> None:
    assert is_positive(b"250 ok\r\n") and is_positive(b"250-a\r\n250 b\r\n") and is_positive(b"250\r\n")
    for answer in (b"", None, b"250 ok", b"450 no\r\n", b"250-a\r\n", b"250-a\r\n550 b\r\n", b"250 o\0k\r\n"):
        assert not is_positive(answer)


def test_the_client_refuses_malformed_replies() -> None:
    for answer in (b"250 a\n", b"25 a\r\n", b"250-a\r\n251 b\r\n", b"250 a\rb\r\n", b"250 " + b"x" * 4096 + b"\r\n"):
        with FakeBackend(Script(mail=raw(answer))) as backend, connect(backend) as client:
            client.send(b"MAIL FROM:<>\r\n")
            with pytest.raises(AssertionError):
                client.reply()


def test_an_unearned_2xx_is_found() -> None:
    good, bad = Reply(250, (b"2.0.0 ok",)), Reply(451, (b"4.3.0 no",))
    with FakeBackend(Script(final_at={1: say("452 4.2.2 full")})) as backend, connect(backend) as client:
        outcome = client.deliver("s", ["a", "b"])
        check_earned(outcome, [backend, backend])
        for finals in ([good, good], [bad, bad]):
            with pytest.raises(AssertionError):
                check_earned(Outcome("s", ["a", "b"], good, [good, good], good, list(finals)), [backend, backend])


def ask_and_deliver(backend: FakeBackend, first: LmtpClient, to: str, code: int) -> None:
    """The first session is asked for `a`; on a second one the message comes for another."""
    for line, expected in (("MAIL FROM:<s>", 250), ("RCPT TO:<a>", code)):
        first.send(f"{line}\r\n".encode())
        assert first.reply().code == expected
    first.send(b"NOOP\r\n")
    first.reply()  # what was said before is recorded by now
    with connect(backend) as second:
        second.deliver("s", [to])


@pytest.mark.parametrize("answer", ["550 5.1.1 no", "250 2.1.5 ok"])
def test_who_heard_no_is_not_asked_on_a_second_session(answer: str) -> None:
    good, bad = Reply(250, (b"2.0.0 ok",)), Reply(550, (b"5.1.1 no",))
    with FakeBackend(Script(rcpt_by={"a": say(answer)})) as backend, connect(backend) as first:
        ask_and_deliver(backend, first, "b", int(answer[:3]))
        refused = Outcome("s", ["a", "b"], good, [bad, good], good, [None, good])
        if answer.startswith("250"):  # then the first session had no reason not to be asked again
            with pytest.raises(AssertionError):
                check_earned(refused, [backend, backend])
        else:
            check_earned(refused, [backend, backend])
        for rcpts in ([good, good], [good, bad]):
            with pytest.raises(AssertionError):
                check_earned(Outcome("s", ["a", "b"], good, rcpts, good, [good, good]), [backend, backend])


@pytest.mark.parametrize("answer", ["450 4.2.1 no", "250 2.1.5 ok"])
def test_the_same_address_twice_of_which_one_was_refused_on_an_earlier_session(answer: str) -> None:
    good, bad = Reply(250, (b"2.0.0 ok",)), Reply(450, (b"4.2.1 no",))
    scripts = [Script(rcpt=say(answer)), Script()]
    with FakeBackend(lambda index: scripts[index]) as backend, connect(backend) as first:
        ask_and_deliver(backend, first, "a", int(answer[:3]))
        refused = Outcome("s", ["a", "a"], good, [bad, good], good, [None, good])
        if answer.startswith("250"):
            with pytest.raises(AssertionError):
                check_earned(refused, [backend, backend])
        else:
            check_earned(refused, [backend, backend])
        with pytest.raises(AssertionError):  # the one that it took
            check_earned(Outcome("s", ["a", "a"], good, [bad, good], good, [None, bad]), [backend, backend])


def test_who_is_turned_away_by_the_proxy_is_not_asked_for() -> None:
    good = Reply(250, (b"2.0.0 ok",))
    busy = Reply(451, (b"4.2.1 Too many deliveries to this mailbox at a time, try again later",))
    with FakeBackend() as backend, connect(backend) as client:
        client.deliver("s", ["b"])
        turned_away = Outcome("s", ["a", "b"], good, [busy, good], good, [None, good])
        check_earned(turned_away, [backend, backend])
        client.deliver("t", ["a", "b"])
        with pytest.raises(AssertionError):  # but was
            check_earned(Outcome("t", ["a", "b"], good, [busy, good], good, [None, good]), [backend, backend])


def test_yaml_of_nested_values() -> None:
    text = yaml_of({"config": {"socket": ["::1", 24], "n": 0.5}, "users": {}, "b": {"no": {"x": True, "p": 'ä"'}}})
    assert text == 'config:\n  socket: ["::1", 24]\n  n: 0.5\nusers: {}\nb:\n  no:\n    x: true\n    p: "ä\\""\n'


def test_skips_fail_when_forbidden(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    (tmp_path / "test_a.py").write_text(
        textwrap.dedent("""
            import pytest

            def test_skips():
                pytest.skip("no server here")

            @pytest.mark.skipif(True, reason="not today")
            def test_marked(): ...

            @pytest.mark.xfail
            def test_expected(): assert False
        """)
    )
    (tmp_path / "test_b.py").write_text("import pytest\npytest.skip('whole module', allow_module_level=True)\n")
    options = ["-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", "--rootdir", str(tmp_path)]
    command = [sys.executable, "-m", "pytest", *options, str(tmp_path)]
    for forbidden in ("0", "1"):
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "LMTP_PROXY_NO_SKIP": forbidden}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=50, check=False)
        if forbidden == "0":
            assert done.returncode == 0 and "3 skipped" in done.stdout, done.stdout
        else:
            assert done.returncode != 0 and "skipped," in done.stdout and "3 skipped" not in done.stdout
            for reason in ("no server here", "not today", "whole module"):
                assert reason in done.stdout, done.stdout


@pytest.mark.parametrize("forbidden", ["0", "1"])
def test_a_skip_that_no_installation_would_help_is_allowed(tmp_path: Path, forbidden: str) -> None:
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    (tmp_path / "test_a.py").write_text("import pytest\ndef test_skips(): pytest.skip('this machine cannot fly')\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "LMTP_PROXY_NO_SKIP": forbidden}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=50, check=False)
    assert done.returncode == 0 and "1 skipped" in done.stdout, done.stdout
