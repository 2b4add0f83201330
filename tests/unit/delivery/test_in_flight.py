# SPDX-License-Identifier: GPL-3.0-or-later
"""What a drain waits for: exactly the flights that entered before the question and concern its keys."""

import pytest

from lmtp_proxy.delivery.in_flight import Flight, InFlight, Phase
from lmtp_proxy.routing.keys import KeyRules
from lmtp_proxy.wire.envelope import Recipient, parse_rcpt
from tests.support.flight import SomeFlight

RULES = KeyRules()


def recipient(address: str) -> Recipient:
    parsed = parse_rcpt(f"TO:<{address}>".encode(), smtputf8=False)
    assert isinstance(parsed, Recipient)
    return parsed


def begin(in_flight: InFlight, *addresses: str) -> Flight:
    flight = SomeFlight(*map(recipient, addresses))
    in_flight.begin(flight)
    return flight


def enter(in_flight: InFlight, *addresses: str) -> Flight:
    flight = begin(in_flight, *addresses)
    in_flight.enter(flight)
    return flight


def waited_for(in_flight: InFlight, *keys: str, rules: KeyRules = RULES) -> list[Flight]:
    return list(in_flight.drain(set(keys) or None, rules, in_flight.last))


def test_a_flight_is_there_until_it_leaves() -> None:
    in_flight = InFlight()
    first = enter(in_flight, "alice@x")
    second = enter(in_flight, "alice@x")  # the same recipient is another delivery
    assert len(in_flight) == 2 and list(in_flight) == [first, second]
    in_flight.leave(first)
    assert list(in_flight) == [second]
    in_flight.leave(second)
    assert len(in_flight) == 0


def test_leaving_twice_takes_nobody_else_away() -> None:
    in_flight = InFlight()
    flight, other = enter(in_flight, "a@x"), enter(in_flight, "a@x")
    in_flight.leave(flight)
    in_flight.leave(flight)
    assert list(in_flight) == [other]


def test_a_walk_over_flights_stands_their_leaving() -> None:
    in_flight = InFlight()
    for number in range(3):
        enter(in_flight, f"{number}@x")
    for flight in in_flight:
        in_flight.leave(flight)
    assert len(in_flight) == 0


@pytest.mark.parametrize(
    ("address", "key", "concerned"),
    [
        ("alice@x", "alice@x", True),
        ("Alice@X", "alice@x", True),
        ("alice+list@x", "alice@x", True),
        ("alice+list@x", "alice+list@x", True),
        ("alice@x", "alice+list@x", False),
        ("alice@x", "@x", True),
        ("alice@x", "@y", False),
        ("bob@x", "alice@x", False),
        ("alice", "alice", True),
    ],
)
def test_every_form_of_a_recipient_is_found(address: str, key: str, concerned: bool) -> None:
    in_flight = InFlight()
    flight = enter(in_flight, "other@y.test", address)
    assert waited_for(in_flight, key, "nobody@x") == ([flight] if concerned else [])
    assert waited_for(in_flight) == [flight]


def test_a_delivery_that_has_not_entered_is_not_waited_for() -> None:
    in_flight = InFlight()
    begun = begin(in_flight, "alice@x")
    assert waited_for(in_flight, "alice@x") == [] == waited_for(in_flight)
    begun.phase = Phase.DATA
    assert waited_for(in_flight, "alice@x") == []
    in_flight.enter(begun)
    assert waited_for(in_flight, "alice@x") == [begun]
    begun.phase = Phase.FINAL_DOT
    assert waited_for(in_flight, "alice@x") == [begun]


def test_one_that_stepped_back_is_not_waited_for_and_enters_as_a_new_one() -> None:
    in_flight = InFlight()
    flight = enter(in_flight, "alice@x")
    until = in_flight.last
    in_flight.step_back(flight)
    assert in_flight.drain({"alice@x"}, RULES, until) == ()
    in_flight.enter(flight)
    assert in_flight.drain({"alice@x"}, RULES, until) == ()  # it has looked again since
    assert in_flight.drain({"alice@x"}, RULES, in_flight.last) == (flight,)


def test_later_flights_do_not_keep_a_drain_waiting() -> None:
    in_flight = InFlight()
    first = enter(in_flight, "alice@x")
    until = in_flight.last
    enter(in_flight, "alice@x")
    assert in_flight.drain({"alice@x"}, RULES, until) == (first,)
    in_flight.leave(first)
    assert in_flight.drain({"alice@x"}, RULES, until) == ()


@pytest.mark.parametrize(
    ("entering", "asking", "key"),
    [
        (KeyRules(recipient_delimiter=""), RULES, "alice@x"),
        (RULES, KeyRules(ignore_domain=True), "alice"),
        (KeyRules(ignore_domain=True), RULES, "alice@x"),
        (KeyRules(case_sensitive=True), RULES, "alice@x"),
    ],
)
def test_a_reload_that_changes_the_rules_of_keys_loses_nobody(entering: KeyRules, asking: KeyRules, key: str) -> None:
    in_flight = InFlight()
    flight = enter(in_flight, "Alice+list@x")
    assert waited_for(in_flight, entering.forms("Alice+list", "x")[0], rules=entering) == [flight]
    assert waited_for(in_flight, key, rules=asking) == [flight]
    assert waited_for(in_flight, "bob", "bob@x", rules=asking) == []


def test_who_waits_is_told_of_each_end() -> None:
    in_flight = InFlight()
    told: list[int] = []

    def once() -> None:
        told.append(len(in_flight))
        in_flight.on_leave.remove(once)

    in_flight.on_leave += [once, lambda: told.append(-1)]
    first, second = enter(in_flight, "a@x"), enter(in_flight, "b@x")
    in_flight.leave(first)
    assert told == [1, -1]  # it has left by then, and a call may take itself away
    in_flight.step_back(second)
    in_flight.leave(second)
    in_flight.leave(second)
    assert told == [1, -1, -1, -1]


def test_an_operator_can_read_it() -> None:
    in_flight = InFlight()
    enter(in_flight, "b@x", "c@x")
    assert repr(in_flight) == "<InFlight 1>"
