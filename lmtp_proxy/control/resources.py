# SPDX-License-Identifier: GPL-3.0-or-later
"""What the operator can ask one process for over the control socket.

It looks at the parts of the process through what they show of themselves, changes nothing but by a reload, and never
does so much at once that mail waits.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from itertools import chain

from gevent.event import Event
from gevent.lock import BoundedSemaphore

from lmtp_proxy import __version__
from lmtp_proxy.backends.failure import WITHOUT_ROUTE
from lmtp_proxy.backends.preflight import preflight
from lmtp_proxy.backends.test_message import make_test_message
from lmtp_proxy.config.values import ConfigError
from lmtp_proxy.control.application import Json, Resources
from lmtp_proxy.control.json import (
    MAX_SHOWN,
    backend_json,
    config_json,
    entry_of,
    flights_json,
    receipts_json,
    sessions_json,
    table_json,
)
from lmtp_proxy.control.request import (
    HttpProblem,
    Request,
    RequestDocument,
    bad,
    parse_address,
    refused_reload,
    slices,
)
from lmtp_proxy.control.state import ControlState
from lmtp_proxy.control.table import ControlApplication
from lmtp_proxy.delivery.in_flight import InFlight, Phase
from lmtp_proxy.figures.figures import Figures
from lmtp_proxy.generations.generation import Generation
from lmtp_proxy.generations.reloads import ReloadRefused
from lmtp_proxy.log import log_state
from lmtp_proxy.routing.keys import KeyRules
from lmtp_proxy.routing.routing import HOLD
from lmtp_proxy.text import MAX_TEXT, iso_time, printable, shown

_LOOK = 1.0  # seconds between two looks whether the client is still there
_AT_ONCE = 2  # preflights of one backend: they take places that mail may need
_RECENT = 3600.0  # seconds


class Application(ControlApplication):
    """The resources of one process that serves.

    Args:
        more: others, beside those that each has.
    """

    def __init__(self, state: ControlState, more: Resources | None = None) -> None:
        super().__init__(state.manager, state.since, state.stopping, more)
        self._state = state
        self._preflights: dict[str, BoundedSemaphore] = {}

    @property
    def _generation(self) -> Generation:
        return self._state.manager.current()

    @property
    def _number(self) -> int:
        return self._generation.number

    @property
    def _digest(self) -> str:
        return self._generation.config.in_force

    # --- what is -----------------------------------------------------------------------------------------------------

    def _status(self, request: Request) -> Json:
        state, generation = self._state, self._generation
        config = generation.config
        longest = self._longest_delivery
        phases = {phase.value: 0 for phase in Phase}
        for flight in state.in_flight:
            phases[flight.phase.value] += 1
        return {
            "version": __version__,
            **self._own_status(longest),
            "workers": [],
            "longest_delivery": longest,
            "socket": " and ".join(state.addresses),
            "sockets": list(state.addresses),
            "metrics": None if config.metrics is None else str(config.metrics),
            "config": {
                "path": config.path,
                "users_file": list(config.users_file or ()),
                "sha256": config.digest,
                "modified": iso_time(config.modified),
                "loaded": iso_time(state.manager.loaded),
            },
            "in_force": self._digest,
            "table": table_json(config),
            "sessions": len(state.sessions()),
            "held": len(state.parking),
            "in_flight": phases,
            "uncertain": state.uncertain.count,
            "uncertain_log": config.uncertain_log,
            "log": log_state()._asdict(),
            "users": config.how_many,
            "ignore_domain": config.ignore_domain,
            "fallback_backend": config.fallback_backend,
            "default_domain": config.default_domain,
            "users_on": dict(config.users_on),
            **self._backends(request),
        }

    @property
    def _longest_delivery(self) -> float:
        backends = self._generation.config.backends.values()
        return max((backend.timeouts.final_reply for backend in backends), default=0.0)

    def _longest(self, _: Request) -> float:
        return self._longest_delivery

    def _config(self, _: Request) -> Json:
        generation = self._generation
        return {"path": generation.config.path, "generation": generation.number, **config_json(generation.config)}

    def _backends(self, _: Request) -> Json:
        generation = self._generation
        users = generation.config.users_on
        return {"backends": [backend_json(pool, users.get(name, 0)) for name, pool in generation.pools.items()]}

    def _sessions(self, _: Request) -> Json:
        return {"sessions": sessions_json(self._state.sessions())}

    def _in_flight(self, _: Request) -> Json:
        return {"in_flight": flights_json(self._state.in_flight)}

    def _figures(self) -> Figures:
        return self._state.figures()

    def _uncertain(self, _: Request) -> Json:
        records = self._state.uncertain.recent()
        return {"log": self._generation.config.uncertain_log, "uncertain": [record.to_json() for record in records]}

    def _lookup(self, request: Request) -> Json:
        generation = self._generation
        config, routing = generation.config, generation.routing
        recipient = parse_address(request.argument("address"), smtputf8=config.smtputf8)
        route = routing.route(recipient)
        hit, name = (None, None) if route.trouble is not None else routing.find(route.keys, recipient.domain)
        refusal = "" if route.refusal is None else str(WITHOUT_ROUTE[route.refusal].reply)
        if route.backend is not None:
            pool = generation.pools[route.backend]
            answer = f"what {pool} answers" + (f"; it is down: {pool.trouble}" if pool.down else "")
        elif name == HOLD:
            answer = f"parked for up to {config.hold_timeout:g} s, then {refusal}"
        else:
            answer = refusal + (f" ({shown(route.reason, MAX_TEXT)})" if route.reason else "")
        table = None if config.served is None else config.served.where
        file, line = (table, None) if hit is None or table is not None else config.place(hit)
        return {
            "address": printable(recipient.path[1:-1]),
            "keys": list(route.keys),
            "hit": hit,
            "file": file,
            "line": line,
            "source": ("users" if table is None else "table")
            if hit is not None
            else "fallback_backend"
            if name is not None
            else None,
            "backend": name,
            "answer": answer,
        }

    # --- what can be done --------------------------------------------------------------------------------------------

    def _refusal(self, refused: ReloadRefused) -> HttpProblem:
        return refused_reload(refused.errors, sha256=self._digest)

    def _until(self, document: RequestDocument) -> int | None:
        return document.count("until")

    def _drained(
        self, request: Request, users: list[str] | None, until: int | None, deadline: float, *, settled: bool
    ) -> Json:
        in_flight = self._state.in_flight
        # Not before the reload, so that a delivery which entered under the old route is among those that are counted.
        until = in_flight.last if until is None else min(until, in_flight.last)
        rules = self._generation.config.key_rules
        keys = None if users is None else _keys(users, rules)
        moved_at = self._state.manager.moved_at if self._generation.config.served is not None else None
        forms = set(chain.from_iterable(_forms(users, rules))) if moved_at is not None and users is not None else None
        with _leaving(in_flight) as left:
            while True:
                if moved_at is not None:  # a script may have moved them to and fro since
                    until = max(until, moved_at.of(forms))
                if not (waiting := in_flight.drain(keys, rules, until)):
                    break
                remaining = deadline - time.monotonic()
                if remaining <= 0 or request.gone():
                    break
                left.wait(min(_LOOK, remaining))
                left.clear()
        generation, named = self._generation, users or []
        recent = self._state.uncertain.concerning(keys, time.time() - _RECENT)
        return {
            "done": not waiting,
            "until": until,
            "waiting": flights_json(waiting),
            "uncertain": [record.to_json() for record in recent],
            "routes": {user: entry_of(generation, user) for user in named} if len(named) <= MAX_SHOWN else {},
        }

    def _preflight(self, request: Request) -> Json:
        document = request.document("backend", "recipients", "mail", "deliver", long=True)
        name = document.text("backend")
        texts = document.texts("recipients", least=0)
        mail = "mail" not in document.values or document.flag("mail")
        deliver = "deliver" in document.values and document.flag("deliver")
        if deliver and len(texts) != 1:
            raise bad('"deliver" is for one recipient')
        generation = self._generation
        smtputf8 = generation.config.smtputf8
        recipients = [
            parse_address(text.encode("utf-8", "surrogatepass"), smtputf8=smtputf8)
            for piece in slices(texts)
            for text in piece
        ]
        if (pool := generation.pools.get(name)) is None:
            raise HttpProblem(HTTPStatus.NOT_FOUND, f'there is no backend "{shown(name)}"')
        message_id, message = make_test_message(generation.config.hostname) if deliver else (None, None)
        request.log(f"preflight {name}" if message_id is None else f"test mail {message_id} to {name}", texts)
        places = self._preflights.setdefault(name, BoundedSemaphore(_AT_ONCE))
        while not places.acquire(timeout=_LOOK):
            if request.gone():
                return {}
        try:
            result = preflight(pool, recipients, lambda: not request.gone(), mail=mail, message=message)
        finally:
            places.release()
        return {
            "backend": name,
            "address": str(pool.backend.address),
            "refused": result.refused,
            "ready": result.ready,
            "seconds": result.seconds,
            "tls": result.tls,
            "offers": [shown(offer, MAX_TEXT) for offer in result.offers],
            "replies": [
                {
                    "recipient": recipient.path[1:-1].decode("utf-8"),
                    "code": reply.code,
                    "reply": shown(str(reply), MAX_TEXT),
                }
                for recipient, reply in result.replies
            ],
            "message_id": message_id,
            "final": result.final and {"code": result.final.code, "reply": shown(str(result.final), MAX_TEXT)},
        }

    def _receipts_of(self, request: Request) -> Json:
        return receipts_json(request, self._state.receipts, self._generation, self._state.in_flight)

    def _check(self, request: Request) -> Json:
        document = request.document("path", "except", long=True)
        path = document.text("path")
        users = document.texts("except", least=0) if "except" in document.values else []
        if not os.path.isabs(path) or "\0" in path:
            raise bad('"path" must be absolute')
        # Errors quote the file: who may connect here need not be allowed to read what this process can.
        if request.uid not in (0, os.geteuid()) and path != self._generation.config.path:
            raise HttpProblem(HTTPStatus.FORBIDDEN, "only root and the proxy's own user may have other files checked")
        request.log(f"check {path}")
        found = self._state.manager.compare(path, users)
        return {"errors": list(found.errors)} if isinstance(found, ConfigError) else {"errors": [], **found}


@contextmanager
def _leaving(in_flight: InFlight) -> Iterator[Event]:
    """An event that is set each time a delivery has left, as long as the block runs."""
    left = Event()
    in_flight.on_leave.append(left.set)
    try:
        yield left
    finally:
        in_flight.on_leave.remove(left.set)


def _forms(users: list[str], rules: KeyRules) -> Iterator[tuple[str, ...]]:
    """All keys that may decide where the mail of each goes."""
    for piece in slices(users):
        for user in piece:
            local_part, at, domain = user.rpartition("@") if "@" in user else (user, "", "")
            yield rules.forms(local_part, domain) if local_part or not at else (rules.table_key(user),)


def _keys(users: list[str], rules: KeyRules) -> set[str]:
    keys: set[str] = set()
    for piece in slices(users):
        keys.update(map(rules.table_key, piece))
    if "" in keys:
        user = next(user for user in users if not rules.table_key(user))
        raise bad(f'"{shown(user)}" can never match while ignoreDomain is true')
    return keys
