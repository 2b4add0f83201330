# SPDX-License-Identifier: GPL-3.0-or-later
"""The one loop between client socket, protocol and transaction, and what an operator sees of it.

It moves octets and events, and sees to it that every way a session can end leaves by the same exit. It parses nothing
and decides nothing about mail. An error of ours costs the transaction, not the client: hence its broad `except`.
"""

import logging
import random
import select
import time
from _socket import MSG_MORE
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gevent
from greenlet import getcurrent, greenlet

from lmtp_proxy.clients.pace import OVER, Pace
from lmtp_proxy.clients.refusals import RefusalLog
from lmtp_proxy.clients.watch import ClientGone, ClientWatch, DotClock
from lmtp_proxy.config.values import Config, Timeouts
from lmtp_proxy.delivery.client import Client
from lmtp_proxy.delivery.commit import ProcessParts
from lmtp_proxy.delivery.parking import Parking
from lmtp_proxy.delivery.transaction import Transaction
from lmtp_proxy.loop.stream import Stream
from lmtp_proxy.text import in_words, printable
from lmtp_proxy.wire import reply as say
from lmtp_proxy.wire.events import (
    DataCommand,
    EndOfMessage,
    EnvelopeCommand,
    MailCommand,
    MessageOctets,
    RcptCommand,
    RefusedCommand,
    StartTlsCommand,
    TransactionReset,
    Wait,
)
from lmtp_proxy.wire.protocol import MAX_ERRORS, LocalProtocolError, Protocol
from lmtp_proxy.wire.xforward import Said

if TYPE_CHECKING:  # a process without TLS does without it
    from lmtp_proxy.clients.tls import ClientTls, SpokenTls


@dataclass(frozen=True, slots=True)
class SessionState:
    """A session for an operator.

    Attributes:
        name, peer: its names in the log.
        seconds: since it connected.
        state: idle, envelope, held, data or final dot.
        sender: escaped, without angle brackets; None outside of a transaction.
        recipients: accepted, or asked for; 0 outside of a transaction.
        octets: received of the message; 0 outside of a transaction.
        tls: version, cipher, and the subject of its certificate if it has shown one, escaped; None without TLS.
    """

    name: str
    peer: str
    seconds: float
    state: str
    sender: str | None
    recipients: int
    octets: int
    tls: str | None = None


_log = logging.getLogger(__name__)
_names = random.Random()  # noqa: S311  # names for the log, no secrets: those of the kernel cost 2 us each
_LAST_WORDS = 1.0  # seconds
# Seconds for QUIT, for a client that was answered less than so many ago: OpenSMTPD delivers again if that gets a 421,
# and bounces if it cannot be said. It says so at once; and a stop that lasts longer defers mail where nobody listens.
_GOODBYE, _JUST_ANSWERED = 0.3, 1.0
_NEWCOMER = 1.5  # seconds since it said something: Postfix connects when it has mail, and defers that on a 421 to MAIL


class _StopNow(BaseException):
    """Raised in a session that has to end. No Exception, for the reason that ClientGone is none."""


class _TooSlow(Exception):
    """The message is given up; why."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all sessions of the process share."""

    parts: ProcessParts
    parking: Parking


class Session:
    """One client's connection; `run` it, once, in a greenlet of its own.

    Args:
        stream: closed at the end.
        peer: its name in the log.
        config: that of now.
        trusted: see Protocol.
    """

    _tls: "ClientTls | None" = None  # where it can be spoken
    _spoken: "SpokenTls | None" = None

    def __init__(self, stream: Stream, peer: str, shared: Shared, config: Config, trusted: bool = False) -> None:
        self.name = f"{_names.getrandbits(32):08x}"
        self.peer = peer
        self._stream = stream
        self._parts = shared.parts
        self._parking = shared.parking
        self._protocol = Protocol(
            config.hostname,
            max_message_size=config.max_message_size,
            max_recipients=config.max_recipients,
            smtputf8=config.smtputf8,
            trusted=trusted,
        )
        self._output = self._protocol.output
        self._watch = ClientWatch(self._stream, self._protocol.completes)
        self._take(config.timeouts)
        self._connected = time.monotonic()
        self._earliest_dot = 0.0
        self._clock: DotClock | None = None  # where more came than what the client was waited for
        self._client = Client(
            self.name, self._protocol.reply, self._flush, peer, self._stream, self._is_gone, self._forwarded
        )
        self._transaction: Transaction | None = None
        self._greenlet: greenlet | None = None
        self._committing = False
        self._lost = False
        self._stopping = False
        self._stop_timer: Any = None
        self._may_begin_until = self._connected + _NEWCOMER  # although the proxy stops
        self._waits_until = 0.0  # for the client, as it began to wait last
        self._slow_from = 0.0  # a message that still comes then is looked at more closely
        self._pace: Pace | None = None  # of such a one
        self._internal_errors = 0
        self._refusals: RefusalLog | None = None  # until there is one

    def __repr__(self) -> str:
        return f"<Session {self.name} {self.peer} {self._protocol!r} {self._transaction!r}>"

    def _forwarded(self) -> Said:
        return self._protocol.forwarded

    @property
    def state(self) -> SessionState:
        """What it is doing."""
        seconds = time.monotonic() - self._connected
        tls = None if self._spoken is None else str(self._spoken)
        if self._transaction is None:
            return SessionState(self.name, self.peer, seconds, "idle", None, 0, 0, tls)
        state, path, recipients, octets = self._transaction.summary
        sender = printable(path[1:-1])
        state = "final dot" if self._committing else state
        return SessionState(self.name, self.peer, seconds, state, sender, recipients, octets, tls)

    def run(self) -> None:
        """Serve the client until it or we close. Never raises, and leaves nothing open."""
        self._greenlet = getcurrent()
        why = "the client closed the connection"
        try:
            self._protocol.greet()
            while not self._serve():
                pass
            self._flush_last(self._idle)
        except ClientGone:
            why = "the client went away"
        except OSError as error:
            why = f"the client's connection failed: {in_words(error)}"
        except _StopNow:
            why = "lmtp-proxy was stopped"
            self._greenlet = None  # once is enough: nothing is to interrupt the last words
            self._protocol.close(say.BYE if self._says_goodbye() else say.SHUTTING_DOWN)
            with suppress(OSError):  # who does not listen misses nothing
                self._flush_last(_LAST_WORDS)
        finally:
            self._greenlet = None
            self._end_transaction(why)
            self._stream.close()
            if self._refusals is not None:
                self._refusals.end()
            del self._client  # which refers to this session: so nothing of it is left to the garbage collector

    # --- stopping ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Let the transaction finish, then say 421; at once if there is none, unless the client has only just come."""
        self._stopping = True
        self._stop_timer = gevent.get_hub().loop.timer(max(0.0, self._may_begin_until - time.monotonic()))
        self._stop_timer.start(self._interrupt_idle)

    def stop_now(self) -> None:
        """Give the transaction up, unless it is committing."""
        gevent.get_hub().loop.run_callback(self._interrupt_uncommitted)

    def _says_goodbye(self) -> bool:
        """Whether a client says QUIT in time. Not waited for in the midst of a transaction, or after a long silence."""
        protocol, now = self._protocol, time.monotonic()
        if protocol.in_transaction or now - (self._waits_until - self._idle) > _JUST_ANSWERED:
            return False
        while (said := protocol.quit_follows) is None:
            if not (octets := self._stream.receive(now + _GOODBYE)):
                return False
            protocol.receive_data(octets)
        return said

    def _interrupt_idle(self) -> None:
        if self._greenlet and not self._protocol.in_transaction:
            if self._may_begin_until > time.monotonic():
                self.stop()
            elif self._stream.awaited:
                self._greenlet.throw(_StopNow)

    def _interrupt_uncommitted(self) -> None:
        if self._greenlet and not self._committing:
            self._greenlet.throw(_StopNow)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _serve(self) -> bool:
        """True when there is nothing more to do; False after an error of ours, which costs the transaction."""
        protocol = self._protocol
        next_event = protocol.next_event
        try:
            while True:
                if self._stopping and not protocol.in_transaction and time.monotonic() >= self._may_begin_until:
                    self._flush()  # a client that reads its final replies slowly is to get all of them
                    self._waits_until = time.monotonic() + self._idle
                    raise _StopNow
                event = next_event()
                if event is _NEED_DATA:
                    self._flush()
                    if protocol.in_data:
                        self._receive_message()
                    else:
                        self._receive()
                elif handler := _HANDLERS.get(type(event)):
                    handler(self, event)
                elif isinstance(event, Wait):
                    self._wait(event)
                else:  # ConnectionClosed
                    return True
        except OSError:
            raise
        except Exception:  # noqa: BLE001  (an error of ours costs the transaction, not the client)
            _log.exception("%s: internal error, the transaction is given up: %r", self.name, self)
            self._committing = False
            self._end_transaction("internal error")
            self._answer_owed()
            self._internal_errors += 1
            if self._internal_errors >= MAX_ERRORS:  # it may be one that comes again for ever
                protocol.close(say.INTERNAL_ERROR_CLOSING)
            return False

    def _wait(self, wait: Wait) -> None:
        if wait is Wait.BUSY:
            gevent.sleep(0)
        elif self._transaction is not None and self._transaction.new:
            self._answer_recipients(self._transaction, self._protocol.data_follows)
        else:
            raise LocalProtocolError("replies are owed, but nobody is there to give them")

    def _answer_recipients(self, transaction: Transaction, data_follows: bool) -> None:
        watch = self._watch
        watch.begin()
        try:
            transaction.answer_recipients(data_follows=data_follows)
        finally:
            watch.waiting = None

    def _take(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._idle = timeouts.client_idle
        self._over = min(OVER, timeouts.message / 4, timeouts.client_idle)

    # --- events: the first two begin a transaction; after an error of ours the others may come without one -----------

    def _mail(self, event: MailCommand) -> None:
        self._may_begin_until = 0.0
        self._take(self._parts.current().config.timeouts)
        self._transaction = Transaction(self._client, event.envelope, self._parts, self._parking)

    def _envelope(self, event: EnvelopeCommand) -> None:
        envelope, paths = event
        self._may_begin_until = 0.0
        transaction = self._transaction = Transaction(self._client, envelope, self._parts, self._parking)
        timeouts = transaction.add((), paths).config.timeouts
        if timeouts is not self._timeouts:
            self._take(timeouts)
        self._answer_recipients(transaction, True)
        if self._protocol.take_data():
            self._start_data(transaction)

    def _rcpt(self, event: RcptCommand) -> None:
        if self._transaction is None:
            self._answer_owed()
        else:
            self._transaction.add((event.recipient,))

    def _data(self, _: DataCommand) -> None:
        if self._transaction is None:
            self._protocol.start_data()
        else:
            self._start_data(self._transaction)

    def _start_data(self, transaction: Transaction) -> None:
        try:
            if asked := transaction.start_data():
                self._watch.begin()
                transaction.await_data(asked)
        finally:
            self._watch.waiting = None
            self._protocol.start_data()
            began = time.monotonic()
            self._earliest_dot, self._clock = began, None
            self._slow_from = began + self._over

    def _octets(self, event: MessageOctets) -> None:
        if self._transaction is None:
            return
        watch = self._watch
        watch.begin()
        try:
            self._transaction.write(event.octets, self._earliest_dot)
        finally:
            watch.waiting = None

    def _end(self, event: EndOfMessage) -> None:
        transaction = self._transaction
        if transaction is None:
            self._answer_owed()
            return
        size, refusal, octets = event
        self._committing = True
        transaction.finish(octets, size, refusal, self._earliest_dot)
        tallies = self._parts.tallies
        tallies.octets += size
        if refusal is None:
            tallies.answered += 1
        else:
            tallies.refused += 1
        self._transaction = None
        self._committing = False

    def _reset(self, _: TransactionReset) -> None:
        self._end_transaction("the client reset the transaction")

    def expect_tls(self, tls: "ClientTls") -> None:
        """To be called before `run`, which has a TlsStream then."""
        self._tls = tls
        self._protocol.expect_tls(required=tls.keys.required, implicit=tls.keys.implicit)

    def _start_tls(self, _: StartTlsCommand) -> None:
        tls, protocol, stream = self._tls, self._protocol, self._stream
        assert tls is not None
        if not tls.keys.implicit:
            if not protocol.start_tls(more=stream.look() and not stream.ended):
                stream.take()
                tls.note(self.name, self.peer, "injected", "it said more than STARTTLS in plain text")
                self._say_the_last()
                return
            self._flush()
        try:
            spoken = self._spoken = tls.shake_hands(stream, self.name, self.peer, self._timeouts.greeting)
        except _StopNow:  # amid a handshake there is nothing to be said
            raise ConnectionError("lmtp-proxy was stopped amid the TLS handshake") from None
        self._may_begin_until = time.monotonic() + _NEWCOMER
        if spoken.allowed:
            protocol.tls_started()
            return
        self._output.clear()  # the greeting
        protocol.close(say.CERTIFICATE_NOT_ALLOWED)
        self._say_the_last()

    def _say_the_last(self) -> None:
        """And hear the client out for a moment: closing while its words are unread would take the reply back."""
        self._flush_last(_LAST_WORDS)
        hear_out(self._stream)

    def _refused(self, event: RefusedCommand) -> None:
        refusals = self._refusals = self._refusals or RefusalLog(self.name, self.peer)
        refusals.note(event)

    def _answer_owed(self) -> None:
        while self._protocol.owed:
            self._protocol.reply(say.INTERNAL_ERROR)

    def _end_transaction(self, why: str) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            if transaction.is_declined:
                self._parts.tallies.declined += 1
            else:
                self._parts.tallies.aborted += 1
            transaction.abort(why)

    def _is_gone(self) -> bool:
        """Whether the client hears no reply any more, as far as can be known: over TCP it may only have said its last.

        So one that has said QUIT still listens, unless its connection is closed in both directions.
        """
        stream = self._stream
        if self._lost or stream.error is not None:
            return True
        poll = select.poll()
        poll.register(stream.fileno(), 0)  # POLLHUP and POLLERR
        return bool(poll.poll(0)) or not self._protocol.quit_is_among(stream.received)

    # --- octets ------------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Commands."""
        stream = self._stream
        self._waits_until = until = time.monotonic() + self._idle
        octets = stream.receive(until)
        if self._transaction is None:
            self._may_begin_until = time.monotonic() + _NEWCOMER
        if octets is None:
            self._is_idle_too_long()
        elif octets or stream.error is None:
            self._protocol.receive_data(octets)
        else:
            raise stream.error

    def _receive_message(self) -> None:
        """What comes between 354 and the final dot, and when that can have been sent."""
        stream = self._stream
        there = stream.received or stream.ended
        now = time.monotonic()
        self._waits_until = until = now + self._idle
        if now >= self._slow_from or (octets := stream.receive(self._slow_from)) is None:
            try:
                octets = self._receive_slowly(until)
            except _TooSlow as error:
                self._end_transaction(str(error))
                self._protocol.close(say.TOO_SLOW)
                return
        if octets is None:
            self._is_idle_too_long()
            return
        if not octets and stream.error is not None:
            raise stream.error
        if there:
            clock = self._clock = self._clock or DotClock(self._earliest_dot)
            clock.received(len(octets), time.monotonic())
            self._earliest_dot = clock.earliest
        else:
            self._earliest_dot, self._clock = time.monotonic(), None
        self._protocol.receive_data(octets)

    def _is_idle_too_long(self) -> None:
        self._end_transaction("the client was idle for too long")
        self._protocol.close(say.IDLE_TOO_LONG)

    def _receive_slowly(self, until: float) -> bytes | None:
        """As Stream.receive, amid a message that has taken long already. Raises _TooSlow where it is to be given up.

        A drip is no reason as long as nobody needs its places, so this is looked at again and again meanwhile.
        """
        longest, over, slow_from, transaction = self._timeouts.message, self._over, self._slow_from, self._transaction
        latest = slow_from - over + longest
        pace = self._pace
        if pace is None or pace.since != slow_from:  # of an earlier message
            pace = self._pace = Pace(over, slow_from)
        while True:
            began = time.monotonic()
            octets = self._stream.receive(min(until, latest, began + min(1.0, over)))
            now = time.monotonic()
            pace.came(len(octets or b""), now - began)
            if now >= latest:
                raise _TooSlow(f"it took longer than timeouts.message ({longest:g} s)")
            if pace.slow and transaction is not None and transaction.is_waited_for:
                raise _TooSlow("it came too slowly, and others waited for its connection to a backend")
            if octets is not None or now >= until:
                return octets

    def _flush(self) -> None:
        """Send what is known. Once the message is complete, no client that is slow or gone may stop its delivery."""
        stream = self._stream
        if stream.full or self._lost:
            if self._committing:
                return
            if self._lost:
                raise ConnectionError("it took no replies")
            self._wait_for_room(self._idle)
        if self._output:
            output = self._protocol.data_to_send()
            try:
                sent = stream.send(output)
            except OSError:
                self._lost = True
                if not self._committing:
                    raise
                return
            if stream.full:
                stream.keep(output[sent:])
                if not self._committing:
                    self._wait_for_room(self._idle)

    def _wait_for_room(self, seconds: float) -> None:
        if self._stream.full and not self._stream.wait_for_room(time.monotonic() + seconds):
            raise TimeoutError("timed out")
        if self._stopping:
            self.stop()  # while it waited here it could not be told

    def _flush_last(self, seconds: float) -> None:
        """As `_flush`; the end of the stream goes along in the same segment, which saves the kernel 10 us."""
        stream, output = self._stream, self._protocol.data_to_send()
        self._wait_for_room(seconds)
        if output:
            stream.keep(output[stream.send(output, MSG_MORE) :])
            self._wait_for_room(seconds)
            stream.finish()  # `close` would throw away what waits for its segment, if the client had said more


def hear_out(stream: Stream) -> bool:
    """Whether the client says more after the end of what it is told: until it closes, for a second at most."""
    deadline, said = time.monotonic() + _LAST_WORDS, False
    while not stream.ended and time.monotonic() < deadline:
        stream.wait(deadline)
        said = stream.take() != b"" or said
    return said


_NEED_DATA = Wait.NEED_DATA
_HANDLERS: dict[type, Callable[[Session, Any], None]] = {
    MailCommand: Session._mail,
    EnvelopeCommand: Session._envelope,
    RcptCommand: Session._rcpt,
    DataCommand: Session._data,
    MessageOctets: Session._octets,
    EndOfMessage: Session._end,
    RefusedCommand: Session._refused,
    TransactionReset: Session._reset,
    StartTlsCommand: Session._start_tls,
}
