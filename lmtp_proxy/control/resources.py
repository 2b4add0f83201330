# SPDX-License-Identifier: GPL-3.0-or-later
"""What the operator can ask one process for over the control socket.

Each resource is a row of a table. It looks at the parts of the process through what they show of themselves, changes
nothing but by a reload, and never does so much at once that mail waits. It knows no sockets.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from lmtp_proxy import __version__
from lmtp_proxy.backends.preflight import preflight
from lmtp_proxy.config.values import ConfigError
from lmtp_proxy.control.application import Json, JsonApplication, Resources, Text
from lmtp_proxy.control.json import MAX_SHOWN, backend_json, entry_of, flights_json, receipts_json, sessions_json
from lmtp_proxy.control.request import (
    DRAIN_LONGEST,
    DRAIN_TIMEOUT,
    UNSETTLED,
    Problem,
    Request,
    bad,
    parse_address,
    refused_reload,
    shown,
    slices,
)
from lmtp_proxy.control.state import ControlState
from lmtp_proxy.delivery.in_flight import InFlight, Phase
from lmtp_proxy.figures.prometheus import exposed
from lmtp_proxy.generations.generation import Generation
from lmtp_proxy.generations.reloads import Refused, history_json, moved_json, reload_json
from lmtp_proxy.routing.keys import KeyRules
from lmtp_proxy.routing.routing import HOLD
from lmtp_proxy.text import iso_time, printable

_LOOK = 1.0  # seconds between two looks whether the client is still there
_AT_ONCE = 2  # preflights of one backend: they take places that mail may need
_RECENT = 3600.0  # seconds


class Application(JsonApplication):
    """The resources of one process that serves. more: others, beside those that each has."""

    def __init__(self, state: ControlState, more: Resources | None = None) -> None:
        self._state = state
        self._preflights: dict[str, BoundedSemaphore] = {}
        own: Resources = {
            "/status": {"GET": self._status},
            "/backends": {"GET": lambda _: {"backends": self._backends(self._generation)}},
            "/sessions": {"GET": self._sessions},
            "/inflight": {"GET": lambda _: {"in_flight": flights_json(self._state.in_flight)}},
            "/lookup": {"GET": self._lookup},
            "/uncertain": {"GET": self._uncertain},
            "/figures": {"GET": lambda _: state.figures()},
            "/metrics": {"GET": lambda request: Text(*exposed(state.figures(), request.accept))},
            "/history": {"GET": lambda _: {"history": history_json(self._state.manager.history)}},
            "/reload": {"POST": self._reload},
            "/drain": {"POST": self._drain},
            "/preflight": {"POST": self._preflight},
            "/check": {"POST": self._check},
            "/receipts": {"POST": self._receipts},
        }
        super().__init__({**own, **(more or {})})

    @property
    def _generation(self) -> Generation:
        return self._state.manager.current()

    # --- what is -----------------------------------------------------------------------------------------------------

    def _status(self, _: Request) -> Json:
        state, generation = self._state, self._generation
        config = generation.config
        since = state.manager.loading_since
        phases = {phase.value: 0 for phase in Phase}
        for flight in state.in_flight:
            phases[flight.phase.value] += 1
        return {
            "version": __version__,
            "instance": state.instance,
            "pid": os.getpid(),
            "started": iso_time(state.started),
            "uptime": self._uptime,
            "workers": [],
            "stopping": state.stopping(),
            "after_crash": self._crash_json(),
            "longest_delivery": self._longest_delivery,
            "reloading": None if since is None else time.monotonic() - since,
            "generation": generation.number,
            "socket": state.address,
            "config": {
                "path": config.path,
                "sha256": config.digest,
                "modified": iso_time(config.modified),
                "loaded": iso_time(state.manager.loaded),
            },
            "reload": reload_json(self._state.manager.last_reload),
            "sessions": len(state.sessions()),
            "held": len(state.parking),
            "in_flight": phases,
            "uncertain": state.uncertain.count,
            "uncertain_log": config.uncertain_log,
            "users": len(config.users),
            "ignore_domain": config.ignore_domain,
            "fallback_backend": config.fallback_backend,
            "users_on": dict(config.users_per_backend),
            "backends": self._backends(generation),
        }

    @property
    def _uptime(self) -> float:
        return time.monotonic() - self._state.began

    def _crash_json(self) -> Json | None:
        """That a process died before this one started: what it had handed over may still be finishing in a store.

        None when that was longer ago than any delivery was to take.
        """
        if not self._state.after_crash or self._uptime > self._longest_delivery:
            return None
        return {"started": iso_time(self._state.started), "seconds": self._uptime, "worker": None}

    @property
    def _longest_delivery(self) -> float:
        """Seconds from a final dot to the last reply to it, at most."""
        backends = self._generation.config.backends.values()
        return max((backend.timeouts.final_reply for backend in backends), default=0.0)

    def _backends(self, generation: Generation) -> list[Json]:
        users = generation.config.users_per_backend
        return [backend_json(pool, users.get(name, 0)) for name, pool in generation.pools.items()]

    def _sessions(self, _: Request) -> Json:
        return {"sessions": sessions_json(self._state.sessions())}

    def _uncertain(self, _: Request) -> Json:
        records = self._state.uncertain.recent()
        return {"log": self._generation.config.uncertain_log, "uncertain": [record.to_json() for record in records]}

    def _lookup(self, request: Request) -> Json:
        generation = self._generation
        config, routing = generation.config, generation.routing
        recipient = parse_address(request.argument("address"), smtputf8=config.smtputf8)
        route = routing.route(recipient)
        hit, name = (None, None) if route.trouble is not None else routing.find(route.keys, recipient.domain)
        if route.backend is not None:
            pool = generation.pools[route.backend]
            answer = f"what {pool} answers" + (f"; it is down: {pool.trouble}" if pool.down else "")
        elif name == HOLD:
            answer = f"parked for up to {config.hold_timeout:g} s, then {route.refusal}"
        else:
            answer = str(route.refusal) + (f" ({shown(route.reason)})" if route.reason else "")
        return {
            "address": printable(recipient.path[1:-1]),
            "keys": list(route.keys),
            "hit": hit,
            "line": None if hit is None else config.users.line(hit),
            "source": "users" if hit is not None else "fallback_backend" if name is not None else None,
            "backend": name,
            "answer": answer,
        }

    # --- what can be done --------------------------------------------------------------------------------------------

    def _reload(self, request: Request) -> Json:
        if request.body:
            request.document()
        request.log("reload")
        outcome = self._state.manager.reload_now()
        if isinstance(outcome, Refused):
            raise refused_reload(outcome.errors, sha256=self._generation.config.digest)
        return {
            "generation": outcome.generation,
            "changes": outcome.changes,
            "seconds": outcome.seconds,
            "restart": list(outcome.restart),
            "moved": moved_json(outcome.moved),
            "sha256": self._generation.config.digest,
        }

    def _drain(self, request: Request) -> Json:
        began = time.monotonic()
        document = request.document("users", "all", "timeout", "until", long=True)
        named = document.users_to_drain()
        users = named or []
        deadline = began + document.seconds("timeout", default=DRAIN_TIMEOUT, most=DRAIN_LONGEST)
        until = document.count("until")
        if until is None:  # else it is the same drain, asked for again
            request.log("drain", ["all"] if named is None else named)
        in_flight = self._state.in_flight
        drained = self._state.manager.note_drain(named)
        settled = self._settled(deadline)
        # Not before the reload, so that a delivery which entered under the old route is among those that are counted.
        until = in_flight.last if until is None else min(until, in_flight.last)
        rules = self._generation.config.key_rules
        keys = None if named is None else _keys(named, rules)
        with _leaving(in_flight) as left:
            while waiting := in_flight.drain(keys, rules, until):
                remaining = deadline - time.monotonic()
                if remaining <= 0 or request.gone():
                    break
                left.wait(min(_LOOK, remaining))
                left.clear()
        generation = self._generation
        recent = self._state.uncertain.concerning(keys, time.time() - _RECENT)
        drained.ended(settled and not waiting, len(recent))
        return {
            "done": settled and not waiting,
            "instance": self._state.instance,
            "generation": generation.number,
            "until": until if settled else UNSETTLED,
            "waited": time.monotonic() - began,
            "waiting": flights_json(waiting),
            "uncertain": [record.to_json() for record in recent],
            "routes": {user: entry_of(generation, user) for user in users} if len(users) <= MAX_SHOWN else {},
            "reload": reload_json(self._state.manager.last_reload),
            "after_crash": self._crash_json(),
        }

    def _settled(self, deadline: float) -> bool:
        """Wait until every reload is done that was asked for before; False if the time is up first."""
        # A signal that was sent before the request is handled when the loop next asks the kernel. A timer makes it ask;
        # sleep(0) does not: with it 296 of 300 signals were seen too late.
        gevent.sleep(0.001)
        timeout = gevent.Timeout.start_new(max(0.001, deadline - time.monotonic()))
        try:
            self._state.manager.settle()
        except gevent.Timeout as expired:
            if expired is not timeout:
                raise
            return False
        finally:
            timeout.close()
        return True

    def _preflight(self, request: Request) -> Json:
        document = request.document("backend", "recipients", long=True)
        name = document.text("backend")
        texts = document.texts("recipients", least=0)
        generation = self._generation
        smtputf8 = generation.config.smtputf8
        recipients = [
            parse_address(text.encode("utf-8", "surrogatepass"), smtputf8=smtputf8)
            for piece in slices(texts)
            for text in piece
        ]
        if (pool := generation.pools.get(name)) is None:
            raise Problem(HTTPStatus.NOT_FOUND, f'there is no backend "{shown(name, 100)}"')
        request.log(f"preflight {name}", texts)
        places = self._preflights.setdefault(name, BoundedSemaphore(_AT_ONCE))
        while not places.acquire(timeout=_LOOK):
            if request.gone():
                return {}
        try:
            result = preflight(pool, recipients, lambda: not request.gone())
        finally:
            places.release()
        return {
            "backend": name,
            "address": str(pool.backend.address),
            "refused": result.refused,
            "replies": [
                {"recipient": recipient.path[1:-1].decode("utf-8"), "code": reply.code, "reply": shown(str(reply))}
                for recipient, reply in result.replies
            ],
        }

    def _receipts(self, request: Request) -> Json:
        answer = receipts_json(request, self._state.receipts, self._generation, self._state.in_flight)
        return {**answer, "instance": self._state.instance, "after_crash": self._crash_json()}

    def _check(self, request: Request) -> Json:
        path = request.document("path").text("path")
        if not os.path.isabs(path) or "\0" in path:
            raise bad('"path" must be absolute')
        # Errors quote the file: who may connect here need not be allowed to read what this process can.
        if request.uid not in (0, os.geteuid()) and path != self._generation.config.path:
            raise Problem(HTTPStatus.FORBIDDEN, "only root and the proxy's own user may have other files checked")
        request.log(f"check {path}")
        found = self._state.manager.compare(path)
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


def _keys(users: list[str], rules: KeyRules) -> set[str]:
    keys: set[str] = set()
    for piece in slices(users):
        keys.update(map(rules.table_key, piece))
    if "" in keys:
        user = next(user for user in users if not rules.table_key(user))
        raise bad(f'"{shown(user, 100)}" can never match while ignoreDomain is true')
    return keys
