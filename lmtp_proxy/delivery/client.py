# SPDX-License-Identifier: GPL-3.0-or-later
"""What a transaction may do to its client: take replies, send them, and ask whether anybody hears them.

It does no I/O of its own, and knows no transaction.
"""

from collections.abc import Callable

from lmtp_proxy.loop.stream import Stream
from lmtp_proxy.wire.xforward import Said


class Client:
    """What a transaction may do to its client.

    Attributes:
        name: the session's id, for the log.
        peer: where it comes from, for the log.
        answer: take the next replies that are owed, without I/O.
        flush: send what was taken; called before each wait, and never fails once the message is complete.
        stream: only looked at for its end.
        forwarded: what it says of the client that it has the message from.
        is_gone: asked then, whether it is known not to hear any more what is answered.
    """

    __slots__ = ("answer", "flush", "forwarded", "is_gone", "name", "peer", "stream")

    def __init__(
        self,
        name: str,
        answer: Callable[..., None],
        flush: Callable[[], None],
        peer: str = "",
        stream: Stream | None = None,
        is_gone: Callable[[], bool] = bool,
        forwarded: Callable[[], Said] = tuple,
    ) -> None:
        self.name = name
        self.stream = stream
        self.is_gone = is_gone
        self.peer = peer
        self.answer = answer
        self.flush = flush
        self.forwarded = forwarded

    def said(self) -> Said:
        """What a store is told of whose mail it is: by XFORWARD, or else of this client; nothing of a local one."""
        host, _, port = self.peer.rpartition(":")
        if (forwarded := self.forwarded()) or not host:
            return forwarded
        address = host.partition("%")[0].removeprefix("::ffff:")
        return ("ADDR", f"{'IPV6:' * (':' in address)}{address}".encode()), ("PORT", port.encode())
