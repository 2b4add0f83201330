# SPDX-License-Identifier: GPL-3.0-or-later
"""All workers: started, restarted when they die, and kept to one configuration.

A worker serves only while its configuration is that of all others, so whoever knows what is in force in the team knows
it of each. It answers no requests; what a worker answers is not looked into beyond a reload.
"""

import json
import logging
import signal
import time
from contextlib import suppress
from typing import NamedTuple

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from lmtp_proxy.config.values import how_many
from lmtp_proxy.generations.reloads import Outcome, Reloaded, ReloadRefused, Reloads, moved_from
from lmtp_proxy.text import count, span
from lmtp_proxy.workers.process import NoAnswer, State, WorkerAnswer, WorkerEnded, WorkerProcess
from lmtp_proxy.workers.settings import WorkerSettings

_log = logging.getLogger(__name__)

_FIRST_PAUSE = 0.1  # seconds before a worker is started again; doubled each time that one did not serve for long
_LONGEST_PAUSE = 10.0
_LONG = 3.0
_ATTEMPTS = 5  # of a reload, while the file changes between one worker's look at it and another's
_BETWEEN = 0.1
_LOAD = 300.0  # seconds, for several loads of a very large file on a slow machine


class Crash(NamedTuple):
    """A worker that served died.

    Attributes:
        pid: its.
        how: for people.
        when: in seconds since the epoch.
        moment: the same by time.monotonic.
    """

    pid: int
    how: str
    when: float
    moment: float


class Team(Reloads):
    """All workers.

    Args:
        settings: of each worker, but for its number.
        digest: of the configuration as it was read for the start.

    Attributes:
        generation: how many configurations have been in force in all workers; a reload counts as one.
        digest: of the configuration in force; None while they do not agree or not all can be asked.
        torn: how they do not agree; empty while they do.
        loaded: since when that configuration is in force, in seconds since the epoch.
        crash: the last one.
        failed: a worker could not be started at all.
    """

    def __init__(self, settings: WorkerSettings, digest: str) -> None:
        super().__init__()
        self.generation = 1
        self.digest: str | None = digest
        self.torn = ""
        self.loaded = time.time()
        self.crash: Crash | None = None
        self.failed = False
        self._settings = settings
        self._last_digest = digest
        self._workers: list[WorkerProcess | None] = [None] * settings.workers
        self._keepers: list[gevent.Greenlet[..., None]] = []
        self._restarts = [0] * settings.workers
        self._changing = BoundedSemaphore(1)  # reloads, and the beginning of a worker's service
        self._first = Event()  # one serves, or could not be started; a reload can be asked for before
        self._started = False
        self._stopping = Event()
        self._changed = Event()

    def __repr__(self) -> str:
        return f"<Team generation {self.generation} {self._workers}>"

    @property
    def workers(self) -> list[tuple[WorkerProcess | None, int]]:
        """Each worker, None where one is about to be started again, and how often it was."""
        return list(zip(self._workers, self._restarts, strict=True))

    def serving(self) -> list[WorkerProcess]:
        """Those that may have deliveries."""
        return [worker for worker in self._workers if worker is not None and worker.served]

    # --- life --------------------------------------------------------------------------------------------------------

    def start(self, stop: Event) -> bool:
        """Start all, and return when they serve; False if one could not, or `stop` was set meanwhile."""
        stop.rawlink(lambda _: self._changed.set())
        self._keepers = [gevent.spawn(self._keep, number) for number in range(self._settings.workers)]
        while len(self.serving()) < self._settings.workers:
            if self.failed or stop.is_set():
                return False
            self._changed.wait()
            self._changed.clear()
        self._started = True
        return True

    def stop(self, timeout: float) -> bool:
        """Have all end after their sessions, and wait for that; those that need more than `timeout` seconds are killed.

        Returns whether all ended well.
        """
        self._stopping.set()
        crash = self.crash
        for worker in filter(None, self._workers):
            worker.stop()
        gevent.joinall(self._keepers, timeout=timeout)
        for worker in filter(None, self._workers):
            _log.error("worker %d (pid %d) has not ended within %g s: killed", worker.number, worker.pid, timeout)
            worker.signal(signal.SIGKILL)
        gevent.joinall(self._keepers)
        return self.crash is crash

    def _keep(self, number: int) -> None:
        """One worker after the other, until the stop."""
        pause = _FIRST_PAUSE / 2
        while not self._stopping.is_set():
            began = time.monotonic()
            served, how = self._live_once(number)
            self._workers[number] = None
            if not (self._started or served or self._stopping.is_set()):
                self.failed = True
                self._first.set()
            self._changed.set()
            if self._stopping.is_set() or self.failed:
                return
            well = served and time.monotonic() - began > _LONG
            pause = _FIRST_PAUSE if well else min(2 * pause, _LONGEST_PAUSE)
            _log.error("%s; it is started again in %g s", how, pause)
            self._stopping.wait(pause)
            self._restarts[number] += 1

    def _live_once(self, number: int) -> tuple[bool, str]:
        """One worker from its start to its end: whether it served, and how it ended."""
        try:
            worker = WorkerProcess(self._settings._replace(number=number), self._ended)
        except OSError as error:
            return False, f"worker {number + 1} could not be started: {error.strerror}"
        self._workers[number] = worker
        name = f"worker {worker.number} (pid {worker.pid})"
        if self._stopping.is_set():
            worker.stop()
        errors = worker.hear()
        for line in errors or ():
            _log.error("%s cannot serve: %s", name, line)
        if errors == [] and not self._stopping.is_set():
            worker.state = State.LOADED
            try:
                self._admit(worker)
            except (WorkerEnded, NoAnswer) as error:
                _log.error("%s does not come to serve: %s", name, error)
                worker.stop()
        worker.ended.wait()
        return worker.served, f"{name} ended: {worker.how_it_ended()}"

    def _ended(self, worker: WorkerProcess) -> None:
        # What it had handed over may still be finishing in a store. Before anybody learns that it has ended.
        if worker.served and worker.status != 0:
            self.crash = Crash(worker.pid, worker.how_it_ended(), time.time(), time.monotonic())

    # --- one configuration for all -----------------------------------------------------------------------------------

    def _admit(self, worker: WorkerProcess) -> None:
        """Let a worker that has loaded serve, if it has loaded what the others serve by. Raises as `ask` does."""
        with self._changing:
            status = worker.ask("GET", "/status").document
            digest, worker.instance = status["in_force"], status["instance"]
            if not self.serving():  # then nobody serves by another
                self._in_force(digest, again=digest == self._last_digest)
            if digest == self.digest:
                self._let_serve(worker)
                return
        _log.warning("worker %d has loaded another configuration than the others: all reload it", worker.number)
        self.reload_now()
        if not worker.served:
            _log.error("worker %d (pid %d) has not the configuration of the others: ended", worker.number, worker.pid)
            worker.stop()

    def _let_serve(self, worker: WorkerProcess) -> None:
        worker.served = True  # before it can have a client
        worker.state = State.SERVING
        worker.ask("POST", "/accept")
        self._first.set()
        self._changed.set()

    def _in_force(self, digest: str, *, again: bool) -> None:
        self.generation += not again
        self.digest = self._last_digest = digest
        self.torn = ""
        if not again:
            self.loaded = time.time()

    def reload(self, *, force: bool = False, table_alone: bool = False) -> Outcome:
        """Have all load the file, again if they found different ones; returns when all that serve have swapped."""
        began = time.monotonic()
        self._first.wait()
        with self._changing:
            for attempt in range(_ATTEMPTS):
                if attempt:
                    gevent.sleep(_BETWEEN)
                answers, silent = self._ask_all({"force": force, "table_alone": table_alone})
                digests = {answer.document["sha256"] for worker, answer in answers.items() if worker.served}
                if silent or not answers or (len(digests) == 1 and len({each.ok for each in answers.values()}) == 1):
                    break
            return self._outcome(answers, silent, began, table_alone=table_alone)

    def _ask_all(self, how: dict[str, bool]) -> tuple[dict[WorkerProcess, WorkerAnswer], list[str]]:
        """The answers to a reload of those that have not ended, and what is to be said of those without one."""
        asked = [worker for worker in self._workers if worker is not None and worker.state is not State.STARTING]
        jobs = {worker: gevent.spawn(_reload_one, worker, how) for worker in asked}
        gevent.joinall(list(jobs.values()))
        results = {worker: job.get() for worker, job in jobs.items()}
        return (
            {worker: result for worker, result in results.items() if isinstance(result, WorkerAnswer)},
            [str(result) for result in results.values() if isinstance(result, NoAnswer)],
        )

    def _outcome(
        self, answers: dict[WorkerProcess, WorkerAnswer], silent: list[str], began: float, *, table_alone: bool
    ) -> Outcome:
        serving = {worker: answer for worker, answer in answers.items() if worker.served}
        digests = {str(answer.document["sha256"]) for answer in serving.values()}
        errors = list(dict.fromkeys(line for each in answers.values() for line in each.document.get("errors", ())))
        if silent or len(digests) != 1:
            self.digest = None
            self.torn = _torn(serving, silent)
            return self._refused(errors or [self.torn], self.torn, table_alone=table_alone)
        [digest] = digests
        first = next(iter(serving.values())).document
        if not all(answer.ok for answer in serving.values()):
            same = digest == self._last_digest  # else an earlier attempt found what is no more
            self._in_force(digest, again=same)
            return self._refused(errors, "" if same else _torn(serving, silent), table_alone=table_alone)
        nothing = all(answer.document["nothing"] for answer in serving.values())
        self._in_force(digest, again=nothing)
        for worker, answer in answers.items():
            if not worker.served and worker.state is State.LOADED and answer.document["sha256"] == digest:
                with suppress(WorkerEnded, NoAnswer):  # its keeper sees to it
                    self._let_serve(worker)
        seconds = time.monotonic() - began
        if nothing:
            return Reloaded(self.generation, first["changes"], seconds, (), self.loaded, nothing=True)
        what = "table" if table_alone else "reload"
        _log.info("%s: generation %d active: %s in %s", what, self.generation, first["changes"], span(seconds))
        restart = tuple(dict.fromkeys(key for answer in serving.values() for key in answer.document["restart"]))
        if restart:
            _log.warning("reload: a change of %s takes effect at the next start only", ", ".join(restart))
        moved = moved_from(first["moved"])
        for line in first["named"]:
            _log.info("users: %s", line)
        return Reloaded(self.generation, first["changes"], seconds, restart, self.loaded, moved, tuple(first["named"]))

    def _refused(self, errors: list[str], torn: str, *, table_alone: bool) -> ReloadRefused:
        if table_alone and not torn:
            if self.table_refused is None or self.table_refused.errors != tuple(errors):  # it is tried again and again
                for line in errors:
                    _log.error("table: %s; mail goes on by what is in force", line)
            return ReloadRefused(tuple(errors), time.time())
        for line in errors:
            _log.error("reload: %s", line)
        what = f"{count(how_many(errors), 'error')} in {self._settings.config}"
        end = torn or f"generation {self.generation} stays active"
        _log.error("reload refused: %s; %s", what, end)
        return ReloadRefused(tuple(errors), time.time(), torn)


def _reload_one(worker: WorkerProcess, how: dict[str, bool]) -> WorkerAnswer | WorkerEnded | NoAnswer:
    try:
        answer = worker.ask("POST", "/reload", json.dumps(how).encode("ascii"), timeout=_LOAD)
    except (WorkerEnded, NoAnswer) as error:
        return error
    if "sha256" in answer.document:
        return answer
    return NoAnswer(f"worker {worker.number} (pid {worker.pid}) answers {answer.document.get('error')}")


def _short(digest: str) -> str:
    """Of the files, and the position of the table if there is one."""
    files, at, position = digest.partition("@")
    return f"{files[:12]}{at}{position}"


def _torn(serving: dict[WorkerProcess, WorkerAnswer], silent: list[str]) -> str:
    """By which configuration each worker delivers now."""
    if not serving and not silent:
        return "no worker serves: see the log"
    parts = [f"worker {worker.number} has sha256 {_short(each.document['sha256'])}" for worker, each in serving.items()]
    return "; ".join([*silent, *(parts or ["no other worker serves"])])
