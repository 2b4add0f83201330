# SPDX-License-Identifier: GPL-3.0-or-later
"""The accounts of one delivery: for whom its backend is asked, whom it accepts, and what each of those gets at last.

Each recipient who is accepted is accounted for exactly once, by position. Nothing is known here of connections, of how
a reply is judged, or of when anybody is told it.
"""

from collections.abc import Sequence

from lmtp_proxy.delivery.asked_again import AskedAgain
from lmtp_proxy.generations.destination import Destination
from lmtp_proxy.wire.reply import Reply


class Accounts:
    """What the backend owes, and what the client is owed.

    These are the same unless another session was asked, and has refused somebody to whom one had said yes before.

    Attributes:
        asked: those for whom RCPT is to be sent or was sent, and not all replies are known.
        accepted: those to whom the backend owes a final reply.
        replies: these, to as many of the first of them as have one.
        again: where another session was or is to be asked for somebody to whom one had said yes.
        said: how many of `final` are the backend's, where some are not.
    """

    __slots__ = ("_worst", "accepted", "again", "asked", "replies", "said")

    def __init__(self) -> None:
        self.asked: Sequence[Destination] = ()
        self.accepted: Sequence[Destination] = ()
        self.replies: Sequence[Reply] = ()
        self.said = 0
        self._worst = 0  # of the codes that anybody was refused with
        self.again: AskedAgain | None = None

    def __repr__(self) -> str:
        asked, accepted, replies = len(self.asked), len(self.accepted), len(self.replies)
        again = "" if self.again is None else f" {self.again}"
        return f"<Accounts asked={asked} accepted={accepted} replies={replies}{again}>"

    # --- what the client is owed -------------------------------------------------------------------------------------

    @property
    def told_yes(self) -> Sequence[Destination]:
        """Those who were accepted, as far as the client knows, in the order of their RCPTs."""
        again = self.again
        return self.accepted if again is None else again.told_yes(self.accepted)

    @property
    def final(self) -> Sequence[Reply]:
        """To as many of the first of these as have one."""
        again = self.again
        return self.replies if again is None else again.final_replies(self.replies, len(self.told_yes))

    @property
    def deferred_all(self) -> bool:
        """Somebody was refused, and everybody with a 4xx."""
        return 400 <= self._worst < 500 and not self.told_yes

    # --- replies to RCPT ---------------------------------------------------------------------------------------------

    def take_all(self) -> None:
        """All that were asked for are accepted, as nearly always; no session was asked before."""
        self.accepted = [*self.accepted, *self.asked] if self.accepted else self.asked
        self.asked = ()

    def take(self, replies: Sequence[Reply]) -> Sequence[Reply]:
        """All replies to those asked for are known: the ones that the client waits for."""
        asked, self.asked = self.asked, ()
        again = self.again
        if again is not None and (waiting := again.waiting):
            self.accepted = again.judge(replies[:waiting])
            asked, replies = asked[waiting:], replies[waiting:]
        accepted = []
        for destination, reply in zip(asked, replies, strict=True):
            if reply.positive:
                accepted.append(destination)
            elif reply.code > self._worst:
                self._worst = reply.code
        self.accepted = [*self.accepted, *accepted]
        return replies

    def fail(self, reply: Reply) -> Sequence[Reply]:
        """No session answers for those asked for; the replies that the client waits for. Who had a yes keeps it."""
        asked, self.asked = self.asked, ()
        again = self.again
        if again is not None and (waiting := again.waiting):
            self.accepted = again.give_up()
            asked = asked[waiting:]
        return [reply] * len(asked)

    def ask_again(self) -> None:
        """All of them, of another session. Nothing is owed by this one any more."""
        if self.accepted:
            refused = {} if self.again is None else self.again.refused
            promised, asked = self.told_yes, [*self.accepted, *self.asked]
            self.again = AskedAgain(promised, refused)
            self.accepted, self.asked = (), asked

    def promised_and(self, asked: Sequence[Destination]) -> Sequence[Destination]:
        """These, and before them those who are to be asked for again."""
        again = self.again
        return asked if again is None or not again.waiting else [*again.standing, *asked]

    # --- final replies of ours ---------------------------------------------------------------------------------------

    def answer_rest(self, reply: Reply) -> int:
        """The backend says no more: those without a final reply get this one; how many they are."""
        if self.asked:
            self.fail(reply)
        unsaid = len(self.accepted) - len(self.replies)
        if unsaid:
            self.said = len(self.final)
            self.replies = [*self.replies, *[reply] * unsaid]
        return unsaid

    def refuse(self, reply: Reply) -> None:
        """The message is not for anybody: all get this one, whatever was said before."""
        self.accepted, self.again = self.told_yes, None
        self.replies = [reply] * len(self.accepted)
        self.said = len(self.accepted)
