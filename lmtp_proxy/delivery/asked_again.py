# SPDX-License-Identifier: GPL-3.0-or-later
"""When a second session is asked what a first one deferred, and what becomes of whom only the second one refuses.

Nothing is known here of connections, or of who is told what when.
"""

from collections.abc import Mapping, Sequence

from lmtp_proxy.backends.failure import BackendError, Retry
from lmtp_proxy.delivery.in_flight import Phase
from lmtp_proxy.wire.client import ClientProtocol
from lmtp_proxy.wire.reply import Reply


def may_ask_again(error: BackendError, protocol: ClientProtocol, phase: Phase) -> bool:
    """Whether the client need not hear of it yet: a new session may do better, and nothing of the message was sent.

    Stores limit how many messages they take on a connection, and for how long; some say so with any 4xx.
    """
    retry = error.failure.value.retry
    if retry is Retry.IF_UNHEARD:
        return protocol.stale
    used = protocol.transactions > 1 and phase is Phase.ENVELOPE
    return used and retry is Retry.IF_USED and error.reply.code < 500


def none_was_taken(replies: Sequence[Reply]) -> Reply | None:
    """To RCPT: one of the 4xx, where nobody was accepted and somebody deferred."""
    if any(reply.code < 400 for reply in replies):
        return None
    return next((reply for reply in replies if reply.code < 500), None)


def merged(said: Sequence[Reply], late: Mapping[int, Reply], number: int) -> list[Reply]:
    """The final replies to `number` recipients in their order, as far as they are known.

    said: the backend's. late: of those who were refused when they were asked again, by position.
    """
    replies: list[Reply] = []
    theirs = iter(said)
    for position in range(number):
        reply = late.get(position) or next(theirs, None)
        if reply is None:
            break
        replies.append(reply)
    return replies
