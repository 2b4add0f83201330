# SPDX-License-Identifier: GPL-3.0-or-later
"""Moves users to another backend: preflight, edit, reload, drain.

After each step it knows what is so now: in the file, in the running proxy, and on the way to the old backend. That is
what it says when a step fails, or somebody interrupts.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from lmtp_proxy.ctl import output as show
from lmtp_proxy.ctl.client import Answer, ControlClient, ControlError, Refusal
from lmtp_proxy.ctl.drain import OLD_STORE, REFUSED, UNPROVEN, Drained, Failed, Outcome, Progress, drain
from lmtp_proxy.text import count, safe, span

if TYPE_CHECKING:
    from lmtp_proxy.config.file import Change

RESERVED = ("reject", "hold")  # as in config_values, whose import takes longer than a drain
_MAX_BODY = 4 * 2**20  # octets that the control socket takes
_RELOAD = 300.0  # seconds, for several loads of a very large file on a slow machine
_PREFLIGHT = 600.0  # for one batch; the backend's own timeouts end it before
_BATCH = 1000  # recipients of one preflight
_SHOWN = 20  # refused users that are named


@dataclass(frozen=True, slots=True)
class Order:
    """What to move. timeout: seconds for the drain. domain: of bare names, in the preflight."""

    users: Sequence[str]
    backend: str
    timeout: float = 600.0
    preflight: bool = True
    domain: str | None = None

    @property
    def who(self) -> str:
        """`alice is` or `3 users are`."""
        return f"{safe(self.users[0])} is" if len(self.users) == 1 else f"{len(self.users):,} users are"


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
    warnings = _preflight(client, order, progress) if order.preflight and order.backend not in RESERVED else []
    import lmtp_proxy.config.file  # noqa: F401  (takes longer than the edit, and belongs to no user's time)

    began = time.monotonic()
    document: dict[str, object] = {"path": path, "backend": order.backend, "warnings": warnings}
    try:
        with turn or nullcontext():
            change = _edit(path, order, progress)
            now = f"{path} says that {order.who} on {order.backend}"
            progress.step(f"{now}, but the running proxy may not know it yet")
            document |= {"previous": dict(change.previous), "changed": change.changed}
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
        what = f"{error}; {now} now; if lmtp-proxy died, {OLD_STORE}"
        raise Failed(UNPROVEN, what, (), document) from error
    document |= {"reloaded": generation, **drained.document()}
    _check_routes(order, path, drained.answer, document)
    seconds = time.monotonic() - began
    document["seconds"] = round(seconds, 3)
    outcome = _report(order, change.previous, generation, drained, seconds)
    return replace(outcome, document=document, warnings=warnings)


def _edit(path: str, order: Order, progress: Progress) -> "Change":
    from lmtp_proxy.config.file import change_users
    from lmtp_proxy.config.values import ConfigError

    before = os.stat(path) if os.path.exists(path) else None
    try:
        return change_users(
            path,
            list(order.users),
            order.backend,
            deadline=time.monotonic() + order.timeout,
            waiting=partial(progress.waiting, at_once=True),
        )
    except ConfigError as error:
        raise Failed(REFUSED, "nothing was changed", error.errors) from error
    except KeyboardInterrupt:  # it is one rename, which was before or will never be
        if before is None or not os.path.exists(path) or not os.path.samestat(before, os.stat(path)):
            progress.step(f"{path} was edited, but the running proxy does not know it: see `lmtp-proxyctl check`")
        raise


def _reload(client: ControlClient, order: Order, path: str, change: "Change", progress: Progress) -> int:
    """The generation that has the change. Raises Failed with status 1 if the file is refused, and ControlError."""
    try:
        answer = client.post("/reload", {}, timeout=_RELOAD, tick=partial(_tick, progress, f"the reload of {path}"))
    except Refusal as refusal:
        if refusal.code != 409:
            raise
        if not change.changed:
            end = f"{path} said before that {order.who} on {order.backend}, and was not changed"
        else:
            end = _undo(change)
        raise Failed(REFUSED, f"{refusal}; {end}", refusal.answer.texts("errors")) from refusal
    return answer.integer("generation")


def _undo(change: "Change") -> str:
    from lmtp_proxy.config.values import ConfigError

    try:
        if change.undo():
            return f"{change.path} was put back as it was, so nothing was changed"
        why = "somebody else has written it since"
    except ConfigError as error:
        why = str(error)
    return f"{change.path} was NOT put back ({why}): look at it"


def _check_routes(order: Order, path: str, answer: Answer, document: Mapping[str, object]) -> None:
    routes = answer.object("routes").optional_texts()
    # The answer may leave out some of many.
    elsewhere = [user for user in order.users if routes.get(user, order.backend) != order.backend]
    if not elsewhere:
        return
    lines = [f"{safe(user)}: is on {routes.get(user) or 'no backend'}, not on {order.backend}" for user in elsewhere]
    what = f"{count(len(elsewhere), 'user')} moved on meanwhile: somebody else changed {path}"
    raise Failed(UNPROVEN, what, _first(lines), document)


def _first(lines: Sequence[str]) -> list[str]:
    return [*lines[:_SHOWN], *([f"and {len(lines) - _SHOWN:,} more"] if len(lines) > _SHOWN else [])]


# --- preflight -------------------------------------------------------------------------------------------------------


def _preflight(client: ControlClient, order: Order, progress: Progress) -> list[str]:
    """Whether the backend would take mail for all of them. Returns warnings; raises Failed if it would not."""
    users = [user for user in order.users if not user.startswith("@")]
    missing, unwilling, full = [], [], []
    for start in range(0, max(len(users), 1), _BATCH):
        batch = users[start : start + _BATCH]
        recipients = [f"{user}@{order.domain}" if order.domain and "@" not in user else user for user in batch]
        doing = f"the preflight on {order.backend}: {start:,} of {count(len(users), 'user')} asked"
        answer = _ask(client, order, recipients, partial(_tick, progress, doing))
        replies = {reply.text("recipient"): reply for reply in answer.objects("replies")}
        for user, recipient in zip(batch, recipients, strict=True):
            reply = replies.get(recipient.replace("\\", "\\\\"))  # foreign text comes escaped
            if reply is None:
                raise Failed(REFUSED, f"{client.path}: there is no reply for {recipient}; nothing was changed")
            code, said = reply.integer("code"), f"it said {reply.text('reply')}"
            if code in (452, 552):
                full.append(f"{safe(user)}: no room on {order.backend}? {said}")
            elif code // 100 == 5:
                missing.append(f"{safe(user)}: account missing on {order.backend}? {said}")
            elif code // 100 != 2:
                unwilling.append(f"{safe(user)}: {order.backend} takes no mail for it now: {said}")
    if missing or unwilling:
        what = f"{order.backend} refused {len(missing + unwilling):,} of {count(len(users), 'user')}"
        raise Failed(
            REFUSED, f"{what}; nothing was changed; --no-preflight moves all the same", _first(missing + unwilling)
        )
    progress.step(progress.state)
    return _first(full)


def _tick(progress: Progress, doing: str, _waited: float) -> None:
    progress.waiting(doing)


def _ask(client: ControlClient, order: Order, recipients: Sequence[str], tick: Callable[[float], None]) -> Answer:
    try:
        answer = client.post(
            "/preflight", {"backend": order.backend, "recipients": recipients}, timeout=_PREFLIGHT, tick=tick
        )
    except Refusal as refusal:
        if refusal.code == 404:
            what = f"{refusal} in the running configuration (if the file has it, reload first)"
            raise Failed(REFUSED, f"{what}; nothing was changed") from refusal
        raise Failed(REFUSED, f"{refusal}; nothing was changed; --no-preflight goes without") from refusal
    if (refused := answer.optional_text("refused")) is not None:
        what = f"{show.place(answer)} does not take mail: {refused}"
        raise Failed(REFUSED, f"{what}; nothing was changed; --no-preflight moves all the same")
    return answer


# --- report ----------------------------------------------------------------------------------------------------------


def _report(
    order: Order, previous: Mapping[str, str | None], generation: int, drained: Drained, seconds: float
) -> Outcome:
    users = {user: _step(previous.get(user), order.backend) for user in order.users}
    end = f"generation {generation}, {drained.text}"
    if not drained.waited_for:
        end += f" ({span(seconds)})"
    error = ""
    if not drained.done:
        again = f"`lmtp-proxyctl drain {order.users[0]}{' ...' if len(order.users) > 1 else ''}` waits on"
        error = f"{order.who} on {order.backend} since generation {generation}, but not all is quiet: {again}"
    return Outcome({}, drained.lines(users, end), drained.status, error=error)


def _step(previous: str | None, backend: str) -> str:
    if previous is None:
        return f"added on {backend}"
    return f"was on {backend} already" if previous == backend else f"{previous} -> {backend}"
