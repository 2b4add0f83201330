# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking another session: when it may help, and what becomes of those to whom one had said yes before.

Nothing is known here of connections, or of who is told what when.
"""

from collections.abc import Mapping, Sequence

from lmtp_proxy.backends.failure import BackendError, Retry, is_over_user_limit
from lmtp_proxy.delivery.in_flight import Phase
from lmtp_proxy.generations.destination import Destination
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
    """To RCPT: one of the 4xx that may be about the session, where nobody was accepted and somebody deferred."""
    if any(reply.code < 400 for reply in replies):
        return None
    return next((reply for reply in replies if reply.code < 500 and not is_over_user_limit(reply)), None)


class AskedAgain:
    """Those to whom a session has said yes, while and after another one is asked for them.

    The client has their 250 already. So who is refused now gets that as the final reply, at the same position, among
    the replies to the message of the others.

    Attributes:
        waiting: how many of the next replies to RCPT are to them: all who are not refused, and then none.
        refused: what those get who were refused when they were asked for again, by position.
    """

    __slots__ = ("_promised", "refused", "waiting")

    def __init__(self, promised: Sequence[Destination], refused: Mapping[int, Reply]) -> None:
        """promised: in the order of their RCPTs to the client. refused: of those of them who are not asked for."""
        self._promised = promised
        self.waiting = len(promised) - len(refused)
        self.refused = refused

    def __repr__(self) -> str:
        return f"<AskedAgain for {len(self._promised)} waiting={self.waiting} refused={len(self.refused)}>"

    @property
    def standing(self) -> list[Destination]:
        """Those of them who are not refused."""
        return [each for position, each in enumerate(self._promised) if position not in self.refused]

    def judge(self, replies: Sequence[Reply]) -> list[Destination]:
        """The session has answered for each who was waiting: who is accepted again."""
        positions = [position for position in range(len(self._promised)) if position not in self.refused]
        answered = zip(positions, replies, strict=True)
        self.refused = {**self.refused, **{position: reply for position, reply in answered if not reply.positive}}
        self.waiting = 0
        return self.standing

    def give_up(self) -> list[Destination]:
        """It does not answer: those for whom the failure is the final reply."""
        self.waiting = 0
        return self.standing

    def told_yes(self, accepted: Sequence[Destination]) -> list[Destination]:
        """All who have their 250, in the order of their RCPTs. accepted: those for whom a final reply is to come."""
        return [*self._promised, *accepted[len(self._promised) - len(self.refused) :]]

    def final_replies(self, said: Sequence[Reply], number: int) -> list[Reply]:
        """Those to `number` recipients, as `told_yes` has them, up to the first that is not known.

        said: those to the ones who were accepted, as far as they are there.
        """
        replies: list[Reply] = []
        theirs = iter(said)
        for position in range(number):
            reply = self.refused.get(position) or next(theirs, None)
            if reply is None:
                break
            replies.append(reply)
        return replies
