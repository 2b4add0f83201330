# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is asked for, who is accepted, what each gets at last: on one session, and where a second one is asked."""

from itertools import product

import pytest

from lmtp_proxy.delivery.accounts import Accounts
from lmtp_proxy.generations.destination import Destination
from lmtp_proxy.routing.routing import Route
from lmtp_proxy.wire.envelope import Recipient
from lmtp_proxy.wire.reply import Reply

YES, NO, LATER, STORED, GONE = (
    Reply(code, (text,))
    for code, text in ((250, b"2.1.5 yes"), (550, b"5.1.1 no"), (452, b"4.2.2 full"), (250, b"2.0.0 in"), (451, b"x"))
)


def to(name: str) -> Destination:
    return Destination(Recipient(f"<{name}@x>".encode(), name, "x"), Route((f"{name}@x",)), 1, None)


A, B, C, D = map(to, "abcd")


def asked(*destinations: Destination) -> Accounts:
    accounts = Accounts()
    accounts.asked = destinations
    return accounts


def asked_again(*promised: Destination, new: tuple[Destination, ...] = ()) -> Accounts:
    accounts = asked(*promised)
    accounts.take_all()
    accounts.asked = new
    accounts.ask_again()
    assert (list(accounts.asked), list(accounts.accepted)) == ([*promised, *new], [])
    assert list(accounts.told_yes) == list(promised) and not accounts.final
    return accounts


# --- one session -----------------------------------------------------------------------------------------------------


def test_all_are_accepted_at_once_as_one_by_one() -> None:
    at_once, one_by_one = asked(A, B), asked(A, B)
    at_once.take_all()
    assert one_by_one.take([YES, YES]) == [YES, YES]
    for accounts in (at_once, one_by_one):
        assert (list(accounts.accepted), list(accounts.asked)) == ([A, B], [])
        accounts.asked = [C]
        accounts.take_all()
        assert list(accounts.accepted) == [A, B, C] == list(accounts.told_yes)


def test_a_caller_keeps_what_it_asked_for() -> None:
    mine = [A]
    accounts = Accounts()
    accounts.asked = mine
    accounts.take_all()
    accounts.asked = [B]
    accounts.take([YES])
    assert mine == [A] and list(accounts.accepted) == [A, B]


def test_who_is_refused_is_owed_nothing() -> None:
    accounts = asked(A, B, C)
    assert accounts.take([NO, YES, LATER]) == [NO, YES, LATER]
    assert list(accounts.accepted) == [B]


@pytest.mark.parametrize(
    ("groups", "deferred_all"),
    [
        ([], False),
        ([[YES]], False),
        ([[LATER]], True),
        ([[LATER, LATER], [LATER]], True),
        ([[LATER, NO]], False),
        ([[NO], [LATER]], False),
        ([[LATER], [NO]], False),
        ([[LATER], [YES]], False),
        ([[YES], [LATER]], False),
    ],
)
def test_everybody_is_deferred(groups: list[list[Reply]], deferred_all: bool) -> None:
    accounts = Accounts()
    for group in groups:
        accounts.asked = [A] * len(group)
        accounts.take(group)
    assert accounts.deferred_all is deferred_all


def test_a_failure_answers_those_who_were_asked_for() -> None:
    accounts = asked(A)
    accounts.take_all()
    accounts.asked = [B, C]
    assert accounts.fail(GONE) == [GONE, GONE]
    assert list(accounts.accepted) == [A] and not accounts.asked


def test_a_backend_that_says_no_more_is_answered_for() -> None:
    accounts = asked(A, B, C)
    accounts.take_all()
    accounts.replies = [STORED]
    assert accounts.answer_rest(GONE) == 2
    assert (list(accounts.final), accounts.said) == ([STORED, GONE, GONE], 1)
    assert accounts.answer_rest(LATER) == 0
    assert (list(accounts.final), accounts.said) == ([STORED, GONE, GONE], 1)


# --- a second one ----------------------------------------------------------------------------------------------------


def test_it_asks_for_nobody_who_was_promised_nothing() -> None:
    accounts = asked(A, B)
    accounts.ask_again()
    assert accounts.again is None and list(accounts.asked) == [A, B]
    assert accounts.take([YES, NO]) == [YES, NO]


@pytest.mark.parametrize("said", [*product((YES, NO, LATER), repeat=3)])
def test_each_has_one_final_reply_at_his_position(said: tuple[Reply, ...]) -> None:
    """Those who are refused now have theirs; the others wait for the backend's, in their order."""
    accounts = asked_again(A, B, new=(C,))
    [to_c] = accounts.take(said)
    assert to_c is said[2]
    accounts.asked = [D]
    accounts.take([YES])
    owed = [each for each, reply in zip((A, B, C), said, strict=True) if reply.positive] + [D]
    assert list(accounts.accepted) == owed
    told = [A, B, *([C] if to_c.positive else []), D]
    assert list(accounts.told_yes) == told
    refused = {each: reply for each, reply in zip((A, B), said, strict=False) if not reply.positive}
    finals = {each: Reply(250, (each.recipient.local_part.encode(),)) for each in owed}
    for known in range(len(owed) + 1):
        accounts.replies = [finals[each] for each in owed[:known]]
        expected = [refused.get(each) or finals[each] for each in told]
        unknown = told.index(owed[known]) if known < len(owed) else len(told)
        assert list(accounts.final) == expected[:unknown]


@pytest.mark.parametrize("new", [(), (C,)])
def test_a_second_session_that_fails_leaves_the_promises(new: tuple[Destination, ...]) -> None:
    accounts = asked_again(A, B, new=new)
    assert accounts.fail(GONE) == [GONE] * len(new)
    assert list(accounts.accepted) == [A, B] == list(accounts.told_yes) and not accounts.final
    accounts.asked = [D]
    assert accounts.fail(GONE) == [GONE]
    assert accounts.answer_rest(GONE) == 2
    assert (list(accounts.final), accounts.said) == ([GONE, GONE], 0)


@pytest.mark.parametrize("said", [*product((YES, NO, LATER), repeat=3)])
def test_it_may_come_to_a_third_one(said: tuple[Reply, ...]) -> None:
    """Who was refused by the second one is not asked for again; the place of each stays his."""
    accounts = asked_again(A, B, C)
    accounts.take(said)
    stand = [each for each, reply in zip((A, B, C), said, strict=True) if reply.positive]
    accounts.ask_again()
    accounts.asked = accounts.promised_and([D])
    assert list(accounts.asked) == [*stand, D]
    assert accounts.take([*[NO] * len(stand), YES]) == [YES]
    assert (list(accounts.told_yes), list(accounts.accepted)) == ([A, B, C, D], [D])
    accounts.replies = [STORED]
    assert list(accounts.final) == [NO if reply.positive else reply for reply in said] + [STORED]


def test_who_was_never_asked_for_again_is_answered_for() -> None:
    accounts = asked_again(A, B)
    assert accounts.answer_rest(GONE) == 2
    assert list(accounts.final) == [GONE, GONE] and not accounts.asked


def test_what_the_second_session_refused_stands_when_it_says_no_more() -> None:
    accounts = asked_again(A, B, C)
    accounts.take([YES, NO, YES])
    accounts.replies = [STORED]
    assert accounts.answer_rest(GONE) == 1
    assert (list(accounts.final), accounts.said) == ([STORED, NO, GONE], 2)


def test_a_message_that_is_refused_is_refused_to_all() -> None:
    accounts = asked_again(A, B, C)
    accounts.take([YES, LATER, YES])
    accounts.refuse(NO)
    assert (list(accounts.final), list(accounts.told_yes), accounts.said) == ([NO] * 3, [A, B, C], 3)


def test_who_was_promised_is_not_deferred() -> None:
    """So the session is kept, although it has deferred all whom it was asked for."""
    accounts = asked_again(A, new=(B,))
    accounts.take([LATER, LATER])
    assert not accounts.deferred_all


def test_an_operator_can_read_it() -> None:
    accounts = asked_again(A, B, new=(C,))
    assert repr(accounts) == "<Accounts asked=3 accepted=0 replies=0 <AskedAgain for 2 waiting=2 refused=0>>"
    accounts.take([YES, NO, YES])
    assert repr(accounts) == "<Accounts asked=0 accepted=2 replies=0 <AskedAgain for 2 waiting=0 refused=1>>"
