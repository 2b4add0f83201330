"""An LMTP client that writes bytes and reads strictly checked replies.

It is the impartial side: any byte from the server that is not a well-formed reply is an AssertionError.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple

from tests.support.patience import SOON

REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])([ -])([\t\x20-\x7e\x80-\xff]*)\r\n")
ENHANCED = re.compile(rb"([245])\.[0-9]{1,3}\.[0-9]{1,3}(?: |$)")
MAX_REPLY_LINE = 4096
SMALL_BODY = b"Subject: x\r\n\r\nx\r\n"


class Disconnected(Exception):
    """The server closed or reset the connection where a reply was due."""


class Reply(NamedTuple):
    """One reply: its code and its lines' texts, without code and line end."""

    code: int
    lines: tuple[bytes, ...]

    @property
    def text(self) -> str:
        """Code and last line, as `550 5.1.1 User unknown`."""
        return f"{self.code} {self.lines[-1].decode('utf-8', 'surrogateescape')}"

    @property
    def enhanced(self) -> str:
        """The enhanced status code, or an empty string."""
        match = ENHANCED.match(self.lines[-1])
        return match.group(0).decode().strip() if match else ""

    @property
    def positive(self) -> bool:
        return 200 <= self.code < 300


@dataclass(slots=True)
class Outcome:
    """What the client got for one message; `finals` has one entry per recipient, None for those refused at RCPT."""

    sender: str
    recipients: Sequence[str]
    mail: Reply | None = None
    rcpts: list[Reply] = field(default_factory=list)
    data: Reply | None = None
    finals: list[Reply | None] = field(default_factory=list)
    final_times: list[float] = field(default_factory=list)  # monotonic, one per final reply read

    def verdict(self, position: int) -> Reply:
        """The reply that decided the fate of the recipient at `position`."""
        final = self.finals[position] if position < len(self.finals) else None
        return final if final is not None else self.rcpts[position]


class LmtpClient:
    """A connection to `address` (a path, or host and port). Replies are waited for at most `timeout` seconds."""

    def __init__(self, address: str | tuple[str, int], *, timeout: float = SOON, source: str | None = None) -> None:
        if isinstance(address, str):
            self.sock = socket.socket(socket.AF_UNIX)
        else:
            self.sock = socket.socket(socket.AF_INET)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if source is not None:
                self.sock.bind((source, 0))
        self.sock.settimeout(timeout)
        self._buffer = b""
        try:
            self.sock.connect(address)
        except BaseException:
            self.sock.close()
            raise

    # -- bytes ----------------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Writes all of `data`."""
        self.sock.sendall(data)

    def pieces(self, pieces: Iterable[bytes], gap: float = 0.002) -> None:
        """Writes each piece by itself, `gap` seconds apart, so that the server reads them one by one."""
        for piece in pieces:
            self.send(piece)
            time.sleep(gap)

    def reply(self, timeout: float | None = None) -> Reply:
        """Reads one reply. Raises Disconnected at the end of the stream, TimeoutError when none comes."""
        lines: list[bytes] = []
        code = 0
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            line = self._line(deadline)
            match = REPLY_LINE.fullmatch(line)
            assert match is not None, f"not a reply line: {line[:200]!r}"
            assert len(line) <= MAX_REPLY_LINE, f"a reply line of {len(line)} bytes"
            assert not lines or int(match.group(1)) == code, f"codes differ within a reply: {code}, {line!r}"
            code = int(match.group(1))
            lines.append(match.group(3))
            if match.group(2) == b" ":
                return Reply(code, tuple(lines))

    def _line(self, deadline: float | None) -> bytes:
        while b"\n" not in self._buffer:
            assert len(self._buffer) <= MAX_REPLY_LINE, "a reply line without an end"
            if deadline is not None:
                self.sock.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                chunk = self.sock.recv(65536)
            except ConnectionError as error:
                raise Disconnected(str(error)) from error
            if not chunk:
                assert not self._buffer, f"the stream ends within a reply: {self._buffer!r}"
                raise Disconnected("end of stream")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line + b"\n"

    def at_end_or_reply(self) -> Reply | None:
        """The next reply, or None when the server has ended the stream."""
        try:
            return self.reply()
        except Disconnected:
            return None

    def silent(self, seconds: float) -> bool:
        """True when nothing at all arrives for that long."""
        if self._buffer:
            return False
        before = self.sock.gettimeout()
        self.sock.settimeout(seconds)
        try:
            self._buffer += self.sock.recv(65536)
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(before)
        return False

    def at_end(self, timeout: float = SOON) -> bool:
        """True when the server ends the stream within `timeout` seconds, with no byte before the end."""
        try:
            reply = self.reply(timeout)
        except Disconnected:
            return True
        except TimeoutError:
            return False
        raise AssertionError(f"a reply nobody asked for: {reply}")

    # -- leaving --------------------------------------------------------------------------------------------------

    def half_close(self) -> None:
        """Ends our direction of the stream; the other stays open."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Goes away as a crashed peer does."""
        if self.sock.family == socket.AF_INET:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> LmtpClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- LMTP -----------------------------------------------------------------------------------------------------

    def command(self, line: str | bytes) -> Reply:
        """Sends one command line, reads its reply and checks that it bears an enhanced code if it must."""
        raw = line.encode() if isinstance(line, str) else line
        self.send(raw + b"\r\n")
        reply = self.reply()
        if raw[:4].upper() != b"LHLO":
            check_enhanced(reply)
        return reply

    def greet(self) -> Reply:
        """Reads the greeting, says LHLO; returns the reply to it."""
        assert self.reply().code == 220
        reply = self.command("LHLO client.test")
        assert reply.code == 250, reply
        return reply

    def quit(self) -> None:
        """QUIT, its reply, the end of the stream."""
        assert self.command("QUIT").code == 221
        assert self.at_end()
        self.close()

    def envelope(self, sender: str, recipients: Sequence[str], *, pipelined: bool = True) -> Outcome:
        """MAIL and RCPTs. Pipelined they go in one write together with DATA, as Postfix does."""
        outcome = Outcome(sender, recipients)
        lines = [f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{recipient}>" for recipient in recipients), "DATA"]
        if pipelined:
            self.send("".join(line + "\r\n" for line in lines).encode("utf-8", "surrogateescape"))
        for number, line in enumerate(lines):
            if not pipelined:
                self.send(line.encode("utf-8", "surrogateescape") + b"\r\n")
            reply = self.reply()
            check_enhanced(reply)
            if number == 0:
                outcome.mail = reply
            elif number <= len(recipients):
                outcome.rcpts.append(reply)
            else:
                outcome.data = reply
        accepted = any(reply.positive for reply in outcome.rcpts)
        assert outcome.data is not None
        assert (outcome.data.code == 354) == accepted, f"DATA answered {outcome.data} after {outcome.rcpts}"
        if not accepted:
            assert outcome.data.code == 503, outcome.data
        return outcome

    def finals(self, outcome: Outcome) -> Outcome:
        """Reads one final reply per accepted recipient, in order. One too many shows at the next command."""
        for reply in outcome.rcpts:
            if reply.positive:
                outcome.finals.append(check_enhanced(self.reply()))
                outcome.final_times.append(time.monotonic())
            else:
                outcome.finals.append(None)
        return outcome

    def finals_after(self, outcome: Outcome, data: bytes) -> Outcome:
        """Sends `data` (with its final dot), reads the final replies."""
        self.send(data)
        return self.finals(outcome)

    def deliver(
        self, sender: str, recipients: Sequence[str], body: bytes = SMALL_BODY, *, pipelined: bool = True
    ) -> Outcome:
        """One whole transaction; `body` is sent as it is and ends in CRLF. RSET follows when nobody was accepted."""
        outcome = self.envelope(sender, recipients, pipelined=pipelined)
        if outcome.data is not None and outcome.data.code == 354:
            return self.finals_after(outcome, body + b".\r\n")
        outcome.finals = [None] * len(recipients)
        assert self.command("RSET").code == 250
        return outcome


def check_enhanced(reply: Reply) -> Reply:
    """ENHANCEDSTATUSCODES was offered: every 2xx, 4xx and 5xx has a code of its class. Returns the reply."""
    if reply.code // 100 in (2, 4, 5):
        assert reply.enhanced[:1] == str(reply.code)[:1], f"no or a wrong enhanced code: {reply}"
    return reply
