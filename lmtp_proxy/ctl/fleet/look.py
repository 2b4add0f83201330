# SPDX-License-Identifier: GPL-3.0-or-later
"""status, lookup and drain on all hosts of a fleet: what each says, and who says nothing. Nothing is changed."""

from collections.abc import Callable, Iterable, Sequence

from lmtp_proxy.ctl import output as show
from lmtp_proxy.ctl.client import Answer, ControlError
from lmtp_proxy.ctl.drain import DONE, REFUSED, UNCERTAIN, UNPROVEN, Failed, Outcome, Progress, deliveries
from lmtp_proxy.ctl.fleet.errands import Errands, Said, listed
from lmtp_proxy.ctl.fleet.file import Fleet
from lmtp_proxy.ctl.fleet.interrupts import INTERRUPTED, Interrupts
from lmtp_proxy.ctl.fleet.report import uncertain, who
from lmtp_proxy.text import span

_ANSWER = 120.0  # seconds
_BEATS = 15.0  # seconds: somebody who waits for deliveries says so every 10 s
_Rows = Callable[[str, Answer], list[str]]


def _all_say(
    fleet: Fleet,
    interrupts: Interrupts,
    progress: Progress,
    words: Sequence[str],
    told: bytes,
    doing: str,
    timeout: float = _ANSWER,
) -> list[Said]:
    errands = Errands(fleet, {host.name: (words, told) for host in fleet.hosts}, timeout, patience=_BEATS)
    errands.wait(interrupts, progress, doing)
    errands.give_up("interrupted")
    if interrupts.count:
        raise Failed(INTERRUPTED, "nothing was changed; interrupted")
    return [errands.said[host.name] for host in fleet.hosts]


def _outcome(said: Iterable[Said], lines: list[str], status: int = DONE) -> Outcome:
    """Names those who did not answer, which makes it 3."""
    said = list(said)
    silent = [each for each in said if each.answer is None or each.refused]
    for each in silent:
        for line in each.details:
            lines += show.wrapped(line)
    document: dict[str, object] = {
        "hosts": {
            each.host: {"error": each.text, "status": each.status} if each.answer is None else each.answer.document
            for each in said
        }
    }
    if not silent:
        return Outcome(document, lines, status)
    names = " and ".join(each.host for each in silent)
    return Outcome(document, lines, UNPROVEN, error=f"{names} of {len(said)} hosts did not answer, or refused")


def status_of_all(fleet: Fleet, progress: Progress, interrupts: Interrupts) -> Outcome:
    said = _all_say(fleet, interrupts, progress, ("--json", "status"), b"", "say how they are")
    lines = _table(("host", "version", ">generation", ">users", ">sessions", ">uncertain", "file"), said, _status_row)
    return _outcome(said, lines)


def _status_row(host: str, answer: Answer) -> list[str]:
    on_disk = answer.document.get("sha256_on_disk")
    file = "in force" if on_disk in (None, answer.object("config").text("sha256")) else "edited since"
    numbers = [f"{answer.integer(name):,}" for name in ("generation", "users", "sessions", "uncertain")]
    return [host, answer.text("version"), *numbers, file]


def lookup_on_all(fleet: Fleet, address: str, progress: Progress, interrupts: Interrupts) -> Outcome:
    words = ("--json", "lookup", "--file", "-")
    said = _all_say(fleet, interrupts, progress, words, listed([address]), f"say where {address} is")
    lines = _table(("host", "backend", "key", "answer"), said, _lookup_row)
    places = {each.answer.optional_text("backend") for each in said if each.done and each.answer is not None}
    if len(places) > 1:
        lines += show.wrapped("the hosts do not say the same")
    return _outcome(said, lines)


def _lookup_row(host: str, answer: Answer) -> list[str]:
    return [
        host,
        answer.optional_text("backend") or "-",
        answer.optional_text("hit") or answer.optional_text("source") or "-",
        answer.text("answer"),
    ]


def _table(headings: Sequence[str], said: Iterable[Said], row: _Rows) -> list[str]:
    rows = []
    for each in said:
        if each.answer is None or not each.done:
            continue
        try:
            rows.append(row(each.host, each.answer))
        except ControlError as error:
            rows.append([each.host, str(error), *[""] * (len(headings) - 2)])
    return show.table(headings, rows) if rows else []


def drain_all(
    fleet: Fleet, users: Sequence[str], timeout: float, progress: Progress, interrupts: Interrupts
) -> Outcome:
    """users: none for all."""
    words = ["--json", "drain", "--timeout", f"{timeout:g}", *(["--file", "-"] if users else ["--all"])]
    whom = who(users) if users else "all users"
    doing = f"be quiet for {whom}"
    said = _all_say(fleet, interrupts, progress, words, listed(users), doing, timeout + 4 * fleet.patience)
    lines: list[str] = []
    late: list[str] = []
    for each in said:
        if each.answer is None or each.refused:
            continue
        lines += show.wrapped(f"{each.host}: {_drained(each.answer)}")
        lines += show.flights(each.answer.objects("waiting")) if each.answer.objects("waiting") else []
        lines += uncertain(each.host, each.answer)
        if each.status == UNPROVEN:
            late.append(each.host)
    if all(each.refused for each in said):
        raise Failed(REFUSED, "no host has drained", show.first([line for each in said for line in each.details]))
    status = UNCERTAIN if any(each.status == UNCERTAIN for each in said) else DONE
    outcome = _outcome(said, lines, UNPROVEN if late else status)
    if late and not outcome.error:
        what = f"not all is quiet on {' and '.join(late)} after {timeout:g} s: drain again, with a longer --timeout"
        return Outcome(outcome.document, outcome.lines, UNPROVEN, error=what)
    return outcome


def _drained(answer: Answer) -> str:
    if "routes" not in answer.document:
        return str(answer.document.get("error") or "is not known to be quiet")
    routes = answer.object("routes").optional_texts()
    places = ", ".join(f"{user} on {to or 'no backend'}" for user, to in list(routes.items())[:3])
    waited = answer.objects("waited_for")
    text = f"waited {span(answer.number('waited'))} for {deliveries(len(waited))}" if waited else "nothing in flight"
    return f"{places}{', ...' if len(routes) > 3 else ''}{': ' if places else ''}{text}"
