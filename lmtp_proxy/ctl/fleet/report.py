# SPDX-License-Identifier: GPL-3.0-or-later
"""What is shown of a move on several hosts: host by host, what each has said. It asks nobody."""

from collections import Counter
from collections.abc import Mapping, Sequence

from lmtp_proxy.ctl import output as show
from lmtp_proxy.ctl.client import Answer
from lmtp_proxy.ctl.drain import DONE, UNCERTAIN, Outcome, deliveries
from lmtp_proxy.ctl.fleet.agree import Look
from lmtp_proxy.ctl.fleet.errands import Said
from lmtp_proxy.text import count, safe, span

_FEW = 10  # users who are named one by one


def who(users: Sequence[str]) -> str:
    return safe(users[0]) if len(users) == 1 else count(len(users), "user")


def moved(
    looks: Mapping[str, Look],
    parks: Mapping[str, Said],
    last: Mapping[str, Said],
    users: Sequence[str],
    backend: str,
    seconds: float,
    warnings: Sequence[str],
) -> Outcome:
    """All hosts have done it. parks: what each said in the second step; last: in the last one."""
    lines = _steps(list(looks.values()), users, backend)
    for name, said in last.items():
        lines += show.wrapped(f"{name}: {_quiet(said, parks.get(name, said))}")
    if parks:
        lines += show.wrapped(f"all {len(last)} hosts, {span(seconds)} from the first hold to the last word")
    answers = {name: said.answer for name, said in last.items() if said.answer is not None}
    for name, answer in answers.items():
        lines += uncertain(name, answer)
    document = {
        "backend": backend,
        "seconds": round(seconds, 3),
        "hosts": {name: answer.document for name, answer in answers.items()},
        "held": {name: said.answer.document for name, said in parks.items() if said.answer is not None},
    }
    status = UNCERTAIN if any(said.status == UNCERTAIN for said in last.values()) else DONE
    return Outcome(document, lines, status, warnings=list(warnings))


def _steps(looks: Sequence[Look], users: Sequence[str], backend: str) -> list[str]:
    texts = {user: _step({look.places[user] or "nowhere": None for look in looks}, backend) for user in users}
    if len(users) <= _FEW:
        return [line for user, text in texts.items() for line in show.wrapped(f"{user}: {text}")]
    kinds = ", ".join(f"{number:,} {text}" for text, number in Counter(texts.values()).items())
    return show.wrapped(f"{len(users):,} users: {kinds}")


def _step(places: Mapping[str, None], backend: str) -> str:
    if list(places) == [backend]:
        return f"was on {backend} already"
    return f"{' or '.join(places)} -> {backend}"


def _quiet(last: Said, park: Said) -> str:
    """`generation 7, nothing in flight`, of both steps together."""
    assert last.answer is not None
    assert park.answer is not None
    flights = {
        flight.integer("number")
        for answer in (park.answer, last.answer)
        for flight in answer.objects("waited_for")
    }  # fmt: skip
    waited = max(park.answer.number("waited"), last.answer.number("waited"))
    text = f"waited {span(waited)} for {deliveries(len(flights))}" if flights else "nothing in flight"
    return f"generation {last.answer.integer('generation')}, {text}"


def uncertain(name: str, answer: Answer) -> list[str]:
    records = answer.objects("uncertain")
    lines = []
    if records:
        what = count(len(records), "uncertain delivery", "uncertain deliveries")
        lines += [
            f"{name}: {what} (dot sent, no reply came):",
            *show.uncertain(records),
            *show.wrapped(show.ADVICE, ""),
        ]
    if crash := show.after_crash(answer):
        lines += [f"{name}:", *crash]
    return lines


def states(flips: Mapping[str, Said], users: Sequence[str], backend: str, *, parked: bool) -> list[str]:
    """Where the users are on each host, a line each, once there is no way back."""
    before = "on hold" if parked else "as before"
    lines = []
    for name, said in flips.items():
        if said.done:
            lines.append(f"{name}: {who(users)} on {backend}")
        elif said.refused:
            lines.append(f"{name}: {who(users)} {before}: {said.text}")
            lines += said.details[:-1]
        elif said.answer is not None and said.answer.document.get("reloaded"):
            lines.append(f"{name}: {who(users)} on {backend}, but not quiet: {said.text}")
        else:
            lines.append(f"{name}: {who(users)} {before}, or on {backend}: {said.text}")
    return lines


def rehearsed_on_all(looks: Sequence[Look], users: Sequence[str], backend: str, warnings: Sequence[str]) -> Outcome:
    lines = _steps(looks, users, backend)
    lines += show.wrapped(f"{', '.join(look.host for look in looks)}: nothing was changed: it was only looked at")
    places = {look.host: dict(look.places) for look in looks}
    return Outcome({"dry_run": True, "backend": backend, "places": places}, lines, warnings=list(warnings))
