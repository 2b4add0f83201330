# SPDX-License-Identifier: GPL-3.0-or-later
"""The one loop between client socket, protocol and transaction.

It moves octets and events, and sees to it that every way a session can end leaves by the same exit. It parses nothing
and decides nothing about mail. Here is the only broad `except`: an error of ours costs the transaction, not the client.
"""

import logging
import secrets
import socket
import time
from dataclasses import dataclass

import gevent
from greenlet import getcurrent, greenlet

from lmtp_proxy import reply as say
from lmtp_proxy.client_watch import ClientGone, ClientWatch, Poll
from lmtp_proxy.commit import Cutover
from lmtp_proxy.dot_clock import DotClock
from lmtp_proxy.events import (
    ConnectionClosed,
    DataCommand,
    EndOfMessage,
    Event,
    MailCommand,
    MessageOctets,
    RcptCommand,
    TransactionReset,
    Wait,
)
from lmtp_proxy.log import printable
from lmtp_proxy.parking import Parking
from lmtp_proxy.protocol import MAX_ERRORS, LocalProtocolError, Protocol
from lmtp_proxy.transaction import Client, Transaction

_log = logging.getLogger(__name__)
_RECEIVE = 65536


class _StopNow(BaseException):
    """Raised in a session that has to end. No Exception, for the reason that ClientGone is none."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all sessions of the process share."""

    cutover: Cutover
    parking: Parking
    poll: Poll


@dataclass(frozen=True, slots=True)
class SessionState:
    """A session for an operator.

    seconds: since it connected. state: idle, envelope, held, data or final dot. sender: escaped, without angle
    brackets; None outside of a transaction, and so are recipients and octets (received of the message) 0.
    """

    name: str
    peer: str
    seconds: float
    state: str
    sender: str | None
    recipients: int
    octets: int


class Session:
    """One client's connection. peer: how the log calls the client. `run` it in a greenlet of its own."""

    def __init__(self, sock: socket.socket, peer: str, shared: Shared) -> None:
        config = shared.cutover.current().config
        self.name = secrets.token_hex(4)
        self.peer = peer
        self._sock = sock
        self._shared = shared
        self._protocol = Protocol(
            config.hostname,
            max_message_size=config.max_message_size,
            max_recipients=config.max_recipients,
            smtputf8=config.smtputf8,
        )
        self._watch = ClientWatch(sock, shared.poll, self._protocol.completes)
        self._connected = time.monotonic()
        self._clock = DotClock(self._connected)
        self._client = Client(self.name, self._protocol.reply, self._flush)
        self._transaction: Transaction | None = None
        self._greenlet: greenlet | None = None
        self._receiving = False
        self._committing = False
        self._lost = False
        self._stopping = False
        self._internal_errors = 0

    def __repr__(self) -> str:
        return f"<Session {self.name} {self.peer} {self._protocol!r} {self._transaction!r}>"

    @property
    def state(self) -> SessionState:
        """What it is doing."""
        seconds = time.monotonic() - self._connected
        if self._transaction is None:
            return SessionState(self.name, self.peer, seconds, "idle", None, 0, 0)
        state, path, recipients, octets = self._transaction.summary
        sender = printable(path[1:-1])
        return SessionState(
            self.name, self.peer, seconds, "final dot" if self._committing else state, sender, recipients, octets
        )

    def run(self) -> None:
        """Serve the client until it or we close. Never raises, and leaves nothing open."""
        self._greenlet = getcurrent()
        why = "the client closed the connection"
        try:
            self._protocol.greet()
            while not self._step():
                pass
            self._flush()
        except ClientGone:
            why = "the client went away"
        except OSError as error:
            why = f"the client's connection failed: {error}"
        except _StopNow:
            why = "lmtp-proxy was stopped"
            self._greenlet = None  # once is enough: nothing is to interrupt the last words
            self._say_last(say.SHUTTING_DOWN)
        finally:
            self._greenlet = None
            self._end_transaction(why)
            self._sock.close()

    # --- stopping ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Let the transaction finish, then say 421; at once if there is none."""
        self._stopping = True
        gevent.get_hub().loop.run_callback(self._interrupt_idle)

    def stop_now(self) -> None:
        """Give the transaction up, unless it is committing."""
        gevent.get_hub().loop.run_callback(self._interrupt_uncommitted)

    def _interrupt_idle(self) -> None:
        if self._greenlet and self._receiving and not self._protocol.in_transaction:
            self._greenlet.throw(_StopNow)

    def _interrupt_uncommitted(self) -> None:
        if self._greenlet and not self._committing:
            self._greenlet.throw(_StopNow)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _step(self) -> bool:
        """Do the next thing; True when there is nothing more to do."""
        if self._stopping and not self._protocol.in_transaction:
            self._flush()  # a client that reads its final replies slowly is to get all of them
            raise _StopNow
        try:
            event = self._protocol.next_event()
            if isinstance(event, ConnectionClosed):
                return True
            if isinstance(event, Wait):
                self._wait(event)
            else:
                self._handle(event)
        except OSError:
            raise
        except Exception:  # noqa: BLE001  (an error of ours costs the transaction, not the client)
            _log.exception("%s: internal error, the transaction is given up: %r", self.name, self)
            self._committing = False
            self._end_transaction("internal error")
            self._answer_owed()
            self._internal_errors += 1
            if self._internal_errors >= MAX_ERRORS:  # it may be one that comes again for ever
                self._protocol.close(say.INTERNAL_ERROR_CLOSING)
        return False

    def _wait(self, wait: Wait) -> None:
        if self._transaction is not None and self._transaction.waiting:
            with self._watch.watching():
                self._transaction.answer_recipients()
        elif wait is Wait.PAUSED:
            raise LocalProtocolError("replies are owed, but nobody is there to give them")
        else:
            self._flush()
            self._receive()

    def _handle(self, event: Event) -> None:
        match event:
            case MailCommand(envelope):
                self._transaction = Transaction(self._client, envelope, self._shared.cutover, self._shared.parking)
            case RcptCommand(recipient) if self._transaction is not None:
                self._transaction.add(recipient)
            case DataCommand():
                try:
                    if self._transaction is not None:
                        with self._watch.watching():
                            self._transaction.start_data()
                finally:
                    self._protocol.start_data()
                    self._clock = DotClock(time.monotonic())
            case MessageOctets(octets):
                if self._transaction is not None:
                    with self._watch.watching():
                        self._transaction.write(octets, self._clock.earliest)
            case EndOfMessage(size, refusal) if self._transaction is not None:
                self._committing = True
                self._transaction.finish(size, refusal, self._clock.earliest)
                self._transaction = None
                self._committing = False
            case TransactionReset():
                self._end_transaction("the client reset the transaction")
            case _:  # a transaction that an internal error ended
                self._answer_owed()

    def _answer_owed(self) -> None:
        while self._protocol.owed:
            self._protocol.reply(say.INTERNAL_ERROR)

    def _end_transaction(self, why: str) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            transaction.abort(why)

    # --- octets ------------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        self._receiving = True
        waited = False
        try:
            try:
                self._sock.settimeout(0.0)
                octets = self._sock.recv(_RECEIVE)
            except BlockingIOError:
                waited = True
                self._sock.settimeout(self._idle())
                octets = self._sock.recv(_RECEIVE)
        except TimeoutError:
            self._end_transaction("the client was idle for too long")
            self._protocol.close(say.IDLE_TOO_LONG)
            return
        finally:
            self._receiving = False
        self._clock.received(len(octets), time.monotonic(), waited=waited)
        self._protocol.receive_data(octets)

    def _flush(self) -> None:
        """Send what is known. Once the message is complete, a client that is gone must not stop its delivery."""
        output = self._protocol.data_to_send()
        if self._lost and not self._committing:
            raise ConnectionError("it took no replies")
        if not output or self._lost:
            return
        try:
            self._sock.settimeout(self._idle())
            self._sock.sendall(output)
        except OSError:
            self._lost = True
            if not self._committing:
                raise

    def _say_last(self, reply: say.Reply) -> None:
        self._protocol.close(reply)
        try:
            self._sock.settimeout(1.0)
            self._sock.sendall(self._protocol.data_to_send())
        except OSError:
            pass  # who does not listen misses nothing

    def _idle(self) -> float:
        return self._shared.cutover.current().config.timeouts.client_idle
