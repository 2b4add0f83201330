# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run asks lmtp-proxy for: where a user is, whether a backend would take their mail, moves, receipts.

A proxy that is away is waited for, for a while; an answer that says no is final. After a move that went wrong nothing
is assumed: where the user is, in the running proxy and in the file, has to be asked. It knows no journal and no hooks.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from lmtp_proxy.ctl import output as show
from lmtp_proxy.ctl.client import Answer, ControlClient, ControlError, Refusal, Unreachable
from lmtp_proxy.ctl.drain import DONE, UNCERTAIN, UNPROVEN, Failed, Progress
from lmtp_proxy.ctl.migrate.hooks import Cancel
from lmtp_proxy.ctl.migrate.turns import Turns
from lmtp_proxy.ctl.move import NO_ROOM, Order, move
from lmtp_proxy.ctl.mta import Mta
from lmtp_proxy.ctl.names import quoted
from lmtp_proxy.text import count, span

if TYPE_CHECKING:
    from lmtp_proxy.config.values import Config

PATIENCE = 120.0
"""Seconds in which a proxy that is restarted comes back."""
_REQUEUE = 30.0  # seconds: for a large mail that was coming in when its user was moved; nobody is offline meanwhile
_PAUSE = 0.25
_ANSWER = 60.0
_Value = TypeVar("_Value")
_ALSO = "somebody else had edited the file, and with this move is in force"


class ProxyError(Exception):
    """One line: what the proxy, or its absence, makes impossible."""


class Interrupted(Exception):
    """The run is to be rolled back."""


@dataclass(frozen=True, slots=True)
class Moved:
    """How a move ended.

    Attributes:
        quiet: nothing can reach the backend of before any more.
        uncertain: deliveries nobody knows the outcome of, a line each.
        text: what was waited for, and what else is in force since, by edits of others.
        previous: where the file had the user.
    """

    quiet: bool
    uncertain: tuple[str, ...]
    text: str
    previous: str | None


@dataclass(frozen=True, slots=True)
class BackendReceipt:
    """Of one user and backend. Times are seconds since the epoch."""

    backend: str
    first: float
    last: float
    count: int
    uncertain: int


@dataclass(frozen=True, slots=True)
class UserReceipts:
    """What the proxy remembers of one mailbox.

    Attributes:
        deferred: queue ids, the oldest first.
        unnamed: what was deferred without one: how often, and from when to when, in seconds since the epoch.
    """

    delivered: tuple[BackendReceipt, ...] = ()
    deferred: tuple[str, ...] = ()
    unnamed: tuple[tuple[int, float, float], ...] = ()

    def unnamed_since(self, when: float) -> int:
        """How often that was after `when`, at least: of what began before, only the last time is known."""
        return sum(number if first >= when else 1 for number, first, last in self.unnamed if last >= when)

    def on(self, backend: str) -> BackendReceipt | None:
        return next((each for each in self.delivered if each.backend == backend), None)


@dataclass(frozen=True, slots=True)
class Requeued:
    """How trying deferred mail again ended, for one user.

    Attributes:
        ids: that were tried.
        text: how it went.
    """

    ids: tuple[str, ...]
    text: str
    ok: bool = True


@dataclass(frozen=True, slots=True)
class Facts:
    """What is so when a run begins.

    Attributes:
        config: the file.
        receipts: whether the proxy keeps any.
        complete_since: mail that was delivered before that may be missing in them, None if none is.
    """

    path: str
    config: "Config" = field(repr=False)
    receipts: bool
    complete_since: float | None = None


class Proxy:
    """Methods may be called from any thread.

    Args:
        cancel: interrupts what may be interrupted.
        told: of waiting, a line.
    """

    def __init__(
        self,
        client: ControlClient,
        *,
        cancel: Cancel | None = None,
        told: Callable[[str], None] = lambda text: None,
        patience: float = PATIENCE,
    ) -> None:
        self._client = client
        self._cancel = cancel
        self._told = told
        self._patience = patience
        self._turns = Turns()
        self._receipts_made: float | None = None

    def facts(self) -> Facts:
        """Raises ControlError, and ConfigError if the file cannot be loaded."""
        from lmtp_proxy.config.read import load_config

        path = self._client.get("/status").object("config").text("path")
        config = load_config(path)
        if config.table is not None:
            from lmtp_proxy.ctl.in_table import with_users

            config = with_users(config)
        try:
            answer = self._client.post("/receipts", {"users": ["postmaster"]}, timeout=_ANSWER)
        except Refusal as refusal:
            if refusal.code not in (404, 409):
                raise
            return Facts(path, config, False)
        self._receipts_made = _made(answer)
        ends = [gap.number("until") for gap in answer.objects("gaps") if not gap.has_null("until")]
        return Facts(path, config, True, max(ends, default=None))

    def route(self, user: str) -> str | None:
        """Where the running proxy sends mail for `user` now."""
        answer = self._asked("/drain", {"users": [user], "timeout": 0})
        with _told_of_odd_answers():
            return answer.object("routes").optional_texts().get(user)

    def route_in_file(self, user: str) -> str | None:
        """What the file says, which the proxy may not have loaded; None if it says nothing. Raises ProxyError."""
        from lmtp_proxy.config.read import ConfigError, load_config

        path = self._patiently(lambda: self._client.get("/status").object("config").text("path"))
        try:
            config = load_config(path)
            if config.table is not None:
                return self._route_in_table(config, config.table.sqlite, user)
        except ConfigError as error:
            raise ProxyError(error.errors[0]) from error
        return config.users.get(config.key_rules.table_key(user))

    @staticmethod
    def _route_in_table(config: "Config", database: str, user: str) -> str | None:
        from lmtp_proxy.ctl.in_table import rows_of
        from lmtp_proxy.table.base import TableError

        key = config.key_rules.table_key(user)
        try:
            return rows_of(database, [key]).get(key)
        except TableError as error:
            raise ProxyError(str(error)) from error

    def preflight(self, backend: str, address: str) -> str:
        """What the backend says to `RCPT TO:<address>`. Raises ProxyError if that is no."""
        recipient = quoted(address)
        answer = self._asked("/preflight", {"backend": backend, "recipients": [recipient]})
        with _told_of_odd_answers():
            if (refused := answer.optional_text("refused")) is not None:
                raise ProxyError(f"{show.place(answer)} does not take mail: {refused}")
            [reply] = answer.objects("replies")
            code, said = reply.integer("code"), f"{backend} said {reply.text('reply')}"
        if code in NO_ROOM:  # it is full, perhaps: no reason for `move` either
            return f"{said}: is there room?"
        if code // 100 != 2:
            raise ProxyError(f"{said}: is the account missing there?" if code // 100 == 5 else said)
        return said

    def move(self, user: str, backend: str, timeout: float, *, interruptible: bool) -> Moved:
        """Edit, reload, drain; again if the proxy was away meanwhile. Raises ProxyError if it was refused, or if it is
        not known how it ended; and Interrupted."""
        progress = _Quiet(self._cancel if interruptible else None)
        latest = time.monotonic() + timeout + self._patience
        until = time.monotonic() + timeout
        while True:
            before = self._instance()
            try:
                left = max(until - time.monotonic(), 1.0)
                order = Order((user,), backend, left, preflight=False, also=True)
                # Who can be interrupted is still where mail and mailbox can be reached.
                outcome = move(self._client, order, progress, self._turns.turn(urgent=not interruptible))
                for line in outcome.document["also"]:
                    self._told(f"{user}: {_ALSO}: {line}")
                return _moved(outcome.status, outcome.document)
            except (Failed, ControlError) as error:
                if not _was_away(error) or time.monotonic() >= latest:
                    raise ProxyError(_line(error)) from error
            # Whether it was loaded, and what the process of before has still under way, is not known: all of it again.
            self._told(f"waiting for lmtp-proxy: it was away while a user was moved to {backend}")
            self._wait_for_end(before, latest, progress)
            progress.check()
            time.sleep(_PAUSE)

    def _instance(self) -> int:
        """The process that answers now."""
        return self._patiently(lambda: self._client.get("/status").integer("pid"))

    def _wait_for_end(self, pid: int, latest: float, progress: "_Quiet") -> None:
        """A process that stops finishes what it has under way, by the routes it had: until then nothing is quiet."""
        while time.monotonic() < latest:
            now = self._instance()
            if now == pid or not _lives(pid):
                return
            progress.check()
            time.sleep(_PAUSE)

    def receipts(self, user: str) -> UserReceipts:
        def ask() -> UserReceipts:
            answer = self._client.post("/receipts", {"users": [user]}, timeout=_ANSWER)
            if "users" not in answer.document:  # a process that has written its last, and is about to end
                raise Unreachable(f"{self._client.path}: lmtp-proxy is stopping", sent=True)
            if self._receipts_made is not None and _made(answer) not in (0.0, self._receipts_made):
                what = "the file of receipts (`config.receipts`) is another one than when this run began"
                raise ProxyError(f"{what}: see why, look for mail that came to the new store early, then run again")
            return _receipts(answer.object("users").object(user))

        return self._patiently(ask)

    def requeue(self, user: str, mta: Mta) -> Requeued:
        """Has the MTA try again what was deferred for `user`. Never raises for what that says."""
        from lmtp_proxy.ctl import requeue
        from lmtp_proxy.ctl.receipts import not_known

        try:
            done = requeue.requeue(self._client, (user,), mta, wait=_REQUEUE)
        except ControlError as error:
            return Requeued((), str(error), False)
        lines = [f"{mail.queue_id or user}: {mail.fate}" for mail in done.mails]
        lines += [f"{' '.join(run.command)}: {run.output}" for run in done.failed]
        lines += filter(None, [not_known(done)])
        return Requeued(tuple(done.ids(user)), "\n".join(lines), done.done)

    def _asked(self, resource: str, document: dict[str, object]) -> Answer:
        return self._patiently(lambda: self._client.post(resource, document, timeout=_ANSWER))

    def _patiently(self, ask: Callable[[], _Value]) -> _Value:
        """Raises ProxyError: an answer that says no, or none within the time."""
        latest = time.monotonic() + self._patience
        said = False
        while True:
            try:
                return ask()
            except Unreachable as error:
                if time.monotonic() >= latest:
                    raise ProxyError(str(error)) from error
                if not said:
                    self._told(f"waiting for lmtp-proxy: {error}")
                    said = True
            except Refusal as refusal:
                if refusal.code < 500 or time.monotonic() >= latest:  # a worker that is restarted is a 5xx
                    raise ProxyError(str(refusal)) from refusal
            except ControlError as error:
                raise ProxyError(str(error)) from error
            time.sleep(_PAUSE)


@contextmanager
def _told_of_odd_answers() -> Iterator[None]:
    try:
        yield
    except (ControlError, ValueError) as error:
        raise ProxyError(str(error)) from error


class _Quiet(Progress):
    """Shows nothing, and ends a wait when the run is to be rolled back."""

    def __init__(self, cancel: Cancel | None) -> None:
        super().__init__(sys.stderr)
        self._cancel = cancel

    def check(self) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise Interrupted

    def waiting(self, text: str, key: object = None, *, at_once: bool = False) -> None:
        self.check()

    def flights(self, waiting: Sequence[Answer]) -> None:
        self.check()


def _made(answer: Answer) -> float:
    """When the file of receipts was made; 0.0 if that is so long ago that it is not known any more."""
    gaps = [gap for gap in answer.objects("gaps") if gap.has_null("from") and not gap.has_null("until")]
    return max((gap.number("until") for gap in gaps), default=0.0)


def _receipts(answer: Answer) -> UserReceipts:
    delivered = tuple(
        BackendReceipt(
            each.text("backend"), each.number("first"), each.number("last"), each.integer("count"),
            each.integer("uncertain"),
        )
        for each in answer.objects("delivered")
    )  # fmt: skip
    unnamed = tuple(
        (each.integer("count"), each.number("first"), each.number("last")) for each in answer.objects("unnamed")
    )
    return UserReceipts(delivered, tuple(each.text("queue_id") for each in answer.objects("deferred")), unnamed)


def _moved(status: int, document: Mapping[str, Any]) -> Moved:
    answer = Answer(document, "move")
    lines = [
        f"{show.moment(record.text('time'))}: {record.text('recipient')} in {record.text('backend')}, from "
        f"{record.text('sender')}, Message-ID {record.optional_text('message_id') or 'not seen'}: "
        f"{record.text('reason')}"
        for record in answer.objects("uncertain")
    ]
    if status == UNCERTAIN and not answer.has_null("after_crash"):
        lines += [" ".join(show.after_crash(answer))]
    waited = count(len(answer.objects("waited_for")), "delivery", "deliveries")
    text = f"generation {answer.integer('generation')}, waited {span(answer.number('waited'))} for {waited}"
    text = "; ".join([text, *(f"{_ALSO}: {line}" for line in answer.texts("also"))])
    [previous] = answer.object("previous").optional_texts().values()
    return Moved(status in (DONE, UNCERTAIN), tuple(lines), text, previous)


def _line(error: Exception) -> str:
    if isinstance(error, Failed):
        return "; ".join([error.text, *error.details])
    return str(error)


def _was_away(error: Exception) -> bool:
    """Whether there was no answer, or one of another process, rather than one that says no."""
    if isinstance(error, Failed):
        return error.status == UNPROVEN and (isinstance(error.__cause__, ControlError) or "restarted" in error.text)
    return isinstance(error, Unreachable)


def _lives(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")
