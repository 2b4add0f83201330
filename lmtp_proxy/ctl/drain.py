# SPDX-License-Identifier: GPL-3.0-or-later
"""Waits until nothing that was handed to a backend can concern some users any more, and says what it waits for.

Also what all verbs have in common: the exit statuses, and how they end well or not. It changes nothing.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from lmtp_proxy.ctl import output as show
from lmtp_proxy.ctl.client import Answer, ControlClient
from lmtp_proxy.streams import say
from lmtp_proxy.text import count, span

DONE, REFUSED, UNCERTAIN, UNPROVEN = 0, 1, 2, 3  # exit statuses
OLD_STORE = "deliveries that it had handed over may still be finishing in the old store"

_ANSWER = 60.0  # seconds for an answer that waits for no delivery; 100,000 users take 3 s to load
_POLL = 1.0
_SETTLE = 300.0
_FEW = 10  # users that are reported one by one
_SHOWN = 20  # of a long list
_AGAIN = 10.0  # seconds between two lines about the same wait
_SHARED = ("generation", "routes", "waiting", "uncertain", "reload", "after_crash")
_PATIENCE = 0.95  # a wait of more than a second is shown; ticks come a little early


class Failed(Exception):
    """A verb has failed.

    Args:
        status: for the shell.
        text: what, where, what to do, in one line.
        details: lines to show before it.
        document: what else --json says.
    """

    def __init__(
        self, status: int, text: str, details: Sequence[str] = (), document: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text
        self.details = tuple(details)
        self.document = dict(document or {})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a verb has to say.

    Attributes:
        lines: for people.
        document: for --json.
        warnings, error: for stderr, one line each.
    """

    document: Mapping[str, Any]
    lines: Sequence[str]
    status: int = DONE
    warnings: Sequence[str] = ()
    error: str = ""


class Progress:
    """Says on `stream` what is waited for, once that takes more than a second, again when it changes or every 10 s.

    state: what is so now, for somebody who interrupts. again: seconds between two lines about the same wait.
    """

    def __init__(self, stream: TextIO | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.state = "nothing was changed"
        self.pending = 0
        self.again = _AGAIN
        self._stream = stream
        self._clock = clock
        self._began: float | None = None
        self._last = 0.0
        self._key: object = None

    def step(self, state: str) -> None:
        """What was waited for is over; from now on `state` is so."""
        self.state = state
        self.pending = 0
        self._began = None
        self._key = None

    def waiting(self, text: str, key: object = None, *, at_once: bool = False) -> None:
        """`text` is waited for (still). key: what it is about, where the text itself counts seconds.

        at_once: the caller has waited for a second.
        """
        now = self._clock()
        key = text if key is None else key
        if self._began is None:
            self._began = now
        if (now - self._began < _PATIENCE and not at_once) or (key == self._key and now - self._last < self.again):
            return
        self._key, self._last = key, now
        say(self._stream, show.wrapped(f"waiting for {text}"))

    def flights(self, waiting: Sequence[Answer]) -> None:
        """These deliveries are waited for."""
        self.pending = len(waiting)
        if waiting:
            self.waiting(show.waiting_text(waiting), tuple(flight.integer("number") for flight in waiting))


@dataclass(slots=True)
class Drained:
    """How a drain ended.

    Attributes:
        answer: the last one.
        done: nothing is waited for any more.
        waited_for: each delivery, as it was seen last.
    """

    answer: Answer
    done: bool
    seconds: float
    waited_for: dict[int, Answer] = field(default_factory=dict)

    @property
    def status(self) -> int:
        if not self.done:
            return UNPROVEN
        return UNCERTAIN if self.answer.objects("uncertain") or not self.answer.has_null("after_crash") else DONE

    @property
    def text(self) -> str:
        """`nothing in flight`, `waited 4.9 s for 1 delivery` or `1 delivery still in flight after 5.0 s`."""
        if waiting := self.answer.objects("waiting"):
            return f"{deliveries(len(waiting))} still in flight after {span(self.seconds)}"
        if not self.done:
            return f"a reload is still under way after {span(self.seconds)}"
        if not self.waited_for:
            return "nothing in flight"
        return f"waited {span(self.seconds)} for {deliveries(len(self.waited_for))}"

    def document(self) -> dict[str, object]:
        document = self.answer.document
        return {
            **{name: document.get(name) for name in _SHARED},
            "done": self.done,
            "waited": round(self.seconds, 3),
            "waited_for": [flight.document for flight in self.waited_for.values()],
        }

    def lines(self, users: Mapping[str, str], end: str, everybody: str = "all users") -> list[str]:
        """For people. users: what is to be said of each; none: of `everybody`. end: what is to be said of all."""
        if len(users) == 1:
            lines = [line for user, text in users.items() for line in show.wrapped(f"{user}: {text}, {end}")]
        elif len(users) <= _FEW:
            lines = [line for user, text in users.items() for line in show.wrapped(f"{user}: {text}")]
            lines += show.wrapped(end if users else f"{everybody}: {end}")
        else:
            kinds = ", ".join(f"{number:,} {text}" for text, number in Counter(users.values()).items())
            lines = show.wrapped(f"{len(users):,} users: {kinds}; {end}")
        waiting, records = self.answer.objects("waiting"), self.answer.objects("uncertain")
        if waiting:
            lines += show.flights(waiting)
        elif len(users) != 1:
            for flight in list(self.waited_for.values())[:_SHOWN]:
                lines += show.wrapped(f"  waited for {show.flight_text(flight, stage=False)}")
        if records:
            what = count(len(records), "uncertain delivery", "uncertain deliveries")
            lines += [f"{what} (dot sent, no reply came):", *show.uncertain(records), *show.wrapped(show.ADVICE, "")]
        return lines + show.after_crash(self.answer)


def drain(
    client: ControlClient,
    request: Mapping[str, object],
    timeout: float,
    progress: Progress,
    instance: str,
    *,
    edited: bool = False,
) -> Drained:
    """Wait until no delivery past its commit check concerns these users, for at most `timeout` seconds.

    request: {"users": [..]} or {"all": true}. instance: of the process that must answer. edited: the caller believes in
    an edit that somebody else reloaded. Raises Failed, with status 1 if that was refused and with 3 after a restart,
    and ControlError.
    """
    began = time.monotonic()
    pause = 0.0
    body: dict[str, object] = {**request, "timeout": pause}
    drained: Drained | None = None
    while True:
        asked = time.monotonic()
        answer = client.post("/drain", body, timeout=pause + _ANSWER, tick=lambda waited: _tick(waited, progress))
        now = time.monotonic()
        if answer.text("instance") != instance:
            raise Failed(UNPROVEN, f"{client.path}: lmtp-proxy was restarted meanwhile; {OLD_STORE}")
        waiting = answer.objects("waiting")
        # Else a reload is under way, and it is not the last one that matters.
        settled = answer.flag("done") or bool(waiting)
        if edited and settled and not answer.has_null("reload") and not (last := answer.object("reload")).flag("ok"):
            when = show.moment(last.text("time"))
            what = f"the reload of {when} was refused, so what the file says since then is not in force"
            raise Failed(REFUSED, what, last.texts("errors"), answer.document)
        drained = drained or Drained(answer, False, 0.0)
        drained.answer, drained.done, drained.seconds = answer, answer.flag("done"), now - began
        drained.waited_for.update((flight.integer("number"), flight) for flight in waiting)
        if drained.done or now - began >= timeout:
            return drained
        progress.flights(waiting)
        if now - asked < pause / 2:  # it should have waited
            time.sleep(0.2)
        # With nothing to wait for it is a reload that is under way, perhaps one of many: so let it take its time.
        pause = min(_POLL if waiting else _SETTLE, max(0.0, began + timeout - now))
        body = {**request, "timeout": pause, "until": answer.value("until")}


def _tick(waited: float, progress: Progress) -> None:
    if waited > _POLL + 1.5:
        progress.waiting("lmtp-proxy to answer: a reload may be under way")


def deliveries(number: int) -> str:
    return count(number, "delivery", "deliveries")
