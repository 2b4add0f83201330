# SPDX-License-Identifier: GPL-3.0-or-later
"""Events are values: equal if they say the same, and never changed."""

import inspect
from typing import Any, get_args

import pytest

from lmtp_proxy.wire import events
from lmtp_proxy.wire import reply as say
from lmtp_proxy.wire.envelope import Envelope, Recipient
from lmtp_proxy.wire.events import (
    ConnectionClosed,
    DataCommand,
    EndOfMessage,
    EnvelopeCommand,
    Event,
    MailCommand,
    MessageOctets,
    Mistake,
    RcptCommand,
    RefusedCommand,
    StartTlsCommand,
    TransactionReset,
    Wait,
)

ENVELOPE, RECIPIENT = Envelope(b"<s@x>"), Recipient(b"<u@x>", "u", "x")
EACH: list[Any] = [
    MailCommand(ENVELOPE),
    RcptCommand(RECIPIENT),
    EnvelopeCommand(ENVELOPE, [b"<u@x>"]),
    DataCommand(),
    MessageOctets(b"x"),
    EndOfMessage(1, None),
    RefusedCommand(b"X", say.BAD_COMMAND, None),
    TransactionReset(),
    StartTlsCommand(),
    ConnectionClosed(),
]


def test_each_is_among_these() -> None:
    here = {value for value in vars(events).values() if inspect.isclass(value) and value.__module__ == events.__name__}
    assert {type(event) for event in EACH} == set(get_args(Event)) == here - {Wait, Mistake}


@pytest.mark.parametrize("event", EACH, ids=lambda event: type(event).__name__)
def test_it_is_a_value(event: Any) -> None:
    names = getattr(event, "_fields", ())
    again = type(event)(*(getattr(event, name) for name in names))
    assert event == again and repr(event) == repr(again)
    assert type(event).__name__ in repr(event)
    for name in (*names, "new"):
        with pytest.raises((AttributeError, TypeError)):  # TypeError: of a dataclass with slots
            setattr(event, name, None)


def test_what_nearly_all_messages_say_need_not_be_said() -> None:
    assert EndOfMessage(5, None) == EndOfMessage(5, None, b"")
    assert RefusedCommand(b"X", say.BAD_COMMAND, None) == (b"X", say.BAD_COMMAND, None, False, Mistake.OTHER)


def test_reasons_to_wait_are_told_apart_from_events() -> None:
    assert {wait.name for wait in Wait} == {"NEED_DATA", "PAUSED", "BUSY"}
    assert not any(isinstance(event, Wait) for event in EACH)
