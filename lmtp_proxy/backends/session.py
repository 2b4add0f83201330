# SPDX-License-Identifier: GPL-3.0-or-later
"""One LMTP conversation with a backend: smtplib.LMTP on a Stream, with strict replies and absolute deadlines.

smtplib brings LHLO and AUTH. Its own reader would wait for ever on a trickle and take any line for a reply, so replies
are read here. Every failure is a BackendError, which carries the reply for the recipients. Nothing is retried, and
nothing is known of pools, recipients or routes.
"""

import re
import smtplib
import socket
import time
from _socket import socket as Socket
from collections.abc import Sequence
from ipaddress import ip_address

import gevent

from lmtp_proxy.backends.failure import BackendError, Failure
from lmtp_proxy.config.values import Backend, TcpAddress, UnixAddress
from lmtp_proxy.loop.stream import Stream
from lmtp_proxy.wire.plain_replies import KNOWN, plain_replies
from lmtp_proxy.wire.reply import MAX_LINE, Reply, reply_from_wire

MAX_REPLY = 32768  # octets of all lines; the reply to each recipient of a message may be as long
_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])([^\r\n\0]*))?\r?\n")
_LEAVE_TAKING = 2.0  # seconds


class _Utf8(str):
    """Text that smtplib's `.encode("ascii")` turns into UTF-8: credentials are sent as exactly those octets."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return super().encode("utf-8", errors)


def _connected(address: TcpAddress) -> socket.socket:
    """A connection. No look-up for a number: gevent has few threads for that, and a dead DNS server takes them all."""
    try:
        family = socket.AF_INET6 if ip_address(address.host).version == 6 else socket.AF_INET
    except ValueError:
        return socket.create_connection((address.host, address.port))
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.connect((address.host, address.port))
    except BaseException:
        sock.close()
        raise
    return sock


class BackendSession(smtplib.LMTP):
    """A connection to one backend, from greeting to QUIT. `start` it before anything else.

    stream: None before `start` and after `close`. kept_until: while the pool keeps it (time.monotonic), else 0.
    """

    def __init__(self, backend: Backend, hostname: str) -> None:
        super().__init__(local_hostname=hostname)
        self.backend = backend
        self.kept_until = 0.0
        self.stream: Stream | None = None
        self.offered: frozenset[str] = frozenset()
        self._received = b""
        self._at = 0  # in `_received`: what stands before it was read
        self._lines: list[bytes] = []  # of a reply that has not come to its end
        self._code = b""  # of these
        self._octets = 0  # of these
        self._deadline = 0.0  # of the step in hand, for the parts that smtplib drives

    def __repr__(self) -> str:
        unread = len(self._received) - self._at
        return f"<BackendSession {self.backend.name}[{self.backend.address}] {self.stream!r} unread={unread}>"

    # --- opening -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect, read the greeting, LHLO, and AUTH where a user is configured. Raises BackendError."""
        try:
            self.stream = Stream(self._connection())
            self._deadline = time.monotonic() + self.backend.timeouts.greeting
            greeting = self.read_reply(self._deadline)
            if greeting.code != 220:
                raise BackendError(Failure.ODD, f"greeting: {greeting}")
            self._lhlo()
            if self.backend.user is not None:
                self._deadline = time.monotonic() + self.backend.timeouts.command
                self._authenticate(self.backend.user, self.backend.password or "")
                self._lhlo()  # Cyrus offers other extensions after AUTH than before
        except BaseException:
            self.close()
            raise

    def _connection(self) -> Socket:
        address, seconds = self.backend.address, self.backend.timeouts.connect
        try:
            if isinstance(address, UnixAddress):
                sock = Socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    # Without waiting: a full backlog is EAGAIN, and waiting for room in it cannot be told from waiting
                    # for a dead backend.
                    sock.setblocking(False)
                    sock.connect(address.path)
                except BaseException:
                    sock.close()
                    raise
                return sock
            address.host.encode("idna")  # as the resolver does in its thread, where gevent would print the error
            # The timeout of create_connection is per address and leaves DNS out.
            with gevent.Timeout(seconds, TimeoutError(f"no connection in {seconds:g} s")):
                connected = _connected(address)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return Socket(connected.family, connected.type, connected.proto, connected.detach())
        except (OSError, UnicodeError) as error:  # UnicodeError: no host has such a name
            raise BackendError(Failure.CONNECT, f"connect: {error}") from error

    def _lhlo(self) -> None:
        code, text = self.ehlo()
        if code != 250:
            raise BackendError(Failure.ODD, f"LHLO: {code} {text.decode('utf-8', 'backslashreplace')}")
        self.offered = frozenset(self.esmtp_features)  # in lower case

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
        reply = self._read_verbatim(self._deadline)
        return reply.code, b"\n".join(reply.lines)

    def send(self, s: str | bytes) -> None:  # type: ignore[override]
        """Send all of a command, for smtplib's own LHLO and AUTH."""
        self.write(s.encode("ascii") if isinstance(s, str) else s, self._deadline)

    # --- out ---------------------------------------------------------------------------------------------------------

    def send_now(self, octets: bytes) -> int:
        """Send what goes out without waiting; how many octets. The stream is `full` if not all. Raises BackendError."""
        stream = self.stream or self._open_stream()
        try:
            return stream.send(octets)
        except OSError as error:
            raise BackendError(Failure.GONE, f"write: {error}") from error

    def put(self, octets: bytes) -> None:
        """Send all; what finds no room goes out later, while the stream is `full`. Raises BackendError."""
        stream = self.stream or self._open_stream()
        try:
            sent = stream.send(octets)
        except OSError as error:
            raise BackendError(Failure.GONE, f"write: {error}") from error
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
            raise BackendError(Failure.GONE, f"write: {error}") from error

    # --- in ----------------------------------------------------------------------------------------------------------

    def next_reply(self) -> Reply | None:
        """The next reply, with an enhanced code, if all of it has come; None if it may still come.

        Raises BackendError: end of file, anything that is no reply, and 421, which ends every conversation.
        """
        reply = self._next_verbatim()
        return reply if reply is None else reply.with_enhanced()

    def next_replies(self, most: int) -> Sequence[Reply]:
        """The next replies that have come, at most so many; see `next_reply`. What is wrong is raised in its turn."""
        stream = self.stream
        if stream is not None and not self._received and not self._lines:
            received = stream.received
            if not received:
                if not stream.ended:
                    return ()
            elif (known := KNOWN.get(received)) is not None and len(known) <= most:
                stream.received = b""  # so few octets have never paused it, as `take` would have to find out
                return known
        return self._parsed_replies(most)

    def _parsed_replies(self, most: int) -> Sequence[Reply]:
        self._take_in()
        replies: list[Reply] = []
        if not self._lines:
            replies, end = plain_replies(self._received, self._at, most)
        if replies:
            self._use_up(end)
        elif (reply := self.next_reply()) is not None:
            replies.append(reply)
        return replies

    def read_reply(self, deadline: float) -> Reply:
        """The next reply, waited for. What has arrived is read even after `deadline` (time.monotonic).

        Raises BackendError as `next_reply` does, and for silence.
        """
        return self._read_verbatim(deadline).with_enhanced()

    def _read_verbatim(self, deadline: float) -> Reply:
        while (reply := self._next_verbatim()) is None:
            if time.monotonic() >= deadline:
                raise BackendError(Failure.SILENT, "no answer in time")
            self._open_stream().wait(deadline)
        return reply

    def _next_verbatim(self) -> Reply | None:
        stream = self._take_in()
        while match := _REPLY_LINE.match(self._received, self._at):
            code, mark, text = match.groups(b"")
            if match.end() - self._at > MAX_LINE:
                raise BackendError(Failure.ODD, f"a reply line of more than {MAX_LINE} octets")
            self._use_up(match.end())
            if self._lines or mark == b"-":
                self._gather(code, text)
                if mark == b"-":
                    continue
                lines, self._lines, self._octets = tuple(self._lines), [], 0
            else:
                lines = (text,)
            reply = reply_from_wire(int(code), lines)
            if reply.code == 421:
                raise BackendError(Failure.CLOSING, f"it said {reply}")
            return reply
        self._check_rest(stream)
        return None

    def _take_in(self) -> Stream:
        """What has come stands in `_received` from `_at` on."""
        stream = self._open_stream()
        if stream.received:
            self._received = self._received[self._at :] + stream.take() if self._received else stream.take()
            self._at = 0
        return stream

    def _use_up(self, end: int) -> None:
        if end == len(self._received):
            self._received, self._at = b"", 0
        else:
            self._at = end

    def _gather(self, code: bytes, text: bytes) -> None:
        """A line of a reply of several lines."""
        if self._lines and code != self._code:
            raise BackendError(Failure.ODD, "what it sent is no reply")
        self._code = code
        self._lines.append(text)
        self._octets += len(text) or 1
        if self._octets > MAX_REPLY:
            raise BackendError(Failure.ODD, f"a reply of more than {MAX_REPLY} octets")

    def _check_rest(self, stream: Stream) -> None:
        """What was received and is no whole line of a reply: raises BackendError unless it may become one."""
        unread = len(self._received) - self._at
        line_end = self._received.find(b"\n", self._at) if unread else -1
        if (unread if line_end < 0 else line_end - self._at) >= MAX_LINE:
            raise BackendError(Failure.ODD, f"a reply line of more than {MAX_LINE} octets")
        if line_end >= 0:
            raise BackendError(Failure.ODD, "what it sent is no reply")
        if stream.ended:
            raise BackendError(Failure.GONE, f"read: {stream.error}" if stream.error else "it closed the connection")

    def unread(self) -> bool:
        """Whether something has come, as far as the loop knows, that no reply has used up; the end of file, too."""
        stream = self.stream
        return stream is None or stream.ended or stream.received != b"" or self._received != b""

    def check_quiet(self, in_data: bool = False) -> bool:
        """Make sure that up to now nothing has come which nobody asked for; True if half a reply has.

        Raises BackendError. Amid the data a negative reply is the backend's early verdict on the message; anywhere else
        nobody knows what it answers.
        """
        stream = self.stream or self._open_stream()
        if not self._received and not stream.look():
            return False
        reply = self.next_reply()
        if reply is None:
            return True
        what = f"it said out of turn: {reply}"
        if in_data and reply.negative:
            raise BackendError(Failure.REFUSED, what, reply)
        raise BackendError(Failure.BROKEN_OFF if in_data else Failure.ODD, what)

    # --- the end -----------------------------------------------------------------------------------------------------

    def quit(self) -> None:  # type: ignore[override]
        """Take leave as RFC 5321 section 4.1.1.10 asks: QUIT, wait a little for its reply, close."""
        deadline = time.monotonic() + _LEAVE_TAKING
        try:
            self.write(b"QUIT\r\n", deadline)
            self._read_verbatim(deadline)
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
