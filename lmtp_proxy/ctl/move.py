# SPDX-License-Identifier: GPL-3.0-or-later
"""Moves users to another backend: preflight, edit, reload, drain.

After each step it knows what is so now: in the file, in the running proxy, and on the way to the old backend. That is
what it says when a step fails, or somebody interrupts.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

from lmtp_proxy.ctl import output as show
from lmtp_proxy.ctl.client import Answer, ControlClient, ControlError, Refusal
from lmtp_proxy.ctl.drain import OLD_STORE, REFUSED, UNPROVEN, Drained, Failed, Outcome, Progress, drain
from lmtp_proxy.ctl.names import quoted
from lmtp_proxy.ctl.rehearsal import meaning_of, rehearsed
from lmtp_proxy.ctl.validity import ALWAYS, Validity
from lmtp_proxy.text import count, safe, span

if TYPE_CHECKING:
    from lmtp_proxy.config.file import Change
    from lmtp_proxy.config.values import Config
    from lmtp_proxy.ctl.in_table import TableChange

RESERVED = ("reject", "hold")  # as in config.values, whose import takes longer than a drain
_MAX_BODY = 4 * 2**20  # octets that the control socket takes
_ANSWER = 60.0  # seconds
_RELOAD = 300.0  # seconds, for several loads of a very large file on a slow machine
_PREFLIGHT = 600.0  # for one batch; the backend's own timeouts end it before
_BATCH = 1000  # recipients of one preflight

NO_LINE = "-"
"""In Order.only_from."""

NO_ROOM = (452, 552)
"""Replies to RCPT by which a store knows the user, whose mailbox may be full."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to move.

    Attributes:
        timeout: seconds for the drain.
        domain: of bare names, in the preflight.
        also: edits of others that move users are put in force, too.
        only_from: nothing is changed unless the lines of all say one of these, NO_LINE of those on none; None: whatever
            they say.
        validity: when the files may be changed.
        dry_run: all is looked at, and nothing is changed.
    """

    users: Sequence[str]
    backend: str
    timeout: float = 600.0
    preflight: bool = True
    domain: str | None = None
    also: bool = False
    only_from: frozenset[str] | None = None
    validity: Validity = ALWAYS
    dry_run: bool = False

    @property
    def who(self) -> str:
        """`alice is` or `3 users are`."""
        return f"{safe(self.users[0])} is" if len(self.users) == 1 else f"{len(self.users):,} users are"

    def recipient(self, user: str) -> str:
        """As a store is asked for the user."""
        return quoted(f"{user}@{self.domain}" if self.domain and "@" not in user else user)


def move(
    client: ControlClient, order: Order, progress: Progress, turn: AbstractContextManager[object] | None = None
) -> Outcome:
    """Moves the users. Raises Failed, and ControlError if nothing was changed.

    turn: is held for edit and reload, by a caller who has several moves at once and knows which are in a hurry.
    """
    if len(json.dumps(order.users)) > _MAX_BODY - 1024:
        raise Failed(REFUSED, f"{len(order.users):,} users are too many at once: split the list")
    answer = client.get("/status")
    path, instance = answer.object("config").text("path"), answer.text("instance")
    if order.domain is None and isinstance(domain := answer.document.get("default_domain"), str):
        order = replace(order, domain=domain)
    warnings = _preflight(client, order, progress) if order.preflight and order.backend not in RESERVED else []
    import lmtp_proxy.config.file  # noqa: F401  (takes longer than the edit, and belongs to no user's time)

    _wait_for_its_time(order, progress)
    if order.dry_run:
        edit = _CarefulEdit(client, order, progress)
        in_table = answer.document.get("table") is not None
        planned: Change | TableChange = edit.make_in_table(path, answer) if in_table else edit.make(path)
        steps = {
            user: _step(planned.previous.get(user), order.backend, edit.overrides.get(user)) for user in order.users
        }
        outcome = rehearsed(path, order.backend, planned, edit.overrides, edit.meaning, steps)
        return replace(
            outcome,
            document={
                **outcome.document,
                "instance": instance,
                "also": edit.also,
                "warnings": warnings + edit.warnings,
            },
            warnings=[*warnings, *edit.warnings, *(f"edited by somebody else: {line}" for line in edit.also)],
        )
    began = time.monotonic()
    document: dict[str, object] = {"path": path, "backend": order.backend, "warnings": warnings}
    now = ""
    try:
        with turn or nullcontext():
            edit = _CarefulEdit(client, order, progress)
            change = edit.make(path) if answer.document.get("table") is None else edit.make_in_table(path, answer)
            now = f"{_named(change)} that {order.who} on {order.backend}"
            progress.step(f"{now}, but the running proxy may not know it yet")
            document |= {"previous": dict(change.previous), "changed": change.changed, "overrides": edit.overrides}
            document |= {"files": list(change.files), "also": edit.also}
            warnings += edit.warnings
            warnings += [f"also in force now, by an edit of somebody else: {line}" for line in edit.also]
            generation = _reload(client, order, path, change, progress)
        progress.step(f"{order.who} on {order.backend} since generation {generation}")
        drained = drain(client, {"users": list(order.users)}, order.timeout, progress, instance)
    except Failed as failed:
        if "previous" in document:
            failed.document.update(document)
        if failed.status == UNPROVEN:
            failed.text += f"; {now} now"
        raise
    except ControlError as error:
        if not now:
            raise
        what = f"{error}; {now} now; if lmtp-proxy died, {OLD_STORE}"
        raise Failed(UNPROVEN, what, (), document) from error
    document |= {"reloaded": generation, **drained.document()}
    _check_routes(order, path, drained.answer, document)
    if change.in_table:
        from lmtp_proxy.ctl.taken_in import check_in_force

        check_in_force(change, now, drained.answer.optional_text("in_force"), document)
    if drained.done:
        warnings += edit.finish()
    seconds = time.monotonic() - began
    document["seconds"] = round(seconds, 3)
    outcome = _report(order, change.previous, edit.overrides, generation, drained, seconds)
    return replace(outcome, document=document, warnings=warnings)


class _Unlisted(Exception):
    """Who is on no line, by the store that has their mail now, None if none has: to be asked before they are parked."""

    def __init__(self, stores: dict[str | None, list[str]]) -> None:
        super().__init__(stores)
        self.stores = stores


class _Rehearsed(Exception):
    """All was as it should be, up to the change itself."""


class _Edited(Exception):
    """Somebody else has edited the files since they were loaded: what they did has to be named first."""


class _CarefulEdit:
    """The change in the file, after a look at who is on no line of it, and at what else the file says that is not in
    force: a mistyped name parks nobody, and nobody's edit is put in force without a word.

    Attributes:
        warnings: what could not be found out.
        also: what others have edited, a line each.
        overrides: user without a line -> where mail goes until then, and by what.
        meaning: what names and backends mean there, see rehearsal.
    """

    def __init__(self, client: ControlClient, order: Order, progress: Progress) -> None:
        self.warnings: list[str] = []
        self.overrides: dict[str, dict[str, str]] = {}
        self.also: list[str] = []
        self.meaning: dict[str, object] = {}
        self._client = client
        self._order = order
        self._progress = progress
        self._asked: set[str] = set()
        self._change_in_table: TableChange | None = None
        self._named: str | None = None  # the state of the files whose edits are named

    def make(self, path: str) -> "Change":
        """Raises Failed if nothing was changed."""
        from lmtp_proxy.config.file import change_users
        from lmtp_proxy.config.values import ConfigError

        order = self._order
        begun: list[Change] = []

        def about_to(change: "Change") -> None:
            begun.append(change)
            self._announce(change)
            self._check_validity()
            if order.dry_run:
                raise _Rehearsed

        while True:
            try:
                return change_users(
                    path,
                    list(order.users),
                    order.backend,
                    deadline=time.monotonic() + order.timeout,
                    waiting=partial(self._progress.waiting, at_once=True),
                    look=self._look,
                    about_to=about_to,
                )
            except _Unlisted as unlisted:  # not under the lock, for which others wait
                self._ask_all(unlisted)
            except _Edited:
                self._name_edits(path)
            except _Rehearsed:
                return begun[-1]
            except ConfigError as error:
                raise Failed(REFUSED, "nothing was changed", error.errors) from error
            except KeyboardInterrupt:  # each file is one rename, which was before or will never be
                if begun and begun[-1].begun:
                    what = "edited, but the running proxy does not know it: see `lmtp-proxyctl check`"
                    self._progress.step(f"{_files(begun[-1])} was {what}")
                raise

    def make_in_table(self, path: str, status: Answer) -> "TableChange":
        """As `make`, in the database of config.table. Raises ControlError, too, where it is not known what is so."""
        from lmtp_proxy.config.read import load_config
        from lmtp_proxy.config.values import ConfigError
        from lmtp_proxy.ctl import in_table
        from lmtp_proxy.ctl.taken_in import take_in
        from lmtp_proxy.routing.keys import FoldingError
        from lmtp_proxy.table.base import TableError

        order, table = self._order, status.object("table")
        database = table.text("sqlite")
        names = [each.text("name") for each in status.objects("backends")]
        if order.backend not in (*names, *RESERVED):
            hint = show.did_you_mean(order.backend, [*names, *RESERVED])
            what = f'there is no backend "{safe(order.backend)}" in the running configuration{hint}'
            raise Failed(REFUSED, f"{what}; nothing was changed")
        try:
            config = load_config(path)
            previous = self._look_in_table(config, database, domains=table.flag("has_domains"))
            if order.dry_run:
                return in_table.TableChange(database, previous, order.backend, {}, {})
            change = in_table.mark(database, list(order.users), order.backend, config.key_rules)
        except ConfigError as error:
            raise Failed(REFUSED, "nothing was changed", error.errors) from error
        except (TableError, FoldingError) as error:
            raise Failed(REFUSED, f"{error}; nothing was changed") from error
        self._change_in_table = change
        try:
            self._check_only_from(change.previous)  # who moves them from here on keeps `write` from doing so
            # Nobody is moved by a proxy that does not hear of it.
            take_in(self._client, change, self._progress, "nothing was changed")
            self._check_validity()
            who = f"{_named(change)} that {order.who} on {order.backend}"
            self._progress.step(f"perhaps {who}, and the running proxy may not know it yet: drain them, or move again")
            self._change_in_table = change = change.write()
        except BaseException as error:
            trouble = "".join(f"; {each}" for each in self.finish())
            if isinstance(error, TableError):
                raise Failed(REFUSED, f"{error}; nothing was changed{trouble}") from error
            raise
        return change

    def _look_in_table(self, config: "Config", database: str, *, domains: bool) -> dict[str, str | None]:
        """As `_look`, with those rows that say something of the users; returns where each is.

        Raises Failed, TableError, FoldingError.
        """
        from lmtp_proxy.ctl import in_table
        from lmtp_proxy.routing.static_table import StaticTable

        rules, forms = config.key_rules, set()
        for user in self._order.users:
            local_part, _, domain = user.rpartition("@") if "@" in user else (user, "", "")
            forms.update([rules.table_key(user), *(rules.forms(local_part, domain) if local_part else ())])
        if "" in forms:
            raise Failed(REFUSED, "a domain can never match while ignoreDomain is true; nothing was changed")
        while True:
            found = in_table.rows_of(database, sorted(forms))
            previous = {user: found.get(rules.table_key(user)) for user in self._order.users}
            try:
                self._look(replace(config, users=StaticTable(dict(sorted(found.items())))), previous, domains=domains)
                return previous
            except _Unlisted as unlisted:
                self._ask_all(unlisted)

    def finish(self) -> list[str]:
        """All is quiet, or nothing was changed: the users are not moving any more. Returns warnings."""
        from lmtp_proxy.table.base import TableError

        if self._change_in_table is not None:
            try:
                self._change_in_table.finish()
            except TableError as error:
                return [f"{error}; the users stay marked as moving, which the next move of them ends"]
        return []

    def _ask_all(self, unlisted: _Unlisted) -> None:
        for store, users in unlisted.stores.items():
            self._ask(store, users)
            self._asked.update(users)

    def _check_validity(self) -> None:
        if self._order.validity.over:
            raise Failed(REFUSED, "the order came too late, and is not good any more; nothing was changed")

    def _check_only_from(self, previous: Mapping[str, str | None]) -> None:
        allowed = self._order.only_from
        if allowed is not None:
            wrong = [user for user, backend in previous.items() if (backend or NO_LINE) not in allowed]
            places = " or ".join(sorted(allowed))
            lines = [f"{safe(user)}: {_now_on(previous[user])}, not on {places}" for user in wrong]
            if lines:
                raise Failed(REFUSED, "nothing was changed", show.first(lines), {"previous": dict(previous)})

    def _look(self, config: "Config", previous: Mapping[str, str | None], *, domains: bool | None = None) -> None:
        """domains: whether there are keys with one, if that is not to be seen."""
        order = self._order
        self._check_only_from(previous)
        if order.dry_run:
            self.meaning = meaning_of(config)
        new = [user for user, backend in previous.items() if backend is None and not user.startswith("@")]
        has_domains = _has_domains(config) if domains is None else domains and not _completes(config)
        if bare := [user for user in new if "@" not in user] if has_domains else []:
            what = "has no domain, and is on no line: mail comes with one (without ignoreDomain)"
            lines = [f"{safe(user)}: {what}: name {safe(user)}@DOMAIN" for user in bare]
            raise Failed(REFUSED, "nothing was changed", show.first(lines))
        self.overrides = {user: where for user in new if (where := _elsewhere(config, user)) is not None}
        unknown = [user for user in new if user not in self._asked]
        if unknown and order.preflight and order.backend in RESERVED:
            stores: dict[str | None, list[str]] = {}
            for user in unknown:
                where = self.overrides.get(user)
                stores.setdefault(where["backend"] if where else None, []).append(user)
            raise _Unlisted(stores)

    def _announce(self, change: "Change") -> None:
        """Raises _Edited if the files hold what nobody has asked to load. Under their lock, so no other move edits."""
        if self._order.dry_run and change.before == self._named:
            return  # or others would take what they have not been told of for known
        after = change.before if self._order.dry_run else change.after
        body: dict[str, object] = {"before": change.before, "after": after}
        try:
            answer = self._client.post("/edit", {**body, "accept": change.before == self._named}, timeout=_ANSWER)
        except Refusal as refusal:
            if refusal.code == HTTPStatus.NOT_FOUND:  # a process of before
                return
            raise
        if not answer.flag("known"):
            raise _Edited
        if change.before != self._named:  # somebody else has had it loaded since
            self.also = []

    def _name_edits(self, path: str) -> None:
        """What others have edited. Raises Failed if that moves users, and the order is not for them, too."""
        order = self._order
        doing = partial(_tick, self._progress, f"{path} to be compared with what runs: somebody else has edited it")
        answer = self._client.post("/check", {"path": path, "except": list(order.users)}, timeout=_RELOAD, tick=doing)
        if answer.texts("errors"):  # the next look tells
            return
        self.also = show.changes(answer)
        self._named = answer.text("sha256")
        if any(answer.objects(kind) for kind in ("added", "removed", "moved")) and not order.also:
            what = f"{path} has been edited by somebody else, and that does not run yet: a move would put it in force"
            ways = "reload first, or give --also"
            raise Failed(REFUSED, f"{what}; nothing was changed; {ways}", self.also, {"also": self.also})

    def _ask(self, store: str | None, users: Sequence[str]) -> None:
        """Whether the store that has their mail now knows them. Raises Failed if it does not."""
        who = users[0] if len(users) == 1 else count(len(users), "user")
        if store is None or store in RESERVED:
            where = "no store has mail for it now" if store is None else f"it is on {store}"
            self.warnings.append(f"{safe(who)}: is on no line, and {where}: nobody knows whether the name is right")
            return
        refused = []
        try:
            for start in range(0, len(users), _BATCH):
                batch = users[start : start + _BATCH]
                recipients = [self._order.recipient(user) for user in batch]
                doing = f"{store} to say whether it knows {safe(who)}"
                answer = _ask(self._client, store, recipients, partial(_tick, self._progress, doing))
                for user, reply in _replies(self._client, answer, batch, recipients):
                    if reply.integer("code") // 100 == 5 and reply.integer("code") != 552:
                        said = f"{store}, where its mail goes now, said {reply.text('reply')}"
                        refused.append(f"{safe(user)}: is on no line, and {said}: is the name right?")
        except (Failed, ControlError) as error:
            why = error.text if isinstance(error, Failed) else str(error)
            what = f"is on no line, and {store} could not be asked whether the name is right"
            self.warnings.append(f"{safe(who)}: {what}: {why.partition('; nothing was changed')[0]}")
            return
        if refused:
            what = "nothing was changed; --no-preflight adds the line all the same"
            raise Failed(REFUSED, what, show.first(refused))


def _now_on(backend: str | None) -> str:
    return "is on no line" if backend is None else f"is on {backend}"


def _wait_for_its_time(order: Order, progress: Progress) -> None:
    while early := order.validity.early:
        progress.waiting("the time from which on this order is good")
        time.sleep(min(early, 0.5))


def _has_domains(config: "Config") -> bool:
    """Whether mail for a bare name hits no bare key: the domain counts, and the table is not one of bare names."""
    return not _completes(config) and (not config.users or config.users.has_domains)


def _completes(config: "Config") -> bool:
    return config.ignore_domain or config.default_domain is not None


def _elsewhere(config: "Config", user: str) -> dict[str, str] | None:
    """Where mail goes for who is on no line, and by which key."""
    local_part, _, domain = user.rpartition("@") if "@" in user else (user, "", "")
    for key in config.key_rules.forms(local_part, domain):
        if (backend := config.users.get(key)) is not None:
            return {"backend": backend, "by": key}
    fallback = config.fallback_backend
    return None if fallback is None else {"backend": fallback, "by": "fallback_backend"}


def _reload(client: ControlClient, order: Order, path: str, change: "Change | TableChange", progress: Progress) -> int:
    """The generation that has the change. Raises Failed with status 1 if the file is refused, and ControlError."""
    if change.in_table:
        from lmtp_proxy.ctl.taken_in import take_in, take_in_again

        try:
            return take_in(client, change, progress, "")
        except Failed as failed:
            if failed.status == REFUSED:
                failed.text = f"{failed.text}{_undo(change)}"
                take_in_again(client, change, progress, failed)
            raise
    try:
        answer = client.post("/reload", {}, timeout=_RELOAD, tick=partial(_tick, progress, f"the reload of {path}"))
    except Refusal as refusal:
        if refusal.code != 409:
            raise
        if not change.changed:
            end = f"{_files(change)} said before that {order.who} on {order.backend}, and was not changed"
        else:
            end = _undo(change)
        raise Failed(REFUSED, f"{refusal}; {end}", refusal.answer.texts("errors")) from refusal
    return answer.integer("generation")


def _undo(change: "Change | TableChange") -> str:
    from lmtp_proxy.config.values import ConfigError

    try:
        if change.undo():
            return f"{_files(change)} was put back as it was, so nothing was changed"
        why = "somebody else has written it since"
    except ConfigError as error:
        why = str(error)
    return f"{_files(change)} was NOT put back ({why}): look at it"


def _files(change: "Change | TableChange") -> str:
    return " and ".join(map(safe, change.files))


def _named(change: "Change | TableChange") -> str:
    return f"{_files(change)} {'says' if len(change.files) == 1 else 'say'}"


def _check_routes(order: Order, path: str, answer: Answer, document: Mapping[str, object]) -> None:
    routes = answer.object("routes").optional_texts()
    # The answer may leave out some of many.
    elsewhere = [user for user in order.users if routes.get(user, order.backend) != order.backend]
    if not elsewhere:
        return
    lines = [f"{safe(user)}: is on {routes.get(user) or 'no backend'}, not on {order.backend}" for user in elsewhere]
    what = f"{count(len(elsewhere), 'user')} moved on meanwhile: somebody else changed {path}"
    raise Failed(UNPROVEN, what, show.first(lines), document)


# --- preflight -------------------------------------------------------------------------------------------------------


def _preflight(client: ControlClient, order: Order, progress: Progress) -> list[str]:
    """Whether the backend would take mail for all of them. Returns warnings; raises Failed if it would not."""
    users = [user for user in order.users if not user.startswith("@")]
    missing, unwilling, full = [], [], []
    for start in range(0, max(len(users), 1), _BATCH):
        batch = users[start : start + _BATCH]
        recipients = [order.recipient(user) for user in batch]
        doing = f"the preflight on {order.backend}: {start:,} of {count(len(users), 'user')} asked"
        answer = _ask(client, order.backend, recipients, partial(_tick, progress, doing))
        for user, reply in _replies(client, answer, batch, recipients):
            code, said = reply.integer("code"), f"it said {reply.text('reply')}"
            if code in NO_ROOM:
                full.append(f"{safe(user)}: no room on {order.backend}? {said}")
            elif code // 100 == 5:
                missing.append(f"{safe(user)}: account missing on {order.backend}? {said}")
            elif code // 100 != 2:
                unwilling.append(f"{safe(user)}: {order.backend} takes no mail for it now: {said}")
    if missing or unwilling:
        what = f"{order.backend} refused {len(missing + unwilling):,} of {count(len(users), 'user')}"
        raise Failed(
            REFUSED, f"{what}; nothing was changed; --no-preflight moves all the same", show.first(missing + unwilling)
        )
    progress.step(progress.state)
    return show.first(full)


def _replies(
    client: ControlClient, answer: Answer, users: Sequence[str], recipients: Sequence[str]
) -> Iterator[tuple[str, Answer]]:
    """Each user with what was said for its recipient."""
    replies = {reply.text("recipient"): reply for reply in answer.objects("replies")}
    for user, recipient in zip(users, recipients, strict=True):
        reply = replies.get(recipient.replace("\\", "\\\\"))  # foreign text comes escaped
        if reply is None:
            raise Failed(REFUSED, f"{client.path}: there is no reply for {recipient}; nothing was changed")
        yield user, reply


def _tick(progress: Progress, doing: str, _waited: float) -> None:
    progress.waiting(doing)


def _ask(client: ControlClient, backend: str, recipients: Sequence[str], tick: Callable[[float], None]) -> Answer:
    try:
        answer = client.post(
            "/preflight", {"backend": backend, "recipients": recipients}, timeout=_PREFLIGHT, tick=tick
        )
    except Refusal as refusal:
        if refusal.code == 404:
            names = [each.text("name") for each in client.get("/backends").objects("backends")]
            hint = show.did_you_mean(backend, [*names, *RESERVED])
            what = f"{refusal} in the running configuration{hint} (if the file has it, reload first)"
            raise Failed(REFUSED, f"{what}; nothing was changed") from refusal
        raise Failed(REFUSED, f"{refusal}; nothing was changed; --no-preflight goes without") from refusal
    if (refused := answer.optional_text("refused")) is not None:
        what = f"{show.place(answer)} does not take mail: {refused}"
        raise Failed(REFUSED, f"{what}; nothing was changed; --no-preflight moves all the same")
    return answer


# --- report ----------------------------------------------------------------------------------------------------------


def _report(
    order: Order,
    previous: Mapping[str, str | None],
    overrides: Mapping[str, Mapping[str, str]],
    generation: int,
    drained: Drained,
    seconds: float,
) -> Outcome:
    users = {user: _step(previous.get(user), order.backend, overrides.get(user)) for user in order.users}
    end = f"generation {generation}, {drained.text}"
    if not drained.waited_for:
        end += f" ({span(seconds)})"
    error = ""
    if not drained.done:
        again = f"`lmtp-proxyctl drain {order.users[0]}{' ...' if len(order.users) > 1 else ''}` waits on"
        error = f"{order.who} on {order.backend} since generation {generation}, but not all is quiet: {again}"
    return Outcome({}, drained.lines(users, end), drained.status, error=error)


def _step(previous: str | None, backend: str, overrides: Mapping[str, str] | None) -> str:
    if previous is None:
        was = f", was on {overrides['backend']} by {overrides['by']}" if overrides else ""
        return f"added on {backend}{was}"
    return f"was on {backend} already" if previous == backend else f"{previous} -> {backend}"
