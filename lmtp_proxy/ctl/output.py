# SPDX-License-Identifier: GPL-3.0-or-later
"""What lmtp-proxyctl shows: lines and tables for a terminal of 80 columns.

Whatever came over the wire is shown as printable text, however wide its characters are. It decides nothing, asks
nobody and writes nowhere: answers in, lines out.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence

from lmtp_proxy.ctl.client import Answer
from lmtp_proxy.text import count, octets, safe, span, zoned_time

COLUMNS = 80
_DOTS = "..."
_PHASES = {"final dot": "dot sent", "commit": "about to send its dot"}
_RIGHT = ">"  # in front of a heading: the column is aligned to the right
_SHOWN = 20  # of a long list
_LEAST = 8  # columns of a cut column


# --- text ------------------------------------------------------------------------------------------------------------


def width(text: str) -> int:
    """Columns that a terminal takes for printable `text`."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, most: int) -> str:
    """`text` in at most `most` columns; of one that is too long, the beginning and the end are left."""
    if width(text) <= most:
        return text
    room = most - len(_DOTS)
    head = _start(text, room - room // 2)
    tail = _start(text[::-1], room - width(head))[::-1]
    while tail and not _columns(tail[0]):  # a mark without its letter
        tail = tail[1:]
    return head + _DOTS + tail


def _start(text: str, most: int) -> str:
    """As much of the beginning of `text` as fits."""
    used = 0
    for position, character in enumerate(text):
        used += _columns(character)
        if used > most:
            return text[:position]
    return text


def wrapped(text: str, indent: str = "    ") -> list[str]:
    """`text` in lines of at most 80 columns, those after the first behind `indent`. A long word is broken."""
    text = safe(text)
    words = text.lstrip(" ").split(" ")
    line = " " * (len(text) - len(text.lstrip(" "))) + words[0]
    lines: list[str] = []
    for word in [*words[1:], None]:
        if word is not None and width(f"{line} {word}") <= COLUMNS:
            line = f"{line} {word}"
            continue
        while width(line) > COLUMNS:
            lines.append(_start(line, COLUMNS))
            line = indent + line[len(lines[-1]) :]
        lines.append(line.rstrip(" "))
        line = indent + (word or "")
    return lines


def labelled(rows: Iterable[tuple[str, str]]) -> list[str]:
    """`label  text` with the texts below each other."""
    rows = list(rows)
    column = max(len(label) for label, _ in rows) + 2
    return [line for label, text in rows for line in wrapped(f"{label:<{column}}{text}", " " * column)]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns below `headings`; one that starts with > is aligned to the right. Texts are cut until all fits."""
    names = [heading.removeprefix(_RIGHT) for heading in headings]
    cells = [names, *([safe(cell) for cell in row] for row in rows)]
    widths = [max(width(row[column]) for row in cells) for column in range(len(names))]
    gap = 2 if sum(widths) + 2 * (len(widths) - 1) <= COLUMNS else 1
    texts = [column for column, heading in enumerate(headings) if not heading.startswith(_RIGHT)]
    while (over := sum(widths) + gap * (len(widths) - 1) - COLUMNS) > 0:
        widest = max(texts, key=lambda column: widths[column])
        if widths[widest] <= _LEAST:
            break
        next_to = max((widths[column] for column in texts if column != widest), default=0)
        widths[widest] -= min(over, max(1, widths[widest] - max(next_to, _LEAST)))
    lines = []
    for row in cells:
        line = ""
        for column, cell in enumerate(row):
            text = cut(cell, widths[column]) if column in texts else cell
            space = " " * (widths[column] - width(text))
            line += (space + text if headings[column].startswith(_RIGHT) else text + space) + " " * gap
        lines.append(line.rstrip())
    return lines


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`, did you mean new?`, or nothing."""
    import difflib

    near = difflib.get_close_matches(name[:64], list(names), 1, 0.65)
    return f", did you mean {safe(near[0])}?" if near else ""


def moment(text: str) -> str:
    """A time that the proxy wrote (`2026-11-23T23:09:23.123Z`) as people read all others, by `zoned_time`."""
    from datetime import datetime

    try:
        return zoned_time(datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError):  # a record of somebody else's
        return text


def some(names: Sequence[str], total: int = 0) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:_SHOWN])
    more = max(total, len(names)) - len(names[:_SHOWN])
    return f"{shown} and {more:,} more" if more > 0 else shown


def first(lines: Sequence[str]) -> list[str]:
    """The first of a long list, and a line that says how many more there are."""
    return [*lines[:_SHOWN], *([f"and {len(lines) - _SHOWN:,} more"] if len(lines) > _SHOWN else [])]


# --- deliveries ------------------------------------------------------------------------------------------------------


def place(record: Answer) -> str:
    """`old[/run/x]`"""
    return f"{record.text('backend')}[{record.text('address')}]"


def _recipients(flight: Answer) -> str:
    names, total = flight.texts("recipients"), flight.integer("count")
    return f"{names[0] if names else '-'}{f' (+{total - 1})' if total > 1 else ''}"


def flight_text(flight: Answer, *, stage: bool = True) -> str:
    """`alice@example.org from <s@x>, dot sent, under way for 3.2 s`, or where it goes to in place of how it stands."""
    text = f"{_recipients(flight)} from {_path(flight.text('sender'))}"
    if not stage:
        return f"{text} to {place(flight)}"
    phase = flight.text("phase")
    return f"{text}, {_PHASES.get(phase, phase)}, under way for {span(flight.number('seconds'))}"


def _path(text: str) -> str:
    return text if text.startswith("<") else f"<{text}>"


def waiting_text(flights: Sequence[Answer]) -> str:
    """`2 deliveries to old[/run/x]: alice@example.org from <s@x>, dot sent, ...`, of the oldest."""
    oldest = max(flights, key=lambda flight: flight.number("seconds"))
    places = list(dict.fromkeys(map(place, flights)))
    return f"{count(len(flights), 'delivery', 'deliveries')} to {some(places)}: {flight_text(oldest)}"


def flights(found: Sequence[Answer]) -> list[str]:
    """A table of deliveries, the oldest first."""
    if not found:
        return ["nothing is in flight"]
    rows = [
        [
            _recipients(flight),
            flight.text("backend"),
            flight.text("phase"),
            span(flight.number("seconds")),
            octets(flight.integer("octets")),
        ]
        for flight in sorted(found, key=lambda flight: -flight.number("seconds"))
    ]
    return table(["user", "backend", "phase", ">for", ">size"], rows)


def uncertain(records: Sequence[Answer]) -> list[str]:
    """Six or more lines for each delivery whose outcome is unknown; what has to be found is on lines of its own."""
    lines = []
    for record in records:
        size = count(record.integer("size"), "octet")  # to the octet: it is looked for
        lines += wrapped(f"{moment(record.text('time'))}  session {record.text('session')}, {size}")
        for label, text in (
            ("to", record.text("recipient")),
            ("in", place(record)),
            ("from", _path(record.text("sender"))),
            ("Message-ID", record.optional_text("message_id") or "not seen"),
            ("because", record.text("reason")),
        ):
            lines += wrapped(f"    {label:<11}{text}", " " * 15)
    return lines


ADVICE = (
    "Each of these may be in that store or not, and its client sends it again: look there for the Message-ID "
    "once the store is quiet."
)


# --- what the verbs show ---------------------------------------------------------------------------------------------


def sessions(found: Sequence[Answer]) -> list[str]:
    if not found:
        return ["no sessions"]
    spoken = [session.optional_text("tls") for session in found]
    rows = [
        [
            session.text("session"),
            session.text("peer"),
            session.text("state"),
            session.optional_text("sender") or "-",
            str(session.integer("recipients")),
            span(session.number("seconds")),
            octets(session.integer("octets")),
            *([tls or "-"] if any(spoken) else []),
        ]
        for session, tls in zip(found, spoken, strict=True)
    ]
    head = ["session", "peer", "state", "sender", ">rcpts", ">for", ">size", *(["tls"] if any(spoken) else [])]
    return table(head, rows)


def tls(spoken: Answer) -> str:
    """`TLSv1.3, TLS_AES_256_GCM_SHA384; certificate of CN=x, issued by CN=CA, valid until ... (30.0 days)`"""
    text = f"{spoken.text('version')}, {spoken.text('cipher')}"
    if spoken.has_null("until"):
        return text
    subject, issuer = spoken.text("subject"), spoken.text("issuer")
    until = f"{spoken.text('until')} ({spoken.number('days_left'):g} days left)"
    return f"{text}; certificate of {subject}, issued by {issuer}, valid until {until}"


def backends(found: Sequence[Answer]) -> list[str]:
    """A table of counters, and below each backend its address, trouble and TLS, and why others wait for its places."""
    numbers = ("users", "sent", "deferred", "bounced", "uncertain")
    rows = [
        [
            backend.text("name"),
            backend.text("state"),
            f"{backend.integer('busy')}/{backend.integer('max_connections')}",
            *(str(backend.integer(name)) for name in numbers),
        ]
        for backend in found
    ]
    head, *lines = table(["backend", "state", ">busy", *(f">{name}" for name in numbers)], rows)
    shown = [head]
    for line, backend in zip(lines, found, strict=True):
        trouble = backend.optional_text("trouble")
        shown += [line, *wrapped(f"  {backend.text('address')}{f': {trouble}' if trouble else ''}", "    ")]
        if not backend.has_null("tls"):
            shown += wrapped(f"  {tls(backend.object('tls'))}", "    ")
        if waiting := backend.integer("waiting"):
            uses = ", ".join(f"{number} for {what}" for what, number in backend.object("waits_for").integers().items())
            shown += wrapped(
                f"  {count(waiting, 'message')} waiting for a connection; those in use wait, {uses}", "    "
            )
    return shown


def status(answer: Answer, digest: str | None) -> list[str]:
    """digest: SHA-256 of the configuration as it is on disk, None if it cannot be read."""
    config = answer.object("config")
    phases = answer.object("in_flight").integers()
    users_on = answer.object("users_on").integers()
    fallback = answer.optional_text("fallback_backend")
    rows = [
        ("lmtp-proxy", f"{answer.text('version')}, pid {answer.integer('pid')}, up {span(answer.number('uptime'))}"),
        ("started", moment(answer.text("started"))),
        ("listens on", _listening(answer)),
        *map(_worker, answer.objects("workers")),
        ("generation", f"{answer.integer('generation')}, loaded {moment(config.text('loaded'))}"),
        (
            "config",
            f"{config.text('path')}, sha256 {config.text('sha256')[:12]}, modified {moment(config.text('modified'))}",
        ),
        *_table(answer),
        ("sessions", f"{answer.integer('sessions')}, {answer.integer('held')} of them on hold"),
        ("in flight", ", ".join(f"{number} in {phase}" for phase, number in phases.items())),
        ("uncertain", f"{answer.integer('uncertain')}, log: {answer.optional_text('uncertain_log') or 'none'}"),
        *_log(answer),
        ("users", _users_on(users_on, answer.integer("users"))),
        ("all others", fallback or "450, as there is no fallback_backend"),
    ]
    return [*labelled(rows), *_warnings(answer, config, digest), "", *backends(answer.objects("backends"))]


def _table(answer: Answer) -> list[tuple[str, str]]:
    """Where the users are, if in a database."""
    if answer.document.get("table") is None:
        return []
    table = answer.object("table")
    gen = "not read yet" if table.has_null("gen") else f"change {table.integer('gen'):,}"
    rows = [("table", f"{table.text('sqlite')}, {gen}")]
    if (trouble := table.optional_text("trouble")) is not None:
        rows.append(("", trouble))
    if refused := table.integer("refused_count"):
        rows.append(("", f"{count(refused, 'row')} cannot be served: {'; '.join(table.texts('refused'))}"))
    return rows


def _log(answer: Answer) -> list[tuple[str, str]]:
    """Only where lines do not arrive; a proxy of a version before does not say."""
    if "log" not in answer.document:
        return []
    log = answer.object("log")
    trouble, lost, waiting = log.text("trouble"), log.integer("lost"), log.integer("waiting")
    if not (trouble or lost):
        return []
    numbers = f"{count(lost, 'line')} lost, {count(waiting, 'line')} waiting"
    return [("log", f"{numbers}: {trouble}" if trouble else numbers)]


def _listening(answer: Answer) -> str:
    """Where mail comes in, and where the status page is if there is one."""
    metrics = answer.optional_text("metrics")
    return answer.text("socket") + (f", metrics on http://{metrics}/" if metrics else "")


def config(answer: Answer) -> list[str]:
    """`config.max_clients: 1000` each; what is not set is left out."""

    def walk(name: str, value: object) -> Iterator[str]:
        if isinstance(value, dict):
            for key, each in value.items():
                yield from walk(f"{name}.{key}", each)
        elif isinstance(value, list):
            yield from wrapped(f"{name}: [{', '.join(map(_scalar, value))}]")
        elif value is not None:
            yield from wrapped(f"{name}: {_scalar(value)}")

    return [line for name in ("config", "backends") for line in walk(name, answer.object(name).document)]


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def _worker(worker: Answer) -> tuple[str, str]:
    number, pid = worker.integer("restarts"), "-" if worker.has_null("pid") else worker.integer("pid")
    text = f"{worker.text('state')}, pid {pid}, {count(worker.integer('sessions'), 'session')}"
    return f"worker {worker.integer('number')}", f"{text}, restarted {count(number, 'time')}" if number else text


def _users_on(users_on: Mapping[str, int], total: int) -> str:
    parts = [f"{number:,} on {name}" for name, number in users_on.items() if number]
    return f"{total:,}: {', '.join(parts)}" if parts else f"{total:,}"


def after_crash(answer: Answer) -> list[str]:
    """What to do when a process has died whose deliveries nobody knows."""
    if answer.has_null("after_crash"):
        return []
    crash = answer.object("after_crash")
    ago = span(crash.number("seconds"))
    if not crash.has_null("worker"):
        who = f"warning: worker process {crash.integer('worker')} died {ago} ago. What it"
    else:
        who = f"warning: lmtp-proxy started {ago} ago after one that had died. What that one"
    what = "may still be finishing in a store, and is in no list: see that the store is quiet"
    return wrapped(f"{who} had handed over {what}")


def _warnings(answer: Answer, config: Answer, digest: str | None) -> list[str]:
    lines = after_crash(answer)
    for worker in answer.objects("workers"):
        if worker.text("state") == "silent":
            what = f"worker process {worker.integer('pid')} does not answer, and is in no sum here"
            lines += wrapped(f"warning: {what}: kill -CONT it if it was stopped, else kill -KILL")
    if (torn := answer.document.get("torn")) is not None:
        lines += wrapped(f"warning: the workers do not deliver by the same configuration: {torn}")
    if answer.flag("stopping"):
        lines += wrapped("warning: it is stopping: no new clients are accepted, what is under way is finished")
    if not answer.has_null("reloading"):
        lines += wrapped(f"a reload is under way, for {span(answer.number('reloading'))} so far")
    if digest is not None and digest != config.text("sha256"):
        what = f"{config.text('path')}{' with its files of users' if config.document.get('users_file') else ''}"
        lines += wrapped(
            f"warning: {what} on disk (sha256 {digest[:12]}) differs from what runs; "
            "see `check`, or put it in force by `reload`"
        )
    if not answer.has_null("reload") and not (last := answer.object("reload")).flag("ok"):
        lines += wrapped(f"warning: the last reload was refused, {moment(last.text('time'))}:")
        for error in last.texts("errors"):
            lines += wrapped(f"  {error}", "    ")
    return lines


def lookup(answer: Answer, path: str) -> list[str]:
    """path: of the file that `line` is of."""
    hit, line, backend = answer.optional_text("hit"), answer.document.get("line"), answer.optional_text("backend")
    rows = [("address", answer.text("address"))]
    for number, key in enumerate(answer.texts("keys")):
        where = f"  <- {path}:{line}" if key == hit and line else "  <- the hit" if key == hit else ""
        rows.append(("" if number else "keys", key + where))
    source = answer.optional_text("source")
    rows.append(("found in", source or "nothing: not in users, and there is no fallback_backend for it"))
    rows.append(("backend", backend or "-"))
    rows.append(("answer", answer.text("answer")))
    return labelled(rows)


def check(answer: Answer, path: str) -> list[str]:
    """What would change; `answer` has no errors."""
    lines = [line for change in changes(answer) for line in wrapped(change)]
    what = "differs from what runs:" if lines else "no difference to what runs"
    notes = [line for note in answer.document.get("notes", ()) for line in wrapped(f"note: {note}")]
    return [*notes, *wrapped(f"{path}: OK, {count(answer.integer('users'), 'user')}, {what}"), *lines]


def changes(answer: Answer) -> list[str]:
    """The same, a line for each, however long."""
    lines = [
        *(_changed(f"moved from {each.text('from')} to {each.text('to')}", each) for each in answer.objects("moved")),
        *(_changed(f"added on {each.text('to')}", each) for each in answer.objects("added")),
        *(_changed(f"removed from {each.text('from')}", each) for each in answer.objects("removed")),
        *(f"backend {each.text('change')}: {each.text('name')}" for each in answer.objects("backends")),
    ]
    keys = answer.texts("config")
    return [*lines, f"changed: {', '.join(keys)}"] if keys else lines


def _changed(what: str, change: Answer) -> str:
    total = change.integer("count")
    return f"{count(total, 'user')} {what}: {some(change.texts('users'), total)}"
