# SPDX-License-Identifier: GPL-3.0-or-later
"""Recipient -> Route: key forms, table, fallback, `reject` and `hold`.

Pure decisions over one generation's table, which is asked each time: whoever keeps a route (see `constant`) must know
that the commit point depends on asking again, in the generation that is in force then. It opens no connections and
waits for nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lmtp_proxy.routing.keys import FoldingError, KeyRules
from lmtp_proxy.routing.static_table import StaticTable
from lmtp_proxy.routing.table import Table, TableUnavailable
from lmtp_proxy.wire import reply
from lmtp_proxy.wire.envelope import Recipient
from lmtp_proxy.wire.reply import Reply

REJECT = "reject"
HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Route:
    """Where a recipient's mail goes, or why it goes nowhere now.

    keys: every form under which the table was or could be asked, the most specific first; a delivery is in flight for
    all of them. mailboxes: those of them that name a mailbox which the mail may end in: the one under which the table
    was hit, if it is one, and the address without detail, the last one. backend: its name, None where `refusal` answers
    the recipient. held: `refusal` stands only if the route
    does not change while the recipient is parked. trouble: why the table could not answer, for the log.
    """

    keys: tuple[str, ...]
    backend: str | None = None
    refusal: Reply | None = None
    held: bool = False
    trouble: str | None = None
    mailboxes: tuple[str, ...] = ()


class Routing:
    """The routes of one generation.

    rules: how the keys of a recipient are made. fallback: a backend's name, `reject`, `hold` or None, for users whom
    the table does not hold. constant: a route without trouble is the same whenever it is asked for.
    """

    def __init__(self, table: Table, rules: KeyRules, fallback: str | None) -> None:
        self._table = table
        self.constant = isinstance(table, StaticTable)
        self.rules = rules
        self._fallback = fallback

    def __repr__(self) -> str:
        return f"<Routing {self._table!r} fallback={self._fallback}>"

    def route(self, recipient: Recipient) -> Route:
        """The route now. A recipient whose table cannot answer is refused, never sent to the fallback."""
        try:
            keys = self.rules.forms(recipient.local_part, recipient.domain)
        except FoldingError as error:
            sent = (f"{recipient.local_part}@{recipient.domain}",)
            return Route(sent, refusal=reply.LOOKUP_FAILED, trouble=str(error), mailboxes=sent)
        mailboxes = self.rules.mailboxes(keys, recipient.domain)
        try:
            hit, name = self.find(keys)
        except TableUnavailable as error:
            return Route(keys, refusal=reply.LOOKUP_FAILED, trouble=str(error), mailboxes=mailboxes[-1:])
        mailboxes = mailboxes if hit == mailboxes[0] else mailboxes[-1:]
        if name is None:
            return Route(keys, refusal=reply.UNKNOWN_USER, mailboxes=mailboxes)
        if name == REJECT:
            return Route(keys, refusal=reply.MAILBOX_PARKED, mailboxes=mailboxes)
        if name == HOLD:
            return Route(keys, refusal=reply.MAILBOX_PARKED, held=True, mailboxes=mailboxes)
        return Route(keys, backend=name, mailboxes=mailboxes)

    def mailbox(self, user: str) -> str:
        """The name under which the mail of `user`, written as in a table, is remembered: one of Route.mailboxes.

        Raises TableUnavailable, FoldingError.
        """
        local_part, _, domain = user.rpartition("@") if "@" in user else (user, "", "")
        key = self.rules.table_key(user)
        if not local_part or self._table.lookup(key) is not None:
            return key
        return self.rules.mailboxes(self.rules.forms(local_part, domain), domain)[-1]

    def find(self, keys: Sequence[str]) -> tuple[str | None, str | None]:
        """The first of `keys` that the table holds, and what it holds: a backend's name, `reject` or `hold`.

        Without a hit: None, and the fallback. Raises TableUnavailable.
        """
        for key in keys:
            if (name := self._table.lookup(key)) is not None:
                return key, name
        return None, self._fallback
