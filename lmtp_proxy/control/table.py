# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of resources that an operator finds, and what is the same in them for one process and for several.

Here is how a request is understood, in which order things are done, and how an answer looks. What only the process
knows that serves, or only the supervisor of several, is left to each.
"""

import os
import time
from abc import abstractmethod
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import gevent

from lmtp_proxy.control.application import Json, JsonApplication, Resources, Text
from lmtp_proxy.control.edits import Edits
from lmtp_proxy.control.migration import ToldMigration
from lmtp_proxy.control.request import DRAIN_LONGEST, DRAIN_TIMEOUT, UNSETTLED, HttpProblem, Request, RequestDocument
from lmtp_proxy.control.state import Since
from lmtp_proxy.figures.figures import Figures
from lmtp_proxy.figures.prometheus import exposed
from lmtp_proxy.generations.reloads import ReloadRefused, Reloads, history_json, moved_json, reload_json
from lmtp_proxy.text import iso_time


class ControlApplication(JsonApplication):
    """What an operator can ask a proxy for; abstract, which mypy sees to.

    Args:
        reloads: of the configuration that is in force.
        since: since when it is this proxy.
        stopping: whether it accepts no more.
        more: resources beside those that each has.
    """

    def __init__(
        self, reloads: Reloads, since: Since, stopping: Callable[[], bool], more: Resources | None = None
    ) -> None:
        self._reloads = reloads
        self._since = since
        self._stopping = stopping
        self._edits = Edits()
        migration = ToldMigration()
        own: Resources = {
            "/": {"GET": self._index},
            "/status": {"GET": self._status},
            "/config": {"GET": self._config},
            "/backends": {"GET": self._backends},
            "/sessions": {"GET": self._sessions},
            "/inflight": {"GET": self._in_flight},
            "/lookup": {"GET": self._lookup},
            "/uncertain": {"GET": self._uncertain},
            "/figures": {"GET": lambda _: self._figures()},
            "/metrics": {"GET": lambda request: Text(*exposed(self._figures(), request.accept))},
            "/history": {"GET": lambda _: {"history": history_json(reloads.history)}},
            "/reload": {"POST": self._reload},
            "/drain": {"POST": self._drain},
            "/preflight": {"POST": self._preflight},
            "/check": {"POST": self._check},
            "/edit": {"POST": self._edit},
            "/receipts": {"POST": self._receipts},
            "/migration": {"GET": lambda _: migration.told(), "POST": migration.tell},
        }
        super().__init__({**own, **(more or {})})

    # --- what each knows for itself ----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def _number(self) -> int:
        """Of the generation in force."""

    @property
    @abstractmethod
    def _digest(self) -> str | None:
        """Of the configuration in force."""

    @abstractmethod
    def _longest(self, request: Request) -> float:
        """Seconds from a final dot to the last reply to it, at most; who has not crashed need not know."""

    @abstractmethod
    def _status(self, request: Request) -> Json: ...

    @abstractmethod
    def _config(self, request: Request) -> Json: ...

    @abstractmethod
    def _backends(self, request: Request) -> Json: ...

    @abstractmethod
    def _sessions(self, request: Request) -> Json: ...

    @abstractmethod
    def _in_flight(self, request: Request) -> Json: ...

    @abstractmethod
    def _lookup(self, request: Request) -> Json: ...

    @abstractmethod
    def _uncertain(self, request: Request) -> Json: ...

    @abstractmethod
    def _figures(self) -> Figures:
        """All that is counted."""

    @abstractmethod
    def _preflight(self, request: Request) -> Json: ...

    @abstractmethod
    def _check(self, request: Request) -> Json: ...

    @abstractmethod
    def _receipts_of(self, request: Request) -> Json:
        """Of the users that the request names, and how many deliveries for them are cut off."""

    @abstractmethod
    def _until(self, document: RequestDocument) -> Any:
        """What the request has under `until`; None if nothing. Raises HttpProblem."""

    @abstractmethod
    def _refusal(self, refused: ReloadRefused) -> HttpProblem:
        """What to tell of a reload that changed nothing, or not the same in all processes."""

    @abstractmethod
    def _drained(
        self, request: Request, users: list[str] | None, until: Any, deadline: float, *, settled: bool
    ) -> Json:
        """Wait until nothing of the users is in flight, the time is up, or the client has gone. Raises HttpProblem.

        Args:
            users: whose deliveries; None for everybody's.
            until: what an answer to the same drain had under that name, or None.
            deadline: by time.monotonic.
            settled: every reload that was asked for before is done.

        Returns:
            `done` (nothing is left), `until` (for whoever asks again), `waiting` (deliveries), `uncertain` (those whose
            outcome is unknown) and `routes` (where the users are now).
        """

    # --- what is -----------------------------------------------------------------------------------------------------

    def _index(self, _: Request) -> Json:
        """For whoever has curl and no page of the manual: what there is to ask."""
        return {"resources": {path: [*methods] for path, methods in self._resources.items()}}

    def _own_status(self, longest: float) -> Json:
        """What a status says of the proxy as a whole.

        Args:
            longest: see `_longest`.
        """
        began = self._reloads.loading_since
        return {
            "instance": self._since.instance,
            "pid": os.getpid(),
            "started": iso_time(self._since.started),
            "uptime": self._since.uptime,
            "stopping": self._stopping(),
            "after_crash": self._crash_json(longest),
            "reloading": None if began is None else time.monotonic() - began,
            "generation": self._number,
            "reload": reload_json(self._reloads.last_outcome),
        }

    def _crash_json(self, longest: float) -> Json | None:
        """That a process died before this one started: what it had handed over may still be finishing in a store.

        None when that was longer ago than any delivery was to take, which is `longest` seconds.
        """
        if not self._since.after_crash or self._since.uptime > longest:
            return None
        return {"started": iso_time(self._since.started), "seconds": self._since.uptime, "worker": None}

    # --- what can be done --------------------------------------------------------------------------------------------

    def _reload(self, request: Request) -> Json:
        how = request.document("force", "table_alone") if request.body else RequestDocument({})
        force, table_alone = how.flag("force"), how.flag("table_alone")
        if not table_alone:
            request.log("reload by force" if force else "reload")
        outcome = self._reloads.reload_now(force=force, table_alone=table_alone)
        if isinstance(outcome, ReloadRefused):
            if outcome.partly and not outcome.torn:
                raise HttpProblem(HTTPStatus.CONFLICT, outcome.partly, errors=list(outcome.errors), sha256=self._digest)
            raise self._refusal(outcome)
        return {
            "generation": outcome.generation,
            "changes": outcome.changes,
            "seconds": outcome.seconds,
            "restart": list(outcome.restart),
            "moved": moved_json(outcome.moved),
            "named": list(outcome.named),
            "nothing": outcome.nothing,
            "sha256": self._digest,
        }

    def _edit(self, request: Request) -> Json:
        """Somebody is about to edit the files, holds their lock, and will ask for a reload."""
        document = request.document("before", "after", "accept")
        before, after = document.text("before"), document.text("after")
        return {"known": self._edits.follows(before, after, self._digest, accept=document.flag("accept"))}

    def _drain(self, request: Request) -> Json:
        began = time.monotonic()
        document = request.document("users", "all", "timeout", "until", long=True)
        users = document.users_to_drain()
        deadline = began + document.seconds("timeout", default=DRAIN_TIMEOUT, most=DRAIN_LONGEST)
        until = self._until(document)
        if until is None:  # else it is the same drain, asked for again
            request.log("drain", ["all"] if users is None else users)
        drained = self._reloads.note_drain(users)
        settled = self._settled(deadline)
        # As it is now: when the waiting is over, a refusal may be too, and what was asked for is in force since then.
        last, in_force = self._reloads.last_outcome, self._digest
        if self._reloads.table_refused is not None:
            if settled:
                deadline = time.monotonic()  # whoever waits for an UPDATE waits for nothing
            else:
                last = None  # of a look before the one that was asked for
        found = self._drained(request, users, until, deadline, settled=settled)
        done = settled and bool(found["done"])
        drained.ended(done, len(found["uncertain"]))
        return {
            "done": done,
            "instance": self._since.instance,
            "generation": self._number,
            "until": found["until"] if settled else UNSETTLED,
            "waited": time.monotonic() - began,
            "waiting": found["waiting"],
            "uncertain": found["uncertain"],
            "routes": found["routes"],
            "reload": reload_json(last),
            "in_force": in_force,
            "after_crash": self._crash_json(self._longest(request)),
        }

    def _settled(self, deadline: float) -> bool:
        """Wait until every reload is done that was asked for before; False if the time is up first."""
        # A signal that was sent before the request is handled when the loop next asks the kernel. A timer makes it ask;
        # sleep(0) does not: with it 296 of 300 signals were seen too late.
        gevent.sleep(0.001)
        timeout = gevent.Timeout.start_new(max(0.001, deadline - time.monotonic()))
        try:
            self._settle()
        except gevent.Timeout as expired:
            if expired is not timeout:
                raise
            return False
        finally:
            timeout.close()
        return True

    def _settle(self) -> None:
        """See `_settled`; it ends by an exception when the time is up."""
        if self._reloads.follows_table:  # what a script has just committed counts
            self._reloads.request_reload(table_alone=True)
        self._reloads.settle()

    def _receipts(self, request: Request) -> Json:
        answer = self._receipts_of(request)
        return {
            **answer,
            "instance": self._since.instance,
            "after_crash": self._crash_json(self._longest(request)),
        }
