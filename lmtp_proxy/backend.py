# SPDX-License-Identifier: GPL-3.0-or-later
"""One LMTP conversation with a backend: smtplib.LMTP with strict replies and absolute deadlines.

smtplib brings LHLO and AUTH. Its own reader would wait for ever on a trickle and take any line for a reply, so replies
are read here. Every failure is a BackendError, which carries the reply for the recipients. Nothing is retried, and
nothing is known of pools, recipients or routes.
"""

import re
import smtplib
import socket
import time
from collections.abc import Callable
from ipaddress import ip_address

import gevent
import gevent.socket

from lmtp_proxy import reply as say
from lmtp_proxy.config_values import Backend, TcpAddress, UnixAddress
from lmtp_proxy.log import printable
from lmtp_proxy.reply import MAX_LINE, Reply

MAX_REPLY = 32768  # octets of all lines; the reply to each recipient of a message may be as long
FINAL_DOT = b".\r\n"  # what stands before it ends with CRLF, or is nothing
_RECEIVE = 65536
_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])([^\r\n\0]*))?")
_LEAVE_TAKING = 2.0  # seconds
_EARLY_REPLY = 5.0  # seconds for the rest of a reply that has begun to arrive before its time


class BackendError(Exception):
    """A conversation failed.

    reply: what its recipients get. reason: for the log, escaped there. maybe_delivered: the final dot was sent, so the
    message may have been stored. alarm: somebody has to mend the configuration; waiting will not help.
    """

    def __init__(self, reply: Reply, reason: str, *, maybe_delivered: bool = False, alarm: bool = False) -> None:
        super().__init__(reason)
        self.reply = reply
        self.reason = printable(reason.encode("utf-8", "backslashreplace"))
        self.maybe_delivered = maybe_delivered
        self.alarm = alarm


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

    before_wait: called each time it is about to wait for a reply; the transaction uses it to send on what is known.
    """

    def __init__(self, backend: Backend, hostname: str) -> None:
        super().__init__(local_hostname=hostname)
        self.backend = backend
        self.before_wait: Callable[[], None] | None = None
        self._received = b""
        self._deadline = 0.0  # of the step in hand, for the parts that smtplib drives

    def __repr__(self) -> str:
        state = "open" if self.sock else "closed"
        return f"<BackendSession {self.backend.name}[{self.backend.address}] {state} unread={len(self._received)}>"

    @property
    def offered(self) -> frozenset[str]:
        """The extensions that the backend offered, in lower case."""
        return frozenset(self.esmtp_features)

    # --- opening -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect, read the greeting, LHLO, and AUTH where a user is configured. Raises BackendError."""
        try:
            self._connect()
            self._deadline = time.monotonic() + self.backend.timeouts.greeting
            greeting = self.read_reply(self._deadline)
            if greeting.code != 220:
                raise BackendError(say.BACKEND_ODD, f"greeting: {greeting}")
            self._lhlo()
            if self.backend.user is not None:
                self._deadline = time.monotonic() + self.backend.timeouts.command
                self._authenticate(self.backend.user, self.backend.password or "")
                self._lhlo()  # Cyrus offers other extensions after AUTH than before
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        address, seconds = self.backend.address, self.backend.timeouts.connect
        try:
            if isinstance(address, UnixAddress):
                self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                # Without waiting: a full backlog is EAGAIN, and gevent would try again for ever.
                self.sock.settimeout(0.0)
                self.sock.connect(address.path)
            else:
                address.host.encode("idna")  # as the resolver does in its thread, where gevent would print the error
                # The timeout of create_connection is per address and leaves DNS out.
                with gevent.Timeout(seconds, TimeoutError(f"no connection in {seconds:g} s")):
                    self.sock = _connected(address)
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except (OSError, UnicodeError) as error:  # UnicodeError: no host has such a name
            raise BackendError(say.CONNECT_FAILED, f"connect: {error}") from error

    def _lhlo(self) -> None:
        code, text = self.ehlo()
        if code != 250:
            raise BackendError(say.BACKEND_ODD, f"LHLO: {code} {text.decode('utf-8', 'backslashreplace')}")

    def _authenticate(self, user: str, password: str) -> None:
        try:
            code, _ = self.login(_Utf8(user), _Utf8(password))
        except smtplib.SMTPResponseException as error:
            code = error.smtp_code
        except (smtplib.SMTPException, ValueError) as error:  # not offered, no mechanism; ValueError: not base64
            raise BackendError(say.BACKEND_AUTH, f"AUTH: {error}", alarm=True) from error
        if code != 235:
            # Not its text: a backend may repeat what it was sent, which is the password.
            raise BackendError(say.BACKEND_AUTH, f"AUTH: refused with {code}", alarm=True)

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

    # --- the conversation --------------------------------------------------------------------------------------------

    def write_now(self, octets: bytes) -> bytes:
        """Send what goes out without waiting; return the rest. Raises BackendError."""
        sock = self._open_socket()
        try:
            sock.settimeout(0.0)
            return octets[sock.send(octets) :]
        except BlockingIOError:
            return octets
        except OSError as error:
            raise BackendError(say.BACKEND_SILENT, f"write: {error}") from error

    def write(self, octets: bytes, deadline: float) -> None:
        """Send all octets until `deadline` (time.monotonic). Raises BackendError."""
        while octets and (octets := self.write_now(octets)):
            sock = self._open_socket()
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                octets = octets[sock.send(octets) :]
            except OSError as error:
                raise BackendError(say.BACKEND_SILENT, f"write: {error}") from error

    def write_final_dot(self, deadline: float, look: Callable[[], None], step_back: Callable[[], None]) -> None:
        """End the message. `look` is called right before the dot goes out, and again after each wait for room for it.

        step_back: called before each such wait, when no octet of the dot has gone out. Raises BackendError,
        `maybe_delivered` unless certainly no octet of the dot went out; and what `look` raises.
        """
        while True:
            look()
            if (rest := self.write_now(FINAL_DOT)) != FINAL_DOT:
                break
            step_back()
            silent = BackendError(say.BACKEND_SILENT, "write: timed out")
            gevent.socket.wait_write(self._open_socket().fileno(), max(0.001, deadline - time.monotonic()), silent)
        try:
            self.write(rest, deadline)
        except BackendError as error:
            error.maybe_delivered = len(rest) < len(FINAL_DOT)
            raise

    def read_reply(self, deadline: float) -> Reply:
        """The next reply, with an enhanced code. What has arrived is read even after `deadline` (time.monotonic).

        Raises BackendError: silence, end of file, anything that is no reply, and 421, which ends every conversation.
        """
        return self._read_verbatim(deadline).with_enhanced()

    def _read_verbatim(self, deadline: float) -> Reply:
        lines: list[bytes] = []
        octets = 0
        code = b""
        while True:
            match = _REPLY_LINE.fullmatch(self._read_line(deadline))
            if not match or (code and match[1] != code):
                raise BackendError(say.BACKEND_ODD, "what it sent is no reply")
            code = match[1]
            lines.append(match[3] or b"")
            octets += len(lines[-1])
            if octets > MAX_REPLY:
                raise BackendError(say.BACKEND_ODD, f"a reply of more than {MAX_REPLY} octets")
            if match[2] != b"-":
                break
        reply = Reply(int(code), tuple(lines))
        if reply.code == 421:
            raise BackendError(say.BACKEND_CLOSING, f"it said {reply}")
        return reply

    def check_quiet(self, *, in_data: bool = False) -> None:
        """Make sure that nothing has arrived which nobody asked for; to be called before a send.

        Raises BackendError. Amid the data a negative reply is the backend's early verdict on the message; anywhere else
        nobody knows what it answers.
        """
        if not self._received and not self._receive_now():
            return
        reply = self.read_reply(time.monotonic() + _EARLY_REPLY)
        verdict = say.BACKEND_ODD
        if in_data:
            verdict = reply if reply.negative else say.BACKEND_SILENT
        raise BackendError(verdict, f"it said out of turn: {reply}")

    @property
    def unread(self) -> bool:
        """Octets were received that no reply has used up."""
        return bool(self._received)

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

    # --- octets ------------------------------------------------------------------------------------------------------

    def _open_socket(self) -> socket.socket:
        if self.sock is None:
            raise BackendError(say.BACKEND_SILENT, "the connection is closed")
        return self.sock

    def _read_line(self, deadline: float) -> bytes:
        """A line without its line end."""
        while (end := self._received.find(b"\n")) < 0 and len(self._received) <= MAX_LINE:
            if not self._receive_now():
                if self.before_wait:
                    self.before_wait()
                seconds = deadline - time.monotonic()
                if seconds <= 0:
                    raise BackendError(say.BACKEND_SILENT, "no answer in time")
                self._receive(seconds)
        line = self._received[:end].removesuffix(b"\r")
        if end < 0 or len(line) > MAX_LINE - len(b"\r\n"):
            raise BackendError(say.BACKEND_ODD, f"a reply line of more than {MAX_LINE} octets")
        self._received = self._received[end + 1 :]
        return line

    def _receive_now(self) -> bool:
        """Take in what has arrived; False if nothing has."""
        try:
            self._receive(0.0)
        except BlockingIOError:
            return False
        return True

    def _receive(self, seconds: float) -> None:
        sock = self._open_socket()
        sock.settimeout(seconds)
        try:
            octets = sock.recv(_RECEIVE)
        except BlockingIOError:
            raise
        except TimeoutError as error:
            raise BackendError(say.BACKEND_SILENT, "no answer in time") from error
        except OSError as error:
            raise BackendError(say.BACKEND_SILENT, f"read: {error}") from error
        if not octets:
            raise BackendError(say.BACKEND_SILENT, "it closed the connection")
        self._received += octets
