# SPDX-License-Identifier: GPL-3.0-or-later
"""Reloads, one at a time: who asks for one gets a load that begins after the asking, however many ask at once.

What is loaded, and by whom, is a matter of the subclass.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from gevent.event import AsyncResult, Event

from lmtp_proxy.text import iso_time

_log = logging.getLogger(__name__)


_REMEMBERED = 20  # reloads and drains
_NAMED = 3  # users of one of them


@dataclass(frozen=True, slots=True)
class MovedUsers:
    """Some users whom a reload put elsewhere.

    Attributes:
        before: their backend, None for nowhere.
        after: the same.
        count: of all of them.
        users: the first of them.
    """

    before: str | None
    after: str | None
    count: int
    users: tuple[str, ...]


class Reloaded(NamedTuple):
    """A reload that changed the generation in force.

    Attributes:
        generation: its number.
        changes: as text.
        seconds: how long it took.
        restart: keys whose change waits for a restart.
        when: in seconds since the epoch.
        moved: users, the largest groups first.
        named: the same, a line for each of the first users.
        nothing: there was nothing new in config.table, so that the generation is the one of before.
    """

    generation: int
    changes: str
    seconds: float
    restart: tuple[str, ...]
    when: float
    moved: tuple[MovedUsers, ...] = ()
    named: tuple[str, ...] = ()
    nothing: bool = False


class ReloadRefused(NamedTuple):
    """A reload that changed nothing.

    Attributes:
        errors: one line each, as ConfigError has them.
        when: in seconds since the epoch.
        torn: where some processes have changed something nevertheless, which; one line.
        partly: what has changed in all of them, where it was the table alone that was refused; one line.
    """

    errors: tuple[str, ...]
    when: float
    torn: str = ""
    partly: str = ""


@dataclass(slots=True)
class NotedDrain:
    """A drain that somebody asked for, and what it has come to.

    Attributes:
        when: it began, in seconds since the epoch.
        count: of the users that it is for, None for all.
        users: the first of them.
        done: nothing is left to wait for.
        waited: seconds.
        uncertain: deliveries of the last hour for these users whose outcome is unknown.
        began: of the monotonic clock: nobody sets that back.
    """

    when: float
    count: int | None
    users: tuple[str, ...]
    done: bool = False
    waited: float = 0.0
    uncertain: int = 0
    began: float = field(default_factory=time.monotonic)

    def ended(self, done: bool, uncertain: int) -> None:
        """It was answered."""
        self.done, self.uncertain = done, uncertain
        self.waited = time.monotonic() - self.began


Outcome = Reloaded | ReloadRefused


def reload_json(last: Outcome | None) -> dict[str, object] | None:
    """How the last reload ended; None before the first."""
    if last is None:
        return None
    if isinstance(last, ReloadRefused):
        return {"time": iso_time(last.when), "ok": False, "errors": list(last.errors)}
    return {"time": iso_time(last.when), "ok": True, "generation": last.generation, "changes": last.changes}


def moved_json(moved: Sequence[MovedUsers]) -> list[dict[str, object]]:
    """As JSON values, which `moved_from` reads."""
    return [{"from": each.before, "to": each.after, "count": each.count, "users": list(each.users)} for each in moved]


def moved_from(groups: Sequence[dict[str, Any]]) -> tuple[MovedUsers, ...]:
    """Of groups with `from`, `to` or both, `count` and `users`."""
    found = (
        MovedUsers(each.get("from"), each.get("to"), each["count"], tuple(each["users"][:_NAMED])) for each in groups
    )
    return tuple(sorted(found, key=lambda each: -each.count)[:_REMEMBERED])


def history_json(history: Sequence[Outcome | NotedDrain]) -> list[dict[str, object]]:
    """The last of them first."""
    return [_event_json(event) for event in reversed(history)]


def _in_short(outcome: Outcome) -> str:
    if isinstance(outcome, Reloaded):
        return f"generation {outcome.generation}: {outcome.changes}"
    return f"the last reload was refused: {outcome.torn or outcome.errors[0]}"


def _event_json(event: Outcome | NotedDrain) -> dict[str, object]:
    if isinstance(event, NotedDrain):
        values = asdict(event)
        del values["began"]
        return {"kind": "drain", "time": iso_time(values.pop("when")), **values, "users": list(event.users)}
    told = {"kind": "reload", **(reload_json(event) or {})}
    return {**told, "moved": moved_json(event.moved)} if isinstance(event, Reloaded) else told


class Reloads(ABC):
    """Serves requests for reloads.

    Attributes:
        last_reload: the last one's outcome, None before the first; of the files, or a look at config.table that has put
            something in force.
        table_refused: why the last look at config.table has changed nothing, None if it is well. A reload of the files
            says nothing of that.
        loading_since: when the reload under way began (time.monotonic), None if there is none.
        follows_table: config.table is looked at by itself; whoever wants to know what is in force asks for a look.
        done: how many changed the generation.
        refused: how many did not.
        history: the last outcomes and drains.
        tell: called with each outcome as one line; must not wait.
    """

    def __init__(self) -> None:
        self.tell: Callable[[str], None] = lambda _: None
        self._wanted = Event()
        self._begun = self._done = 0
        self._settled = Event()
        self._waiting: list[tuple[AsyncResult[Outcome], bool]] = []  # whether it is for the table alone
        self._force = False
        self._files_wanted = self._table_wanted = False
        self._files_refused = False
        self.follows_table = False
        self.table_refused: ReloadRefused | None = None
        self.last_reload: Outcome | None = None
        self.loading_since: float | None = None
        self.done = self.refused = 0
        self.history: deque[Outcome | NotedDrain] = deque(maxlen=_REMEMBERED)

    @abstractmethod
    def reload(self, *, force: bool = False, table_alone: bool = False) -> Outcome:
        """Load now, and return when what was loaded is in force, or why it is not.

        Args:
            force: whatever config.max_removed says.
            table_alone: the files are not looked at, but only what has changed in config.table.
        """

    def request_reload(self, *, table_alone: bool = False) -> None:
        """Ask for a reload, and return at once. table_alone: see `reload`."""
        self._want(table_alone=table_alone)

    def _want(self, *, table_alone: bool) -> None:
        self._files_wanted = self._files_wanted or not table_alone
        # With what the files say, what the table says, too: whoever reloads has changed something.
        self._table_wanted = self._table_wanted or table_alone or self.follows_table
        self._wanted.set()

    def reload_now(self, *, force: bool = False, table_alone: bool = False) -> Outcome:
        """Wait for a load that begins after this call, and for its swap. force, table_alone: see `reload`."""
        self._force = self._force or force
        result: AsyncResult[Outcome] = AsyncResult()
        self._waiting.append((result, table_alone))
        self._want(table_alone=table_alone)
        outcome = result.get()
        assert outcome is not None
        return outcome

    def note_drain(self, users: Sequence[str] | None) -> NotedDrain:
        """Somebody waits for these users, None for all; what the caller writes into the answer is remembered.

        Asked for again before it was done, it is the same drain.
        """
        count, named = None if users is None else len(users), tuple((users or ())[:_NAMED])
        for event in self.history:
            if isinstance(event, NotedDrain) and not event.done and (event.count, event.users) == (count, named):
                return event
        drained = NotedDrain(time.time(), count, named)
        self.history.append(drained)
        return drained

    def settle(self) -> None:
        """Wait until every reload is done that was asked for before this call; not for later ones."""
        last = self._begun + self._wanted.is_set()
        while self._done < last:
            self._settled.clear()
            self._settled.wait()

    @property
    def last_outcome(self) -> Outcome | None:
        """What somebody has to know who believes that a change of theirs is in force: the refusal, if there is one."""
        return self.table_refused or self.last_reload

    def run(self) -> None:
        """Serve requests for ever."""
        while True:
            self._wanted.wait()
            self._wanted.clear()
            waiting, self._waiting = self._waiting, []
            force, self._force = self._force, False
            files, self._files_wanted = self._files_wanted, False
            table, self._table_wanted = self._table_wanted, False
            self._begun += 1
            self.loading_since = time.monotonic()
            # Each by itself: what becomes of the one says nothing of the other, and a look at the table that is asked
            # for begins after the asking.
            of_files = self._reload_files(force=force) if files else None
            of_table = self._look_at_table() if table else None
            self.loading_since = None
            self._done += 1
            for result, table_alone in waiting:
                result.set(of_table if table_alone or of_files is None else _both(of_files, of_table))
            self._settled.set()

    def _reload_files(self, *, force: bool) -> Outcome:
        outcome = self._guarded(force=force, table_alone=False)
        self._files_refused = isinstance(outcome, ReloadRefused)
        self._remember(outcome)
        self.last_reload = outcome
        return outcome

    def _look_at_table(self) -> Outcome:
        outcome = self._guarded(force=False, table_alone=True)
        if isinstance(outcome, ReloadRefused):
            if self.table_refused is None or self.table_refused.errors != outcome.errors:  # it is tried again and again
                self._remember(outcome)
            self.table_refused = outcome
            return outcome
        self.table_refused = None
        if not outcome.nothing:
            self._remember(outcome)
            if not self._files_refused:  # which goes on to be so
                self.last_reload = outcome
        return outcome

    def _remember(self, outcome: Outcome) -> None:
        self.history.append(outcome)
        if isinstance(outcome, ReloadRefused):
            self.refused += 1
        else:
            self.done += 1
        self.tell(_in_short(outcome))

    def _guarded(self, *, force: bool, table_alone: bool) -> Outcome:
        try:
            return self.reload(force=force, table_alone=table_alone)
        except Exception as error:  # noqa: BLE001  (a bug met in one reload must not be the end of all reloads)
            _log.exception("reload failed by an internal error; what was active stays active: %r", self)
            return ReloadRefused((f"internal error: {error!r}; the log has more",), time.time())


def _both(files: Outcome, table: Outcome | None) -> Outcome:
    """For who has asked for a reload, and means all that is written."""
    if isinstance(files, ReloadRefused) or table is None:
        return files
    if isinstance(table, ReloadRefused):
        what = "is active with what the files say; config.table could not be taken in"
        return table._replace(partly=f"generation {files.generation} {what}")
    if table.nothing:
        return files
    return table._replace(
        changes=f"{files.changes}; {table.changes}",
        seconds=files.seconds + table.seconds,
        restart=files.restart,
        moved=(*files.moved, *table.moved),
        named=(*files.named, *table.named),
    )
