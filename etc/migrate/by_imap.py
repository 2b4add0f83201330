# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user has in a store, as an IMAP server tells of it: for same-mail and kept-apart. same-mail has the file."""

import configparser
import imaplib
import re
import ssl
from datetime import UTC, datetime

from mailboxes import NOT_THE_USERS, Folder, Trouble

LIST = re.compile(rb'\((?P<flags>[^)]*)\) (?:"(?P<separator>\\?.)"|NIL) (?P<name>.*)', re.DOTALL)
NUMBER = re.compile(rb"\A(\d+) \(")
SIZE = re.compile(rb"\bRFC822\.SIZE (\d+)")
FLAGS = re.compile(rb"\bFLAGS \(([^()]*)\)")
DATE = re.compile(rb'\bINTERNALDATE "([^"]*)"')
UNFOLDED = re.compile(rb"[^\s:]+:.*\r?\n(?:[ \t].*\r?\n)*")
KEPT = {b"\\seen": "\\Seen", b"\\answered": "\\Answered", b"\\flagged": "\\Flagged", b"\\draft": "\\Draft",
        b"\\deleted": "\\Deleted"}  # fmt: skip
NOT_KEYWORDS = {flag.encode().lower() for flag in NOT_THE_USERS}
KEYS = {"server", "admin", "password", "tls", "prefix"}


def stores(path, *names):
    """The sections of the file that has how servers are asked."""
    config = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=("#",))
    try:
        with open(path, encoding="utf-8") as file:
            config.read_file(file)
        for name in names:
            if odd := config[name].keys() - KEYS:
                raise Trouble(f"{path}: [{name}]: unknown: {', '.join(sorted(odd))}")
    except (configparser.Error, KeyError) as error:
        raise Trouble(f"{path}: {error}") from None
    return config


def folders(server, where, user, *, keywords=False, dates=False):
    """The address of the server, and Folders by name: without the prefix, with . between.

    keywords, dates: are a part of what a message is, too.
    """
    try:
        with login(server, where, user) as imap:
            found = {}
            for name, separator in names(imap, where):
                plain = name.decode("ascii", "backslashreplace")
                prefix = server.get("prefix", "")
                if plain.upper() != "INBOX" and prefix:
                    plain = plain.removeprefix(prefix)
                plain = "INBOX" if plain.upper() == "INBOX" else plain.replace(separator, ".")
                if plain in found:
                    raise Trouble(f"{where}: two folders are {plain} without {prefix}")
                found[plain] = Folder(messages=messages(imap, where, name, keywords, dates))
            peer = imap.sock.getpeername()[:2]
    except (OSError, imaplib.IMAP4.error) as error:
        raise Trouble(f"{where}: {server.get('server')}: {error}") from None
    if "INBOX" not in found:
        raise Trouble(f"{where}: {server['server']} shows no INBOX of {user}")
    return peer, found


def login(server, where, user):
    host, _, port = server.get("server", "").rpartition(":")
    tls = server.get("tls", "starttls").lower()
    if not host or not port.isdigit() or "password" not in server or tls not in ("yes", "no", "starttls"):
        raise Trouble(f"[{where}] needs server = HOST:PORT, password, and tls = starttls, yes or no")
    context = ssl.create_default_context()
    if tls == "yes":
        imap = imaplib.IMAP4_SSL(host, int(port), ssl_context=context, timeout=300)
    else:
        imap = imaplib.IMAP4(host, int(port), timeout=300)
        if tls != "no":
            imap.starttls(context)
    if imap.state != "NONAUTH":  # PREAUTH: as somebody, but who knows whom
        raise Trouble(f"{where}: {server['server']} asks for no login")
    octets = "\0".join((user, server.get("admin") or user, server["password"])).encode()
    imap.authenticate("PLAIN", lambda _: octets)
    return imap


def names(imap, where):
    status, lines = imap.list()
    if status != "OK":
        raise Trouble(f"{where}: LIST: {lines!r}")
    for line in lines:
        if line is None or line == b"":
            continue
        # a name with odd characters comes as a literal: the line, then the name
        head, literal = (line[0], line[1]) if isinstance(line, tuple) else (line, None)
        match = LIST.match(head)
        if match is None:
            raise Trouble(f"{where}: LIST: {head!r}")
        if b"\\noselect" in match["flags"].lower() or b"\\nonexistent" in match["flags"].lower():
            continue
        name = literal if literal is not None else match["name"]
        if literal is None and name.startswith(b'"'):
            name = re.sub(rb"\\(.)", rb"\1", name[1:-1])
        yield name, (match["separator"] or b".").decode()[-1]


def messages(imap, where, name, keywords, dates):
    """What a Folder has of each: Message-ID and size and perhaps date; flags."""
    quoted = b'"' + re.sub(rb'(["\\])', rb"\\\1", name) + b'"'
    status, answer = imap.select(quoted.decode("latin-1"), readonly=True)
    if status != "OK":
        raise Trouble(f"{where}: SELECT {name!r}: {answer!r}")
    number = int(answer[0])
    if number == 0:
        return []
    date_too = " INTERNALDATE" if dates else ""
    status, parts = imap.fetch("1:*", f"(FLAGS RFC822.SIZE{date_too} BODY.PEEK[HEADER.FIELDS (MESSAGE-ID X-TUID)])")
    if status != "OK":
        raise Trouble(f"{where}: FETCH in {name!r}: {parts!r}")
    found = {}
    for head, header in records(parts):
        which, size, flags, date = (each.search(head) for each in (NUMBER, SIZE, FLAGS, DATE))
        if which is None or size is None or flags is None or int(which[1]) in found or (dates and date is None):
            raise Trouble(f"{where}: FETCH in {name!r}: not understood: {head!r}")
        arrived = moment(where, name, date[1]) if dates else ""
        found[int(which[1])] = message(int(size[1]), kept(flags[1].split(), keywords), header, arrived)
    if found.keys() != set(range(1, number + 1)):
        raise Trouble(f"{where}: {name!r}: {number} messages, of {len(found)} was told")
    return list(found.values())


def records(parts):
    """Of each message: all that was said of it but the header, and the header."""
    record = None
    for part in parts:
        if isinstance(part, tuple):
            if record is not None:
                yield record
            record = part
        elif record is not None and not NUMBER.match(part):  # what stands behind the header
            yield record[0] + b" " + part, record[1]
            record = None
        else:
            raise Trouble(f"FETCH: not understood: {part!r}")
    if record is not None:
        yield record


def moment(where, name, date):
    """An INTERNALDATE, as the same text for the same moment: zones differ, and " 5-Mar-2011" may be "05-Mar-2011"."""
    try:
        when = datetime.strptime(date.decode("ascii").strip(), "%d-%b-%Y %H:%M:%S %z").astimezone(UTC)
    except (ValueError, OverflowError):
        raise Trouble(f"{where}: {name!r}: no INTERNALDATE: {date!r}") from None
    return f", arrived {when:%Y-%m-%d %H:%M:%S} UTC"


def kept(flags, keywords):
    """Those that are to be the same. Keywords are the same in both letter cases."""
    found = {KEPT[flag.lower()] for flag in flags if flag.lower() in KEPT}
    if keywords:
        own = {flag.lower() for flag in flags if not flag.startswith(b"\\")} - NOT_KEYWORDS
        found |= {flag.decode("ascii", "backslashreplace") for flag in own}
    return frozenset(found)


def message(size, flags, header, arrived):
    identity, added = b"", 0
    for line in UNFOLDED.findall(header):
        if line.lower().startswith(b"message-id:"):
            identity = b" ".join(line.split()[1:])
        else:
            added += len(line)  # a mark of mbsync's own
    text = identity.decode("ascii", "backslashreplace") or "(no Message-ID)"
    return f"{text} ({size - added} octets{arrived})", flags
