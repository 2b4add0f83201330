# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes one user from the old backend to the new one, from wherever they are on that way.

The one place where states and actions meet: a state is entered in the journal, and then its action begins. Before
`moved` whatever fails puts the user back; from there on they only go forward, or wait for a human.
"""

import logging

from lmtp_proxy.ctl.migrate.journal import UserRow
from lmtp_proxy.ctl.migrate.journal_file import JournalError
from lmtp_proxy.ctl.migrate.proxy import Interrupted, ProxyError, Requeued, UserReceipts
from lmtp_proxy.ctl.migrate.states import (
    BLOCKED,
    DONE,
    FAILED,
    FINAL_SYNC,
    MAY_BE_PARKED,
    MIRROR_ALLOWED,
    MOVED,
    NEEDS_ATTENTION,
    ON_OLD,
    ONLY_ON,
    PARKED,
    REDIRECTED,
    SYNCING,
    Place,
    Way,
    way,
)
from lmtp_proxy.ctl.migrate.steps import (
    IS_DONE,
    Ask,
    Ended,
    Parts,
    Steps,
    Stop,
    half_way_by_another,
    offline_since,
    was,
)
from lmtp_proxy.ctl.migrate.way_back import look, put_back, undo
from lmtp_proxy.text import zoned_time

_log = logging.getLogger(__name__)  # for mistakes of ours alone; without a handler that is the standard error

_MOVE_AGAIN = 120.0  # seconds: a user who must go forward is offline until the file can be changed
_LONGEST_PAUSE = 15.0


class JournalFailed(Exception):
    """A state could not be entered, so nothing goes on. text: why, and what is so now."""


class _Copied(Exception):
    """It is not the time for more. seconds: of the last sync."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class UserRun:
    """parts: with which it is done."""

    def __init__(self, user: str, parts: Parts) -> None:
        self.user = user
        self.parts = parts
        self._steps = Steps(user, parts)
        self._guard_since = 0.0

    def run(self) -> Ended:
        """All that can be done for the user now. Raises JournalFailed."""
        steps = self._steps
        try:
            return self._run()
        except JournalError as error:
            steps.muted = True
            text = str(error)
            if steps.state in ONLY_ON:
                text += f"; the user stays as they are, perhaps blocked, until {steps.command('migrate PLAN')} goes on"
            else:
                text = "; ".join([text, *put_back(steps, text)])
            raise JournalFailed(text) from error

    def _run(self) -> Ended:
        journal, steps = self.parts.journal, self._steps
        row = journal.user(self.user)
        if row is not None:
            steps.state, self._guard_since = row.state, row.guard_since
        try:
            route = self.parts.proxy.route(self.user)
        except ProxyError as error:
            if steps.state in (ON_OLD, FAILED):
                steps.enter(FAILED, error=str(error))
            return Ended(steps.state, None, f"nothing was done: {error}")
        undoing = row.error if row is not None and steps.state in MAY_BE_PARKED else None
        stuck = journal.stuck(self.user) if steps.state == NEEDS_ATTENTION else None
        taken = way(steps.state, steps.place(route), undoing=undoing is not None, stuck=stuck)
        if (why := self._skipped(taken, route, row, stuck)) is not None:
            return Ended(steps.state, None, why, skipped=True)
        if steps.state == NEEDS_ATTENTION and stuck is not None and taken is Way.GO_ON:
            steps.enter(stuck, note="taken up again")
        if steps.state in MAY_BE_PARKED or steps.state in ONLY_ON:
            steps.offline_from = offline_since(journal.steps(self.user))
            steps.receipt = journal.receipt(self.user) or {}
        try:
            self._follow(taken, undoing, route)
        except _Copied as copied:
            steps.enter(ON_OLD, note="copied")
            return Ended(steps.state, copied=copied.seconds)
        except Stop as stop:
            return undo(steps, str(stop), FAILED)
        except Interrupted:
            return undo(steps, "interrupted", ON_OLD)
        except Ask as ask:
            return undo(steps, str(ask), NEEDS_ATTENTION)
        except ProxyError as error:
            return undo(steps, str(error), FAILED)
        except JournalError:
            raise
        except Exception as error:  # noqa: BLE001  (a mistake of ours must not leave a user parked)
            _log.exception("%s: internal error", self.user)
            return undo(steps, f"internal error: {type(error).__name__}: {error}", FAILED)
        return steps.ended(None)

    def _follow(self, taken: Way, undoing: str | None, route: str | None) -> None:
        steps = self._steps
        if taken is Way.ASK:
            raise Ask(f"{was(route)}: somebody else moved the user meanwhile{look(steps)}")
        if taken is Way.PUT_BACK:
            raise Stop(undoing or "was being put back")
        if taken is Way.AGAIN:
            if problems := put_back(steps, "its run died", written=False):
                raise Stop(f"its run died, and the first try to put the user back failed: {'; '.join(problems)}")
            steps.enter(ON_OLD, note="released, as its run died")
            steps.offline_from = steps.offline_until = None
        if taken in (Way.BEGIN, Way.AGAIN):
            steps.receipt = {}
            seconds = self._copy()
            self._check_place()  # the sync may have taken hours
            if not self.parts.cuts_over(seconds):
                raise _Copied(seconds)
        if taken is not Way.GO_ON:
            self._cut_over()
        self._forward()

    def _skipped(self, taken: Way, route: str | None, row: UserRow | None, stuck: str | None) -> str | None:
        steps = self._steps
        if taken is Way.SKIP_DONE:
            if steps.place(route) is Place.NEW:
                return IS_DONE
            return f"is done, but {was(route)}: to migrate anew: `{steps.command('migrate reset')}`"
        if taken is Way.SKIP_ATTENTION:
            return f"needs attention: {row.error if row else None}"
        if taken is Way.SKIP_PLACE:
            return f"{was(route)}, not on {self.parts.plan.old}"
        if row is not None:
            return half_way_by_another(self.parts.journal, self.parts.plan, row, stuck)
        return None

    # --- the way -----------------------------------------------------------------------------------------------------

    def _copy(self) -> float:
        """The initial sync; again while one took so long that much may have come meanwhile. Seconds of the last one."""
        plan = self.parts.plan
        self._guard()
        self._steps.advance(SYNCING)
        for number in range(plan.max_syncs):
            if (seconds := self._mirror("sync", number + 1)) <= plan.sync_again_above:
                break
        return seconds

    def _cut_over(self) -> None:
        """Nothing reaches the old mailbox any more, and the new one is the same as the old."""
        plan, proxy, steps, clock = self.parts.plan, self.parts.proxy, self._steps, self.parts.clock
        steps.step("preflight", lambda: proxy.preflight(plan.new, plan.address(self.user)))
        steps.check()
        steps.advance(PARKED)
        steps.remember(parked_from=steps.receipt.get("parked_from") or clock())
        moved = steps.step(
            "park",
            lambda: proxy.move(self.user, plan.park, plan.drain_timeout, interruptible=True),
            lambda moved: "\n".join([moved.text, *moved.uncertain]),
        )
        quiet = (self.parts.wall or clock)()
        if not moved.quiet:
            raise Stop(f"park: not all is quiet after {plan.drain_timeout:g} s: {moved.text}")
        if moved.uncertain:
            steps.remember(uncertain=list(moved.uncertain))
            if not plan.go_on_if_uncertain:
                what = "of deliveries to the old backend nobody knows the outcome (`on_uncertain: go_on` goes on)"
                raise Stop(f"park: {what}: {'; '.join(moved.uncertain)}")
        steps.check()
        steps.advance(BLOCKED)
        if "block" in plan.hooks:
            steps.offline_from = steps.offline_from or clock()
            steps.hook("block", plan.old)
        self._guard()
        steps.advance(FINAL_SYNC)
        self._mirror("final_sync")
        steps.hook("verify", plan.old)
        self._check_quiet(quiet)
        steps.check()

    def _forward(self) -> None:
        """From here on there is no way back."""
        plan, steps = self.parts.plan, self._steps
        steps.advance(MOVED)
        self._move()
        requeued = self.parts.beside(self._requeue)
        try:
            steps.advance(REDIRECTED)
            steps.hook("redirect", plan.new)
            steps.hook("unblock", plan.new)
        except Stop:
            self._close(requeued())
            raise
        steps.offline_until = self.parts.clock()
        self._close(requeued())
        steps.advance(DONE)

    def _move(self) -> None:
        """Again while the file cannot be changed: it may be a moment's matter, and the user waits."""
        plan, proxy, steps = self.parts.plan, self.parts.proxy, self._steps
        latest = self.parts.clock() + _MOVE_AGAIN
        pause = 1.0
        while True:
            try:
                moved = steps.step(
                    "move",
                    lambda: proxy.move(self.user, plan.new, plan.drain_timeout, interruptible=False),
                    lambda moved: moved.text,
                )
            except ProxyError as error:
                place = steps.place(route := proxy.route(self.user))
                if place not in (Place.PARK, Place.NEW):
                    raise Ask(f"{was(route)}: somebody else moved the user meanwhile: {error}") from error
                if self.parts.clock() >= latest:
                    raise
                self.parts.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                steps.remember(parked_until=self.parts.clock())
                if moved.previous not in (plan.park, plan.new):
                    what = f"was on {moved.previous} and not on {plan.park} before the move: somebody else did that"
                    raise Ask(f"{what}; {moved.previous} may have mail that the final sync did not see")
                return

    def _requeue(self) -> Requeued:
        """What was deferred while the user was parked comes at once; if not, it comes later, and that is all."""
        mta = self.parts.plan.requeue
        if mta is None:
            return Requeued((), "")
        try:
            return self._steps.step(
                "requeue", lambda: self.parts.proxy.requeue(self.user, mta), lambda requeued: requeued.text
            )
        except (ProxyError, JournalError) as error:
            return Requeued((), str(error), False)

    def _close(self, requeued: Requeued) -> None:
        """The receipt. What the proxy does not say is missing in it, and holds up nobody."""
        plan, steps = self.parts.plan, self._steps
        try:
            seen = self.parts.proxy.receipts(self.user)
        except ProxyError:
            seen = UserReceipts()
        old, new = seen.on(plan.old), seen.on(plan.new)
        parked_from = steps.receipt.get("parked_from")
        steps.remember(
            last_on_old=old.last if old else None,
            first_on_new=new.first if new else None,
            deferred=list(dict.fromkeys([*requeued.ids, *seen.deferred])),
            requeued=list(requeued.ids),
            unnamed=seen.unnamed_since(parked_from) if isinstance(parked_from, float) else 0,
            offline={"from": steps.offline_from, "until": steps.offline_until} if steps.offline_from else None,
        )

    # --- guards ------------------------------------------------------------------------------------------------------

    def _mirror(self, name: str, first: int = 1) -> float:
        """A mirror sync, which deletes in the new store what the old one does not have. Seconds of its last run."""
        assert self._steps.state in MIRROR_ALLOWED

        def before() -> None:
            self._check_place()
            self._guard()

        return self._steps.hook(name, self.parts.plan.old, first=first, before=before)

    def _guard(self) -> None:
        """Before each mirror sync."""
        plan = self.parts.plan
        seen = self.parts.proxy.receipts(self.user).on(plan.new)
        if seen is not None and seen.last > self._guard_since:
            when = zoned_time(seen.last)
            raise Ask(
                f"mail was delivered to {plan.new} for this user, last {when}"
                f"{' (perhaps: the outcome is uncertain)' if seen.count <= seen.uncertain else ''}, and a sync would "
                f"delete it there; no more is done in {plan.new}: merge it by hand, then "
                f"`{self._steps.command('migrate reset')}`"
            )

    def _check_quiet(self, quiet: float) -> None:
        """Nothing reached either store since the park; else the final sync did not see it, or deleted it."""
        plan, proxy, steps = self.parts.plan, self.parts.proxy, self._steps
        seen = proxy.receipts(self.user)
        if (new := seen.on(plan.new)) is not None and new.last > self._guard_since:
            raise Ask(
                f"mail was delivered to {plan.new} for this user while the final sync ran, which may have deleted it: "
                f"look there, merge by hand, then `{steps.command('migrate reset')}`"
            )
        if (old := seen.on(plan.old)) is not None and old.last > quiet:
            raise Stop(f"mail was delivered to {plan.old} after the user was parked: somebody else moved the user")
        self._check_place()

    def _check_place(self) -> None:
        """The user is where this run has left them; else they are in somebody else's hands, another run's perhaps."""
        steps = self._steps
        parked = steps.state in MAY_BE_PARKED
        place = steps.place(route := self.parts.proxy.route(self.user))
        if place is Place.OLD and parked:
            raise Stop(f"{was(route)} again: somebody else moved the user meanwhile")
        if place is not (Place.PARK if parked else Place.OLD):
            raise Ask(f"{was(route)}: somebody else moved the user meanwhile{look(steps)}")
