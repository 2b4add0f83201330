# SPDX-License-Identifier: GPL-3.0-or-later
"""The verb `lmtp-proxyctl migrate`: a plan that is run, and what its journal says.

It puts the parts of a run together, and finds out beforehand whether it can begin. What is done for a user is not
known here.
"""

import argparse
import glob
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from lmtp_proxy.ctl import files as ctl_files
from lmtp_proxy.ctl import output as show
from lmtp_proxy.ctl.arguments import WRONG_ARGUMENTS, Parser, text
from lmtp_proxy.ctl.client import ControlClient, ControlError
from lmtp_proxy.ctl.drain import REFUSED, Failed, Outcome, Progress
from lmtp_proxy.ctl.migrate import DEFAULT_JOURNAL
from lmtp_proxy.ctl.migrate.orders import MOST_JOBS
from lmtp_proxy.text import count, zoned_time

VERBS = ("status", "report", "release", "reset", "pause", "resume", "jobs")
PLANS = "/etc/lmtp-proxy"
"""Where a plan is looked for whose journal is asked about."""
_NOBODY = "nobody to migrate: name users, or --users LIST, or --all-on BACKEND"
SUMMARY = "Migrate users with the commands of a plan, and show where they are"
DESCRIPTION = """

Per user: initial sync, preflight, park (reject or hold, which drains), block,
final sync, verify, move, redirect, unblock. What fails before the move is put
back; after it a user only goes forward, or needs attention. Each step is in a
journal before it begins: killed at any moment, the same command goes on.

  PLAN.yml    run the plan, for users named here or in a list
  status      where everyone is, or all that was done for the users named
  report      what became of all, for how long they were offline; or receipts
  release     undo a park (and block) that a dead run has left
  reset       a human has put it right: the user begins anew
  pause       of a run that is under way, from anywhere: begin no user for now;
              those in hand are finished. It outlives a run that is killed
  resume      begin users again
  jobs N      so many users at once, until the run ends

The first Ctrl-C or SIGTERM begins no more users and finishes those in hand; the
second puts those back who have not been moved yet. A terminal that goes away
(SIGHUP) stops nothing."""
USAGE = """lmtp-proxyctl migrate [options] PLAN.yml [USER...]
       lmtp-proxyctl migrate [options] PLAN.yml --users LIST | --all-on BACKEND
       lmtp-proxyctl migrate [--journal PATH] status [PLAN.yml] [USER...]
       lmtp-proxyctl migrate [--journal PATH] [--html FILE] report [PLAN.yml] [USER...]
       lmtp-proxyctl migrate [--journal PATH] release | reset [PLAN.yml] USER...
       lmtp-proxyctl migrate [--journal PATH] pause | resume [PLAN.yml]
       lmtp-proxyctl migrate [--journal PATH] jobs [PLAN.yml] N"""
STATUSES = """exit status of a run:
  0    all users are done
  1    refused: nothing was begun
  2    ended; some failed, need attention, or were skipped
  3    stopped before all were begun: Ctrl-C, --stop-after, a full disk
  64   wrong arguments
of status, report, release, reset, pause, resume and jobs: 0 done, 1 refused

example: lmtp-proxyctl migrate /etc/lmtp-proxy/plan.yml alice@example.org"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    assert isinstance(verb, Parser)
    verb.names_anywhere = True
    verb.add_argument("what", type=text, metavar="PLAN | VERB", help=f"a plan, or {', '.join(VERBS)}")
    verb.add_argument("users", type=text, nargs="*", metavar="USER", help="as in the users: section")
    verb.add_argument("--users", dest="list", type=text, metavar="LIST", help="one user a line; - is stdin")
    verb.add_argument("--all-on", type=text, metavar="BACKEND", help="all of the users: section who are there")
    verb.add_argument("--jobs", type=_whole(MOST_JOBS), default=4, metavar="N", help="users at once (default: 4)")
    verb.add_argument("--dry-run", action="store_true", help="check all, say what would be done, change nothing")
    verb.add_argument("--stop-after", type=_whole(10**9), metavar="K", help="begin no more users after K failures")
    verb.add_argument("--window", type=_window, metavar="22:00-05:00", help="begin users in these hours only; wait")
    verb.add_argument(
        "--cutover-window",
        type=_window,
        metavar="22:00-05:00",
        help="park and move users in these hours only; first copies run at any time",
    )
    verb.add_argument("--sync-only", action="store_true", help="copy mailboxes, and do no more; as often as you like")
    verb.add_argument(
        "--journal", type=text, metavar="PATH", help=f"for {', '.join(VERBS)} (default: that of the plan)"
    )
    verb.add_argument("--html", type=text, metavar="FILE", help="of report: also as one HTML page, with everything")


def _whole(most: int) -> Callable[[str], int]:
    def convert(argument: str) -> int:
        if not argument.isdecimal() or not 1 <= int(argument) <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {most}, not {argument!r}")
        return int(argument)

    return convert


def _window(argument: str) -> Any:
    from lmtp_proxy.ctl.migrate.window import parse_window

    try:
        return parse_window(argument)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def migrate(options: argparse.Namespace, client: Callable[[], ControlClient], _progress: Progress) -> Outcome:
    """client: makes the one to the proxy, where that is asked."""
    from lmtp_proxy.config.read import ConfigError
    from lmtp_proxy.ctl.migrate.journal_file import JournalError
    from lmtp_proxy.ctl.migrate.plan import PlanError
    from lmtp_proxy.ctl.migrate.runner import RunRefused
    from lmtp_proxy.ctl.migrate.user_run import JournalFailed

    try:
        if options.what == "status":
            return _status(options)
        if options.what == "report":
            from lmtp_proxy.ctl.migrate.report_command import report

            path = _journal_path(options)  # which takes the plan from the users
            return report(path, options.users, options.html)
        if options.what == "release":
            return _release(options, client)
        if options.what == "reset":
            return _reset(options, client)
        if options.what in ("pause", "resume", "jobs"):
            return _order(options)
        return _run(options, client)
    except PlanError as error:
        raise Failed(REFUSED, f"{count(len(error.errors), 'error')} in the plan", error.errors) from error
    except ConfigError as error:
        raise Failed(REFUSED, "the proxy's configuration cannot be loaded", error.errors) from error
    except (JournalError, JournalFailed, RunRefused) as error:
        raise Failed(REFUSED, str(error)) from error


# --- a run -----------------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace, client: Callable[[], ControlClient]) -> Outcome:
    from lmtp_proxy.ctl.migrate import checks
    from lmtp_proxy.ctl.migrate.hooks import Cancel
    from lmtp_proxy.ctl.migrate.journal import open_journal
    from lmtp_proxy.ctl.migrate.plan import load_plan
    from lmtp_proxy.ctl.migrate.proxy import Proxy
    from lmtp_proxy.ctl.migrate.runner import Runner, Settings
    from lmtp_proxy.ctl.migrate.telling import TellingWatcher

    if not os.path.exists(options.what) and (hint := show.did_you_mean(options.what, VERBS)):
        options.parser.error(f"{options.what}: there is no such plan or verb{hint}")
    if sum(map(bool, (options.users, options.list, options.all_on))) > 1:
        options.parser.error("name the users here, or in one list, or by --all-on")
    if options.journal is not None:
        options.parser.error("the journal of a run is named in its plan")
    if options.html is not None:
        options.parser.error("--html is for `migrate report`")
    plan = load_plan(options.what)
    if options.all_on is not None and options.all_on != plan.old:
        options.parser.error(f"--all-on {options.all_on}: the plan takes users from {plan.old}")
    cancel = Cancel()
    watcher = _watcher()
    proxy = Proxy(client(), cancel=cancel, told=watcher.note)
    facts = proxy.facts()
    if found := checks.problems(plan, facts):
        raise Failed(REFUSED, f"nothing was begun: {found[-1]}", found[:-1])
    users = _users(options, plan.old, facts)
    if found := checks.details(users, plan, facts):
        raise Failed(REFUSED, f"nothing was begun: {found[-1]}", found[:-1])
    if facts.complete_since is not None:
        when = zoned_time(facts.complete_since)
        watcher.note(f"receipts are complete since {when}: mail that reached {plan.new} before is not noticed")
    if options.dry_run:
        return _dry_run(plan, proxy, users, facts)
    import lmtp_proxy.config.file
    import lmtp_proxy.ctl.requeue  # noqa: F401  (both would be imported while the first user is offline)

    with open_journal(plan.journal) as journal:
        rows = journal.users()
        if not users and not checks.in_hand(rows):
            raise Failed(REFUSED, _NOBODY)
        settings = Settings(
            options.jobs, options.stop_after, options.window, options.cutover_window, sync_only=options.sync_only
        )
        telling = TellingWatcher(watcher, client(), plan.old, plan.new)
        runner = Runner(plan, journal, proxy, telling, settings, cancel)
        summary = runner.run(checks.distinct(users, (row.user for row in rows), facts))
    return Outcome(asdict(summary), [], summary.status)


def _watcher() -> Any:
    from lmtp_proxy.ctl.migrate.live import watcher_for

    return watcher_for(sys.stderr, dict(os.environ))


def _users(options: argparse.Namespace, old: str, facts: Any) -> list[str]:
    from lmtp_proxy.ctl.migrate.checks import on_backend

    if options.all_on is not None:
        return on_backend(old, facts)
    users = list(options.users) if options.list is None else ctl_files.users_in(options.list)
    if domain := next((user for user in users if user.startswith("@")), None):
        raise ControlError(f"{domain}: a domain is no user; nothing was begun")
    return users


def _dry_run(plan: Any, proxy: Any, users: Sequence[str], facts: Any) -> Outcome:
    from lmtp_proxy.ctl.migrate import checks
    from lmtp_proxy.ctl.migrate.journal import open_journal
    from lmtp_proxy.ctl.migrate.steps import half_way_by_another

    rows, stuck, others = {}, {}, {}
    if os.path.exists(plan.journal):
        with open_journal(plan.journal, read_only=True) as journal:
            rows = {row.user: row for row in journal.users()}
            stuck = {user: journal.stuck(user) for user, row in rows.items() if row.state == "needs_attention"}
            for user, state in stuck.items():
                others[user] = half_way_by_another(journal, plan, rows[user], state)
    if (why := checks.journal_problem(plan)) is not None:
        raise Failed(REFUSED, why)
    first = checks.in_hand(list(rows.values()))
    everybody = list(dict.fromkeys([*first, *checks.distinct(users, rows, facts)]))
    if not everybody:
        raise Failed(REFUSED, _NOBODY)
    groups: dict[str, list[str]] = {}
    document: dict[str, dict[str, Any]] = {}
    bad = 0
    for user in everybody:
        if (why := others.get(user)) is not None:
            would, fine = f"nothing: {why}", False
        else:
            would, fine = checks.what_would_be_done(plan, proxy, user, rows.get(user), stuck.get(user))
        bad += not fine
        document[user] = {"would": would, "ok": fine}
        groups.setdefault(would, []).append(user)
    lines = [line for would, group in groups.items() for line in show.wrapped(_group(would, group))]
    if begun := next((user for user in everybody if document[user]["ok"] and user not in first), None):
        lines += ["", *show.wrapped(f"for {begun}, these commands, as a shell would have to be told:")]
        lines += [line for shown in checks.commands(plan, begun) for line in show.wrapped(f"  {shown}", " " * 6)]
        lines.append("")
        document[begun]["commands"] = checks.commands(plan, begun)
    lines += show.wrapped(
        f"nothing was changed; of {count(len(everybody), 'user')} {bad:,} would not be migrated"
        if bad
        else f"nothing was changed; {count(len(everybody), 'user')}, and nothing is in the way"
    )
    return Outcome({"users": document}, lines, 2 if bad else 0)


# --- the journal -----------------------------------------------------------------------------------------------------


def _group(would: str, users: Sequence[str]) -> str:
    return f"{users[0]}: {would}" if len(users) == 1 else f"{len(users):,} users: {would}: {show.some(users)}"


def _journal_path(options: argparse.Namespace) -> str:
    """That of the command line, of a plan in front of the users, or of the one plan that has been run."""
    from lmtp_proxy.ctl.migrate.plan import PlanError, load_plan

    if options.users and os.path.isfile(options.users[0]):
        plan = load_plan(options.users.pop(0))
        return options.journal or plan.journal
    if options.journal or os.path.exists(DEFAULT_JOURNAL):
        return options.journal or DEFAULT_JOURNAL
    found: set[str] = set()
    for path in glob.glob(os.path.join(PLANS, "*.y*ml")):
        with suppress(PlanError):
            found.add(load_plan(path).journal)
    there = sorted(filter(os.path.exists, found))
    if len(there) > 1:
        raise Failed(REFUSED, f"several plans in {PLANS} have a journal: name one with --journal: {show.some(there)}")
    return there[0] if there else DEFAULT_JOURNAL


def _status(options: argparse.Namespace) -> Outcome:
    from lmtp_proxy.ctl.migrate.journal import open_journal
    from lmtp_proxy.ctl.migrate.status import status_of

    path = _journal_path(options)
    with open_journal(path, read_only=True) as journal:
        document, lines = status_of(journal, options.users)
    return Outcome(document, lines)


def _order(options: argparse.Namespace) -> Outcome:
    """`pause`, `resume` or `jobs N` of the run that is under way."""
    from lmtp_proxy.ctl.migrate.orders import RunOrders

    number = _number(options) if options.what == "jobs" else 0
    path = _journal_path(options)
    if options.users:
        options.parser.error(f"`migrate {options.what}` is about all users: {options.users[0]} is no plan")
    going = _is_under_way(path)
    orders = RunOrders(path)
    if options.what == "resume":
        ended = orders.resume()
        if ended is None:
            return Outcome({"journal": orders.path, "paused": None}, ["it was not paused"])
        more = "" if going is not False else "; no run is under way: give its command again"
        text = f"resumed; it was paused {ended.text}{more}"
        return Outcome({"journal": orders.path, "paused": asdict(ended)}, show.wrapped(text))
    if going is False:
        raise Failed(REFUSED, f"{orders.path}: no run is under way; nothing was changed")
    if options.what == "jobs":
        orders.set_jobs(number)
        text = f"{count(number, 'user')} at once from now on, until the run ends; those in hand are finished first"
        return Outcome({"journal": orders.path, "jobs": number}, show.wrapped(text))
    order = orders.pause()
    text = f"paused {order.text}: no user is begun until `migrate resume`; those in hand are finished"
    return Outcome({"journal": orders.path, "paused": asdict(order)}, show.wrapped(text))


def _number(options: argparse.Namespace) -> int:
    """The N of `jobs [PLAN] N`, which is taken from the users."""
    try:
        return _whole(MOST_JOBS)(options.users.pop() if options.users else "")
    except argparse.ArgumentTypeError as error:
        raise Failed(WRONG_ARGUMENTS, f"jobs N: {error}") from None


def _is_under_way(path: str) -> bool | None:
    """Whether a run is; None if that cannot be told, because the journal is another user's. Raises JournalError."""
    from lmtp_proxy.ctl.migrate.journal import open_journal
    from lmtp_proxy.ctl.migrate.status import under_way

    if os.path.exists(path) and not os.access(path, os.R_OK):
        return None
    with open_journal(path, read_only=True) as journal:
        runs = journal.runs()
    return bool(runs) and under_way(runs[-1])


def _named(options: argparse.Namespace) -> list[str]:
    if bool(options.users) == bool(options.list):
        options.parser.error(f"name the users to {options.what}")
    return list(dict.fromkeys(options.users or ctl_files.users_in(options.list)))


def _reset(options: argparse.Namespace, client: Callable[[], ControlClient]) -> Outcome:
    from lmtp_proxy.ctl.migrate import checks
    from lmtp_proxy.ctl.migrate.journal import open_journal
    from lmtp_proxy.ctl.migrate.proxy import Proxy
    from lmtp_proxy.ctl.migrate.runner import end_left_over

    path = _journal_path(options)
    users = _named(options)
    with open_journal(path) as journal:
        refused = [f"{user}: {why}" for user in users if (why := checks.may_be_reset(journal.user(user))) is not None]
        if refused:
            raise Failed(REFUSED, "nothing was reset", refused)
        left = {user: why for user in users for why in end_left_over(journal, user, looked=True).values()}
        if left:
            raise Failed(REFUSED, "nothing was reset", [f"{user}: {why}" for user, why in left.items()])
        proxy = None
        for user in users:
            row, stuck = journal.user(user), journal.stuck(user)
            if row is None or (park := checks.parked_by(journal.runs(), row, stuck)) is None:
                continue
            proxy = proxy or Proxy(client(), patience=10.0)
            if (why := checks.still_parked(proxy, user, park, stuck)) is not None:
                refused.append(f"{user}: {why}")
        if refused:
            raise Failed(REFUSED, "nothing was reset", refused)
        for user in users:
            journal.reset(user, "reset by hand")
    what = "begins anew; what was delivered to the new backend until now counts as merged"
    lines = [line for user in users for line in show.wrapped(f"{user}: {what}")]
    return Outcome({"users": users}, lines)


def _release(options: argparse.Namespace, client: Callable[[], ControlClient]) -> Outcome:
    from lmtp_proxy.ctl.migrate.checks import may_be_released
    from lmtp_proxy.ctl.migrate.journal import open_journal
    from lmtp_proxy.ctl.migrate.proxy import Proxy
    from lmtp_proxy.ctl.migrate.runner import release

    path = _journal_path(options)
    users = _named(options)
    lines, problems = [], []
    with open_journal(path) as journal:
        refused = [
            f"{user}: {why}"
            for user in users
            if (why := may_be_released(journal.user(user), journal.stuck(user))) is not None
        ]
        if refused:
            raise Failed(REFUSED, "nothing was released", refused)
        proxy = Proxy(client(), patience=10.0)
        for user in users:
            ended = release(journal, proxy, user)
            if ended.error is None:
                lines += show.wrapped(f"{user}: is where it was before, and not blocked")
            else:
                problems.append(f"{user}: {ended.error}")
    if problems:
        raise Failed(REFUSED, f"{count(len(problems), 'user')} could not be released", [*lines, *problems])
    return Outcome({"users": users}, lines)
