# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs `receipts` and `requeue`: what they show, and the exit status of the latter.

What is asked and done stands in `requeue`; nothing here is decided by itself.
"""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from lmtp_proxy.ctl import output as show
from lmtp_proxy.ctl.client import Answer, ControlClient, ControlError
from lmtp_proxy.ctl.drain import DONE, REFUSED, UNPROVEN, Failed, Outcome, Progress
from lmtp_proxy.ctl.mta import OWN, PROGRAMS, Mta
from lmtp_proxy.ctl.requeue import GONE, Mail, RequeueOutcome, ask, commands, deferred, requeue
from lmtp_proxy.text import count, span, zoned_time

_GAPS = 5  # the last ones, that are shown
_XFORWARD = (
    "its client says no queue ids, so nobody knows in whose queue this waits: set lmtp_send_xforward_command = yes "
    "in Postfix' main.cf (over TCP the client has to be in config.trusted, too)"
)
_FATES = {GONE: "in the queue no more"}


def show_receipts(client: ControlClient, users: Sequence[str]) -> Outcome:
    """What is known of each user, and when something may be missing."""
    lines: list[str] = []
    document: dict[str, object] = {}
    found: dict[str, object] = {}
    for answer in ask(client, users):
        document = dict(answer.document)
        for user, known in answer.object("users").document.items():
            found[user] = known
            lines += _user(user, Answer(known, client.path))
    return Outcome({**document, "users": found}, [*lines, *_gaps(Answer(document, client.path))])


def _user(user: str, known: Answer) -> list[str]:
    lines = show.wrapped(user)
    for row in known.objects("delivered"):
        numbers = [f"{row.integer('count'):,} delivered"]
        if row.integer("uncertain"):
            numbers.append(f"{row.integer('uncertain'):,} uncertain")
        lines += show.wrapped(f"    on {row.text('backend')}: {', '.join(numbers)}, {_span(row)}", " " * 8)
    for row in known.objects("deferred"):
        what = f"waiting {row.text('queue_id')}: {count(row.integer('count'), 'time')}, {_span(row)}"
        lines += show.wrapped(f"    {what}: {row.text('why')}", " " * 8)
    unnamed = known.objects("unnamed")
    for row in unnamed:
        what = f"waiting, id unknown: {count(row.integer('count'), 'deferral')}, {_span(row)}"
        lines += show.wrapped(f"    {what}: {row.text('why')}", " " * 8)
    if any(not row.flag("forwarded") for row in unnamed):
        lines += show.wrapped(f"        {_XFORWARD}", " " * 8)
    return lines if len(lines) > 1 else [*lines, "    nothing is known of it"]


def _span(row: Answer) -> str:
    first, last = row.number("first"), row.number("last")
    return zoned_time(first) if first == last else f"{zoned_time(first)} to {zoned_time(last)}"


def _gaps(answer: Answer) -> list[str]:
    gaps = answer.objects("gaps")
    lines = []
    if len(gaps) > _GAPS:
        lines += show.wrapped(f"{count(len(gaps) - _GAPS, 'older gap')}: see --json")
    for gap in gaps[-_GAPS:]:
        began = "before" if gap.has_null("from") else f"from {zoned_time(gap.number('from'))} to"
        ended = "now" if gap.has_null("until") else zoned_time(gap.number("until"))
        lines += show.wrapped(f"may be incomplete {began} {ended}: {gap.text('why')}")
    return lines + show.after_crash(answer)


def requeue_mail(
    client: ControlClient,
    users: Sequence[str],
    mta: Mta,
    timeout: float,
    progress: Progress,
    *,
    only_print: bool = False,
) -> Outcome:
    """Runs the MTA's command for each mail that waits for them, or says how. Raises Failed, and ControlError."""
    if only_print:
        found = deferred(client, users, mta)
        to_run = commands(found)
        return Outcome(
            {"commands": [list(each) for each in to_run], **_unnamed(found)},
            [shlex.join(each) for each in to_run],
            DONE if found.listed and not found.silent else UNPROVEN,
            error=not_known(found),
        )
    progress.state = f"{_program(mta)} may have been run"
    try:
        done = requeue(
            client,
            users,
            mta,
            wait=timeout,
            waiting=lambda number: progress.waiting(f"{count(number, 'mail')} to come again"),
        )
    except ControlError as error:
        raise Failed(REFUSED, f"{error}; see `lmtp-proxyctl receipts`") from error
    document = {
        "mails": [
            {"user": mail.user, "queue_id": mail.queue_id, "fate": mail.fate, "why": mail.why, "found": mail.found}
            for mail in done.mails
        ],
        **_unnamed(done),
        "runs": [
            {"command": list(run.command), "status": run.status, "output": run.output} for run in done.runs.values()
        ],
        "seconds": round(done.seconds, 3),
    }
    errors = list(dict.fromkeys(f"{shlex.join(run.command)}: {_why(run.status, run.output)}" for run in done.failed))
    if errors and len(done.failed) == len(done.runs):
        hint = "" if mta.name == OWN else "; is it on this machine? see --command"
        raise Failed(REFUSED, f"{mta.failed}{hint}", errors, document)
    return Outcome(document, _lines(users, done), DONE if done.done else UNPROVEN, warnings=errors, error=_error(done))


def _why(status: int | None, output: str) -> str:
    return output if status is None else f"exit status {status}{f': {output}' if output else ''}"


def _lines(users: Sequence[str], done: RequeueOutcome) -> list[str]:
    lines = []
    for user in users:
        mails = [mail for mail in done.mails if mail.user == user]
        unnamed = done.unnamed.get(user, ())
        if not mails and not unnamed:
            lines += show.wrapped(f"{user}: nothing waits")
            continue
        if unnamed and mails and not mails[0].queue_id:
            [mail] = mails
            lines += show.wrapped(f"{user}: {mail.fate}{'' if mail.settled else f' ({mail.why})'}")
            continue
        if unnamed:
            number = count(sum(each.count for each in unnamed), "deferral")
            last = zoned_time(max(each.last for each in unnamed))
            found = "none of it is in the queue now" if done.listed else _cannot_list(done)
            if any(mail.found for mail in mails):
                found = "found in the queue by its recipient"
            lines += show.wrapped(f"{user}: waiting, id unknown ({number}, the last {last}): {found}")
        if not mails:
            continue
        counts = Counter(mail.fate for mail in mails)
        lines += show.wrapped(f"{user}: {', '.join(f'{number:,} {fate}' for fate, number in counts.items())}")
        lines += [line for mail in mails for line in _mail(mail)]
    return [*lines, f"{count(len(done.runs), 'mail')}, {span(done.seconds)}"]


def _mail(mail: Mail) -> list[str]:
    fate = _FATES.get(mail.fate, f"not tried: {mail.fate}" if mail.fate.endswith(" failed") else mail.fate)
    return show.wrapped(f"    {mail.queue_id}: {fate}{'' if mail.settled else f' ({mail.why})'}", " " * 8)


def _error(done: RequeueOutcome) -> str:
    left = [mail for mail in done.mails if not mail.settled]
    said = f"{count(len(left), 'mail')} did not come through: run it again later" if left else ""
    return "; ".join(filter(None, [said, not_known(done)]))


def not_known(done: RequeueOutcome) -> str:
    """Why nobody knows whether more waits; "" if that is known."""
    if done.silent:
        return f"{count(done.silent, 'deferral')} without a queue id: {_XFORWARD}"
    return "" if done.listed else f"mail without a queue id may wait, and {_cannot_list(done)}"


def _cannot_list(done: RequeueOutcome) -> str:
    listing = done.mta.listing[len(done.mta.command) :]
    return f"{' '.join((_program(done.mta), *listing))} cannot list the queue"


def _program(mta: Mta) -> str:
    return "the command" if mta.name == OWN else PROGRAMS[mta.name][0]


def _unnamed(done: RequeueOutcome) -> dict[str, object]:
    return {
        "unnamed": {user: [asdict(each) for each in rows] for user, rows in done.unnamed.items()},
        "listed": done.listed,
    }
