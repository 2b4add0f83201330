# SPDX-License-Identifier: GPL-3.0-or-later
"""The way back before `moved`: unblocked, and on the old backend again; and what a human is told where that fails.

It finds out where the user is before it touches anything, and never takes them away from where somebody else has put
them. It does not decide whether to go back.
"""

import shlex

from lmtp_proxy.ctl.migrate.journal_file import JournalError
from lmtp_proxy.ctl.migrate.proxy import ProxyError
from lmtp_proxy.ctl.migrate.states import MAY_BE_BLOCKED, MAY_BE_PARKED, NEEDS_ATTENTION, ON_OLD, ONLY_ON, Place
from lmtp_proxy.ctl.migrate.steps import Ask, Ended, Steps, Stop, argument, was


def undo(steps: Steps, why: str, end: str) -> Ended:
    """Back to what was before, and into the state `end`; or an explanation of what a human has to do.

    Raises JournalError.
    """
    if steps.state in ONLY_ON:
        plan = steps.parts.plan
        again = steps.command("migrate", shlex.quote(plan.path))
        how = f"mend it, then `{again}` goes on; or do by hand what is left, then `{steps.command('migrate reset')}`"
        why = f"{why}; mail for the user may be on {plan.new}, so nothing is put back: {how}"
        steps.enter(NEEDS_ATTENTION, error=why)
        return steps.ended(why)
    if problems := put_back(steps, why):
        end, why = NEEDS_ATTENTION, "; ".join([why, *problems, _by_hand(steps)])
    if end != steps.state or end != ON_OLD:
        steps.enter(end, error=None if end == ON_OLD else why, note=why)
    return steps.ended(why)


def release(steps: Steps, state: str) -> Ended:
    """Undoes a park, and a block. state: that the journal has; what may have been done is said by the one in `steps`.

    Raises JournalError.
    """
    problems = put_back(steps, "released", written=state == steps.state)
    steps.state = state
    error = "; ".join([*problems, _by_hand(steps)]) if problems else None
    steps.enter(NEEDS_ATTENTION if problems else ON_OLD, error=error, note="released")
    return steps.ended(error)


def put_back(steps: Steps, why: str, *, written: bool = True) -> list[str]:
    """Returns what could not be put back. written: the journal has the state that is in `steps`."""
    if steps.state not in MAY_BE_PARKED:
        return []
    steps.going_back = True
    if written and not steps.muted:
        try:
            steps.parts.journal.putting_back(steps.parts.run, steps.user, why)
        except JournalError:  # what follows is safe in any state, and cannot wait
            steps.muted = True
    plan, proxy = steps.parts.plan, steps.parts.proxy
    problems = []
    parked = False
    try:
        place = steps.place(route := proxy.route(steps.user))
        if place in (Place.NEW, Place.ELSEWHERE):
            return [f"{was(route)}, and not by this run, so nothing was put back{look(steps)}"]
        # A file that was changed and is not in force yet would park the user with the next reload.
        parked = place is Place.PARK or proxy.route_in_file(steps.user) == plan.park
    except ProxyError as error:
        problems.append(f"is perhaps still on {plan.park}: {error}")
    if steps.state in MAY_BE_BLOCKED and "unblock" in plan.hooks:
        try:
            steps.hook("unblock", plan.old, cancellable=False)
            steps.offline_until = steps.parts.clock()
        except (Stop, Ask) as stop:
            problems.append(f"is still blocked, as {stop}")
    if parked:
        try:
            steps.step(
                "restore",
                lambda: proxy.move(steps.user, plan.old, plan.drain_timeout, interruptible=False),
                lambda moved: moved.text,
            )
        except ProxyError as error:
            problems.append(f"could not be put back on {plan.old}: {error}")
    steps.going_back = False
    return problems


def look(steps: Steps) -> str:
    """What to do where somebody else has moved the user."""
    blocked = "; is still blocked" if steps.state in MAY_BE_BLOCKED and "block" in steps.parts.plan.hooks else ""
    return f"{blocked}: see which store has what, put it right by hand, then `{steps.command('migrate reset')}`"


def _by_hand(steps: Steps) -> str:
    plan = steps.parts.plan
    move = f"lmtp-proxyctl move {argument(steps.user)} {plan.old}"
    unblock = ", then the plan's `unblock`" if "unblock" in plan.hooks else ""
    return f"mend it, then `{steps.command('migrate release')}`, which does as `{move}`{unblock}"
