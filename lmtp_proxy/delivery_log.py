# SPDX-License-Identifier: GPL-3.0-or-later
"""One log line per recipient, in the way of Postfix, so that the tools and eyes that read mail.log find their way.

    8f3a0c: from=<a@b>, to=<u@x>, backend=old[/run/sock], size=123, delay=0.02, dsn=2.1.5, status=sent (250 2.1.5 ok)

`orig_queue_id=ID, ` stands before `backend` if the client said so. Text from clients and backends is escaped. It
decides nothing.
"""

import logging
from collections.abc import Iterable
from functools import lru_cache

from lmtp_proxy.commit import Message, Position
from lmtp_proxy.log import printable, write_lines
from lmtp_proxy.reply import Reply

_log = logging.getLogger(__name__)
_STATUS = {2: "sent", 4: "deferred", 5: "bounced"}
# The end of the line for a reply on the wire, which often is the same as for many before. About 60 KB when it is full.
_ends: dict[bytes, tuple[str, str]] = {}
_MOST_ENDS = 256
_LONGEST_END = 128  # octets
_LONGEST_PATH = 256  # octets


def log_recipients(message: Message, answered: Iterable[tuple[Position, Reply]], delay: float) -> None:
    """Recipients and their last replies: to RCPT if that refused it, else after the final dot. delay: since MAIL."""
    if not _log.isEnabledFor(logging.INFO):
        return
    beginning = f"{message.session}: from={_shown(message.envelope.path)}, to="
    origin = _origin(message)
    middle = f", size={message.size}, delay={delay:.2f}, dsn="
    lines = []
    for position, reply in answered:
        dsn, text = _ends.get(reply.wire) or _end(reply)
        if position.trouble:
            text = f"{text}; {position.trouble}"
        pool = position.pool
        backend = pool.name if position.asked and pool else "-"
        lines.append(f"{beginning}{_shown(position.recipient.path)}, {origin}backend={backend}{middle}{dsn} ({text})")
    write_lines(lines)


def log_aborted(message: Message, positions: Iterable[Position], why: str, delay: float) -> None:
    """The transaction ended without a final dot from the client: nothing was delivered, and nobody was answered."""
    if not _log.isEnabledFor(logging.INFO):
        return
    sender, origin = printable(message.envelope.path), _origin(message)
    lines = []
    for position in positions:
        backend = position.pool.name if position.asked and position.pool else "-"
        lines.append(
            f"{message.session}: from={sender}, to={printable(position.recipient.path)}, {origin}"
            f"backend={backend}, size={message.size}, delay={delay:.2f}, dsn=4.4.2, status=aborted ({why})"
        )
    write_lines(lines)


def _origin(message: Message) -> str:
    return f"orig_queue_id={message.envelope.queue_id}, " if message.envelope.queue_id else ""  # as Postfix calls it


# Of paths: the same users get mail again. About 1 MB when it is full; the longest that come may be 2 KB each.
_shown_before = lru_cache(4096)(printable)


def _shown(path: bytes) -> str:
    return _shown_before(path) if len(path) <= _LONGEST_PATH else printable(path)


def _end(reply: Reply) -> tuple[str, str]:
    """Its code and status, and its text."""
    kind = reply.code // 100
    end = f"{reply.enhanced or f'{kind}.0.0'}, status={_STATUS[kind]}", printable(reply.in_one_line)
    if len(reply.wire) <= _LONGEST_END:
        if len(_ends) >= _MOST_ENDS:
            _ends.clear()
        _ends[reply.wire] = end
    return end
