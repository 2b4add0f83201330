# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in flight is known from entering to leaving, whatever keys it has."""

from lmtp_proxy.in_flight import InFlight


def test_a_flight_is_there_until_it_leaves() -> None:
    in_flight = InFlight()
    first = in_flight.enter("old", ["alice@x", "@x"])
    second = in_flight.enter("old", ["alice@x", "@x"])  # the same keys are another delivery
    assert len(in_flight) == 2
    in_flight.leave(first)
    assert list(in_flight) == [second]
    in_flight.leave(second)
    assert len(in_flight) == 0


def test_leaving_twice_takes_nobody_else_away() -> None:
    in_flight = InFlight()
    flight, other = in_flight.enter("old", ["a"]), in_flight.enter("new", ["a"])
    in_flight.leave(flight)
    in_flight.leave(flight)
    assert list(in_flight) == [other]


def test_a_walk_over_flights_stands_their_leaving() -> None:
    in_flight = InFlight()
    for number in range(3):
        in_flight.enter("old", [str(number)])
    for flight in in_flight:
        in_flight.leave(flight)
    assert len(in_flight) == 0


def test_an_operator_can_read_it() -> None:
    in_flight = InFlight()
    assert repr(in_flight.enter("old", ["b@x", "@x", "b@x"])) == "<Flight to old for @x, b@x>"
    assert repr(in_flight) == "<InFlight 1>"
