# SPDX-License-Identifier: GPL-3.0-or-later
"""Test messages: made from a seed, submitted to Postfix, found again in the stores and compared byte by byte.

A message opens with its own header `X-E2E-Id`. Every server on the way puts its trace headers above that, so what
follows it must arrive as it was sent. Knows nothing about how the servers are run.
"""

import random
import smtplib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType

from .postfix import DOMAIN, Postfix
from .requirements import program, run
from .stores import Store

SENDER = "sender"
ID_HEADER = b"X-E2E-Id: "
TRACE_HEADERS = {b"return-path", b"delivered-to", b"received", b"x-cyrus-session-id", b"x-sieve"}
"""What Postfix, Cyrus and Dovecot put on top."""

EIGHT_BIT = bytes(range(0x80, 0x100)) + bytes(range(0x20, 0x7F)) + b"\t"


@dataclass(frozen=True, slots=True)
class Message:
    """One message to submit."""

    ident: str
    recipients: tuple[str, ...]
    """Local parts (of DOMAIN) or whole addresses."""
    content: bytes
    """With CRLF line ends and without dot stuffing."""


def message(ident: str, recipients: Sequence[str], body: bytes = b"A plain line.\r\n") -> Message:
    headers = (
        f"X-E2E-Id: {ident}\r\nFrom: Sender <{SENDER}@{DOMAIN}>\r\nTo: undisclosed-recipients:;\r\nSubject: {ident}\r\n"
        f"Date: Mon, 1 Jan 2024 00:00:00 +0000\r\nMessage-ID: <{ident}@e2e.{DOMAIN}>\r\nMIME-Version: 1.0\r\n"
        "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    )
    return Message(ident, tuple(recipients), headers.encode("ascii") + body)


def awkward_body(rng: random.Random) -> bytes:
    """A few lines of what a proxy gets wrong most easily: 8-bit text, dots at the start, lines without end."""
    lines = [_awkward_line(rng) for _ in range(rng.randint(0, 30))]
    return b"".join(line + b"\r\n" for line in lines)


def _awkward_line(rng: random.Random) -> bytes:
    kind = rng.randrange(7)
    if kind == 0:
        return b"." * rng.randint(1, 4)
    if kind == 1:
        return b"." * rng.randint(1, 3) + _random_text(rng, 60)
    if kind == 2:
        return _long_line(rng, rng.choice((998, 999, 1000, 2047, 2048, 2049, 5000, 65535, 65536, 65537)))
    if kind == 3:
        return b"." * rng.choice((999, 5000))
    if kind == 4:
        return b""
    if kind == 5:
        return "Grüße aus Köln: €, 漢字, 🙂".encode()
    return _random_text(rng, rng.randint(1, 200))


def _random_text(rng: random.Random, length: int) -> bytes:
    return bytes(rng.choices(EIGHT_BIT, k=length))


def _long_line(rng: random.Random, length: int) -> bytes:
    """Any text, but with no dot where Cyrus 3.6 itself loses it, whoever speaks to it: it reads a line in pieces of
    8189 bytes (as on the wire, stuffed) and takes a dot at the start of any piece for a stuffed one.
    """
    line = bytearray(_random_text(rng, length))
    for start in range(8189, length, 8189):
        line[start - 1 : start + 1] = b"xx"
    if length > 8189:
        line[-1:] = b"x"  # a dot there is refused as ambiguous, for the same reason
    return bytes(line)


def large_body(rng: random.Random, size: int) -> bytes:
    """At least `size` bytes of awkward lines."""
    block = b"".join(_awkward_line(rng) + b"\r\n" for _ in range(400))
    return block * (size // len(block) + 1)


def submit(
    postfix: Postfix,
    messages: Iterable[Message],
    sender: str = f"{SENDER}@{DOMAIN}",
    options: Sequence[str] = ("BODY=8BITMIME",),
) -> dict[str, str]:
    """Hands the messages to Postfix in one SMTP session. Returns each one's queue id by its ident."""
    queue_ids = {}
    with smtplib.SMTP("127.0.0.1", postfix.smtp_port, timeout=120) as smtp:
        smtp.ehlo()
        for item in messages:
            replies = [smtp.mail(sender, options)]
            replies += [smtp.rcpt(user if "@" in user else f"{user}@{DOMAIN}") for user in item.recipients]
            replies.append(smtp.data(item.content))
            assert all(code == 250 for code, _ in replies), f"Postfix: {replies}"
            queue_ids[item.ident] = replies[-1][1].rpartition(b" ")[2].decode("ascii")
    return queue_ids


def submit_locally(postfix: Postfix, item: Message, sender: str) -> None:
    """By sendmail(1), which takes any sender there is."""
    command = program("sendmail")
    assert command is not None
    recipients = [user if "@" in user else f"{user}@{DOMAIN}" for user in item.recipients]
    content = item.content.replace(b"\r\n", b"\n").decode("ascii")
    run(command, "-C", f"{postfix.directory}/etc", "-i", "-f", sender, "--", *recipients, stdin=content)


def submit_at_once(postfix: Postfix, messages: Sequence[Message], sessions: int) -> dict[str, str]:
    """The same by several SMTP sessions at once, each with its share of the messages."""
    queue_ids: dict[str, str] = {}
    with ThreadPoolExecutor(sessions) as pool:
        for share in pool.map(lambda number: submit(postfix, messages[number::sessions]), range(sessions)):
            queue_ids |= share
    return queue_ids


@dataclass(frozen=True, slots=True)
class Found:
    """One copy in a mailbox."""

    store: str
    user: str
    content: bytes
    """From the id header on: below the trace headers."""


def read_back(stores: Iterable[Store], users: Iterable[str]) -> dict[tuple[str, str], list[Found]]:
    """Every copy of a test message in the users' mailboxes, in both stores, by (message ident, user)."""
    jobs = [(store, user) for store in stores for user in users]
    found: dict[tuple[str, str], list[Found]] = {}
    with ThreadPoolExecutor(4) as pool:
        for (store, user), texts in zip(jobs, pool.map(lambda job: job[0].messages(job[1]), jobs), strict=True):
            for text in texts:
                start = _end_of_trace(text)
                ident = text[start:].split(b"\r\n", 1)[0].removeprefix(ID_HEADER).decode("ascii", "replace")
                found.setdefault((ident, user), []).append(Found(store.name, user, text[start:]))
    return found


def _end_of_trace(text: bytes) -> int:
    """Where the test's own headers begin; AssertionError when anything but trace headers stands above."""
    position = 0
    while not text.startswith(ID_HEADER, position):
        name = text[position : text.find(b":", position)].lower()
        assert name in TRACE_HEADERS, f"not a trace header: {text[position : position + 200]!r}"
        position = text.index(b"\r\n", position) + 2
        while text[position : position + 1] in (b" ", b"\t"):
            position = text.index(b"\r\n", position) + 2
    return position


def check_copies(
    messages: Iterable[Message],
    found: Mapping[tuple[str, str], Sequence[Found]],
    may_be_twice: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Each recipient of each message has exactly one copy, in whichever store, and it is what was sent.

    `may_be_twice`: for a user, how many deliveries were cut off with their outcome unknown, so that they were repeated.
    """
    wrong = []
    surplus: Counter[str] = Counter()
    for item in messages:
        for user in item.recipients:
            copies = found.get((item.ident, user), ())
            surplus[user] += max(0, len(copies) - 1)
            if not copies or surplus[user] > may_be_twice.get(user, 0):
                wrong.append(f"{item.ident} for {user}: {len(copies)} copies {[copy.store for copy in copies]}")
            wrong += [
                f"{item.ident} for {user} in {copy.store}: {first_difference(item.content, copy.content)}"
                for copy in copies
                if copy.content != item.content
            ]
    assert not wrong, f"{len(wrong)} wrong:\n" + "\n".join(wrong[:30])


def first_difference(sent: bytes, got: bytes) -> str:
    """Where two texts part, with a little of both around it."""
    position = next((i for i, (a, b) in enumerate(zip(sent, got, strict=False)) if a != b), min(len(sent), len(got)))
    start = max(0, position - 20)
    return (
        f"{len(sent)} bytes sent, {len(got)} found, different from byte {position}: "
        f"{sent[start : position + 40]!r} / {got[start : position + 40]!r}"
    )
