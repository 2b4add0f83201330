# SPDX-License-Identifier: GPL-3.0-or-later
"""A Stream that goes on in TLS: what it takes, gives and promises is about the octets inside.

A record is whole or nothing: no octet of one can be read by the peer before the last one is there. So octets are *sent*
once the record that they are in is whole in the kernel's hands, and what was encrypted and is not sent stands first in
what is sent next, as SSL_write(3) wants it. Who gives up what they wanted to send has to close the connection.
"""

import ssl
import time
from _socket import socket as Socket
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

from lmtp_proxy.loop.stream import AHEAD, Stream

_RECORD = 16384  # octets that one holds (RFC 8446 section 5.1)
# Octets in a row with nothing inside for us: tickets, new keys, empty records. Far more than any peer has to say so.
_MOST_EMPTY = 2**18
_ROUNDS = 4  # of as many octets as are taken in at once, of which none was for us


Step: TypeAlias = Callable[[ssl.SSLObject], None]
"""Does one step of a handshake, as SSLObject.do_handshake."""


class TlsBroken(ConnectionError):
    """The peer said that it breaks off, or something that is no TLS, or not its own."""


class TlsStream(Stream):
    """As a Stream, until `start_tls` has ended well; from then on TLS.

    Attributes:
        tls: None before.
    """

    __slots__ = ("_apart", "_empty", "_incoming", "_outgoing", "_pending", "_recv_octets", "_send_octets", "tls")

    def __init__(self, sock: Socket) -> None:
        super().__init__(sock)
        self.tls: ssl.SSLObject | None = None
        self._recv_octets, self._send_octets = self._recv, self._send
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        # Records that are not whole in the kernel's hands: what is left of each, and what is inside.
        self._pending: deque[tuple[memoryview, bytes | memoryview]] = deque()
        self._apart = 0
        self._empty = 0

    def start_tls(self, context: ssl.SSLContext, name: str | None, deadline: float, session: Any = None) -> None:
        """Shake hands as the client. Nothing may have been received that was not taken.

        Raises TimeoutError at the deadline (time.monotonic), ssl.SSLError where no TLS comes about, other OSError
        where the connection ends. To be closed then.

        Args:
            name: that the peer is to have.
            session: of an earlier connection with the same context, to be resumed.
        """
        tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name, session=session)
        self._shake_hands(tls, deadline, ssl.SSLObject.do_handshake)

    def accept_tls(self, context: ssl.SSLContext, deadline: float, step: Step) -> None:
        """As `start_tls`, as the server."""
        tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._shake_hands(tls, deadline, step)

    def _shake_hands(self, tls: ssl.SSLObject, deadline: float, step: Step) -> None:
        while not self._shake(tls, step):
            self._flush(deadline)
            octets = self.receive(deadline)
            if octets is None or time.monotonic() >= deadline:
                raise TimeoutError("no answer in time")
            if not octets:
                raise self.error or ConnectionError("it closed the connection")
            self._incoming.write(octets)
        self._flush(deadline)
        self.tls = tls
        self._recv, self._send = self._decrypt, self._encrypt  # type: ignore[assignment]
        self._incoming.write(self.take())  # while room was waited for
        self.received = self._read()

    def _shake(self, tls: ssl.SSLObject, step: Step) -> bool:
        """Whether that was the last step."""
        try:
            step(tls)
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError:
            try:
                self._send_octets(self._outgoing.read())  # why, for the peer's log
            except OSError:
                pass
            raise
        return True

    def _flush(self, deadline: float) -> None:
        if octets := self._outgoing.read():
            sent = self.send(octets)
            if sent < len(octets):
                self.keep(octets[sent:])
                if not self.wait_for_room(deadline):
                    raise TimeoutError("it takes nothing")

    # --- in ----------------------------------------------------------------------------------------------------------

    def ahead(self, most: int) -> bytes | None:
        """As Stream has it. What waits in the kernel cannot be read without being taken in, so it is."""
        if self.tls is None:
            return super().ahead(most)
        before = len(self.received)
        try:
            octets = self._recv_octets(most)
        except BlockingIOError:
            octets = b""
        if octets:
            self._incoming.write(octets)
            self.received += self._read()
        return None if len(self.received) - before >= most - AHEAD else self.received

    def _decrypt(self, most: int, flags: int = 0) -> bytes:
        """As `recv`: what was in the records that are whole now."""
        for _ in range(_ROUNDS):
            octets = self._recv_octets(most, flags)
            if not octets:
                return b""
            self._incoming.write(octets)
            found = self._read()
            if found or self.ended:
                self._empty = 0
                return found
            self._empty += len(octets)
            if self._empty > _MOST_EMPTY:
                self._end(TlsBroken("TLS: records without end, and nothing in them"))
                return b""
            if len(octets) < most:
                break
        raise BlockingIOError

    def _read(self) -> bytes:
        """What is in the records that are whole, up to the end of the stream if that is among them."""
        assert self.tls is not None
        found = []
        try:
            while octets := self.tls.read(AHEAD):
                found.append(octets)
            self._end(None)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._end(broken(error))
        if self._outgoing.pending:
            self._answer()
        return b"".join(found)

    def _answer(self) -> None:
        """What TLS itself has to say: a new key, no renegotiation, why it breaks off. It goes in its turn."""
        octets = memoryview(self._outgoing.read())
        sent = 0
        if not self._pending:
            try:
                sent = self._send_octets(octets)
            except BlockingIOError:
                pass
            except OSError:
                return  # who reads or writes next is told
        if sent < len(octets):
            self._pending.append((octets[sent:], b""))

    # --- out ---------------------------------------------------------------------------------------------------------

    def send_apart(self, octets: bytes, last: int) -> int:
        """As `send`; so many of the last octets are in a record of their own, and go only after all others are out."""
        self._apart = last
        try:
            return self.send(octets)
        finally:
            self._apart = 0

    def _encrypt(self, octets: bytes | memoryview, flags: int = 0) -> int:
        """As `send`: how many octets are in records that are whole in the kernel's hands."""
        sent = self._send_pending(octets, flags)
        view = memoryview(octets)
        apart = len(view) - self._apart
        while sent < len(view) and not self._pending:
            end = min(sent + AHEAD, apart) if sent < apart else len(view)
            pieces = [view[sent:end], view[end:]] if end == apart else [view[sent:end]]
            sent += self._send_records([(self._record(piece), piece) for piece in pieces if piece], flags)
        return sent

    def _send_records(self, records: list[tuple[bytes, memoryview]], flags: int) -> int:
        """How many of the octets in them are out; of the others the records are pending."""
        try:
            taken = self._send_octets(b"".join([record for record, _ in records]), flags)
        except BlockingIOError:
            taken = 0
        sent = 0
        for record, inside in records:
            if taken >= len(record):
                taken -= len(record)
                sent += len(inside)
            else:
                self._pending.append((memoryview(record)[taken:], inside))
                taken = 0
        return sent

    def _send_pending(self, octets: bytes | memoryview, flags: int) -> int:
        """How many of the octets are in records that were not out, and are now."""
        sent = 0
        pending = self._pending
        while pending:
            record, inside = pending[0]
            end = sent + len(inside)
            if end > len(octets):
                break  # this one is for a later call
            if inside and octets[sent:end] != inside:
                raise TlsBroken("TLS: what was encrypted is not what is to be sent")
            try:
                taken = self._send_octets(record, flags)
            except BlockingIOError:
                break
            if taken < len(record):
                pending[0] = record[taken:], inside
                break
            pending.popleft()
            sent = end
        return sent

    def _record(self, octets: memoryview) -> bytes:
        """In TLS; in as many records as it takes. Raises TlsBroken."""
        assert self.tls is not None
        try:
            at = 0
            while at < len(octets):
                at += self.tls.write(octets[at : at + _RECORD])
        except ssl.SSLError as error:
            raise broken(error) from error
        return self._outgoing.read()

    # --- the end -----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """As Stream has it."""
        self._take_leave()
        super().finish()

    def close(self) -> None:
        """As Stream has it; the peer is told that this is the end, if that finds room."""
        self._take_leave()
        self.tls = None
        self._recv, self._send = self._recv_octets, self._send_octets
        self._pending.clear()
        super().close()

    def _take_leave(self) -> None:
        """close_notify, without which the peer might not resume the session; never behind half a record."""
        if self.tls is None or self._pending or self.fileno() < 0:
            return
        try:
            self.tls.unwrap()
        except ssl.SSLError:
            pass  # its own comes later, or never
        try:
            self._send_octets(self._outgoing.read())
        except OSError:
            pass


def broken(error: ssl.SSLError) -> TlsBroken:
    """In few words: `TLS: wrong version number`."""
    return TlsBroken(f"TLS: {why(error)}")


def why(error: ssl.SSLError) -> str:
    """`wrong version number` of `[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:992)`."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message.rstrip(".") or "its certificate cannot be verified"
    return (error.reason or str(error)).lower().replace("_", " ")
