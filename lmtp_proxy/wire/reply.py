# SPDX-License-Identifier: GPL-3.0-or-later
"""A reply on the wire (RFC 5321 section 4.2, RFC 2034), and every sentence the proxy itself can say.

A backend's reply and one of our own are the same value, so what comes from a backend passes on verbatim. When which
sentence is said is decided elsewhere; nothing here looks at state.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

MAX_LINE = 4096
"""Octets of one reply line, CRLF included, that are passed on. RFC 5321 promises 512; Cyrus and Dovecot stay below."""

# RFC 2034 section 3: class "." subject "." detail, the last two of up to 3 digits.
_ENHANCED = re.compile(rb"([245])\.(\d{1,3})\.(\d{1,3})(?= |$)")
_FORBIDDEN = re.compile(rb"[\r\n\0]")


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply: a code and at least one line.

    Raises ValueError for a code or line that could not stand there as exactly one reply.

    Attributes:
        code: 200 to 599.
        lines: the text of each line as octets, after "250-" or "250 ", the enhanced code included.
        wire: the whole reply as it goes over the wire, each line ended with CRLF; made of the others if it is not
            given.
    """

    code: int
    lines: tuple[bytes, ...]
    wire: bytes = field(default=b"", repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 200 <= self.code <= 599:
            raise ValueError(f"{self.code} is no reply code")
        if not self.lines:
            raise ValueError("a reply has at least one line")
        for line in self.lines:
            if _FORBIDDEN.search(line):
                raise ValueError("a reply line may hold no CR, LF or NUL")
            if len(line) + 6 > MAX_LINE:
                raise ValueError(f"a reply line of {len(line) + 6} octets, {MAX_LINE} are allowed")
        _set(self, "wire", self.wire or _joined(self.code, self.lines))

    @property
    def enhanced(self) -> str | None:
        """The enhanced status code (RFC 3463) of the last line that has one of the reply's own class, or None."""
        for line in reversed(self.lines):
            match = _ENHANCED.match(line)
            if match and int(match[1]) == self.code // 100:
                return match[0].decode("ascii")
        return None

    @property
    def in_one_line(self) -> bytes:
        """Code and all lines, for the log."""
        return self.wire[:-2] if len(self.lines) == 1 else b"%d %s" % (self.code, self.text)

    @property
    def positive(self) -> bool:
        """2xx: done, and for a recipient: accepted or delivered."""
        return self.code < 300

    @property
    def negative(self) -> bool:
        """4xx or 5xx."""
        return self.code >= 400

    @property
    def text(self) -> bytes:
        """All lines as one, for the log."""
        return b" ".join(self.lines)

    def with_enhanced(self) -> "Reply":
        """This reply, with the generic code of its class in front of each line where no line has a code.

        We offer ENHANCEDSTATUSCODES, which promises a code in each 2xx, 4xx and 5xx (RFC 2034 section 4); a backend
        that does not offer it sends none.
        """
        if _ENHANCED.match(self.lines[0]) or self.code // 100 == 3 or any(map(_ENHANCED.match, self.lines)):
            return self
        prefix = b"%d.0.0 " % (self.code // 100)
        return Reply(self.code, tuple(prefix + line[: MAX_LINE - 6 - len(prefix)] for line in self.lines))

    def to_bytes(self) -> bytes:
        """The reply as it goes over the wire."""
        return self.wire

    def __str__(self) -> str:
        return f"{self.code} {self.text.decode('utf-8', 'backslashreplace')}"


def reply_from_wire(code: int, lines: tuple[bytes, ...], wire: bytes = b"") -> Reply:
    """A reply whose code and lines were taken from whole reply lines: they need no second check, which would cost 3 us.

    See Reply for what they must hold.
    """
    reply = _new(Reply)
    _set(reply, "code", code)
    _set(reply, "lines", lines)
    _set(reply, "wire", wire or _joined(code, lines))
    return reply


def worst_code(replies: Iterable[Reply]) -> int:
    """The highest of their codes, 0 where there are none."""
    worst = 0
    for reply in replies:
        if reply.code > worst:
            worst = reply.code
    return worst


def _joined(number: int, lines: tuple[bytes, ...]) -> bytes:
    code = b"%d" % number
    *first, last = lines
    return b"".join(b"%s-%s\r\n" % (code, line) for line in first) + b"%s %s\r\n" % (code, last)


_new, _set = object.__new__, object.__setattr__


def _own(code: int, text: str) -> Reply:
    return Reply(code, (text.encode("ascii"),), f"{code} {text}\r\n".encode("ascii"))


# --- protocol: RFC 5321 section 4.2, RFC 3463 ------------------------------------------------------------------------
OK = _own(250, "2.0.0 OK")
SENDER_OK = _own(250, "2.1.0 Sender OK")
HELP = _own(214, "2.0.0 LMTP, RFC 2033: LHLO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT")
CANNOT_VRFY = _own(252, "2.0.0 Cannot VRFY, but will take mail for a user and try to deliver it")
BYE = _own(221, "2.0.0 Bye")
START_DATA = _own(354, "Start mail input; end with <CRLF>.<CRLF>")
LINE_TOO_LONG = _own(500, "5.5.2 Command line too long")
BAD_COMMAND = _own(500, "5.5.2 Command not recognized")
NOT_LMTP = _own(500, "5.5.1 This is LMTP: say LHLO")
BAD_SYNTAX = _own(501, "5.5.4 Syntax error in the arguments")
BAD_LHLO = _own(501, "5.5.4 Syntax: LHLO hostname")
BAD_SENDER = _own(501, "5.5.4 Syntax: MAIL FROM:<address>")
BAD_RECIPIENT = _own(501, "5.5.4 Syntax: RCPT TO:<address>")
BAD_XFORWARD = _own(501, "5.5.4 Syntax: XFORWARD attribute=value...")
NO_ARGUMENTS = _own(501, "5.5.4 This command takes no arguments")
UNKNOWN_PARAMETER = _own(555, "5.5.4 Unsupported parameter")
LHLO_FIRST = _own(503, "5.5.1 Send LHLO first")
MAIL_FIRST = _own(503, "5.5.1 Send MAIL first")
NESTED_MAIL = _own(503, "5.5.1 Nested MAIL command")
LATE_XFORWARD = _own(503, "5.5.1 XFORWARD comes before MAIL")
NO_RECIPIENTS = _own(503, "5.5.1 No valid recipients")
TOO_MANY_RECIPIENTS = _own(452, "4.5.3 Too many recipients")
TOO_MANY_ERRORS = _own(421, "4.7.0 Too many errors in a row, closing connection")
NOT_A_CLIENT = _own(421, "4.7.0 This is LMTP, and that was not; closing connection")
TLS_FIRST = _own(451, "4.7.0 Must issue a STARTTLS command first")  # RFC 3207 has 530, which an MTA bounces
START_TLS = _own(220, "2.0.0 Ready to start TLS")
TLS_ALREADY = _own(503, "5.5.1 TLS is active already")
LATE_STARTTLS = _own(503, "5.5.1 STARTTLS comes before MAIL")
BEHIND_STARTTLS = _own(421, "4.7.0 Something came behind STARTTLS in plain text, closing connection")
SIZE_TOO_BIG = _own(552, "5.3.4 Message is larger than the size limit")
AMBIGUOUS_DATA = _own(550, "5.6.0 Message has a dot that some servers take for its end; refused as ambiguous")

# --- the client's connection -----------------------------------------------------------------------------------------
IDLE_TOO_LONG = _own(421, "4.4.2 Idle for too long, closing connection")
TOO_SLOW = _own(421, "4.4.2 The message came for too long or too slowly, closing connection")
INTERNAL_ERROR_CLOSING = _own(421, "4.3.0 Internal error, closing connection")
SHUTTING_DOWN = _own(421, "4.3.2 lmtp-proxy is shutting down, try again")
NOT_ALLOWED = _own(421, "4.7.1 Your address may not deliver here")  # 5xx: Exim, Sendmail and Haraka bounce at once
CERTIFICATE_NOT_ALLOWED = _own(421, "4.7.1 Your certificate may not deliver here")
NO_TLS_NOW = _own(421, "4.3.0 TLS is not available now, try again later")

# --- routing ---------------------------------------------------------------------------------------------------------
MAILBOX_PARKED = _own(450, "4.2.1 Mailbox is being moved, try again later")
UNKNOWN_USER = _own(450, "4.1.1 No backend is known for this user")
LOOKUP_FAILED = _own(451, "4.3.0 User lookup failed, try again later")
ROUTE_CHANGED = _own(451, "4.2.1 Mailbox was moved while the message came in, try again")

# --- a backend's failure ---------------------------------------------------------------------------------------------
CONNECT_FAILED = _own(451, "4.4.1 Cannot connect to the backend, try again later")
BACKEND_SILENT = _own(451, "4.4.2 Backend did not answer in time or closed the connection")
BACKEND_ODD = _own(451, "4.3.0 Backend answered out of turn, try again later")
BACKEND_AUTH = _own(451, "4.7.0 Backend refused our authentication, try again later")
BACKEND_TLS = _own(451, "4.7.0 Backend cannot be trusted, try again later")
BACKEND_MISUNDERSTANDS = _own(451, "4.3.0 Backend does not take our commands, try again later")
BACKEND_CLOSING = _own(451, "4.3.2 Backend is not accepting mail now, try again later")
BACKEND_BUSY = _own(451, "4.3.2 Too many deliveries to the backend, try again later")
MAILBOX_BUSY = _own(451, "4.2.1 Too many deliveries to this mailbox at a time, try again later")
NO_SMTPUTF8 = _own(553, "5.6.7 The backend of this user takes no internationalized addresses")
INTERNAL_ERROR = _own(451, "4.3.0 Internal error, try again later")


@lru_cache(8)
def greeting(hostname: str) -> Reply:
    """The first line of a session (RFC 5321 section 3.1)."""
    return _own(220, f"{hostname} LMTP lmtp-proxy ready")


@lru_cache(8)
def lhlo(
    hostname: str, max_message_size: int, smtputf8: bool, xforward: tuple[str, ...] = (), more: tuple[str, ...] = ()
) -> Reply:
    """The answer to LHLO. Always the same three extensions, so that what is offered never shrinks by accident.

    Without 8BITMIME Postfix re-encodes the body, which breaks DKIM signatures. A `SIZE` without a number says that
    there is no fixed limit (RFC 1870 section 4). xforward: the attributes that this client may send. more: extensions.
    """
    lines = [hostname, "PIPELINING", "ENHANCEDSTATUSCODES", "8BITMIME"]
    lines.append(f"SIZE {max_message_size}" if max_message_size else "SIZE")
    if smtputf8:
        lines.append("SMTPUTF8")
    if xforward:
        lines.append(f"XFORWARD {' '.join(xforward)}")
    lines += more
    return Reply(250, tuple(line.encode("ascii") for line in lines))


def lhlo_with_starttls(hostname: str, max_message_size: int, smtputf8: bool, xforward: tuple[str, ...] = ()) -> Reply:
    """As `lhlo`, where TLS can be started (RFC 3207 section 4)."""
    return lhlo(hostname, max_message_size, smtputf8, xforward, ("STARTTLS",))
