# SPDX-License-Identifier: GPL-3.0-or-later
"""One log line per recipient, in the way of Postfix, so that the tools and eyes that read mail.log find their way.

    8f3a0c: from=<a@b>, to=<u@x>, backend=old[/run/sock], size=123, delay=0.02, dsn=2.1.5, status=sent (250 2.1.5 ok)

`orig_queue_id=ID, ` stands before `backend` if the client said so. Text from clients and backends is escaped. It
decides nothing.
"""

import logging
from collections.abc import Sequence
from functools import lru_cache
from itertools import repeat

from lmtp_proxy.delivery.commit import Message
from lmtp_proxy.generations.destination import Destination
from lmtp_proxy.log import in_fields, write_alike, write_fields, write_lines
from lmtp_proxy.text import printable
from lmtp_proxy.wire.reply import Reply

_log = logging.getLogger(__name__)
_STATUS = {2: "sent", 4: "deferred", 5: "bounced"}
# The end of the line for a reply on the wire, which often is the same as for many before. About 60 KB when it is full.
_ends: dict[bytes, str] = {}
_MOST_ENDS = 256
_LONGEST_END = 128  # octets
_LONGEST_PATH = 256  # octets


def log_recipients(
    message: Message,
    destinations: Sequence[Destination],
    replies: Sequence[Reply],
    troubles: Sequence[str],
    delay: float,
) -> None:
    """Recipients and their last replies: to RCPT if that refused it, else after the final dot.

    troubles: why, where the reply alone does not tell, escaped; "" for whom it does, and empty if it does for all.
    delay: since MAIL.
    """
    if not _log.isEnabledFor(logging.INFO):
        return
    envelope = message.envelope
    path = envelope.path
    sender = _shown(path) if len(path) <= _LONGEST_PATH else printable(path)
    beginning = f"{message.session}: from={sender}, to="
    middle = f", size={message.size}, delay={delay:.2f}, dsn="
    queue_id = envelope.queue_id
    if in_fields():
        whys = troubles or [""] * len(replies)
        write_fields([
            _fields(message, sender, each, delay) | _fields_of(reply, f"; {why}" if why else "")
            for each, reply, why in zip(destinations, replies, whys, strict=True)
        ])  # fmt: skip
        return
    if queue_id:
        tos = [f"{each.path}, orig_queue_id={queue_id}, {each.via}" for each in destinations]
    else:
        tos = [each.to for each in destinations]
    if not troubles and (len(replies) == 1 or len({reply.wire for reply in replies}) == 1):
        write_alike(beginning, tos, middle + (_ends.get(replies[0].wire) or _end(replies[0])))
        return
    ends = [_end(reply) for reply in replies]
    if troubles:
        ends = [f"{end[:-1]}; {why})" if why else end for end, why in zip(ends, troubles, strict=True)]
    write_lines([f"{beginning}{to}{middle}{end}" for to, end in zip(tos, ends, strict=True)])


def unheard(destinations: Sequence[Destination], replies: Sequence[Reply], troubles: Sequence[str]) -> Sequence[str]:
    """Count those who got it although the client, which was not told, will send it again; what the log says of all."""
    for destination, reply in zip(destinations, replies, strict=True):
        if reply.positive and destination.pool is not None:
            destination.pool.counts.unheard += 1
    return [f"{why}; client gone" if why else "client gone" for why in troubles or repeat("", len(replies))]


def log_aborted(message: Message, destinations: Sequence[Destination], asked: int, why: str, delay: float) -> None:
    """The transaction ended without a final dot from the client: nothing was delivered, and nobody was answered.

    asked: for so many of the first of these a backend was asked.
    """
    if not _log.isEnabledFor(logging.INFO):
        return
    envelope = message.envelope
    sender = printable(envelope.path)
    origin = f"orig_queue_id={envelope.queue_id}, " if envelope.queue_id else ""  # as Postfix calls it
    if in_fields():
        aborted = {"dsn": "4.4.2", "status": "aborted", "reply": why}
        write_fields([
            _fields(message, sender, each, delay) | ({} if number < asked else {"backend": "-"}) | aborted
            for number, each in enumerate(destinations)
        ])  # fmt: skip
        return
    write_lines([
        f"{message.session}: from={sender}, to={each.path}, {origin}{each.via if number < asked else 'backend=-'}, "
        f"size={message.size}, delay={delay:.2f}, dsn=4.4.2, status=aborted ({why})"
        for number, each in enumerate(destinations)
    ])  # fmt: skip


def log_refused(
    session: str, sender: bytes | None, recipient: bytes | None, size: int, reply: Reply, command: bytes
) -> None:
    """A message or recipient that the proxy refused before it asked anybody. A path is None where none was said.

    size: as announced. command: what was said, empty if nothing of it is to be seen.
    """
    if not _log.isEnabledFor(logging.INFO):
        return
    paths = ["-" if path is None else printable(path) for path in (sender, recipient)]
    said = f"; in reply to {printable(command)}" if command else ""
    if in_fields():
        fields: dict[str, object] = {"session": session, "from": paths[0], "to": paths[1], "backend": "-"}
        write_fields([fields | {"size": size, "delay": 0.0} | _fields_of(reply, said)])
        return
    write_lines([
        f"{session}: from={paths[0]}, to={paths[1]}, backend=-, size={size}, delay=0.00, dsn={_end(reply)[:-1]}{said})"
    ])  # fmt: skip


def _fields(message: Message, sender: str, destination: Destination, delay: float) -> dict[str, object]:
    """What a line says of a recipient, but for the end."""
    fields: dict[str, object] = {"session": message.session, "from": sender, "to": destination.path}
    if message.envelope.queue_id:
        fields["orig_queue_id"] = message.envelope.queue_id
    backend = destination.via.removeprefix("backend=")
    return {**fields, "backend": backend, "size": message.size, "delay": round(delay, 2)}


def _fields_of(reply: Reply, more: str) -> dict[str, str]:
    """What `_end` says, in fields, and more behind the reply."""
    kind = reply.code // 100
    dsn = f"{reply.enhanced or f'{kind}.0.0'}"
    return {"dsn": dsn, "status": _STATUS[kind], "reply": printable(reply.in_one_line) + more}


# Of paths: the same senders send mail again. About 1 MB when it is full; the longest that come may be 2 KB each.
_shown = lru_cache(4096)(printable)


def _end(reply: Reply) -> str:
    """Its enhanced code, status and text."""
    wire = reply.wire
    if (end := _ends.get(wire)) is not None:
        return end
    kind = reply.code // 100
    end = f"{reply.enhanced or f'{kind}.0.0'}, status={_STATUS[kind]} ({printable(reply.in_one_line)})"
    if len(wire) <= _LONGEST_END:
        if len(_ends) >= _MOST_ENDS:
            _ends.clear()
        _ends[wire] = end
    return end
