# SPDX-License-Identifier: GPL-3.0-or-later
"""The status page: everything that an operator watches during a migration, on one screen, to read only.

Values in, HTML out. It is given no name of a person.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from lmtp_proxy.control.application import Json
from lmtp_proxy.counts import REPLY_BOUNDS, quantile
from lmtp_proxy.figures.figures import Figures
from lmtp_proxy.figures.samples import KEPT, SECONDS, Sample, Samples
from lmtp_proxy.text import count, iso_time, number, octets, share, span
from lmtp_proxy.web.graphics import Part, bar, curve, key
from lmtp_proxy.web.markup import KINDS, escape

_FLIGHTS = 12  # shown, the oldest
_UNCERTAIN = 8  # the last ones
_RECENT = 3  # samples that "now" is the mean of
_SILENT = 120.0  # seconds: a run says something every ten
_LATE = 0.25  # seconds: a stall that others notice


@dataclass(frozen=True, slots=True)
class Shown:
    """What there is to show, all of it without names of people.

    Attributes:
        hostname: the proxy's.
        status, figures: see the resources of these names.
        flights: the deliveries in flight.
        uncertain: the deliveries whose outcome is unknown, the newest last.
        history: the last reloads and drains, in the order in which they are shown; see `paired`.
        samples: the last minutes, for the curves.
        migration: how far a run of `migrate` is, by its own word; None without one.
    """

    hostname: str
    status: Json
    figures: Figures
    flights: list[Json]
    uncertain: list[Json]
    history: list[Json]
    samples: Samples
    migration: Json | None = None


class _Notice(NamedTuple):
    """What the operator has to know.

    Attributes:
        kind: warn or bad.
        short: in two words, for the pill; equal ones are counted there, if _COUNTED has them.
        text: a sentence.
    """

    kind: str
    short: str
    text: str


_COUNTED = {"store down": ("store down", "stores down"), "worker down": ("worker down", "workers down")}


def page(shown: Shown) -> tuple[str, str, str]:
    """Title, state (good, warn or bad), content."""
    notes = list(_notes(shown))
    state = "bad" if any(note.kind == "bad" for note in notes) else "warn" if notes else "good"
    parts = [
        _head(shown, state, _word(shown.status, [note.short for note in notes if note.kind == state])),
        *(f'<p class="note {note.kind}">{escape(note.text)}</p>' for note in notes),
        _migration(shown),
        _tiles(shown),
        _users(shown),
        _backends(shown),
        '<div class="columns">',
        _history(shown),
        '<div class="column">',
        _flights(shown),
        _uncertain(shown),
        "</div></div>",
        _foot(shown),
    ]
    mark = {"good": "", "warn": "(!) ", "bad": "(!!) "}[state]
    return f"{mark}{shown.hostname}: lmtp-proxy", state, "\n".join(parts)


def page_of_problem(hostname: str, problem: str) -> tuple[str, str, str]:
    """As `page`, where there is nothing else to show."""
    head = f"<header><h1>lmtp-proxy <span>{escape(hostname)}</span></h1></header>"
    return f"(!!) {hostname}: lmtp-proxy", "bad", f'{head}<p class="note bad">{escape(problem)}</p>'


# --- the head --------------------------------------------------------------------------------------------------------


def _word(status: Json, shorts: list[str]) -> str:
    """What the page's colour means."""
    if status["stopping"]:
        return "stopping"
    if shorts:
        return ", ".join(
            (count(many, *_COUNTED[short]) if short in _COUNTED else short) for short, many in Counter(shorts).items()
        )
    return "reloading" if status["reloading"] is not None else "serving"


def _head(shown: Shown, state: str, word: str) -> str:
    status = shown.status
    facts = [("version", status["version"]), ("up", span(status["uptime"])), ("generation", status["generation"])]
    if workers := status["workers"]:
        serving = sum(worker["state"] == "serving" for worker in workers)
        facts.append(("workers", f"{serving} of {len(workers)}"))
    facts += [("pid", status["pid"]), ("mail on", status["socket"])]
    told = "".join(f"<span>{escape(name)} <b>{escape(value)}</b></span>" for name, value in facts)
    return (
        f"<header><h1>lmtp-proxy <span>{escape(shown.hostname)}</span></h1>"
        f'<span class="pill {state}">{escape(word)}</span>'
        f'<div class="facts">{told}</div></header>'
    )


def _notes(shown: Shown) -> Iterable[_Notice]:
    """What the operator has to know."""
    status, figures = shown.status, shown.figures
    if torn := status.get("torn"):
        yield _Notice(
            "bad", "workers differ", f"The workers do not deliver by the same configuration: {torn}. Reload again."
        )
    if (reload := status["reload"]) is not None and not reload["ok"]:
        what = "; ".join(reload["errors"])
        text = f"The last reload was refused, the file on the disk is not in force: {what}. See the log."
        yield _Notice("bad", "reload refused", text)
    for backend in status["backends"]:
        if backend["state"] == "down":
            yield _Notice("bad", "store down", f"Backend {backend['name']} is down: {backend['trouble']}")
    for worker in status["workers"]:
        if worker["state"] not in ("serving", "stopping"):
            yield _Notice("bad", "worker down", f"Worker {worker['number']} is {worker['state']}.")
    if crash := status["after_crash"]:
        who = f"worker {crash['worker']}" if crash["worker"] else "the process before this one"
        text = f"{who} died {span(crash['seconds'])} ago: what it had handed over may still be finishing."
        yield _Notice("warn", "was killed", text)
    if waiting := sum(each["waiting"] for each in figures["gauges"]["backends"].values()):
        text = f"{count(waiting, 'transaction waits', 'transactions wait')} for a free connection (max_connections)."
        yield _Notice("warn", "mail waits", text)
    if (migration := shown.migration) is not None:
        yield from _notices_of(migration)
    if status["stopping"]:
        yield _Notice("warn", "stopping", "It is stopping: no new clients are accepted.")


def _notices_of(migration: Json) -> Iterable[_Notice]:
    if many := migration["attention"]:
        who = count(many, "user needs", "users need")
        text = f"{who} attention, half-way in the migration: see `lmtp-proxyctl migrate status`."
        yield _Notice("bad", f"{who} attention", text)
    if many := migration["failed"]:
        who = count(many, "user stays", "users stay")
        text = f"{who} on {migration['from']}, as the migration failed for them: see `lmtp-proxyctl migrate report`."
        yield _Notice("warn", f"{number(many)} not migrated", text)
    if migration["running"] and migration["ago"] > _SILENT:
        text = f"The migration has not said anything for {span(migration['ago'])}: see `lmtp-proxyctl migrate status`."
        yield _Notice("warn", "migration silent", text)


# --- the migration ---------------------------------------------------------------------------------------------------


def _migration(shown: Shown) -> str:
    """Rate, and when it is to end, by what it took so far: the only thing that is known of those who are left."""
    migration = shown.migration
    if migration is None:
        return ""
    total, ended = migration["total"], sum(migration[name] for name in ("done", "failed", "attention"))
    taken = migration["seconds"] + (migration["ago"] if migration["running"] else 0.0)
    left = max(0, total - migration["before"] - ended)
    parts = [
        Part("done", migration["before"] + migration["done"], "k5"),
        Part("failed", migration["failed"], "reject"),
        Part("needs attention" if migration["attention"] == 1 else "need attention", migration["attention"], "bad"),
    ]
    ready = min(total, migration["before"] + ended)
    told = [f"{number(part.size)} {part.name}" for part in parts if part.size]
    if migration["copied"]:
        told.append(f"{number(migration['copied'])} copied, and wait for their cutover")
    if ended and taken >= 1:
        told.append(f"{rate(60 * ended / taken)} users a minute")
    if not migration["running"]:
        told.append(f"ended {span(migration['ago'])} ago, after {span(taken)}")
    elif left and ended:
        rest = left * taken / ended
        until = iso_time(shown.figures["time"] + rest)
        told.append(f"about {span(max(1.0, rest))} left, until {until[:10]} {until[11:16]} UTC")
    else:
        told.append(f"{span(taken)} so far")
    label = "Users of the migration: " + ", ".join(f"{part.name} {number(part.size)}" for part in parts)
    route = f"{escape(migration['from'])} \u2192 {escape(migration['to'])}"
    return (
        f'<section class="card"><h2>Migration {route} <b>{number(ready)} of {count(total, "user")}, '
        f"{escape(share(ready, total))}</b></h2>{bar(label, parts, total)}"
        f'<p class="told">{escape("; ".join(told))}</p></section>'
    )


# --- numbers ---------------------------------------------------------------------------------------------------------


def _tiles(shown: Shown) -> str:
    figures, samples = shown.figures, shown.samples
    counters, gauges = figures["counters"], figures["gauges"]
    messages = samples.rates(lambda sample: sample.transactions)
    connects = samples.rates(lambda sample: sample.sessions)
    received = samples.rates(lambda sample: sample.octets)
    phases = gauges["in_flight"]
    uncertain, held, longest = counters["uncertain"], gauges["held"], figures["longest"]
    transactions = counters["transactions"]
    late = "bad" if longest >= 10 * _LATE else "warn" if longest >= _LATE else ""
    refused = counters["refused"]
    parked = {word: figures["users"].get(word, 0) for word in ("reject", "hold")}
    return '<section class="tiles" aria-label="Now">' + "".join(
        (
            _tile(
                "Messages",
                f"{rate(_now(messages))} <small>/ s</small>",
                _transactions(transactions),
                curve("Messages per second, the last ten minutes", KEPT - 1, ("all", messages), scale=rate),
            ),
            _tile(
                "Received",
                f"{octets(_now(received))} <small>/ s</small>",
                f"{octets(counters['octets'])} since the start",
                curve("Octets received per second, the last ten minutes", KEPT - 1, ("all", received), scale=octets),
            ),
            _tile(
                "Sessions",
                number(gauges["sessions"]),
                f"{number(counters['sessions'])} accepted, {rate(_now(connects))} / s",
                curve("Clients accepted per second, the last ten minutes", KEPT - 1, ("all", connects), scale=rate),
            ),
            _tile(
                "In flight",
                number(sum(phases.values())),
                ", ".join(f"{number(flights)} {phase}" for phase, flights in phases.items()),
            ),
            _tile(
                "Parked users",
                number(sum(parked.values())),
                f"{number(parked['reject'])} on reject, {number(parked['hold'])} on hold; "
                f"{number(held)} of {number(figures['hold_limit'])} held back, "
                f"{number(refused['parked'])} told to come again{_not_asked(refused)}",
            ),
            _tile("Uncertain", number(uncertain), "recipients since the start", kind="bad" if uncertain else ""),
            _tile("Longest stall", span(longest), "of the event loop, since the start", kind=late),
        )
    ) + "</section>"  # fmt: skip


def _transactions(transactions: Json) -> str:
    """How they have ended; what never happened is not told."""
    told = [f"{number(transactions['answered'])} answered"]
    for name, what in (("declined", "with nobody accepted"), ("refused", "refused"), ("aborted", "broken off")):
        if amount := transactions[name]:
            told.append(f"{number(amount)} {what}")
    return ", ".join(told)


def _not_asked(refused: Json) -> str:
    """Whom else no store was asked for."""
    kinds = (("unknown", "unknown"), ("lookup", "without a look-up"))
    told = [f"{number(refused[name])} {what}" for name, what in kinds if refused[name]]
    return f"; deferred, too: {', '.join(told)}" if told else ""


def _tile(title: str, value: str, more: str, graphic: str = "", kind: str = "") -> str:
    return (
        f'<div class="card tile"><h2>{title}</h2><div class="big {kind}">{value}</div>'
        f"<p>{escape(more)}</p>{graphic}</div>"
    )


def rate(value: float) -> str:
    """Per second, with as many digits as are of use."""
    return "0" if value < 0.005 else f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 100 else number(value)


def _now(rates: list[float]) -> float:
    last = rates[-_RECENT:]
    return sum(last) / len(last) if last else 0.0


def _kinds(names: Iterable[str]) -> dict[str, str]:
    """A colour for each backend, the same in all parts of the page."""
    return {name: f"k{index % KINDS}" for index, name in enumerate(names)} | {"reject": "reject", "hold": "hold"}


def _users(shown: Shown) -> str:
    on: dict[str, int] = shown.figures["users"]
    kinds, whole = _kinds(shown.figures["gauges"]["backends"]), sum(on.values())
    parts = [Part(name, users, kinds.get(name, "k0")) for name, users in on.items()]
    legend = "".join(
        f"<li>{key(part.kind)}{escape(part.name)} <b>{number(part.size)}</b> "
        f"<span>{escape(share(part.size, whole))}</span></li>"
        for part in parts
    )
    fallback = shown.status["fallback_backend"]
    rest = f" \u00b7 everybody else <b>{escape(fallback)}</b>" if fallback else ""
    label = "Users by backend: " + ", ".join(f"{part.name} {part.size}" for part in parts)
    return (
        f'<section class="card"><h2>Users <b>{number(whole)}</b>{rest}</h2>{bar(label, parts, whole)}'
        f'<ul class="legend">{legend}</ul></section>'
    )


# --- backends --------------------------------------------------------------------------------------------------------

_PILLS = {"up": "good", "down": "bad", "unused": ""}
_HEADINGS = ("Backend", "Delivered and failed, / s", "Now", "Connections", "Users", "Sent", "Deferred", "Bounced",
             "Uncertain", "Size", "Reply p50", "p95")  # fmt: skip


def _backends(shown: Shown) -> str:
    kinds = _kinds(shown.figures["gauges"]["backends"])
    rows = "".join(_backend(shown, backend, kinds[backend["name"]]) for backend in _known(shown))
    head = "".join(
        f"<th{' class=left' if index in (1, 3) else ''} scope=col>{title}</th>" for index, title in enumerate(_HEADINGS)
    )
    return (
        '<section class="card"><h2>Backends</h2><table class="backends">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></section>"
    )


def _known(shown: Shown) -> list[Json]:
    """Those of which there are figures, too: a reload may have come between the two."""
    figures = shown.figures
    both = figures["gauges"]["backends"].keys() & figures["counters"]["backends"].keys()
    return [backend for backend in shown.status["backends"] if backend["name"] in both]


def _backend(shown: Shown, backend: Json, kind: str) -> str:
    name, samples = backend["name"], shown.samples
    counters, gauges = (shown.figures[tree]["backends"][name] for tree in ("counters", "gauges"))

    def sent(sample: Sample) -> int | None:
        return sample.backends[name].sent if name in sample.backends else None

    def failed(sample: Sample) -> int | None:
        return sample.backends[name].failed if name in sample.backends else None

    good, bad = samples.rates(sent), samples.rates(failed)
    label = f"{name}: delivered and failed recipients per second, the last ten minutes"
    used = [Part("in use", gauges["busy"], kind), Part("kept", gauges["idle"], "k0")]
    waiting = f", {number(gauges['waiting'])} waiting" if gauges["waiting"] else ""
    uses = f"{name}: {gauges['busy']} connections in use, {gauges['idle']} kept, of {gauges['limit']}{waiting}"
    counts = counters["replies"]["counts"]
    failing = f' <span class="num-bad">{rate(_now(bad))}</span>' if _now(bad) >= 0.005 else ""
    cells = (
        f'{key(kind)}<b>{escape(name)}</b> <span class="pill {_PILLS[backend["state"]]}">{backend["state"]}</span>'
        f'<span class="where">{escape(backend["address"])}</span>',
        curve(label, KEPT - 1, ("sent", good), ("failed", bad), scale=rate),
        f"{rate(_now(good))}{failing}",
        f"{number(gauges['busy'])} <small>in use, {number(gauges['idle'])} kept, of {number(gauges['limit'])}"
        f"{waiting}</small>" + bar(uses, used, gauges["limit"], thin=True),
        number(backend["users"]),
        number(counters["sent"]),
        _trouble(counters["deferred"], "warn"),
        _trouble(counters["bounced"], "warn"),
        _trouble(counters["uncertain"], "bad"),
        octets(counters["octets"]),
        span(quantile(REPLY_BOUNDS, counts, 0.5)),
        span(quantile(REPLY_BOUNDS, counts, 0.95)),
    )
    classes = {0: "left", 1: "wide", 3: "use left"}
    return "<tr>" + "".join(
        f'<td class="{classes.get(index, "")}" data-label="{title}">{cell}</td>'
        for index, (title, cell) in enumerate(zip(_HEADINGS, cells, strict=True))
    ) + "</tr>"  # fmt: skip


def _trouble(amount: int, kind: str) -> str:
    return f'<span class="{f"num-{kind}" if amount else "zero"}">{number(amount)}</span>'


# --- lists -----------------------------------------------------------------------------------------------------------


def _history(shown: Shown) -> str:
    rows = "".join(
        f"<tr><td>{_when(event['time'], shown.figures['time'])}</td><td class=left>{_result(event)}</td>"
        f'<td class="text">{_told(event)}</td></tr>'
        for event in shown.history
    )
    return _list("Reloads and moves", f"the last {len(shown.history)}", rows, "None since the start.")


def _result(event: Json) -> str:
    """A reload whose drain came behind it is one thing with it."""
    drain = event if event["kind"] == "drain" else event.get("drain")
    if drain is not None:
        kind, word = ("good", "drained") if drain["done"] else ("warn", "draining")
    else:
        kind, word = ("good", "reloaded") if event["ok"] else ("bad", "refused")
    return f'<span class="pill {kind}">{word}</span>'


def _told(event: Json) -> str:
    if event["kind"] == "drain":
        whom = "all users" if event["count"] is None else count(event["count"], "user")
        return f"{whom}, {_waited(event)}"
    if not event["ok"]:
        return escape("; ".join(event["errors"]))
    moves = [
        f"<b>{number(each['count'])}</b> {escape(each['from'] or 'new')} \u2192 {escape(each['to'] or 'removed')}"
        for each in event["moved"]
    ]
    _, mark, keys = event["changes"].partition("changed: ")  # what stands before is how many users and backends
    told = [*moves, *([escape(mark + keys)] if keys else [])] or ["nothing changed"]
    if (drain := event.get("drain")) is not None:
        told.append(_waited(drain))
    return f"{', '.join(told)} <small>generation {number(event['generation'])}</small>"


def _waited(drain: Json) -> str:
    doubt = f', <span class="num-bad">{number(drain["uncertain"])} uncertain</span>' if drain["uncertain"] else ""
    return f"waited {span(drain['waited'])}{doubt}"


def _flights(shown: Shown) -> str:
    flights = sorted(shown.flights, key=lambda flight: -float(flight["seconds"]))
    rows = "".join(
        f'<tr><td>{escape(flight["session"])}</td><td class="left name">{escape(flight["backend"])}</td>'
        f"<td class=left>{escape(flight['phase'])}</td><td>{number(flight['count'])}</td>"
        f"<td>{octets(flight['octets'])}</td><td>{span(flight['seconds'])}</td></tr>"
        for flight in flights[:_FLIGHTS]
    )
    head = ("Session", "Backend", "Phase", "To", "Sent", "Since")
    more = f"the oldest {_FLIGHTS} of {number(len(flights))}" if len(flights) > _FLIGHTS else number(len(flights))
    return _list("Deliveries in flight", more, rows, "None at this moment.", head)


def _uncertain(shown: Shown) -> str:
    rows = "".join(
        f"<tr><td>{_when(record['time'], shown.figures['time'])}</td><td class=left>{escape(record['session'])}</td>"
        f'<td class="left name">{escape(record["backend"])}</td><td>{octets(record["size"])}</td></tr>'
        for record in reversed(shown.uncertain[-_UNCERTAIN:])
    )
    more = f"{number(len(shown.uncertain))} known; lmtp-proxyctl uncertain names them" if rows else "0"
    return _list("Uncertain deliveries", more, rows, "None since the start.", ("Time", "Session", "Backend", "Size"))


def _list(title: str, more: str, rows: str, otherwise: str, head: tuple[str, ...] = ()) -> str:
    if not rows:
        return f'<section class="card"><h2>{title}</h2><p class="none">{otherwise}</p></section>'
    words = "".join(
        f"<th{' class=left' if name in ('Backend', 'Phase', 'Session') else ''} scope=col>{name}</th>" for name in head
    )
    top = f"<thead><tr>{words}</tr></thead>" if head else ""
    table = f'<table class="list">{top}<tbody>{rows}</tbody></table>'
    return f'<section class="card"><h2>{title} <b>{more}</b></h2>{table}</section>'


def _when(iso: str, now: float) -> str:
    """The time of the day, and how long ago that was. iso: as iso_time makes it."""
    # Not time.strptime: it opens a file, at its first call, which may come when none can be opened.
    ago = now - datetime.fromisoformat(f"{iso[:19]}+00:00").timestamp()
    return f'<time datetime="{escape(iso)}">{escape(iso[11:19])}</time> <small>{span(max(0.0, ago))} ago</small>'


def _foot(shown: Shown) -> str:
    now = iso_time(shown.figures["time"])
    minutes = (KEPT - 1) * SECONDS / 60
    return (
        f"<footer><span>{now[:10]} {now[11:19]} UTC, as all times here</span><span>Curves: {minutes:g} minutes</span>"
        f'<span>For programs: <a href="metrics">/metrics</a>, <a href="status">/status</a></span></footer>'
    )
