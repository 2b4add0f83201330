# SPDX-License-Identifier: GPL-3.0-or-later
"""Replies go out in the order of their commands, whenever each becomes known."""

from random import Random

import pytest

from lmtp_proxy.wire import reply as say
from lmtp_proxy.wire.reply import Reply
from lmtp_proxy.wire.reply_queue import ReplyQueue


def number(value: int, code: int = 250) -> Reply:
    return Reply(code, (b"2.0.0 %d" % value,))


def test_what_is_known_goes_out_at_once() -> None:
    queue = ReplyQueue()
    queue.say(say.OK)
    queue.say(say.BYE)
    assert queue.ready == [say.OK.wire, say.BYE.wire]


@pytest.mark.parametrize(
    ("codes", "positive"), [((250,), 1), ((550,), 0), ((250, 251), 2), ((250, 450, 550), 1), ((450, 550), 0), ((), 0)]
)
@pytest.mark.parametrize("behind", [False, True])
def test_how_many_of_those_that_were_owed_are_positive(codes: tuple[int, ...], positive: int, behind: bool) -> None:
    queue = ReplyQueue()
    queue.owe(len(codes) + 1)
    if behind:
        queue.say(say.OK)
    replies = [number(each, code) for each, code in enumerate(codes)]
    assert queue.settle(replies) == positive
    assert queue.owed == 1 and queue.ready == [reply.wire for reply in replies]


def test_a_reply_that_is_known_waits_for_those_before_it() -> None:
    queue = ReplyQueue()
    queue.owe(1)
    queue.say(number(1))
    queue.owe(2)
    queue.say(number(4))
    assert queue.ready == []
    queue.settle([number(0)])
    assert queue.ready == [number(0).wire, number(1).wire]
    queue.settle([number(2), number(3)])
    assert queue.ready == [number(each).wire for each in range(5)] and queue.owed == 0
    queue.say(number(5))
    assert queue.ready[-1] == number(5).wire


def test_what_was_forgotten_is_never_said() -> None:
    queue = ReplyQueue()
    queue.owe(2)
    queue.say(number(2))
    queue.forget_owed()
    queue.say(say.SHUTTING_DOWN)
    assert (queue.ready, queue.owed) == ([say.SHUTTING_DOWN.wire], 0)


@pytest.mark.parametrize("seed", range(50))
def test_in_any_order_of_what_becomes_known(seed: int) -> None:
    """Against a list in which each reply has its place from the moment of its command on."""
    chance = Random(seed)
    queue = ReplyQueue()
    model: list[Reply | None] = []
    for value in range(60):
        step = chance.randrange(3)
        if step == 0:
            queue.say(number(value))
            model.append(number(value))
        elif step == 1:
            count = chance.randint(1, 3)
            queue.owe(count)
            model += [None] * count
        elif queue.owed:
            replies = [number(value + 1000 * each) for each in range(chance.randint(1, queue.owed))]
            queue.settle(replies)
            for reply in replies:
                model[model.index(None)] = reply
        known = model[: model.index(None)] if None in model else model
        assert queue.ready == [reply.wire for reply in known if reply is not None]
        assert queue.owed == model.count(None)
