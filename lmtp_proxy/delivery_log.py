# SPDX-License-Identifier: GPL-3.0-or-later
"""One log line per recipient, in the way of Postfix, so that the tools and eyes that read mail.log find their way.

    8f3a0c: from=<a@b>, to=<u@x>, backend=old[/run/sock], size=123, delay=0.02, dsn=2.1.5, status=sent (250 2.1.5 ok)

`orig_queue_id=ID, ` stands before `backend` if the client said so. Text from clients and backends is escaped. It
decides nothing.
"""

import logging

from lmtp_proxy.commit import Position
from lmtp_proxy.envelope import Envelope
from lmtp_proxy.log import printable, write_line
from lmtp_proxy.reply import Reply

_log = logging.getLogger(__name__)
_STATUS = {2: "sent", 4: "deferred", 5: "bounced"}


def log_recipient(
    session: str, envelope: Envelope, position: Position, reply: Reply, *, size: int, delay: float
) -> None:
    """The recipient's last reply: to RCPT if that refused it, else after the final dot. delay: seconds since MAIL."""
    if not _log.isEnabledFor(logging.INFO):
        return
    answer = printable(reply.in_one_line)
    kind = reply.code // 100
    dsn = reply.enhanced or f"{kind}.0.0"
    if position.trouble:
        answer = f"{answer}; {position.trouble}"
    _write(session, envelope, position, size, delay, dsn, _STATUS[kind], answer)


def log_aborted(session: str, envelope: Envelope, position: Position, why: str, *, size: int, delay: float) -> None:
    """The transaction ended without a final dot from the client: nothing was delivered, and nobody was answered."""
    if _log.isEnabledFor(logging.INFO):
        _write(session, envelope, position, size, delay, "4.4.2", "aborted", why)


def _write(
    session: str, envelope: Envelope, position: Position, size: int, delay: float, dsn: str, status: str, text: str
) -> None:
    backend = position.pool.name if position.asked and position.pool else "-"
    origin = f"orig_queue_id={envelope.queue_id}, " if envelope.queue_id else ""  # as Postfix calls it
    write_line(
        f"{session}: from={printable(envelope.path)}, to={printable(position.recipient.path)}, {origin}"
        f"backend={backend}, "
        f"size={size}, delay={delay:.2f}, dsn={dsn}, status={status} ({text})"
    )
