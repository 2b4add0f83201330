# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of the process as JSON values for an operator: escaped, and never more than can be made at one go.

It shows what it is given, and does not ask for more.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from http import HTTPStatus
from itertools import islice
from typing import TYPE_CHECKING, Any

from lmtp_proxy.backends.counts import Counts
from lmtp_proxy.backends.pool import BackendPool
from lmtp_proxy.clients.session import SessionState
from lmtp_proxy.config.values import (
    NAMES_IN_THE_FILE,
    TIMEOUTS_OF_ONE,
    Backend,
    Config,
    TcpAddress,
    UnixAddress,
)
from lmtp_proxy.control.application import Json
from lmtp_proxy.control.request import HttpProblem, Request, bad, slices
from lmtp_proxy.counts import counters_of
from lmtp_proxy.delivery.in_flight import Flight, InFlight
from lmtp_proxy.generations.generation import Generation
from lmtp_proxy.receipts.batch import ReceiptsError
from lmtp_proxy.receipts.receipts import Receipts
from lmtp_proxy.routing.table import TableUnavailable
from lmtp_proxy.text import printable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MAX_SHOWN = 1000
"""Of flights, sessions or users in one answer: more would take the hub too long, and nobody reads them."""
_SHOWN_REFUSED = 20  # rows of a table
_SHOWN_RECIPIENTS = 20  # of one flight


def sessions_json(sessions: Sequence[SessionState]) -> list[Json]:
    """The first of them."""
    shown = [asdict(session) for session in sessions[:MAX_SHOWN]]
    return [{"session": session.pop("name"), **session} for session in shown]


def entry_of(generation: Generation, user: str) -> str | None:
    """What `users:` or the fallback says of `user`, who is written as there."""
    rules = generation.config.key_rules
    local_part, at, domain = user.rpartition("@")
    keys = (rules.table_key(user),) if at and not local_part else rules.forms(local_part or user, domain if at else "")
    try:
        return generation.routing.find(keys, domain if at else "")[1]
    except TableUnavailable:
        return None


def table_json(config: Config) -> Json | None:
    """How it is with `config.table`; None if there is none."""
    served = config.served
    if served is None or config.table is None:
        return None
    refused = [
        f"{printable(address.encode('utf-8', 'surrogateescape'))}: {why}"
        for address, why in islice(served.refused.items(), _SHOWN_REFUSED)
    ]
    return {
        "sqlite": config.table.sqlite,
        "gen": None if served.position is None else served.position.gen,
        "has_domains": served.has_domains,
        "trouble": served.trouble or None,
        "refused": refused,
        "refused_count": len(served.refused),
    }


def flights_json(flights: Iterable[Flight]) -> list[Json]:
    """The first of them, each with its first recipients; `count` is how many it has."""
    now = time.monotonic()

    def flight_json(flight: Flight) -> Json:
        recipients = flight.recipients
        return {
            "number": flight.number,
            "session": flight.session,
            "backend": flight.backend,
            "address": flight.address,
            "recipients": [printable(recipient.path[1:-1]) for recipient in recipients[:_SHOWN_RECIPIENTS]],
            "count": len(recipients),
            "sender": printable(flight.sender[1:-1]),
            "phase": flight.phase.value,
            "seconds": now - flight.began,
            "octets": flight.octets,
        }

    return [flight_json(flight) for flight in islice(flights, MAX_SHOWN)]


def backend_json(pool: BackendPool, users: int) -> Json:
    """A backend with its counts.

    `waiting`: transactions that wait for a place; `waits_for`: what those in use do; `tls`: of its last connection.

    Args:
        users: how many keys of the table name it.
    """
    counts = pool.counts
    used = counts.connections or counts.failures
    return {
        "name": pool.backend.name,
        "address": str(pool.backend.address),
        "state": "down" if pool.down else "up" if used else "unused",
        "trouble": pool.trouble or None,
        "busy": pool.busy,
        "idle": pool.idle,
        "max_connections": pool.backend.max_connections,
        "waiting": pool.waiting,
        "waits_for": pool.uses,
        "tls": None if pool.tls is None else pool.tls.to_json(),
        "users": users,
        **{each.name: getattr(counts, each.name) for each in counters_of(Counts) if each.in_status},
    }


_UNSHOWN = frozenset({"path", "digest", "files", "modified", "notes", "users", "users_per_backend", "served"})
"""Of a configuration: what is no key, or too much to look at."""


def config_json(config: Config) -> Json:
    """What is in force: each key of the file with its value, its default where the file does not say. No password."""
    shown = {name: _value_json(name, getattr(config, name)) for name in _names(config) if name not in _UNSHOWN}
    if len(config.socket) == 1:  # as it is written mostly
        [shown["socket"]] = shown["socket"]
    backends = shown.pop("backends")
    return {"config": {NAMES_IN_THE_FILE.get(name, name): value for name, value in shown.items()}, "backends": backends}


def _names(values: "DataclassInstance") -> list[str]:
    return [each.name for each in fields(values)]


def _value_json(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | float | str):
        return "(set)" if name == "password" and value is not None else value
    if isinstance(value, int):
        return f"{value:04o}" if name == "permissions" else value
    if isinstance(value, TcpAddress):
        return [value.host, value.port]
    if isinstance(value, Mapping):
        return {key: _value_json(key, each) for key, each in value.items()}
    if isinstance(value, tuple | list | frozenset):
        return [_value_json("", each) for each in value]
    if isinstance(value, UnixAddress) or not is_dataclass(value) or type(value).__str__ is not object.__str__:
        return str(value)
    inner = {key: _value_json(key, getattr(value, key)) for key in _names(value)}  # type: ignore[arg-type]
    if isinstance(value, Backend):  # whose name is the key before
        del inner["name"]
        inner["timeouts"] = {key: each for key, each in inner["timeouts"].items() if key in TIMEOUTS_OF_ONE}
        address = inner.pop("address")
        where = {"host": address[0], "port": address[1]} if isinstance(address, list) else {"socket": address}
        return {**where, **inner}
    return inner


MAX_USERS = 1000
"""In one request: what is known of each may be 200 rows."""


def receipts_json(request: Request, receipts: Receipts, generation: Generation, in_flight: InFlight) -> Json:
    """Of the users that the request names, as in `users:`. All that happened before is in it. Raises HttpProblem.

    Beside what is remembered of each there are `mailboxes`, the names under which mail for them is remembered, and
    `key_rules`, by which who looks at a queue tells whose its recipients are; and `cut_off`: how many deliveries for
    them are still coming in, for a backend that is not theirs any more; each will end with a 451. They are counted
    first, so that one which ends meanwhile is among what is deferred.
    """
    users = request.document("users", long=True).texts("users", least=0)
    if len(users) > MAX_USERS:
        raise bad(f"at most {MAX_USERS} users at once")
    if any(not _is_text(user) for user in users):
        raise bad('"users" holds half of a character')
    if receipts.path is None:
        raise HttpProblem(HTTPStatus.CONFLICT, "config.receipts is not set: nothing is remembered; set it, and reload")
    try:
        mailboxes = {user: generation.routing.mailbox(user) for user in users}
        cut_off = _cut_off(users, generation, in_flight)
        found = receipts.read(mailboxes)
    except ReceiptsError as error:
        raise HttpProblem(HTTPStatus.SERVICE_UNAVAILABLE, f"receipts: {error}") from None
    except TableUnavailable as error:
        raise HttpProblem(HTTPStatus.SERVICE_UNAVAILABLE, f"the table of users cannot answer: {error}") from None
    rules = asdict(generation.config.key_rules)
    return {"receipts": receipts.path, "cut_off": cut_off, "mailboxes": mailboxes, "key_rules": rules, **found}


def _cut_off(users: list[str], generation: Generation, in_flight: InFlight) -> int:
    coming = [flight for flight in in_flight if not flight.phase.committed]
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
    return sum(
        in_flight.concerns(flight, elsewhere[flight.backend], rules) for piece in slices(coming) for flight in piece
    )


def _is_text(user: str) -> bool:
    """JSON can say half of a surrogate pair, which no address and no file can."""
    try:
        user.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
