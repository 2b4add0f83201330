# SPDX-License-Identifier: GPL-3.0-or-later
"""One LMTP conversation with a backend: smtplib.LMTP on a Stream, with strict replies and absolute deadlines.

smtplib brings LHLO and AUTH. Its own reader would wait for ever on a trickle and take any line for a reply, so what
comes and goes passes through a ClientProtocol. Every failure is a BackendError, which says what kind it is. Nothing is
retried, and nothing is known of pools, recipients or routes.
"""

import math
import smtplib
import socket
import time
from _socket import socket as Socket
from collections.abc import Sequence

from lmtp_proxy.backends.failure import BackendError, Failure, of_fault, of_lhlo
from lmtp_proxy.backends.step_deadline import StepDeadline
from lmtp_proxy.config.values import Backend, UnixAddress
from lmtp_proxy.loop.connect import connect, in_turn
from lmtp_proxy.loop.resolve import SocketAddress, resolve
from lmtp_proxy.loop.stream import Stream
from lmtp_proxy.text import in_words
from lmtp_proxy.wire.client import ClientProtocol, Command, RemoteProtocolError
from lmtp_proxy.wire.reply import Reply
from lmtp_proxy.wire.xforward import Said

_PROBES = 10.0  # seconds between two of TCP's own, while nothing is said
_LEAVE_TAKING = 2.0  # seconds


class _Utf8(str):
    """Text that smtplib's `.encode("ascii")` turns into UTF-8: credentials are sent as exactly those octets."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return super().encode("utf-8", errors)


def _connected(address: UnixAddress) -> Socket:
    """Without waiting: a full backlog is EAGAIN, and a wait for room in it cannot be told from one for the dead."""
    sock = Socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(address.path)
    except BaseException:
        sock.close()
        raise
    return sock


def _set_options(sock: Socket, backend: Backend) -> None:
    """A host that has gone without a word is found out: while nothing is said, and while it takes nothing.

    Not faster than `data_write`: TCP_USER_TIMEOUT also ends what a store does not read, and what is lost behind the
    final dot may come twice.
    """
    seconds = backend.timeouts.data_write
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    probes = max(1, int(min(_PROBES, seconds / 3)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, probes)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, probes)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(seconds * 1000)))


class BackendSession(smtplib.LMTP):
    """A connection to one backend, from greeting to QUIT. `start` it before anything else.

    Attributes:
        protocol: what is said on it, and how far that is.
        deadline: of what it is asked, in a transaction.
        stream: None before `start` and after `close`.
        most_messages: how many it may serve.
        peer: which address of its name it is connected to; None before, and on a unix socket.
        introduced: what it was told of the client whose mail it gets.
        kept_until: while the pool keeps it (time.monotonic), else 0.
    """

    def __init__(self, backend: Backend, hostname: str) -> None:
        super().__init__(local_hostname=hostname)
        self.backend = backend
        self.protocol = ClientProtocol()
        self.deadline = StepDeadline(backend.timeouts)
        self.most_messages = math.inf
        self.kept_until = 0.0
        self.introduced: Said = ()
        self._named = ""  # what LHLO says; our own name while that is empty
        self.stream: Stream | None = None
        self.peer: SocketAddress | None = None
        self._deadline = 0.0  # of the step in hand, for the parts that smtplib drives

    def __repr__(self) -> str:
        return f"<BackendSession {self.backend.name}[{self.backend.address}] {self.stream!r} {self.protocol!r}>"

    # --- opening -----------------------------------------------------------------------------------------------------

    def start(self, first: SocketAddress | None = None, last: SocketAddress | None = None) -> None:
        """Connect, read the greeting, LHLO, and AUTH where a user is configured. Raises BackendError.

        Args:
            first: of the addresses of its name, the one to try before the others.
            last: the one to try after all others.
        """
        try:
            self._open(self._connection(first, last))
            self._log_in()
        except BaseException:
            self.close()
            raise

    def _open(self, sock: Socket) -> None:
        self.stream = Stream(sock)
        self._deadline = time.monotonic() + self.backend.timeouts.greeting
        self._greet()

    def _greet(self) -> None:
        """Read the greeting, and LHLO."""
        greeting = self.read_reply(self._deadline)
        if greeting.code != 220:
            raise BackendError(Failure.ODD, f"greeting: {greeting}")
        self._lhlo()

    def _connection(self, first: SocketAddress | None, last: SocketAddress | None) -> Socket:
        address = self.backend.address
        try:
            if isinstance(address, UnixAddress):
                return _connected(address)
            deadline = time.monotonic() + self.backend.timeouts.connect
            addresses = in_turn(resolve(address.host, address.port, deadline), first, last)
            sock, self.peer = connect(addresses, deadline)
            _set_options(sock, self.backend)
            return sock
        except (OSError, UnicodeError) as error:  # UnicodeError: no host has such a name
            raise BackendError(Failure.CONNECT, f"connect: {in_words(error)}") from error

    def _lhlo(self) -> None:
        code, text = self.ehlo(self._named)
        if code != 250:
            raise of_lhlo(code, text.decode("utf-8", "backslashreplace"))
        self.protocol.offers(self.esmtp_features, self.esmtp_features.get("limits", ""))
        self.most_messages = min(self.backend.max_messages or math.inf, self.protocol.mail_max)

    def _log_in(self) -> None:
        if self.backend.user is not None:
            self._deadline = time.monotonic() + self.backend.timeouts.command
            self._authenticate(self.backend.user, self.backend.password or "")
            self._lhlo()  # Cyrus offers other extensions after AUTH than before

    def _authenticate(self, user: str, password: str) -> None:
        try:
            code, _ = self.login(_Utf8(user), _Utf8(password))
        except smtplib.SMTPResponseException as error:
            code = error.smtp_code
        except (smtplib.SMTPException, ValueError) as error:  # not offered, no mechanism; ValueError: not base64
            raise BackendError(Failure.AUTH, f"AUTH: {error}") from error
        if code != 235:
            # Not its text: a backend may repeat what it was sent, which is the password.
            raise BackendError(Failure.AUTH, f"AUTH: refused with {code}")

    def introduce(self, said: Said) -> None:
        """Tell it by XCLIENT whose mail it gets, as far as it offers that; all is as after `start` then.

        Once, before any transaction. Raises BackendError.
        """
        self.introduced = said
        offered = self.esmtp_features.get("xclient", "").upper().split()
        words = [f"{name}=".encode("ascii") + value for name, value in said if name in offered]
        if not words:
            return
        self._deadline = time.monotonic() + self.backend.timeouts.command
        self.write(self.protocol.command(Command.OTHER, b" ".join([b"XCLIENT", *words])), self._deadline)
        reply = self.read_reply(self._deadline)
        if reply.code != 220:
            raise BackendError(Failure.ODD, f"in reply to XCLIENT: {reply}")
        if "HELO" in offered:  # Dovecot forgets what XCLIENT said, and takes the name of the LHLO behind it
            self._named = dict(said).get("HELO", b"").decode("ascii")
        self._lhlo()
        self._log_in()

    def auth_plain(self, challenge: bytes | None = None) -> str:  # type: ignore[override]
        """See smtplib.SMTP.auth_plain."""
        return _Utf8(super().auth_plain(challenge))

    def auth_cram_md5(self, challenge: bytes | None = None) -> str | None:  # type: ignore[override]
        """See smtplib.SMTP.auth_cram_md5."""
        response = super().auth_cram_md5(challenge)
        return None if response is None else _Utf8(response)

    # --- what smtplib calls ------------------------------------------------------------------------------------------

    def getreply(self) -> tuple[int, bytes]:
        """Code and text of the next reply, lines joined by LF, for smtplib's own LHLO and AUTH."""
        reply = self.read_reply(self._deadline)
        return reply.code, b"\n".join(reply.lines)

    def send(self, s: str | bytes) -> None:  # type: ignore[override]
        """Send a command with its CRLF, for smtplib's own LHLO and AUTH."""
        line = s.encode("ascii") if isinstance(s, str) else s
        self.write(self.protocol.command(Command.OTHER, line.removesuffix(b"\r\n")), self._deadline)

    # --- out ---------------------------------------------------------------------------------------------------------

    def send_now(self, octets: bytes) -> int:
        """Send what goes out without waiting; how many octets. The stream is `full` if not all. Raises BackendError."""
        stream = self.stream or self._open_stream()
        try:
            return stream.send(octets)
        except OSError as error:
            raise BackendError(Failure.GONE, f"write: {in_words(error)}") from error

    def put(self, octets: bytes) -> None:
        """Send all; what finds no room goes out later, while the stream is `full`. Raises BackendError."""
        stream = self.stream or self._open_stream()
        try:
            sent = stream.send(octets)
        except OSError as error:
            raise BackendError(Failure.GONE, f"write: {in_words(error)}") from error
        if sent < len(octets):
            stream.keep(memoryview(octets)[sent:])

    def keep(self, octets: bytes | memoryview) -> None:
        """Send what the last `send_now` left, or a part of it, while the stream is `full`."""
        self._open_stream().keep(octets)

    def write(self, octets: bytes, deadline: float) -> None:
        """Send all octets until `deadline` (time.monotonic). Raises BackendError."""
        self.put(octets)
        try:
            if not self._open_stream().wait_for_room(deadline):
                raise BackendError(Failure.SILENT, "write: timed out")
        except OSError as error:
            raise BackendError(Failure.GONE, f"write: {in_words(error)}") from error

    # --- in ----------------------------------------------------------------------------------------------------------

    def replies(self) -> Sequence[Reply]:
        """The next replies of those that are expected, if they have come: see ClientProtocol.receive.

        Raises BackendError for anything else that the backend says, and where it says no more.
        """
        stream = self.stream or self._open_stream()
        octets = stream.received
        if stream.paused:
            stream.take()
        elif octets:
            stream.received = b""  # which is all that `take` would do
        elif stream.ended:
            self._tell_of_end(stream)
        try:
            return self.protocol.receive(octets)
        except RemoteProtocolError as error:
            raise of_fault(error) from error

    def awaited(self, deadline: float) -> Sequence[Reply]:
        """The same, waited for until `deadline` (time.monotonic). Raises BackendError for silence, too."""
        while not (replies := self.replies()):
            if time.monotonic() >= deadline:
                raise BackendError(Failure.SILENT, "no answer in time")
            self._open_stream().wait(deadline)
        return replies

    def read_reply(self, deadline: float) -> Reply:
        """The next reply as it came, waited for. What has arrived is read even after `deadline` (time.monotonic).

        Raises BackendError as `replies` does, and for silence.
        """
        while True:
            stream = self._open_stream()
            octets = stream.take()
            if stream.ended:
                self._tell_of_end(stream)
            try:
                reply = self.protocol.receive_verbatim(octets)
            except RemoteProtocolError as error:
                raise of_fault(error) from error
            if reply is not None:
                return reply
            if time.monotonic() >= deadline:
                raise BackendError(Failure.SILENT, "no answer in time")
            stream.wait(deadline)

    def unread(self) -> bool:
        """Whether something has come, as far as the loop knows, that no reply has used up; the end of file, too."""
        stream = self.stream
        return stream is None or stream.ended or stream.received != b"" or self.protocol.partial

    @property
    def lost(self) -> bool:
        """The other host does not take what was sent to it, or has not for so long that TCP has given up."""
        stream = self.stream
        if stream is None:
            return False
        if stream.error is not None:
            return not isinstance(stream.error, ConnectionError)
        return stream.undelivered()

    def stirred(self) -> bool:
        """The same up to now, not up to when the loop last looked. Raises BackendError if the connection is closed."""
        return self.protocol.partial or (self.stream or self._open_stream()).look()

    def check_quiet(self) -> bool:
        """Make sure that up to now nothing has come which nobody asked for; False if half a reply has.

        Raises BackendError. Amid the data a negative reply is the backend's early verdict on the message; anywhere else
        nobody knows what it answers.
        """
        if not self.stirred():
            return True
        stream = self._open_stream()
        octets = stream.take()
        if stream.ended:
            self._tell_of_end(stream)
        try:
            return not self.protocol.receive_unasked(octets)
        except RemoteProtocolError as error:
            raise of_fault(error) from error

    def _tell_of_end(self, stream: Stream) -> None:
        self.protocol.receive_end(f"read: {stream.error}" if stream.error else "it closed the connection")

    # --- the end -----------------------------------------------------------------------------------------------------

    def quit(self) -> None:  # type: ignore[override]
        """Take leave as RFC 5321 section 4.1.1.10 asks: QUIT, wait a little for its reply, close."""
        deadline = time.monotonic() + _LEAVE_TAKING
        try:
            self.write(self.protocol.command(Command.OTHER, b"QUIT"), deadline)
            self.read_reply(deadline)
        except BackendError:
            pass  # it went first, which comes to the same
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection, at once and without a word."""
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.close()

    def _open_stream(self) -> Stream:
        if self.stream is None:
            raise BackendError(Failure.GONE, "the connection is closed")
        return self.stream
