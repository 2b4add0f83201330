"""Checks a client's outcome against the backends' own record: who was told what, and was it earned.

The two promises: a recipient hears 2xx if and only if its owner answered 2xx for that very position; and each accepted
recipient hears exactly one final reply, in order (the latter is enforced while reading, see `LmtpClient.finals`).
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.support.backend import FakeBackend
from tests.support.client import Outcome
from tests.support.record import SeenRecipient, SeenTransaction, is_positive, is_verdict


def check_earned(outcome: Outcome, owners: Sequence[FakeBackend | None], *, prompt: float = 1e9) -> None:
    """`owners[i]` is the backend of recipient i, None when it has none. The sender must be unique to the message.

    A 2xx that an owner gave later than `prompt` seconds after the dot may have met a deadline: it need not be passed.
    """
    for backend in {id(owner): owner for owner in owners if owner is not None}.values():
        mine = [position for position, owner in enumerate(owners) if owner is backend]
        _check_owner(outcome, mine, backend, prompt)
    for position, owner in enumerate(owners):
        if owner is None:
            assert not outcome.verdict(position).positive, f"2xx without an owner: {outcome}"


_TURNED_AWAY = (
    "451 4.2.1 Too many deliveries to this mailbox at a time, try again later",
    "452 4.5.3 Too many recipients",
)
"""What the proxy says to RCPT by itself: the owner is not asked."""


def _check_owner(outcome: Outcome, mine: Sequence[int], owner: FakeBackend, prompt: float) -> None:
    mine = [position for position in mine if outcome.rcpts[position].text not in _TURNED_AWAY]
    tries = owner.transactions(outcome.sender)
    dotted = [seen for seen in tries if seen.dotted]
    assert len(dotted) <= 1, f"the message was committed {len(dotted)} times: {dotted}"
    seen: SeenTransaction | None = dotted[0] if dotted else (tries[-1] if tries else None)
    recipients: list[SeenRecipient] = seen.recipients if seen is not None else []
    paths = [recipient.path for recipient in recipients]
    before = [each for each in tries if each is not seen]
    told = _told_before(outcome, mine, before) if before and len(paths) < len(mine) else []
    rest = [position for position in mine if position not in told]
    # The same address twice may be one whom an earlier session refused, and one for whom this one was asked.
    if told and (paths != _paths(outcome, mine)[: len(paths)] or paths == _paths(outcome, rest)):
        for position in told:
            assert not outcome.verdict(position).positive, f"2xx after a refusal: {outcome}"
        mine = rest
    assert paths == _paths(outcome, mine)[: len(paths)], (paths, outcome)
    # What was said before the dot may be read after it: then it is the first final reply, and all others move by one.
    early = seen.early if seen is not None else []
    spoken = [*early, *(record.final for record in recipients if record.accepted)]
    # Until the owner's stream of final replies is broken: what follows then is not to be believed.
    sound = seen is not None and not early and not seen.reset
    accepted = -1
    for index, position in enumerate(mine):
        got = outcome.verdict(position)
        record = recipients[index] if index < len(recipients) else None
        if record is not None and record.accepted:
            accepted += 1
        where = f"{outcome.recipients[position]} (position {position}) heard {got}; owner: {record}, {seen}"
        if outcome.rcpts[position].positive and not (record is not None and record.accepted):
            # Who is asked for again, as the place was given back while another store was waited for, may be refused.
            earlier = outcome.recipients[position] in _paths_of(before, accepted=True)
            assert earlier and not got.positive, f"RCPT accepted without the owner: {where}"
        if got.positive:
            assert seen is not None and seen.dotted, f"2xx, but no final dot came: {where}"
            assert record is not None and record.accepted, f"2xx without an accepted RCPT: {where}"
            assert record.delivered or (early and is_positive(spoken[accepted])), f"2xx was not earned: {where}"
        elif sound and record is not None and record.delivered and seen is not None and seen.dot_at is not None:
            took = (record.final_at or seen.dot_at) - seen.dot_at
            assert took > prompt, f"a 2xx of the owner was lost: {where}"
        if record is not None and record.accepted and not is_verdict(record.final):
            sound = False


def _paths(outcome: Outcome, positions: Sequence[int]) -> list[str]:
    return [outcome.recipients[position] for position in positions]


def _told_before(outcome: Outcome, mine: Sequence[int], before: Sequence[SeenTransaction]) -> list[int]:
    """Whom an earlier session refused, which the client has heard or will hear: the next one is not asked for them."""
    refused = _paths_of(before, accepted=False)
    return [
        position
        for position in mine
        if outcome.recipients[position] in refused and not outcome.verdict(position).positive
    ]


def _paths_of(transactions: Sequence[SeenTransaction], *, accepted: bool) -> set[str]:
    """Of all that were accepted, or refused."""
    records = [record for seen in transactions for record in seen.recipients]
    return {record.path for record in records if record.accepted is accepted}
