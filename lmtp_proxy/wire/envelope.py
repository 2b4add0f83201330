# SPDX-License-Identifier: GPL-3.0-or-later
"""The envelope: syntax of paths and ESMTP parameters (RFC 5321 section 4.1.2, RFC 1870, 6152, 6531).

Paths are kept as they came, octet for octet, because they go on to a backend that way. What a mailbox means (case,
`+detail`, domain) is none of its business. A syntax error is returned as the Reply that answers it, not raised.
"""

import re
from collections.abc import Container
from typing import NamedTuple

from lmtp_proxy.wire import reply
from lmtp_proxy.wire.reply import Reply
from lmtp_proxy.wire.xtext import XTEXT

# Unquoted local parts are taken more freely than RFC 5321 has them (dots anywhere): a 5xx for `a..b@x` would bounce
# mail that both Cyrus and Dovecot store. Controls, spaces and the specials that could change a command's meaning never
# pass.
_ATOM = rb"[!#-'*+\-./0-9=?A-Z^_`a-z{|}~\x80-\xff]+"
_QUOTED = rb'"(?:[ !#-\[\]-~\x80-\xff]|\\[ -~])*"'
_NAME = rb"[A-Za-z0-9_.\-\x80-\xff]+"
_LITERAL = rb"\[[A-Za-z0-9:.\-]+\]"
_DOMAIN = rb"(?:%s|%s)" % (_NAME, _LITERAL)
_ROUTE = rb"@%s(?:,@%s)*:" % (_DOMAIN, _DOMAIN)
_PATH = re.compile(rb"<(?:%s)?(?P<local>%s|%s)(?:@(?P<domain>%s))?>" % (_ROUTE, _ATOM, _QUOTED, _DOMAIN))
# A sender is looked up nowhere, and mail that is refused for `cron@web$1` is lost: nobody can be told. So the domain
# may be anything, or nothing, that ends neither word, path nor command, and leaves no quotes open, whatever a store
# thinks of a backslash. Postfix sends such domains, Dovecot takes them all, Cyrus judges for itself.
_HARMLESS = rb"[!#-;=?-\[\]-~\x80-\xff]|\\[!#-;=?-~\x80-\xff]"
_ANY_DOMAIN = rb'(?:%s|"(?:%s)*")*' % (_HARMLESS, _HARMLESS)
_REVERSE_PATH = re.compile(rb"<(?:(?:%s)?(?:%s|%s)(?:@%s)?)?>" % (_ROUTE, _ATOM, _QUOTED, _ANY_DOMAIN))
# What nearly all commands look like. Everything else goes the long way round, to the same result in thrice the time.
# Of at most 256 octets, as RFC 5321 section 4.5.3.1.3 has it; so no line of these is too long, and all are remembered.
# What ends either part is none of its octets, so nothing is ever given back (`}+`): to be ready for it takes a quarter
# of the time.
_PLAIN = rb"([!#-'*+\-./0-9=?A-Z^_`a-z{|}~]{1,127}+)@([A-Za-z0-9_.\-]{1,126}+)"
_PLAIN_MAIL = re.compile(rb"FROM:(<(?:%s)?>)(?: SIZE=([0-9]{1,20}))?(?: BODY=(7BIT|8BITMIME))?" % _PLAIN)
_PLAIN_RCPT = re.compile(rb"TO:(<%s>)" % _PLAIN)
_PLAIN_ENVELOPE = re.compile(
    rb"MAIL %s\r\n((?:RCPT %s\r\n)+)(?=DATA\r\n)" % (_PLAIN_MAIL.pattern, _PLAIN_RCPT.pattern.replace(b"(", b"(?:"))
)
_PARAMETER = re.compile(rb"(?P<keyword>[A-Za-z0-9][A-Za-z0-9\-]*)(?:=(?P<value>[!-<>-~]+))?")
_SIZE = re.compile(rb"\d{1,20}")  # RFC 1870 section 3
# RFC 3461 section 4.2. It is not offered; but Dovecot as an LMTP proxy sends it whenever it has looked a user up under
# another name, and a refusal bounces the mail.
_ORCPT = re.compile(rb"[!#-'*+\-/0-9?A-Z^-~]+;" + XTEXT)
_QUOTED_PAIR = re.compile(r"\\(.)")


RCPT = b"RCPT TO:"


class Envelope(NamedTuple):
    """What MAIL said, as far as we know its parameters.

    Attributes:
        path: with its angle brackets; `<>` is the null sender.
        size: octets that the client announces, None if it does not.
        body: b"7BIT" or b"8BITMIME", None if not given.
        smtputf8: it was given.
        queue_id: the message's id in the client's queue, which XFORWARD said before MAIL; "" if the client said no
            XFORWARD, None if it did and has no id.
    """

    path: bytes
    size: int | None = None
    body: bytes | None = None
    smtputf8: bool = False
    queue_id: str | None = ""

    def mail_command(self, offered: Container[str]) -> bytes:
        """The MAIL line for a backend that offered these extensions (names in lower case), without CRLF.

        A parameter that was not offered is left out: Dovecot 2.3 answers 555 to `SIZE=`, which bounces the mail.
        """
        path, size, body, smtputf8, _ = self
        line = b"MAIL FROM:" + path if size is None or "size" not in offered else b"MAIL FROM:%b SIZE=%d" % (path, size)
        if body is not None and "8bitmime" in offered:
            line += b" BODY=" + body
        if smtputf8 and "smtputf8" in offered:
            line += b" SMTPUTF8"
        return line


class Recipient(NamedTuple):
    """What RCPT said.

    Attributes:
        path: with its angle brackets, verbatim.
        local_part: without quotes, for look-ups.
        domain: likewise; empty for `RCPT TO:<user>`.
        orcpt: the value of ORCPT (RFC 3461), as it came; None if not given.
    """

    path: bytes
    local_part: str
    domain: str
    orcpt: bytes | None = None

    def rcpt_command(self) -> bytes:
        """The RCPT line for a backend, without CRLF or parameters: Cyrus answers 501 to ORCPT.

        Where many are made, RCPT and the path come to the same.
        """
        return RCPT + self.path


def parse_envelope(octets: bytes, start: int, queue_id: str | None = "") -> tuple[Envelope, list[bytes], int] | None:
    """MAIL, the paths of its RCPTs and where they end in `octets`, which have DATA behind.

    None unless each of these is a plain one; see `plain_recipient` for the paths. start: of MAIL. queue_id: for the
    envelope. No line is longer than any limit for plain ones.
    """
    found = _plain_envelope(octets, start)
    if found is None:
        return None
    path, size, body, rcpts = found.group(1, 4, 5, 6)
    envelope = _tuple(Envelope, (path, None if size is None else int(size), body, False, queue_id))
    return envelope, rcpts[8:-2].split(b"\r\nRCPT TO:"), found.end()


def plain_recipient(path: bytes) -> Recipient:
    """Of a path that `parse_envelope` gave: as `parse_rcpt` has it."""
    local_part, _, domain = path[1:-1].decode("ascii").partition("@")  # a plain local part holds no @
    return Recipient(path, local_part, domain)


_plain_envelope = _PLAIN_ENVELOPE.match
_tuple = tuple.__new__  # without the detour by a function in Python that a NamedTuple has


def parse_mail(arguments: bytes, *, smtputf8: bool) -> Envelope | Reply:
    """`FROM:<path> [parameters]`. `smtputf8`: whether LHLO offered it."""
    if plain := _PLAIN_MAIL.fullmatch(arguments):
        octets = plain[4]
        return Envelope(plain[1], None if octets is None else int(octets), plain[5])
    split = _split(arguments, b"FROM:", _REVERSE_PATH)
    if split is None:
        return reply.BAD_SENDER
    path, parameters = split
    size: int | None = None
    body: bytes | None = None
    utf8 = False
    seen: set[bytes] = set()
    for word in parameters:
        match = _PARAMETER.fullmatch(word)
        if not match or match["keyword"].upper() in seen:
            return reply.BAD_SYNTAX
        keyword, value = match["keyword"].upper(), match["value"]
        seen.add(keyword)
        if keyword == b"SIZE":
            if value is None or not _SIZE.fullmatch(value):
                return reply.BAD_SYNTAX
            size = int(value)
        elif keyword == b"BODY":
            if value is None or value.upper() not in (b"7BIT", b"8BITMIME"):
                return reply.BAD_SYNTAX
            body = value.upper()
        elif keyword == b"SMTPUTF8" and smtputf8:
            if value is not None:
                return reply.BAD_SYNTAX
            utf8 = True
        else:
            return reply.UNKNOWN_PARAMETER
    # Without SMTPUTF8, too: that is how Postfix sends it with `smtputf8_enable = no`, and not all stores mind.
    if not _is_utf8(path):
        return reply.BAD_SENDER
    return Envelope(path, size, body, utf8)


def parse_rcpt(arguments: bytes, *, smtputf8: bool) -> Recipient | Reply:
    """`TO:<path> [parameters]`, of which ORCPT is known. `smtputf8`: whether this transaction's MAIL said SMTPUTF8."""
    if plain := _PLAIN_RCPT.fullmatch(arguments):
        path, local, domain = plain.groups()
        return Recipient(path, local.decode("ascii"), domain.decode("ascii"))
    split = _split(arguments, b"TO:", _PATH)
    if split is None:
        return reply.BAD_RECIPIENT
    path, parameters = split
    orcpt: bytes | None = None
    unknown = False
    for word in parameters:
        parameter = _PARAMETER.fullmatch(word)
        if not parameter:
            return reply.BAD_SYNTAX
        if parameter["keyword"].upper() != b"ORCPT":
            unknown = True
        elif orcpt is not None or not _ORCPT.fullmatch(parameter["value"] or b""):
            return reply.BAD_SYNTAX
        else:
            orcpt = parameter["value"]
    if unknown:
        return reply.UNKNOWN_PARAMETER
    match = _PATH.fullmatch(path)
    if not match or not (path.isascii() or (smtputf8 and _is_utf8(path))):
        return reply.BAD_RECIPIENT
    local_part = match["local"].decode("utf-8")
    if local_part.startswith('"'):
        local_part = _QUOTED_PAIR.sub(r"\1", local_part[1:-1])
    return Recipient(path, local_part, (match["domain"] or b"").decode("utf-8"), orcpt)


def path_of(arguments: bytes, *, sender: bool) -> bytes | None:
    """The path in the arguments of MAIL or RCPT, whatever else is wrong with them; None if there is none."""
    split = _split(arguments, b"FROM:" if sender else b"TO:", _REVERSE_PATH if sender else _PATH)
    return None if split is None else split[0]


def _split(arguments: bytes, prefix: bytes, form: re.Pattern[bytes]) -> tuple[bytes, list[bytes]] | None:
    """Path and parameter words, or None where the syntax is wrong."""
    if arguments[: len(prefix)].upper() != prefix:
        return None
    rest = arguments[len(prefix) :].lstrip(b" ")
    match = form.match(rest)
    if match is None:
        return None
    path, tail = match[0], rest[match.end() :]
    return (path, [word for word in tail.split(b" ") if word]) if not tail or tail.startswith(b" ") else None


def _is_utf8(path: bytes) -> bool:
    try:
        path.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
