# SPDX-License-Identifier: GPL-3.0-or-later
"""What is looked at before anything begins, and who is to be migrated: the plan beside what the proxy has.

It changes nothing, and starts none of the site's commands.
"""

import os
import shlex
import shutil
from collections.abc import Iterable, Sequence
from typing import Protocol

from lmtp_proxy.ctl.migrate.journal import Run, UserRow
from lmtp_proxy.ctl.migrate.plan import Plan
from lmtp_proxy.ctl.migrate.proxy import Facts, ProxyError
from lmtp_proxy.ctl.migrate.states import IN_HAND, MAY_BE_PARKED, NEEDS_ATTENTION, ON_OLD, ONLY_ON, Place, Way, way
from lmtp_proxy.ctl.migrate.steps import was
from lmtp_proxy.text import safe

_WAYS = {
    Way.BEGIN: "sync, park, block, final sync, move to {to}, redirect, unblock",
    Way.AGAIN: "release, as its run died; then all from the initial sync on",
    Way.PARK: "go on where its run died: park again, block, final sync, move to {to}, redirect, unblock",
    Way.PUT_BACK: "put back on {from}, as its run was about to",
    Way.GO_ON: "go on where its run died: move to {to}, redirect, unblock",
    Way.ASK: "nothing: somebody else moved the user; will need attention",
    Way.SKIP_DONE: "nothing: is done",
    Way.SKIP_ATTENTION: "nothing: needs attention",
}


def problems(plan: Plan, facts: Facts) -> list[str]:
    """Why no run with this plan can begin, a line each."""
    found = []
    for key, name in (("from", plan.old), ("to", plan.new)):
        if name not in facts.config.backends:
            names = ", ".join(map(safe, list(facts.config.backends)[:20]))
            found.append(f"{plan.path}: {key}: {facts.path} has no backend {safe(name)}; there are {names}")
    if not facts.receipts:
        what = "config.receipts is not set, so nobody knows whether mail is in the new store, which a sync would delete"
        found.append(f"{facts.path}: {what}: set it, and restart lmtp-proxy")
    for name, hook in plan.hooks.items():
        if shutil.which(hook.program) is None and not (name == "final_sync" and hook is plan.hooks.get("sync")):
            found.append(f"{plan.path}: {name}: there is no program {safe(hook.program)}, or it may not be run")
    if plan.requeue is not None and not plan.requeue.is_there:
        program = safe(plan.requeue.command[0])
        found.append(f"{plan.path}: requeue: there is no program {program}; write `requeue: no`")
    return found


def journal_problem(plan: Plan) -> str | None:
    """Why the journal cannot be made or written, or None."""
    path = os.path.realpath(plan.journal)
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        return f"{plan.journal}: there is no directory {safe(directory)}; see `journal` in the plan"
    if not os.access(directory, os.W_OK | os.X_OK) or (os.path.exists(path) and not os.access(path, os.W_OK)):
        return f"{plan.journal}: cannot be written by this user; see `journal` in the plan"
    return None


def commands(plan: Plan, user: str) -> list[str]:
    """What is run for the user, in this order, as a shell would have to be told."""
    steps = (("prove", ""), ("sync", plan.old), ("block", plan.old), ("final_sync", plan.old), ("verify", plan.old),
             ("redirect", plan.new), ("unblock", plan.new))  # fmt: skip
    return [
        f"{name}: {shlex.join(plan.hooks[name].filled(plan.values(user, now)))}"
        for name, now in steps
        if name in plan.hooks
    ]


def distinct(users: Iterable[str], known: Iterable[str], facts: Facts) -> list[str]:
    """Each mailbox once, in the order given, as the journal spells it or else as it came first."""
    rules = facts.config.key_rules
    spelt = {rules.table_key(user): user for user in known}
    return list({(key := rules.table_key(user)): spelt.get(key, user) for user in _first_wins(users, facts)}.values())


def _first_wins(users: Iterable[str], facts: Facts) -> list[str]:
    rules = facts.config.key_rules
    seen: dict[str, str] = {}
    for user in users:
        seen.setdefault(rules.table_key(user), user)
    return list(seen.values())


def on_backend(backend: str, facts: Facts) -> list[str]:
    """All users of the table who are there. Domains are nobody, and who is there by the fallback is not known."""
    return [key for key, name in facts.config.users.items() if name == backend and not key.startswith("@")]


def details(users: Iterable[str], plan: Plan, facts: Facts) -> list[str]:
    """Lines of the table that name the mailbox of one of `users` once more, by a detail: what is wrong with each.

    Mail for them would go on to the old store; and who is migrated under both names is synced over their new mail.
    """
    table, rules = facts.config.users, facts.config.key_rules
    asked = {rules.table_key(user) for user in users}
    found = []
    for key in dict.fromkeys([*(key for key, backend in table.items() if backend == plan.old), *asked]):
        local_part, _, domain = key.rpartition("@") if "@" in key else (key, "", "")
        forms = rules.mailboxes(rules.forms(local_part, domain), domain)
        mailbox = forms[-1]
        if not local_part or mailbox == key:
            continue
        if mailbox in asked or (key in asked and mailbox in table):
            what = f"is a line of its own in users: for the mailbox of {safe(mailbox)}"
            found.append(f"{safe(key)}: {what}: take it out of {facts.path} first, so that both move together")
    return found


class Asked(Protocol):
    def route(self, user: str) -> str | None: ...
    def preflight(self, backend: str, address: str) -> str: ...


def what_would_be_done(plan: Plan, proxy: Asked, user: str, row: UserRow | None, stuck: str | None) -> tuple[str, bool]:
    """In words, and whether nothing is in the way as far as can be seen."""
    state = row.state if row else ON_OLD
    try:
        route = proxy.route(user)
    except ProxyError as error:
        return str(error), False
    place = {plan.old: Place.OLD, plan.park: Place.PARK, plan.new: Place.NEW}.get(route or "", Place.ELSEWHERE)
    undoing = row is not None and state in MAY_BE_PARKED and row.error is not None
    found = way(state, place, undoing=undoing, stuck=stuck)
    if found is Way.SKIP_PLACE:
        return f"nothing: {was(route)}, not on {plan.old}", False
    text = _WAYS[found].replace("{to}", plan.new).replace("{from}", plan.old)
    if found is Way.SKIP_ATTENTION and row is not None:
        return f"{text}: {row.error}", False
    if found in (Way.BEGIN, Way.AGAIN, Way.PARK):
        try:
            proxy.preflight(plan.new, plan.address(user))
        except ProxyError as error:
            return f"sync, and then fail: {error}", False
    return text, found is not Way.ASK


def in_hand(rows: Sequence[UserRow]) -> list[str]:
    """Those whose run died, if none is under way."""
    return [row.user for row in rows if row.state in IN_HAND]


def may_be_reset(row: UserRow | None) -> str | None:
    """Why not, or None."""
    if row is None:
        return "the journal has never heard of this user"
    if row.state in IN_HAND:
        return f"is in the hands of a run ({row.state}): run it again, or release the user"
    if row.state == ON_OLD:
        return "has nothing to reset"
    return None


def parked_by(runs: Sequence[Run], row: UserRow, stuck: str | None) -> str | None:
    """Where the run that gave the user up may have left their mail; None if nowhere."""
    if row.state != NEEDS_ATTENTION or stuck not in MAY_BE_PARKED | ONLY_ON:
        return None
    return next((run.park for run in runs if run.id == row.run), None)


def still_parked(proxy: Asked, user: str, park: str, stuck: str | None) -> str | None:
    """Why nobody may forget them now, or None."""
    try:
        if proxy.route(user) != park:
            return None
    except ProxyError as error:
        return f"perhaps is on {park} still: {error}"
    how = "run the plan again, which goes on" if stuck in ONLY_ON else "`lmtp-proxyctl migrate release` puts back"
    return f"is on {park} still, and would be forgotten there: {how}"


def may_be_released(row: UserRow | None, stuck: str | None) -> str | None:
    """Why not, or None."""
    if row is None:
        return "the journal has never heard of this user"
    state = stuck if row.state == NEEDS_ATTENTION else row.state
    if state in MAY_BE_PARKED:
        return None
    if row.state in IN_HAND and state == "syncing":
        return None
    if state in ("moved", "redirected"):
        return "may have mail on the new backend already, so there is no way back: run the plan again, which goes on"
    return f"is {row.state}: there is nothing to release"
