# SPDX-License-Identifier: GPL-3.0-or-later
"""What a store's connections that are in use wait for, in words for an operator.

The conversations know it themselves: nothing is noted down for it while mail goes through.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from lmtp_proxy.wire.client import ClientProtocol, ClientState, Command

_REPLY_TO: Mapping[Command, str] = {
    Command.MAIL: "its replies to recipients",
    Command.RCPT: "its replies to recipients",
    Command.DATA: "its replies to DATA",
    Command.FINAL_DOT: "its final replies",
    Command.RSET: "its reply to RSET",
}


def uses(conversations: Iterable[ClientProtocol], places: int) -> dict[str, int]:
    """How many wait for what, the most first. places: those in use; more than there are conversations are opened."""
    found = Counter(map(_use, conversations))
    found["its greeting"] = places - found.total()
    return {what: number for what, number in found.most_common() if number > 0}


def _use(protocol: ClientProtocol) -> str:
    if protocol.expected:
        return _REPLY_TO.get(protocol.expected[0], "a reply")
    return "the client's message" if protocol.state is ClientState.DATA else "the client's next command"
