# SPDX-License-Identifier: GPL-3.0-or-later
"""A refusal is proved by what RSET and DATA behind it get; all ways in which the proof can end."""

import socket
import time
from _socket import socket as Socket
from collections.abc import Iterator

import pytest

from lmtp_proxy.backends.failure import BackendError, Failure
from lmtp_proxy.backends.session import BackendSession
from lmtp_proxy.config.values import Backend, UnixAddress
from lmtp_proxy.delivery.proof import Proof, check_in_step
from lmtp_proxy.loop.stream import Stream
from lmtp_proxy.wire.client import Command
from lmtp_proxy.wire.reply import Reply

YES, NO, DATA = b"250 2.1.5 yes\r\n", b"550 5.1.1 no\r\n", b"354 go ahead\r\n"
REFUSAL = BackendError(Failure.REFUSED, "in reply to MAIL", Reply(550, (b"5.7.1 not you",)))


class Site:
    """A session in a transaction. `hear` sends the other side's octets, and lets the proof take them in."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.session = BackendSession(Backend("old", UnixAddress("/old")), "proxy")
        self.session.stream = self.stream = Stream(Socket(fileno=ours.detach()))
        self.session.protocol.receive_verbatim(b"220 ready\r\n")
        self.session.protocol.command(Command.MAIL, b"MAIL FROM:<s@x>")
        self.proof = Proof(REFUSAL)

    def hear(self, octets: bytes) -> bool:
        self.theirs.send(octets)
        self.stream.wait(time.monotonic() + 20)
        return self.proof.heard(self.session)

    def hear_out(self) -> None:
        while not self.proof.heard(self.session):
            self.stream.wait(time.monotonic() + 20)


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.stream.close()
    site.theirs.close()


def test_a_store_in_step(site: Site) -> None:
    """A command behind the refusal may still have its reply to come: it is refused, too."""
    site.session.protocol.command(Command.RCPT, b"RCPT TO:<a@x>")
    site.session.protocol.expected = (Command.RCPT,)
    site.proof.begin(site.session)
    assert site.theirs.recv(1000) == b"RSET\r\nDATA\r\n"
    assert not site.proof.heard(site.session)
    assert not site.hear(NO)
    assert not site.hear(YES[:7])
    assert not site.hear(YES[7:])
    assert site.hear(NO)


@pytest.mark.parametrize("octets", [YES + YES, NO + NO, YES + DATA, NO + YES, DATA, YES + NO + NO, YES + NO + b"2"])
def test_a_store_out_of_step(site: Site, octets: bytes) -> None:
    site.session.protocol.expected = ()
    site.proof.begin(site.session)
    with pytest.raises(BackendError) as caught:
        site.hear(octets)
    assert caught.value.failure is Failure.ODD
    with pytest.raises(BackendError) as raised:
        site.proof.ended_by(caught.value)
    assert raised.value is caught.value


@pytest.mark.parametrize("octets", [b"5", NO])
def test_what_came_before_it_was_asked_for(site: Site, octets: bytes) -> None:
    site.session.protocol.expected = ()
    site.theirs.send(octets)
    with pytest.raises(BackendError) as caught:
        site.proof.begin(site.session)
    assert caught.value.failure is Failure.ODD
    site.theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        site.theirs.recv(1000)


@pytest.mark.parametrize("octets", [b"", YES, b"421 4.3.2 bye\r\n"])
def test_a_store_that_says_no_more_meant_it(site: Site, octets: bytes) -> None:
    """As some do after a refusal. Where every recipient has one of its own, the end is what has failed."""
    site.session.protocol.expected = ()
    site.proof.begin(site.session)
    site.theirs.send(octets)
    site.theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(BackendError) as caught:
        site.hear_out()
    assert site.proof.ended_by(caught.value) is REFUSAL
    assert Proof(None).ended_by(caught.value) is caught.value


@pytest.mark.parametrize("command", [Command.MAIL, Command.RCPT, Command.DATA, Command.RSET])
@pytest.mark.parametrize("code", [250, 354, 452, 550])
def test_only_rset_is_accepted(command: Command, code: int) -> None:
    answered = [(command, Reply(code, (b"x",)))]
    if code == 250 if command is Command.RSET else code >= 400:
        check_in_step(answered)
    else:
        with pytest.raises(BackendError, match=f"out of step: to {command.value} it said {code}") as caught:
            check_in_step(answered)
        assert caught.value.failure is Failure.ODD
