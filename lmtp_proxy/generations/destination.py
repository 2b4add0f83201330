# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the mail of one recipient goes in one generation, with all that is the same for each of their messages.

The same users get mail again, so a destination is made once and serves all their messages: what becomes of one of them
is not kept here. What a table that may change has said is not remembered: the commit point depends on asking again.
"""

from collections.abc import Mapping
from sys import intern

from lmtp_proxy.backends.mailbox import Mailbox
from lmtp_proxy.backends.pool import BackendPool
from lmtp_proxy.routing.routing import Route, Routing
from lmtp_proxy.text import MAX_TEXT, printable, shown
from lmtp_proxy.wire.envelope import RCPT, Recipient, plain_recipient

_REMEMBERED = 4096  # destinations. Some 4 MB; to make one with its route and all its keys takes 10 us
_LONGEST_PATH = 256  # octets (RFC 5321 section 4.5.3.1.3); longer ones, up to a command line, would take 50 MB


class Destination:
    """Of `recipient`; never changed. The same address twice in a message is the same destination twice.

    Attributes:
        route: where the recipient's mail goes.
        generation: the number of the one that `route` is of.
        pool: of that generation, None where there is no backend.
        mailbox: where the mail ends, as far as it can be told: of the backend, named by the address without detail.
        command: the RCPT line for a backend, with CRLF.
        path: the recipient in the log, escaped.
        via: the backend in the log, escaped.
        to: both.
    """

    __slots__ = ("command", "generation", "mailbox", "path", "pool", "recipient", "route", "to", "via")

    def __init__(self, recipient: Recipient, route: Route, generation: int, pool: BackendPool | None) -> None:
        self.recipient = recipient
        self.route = route
        self.generation = generation
        self.pool = pool
        mailbox = (route.mailboxes or route.keys)[-1]
        self.mailbox = Mailbox(mailbox) if pool is None else pool.mailboxes.at(mailbox)
        self.command = RCPT + recipient.path + b"\r\n"
        self.path = printable(recipient.path)
        self.via = intern(f"backend={'-' if pool is None else _in_one_line(pool.name)}")
        self.to = f"{self.path}, {self.via}"

    def __repr__(self) -> str:
        return f"<Destination {self.path} {self.pool} generation={self.generation}>"


class Destinations(dict[bytes, Destination]):
    """Those of one generation: the destination of any recipient, remembered where the table cannot change.

    By path, which says all that a Recipient without parameters does. Asked directly it has to be a plain one; see
    `plain_recipient`.
    """

    def __init__(self, generation: int, routing: Routing, pools: Mapping[str, BackendPool]) -> None:
        super().__init__()
        self._generation = generation
        self._routing = routing
        self._pools = pools

    def __repr__(self) -> str:
        return f"<Destinations {len(self)} remembered, generation={self._generation}>"

    def __missing__(self, path: bytes) -> Destination:
        return self._made(plain_recipient(path))

    def of(self, recipient: Recipient) -> Destination:
        """Of any recipient."""
        if recipient.orcpt is not None:  # of this message alone
            return self._made(recipient)
        return self.get(recipient.path) or self._made(recipient)

    def _made(self, recipient: Recipient) -> Destination:
        route = self._routing.route(recipient)
        pool = None if route.backend is None else self._pools[route.backend]
        destination = Destination(recipient, route, self._generation, pool)
        alike = self._routing.constant and route.trouble is None and recipient.orcpt is None
        if alike and len(recipient.path) <= _LONGEST_PATH:
            if len(self) >= _REMEMBERED:
                self.clear()
            self[recipient.path] = destination
        return destination


def _in_one_line(name: str) -> str:
    return shown(name, MAX_TEXT)
