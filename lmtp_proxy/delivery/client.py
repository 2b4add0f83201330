# SPDX-License-Identifier: GPL-3.0-or-later
"""What a transaction may do to its client: take replies, send them, and ask whether anybody hears them.

It does no I/O of its own, and knows no transaction.
"""

from collections.abc import Callable

from lmtp_proxy.loop.stream import Stream


class Client:
    """What a transaction may do to its client.

    Attributes:
        name: the session's id, for the log.
        peer: where it comes from, for the log.
        answer: take the next replies that are owed, without I/O.
        flush: send what was taken; called before each wait, and never fails once the message is complete.
        stream: only looked at for its end.
        is_gone: asked then, whether it is known not to hear any more what is answered.
    """

    __slots__ = ("answer", "flush", "is_gone", "name", "peer", "stream")

    def __init__(
        self,
        name: str,
        answer: Callable[..., None],
        flush: Callable[[], None],
        peer: str = "",
        stream: Stream | None = None,
        is_gone: Callable[[], bool] = bool,
    ) -> None:
        self.name = name
        self.stream = stream
        self.is_gone = is_gone
        self.peer = peer
        self.answer = answer
        self.flush = flush
