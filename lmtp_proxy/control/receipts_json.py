# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of some mailboxes, for an operator: the answer to `POST /receipts`.

It knows neither the file nor what becomes of the answer.
"""

from http import HTTPStatus

from lmtp_proxy.control.application import Json
from lmtp_proxy.control.json import entry_of
from lmtp_proxy.control.request import Problem, Request, bad, slices
from lmtp_proxy.delivery.in_flight import InFlight
from lmtp_proxy.generations.generation import Generation
from lmtp_proxy.receipts.batch import ReceiptsError
from lmtp_proxy.receipts.receipts import Receipts
from lmtp_proxy.routing.table import TableUnavailable

MAX_USERS = 1000
"""In one request: what is known of each may be 200 rows."""


def receipts_json(request: Request, receipts: Receipts, generation: Generation, in_flight: InFlight) -> Json:
    """Of the users that the request names, as in `users:`. All that happened before is in it. Raises Problem.

    cut_off: deliveries for them that are still coming in, for a backend that is not theirs any more; each will end with
    a 451. Counted first, so that one which ends meanwhile is among what is deferred.
    """
    users = request.document("users", long=True).texts("users", least=0)
    if len(users) > MAX_USERS:
        raise bad(f"at most {MAX_USERS} users at once")
    if any(not _is_text(user) for user in users):
        raise bad('"users" holds half of a character')
    if receipts.path is None:
        raise Problem(HTTPStatus.CONFLICT, "config.receipts is not set: nothing is remembered; set it, and reload")
    try:
        mailboxes = {user: generation.routing.mailbox(user) for user in users}
        cut_off = _cut_off(users, generation, in_flight)
        found = receipts.read(mailboxes)
    except ReceiptsError as error:
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, f"receipts: {error}") from None
    except TableUnavailable as error:
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, f"the table of users cannot answer: {error}") from None
    return {"receipts": receipts.path, "cut_off": cut_off, **found}


def _cut_off(users: list[str], generation: Generation, in_flight: InFlight) -> int:
    coming = [flight for flight in in_flight if not flight.committed]
    if not coming:
        return 0
    rules = generation.config.key_rules
    keys_of: dict[str | None, set[str]] = {}
    for user in users:
        keys_of.setdefault(entry_of(generation, user), set()).add(rules.table_key(user))
    elsewhere = {
        flight.backend: frozenset(key for backend, keys in keys_of.items() if backend != flight.backend for key in keys)
        for flight in coming
    }
    return sum(flight.concerns(elsewhere[flight.backend], rules) for piece in slices(coming) for flight in piece)


def _is_text(user: str) -> bool:
    """JSON can say half of a surrogate pair, which no address and no file can."""
    try:
        user.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
