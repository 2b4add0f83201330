# SPDX-License-Identifier: GPL-3.0-or-later
"""Recipient -> Route: key forms, table, fallback, `reject` and `hold`.

Pure decisions over one generation's table, which is asked each time: whoever keeps a route (see `constant`) must know
that the commit point depends on asking again, in the generation that is in force then. It opens no connections and
waits for nothing.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from lmtp_proxy.routing.keys import FoldingError, KeyRules
from lmtp_proxy.routing.table import Table, TableUnavailable
from lmtp_proxy.wire.envelope import Recipient

REJECT = "reject"
HOLD = "hold"
_BARE = "it has no domain, and config.default_domain is not set"


class NoRoute(enum.Enum):
    """Why a recipient's mail goes nowhere now. What is said for it is in the table of failures."""

    UNKNOWN = "not in the table, and no fallback"
    BARE = "it has no domain, and there is none for those"
    REJECTED = "on reject"
    HELD = "on hold: stands only if the route does not change while the recipient is parked"
    UNAVAILABLE = "the table cannot answer"


@dataclass(frozen=True, slots=True)
class Route:
    """Where a recipient's mail goes, or why it goes nowhere now.

    Attributes:
        keys: every form under which the table was or could be asked, the most specific first; a delivery is in flight
            for all of them.
        mailboxes: those of them that name a mailbox which the mail may end in: the one under which the table was hit,
            if it is one, and the address without detail, the last one.
        backend: its name, None where `refusal` says why there is none.
        trouble: why the table could not answer, for the log.
    """

    keys: tuple[str, ...]
    backend: str | None = None
    refusal: NoRoute | None = None
    trouble: str | None = None
    mailboxes: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """What the log says of `refusal`; "" if that tells all."""
        return self.trouble or (_BARE if self.refusal is NoRoute.BARE else "")

    @property
    def held(self) -> bool:
        """The recipient may be parked until the route changes."""
        return self.refusal is NoRoute.HELD


class Routing:
    """The routes of one generation.

    Args:
        rules: how the keys of a recipient are made.
        fallback: a backend's name, `reject`, `hold` or None, for users whom the table does not hold.

    Attributes:
        constant: a route without trouble is the same whenever it is asked for.
    """

    def __init__(self, table: Table, rules: KeyRules, fallback: str | None) -> None:
        self._table = table
        self.constant = table.constant
        self.rules = rules
        self._fallback = fallback
        # `carol` may be carol@example.org, whom the table has on `reject`: the fallback's store is not for them.
        self._refuse_bare = table.has_domains and not rules.ignore_domain and not rules.default_domain

    def __repr__(self) -> str:
        return f"<Routing {self._table!r} fallback={self._fallback}>"

    def route(self, recipient: Recipient) -> Route:
        """The route now. A recipient whose table cannot answer is refused, never sent to the fallback."""
        try:
            keys = self.rules.forms(recipient.local_part, recipient.domain)
        except FoldingError as error:
            sent = (f"{recipient.local_part}@{recipient.domain}",)
            return Route(sent, refusal=NoRoute.UNAVAILABLE, trouble=str(error), mailboxes=sent)
        mailboxes = self.rules.mailboxes(keys, recipient.domain)
        try:
            hit, name = self.find(keys, recipient.domain)
        except TableUnavailable as error:
            return Route(keys, refusal=NoRoute.UNAVAILABLE, trouble=str(error), mailboxes=mailboxes[-1:])
        mailboxes = mailboxes if hit == mailboxes[0] else mailboxes[-1:]
        if name is None:
            bare = self._refuse_bare and not recipient.domain
            return Route(keys, refusal=NoRoute.BARE if bare else NoRoute.UNKNOWN, mailboxes=mailboxes)
        if name == REJECT:
            return Route(keys, refusal=NoRoute.REJECTED, mailboxes=mailboxes)
        if name == HOLD:
            return Route(keys, refusal=NoRoute.HELD, mailboxes=mailboxes)
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

    def find(self, keys: Sequence[str], domain: str) -> tuple[str | None, str | None]:
        """The first of `keys` that the table holds, and what it holds: a backend's name, `reject` or `hold`.

        domain: as it was sent, may be empty. Without a hit: None, and the fallback, or None where that is not for a
        name without a domain. Raises TableUnavailable.
        """
        for key in keys:
            if (name := self._table.lookup(key)) is not None:
                return key, name
        return None, None if self._refuse_bare and not domain else self._fallback
