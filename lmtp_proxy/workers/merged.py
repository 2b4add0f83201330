# SPDX-License-Identifier: GPL-3.0-or-later
"""What the operator can ask a proxy of several workers: the same resources, answered as if it were one process.

What is counted is added up, what is listed stands side by side. What changes or proves something is done only when
every worker says so. A worker that died takes what it knew with it, which is told as `after_crash`; one that does not
answer makes the answer an error, but for the status.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from math import inf
from typing import Any, TypeAlias
from urllib.parse import quote

import gevent

from lmtp_proxy.backends.counts import Counts
from lmtp_proxy.control.application import Json
from lmtp_proxy.control.request import DRAIN_LONGEST, HttpProblem, Request, RequestDocument, refused_reload
from lmtp_proxy.control.state import Since
from lmtp_proxy.control.table import ControlApplication
from lmtp_proxy.counts import counters_of
from lmtp_proxy.figures.figures import Figures
from lmtp_proxy.generations.reloads import ReloadRefused
from lmtp_proxy.text import iso_time
from lmtp_proxy.workers.figures import TeamFigures
from lmtp_proxy.workers.process import NoAnswer, WorkerAnswer, WorkerEnded, WorkerProcess
from lmtp_proxy.workers.team import Team

_SUMS = ("sessions", "held", "uncertain")
_OF_BACKENDS = (
    *("busy", "idle", "max_connections", "waiting"),
    *(counter.name for counter in counters_of(Counts) if counter.in_status),
)
_NUMBERS = 2**31  # flights of one worker; a pid is less than 2**22, and JSON's numbers are exact up to 2**53


def merged_status(answers: Sequence[Json]) -> Json:
    """The first one, with the sums of all."""
    first = answers[0]
    phases = {phase: sum(answer["in_flight"].get(phase, 0) for answer in answers) for phase in first["in_flight"]}
    return {
        **first,
        **{name: sum(answer[name] for answer in answers) for name in _SUMS},
        "in_flight": phases,
        "log": _merged_log([answer["log"] for answer in answers]),
        "backends": merged_backends([answer["backends"] for answer in answers]),
    }


def _merged_log(logs: Sequence[Json]) -> Json:
    return {
        **logs[0],
        "trouble": next((log["trouble"] for log in logs if log["trouble"]), ""),
        **{name: sum(log[name] for log in logs) for name in ("waiting", "lost")},
    }


def merged_backends(lists: Sequence[Sequence[Json]]) -> list[Json]:
    """Each backend once. It is down where one worker's last attempt failed; each notices by its own mail."""
    found: dict[str, list[Json]] = {}
    for backends in lists:
        for backend in backends:
            found.setdefault(backend["name"], []).append(backend)
    return [_merged_backend(each) for each in found.values()]


def _merged_backend(backends: Sequence[Json]) -> Json:
    states = [backend["state"] for backend in backends]
    down = [backend for backend in backends if backend["state"] == "down"]
    trouble = down[0]["trouble"] if down else None
    if down and len(down) < len(backends):
        trouble = f"{trouble} (seen by {len(down)} of {len(backends)} workers)"
    return {
        **backends[0],
        "state": next((state for state in ("down", "up") if state in states), "unused"),
        "trouble": trouble,
        **{name: sum(backend[name] for backend in backends) for name in _OF_BACKENDS},
        "tls": _soonest([backend["tls"] for backend in backends if backend["tls"] is not None]),
        "waits_for": dict(sum((Counter(backend["waits_for"]) for backend in backends), Counter()).most_common()),
    }


def _soonest(spoken: Sequence[Json]) -> Json | None:
    """That whose certificate ends first: one worker may not have seen a renewed one."""
    return min(spoken, key=lambda each: each["days_left"] if each["days_left"] is not None else inf, default=None)


def of_worker(pid: int, items: Iterable[Mapping[str, Any]]) -> list[Json]:
    """Flights or sessions of one worker, which they name. The numbers of flights differ from those of other workers."""
    named = [{**item, "worker": pid} for item in items]
    return [{**item, "number": pid * _NUMBERS + item["number"]} if "number" in item else item for item in named]


_LOOK = 0.25  # seconds between two looks whether the client is still there
_GRACE = 30.0  # seconds more than a request may take in a worker

_Said: TypeAlias = WorkerAnswer | WorkerEnded | NoAnswer


class MergedApplication(ControlApplication):
    """What several workers answer as one.

    Args:
        stopping: whether the proxy accepts no more.
        after_crash: the proxy before this one did not end well.
    """

    def __init__(self, team: Team, stopping: Callable[[], bool], *, after_crash: bool) -> None:
        since = Since.now(after_crash=after_crash)
        super().__init__(team, since, stopping)
        self._team = team
        self.team_figures = TeamFigures(team, since.started)

    @property
    def _number(self) -> int:
        return self._team.generation

    @property
    def _digest(self) -> str | None:
        return self._team.digest

    # --- what is -----------------------------------------------------------------------------------------------------

    def _status(self, request: Request) -> Json:
        said = self._ask(request, self._team.serving(), "GET", "/status")
        answers = {worker: answer.document for worker, answer in said if isinstance(answer, WorkerAnswer) and answer.ok}
        silent = {worker for worker, answer in said if isinstance(answer, NoAnswer)}
        rows = [
            {
                "number": number,
                "pid": worker.pid if worker else None,
                "state": "dead" if worker is None else "silent" if worker in silent else worker.state.value,
                "started": iso_time(worker.began) if worker else None,
                "restarts": restarts,
                "sessions": answers[worker]["sessions"] if worker in answers else 0,
            }
            for number, (worker, restarts) in enumerate(self._team.workers, 1)
        ]
        if not answers:
            states = ", ".join(f"worker {row['number']} (pid {row['pid']}) is {row['state']}" for row in rows)
            raise HttpProblem(HTTPStatus.SERVICE_UNAVAILABLE, f"no worker answers: {states}; see the log", workers=rows)
        merged = merged_status(list(answers.values()))
        return {
            **merged,
            **self._own_status(merged["longest_delivery"]),
            "workers": rows,
            "torn": self._team.torn or None,
            "config": {**merged["config"], "loaded": iso_time(self._team.loaded)},
        }

    def _crash_json(self, longest: float) -> Json | None:
        crash = self._team.crash
        if crash is not None and (seconds := time.monotonic() - crash.moment) <= longest:
            return {"started": iso_time(crash.when), "seconds": seconds, "worker": crash.pid}
        return super()._crash_json(longest)

    def _backends(self, request: Request) -> Json:
        answers = self._by_all(request, "/backends")
        return {"backends": merged_backends([answer["backends"] for _, answer in answers])}

    def _sessions(self, request: Request) -> Json:
        answers = self._by_all(request, "/sessions")
        found = [session for worker, answer in answers for session in of_worker(worker.pid, answer["sessions"])]
        return {"sessions": _oldest_first(found)}

    def _in_flight(self, request: Request) -> Json:
        answers = self._by_all(request, "/inflight")
        found = [flight for worker, answer in answers for flight in of_worker(worker.pid, answer["in_flight"])]
        return {"in_flight": _oldest_first(found)}

    def _uncertain(self, request: Request) -> Json:
        answers = [answer for _, answer in self._by_all(request, "/uncertain")]
        records = [record for answer in answers for record in answer["uncertain"]]
        return {"log": answers[0]["log"], "uncertain": _by_time(records)}

    def _figures(self) -> Figures:
        if (figures := self.team_figures.collect()) is None:
            raise _no_answer(WorkerEnded(""))
        return figures

    # --- what can be done --------------------------------------------------------------------------------------------

    def _refusal(self, refused: ReloadRefused) -> HttpProblem:
        if refused.torn:
            return _torn(refused.torn, errors=list(refused.errors))
        return refused_reload(refused.errors)

    def _until(self, document: RequestDocument) -> dict[str, Any] | int | None:
        asked = document.values.get("until")
        return asked if isinstance(asked, dict) else document.count("until")

    def _drained(
        self, request: Request, users: list[str] | None, until: Any, deadline: float, *, settled: bool
    ) -> Json:
        of_whom = {"all": True} if users is None else {"users": users}

        def body(worker: WorkerProcess) -> bytes:
            # A worker that came later has had nothing but the new routes.
            mine = until.get(worker.instance, 0) if isinstance(until, dict) else until
            left = max(0.0, deadline - time.monotonic()) if settled else 0.0
            return json.dumps({**of_whom, "timeout": left, **({} if mine is None else {"until": mine})}).encode("ascii")

        quiet: object = None
        while True:
            generation = self._team.generation
            answers = self._by_all(request, "/drain", "POST", body, DRAIN_LONGEST)
            if not (self._team.follows_table and all(answer["done"] for _, answer in answers)):
                break
            # The first to answer may have had users moved to and fro since, with deliveries amid that.
            if self._team.generation == generation and self._team.loading_since is None:
                break
            until = {worker.instance: answer["until"] for worker, answer in answers}
            if until == quiet:  # what is asked for again after all of them have answered
                break
            quiet = until
        waiting = [flight for worker, answer in answers for flight in of_worker(worker.pid, answer["waiting"])]
        return {
            "done": all(answer["done"] for _, answer in answers),
            "until": {worker.instance: answer["until"] for worker, answer in answers},
            "waiting": _oldest_first(waiting),
            "uncertain": _by_time([record for _, answer in answers for record in answer["uncertain"]]),
            "routes": answers[0][1]["routes"],
        }

    def _settle(self) -> None:
        super()._settle()
        if self._team.digest is None and self._team.serving():
            self._team.reload_now()

    def _settled(self, deadline: float) -> bool:
        """See ControlApplication. Raises HttpProblem if the workers cannot be brought to one configuration."""
        settled = super()._settled(deadline)
        if settled and self._team.digest is None:
            raise _torn(self._team.torn)
        return settled

    def _longest(self, request: Request) -> float:
        """See ControlApplication; for ever if nobody can say so."""
        if self._team.crash is None and not self._since.after_crash:
            return 0.0
        for _, answer in self._ask(request, self._team.serving(), "GET", "/status"):
            if isinstance(answer, WorkerAnswer) and answer.ok:
                return float(answer.document["longest_delivery"])
        return float("inf")

    def _config(self, request: Request) -> Json:
        return self._by_one(request, "GET", "/config")

    def _lookup(self, request: Request) -> Json:
        return self._by_one(request, "GET", "/lookup")

    def _preflight(self, request: Request) -> Json:
        document = request.document("backend", "recipients", "mail", "deliver", long=True)
        request.log(f"preflight {document.text('backend')}", document.texts("recipients", least=0))
        return self._by_one(request, "POST", "/preflight")

    def _receipts_of(self, request: Request) -> Json:
        # Each writes what it has, and says what is under way; then one reads all that was written.
        said = self._by_all(request, "/receipts", "POST", lambda _: request.body, 1.0)
        answer = self._by_one(request, "POST", "/receipts")
        answer["cut_off"] = sum(document["cut_off"] for _, document in said)
        return answer

    def _check(self, request: Request) -> Json:
        request.log(f"check {request.document('path', 'except', long=True).text('path')}")
        return self._by_one(request, "POST", "/check")

    # --- asking ------------------------------------------------------------------------------------------------------

    def _by_one(self, request: Request, method: str, resource: str) -> Json:
        """The answer of the first worker that gives one. Raises HttpProblem."""
        query = quote(request.query.encode("latin-1"), safe="%=&?/:@+,;!$'()*[]") if request.query else ""
        last: _Said = WorkerEnded("")
        for worker in sorted(self._team.serving(), key=lambda worker: worker.silent):
            path = f"{resource}?{query}" if query else resource
            [(_, last)] = self._ask(request, [worker], method, path, lambda _: request.body)
            if isinstance(last, WorkerAnswer):
                return _document(last)
        raise _no_answer(last)

    def _by_all(
        self,
        request: Request,
        resource: str,
        method: str = "GET",
        body: Callable[[WorkerProcess], bytes | None] = lambda _: None,
        timeout: float = 0.0,
    ) -> list[tuple[WorkerProcess, Json]]:
        """The answers of all workers but those that have ended; at least one. Raises HttpProblem."""
        said = self._ask(request, self._team.serving(), method, resource, body, timeout)
        for _, answer in said:
            if isinstance(answer, NoAnswer):
                raise _no_answer(answer)
        answers = [(worker, _document(answer)) for worker, answer in said if isinstance(answer, WorkerAnswer)]
        if not answers:
            raise _no_answer(WorkerEnded(""))
        return answers

    @staticmethod
    def _ask(
        request: Request,
        workers: Sequence[WorkerProcess],
        method: str,
        resource: str,
        body: Callable[[WorkerProcess], bytes | None] = lambda _: None,
        timeout: float = 0.0,
    ) -> list[tuple[WorkerProcess, _Said]]:
        """What each says, all asked at once.

        Raises HttpProblem as soon as the client is gone. Where there is a timeout, because others may need it, also as
        soon as one does not answer.
        """
        jobs = [gevent.spawn(_said, worker, method, resource, body(worker), request.uid, timeout) for worker in workers]
        try:
            while not all(job.ready() for job in jobs):
                gevent.joinall(jobs, timeout=_LOOK, count=1 + sum(job.ready() for job in jobs))
                if request.gone():
                    raise HttpProblem(HTTPStatus.GATEWAY_TIMEOUT, "the client has gone")
                if timeout:
                    for job in jobs:
                        if isinstance(job.value, NoAnswer):
                            raise _no_answer(job.value)
            return [(worker, job.get()) for worker, job in zip(workers, jobs, strict=True)]
        finally:
            gevent.killall(jobs)


def _oldest_first(found: list[Json]) -> list[Json]:
    return sorted(found, key=lambda each: -float(each["seconds"]))


def _by_time(records: list[Json]) -> list[Json]:
    return sorted(records, key=lambda record: str(record["time"]))


def _said(worker: WorkerProcess, method: str, resource: str, body: bytes | None, uid: int, timeout: float) -> _Said:
    try:
        return worker.ask(method, resource, body, uid=uid, timeout=timeout + _GRACE)
    except (WorkerEnded, NoAnswer) as error:
        return error


def _document(answer: WorkerAnswer) -> Json:
    """What a worker answers. Raises HttpProblem where that is an error, which is the same for all workers."""
    if answer.ok:
        return answer.document
    more: dict[str, Any] = dict(answer.document)
    raise HttpProblem(HTTPStatus(answer.code), str(more.pop("error", "")), **more)


def _no_answer(said: _Said) -> HttpProblem:
    if isinstance(said, NoAnswer):
        return HttpProblem(HTTPStatus.GATEWAY_TIMEOUT, str(said))
    return HttpProblem(HTTPStatus.SERVICE_UNAVAILABLE, "no worker serves: all died, and are started again; see the log")


def _torn(torn: str, **more: object) -> HttpProblem:
    what = f"the workers do not deliver by the same configuration: {torn}"
    return HttpProblem(HTTPStatus.BAD_GATEWAY, f"{what}; reload again", **more)
