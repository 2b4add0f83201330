# SPDX-License-Identifier: GPL-3.0-or-later
"""Moves users on all hosts of a fleet: hold on all, drain all, flip all. The order of these is the proof.

1. Look: each host says where the users are, what their names and backends mean there, and whether the new store would
   take their mail. Nothing is changed unless all say the same.
2. Hold: each host parks the users and waits until nothing of theirs can reach their former store any more. Only when
   all have said so does a file name the new store. Before that, whatever goes wrong is taken back.
3. Flip: each host points the users to the new store. From here on there is no way back: a host that does not answer has
   them on hold, or on the new store, and the same command again goes on from there.

Whatever a host did not answer it may have done, or may do yet. So each order is good for a while only, by the clock of
the host, and what takes it back is good from then on. When this process dies, its commands go on to their ends, with
the lock of the fleet's file: who begins the same move again waits for them first.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lmtp_proxy.ctl.client import ControlError
from lmtp_proxy.ctl.drain import DONE, REFUSED, UNPROVEN, Failed, Outcome, Progress
from lmtp_proxy.ctl.fleet.agree import Look, differences, look_of
from lmtp_proxy.ctl.fleet.errands import Errands, Said, listed
from lmtp_proxy.ctl.fleet.file import Fleet
from lmtp_proxy.ctl.fleet.interrupts import INTERRUPTED, Interrupts
from lmtp_proxy.ctl.fleet.report import moved, rehearsed_on_all, states, who
from lmtp_proxy.ctl.move import NO_LINE, RESERVED
from lmtp_proxy.ctl.output import first
from lmtp_proxy.ctl.validity import Moment
from lmtp_proxy.text import safe

HOLD = "hold"
_NOWHERE = "reject"  # in place of no line at all, where no fallback has them: 450 as before
_LOOK = 600.0  # seconds for the preflight of many users; the backend's own deadlines end it before
_SOON = 2.0  # seconds for an answer that is on its way when somebody interrupts
_BACK = 10.0  # seconds to wait for deliveries when a hold is taken back: nothing follows that would need it


@dataclass(frozen=True, slots=True)
class FleetOrder:
    """What to move. Attributes as of move.Order; differ: also if hosts do not say the same."""

    users: Sequence[str]
    backend: str
    timeout: float
    preflight: bool = True
    domain: str | None = None
    also: bool = False
    differ: bool = False
    dry_run: bool = False


@dataclass(slots=True)
class _Park:
    """What was asked of one host in step 2.

    Attributes:
        until: from then on it can not be carried out any more.
    """

    until: Moment
    said: Said | None = None


@dataclass(slots=True)
class _Back:
    """How holds were taken back. stuck: host -> why that is not known."""

    stuck: dict[str, str] = field(default_factory=dict)
    asked: bool = False


def move_on_all(fleet: Fleet, order: FleetOrder, progress: Progress, interrupts: Interrupts) -> Outcome:
    """Whoever calls it holds the lock of the fleet's file. Raises Failed."""
    return _Move(fleet, order, progress, interrupts).run()


class _Move:
    def __init__(self, fleet: Fleet, order: FleetOrder, progress: Progress, interrupts: Interrupts) -> None:
        self._fleet = fleet
        self._order = order
        self._progress = progress
        self._interrupts = interrupts
        self._names = [host.name for host in fleet.hosts]
        self._park = order.backend if order.backend in RESERVED else HOLD
        self._looks: dict[str, Look] = {}
        self._parks: dict[str, _Park] = {}
        self._flips: dict[str, Said] = {}

    def run(self) -> Outcome:
        order = self._order
        warnings = self._look()
        if order.dry_run:
            return rehearsed_on_all(list(self._looks.values()), order.users, order.backend, warnings)
        began = time.monotonic()
        parked = self._to_be_parked()
        if parked:
            self._hold(parked)
        if order.backend not in RESERVED:
            self._flip(parked)
        seconds = time.monotonic() - began
        parks = {name: park.said for name, park in self._parks.items() if park.said is not None}
        return moved(self._looks, parks, self._flips or parks, order.users, order.backend, seconds, warnings)

    # -- 1 ------------------------------------------------------------------------------------------------------------

    def _look(self) -> list[str]:
        """Nothing is changed by it. Returns warnings; raises Failed."""
        order = self._order
        words = ["--json", "move", "--dry-run", "--file", "-", *self._options(), order.backend]
        if not order.preflight:
            words.insert(3, "--no-preflight")
        told = listed(order.users)
        errands = Errands(self._fleet, dict.fromkeys(self._names, (words, told)), _LOOK)
        errands.wait(self._interrupts, self._progress, f"look at where {who(order.users)} are")
        errands.give_up("interrupted")
        if self._interrupts.count:
            raise Failed(INTERRUPTED, "nothing was changed; interrupted")
        said = self._in_order(errands.said)
        lines: list[str] = []
        for each in said.values():
            try:
                if each.status == DONE and each.answer is not None:
                    self._looks[each.host] = look_of(each.host, each.answer, order.users, each.at)
                    continue
                lines += each.details
            except ControlError as error:
                lines.append(f"{each.host}: {error}")
        if lines:
            raise Failed(REFUSED, "nothing was changed on any host", lines)
        looks = list(self._looks.values())
        found = differences(looks, order.users, order.backend)
        if found and not order.differ:
            what = "the hosts do not say the same; nothing was changed on any; --differ moves all the same"
            raise Failed(REFUSED, what, first(found))
        answers = [(each.host, each.answer) for each in said.values() if each.answer is not None]
        return [
            *(f"{name}: {warning}" for name, answer in answers for warning in answer.texts("warnings")),
            *(f"{name}: also in force then, by an edit of somebody else: {line}" for name, answer in answers
              for line in answer.texts("also")),
            *(f"the hosts do not say the same: {line}" for line in first(found)),
        ]  # fmt: skip

    def _options(self) -> list[str]:
        order = self._order
        return [*(["--also"] if order.also else []), *(["--domain", order.domain] if order.domain else [])]

    def _in_order(self, said: Mapping[str, Said]) -> dict[str, Said]:
        return {name: said[name] for name in self._names if name in said}

    # -- 2 ------------------------------------------------------------------------------------------------------------

    def _to_be_parked(self) -> list[str]:
        """Those whose line does not name the backend already, on every host. Raises Failed.

        That is for whom it could not be taken back.
        """
        order, looks = self._order, self._looks.values()
        users = [user for user in order.users if any(look.lines[user] != order.backend for look in looks)]
        lines = [
            f"{safe(user)}: is on no line on {look.host}, so {self._park} could not be taken back: write the line first"
            for user in users
            if user.startswith("@")
            for look in looks
            if look.lines[user] is None
        ]
        if lines:
            raise Failed(REFUSED, "nothing was changed on any host", first(lines))
        return users if order.backend not in RESERVED else list(order.users)

    def _hold(self, users: Sequence[str]) -> None:
        """Until all have parked them and are quiet. Raises Failed, after all was taken back."""
        orders = {}
        for name in self._names:
            self._parks[name] = _Park(self._until(name))
            orders[name] = self._words(name, self._park, self._order.timeout), listed(users)
        self._progress.step(f"{who(users)} may be on {self._park} on some hosts")
        errands = Errands(self._fleet, orders, self._longest(), locked=True)
        doing = f"have {who(users)} on {self._park}, and be quiet"
        if not errands.wait(self._interrupts, self._progress, doing):
            errands.wait(self._interrupts, self._progress, doing, _SOON)  # what is known need not be waited out
        errands.give_up("interrupted")
        lines: list[str] = []
        for name, said in self._in_order(errands.said).items():
            self._parks[name].said = said
            lines += said.details if not said.done else self._moved_meanwhile(name, said, users)
        if not lines and not self._interrupts.count:
            self._progress.step(f"{who(users)} on {self._park} on all hosts")
            return
        self._fail(users, lines)

    def _moved_meanwhile(self, name: str, said: Said, users: Sequence[str]) -> list[str]:
        """Who was not found where they were a moment ago: somebody else is at work."""
        assert said.answer is not None
        found, seen = said.answer.document.get("previous"), self._looks[name].lines
        if not isinstance(found, dict) or set(found) != set(users):
            return [f"{name}: it answers about other users"]
        return [
            f"{name}: {safe(user)}: was on {found[user] or 'no line'} and not on {seen[user] or 'no line'} any more"
            for user in users
            if found[user] != seen[user]
        ][:1]

    def _fail(self, users: Sequence[str], lines: Sequence[str]) -> None:
        """Takes back what was parked, and raises Failed."""
        interrupted = self._interrupts.count > 0
        back = self._take_back(users)
        status = INTERRUPTED if interrupted else REFUSED
        stuck = [f"{name}: {safe(text)}" for name, text in back.stuck.items()]
        document: dict[str, object] = {"stuck": dict(back.stuck)}
        if stuck:
            names = " and ".join(back.stuck)
            end = f"{who(users)} may be on {self._park} still on {names}: the same command again goes on from there"
        elif back.asked:
            end = f"{self._park} was taken back, so nothing was changed on any host"
        else:
            end = "nothing was changed on any host"
        if interrupted:
            end = f"interrupted; {end}"
        raise Failed(status, end, [*lines, *stuck], document)

    def _take_back(self, users: Sequence[str]) -> _Back:
        """Everybody back to where they were; on hosts that have refused, nothing was changed."""
        back = _Back()
        rounds: dict[str, list[tuple[str, list[str]]]] = {}  # host -> what is to be said there, one after another
        for name, park in self._parks.items():
            if park.said is not None and park.said.refused:
                continue
            groups: dict[str, list[str]] = {}
            for user in users:
                if self._was_there(name, user) != self._park:
                    groups.setdefault(self._was_there(name, user) or _NOWHERE, []).append(user)
            rounds[name] = list(groups.items())
        while any(rounds.values()):
            orders = {}
            back.asked = True
            for name, steps in rounds.items():
                if not steps:
                    continue
                look = self._looks[name]
                place, group = steps.pop(0)
                allowed = [self._park, place, *([NO_LINE] if any(look.lines[user] is None for user in group) else [])]
                words = self._words(
                    name, place, min(_BACK, self._fleet.patience), only_from=",".join(allowed), later=True
                )
                if (said := self._parks[name].said) is None or said.answer is None:
                    words[3:3] = ["--not-before", str(self._parks[name].until)]
                orders[name] = words, listed(group)
            errands = Errands(self._fleet, orders, self._longest(), locked=True)
            doing = f"take {self._park} back"
            if not errands.wait(self._interrupts, self._progress, doing):
                errands.leave("was not waited for")
            for name, said in errands.said.items():
                if not (said.done or (said.answer is not None and said.answer.document.get("reloaded"))):
                    back.stuck.setdefault(name, f"{self._park} could not be taken back: {said.text}")
        return back

    def _was_there(self, name: str, user: str) -> str | None:
        """As the hold found it under the lock of the host's file, or as it was seen before; None if nowhere."""
        said, look = self._parks[name].said, self._looks[name]
        found = said.answer.document.get("previous") if said is not None and said.answer is not None else None
        line = found.get(user) if isinstance(found, dict) else look.lines[user]
        return line if isinstance(line, str) else look.places[user]

    # -- 3 ------------------------------------------------------------------------------------------------------------

    def _flip(self, parked: Sequence[str]) -> None:
        """Raises Failed."""
        order = self._order
        allowed, told = f"{HOLD},{order.backend}", listed(order.users)
        orders = {
            name: (self._words(name, order.backend, order.timeout, only_from=allowed), told) for name in self._names
        }
        errands = Errands(self._fleet, orders, self._longest(), locked=True)
        doing = f"have {who(order.users)} on {order.backend}"
        done = errands.wait(self._interrupts, self._progress, doing)
        if not done:
            what = f"{doing}: there is no way back; interrupt once more to leave it to them"
            self._progress.waiting(f"the hosts to {what}", at_once=True)
            done = errands.wait(self._interrupts, self._progress, what)
        errands.leave("was not waited for, and may do it yet")
        self._flips = self._in_order(errands.said)
        bad = [said for said in self._flips.values() if not said.done]
        if not bad:
            return
        if len(bad) == len(self._flips) and all(said.refused for said in bad):
            self._fail(parked, [line for said in bad for line in said.details])
        lines = states(self._flips, order.users, order.backend, parked=bool(parked))
        names = " and ".join(said.host for said in bad)
        what = f"{who(order.users)} on {order.backend}, but not known to be so, and quiet, on {names}"
        again = "see what is wrong there, and give the same command again"
        document: dict[str, object] = {"hosts": {name: _state(said) for name, said in self._flips.items()}}
        if not done:
            raise Failed(INTERRUPTED, f"{what}; interrupted; {again}", lines, document)
        raise Failed(UNPROVEN, f"{what}: {again}", lines, document)

    # -- words --------------------------------------------------------------------------------------------------------

    def _words(
        self, name: str, backend: str, timeout: float, only_from: str | None = None, *, later: bool = False
    ) -> list[str]:
        also = ["--also"] if self._order.also else []
        only = ["--only-from", only_from] if only_from is not None else []
        until = ["--not-after", str(self._until(name, later=later))]
        seconds = ["--timeout", f"{timeout:g}"]
        return ["--json", "move", "--no-preflight", *also, *until, *only, *seconds, "--file", "-", backend]

    def _until(self, name: str, *, later: bool = False) -> Moment:
        """Until when an order that is given now is good there. later: it may have to wait for another one's end."""
        look = self._looks[name]
        seconds = time.monotonic() - look.at + self._fleet.patience * (3 if later else 1)
        return look.clock.later(seconds)

    def _longest(self) -> float:
        """Seconds for one order: it may have to wait for its time, for a lock, and for deliveries."""
        return self._order.timeout + 4 * self._fleet.patience


def _state(said: Said) -> dict[str, object]:
    return {"status": said.status, "error": None if said.done else said.text}
