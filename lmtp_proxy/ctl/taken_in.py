# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the proxy serves by a change of config.table: it is asked to, and its answer is held against the table."""

from collections.abc import Mapping
from http import HTTPStatus

from lmtp_proxy.ctl.client import ControlClient, ControlError, Refusal
from lmtp_proxy.ctl.drain import REFUSED, UNPROVEN, Failed, Progress
from lmtp_proxy.ctl.in_table import TableChange
from lmtp_proxy.table.base import TableError

_RELOAD = 300.0  # seconds, as in move


def take_in(client: ControlClient, change: TableChange, progress: Progress, end: str) -> int:
    """The generation that has all that the table says. Raises Failed, with status 1 if it was refused, and
    ControlError."""

    def tick(_: float) -> None:
        progress.waiting(f"the proxy to read {change.path}")

    try:
        answer = client.post("/reload", {"table_alone": True}, timeout=_RELOAD, tick=tick)
    except Refusal as refusal:
        if refusal.code != HTTPStatus.CONFLICT:
            raise
        what = str(refusal).removesuffix("; nothing was changed")  # by the proxy
        raise Failed(REFUSED, f"{what}; {end}", refusal.answer.texts("errors")) from refusal
    # Whatever the answer says: it is believed when it is at the change.
    if (why := _why_not_in_force(change, answer.optional_text("sha256"))) is not None:
        raise Failed(REFUSED if end else UNPROVEN, f"{client.path}: {why}{end and '; '}{end}")
    return answer.integer("generation")


def _why_not_in_force(change: TableChange, in_force: str | None) -> str | None:
    try:
        return change.why_not_in_force(in_force)
    except TableError as error:
        return str(error)


def check_in_force(change: TableChange, now: str, in_force: str | None, document: Mapping[str, object]) -> None:
    """That what was drained was drained by a table that has the change. Raises Failed.

    now: what the table says.
    """
    if (why := _why_not_in_force(change, in_force)) is not None:
        raise Failed(UNPROVEN, f"{now}; whether that is in force is not known: {why}", (), document)


def take_in_again(client: ControlClient, change: TableChange, progress: Progress, failed: Failed) -> None:
    """After `_undo`: the proxy looks at the table by itself, too, and may have seen what was put back."""
    try:
        take_in(client, change, progress, "")
    except (Failed, ControlError) as error:
        why = error.text if isinstance(error, Failed) else str(error)
        failed.status = UNPROVEN
        failed.text += f"; which of the two is in force is not known: {why}"
